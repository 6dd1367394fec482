//! What a job asks of its loss, and the check that the teacher can give it, made before any training.

use super::Scalar;
use super::theta::{ThetaEntry, ThetaLayout, ThetaRole};

/// The whole loss of a phase: Σ weight · term over the similarity of towers' vectors.
#[derive(Clone, Debug, PartialEq)]
pub struct Objective {
    /// How student vectors are compared.
    pub similarity: Similarity,
    /// How teacher vectors are compared where scores are made from them; that of the teacher itself.
    pub teacher_similarity: Similarity,
    /// The terms, at least one.
    pub terms: Vec<Term>,
}

/// How a query and a passage are scored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Similarity {
    /// q · p.
    #[default]
    Dot,
    /// q · p / (|q| |p|); the normalisation is part of the loss and of its gradient. A zero vector has
    /// similarity zero with everything, and gets no gradient.
    Cosine,
}

/// Which candidates of a query a loss over scores looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// The query's own candidates.
    Listed,
    /// Every passage of the query's microbatch.
    Microbatch,
    /// Every passage of the global batch, whoever encoded it.
    Batch,
}

/// Which way a KL divergence goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    /// KL(teacher ‖ student): the student covers all that the teacher likes.
    #[default]
    TeacherStudent,
    /// KL(student ‖ teacher): the student avoids what the teacher dislikes.
    StudentTeacher,
}

/// Which vectors an embedding loss compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Query vectors.
    Queries,
    /// Passage vectors.
    Passages,
    /// Both, their means added.
    Both,
}

impl Side {
    pub(crate) fn queries(self) -> bool {
        self != Side::Passages
    }

    pub(crate) fn passages(self) -> bool {
        self != Side::Queries
    }
}

/// A loss with its place in the sum.
#[derive(Clone, Debug, PartialEq)]
pub struct Term {
    /// Factor in the sum.
    pub weight: f64,
    /// How the factor changes over the phase.
    pub ramp: Option<Ramp>,
    /// Leading components to compare, each with a weight of its own: the loss is the weighted sum over them
    /// (Matryoshka, Kusupati 2022, arXiv 2205.13147). Vectors are cut first and normalised then. Empty: all
    /// components.
    pub dims: Vec<(usize, f64)>,
    /// Which loss. Each is a mean over the queries of the global batch, an embedding loss over its vectors.
    pub loss: Loss,
}

/// A weight that moves to another one over a part of the phase.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ramp {
    /// The weight at the end.
    pub to: f64,
    /// Share of the steps after which it begins to move.
    pub begin: f64,
    /// Share of the steps after which it has arrived.
    pub end: f64,
}

/// A temperature, fixed or learnt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Temperature {
    /// Its value, or where it starts.
    pub value: f64,
    /// Lowest and highest value of a learnt one. Its logarithm is the parameter.
    pub learnt: Option<(f64, f64)>,
}

impl Temperature {
    /// One that stays as it is.
    pub fn fixed(value: f64) -> Self {
        Self { value, learnt: None }
    }
}

/// Masks negatives that the teacher takes for positives (GISTEmbed, Solatorio 2024, arXiv 2402.16829).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Guide {
    /// A candidate whose teacher score is above the positive's minus this is no negative.
    pub margin: Option<f64>,
    /// A candidate whose teacher score p' is above p − (1 − ratio)·|p|, for a positive's score p, is no negative.
    pub ratio: Option<f64>,
}

impl Guide {
    /// The highest teacher score of a negative beside a positive of that score.
    pub(crate) fn bound(&self, positive: f64) -> f64 {
        let margin = self.margin.map_or(f64::INFINITY, |margin| positive - margin);
        let ratio = self.ratio.map_or(f64::INFINITY, |ratio| positive - (1.0 - ratio) * positive.abs());
        margin.min(ratio)
    }
}

