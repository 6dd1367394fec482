//! The loss of a global batch and its gradients, computed the same way everywhere.

use super::batch::{Batch, BatchError, Teacher};
use super::embedding::{self, Distance, Pairs, Projection};
use super::scalar::Scalar;
use super::scores::{Sums, score_terms};
use super::spec::{Dims, Loss, Objective, SpecError};
use super::theta::{ThetaLayout, ThetaRole};
use super::unit::{add_leading, leading};

/// Most query rows whose scores are held at a time. A constant, not a setting: sums over blocks depend on it,
/// and so would the student's bits.
const BLOCK_ROWS: usize = 128;

/// Most scores held at a time, as long as one row has no more: 8 MiB in f32, and as much for the teacher's.
const BLOCK_SCORES: usize = 1 << 21;

/// Query rows whose scores are held at a time, a function of the batch's shape alone.
pub fn block_rows(passages: usize) -> usize {
    (BLOCK_SCORES / passages.max(1)).clamp(1, BLOCK_ROWS)
}

/// A loss and its gradients.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome<T> {
    /// Σ weight · term; not finite if any input was not.
    pub value: f64,
    /// Value of each term before its weight, in the objective's order.
    pub terms: Vec<f64>,
    /// Gradient by query vectors [B, d].
    pub queries: Vec<T>,
    /// Gradient by passage vectors [M, d].
    pub passages: Vec<T>,
    /// Gradient by the loss's own parameters, as its layout has them.
    pub theta: Vec<T>,
    /// (query, candidate) pairs that InfoNCE terms left out as known positives or duplicates.
    pub masked_pairs: u64,
    /// (query, candidate) pairs that InfoNCE terms left out because the teacher takes them for positives.
    pub guided_pairs: u64,
}

/// A loss that could not be computed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum LossError {
    /// The objective does not fit the batch.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The batch does not fit together.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// Parameters of another objective.
    #[error("loss parameters hold {got} values, its layout has {want}: make them from the same objective")]
    Theta {
        /// Values given.
        got: usize,
        /// Values of the layout.
        want: usize,
    },
}

/// The value and gradients of `objective` on `batch` with loss parameters `theta`.
///
/// Deterministic and single-threaded: the order of additions depends on shapes alone.
pub fn evaluate<T: Scalar>(
    objective: &Objective,
    batch: &Batch<T>,
    theta: &[T],
) -> Result<Outcome<T>, LossError> {
    evaluate_in_blocks(objective, batch, theta, block_rows(batch.passage_rows.len()))
}

/// As [`evaluate`], `block` query rows at a time.
pub(super) fn evaluate_in_blocks<T: Scalar>(
    objective: &Objective,
    batch: &Batch<T>,
    theta: &[T],
    block: usize,
) -> Result<Outcome<T>, LossError> {
    batch.check()?;
    let kind = batch.teacher.kind();
    let (listed, microbatch) = (batch.listed(), batch.microbatch);
    objective.check(kind, Dims { student: batch.dim, listed, microbatch, batch: batch.len() })?;
    let layout = objective.theta_layout(kind, batch.dim);
    if theta.len() != layout.len() {
        return Err(LossError::Theta { got: theta.len(), want: layout.len() });
    }
    let terms = objective.terms.iter().enumerate();
    let temperatures: Vec<f64> = terms.map(|(k, term)| term.loss.temperature_in(k, &layout, theta)).collect();
    let Sums { terms, by_log_temperature, mut queries, mut passages, masked_pairs, guided_pairs } =
        score_terms(objective, batch, &temperatures, block);
    // Without a term on scores nothing has been laid out yet.
    queries.resize(batch.queries.len(), T::zero());
    passages.resize(batch.passages.len(), T::zero());
    let mut outcome = Outcome {
        value: 0.0,
        terms,
        queries,
        passages,
        theta: vec![T::zero(); theta.len()],
        masked_pairs,
        guided_pairs,
    };
    for (k, slope) in by_log_temperature.into_iter().enumerate() {
        if let Some(entry) = layout.find(k, ThetaRole::Temperature) {
            outcome.theta[entry.offset] = T::of(slope);
        }
    }
    embedding_terms(objective, batch, &layout, theta, block, &mut outcome);
    outcome.value = objective.terms.iter().zip(&outcome.terms).map(|(term, value)| term.weight * value).sum();
    Ok(outcome)
}

/// Adds the terms on vectors.
fn embedding_terms<T: Scalar>(
    objective: &Objective,
    batch: &Batch<T>,
    layout: &ThetaLayout,
    theta: &[T],
    block: usize,
    outcome: &mut Outcome<T>,
) {
    let Teacher::Vectors { dim: teacher_dim, queries, passages } = batch.teacher else { return };
    let whole = batch.dim;
    for (k, term) in objective.terms.iter().enumerate() {
        let (distance, side) = match term.loss {
            Loss::EmbeddingMse { side, .. } => (Distance::Mse, side),
            Loss::EmbeddingCosine { side, .. } => (Distance::Cosine, side),
            _ => continue,
        };
        for (dim, share) in term.views(whole) {
            let towers = [
                (side.queries(), batch.queries, queries, &mut outcome.queries),
                (side.passages(), batch.passages, passages, &mut outcome.passages),
            ];
            for (_, student, teacher, gradient) in towers.into_iter().filter(|tower| tower.0) {
                let projection = layout.find(k, ThetaRole::Projection { dim }).map(|entry| Projection {
                    theta: &theta[entry.range()],
                    gradient: &mut outcome.theta[entry.range()],
                });
                let student = leading(student, whole, dim);
                let pairs = Pairs { student: &student, dim, teacher, teacher_dim };
                let weight = term.weight * share;
                let value = if dim == whole {
                    embedding::compare(distance, &pairs, projection, weight, block, gradient)
                } else {
                    let mut part = vec![T::zero(); student.len()];
                    let value = embedding::compare(distance, &pairs, projection, weight, block, &mut part);
                    add_leading(gradient, whole, &part, dim);
                    value
                };
                outcome.terms[k] += share * value;
            }
        }
    }
}
