//! What a phase's settings mean: the loss, the optimiser and the schedule.

use crate::losses::{self, Objective, Similarity};
use crate::model::Tower;
use crate::optimizer::{AdamW, AdamWConfig, Schedule, ScheduleKind};
use retort_common::spec::{self, LossKind, LossScope, LossSpec, PhaseSpec};

/// The loss that a spec asks for.
pub(super) fn objective(terms: &[LossSpec], normalize: bool) -> Objective {
    let similarity = if normalize { Similarity::Cosine } else { Similarity::Dot };
    let term = |loss: &LossSpec| {
        let weight = loss.weight;
        let temperature = loss.temperature.unwrap_or(0.05);
        let in_batch = loss.scope.unwrap_or_default() == LossScope::Batch;
        match loss.kind {
            LossKind::InfoNce => losses::LossSpec::InfoNce { weight, temperature, in_batch },
            LossKind::Kl => losses::LossSpec::Kl {
                weight,
                student_temperature: temperature,
                teacher_temperature: loss.teacher_temperature.unwrap_or(temperature),
                scope: if in_batch { losses::Scope::Batch } else { losses::Scope::Listed },
                direction: losses::Direction::TeacherStudent,
            },
            LossKind::MarginMse => losses::LossSpec::MarginMse { weight, scale: 1.0 },
            LossKind::EmbeddingMse => {
                losses::LossSpec::EmbeddingMse { weight, side: losses::Side::Both, projection: false }
            }
            LossKind::EmbeddingCosine => {
                losses::LossSpec::EmbeddingCosine { weight, side: losses::Side::Both, projection: false }
            }
        }
    };
    Objective { similarity, teacher_similarity: similarity, terms: terms.iter().map(term).collect() }
}

pub(super) fn optimizer(tower: &Tower, phase: &PhaseSpec) -> AdamW {
    let config = AdamWConfig { weight_decay: phase.weight_decay, ..AdamWConfig::default() };
    AdamW::new(config, tower.layout().decayed())
}

pub(super) fn schedule(phase: &PhaseSpec, steps: u64) -> Schedule {
    let kind = match phase.schedule {
        spec::ScheduleKind::Linear => ScheduleKind::Linear,
        spec::ScheduleKind::Cosine => ScheduleKind::Cosine,
        spec::ScheduleKind::Constant => ScheduleKind::Constant,
    };
    Schedule {
        kind,
        warmup_steps: (phase.warmup * steps as f64).round() as u64,
        total_steps: steps,
        lr: phase.learning_rate,
    }
}

/// Single texts stand on both sides of a batch; only the side of the questions is compared.
pub(super) fn only_queries(term: &mut losses::LossSpec) {
    if let losses::LossSpec::EmbeddingMse { side, .. } | losses::LossSpec::EmbeddingCosine { side, .. } = term
    {
        *side = losses::Side::Queries;
    }
}

/// Its name in the loss curve.
pub(super) fn term_name(term: &losses::LossSpec) -> String {
    match term {
        losses::LossSpec::InfoNce { .. } => "info_nce",
        losses::LossSpec::Kl { .. } => "kl",
        losses::LossSpec::MarginMse { .. } => "margin_mse",
        losses::LossSpec::EmbeddingMse { .. } => "embedding_mse",
        losses::LossSpec::EmbeddingCosine { .. } => "embedding_cosine",
    }
    .to_owned()
}