/// A loss before its weight.
#[derive(Clone, Debug, PartialEq)]
pub enum Loss {
    /// Softmax cross-entropy of the query's own positive (van den Oord 2018, arXiv 1807.03748). Known positives
    /// and duplicates are masked.
    InfoNce {
        /// Scores are divided by it.
        temperature: Temperature,
        /// Where negatives come from.
        scope: Scope,
        /// Masks false negatives by the teacher's scores.
        guide: Option<Guide>,
    },
    /// Divergence of the student's and the teacher's distributions over candidates. Scores are divided
    /// by the temperatures; no factor of temperature² is applied, that is what the weight is for.
    /// Duplicate candidates count once; known positives stay, since the teacher has its say on them.
    Kl {
        /// Divides the student's scores.
        temperature: Temperature,
        /// Divides the teacher's scores.
        teacher_temperature: f64,
        /// The candidates.
        scope: Scope,
        /// Which way.
        direction: Direction,
    },
    /// Squared difference of the student's and the teacher's margins between the positive and each
    /// listed negative, mean over the negatives (Hofstätter 2020, arXiv 2010.02666).
    MarginMse {
        /// Multiplies the teacher's margins, for students of another score range.
        scale: f64,
    },
    /// Mean squared difference of the components of student and teacher vectors, as the towers give them.
    EmbeddingMse {
        /// Which vectors.
        side: Side,
        /// Student vectors go through a learnt θ [teacher dim, student dim] first, which is dropped after
        /// training; without it both dimensions must agree.
        projection: bool,
    },
    /// One minus the cosine of student and teacher vectors; 1 without gradient where either is zero.
    EmbeddingCosine {
        /// Which vectors.
        side: Side,
        /// As in `EmbeddingMse`.
        projection: bool,
    },
}

/// What the teacher of a job can give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TeacherKind {
    /// No teacher.
    None,
    /// Vectors of `dim` components for every query and passage: any pair has a score.
    Vectors {
        /// Components of a teacher vector.
        dim: usize,
    },
    /// Scores of listed candidates only.
    Scores,
}

/// The sizes of a job that its loss depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dims {
    /// Components of a student vector.
    pub student: usize,
    /// Candidates listed per query, the positive first.
    pub listed: usize,
    /// Queries in a microbatch.
    pub microbatch: usize,
    /// Queries in a global batch.
    pub batch: usize,
}

/// A loss that cannot be computed as specified.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SpecError {
    /// Nothing to compute.
    #[error("loss has no terms: add at least one to `terms`")]
    NoTerms,
    /// A number that makes no sense.
    #[error("loss term {term}: {field} is {value}, it must be finite and {bound}")]
    OutOfRange {
        /// Number of the term.
        term: usize,
        /// Which number.
        field: &'static str,
        /// Its value.
        value: f64,
        /// What it must be.
        bound: &'static str,
    },
    /// A loss that compares with a teacher that is not there.
    #[error("loss term {term} ({kind}) needs a teacher and the job has none: add one or drop the term")]
    NeedsTeacher {
        /// Number of the term.
        term: usize,
        /// Its loss.
        kind: &'static str,
    },
    /// A loss that compares more than the teacher has scored.
    #[error(
        "loss term {term} ({kind}) needs teacher vectors and the teacher gives scores of listed candidates \
         only: use a teacher with vectors{instead}"
    )]
    NeedsVectors {
        /// Number of the term.
        term: usize,
        /// Its loss.
        kind: &'static str,
        /// Another way out.
        instead: &'static str,
    },
    /// Vectors of different lengths without a projection between them.
    #[error(
        "loss term {term} ({kind}) compares {student} with {teacher} components: set `projection = true`"
    )]
    DimMismatch {
        /// Number of the term.
        term: usize,
        /// Its loss.
        kind: &'static str,
        /// The student's components.
        student: usize,
        /// The teacher's.
        teacher: usize,
    },
    /// More leading components than there are.
    #[error("loss term {term} ({kind}) cuts vectors to {dim} components: they have {student}")]
    Dim {
        /// Number of the term.
        term: usize,
        /// Its loss.
        kind: &'static str,
        /// Components asked for.
        dim: usize,
        /// The student's.
        student: usize,
    },
    /// A positive alone.
    #[error(
        "loss term {term} ({kind}) has nothing to compare a positive with: list negatives or use the batch"
    )]
    NoNegatives {
        /// Number of the term.
        term: usize,
        /// Its loss.
        kind: &'static str,
    },
}

