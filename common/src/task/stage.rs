//! The stages of a job.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A stage of a job, in the order in which they are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Input files to numbered tables.
    Shard,
    /// Texts to vectors.
    Embed,
    /// Baselines and statistics.
    Fit,
    /// Questions against the corpus.
    Search,
    /// Pairs of question and passage to a cross-encoder's scores.
    Score,
    /// Ranked lists to training rows.
    Mine,
    /// Training rows to a student.
    Train,
    /// Ranked lists to metrics.
    Evaluate,
    /// Students and runs in the formats of others.
    Export,
    /// The table and the page.
    Report,
}

impl Stage {
    /// Every stage in order.
    pub const ALL: [Stage; 10] = [
        Stage::Shard,
        Stage::Embed,
        Stage::Fit,
        Stage::Search,
        Stage::Score,
        Stage::Mine,
        Stage::Train,
        Stage::Evaluate,
        Stage::Export,
        Stage::Report,
    ];

    /// Its name in specs, logs and reports.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Shard => "shard",
            Stage::Embed => "embed",
            Stage::Fit => "fit",
            Stage::Search => "search",
            Stage::Score => "score",
            Stage::Mine => "mine",
            Stage::Train => "train",
            Stage::Evaluate => "evaluate",
            Stage::Export => "export",
            Stage::Report => "report",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
