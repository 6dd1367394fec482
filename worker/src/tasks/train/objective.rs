//! What a phase's settings mean: the loss, the optimiser and the schedule.

use crate::losses::{
    self, Batch, Dims, Direction, Guide, Loss, Objective, Outcome, Ramp, Scope, Side, Similarity,
    TeacherKind, Temperature, Term, ThetaLayout, ThetaRole,
};
use crate::model::ParamLayout;
use crate::optimizer::{AdamW, AdamWConfig, Group, Schedule, ScheduleKind};
use crate::tasks::TaskError;
use retort_common::spec::{
    self, LossDirection, LossKind, LossScope, LossSide, LossSpec, PhaseData, PhaseSpec,
};

/// The sizes that a phase's loss depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct LossDims {
    /// Components of the student's vectors.
    pub student: usize,
    /// What the signal can give.
    pub signal: TeacherKind,
    /// Texts in a row of the order.
    pub width: usize,
    /// Steps of the phase.
    pub steps: u64,
}

/// The loss of a phase with its own parameters, which stand behind the tower's in the flat vector: temperatures
/// that are learnt, and projections that are dropped after the phase.
pub(super) struct PhaseLoss {
    objective: Objective,
    layout: ThetaLayout,
    names: Vec<String>,
    steps: u64,
}

impl PhaseLoss {
    /// The loss that a spec asks for; refused here, before any step, where the signal cannot give it.
    pub fn new(
        terms: &[LossSpec],
        phase: &PhaseSpec,
        normalize: bool,
        dims: LossDims,
    ) -> Result<Self, TaskError> {
        let mut objective = objective(terms, normalize);
        if phase.data == PhaseData::Texts {
            objective.terms.iter_mut().for_each(only_queries);
        }
        let teacher = dims.signal;
        let batch = phase.batch as usize;
        let microbatch = batch / phase.microbatches as usize;
        // Single texts stand on both sides of a batch.
        let listed = (dims.width - 1).max(1);
        objective
            .check(teacher, Dims { student: dims.student, listed, microbatch, batch })
            .map_err(TaskError::input)?;
        let layout = objective.theta_layout(teacher, dims.student);
        let names = term_names(&objective.terms);
        Ok(Self { objective, layout, names, steps: dims.steps })
    }

    /// First values of its own parameters.
    pub fn initial(&self, seed: u64) -> Vec<f32> {
        self.layout.initial(seed)
    }

    /// Brings its own parameters within their bounds, after each step of the optimiser.
    pub fn clamp(&self, theta: &mut [f32]) {
        self.layout.clamp(theta);
    }

    /// The temperatures that were learnt, by term.
    pub fn temperatures(&self, theta: &[f32]) -> Vec<(String, f64)> {
        let learnt = self.layout.entries().iter().filter(|entry| entry.role == ThetaRole::Temperature);
        learnt.map(|entry| (self.names[entry.term].clone(), f64::from(theta[entry.offset]).exp())).collect()
    }

    /// The loss of the global batch of a step, counted from 0, and its terms by name as they enter the sum.
    #[expect(clippy::type_complexity, reason = "names and values of the terms beside the outcome")]
    pub fn evaluate(
        &self,
        step: u64,
        batch: &Batch<f32>,
        theta: &[f32],
    ) -> Result<(Outcome<f32>, Vec<(String, f64)>), TaskError> {
        let objective = self.objective.at(step, self.steps);
        let outcome = losses::evaluate(&objective, batch, theta).map_err(TaskError::input)?;
        let weighted = objective.terms.iter().zip(&outcome.terms).map(|(term, value)| term.weight * value);
        let terms = self.names.iter().cloned().zip(weighted).collect();
        Ok((outcome, terms))
    }
}

/// The loss that a spec asks for.
fn objective(terms: &[LossSpec], normalize: bool) -> Objective {
    let similarity = if normalize { Similarity::Cosine } else { Similarity::Dot };
    Objective { similarity, teacher_similarity: similarity, terms: terms.iter().map(term).collect() }
}