impl Objective {
    /// Checks every term against the teacher and the job's sizes.
    pub fn check(&self, teacher: TeacherKind, dims: Dims) -> Result<(), SpecError> {
        if self.terms.is_empty() {
            return Err(SpecError::NoTerms);
        }
        self.terms.iter().enumerate().try_for_each(|(k, term)| term.check(k, teacher, dims))
    }

    /// The objective of one step: weights are where their ramps have brought them after `step` of `total` steps.
    pub fn at(&self, step: u64, total: u64) -> Self {
        let mut now = self.clone();
        now.terms.iter_mut().for_each(|term| term.weight = term.weight_at(step, total));
        now
    }

    /// The loss's own parameters: temperatures that are learnt and projections [teacher dim, student dim].
    pub fn theta_layout(&self, teacher: TeacherKind, student_dim: usize) -> ThetaLayout {
        let mut entries = Vec::new();
        for (k, term) in self.terms.iter().enumerate() {
            if let TeacherKind::Vectors { dim } = teacher
                && term.loss.projection()
            {
                for (cols, _) in term.views(student_dim) {
                    entries.push(ThetaEntry::projection(k, dim, cols));
                }
            }
            if let Some(temperature) = term.loss.temperature()
                && let Some(range) = temperature.learnt
            {
                entries.push(ThetaEntry::temperature(k, temperature.value, range));
            }
        }
        ThetaLayout::new(entries)
    }
}

impl Term {
    /// A term of constant weight over whole vectors.
    pub fn new(weight: f64, loss: Loss) -> Self {
        Self { weight, ramp: None, dims: Vec::new(), loss }
    }

    /// The numbers of leading components it compares, with their weights.
    pub(crate) fn views(&self, student_dim: usize) -> Vec<(usize, f64)> {
        if self.dims.is_empty() { vec![(student_dim, 1.0)] } else { self.dims.clone() }
    }

    /// The weight at step number `step`, from 0, of `total`.
    pub fn weight_at(&self, step: u64, total: u64) -> f64 {
        let Some(Ramp { to, begin, end }) = self.ramp else { return self.weight };
        let share = step as f64 / total.saturating_sub(1).max(1) as f64;
        if share <= begin {
            return self.weight;
        }
        if share >= end {
            return to;
        }
        self.weight + (to - self.weight) * ((share - begin) / (end - begin))
    }

    /// Checks this term, number `term` of its objective, against the teacher and the job's sizes.
    pub fn check(&self, term: usize, teacher: TeacherKind, dims: Dims) -> Result<(), SpecError> {
        let kind = self.loss.kind();
        self.check_numbers(term)?;
        if let Some((dim, _)) = self.dims.iter().find(|(dim, _)| *dim == 0 || *dim > dims.student) {
            return Err(SpecError::Dim { term, kind, dim: *dim, student: dims.student });
        }
        if teacher == TeacherKind::None && self.loss.needs_teacher() {
            return Err(SpecError::NeedsTeacher { term, kind });
        }
        if let Some(scope) = self.loss.scope() {
            let queries = match scope {
                Scope::Listed => 1,
                Scope::Microbatch => dims.microbatch,
                Scope::Batch => dims.batch,
            };
            if dims.listed * queries < 2 {
                return Err(SpecError::NoNegatives { term, kind });
            }
            if teacher == TeacherKind::Scores && self.loss.needs_teacher() && scope != Scope::Listed {
                let instead = " or `scope = \"listed\"`";
                return Err(SpecError::NeedsVectors { term, kind, instead });
            }
            return Ok(());
        }
        let TeacherKind::Vectors { dim: teacher } = teacher else {
            return Err(SpecError::NeedsVectors { term, kind, instead: "" });
        };
        let other = self.views(dims.student).into_iter().find(|(dim, _)| *dim != teacher);
        match other {
            Some((student, _)) if !self.loss.projection() => {
                Err(SpecError::DimMismatch { term, kind, student, teacher })
            }
            _ => Ok(()),
        }
    }

