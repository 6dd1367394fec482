//! The loss of a global batch and its gradients, computed the same way everywhere.

use super::batch::{Batch, BatchError, Teacher};
use super::embedding::{self, Distance, Pairs, Projection};
use super::masks::Columns;
use super::rows::{self, Divergence};
use super::scalar::{Scalar, add_scaled, dot};
use super::spec::{Dims, LossSpec, Objective, Scope, SpecError};
use super::theta::ThetaLayout;
use super::unit::Compared;
use crate::matmul::{self, Sizes, Write};

/// Query rows whose scores are held at a time. A constant, not a setting: sums over blocks depend on it,
/// and so would the student's bits.
pub const BLOCK_ROWS: usize = 128;

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
}

/// A loss that could not be computed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum LossError {
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error(transparent)]
    Batch(#[from] BatchError),
    #[error("loss parameters hold {got} values, its layout has {want}: make them from the same objective")]
    Theta { got: usize, want: usize },
}

/// The value and gradients of `objective` on `batch` with loss parameters `theta`.
///
/// Deterministic and single-threaded: the order of additions depends on shapes alone.
pub fn evaluate<T: Scalar>(
    objective: &Objective,
    batch: &Batch<T>,
    theta: &[T],
) -> Result<Outcome<T>, LossError> {
    evaluate_in_blocks(objective, batch, theta, BLOCK_ROWS)
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
    objective.check(kind, Dims { student: batch.dim, listed: batch.listed(), batch: batch.len() })?;
    let layout = objective.theta_layout(kind, batch.dim);
    if theta.len() != layout.len() {
        return Err(LossError::Theta { got: theta.len(), want: layout.len() });
    }
    let mut outcome = Outcome {
        value: 0.0,
        terms: vec![0.0; objective.terms.len()],
        queries: vec![T::zero(); batch.queries.len()],
        passages: vec![T::zero(); batch.passages.len()],
        theta: vec![T::zero(); theta.len()],
        masked_pairs: 0,
    };
    if objective.terms.iter().any(|term| !term.is_embedding()) {
        score_terms(objective, batch, block, &mut outcome);
    }
    embedding_terms(objective, batch, &layout, theta, block, &mut outcome);
    outcome.value =
        objective.terms.iter().zip(&outcome.terms).map(|(term, value)| term.weight() * value).sum();
    Ok(outcome)
}

/// Adds the terms on scores: scores of a block, their gradient, and back to the vectors.
fn score_terms<T: Scalar>(objective: &Objective, batch: &Batch<T>, block: usize, outcome: &mut Outcome<T>) {
    let (b, m, listed, d) = (batch.len(), batch.passage_rows.len(), batch.listed(), batch.dim);
    let queries = Compared::new(objective.similarity, batch.queries, d);
    let passages = Compared::new(objective.similarity, batch.passages, d);
    let teacher = TeacherScores::new(objective, batch);
    let columns = Columns::of(batch);
    // Without a term over the whole batch, a row holds the query's own candidates only.
    let wide = objective.terms.iter().any(LossSpec::spans_batch);
    let wide_teacher =
        objective.terms.iter().any(|term| matches!(term, LossSpec::Kl { scope: Scope::Batch, .. }));
    let width = if wide { m } else { listed };
    let rows_held = block.min(b);
    let mut scores = vec![T::zero(); rows_held * width];
    let mut teacher_scores = vec![T::zero(); rows_held * if wide_teacher { m } else { listed }];
    let mut row = RowState::new(width);
    for start in (0..b).step_by(block) {
        let rows = block.min(b - start);
        let scores = &mut scores[..rows * width];
        let teacher_width = if wide_teacher { m } else { listed };
        let teacher_block = &mut teacher_scores[..rows * teacher_width];
        score_block(&queries, &passages, (start, rows, listed, wide), scores);
        teacher.block((start, rows, listed, wide_teacher), teacher_block);
        for i in 0..rows {
            let query = start + i;
            row.load(
                &scores[i * width..(i + 1) * width],
                &teacher_block[i * teacher_width..(i + 1) * teacher_width],
            );
            row.add_terms(objective, batch, &columns, query, teacher.scored(query, listed), outcome);
            // The scores are not needed any more: the gradient takes their place.
            scores[i * width..(i + 1) * width]
                .iter_mut()
                .zip(&row.gradient)
                .for_each(|(s, g)| *s = T::of(*g));
        }
        let dq = &mut outcome.queries[start * d..(start + rows) * d];
        if wide {
            let q = &queries.vectors[start * d..(start + rows) * d];
            matmul::nn(Sizes { m: rows, n: d, k: m }, scores, &passages.vectors, dq, Write::Add);
            matmul::tn(Sizes { m, n: d, k: rows }, scores, q, &mut outcome.passages, Write::Add);
        } else {
            for (at, g) in scores.iter().enumerate() {
                let (i, passage) = (at / listed, start * listed + at);
                add_scaled(&mut dq[i * d..(i + 1) * d], g.as_f64(), passages.row(passage));
                let dp = &mut outcome.passages[passage * d..(passage + 1) * d];
                add_scaled(dp, g.as_f64(), queries.row(start + i));
            }
        }
    }
    queries.backward(&mut outcome.queries);
    passages.backward(&mut outcome.passages);
    let inverse = 1.0 / b as f64;
    outcome.terms.iter_mut().for_each(|term| *term *= inverse);
}

