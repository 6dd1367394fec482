//! Contradictions within a loss, and between it and its phase.

use super::check::{Check, ensure};
use super::{LossKind, LossScope, LossSpec, PhaseData, PhaseSpec, StudentSpec};

/// Most numbers of leading components that one loss may compare.
const MOST_DIMS: usize = 32;

/// Checks one term. `signal` is the dimension of the signal's vectors, where the spec tells it.
pub(super) fn check_loss(
    student: &StudentSpec,
    phase: &PhaseSpec,
    signal: Option<u32>,
    loss: &LossSpec,
    at: &[&str],
) -> Check {
    let name = loss.kind.name();
    check_keys(loss, at)?;
    check_numbers(loss, at)?;
    check_dims(student, loss, at)?;
    let pairs = !loss.kind.is_embedding();
    ensure(
        !pairs || phase.data == PhaseData::Queries,
        at,
        format!("{name} compares pairs: use data = \"queries\""),
    )?;
    ensure(
        loss.side.is_none() || phase.data == PhaseData::Queries,
        at,
        format!("{name}: single texts have no `side`; it goes with data = \"queries\""),
    )?;
    if pairs {
        return check_candidates(phase, loss, at);
    }
    // An encoder without `dim` may have any; its task compares it with the teacher's.
    let reduced = match (signal, student.dim) {
        (Some(signal), Some(dim)) => signal != dim,
        (Some(_), None) => false,
        (None, dim) => dim.is_some(),
    };
    let message = format!(
        "{name}: the signal's vectors have another dimension: set projection = true, or name an earlier head of the \
         same `dim` as `signal`"
    );
    ensure(!reduced || loss.projection, at, message)
}

/// Keys that this kind of loss does not have.
fn check_keys(loss: &LossSpec, at: &[&str]) -> Check {
    use LossKind::{EmbeddingCosine, EmbeddingMse, InfoNce, Kl, MarginMse};
    let keys: [(&str, bool, &[LossKind]); 11] = [
        ("temperature", loss.temperature.is_some(), &[InfoNce, Kl]),
        ("learn_temperature", loss.learn_temperature, &[InfoNce, Kl]),
        ("temperature_range", loss.temperature_range.is_some(), &[InfoNce, Kl]),
        ("scope", loss.scope.is_some(), &[InfoNce, Kl]),
        ("teacher_temperature", loss.teacher_temperature.is_some(), &[Kl]),
        ("direction", loss.direction.is_some(), &[Kl]),
        ("mask_margin", loss.mask_margin.is_some(), &[InfoNce]),
        ("mask_ratio", loss.mask_ratio.is_some(), &[InfoNce]),
        ("teacher_scale", loss.teacher_scale.is_some(), &[MarginMse]),
        ("side", loss.side.is_some(), &[EmbeddingMse, EmbeddingCosine]),
        ("projection", loss.projection, &[EmbeddingMse, EmbeddingCosine]),
    ];
    for (key, given, kinds) in keys {
        let of: Vec<_> = kinds.iter().map(|kind| kind.name()).collect();
        let message = format!("{} has no {key}; it goes with {}", loss.kind.name(), of.join(", "));
        ensure(!given || kinds.contains(&loss.kind), at, message)?;
    }
    ensure(
        loss.temperature_range.is_none() || loss.learn_temperature,
        at,
        "temperature_range goes with learn_temperature = true",
    )
}

fn check_numbers(loss: &LossSpec, at: &[&str]) -> Check {
    let name = loss.kind.name();
    let refuse = |holds: bool, message: &str| ensure(holds, at, format!("{name}: {message}"));
    let above_0 = |value: f64| value > 0.0 && value.is_finite();
    let no_less = |value: f64| value >= 0.0 && value.is_finite();
    match &loss.ramp {
        None => refuse(above_0(loss.weight), "weight must be above 0")?,
        Some(ramp) => {
            refuse(no_less(loss.weight) && no_less(ramp.to), "weight and ramp.to must not be negative")?;
            refuse(loss.weight + ramp.to > 0.0, "weight or ramp.to must be above 0")?;
            let rises = 0.0 <= ramp.begin && ramp.begin <= ramp.end && ramp.end <= 1.0;
            refuse(rises, "ramp.begin and ramp.end are shares of the steps: 0 <= begin <= end <= 1")?;
        }
    }
    let positive = |value: Option<f64>| value.is_none_or(above_0);
    refuse(positive(loss.temperature) && positive(loss.teacher_temperature), "temperatures must be above 0")?;
    if loss.learn_temperature {
        let [low, high] = loss.temperature_range();
        refuse(above_0(low) && low < high && high.is_finite(), "temperature_range must rise from above 0")?;
        let inside = (low..=high).contains(&loss.temperature());
        refuse(inside, "temperature must lie within temperature_range = [0.01, 1] or one of your own")?;
    }
    refuse(positive(loss.teacher_scale), "teacher_scale must be above 0")?;
    refuse(loss.mask_margin.is_none_or(no_less), "mask_margin must not be negative")?;
    let share = |ratio: f64| ratio > 0.0 && ratio <= 1.0;
    refuse(loss.mask_ratio.is_none_or(share), "mask_ratio must be above 0 and at most 1")
}

fn check_dims(student: &StudentSpec, loss: &LossSpec, at: &[&str]) -> Check {
    let name = loss.kind.name();
    let refuse = |holds: bool, message: &str| ensure(holds, at, format!("{name}: {message}"));
    let weights = loss.dim_weights.as_deref();
    let Some(dims) = &loss.dims else {
        return refuse(weights.is_none(), "dim_weights goes with `dims`");
    };
    refuse((1..=MOST_DIMS).contains(&dims.len()), &format!("dims must name 1 to {MOST_DIMS} numbers"))?;
    refuse(dims.iter().all(|dim| *dim > 0), "dims must be above 0")?;
    let mut sorted = dims.clone();
    sorted.sort_unstable();
    sorted.dedup();
    refuse(sorted.len() == dims.len(), "dims must differ from each other")?;
    if let Some(whole) = student.dim {
        let fits = dims.iter().all(|dim| *dim <= whole);
        refuse(fits, &format!("dims must not be above the student's dim = {whole}"))?;
    }
    let message = "cut vectors have another dimension than the signal's: set projection = true";
    refuse(!loss.kind.is_embedding() || loss.projection, message)?;
    let Some(weights) = weights else { return Ok(()) };
    refuse(weights.len() == dims.len(), "dim_weights must have as many numbers as dims")?;
    refuse(weights.iter().all(|weight| *weight > 0.0 && weight.is_finite()), "dim_weights must be above 0")
}

/// Whether a loss over pairs has candidates to compare.
fn check_candidates(phase: &PhaseSpec, loss: &LossSpec, at: &[&str]) -> Check {
    let name = loss.kind.name();
    let listed = phase.negatives + phase.corpus_samples;
    let scope =
        if loss.kind == LossKind::MarginMse { LossScope::Listed } else { loss.scope.unwrap_or_default() };
    let (questions, remedy) = match scope {
        LossScope::Listed => (1, "over listed candidates needs `negatives` above 0"),
        LossScope::Microbatch => {
            (phase.batch / phase.microbatches.max(1), "has nothing to compare with: lower `microbatches`")
        }
        LossScope::Batch => (phase.batch, "has nothing to compare with: raise `batch` or `negatives`"),
    };
    ensure(questions > 1 || listed > 0, at, format!("{name} {remedy}"))
}
