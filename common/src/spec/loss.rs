//! The terms of a loss, as a spec has them.

use serde::{Deserialize, Serialize};

/// One term of a loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossSpec {
    /// Which loss.
    pub kind: LossKind,
    /// Factor in the sum.
    #[serde(default = "one")]
    pub weight: f64,
    /// Moves the factor to another one over a part of the phase.
    pub ramp: Option<RampSpec>,
    /// Divides the student's scores (info_nce, kl); where it starts if it is learnt.
    pub temperature: Option<f64>,
    /// Learn the temperature (info_nce, kl).
    #[serde(default)]
    pub learn_temperature: bool,
    /// Lowest and highest learnt temperature.
    pub temperature_range: Option<[f64; 2]>,
    /// Divides the teacher's scores (kl); the student's without it.
    pub teacher_temperature: Option<f64>,
    /// Which way the divergence goes (kl).
    pub direction: Option<LossDirection>,
    /// Candidates beyond a question's own (info_nce, kl).
    pub scope: Option<LossScope>,
    /// Candidates that the signal scores above the positive's score minus this are no negatives (info_nce).
    pub mask_margin: Option<f64>,
    /// Candidates that the signal scores above this share of the positive's score are no negatives (info_nce).
    pub mask_ratio: Option<f64>,
    /// Multiplies the teacher's margins (margin_mse).
    pub teacher_scale: Option<f64>,
    /// Which vectors are compared (embedding losses).
    pub side: Option<LossSide>,
    /// Compare through a learnt map from the student's to the signal's dimensions, which is dropped after the phase
    /// (embedding losses).
    #[serde(default)]
    pub projection: bool,
    /// Compare the leading components only, once for each of these numbers (Matryoshka, Kusupati et al. 2022).
    pub dims: Option<Vec<u32>>,
    /// Factors of the `dims`; 1 each without it.
    pub dim_weights: Option<Vec<f64>>,
}

impl LossSpec {
    /// The student's temperature, or where it starts.
    pub fn temperature(&self) -> f64 {
        self.temperature.unwrap_or(0.05)
    }

    /// Lowest and highest temperature of a learnt one. CLIP's lowest is the same (Radford et al. 2021).
    pub fn temperature_range(&self) -> [f64; 2] {
        self.temperature_range.unwrap_or([0.01, 1.0])
    }
}

/// A weight that moves in a straight line over a part of the phase.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RampSpec {
    /// The weight at the end.
    pub to: f64,
    /// Share of the steps after which it begins to move.
    #[serde(default)]
    pub begin: f64,
    /// Share of the steps after which it has arrived.
    #[serde(default = "one")]
    pub end: f64,
}

/// Which loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossKind {
    /// Cross-entropy of the positive against its negatives (van den Oord et al. 2018).
    InfoNce,
    /// Kullback-Leibler divergence between the teacher's and the student's distributions over candidates.
    Kl,
    /// Squared difference of score margins (Hofstätter et al. 2020).
    MarginMse,
    /// Squared distance to the signal's vectors.
    EmbeddingMse,
    /// One minus the cosine to the signal's vectors.
    EmbeddingCosine,
}

impl LossKind {
    /// Its name in a spec.
    pub fn name(self) -> &'static str {
        match self {
            LossKind::InfoNce => "info_nce",
            LossKind::Kl => "kl",
            LossKind::MarginMse => "margin_mse",
            LossKind::EmbeddingMse => "embedding_mse",
            LossKind::EmbeddingCosine => "embedding_cosine",
        }
    }

    /// Whether it compares vectors with vectors, not scores with scores.
    pub fn is_embedding(self) -> bool {
        matches!(self, LossKind::EmbeddingMse | LossKind::EmbeddingCosine)
    }
}

/// Which candidates a loss over scores looks at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossScope {
    /// The question's own positive, mined negatives and corpus samples.
    Listed,
    /// Every passage of the question's microbatch; other known positives and duplicates are masked.
    Microbatch,
    /// Every passage of the global batch; other known positives and duplicates are masked.
    #[default]
    Batch,
}

/// Which way a divergence goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossDirection {
    /// From the teacher's distribution to the student's: the student covers all that the teacher likes.
    #[default]
    Forward,
    /// From the student's to the teacher's: the student avoids what the teacher dislikes.
    Reverse,
}

/// Which vectors an embedding loss compares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossSide {
    /// Questions.
    Queries,
    /// Passages.
    Passages,
    /// Both; their means are added.
    #[default]
    Both,
}

fn one() -> f64 {
    1.0
}