    fn check_numbers(&self, term: usize) -> Result<(), SpecError> {
        let within = |field, value: f64, holds: bool, bound| match value.is_finite() && holds {
            true => Ok(()),
            false => Err(SpecError::OutOfRange { term, field, value, bound }),
        };
        let positive = |field, value: f64| within(field, value, value > 0.0, "greater than 0");
        let no_less = |field, value: f64| within(field, value, value >= 0.0, "at least 0");
        no_less("weight", self.weight)?;
        if let Some(Ramp { to, begin, end }) = self.ramp {
            no_less("ramp.to", to)?;
            within("ramp.begin", begin, (0.0..=1.0).contains(&begin), "between 0 and 1")?;
            within("ramp.end", end, end >= begin && end <= 1.0, "between `begin` and 1")?;
        }
        self.dims.iter().try_for_each(|(_, weight)| no_less("weight of a cut", *weight))?;
        if let Some(Temperature { value, learnt }) = self.loss.temperature() {
            positive("temperature", value)?;
            if let Some((low, high)) = learnt {
                positive("lowest temperature", low)?;
                within("temperature", value, (low..=high).contains(&value), "within its range")?;
            }
        }
        match &self.loss {
            Loss::InfoNce { guide: Some(guide), .. } => {
                guide.margin.map_or(Ok(()), |margin| no_less("mask margin", margin))?;
                guide.ratio.map_or(Ok(()), |ratio| positive("mask ratio", ratio))
            }
            Loss::Kl { teacher_temperature, .. } => positive("teacher temperature", *teacher_temperature),
            Loss::MarginMse { scale } => positive("scale", *scale),
            Loss::InfoNce { .. } | Loss::EmbeddingMse { .. } | Loss::EmbeddingCosine { .. } => Ok(()),
        }
    }
}

impl Loss {
    /// The name of this kind of loss in a spec.
    pub fn kind(&self) -> &'static str {
        match self {
            Loss::InfoNce { .. } => "info_nce",
            Loss::Kl { .. } => "kl",
            Loss::MarginMse { .. } => "margin_mse",
            Loss::EmbeddingMse { .. } => "embedding_mse",
            Loss::EmbeddingCosine { .. } => "embedding_cosine",
        }
    }

    /// The candidates it looks at; none for a loss between vectors.
    pub(crate) fn scope(&self) -> Option<Scope> {
        match *self {
            Loss::InfoNce { scope, .. } | Loss::Kl { scope, .. } => Some(scope),
            Loss::MarginMse { .. } => Some(Scope::Listed),
            Loss::EmbeddingMse { .. } | Loss::EmbeddingCosine { .. } => None,
        }
    }

    /// Whether it reads teacher scores of its candidates, or teacher vectors.
    pub(crate) fn needs_teacher(&self) -> bool {
        !matches!(self, Loss::InfoNce { guide: None, .. })
    }

    pub(crate) fn temperature(&self) -> Option<Temperature> {
        match *self {
            Loss::InfoNce { temperature, .. } | Loss::Kl { temperature, .. } => Some(temperature),
            Loss::MarginMse { .. } | Loss::EmbeddingMse { .. } | Loss::EmbeddingCosine { .. } => None,
        }
    }

    pub(crate) fn projection(&self) -> bool {
        matches!(
            self,
            Loss::EmbeddingMse { projection: true, .. } | Loss::EmbeddingCosine { projection: true, .. }
        )
    }

    /// Its temperature in a step: the learnt one, or the fixed one.
    pub(crate) fn temperature_in<T: Scalar>(&self, term: usize, layout: &ThetaLayout, theta: &[T]) -> f64 {
        let fixed = self.temperature().map_or(1.0, |temperature| temperature.value);
        let learnt = layout.find(term, ThetaRole::Temperature);
        learnt.map_or(fixed, |entry| entry.clamped(theta[entry.offset].as_f64()).exp())
    }
}