/// Scores of queries start .. start+rows with every passage, or with their own candidates.
fn score_block<T: Scalar>(
    queries: &Compared<T>,
    passages: &Compared<T>,
    (start, rows, listed, wide): (usize, usize, usize, bool),
    scores: &mut [T],
) {
    if wide {
        let d = queries.row(0).len();
        let (q, m) = (&queries.vectors[start * d..(start + rows) * d], scores.len() / rows);
        matmul::nt(Sizes { m: rows, n: m, k: d }, q, &passages.vectors, scores, Write::Overwrite);
    } else {
        for (at, score) in scores.iter_mut().enumerate() {
            *score = T::of(dot(queries.row(start + at / listed), passages.row(start * listed + at)));
        }
    }
}

/// The teacher as a source of scores.
enum TeacherScores<'a, T: Scalar> {
    None,
    Vectors { queries: Compared<'a, T>, passages: Compared<'a, T> },
    Listed { scores: &'a [T], scored: &'a [bool] },
}

impl<'a, T: Scalar> TeacherScores<'a, T> {
    fn new(objective: &Objective, batch: &Batch<'a, T>) -> Self {
        let wanted = |term: &LossSpec| matches!(term, LossSpec::Kl { .. } | LossSpec::MarginMse { .. });
        match batch.teacher {
            Teacher::Vectors { dim, queries, passages } if objective.terms.iter().any(wanted) => {
                Self::Vectors {
                    queries: Compared::new(objective.teacher_similarity, queries, dim),
                    passages: Compared::new(objective.teacher_similarity, passages, dim),
                }
            }
            Teacher::Scores { listed, scored } => Self::Listed { scores: listed, scored },
            Teacher::Vectors { .. } | Teacher::None => Self::None,
        }
    }

    /// Fills the scores of a block of queries; without a teacher nothing reads them.
    fn block(&self, (start, rows, listed, wide): (usize, usize, usize, bool), scores: &mut [T]) {
        match self {
            Self::None => {}
            Self::Vectors { queries, passages } => {
                score_block(queries, passages, (start, rows, listed, wide), scores)
            }
            Self::Listed { scores: all, .. } => {
                scores.copy_from_slice(&all[start * listed..(start + rows) * listed]);
            }
        }
    }

    /// Which of a query's own candidates have a score; `None` means all.
    fn scored(&self, query: usize, listed: usize) -> Option<&'a [bool]> {
        match self {
            Self::Listed { scored, .. } => Some(&scored[query * listed..(query + 1) * listed]),
            Self::None | Self::Vectors { .. } => None,
        }
    }
}

