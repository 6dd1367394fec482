//! What a job asks of its loss, and the check that the teacher can give it, made before any training.

use serde::{Deserialize, Serialize};

use super::theta::{ThetaEntry, ThetaLayout};

/// The whole loss of a job: Σ weight · term over the similarity of towers' vectors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Objective {
    /// How student vectors are compared.
    pub similarity: Similarity,
    /// How teacher vectors are compared where scores are made from them; that of the teacher itself.
    #[serde(default)]
    pub teacher_similarity: Similarity,
    /// The terms, at least one.
    pub terms: Vec<LossSpec>,
}

/// How a query and a passage are scored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Similarity {
    /// q · p.
    #[default]
    Dot,
    /// q · p / (|q| |p|); the normalisation is part of the loss and of its gradient. A zero vector has
    /// similarity zero with everything, and gets no gradient.
    Cosine,
}

/// Which candidates a distribution spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The query's own candidates.
    Listed,
    /// Every passage of the global batch; the teacher must have vectors.
    Batch,
}

/// Which way a KL divergence goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// KL(teacher ‖ student): the student covers all that the teacher likes.
    #[default]
    TeacherStudent,
    /// KL(student ‖ teacher): the student avoids what the teacher dislikes.
    StudentTeacher,
}

/// Which vectors an embedding loss compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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

/// One term of the loss. Every term is a mean over the queries of the global batch (an embedding term:
/// over its vectors), times its `weight`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum LossSpec {
    /// Softmax cross-entropy of the query's own positive (van den Oord 2018, arXiv 1807.03748).
    InfoNce {
        #[serde(default = "one")]
        weight: f64,
        /// Scores are divided by it.
        temperature: f64,
        /// Negatives are every other passage of the global batch, with known positives and duplicates
        /// masked; otherwise the query's listed candidates only.
        in_batch: bool,
    },
    /// Divergence of the student's and the teacher's distributions over candidates. Scores are divided
    /// by the temperatures; no factor of temperature² is applied, that is what `weight` is for.
    /// Duplicate candidates count once; known positives stay, since the teacher has its say on them.
    Kl {
        #[serde(default = "one")]
        weight: f64,
        student_temperature: f64,
        teacher_temperature: f64,
        scope: Scope,
        #[serde(default)]
        direction: Direction,
    },
    /// Squared difference of the student's and the teacher's margins between the positive and each
    /// listed negative, mean over the negatives (Hofstätter 2020, arXiv 2010.02666).
    MarginMse {
        #[serde(default = "one")]
        weight: f64,
        /// Multiplies the teacher's margins, for students of another score range.
        #[serde(default = "one")]
        scale: f64,
    },
    /// Mean squared difference of the components of student and teacher vectors, as the towers give them.
    EmbeddingMse {
        #[serde(default = "one")]
        weight: f64,
        side: Side,
        /// Student vectors go through a learnt θ [teacher dim, student dim] first, which is dropped after
        /// training; without it both dimensions must agree.
        #[serde(default)]
        projection: bool,
    },
    /// One minus the cosine of student and teacher vectors; 1 without gradient where either is zero.
    EmbeddingCosine {
        #[serde(default = "one")]
        weight: f64,
        side: Side,
        /// As in `EmbeddingMse`.
        #[serde(default)]
        projection: bool,
    },
}

fn one() -> f64 {
    1.0
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
    /// Queries in a global batch.
    pub batch: usize,
}

/// A loss that cannot be computed as specified.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SpecError {
    #[error("loss has no terms: add at least one to `terms`")]
    NoTerms,
    #[error("loss term {term}: {field} is {value}, it must be finite and {bound}")]
    OutOfRange { term: usize, field: &'static str, value: f64, bound: &'static str },
    #[error("loss term {term} ({kind}) needs a teacher and the job has none: add one or drop the term")]
    NeedsTeacher { term: usize, kind: &'static str },
    #[error(
        "loss term {term} ({kind}) needs teacher vectors and the teacher gives scores of listed candidates \
         only: use a teacher with vectors{instead}"
    )]
    NeedsVectors { term: usize, kind: &'static str, instead: &'static str },
    #[error(
        "loss term {term} ({kind}) compares {student} with {teacher} components: set `projection = true`"
    )]
    DimMismatch { term: usize, kind: &'static str, student: usize, teacher: usize },
    #[error(
        "loss term {term} ({kind}) has nothing to compare a positive with: list negatives or use the batch"
    )]
    NoNegatives { term: usize, kind: &'static str },
}

impl Objective {
    /// Checks every term against the teacher and the job's sizes.
    pub fn check(&self, teacher: TeacherKind, dims: Dims) -> Result<(), SpecError> {
        if self.terms.is_empty() {
            return Err(SpecError::NoTerms);
        }
        self.terms.iter().enumerate().try_for_each(|(k, term)| term.check(k, teacher, dims))
    }