fn term(spec: &LossSpec) -> Term {
    let temperature = Temperature {
        value: spec.temperature(),
        learnt: spec.learn_temperature.then(|| spec.temperature_range().into()),
    };
    let scope = match spec.scope.unwrap_or_default() {
        LossScope::Listed => Scope::Listed,
        LossScope::Microbatch => Scope::Microbatch,
        LossScope::Batch => Scope::Batch,
    };
    let side = match spec.side.unwrap_or_default() {
        LossSide::Queries => Side::Queries,
        LossSide::Passages => Side::Passages,
        LossSide::Both => Side::Both,
    };
    let projection = spec.projection;
    let loss = match spec.kind {
        LossKind::InfoNce => {
            let guide = Guide { margin: spec.mask_margin, ratio: spec.mask_ratio };
            Loss::InfoNce { temperature, scope, guide: (guide != Guide::default()).then_some(guide) }
        }
        LossKind::Kl => Loss::Kl {
            temperature,
            teacher_temperature: spec.teacher_temperature.unwrap_or(temperature.value),
            scope,
            direction: match spec.direction.unwrap_or_default() {
                LossDirection::Forward => Direction::TeacherStudent,
                LossDirection::Reverse => Direction::StudentTeacher,
            },
        },
        LossKind::MarginMse => Loss::MarginMse { scale: spec.teacher_scale.unwrap_or(1.0) },
        LossKind::EmbeddingMse => Loss::EmbeddingMse { side, projection },
        LossKind::EmbeddingCosine => Loss::EmbeddingCosine { side, projection },
    };
    let ramp = spec.ramp.as_ref().map(|ramp| Ramp { to: ramp.to, begin: ramp.begin, end: ramp.end });
    let weight = |at: usize| spec.dim_weights.as_ref().map_or(1.0, |weights| weights[at]);
    let dims = spec.dims.iter().flatten().enumerate().map(|(at, dim)| (*dim as usize, weight(at)));
    Term { weight: spec.weight, ramp, dims: dims.collect(), loss }
}

/// Single texts stand on both sides of a batch; only the side of the questions is compared.
fn only_queries(term: &mut Term) {
    if let Loss::EmbeddingMse { side, .. } | Loss::EmbeddingCosine { side, .. } = &mut term.loss {
        *side = Side::Queries;
    }
}

/// Their names in the loss curve, numbered where a kind comes again.
fn term_names(terms: &[Term]) -> Vec<String> {
    let name = |at: usize| {
        let kind = terms[at].loss.kind();
        match terms[..at].iter().filter(|term| term.loss.kind() == kind).count() {
            0 => kind.to_owned(),
            before => format!("{kind}_{}", before + 1),
        }
    };
    (0..terms.len()).map(name).collect()
}

/// The optimiser of a phase, for the tower's parameters and the loss's own behind them.
pub(super) fn optimizer(layout: &ParamLayout, loss: &PhaseLoss, phase: &PhaseSpec) -> AdamW {
    let config = AdamWConfig {
        beta1: phase.beta1,
        beta2: phase.beta2,
        eps: phase.epsilon,
        weight_decay: phase.weight_decay,
    };
    let tower = layout.entries().iter().map(|entry| Group {
        range: entry.range(),
        decay: entry.decay,
        frozen: is_frozen(&entry.path, phase),
    });
    let first = layout.len();
    let own = loss.layout.decayed().map(|(range, decay)| Group {
        range: first + range.start..first + range.end,
        decay,
        frozen: false,
    });
    AdamW::new(config, tower.chain(own).collect())
}

/// Whether a phase keeps a parameter as it is.
fn is_frozen(path: &str, phase: &PhaseSpec) -> bool {
    if path.starts_with("embeddings.") {
        return phase.freeze_embeddings;
    }
    let layer = path.strip_prefix("encoder.layer.").and_then(|rest| rest.split('.').next());
    layer.and_then(|layer| layer.parse::<u32>().ok()).is_some_and(|layer| layer < phase.freeze_layers)
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