/// Buffers of one query's row.
struct RowState {
    scores: Vec<f64>,
    teacher: Vec<f64>,
    gradient: Vec<f64>,
    keep: Vec<bool>,
}

impl RowState {
    fn new(width: usize) -> Self {
        let zeros = || vec![0.0; width];
        Self { scores: zeros(), teacher: zeros(), gradient: zeros(), keep: Vec::with_capacity(width) }
    }

    fn load<T: Scalar>(&mut self, scores: &[T], teacher: &[T]) {
        self.scores.clear();
        self.scores.extend(scores.iter().map(|s| s.as_f64()));
        self.teacher.clear();
        self.teacher.extend(teacher.iter().map(|s| s.as_f64()));
        self.gradient.fill(0.0);
    }

    /// Adds every score term of this query to the outcome's values and to the row's gradient.
    fn add_terms<T: Scalar>(
        &mut self,
        objective: &Objective,
        batch: &Batch<T>,
        columns: &Columns,
        query: usize,
        scored: Option<&[bool]>,
        outcome: &mut Outcome<T>,
    ) {
        let Self { scores, teacher, gradient, keep } = self;
        let (m, listed) = (batch.passage_rows.len(), batch.listed());
        // A wide row holds the own candidates at their place in the batch, a narrow one nothing else.
        let part = |width: usize, whole: bool| match (whole, width == listed && m != listed) {
            (true, _) => 0..m,
            (false, true) => 0..listed,
            (false, false) => query * listed..(query + 1) * listed,
        };
        for (k, term) in objective.terms.iter().enumerate() {
            let whole = term.spans_batch();
            let (at, teacher_at) = (part(scores.len(), whole), part(teacher.len(), whole));
            let own = if whole { query * listed } else { 0 };
            let factor = term.weight() / batch.len() as f64;
            let (s, g) = (&scores[at.clone()], &mut gradient[at]);
            outcome.terms[k] += match *term {
                LossSpec::InfoNce { temperature, .. } => {
                    outcome.masked_pairs +=
                        columns.negatives(query, &batch.known_positives[query], whole, keep);
                    rows::info_nce(s, keep, own, temperature, factor, g)
                }
                LossSpec::Kl { student_temperature, teacher_temperature, direction, .. } => {
                    columns.distinct(query, whole, keep);
                    restrict(keep, scored);
                    let spec = Divergence { student_temperature, teacher_temperature, direction };
                    rows::kl(spec, s, &teacher[teacher_at], keep, factor, g)
                }
                LossSpec::MarginMse { scale, .. } => {
                    columns.distinct(query, whole, keep);
                    restrict(keep, scored);
                    rows::margin_mse(s, &teacher[teacher_at], keep, scale, factor, g)
                }
                LossSpec::EmbeddingMse { .. } | LossSpec::EmbeddingCosine { .. } => 0.0,
            };
        }
    }
}

/// Drops candidates that the teacher did not score.
fn restrict(keep: &mut [bool], scored: Option<&[bool]>) {
    if let Some(scored) = scored {
        keep.iter_mut().zip(scored).for_each(|(k, s)| *k = *k && *s);
    }
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
    let dim = batch.dim;
    for (k, term) in objective.terms.iter().enumerate() {
        let (distance, side) = match *term {
            LossSpec::EmbeddingMse { side, .. } => (Distance::Mse, side),
            LossSpec::EmbeddingCosine { side, .. } => (Distance::Cosine, side),
            _ => continue,
        };
        let towers = [
            (side.queries(), batch.queries, queries, &mut outcome.queries),
            (side.passages(), batch.passages, passages, &mut outcome.passages),
        ];
        for (_, student, teacher, gradient) in towers.into_iter().filter(|tower| tower.0) {
            let projection = layout.of_term(k).map(|entry| Projection {
                theta: &theta[entry.range()],
                gradient: &mut outcome.theta[entry.range()],
            });
            let pairs = Pairs { student, dim, teacher, teacher_dim };
            outcome.terms[k] +=
                embedding::compare(distance, &pairs, projection, term.weight(), block, gradient);
        }
    }
}