    /// The loss's own parameters: one [teacher dim, student dim] projection per term that asks for it.
    pub fn theta_layout(&self, teacher: TeacherKind, student_dim: usize) -> ThetaLayout {
        let TeacherKind::Vectors { dim } = teacher else { return ThetaLayout::default() };
        let projections = self.terms.iter().enumerate().filter(|(_, term)| term.projection());
        ThetaLayout::new(projections.map(|(k, _)| ThetaEntry {
            name: format!("loss/term_{k:03}/projection"),
            term: k,
            offset: 0,
            rows: dim,
            cols: student_dim,
        }))
    }
}

impl LossSpec {
    /// The name of this kind of loss in a spec.
    pub fn kind(&self) -> &'static str {
        match self {
            LossSpec::InfoNce { .. } => "info_nce",
            LossSpec::Kl { .. } => "kl",
            LossSpec::MarginMse { .. } => "margin_mse",
            LossSpec::EmbeddingMse { .. } => "embedding_mse",
            LossSpec::EmbeddingCosine { .. } => "embedding_cosine",
        }
    }

    /// The factor of this term in the total.
    pub fn weight(&self) -> f64 {
        match *self {
            LossSpec::InfoNce { weight, .. }
            | LossSpec::Kl { weight, .. }
            | LossSpec::MarginMse { weight, .. }
            | LossSpec::EmbeddingMse { weight, .. }
            | LossSpec::EmbeddingCosine { weight, .. } => weight,
        }
    }

    /// Checks this term, number `term` of its objective, against the teacher and the job's sizes.
    pub fn check(&self, term: usize, teacher: TeacherKind, dims: Dims) -> Result<(), SpecError> {
        let kind = self.kind();
        self.check_numbers(term)?;
        if teacher == TeacherKind::None && !matches!(self, LossSpec::InfoNce { .. }) {
            return Err(SpecError::NeedsTeacher { term, kind });
        }
        let candidates = if self.spans_batch() { dims.listed * dims.batch } else { dims.listed };
        match self {
            LossSpec::Kl { scope: Scope::Batch, .. } if teacher == TeacherKind::Scores => {
                Err(SpecError::NeedsVectors { term, kind, instead: " or `scope = \"listed\"`" })
            }
            LossSpec::InfoNce { .. } | LossSpec::Kl { .. } | LossSpec::MarginMse { .. } => {
                if candidates < 2 {
                    Err(SpecError::NoNegatives { term, kind })
                } else {
                    Ok(())
                }
            }
            LossSpec::EmbeddingMse { projection, .. } | LossSpec::EmbeddingCosine { projection, .. } => {
                match teacher {
                    TeacherKind::Vectors { dim } if dim != dims.student && !projection => {
                        Err(SpecError::DimMismatch { term, kind, student: dims.student, teacher: dim })
                    }
                    TeacherKind::Vectors { .. } => Ok(()),
                    _ => Err(SpecError::NeedsVectors { term, kind, instead: "" }),
                }
            }
        }
    }

    /// Whether the term needs scores of every passage of the batch.
    pub(crate) fn spans_batch(&self) -> bool {
        matches!(self, LossSpec::InfoNce { in_batch: true, .. } | LossSpec::Kl { scope: Scope::Batch, .. })
    }

    /// Whether the term compares vectors with vectors, not scores with scores.
    pub(crate) fn is_embedding(&self) -> bool {
        matches!(self, LossSpec::EmbeddingMse { .. } | LossSpec::EmbeddingCosine { .. })
    }

    fn projection(&self) -> bool {
        matches!(
            self,
            LossSpec::EmbeddingMse { projection: true, .. }
                | LossSpec::EmbeddingCosine { projection: true, .. }
        )
    }

    fn check_numbers(&self, term: usize) -> Result<(), SpecError> {
        let positive = |field, value: f64| {
            let bound = "greater than 0";
            if value.is_finite() && value > 0.0 {
                Ok(())
            } else {
                Err(SpecError::OutOfRange { term, field, value, bound })
            }
        };
        let weight = self.weight();
        if !(weight.is_finite() && weight >= 0.0) {
            return Err(SpecError::OutOfRange { term, field: "weight", value: weight, bound: "at least 0" });
        }
        match *self {
            LossSpec::InfoNce { temperature, .. } => positive("temperature", temperature),
            LossSpec::Kl { student_temperature, teacher_temperature, .. } => {
                positive("student_temperature", student_temperature)?;
                positive("teacher_temperature", teacher_temperature)
            }
            LossSpec::MarginMse { scale, .. } => positive("scale", scale),
            LossSpec::EmbeddingMse { .. } | LossSpec::EmbeddingCosine { .. } => Ok(()),
        }
    }
}
