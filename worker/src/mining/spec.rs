//! What a job asks of mining.

use serde::{Deserialize, Serialize};

/// How negatives are chosen; every filter that is left out is off.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MiningSpec {
    /// First rank that is considered, in each ranked list; ranks count from 0.
    #[serde(default)]
    pub rank_from: usize,
    /// First rank that is not considered any more.
    pub rank_to: usize,
    /// Negatives per query. A query with fewer left is a shortfall in the audit.
    pub per_query: usize,
    /// Which of the candidates left are taken.
    #[serde(default)]
    pub sampling: Sampling,
    /// Seed of random sampling.
    #[serde(default)]
    pub seed: u64,
    /// Drops a candidate whose teacher score is above the positive's minus this margin.
    #[serde(default)]
    pub margin: Option<f64>,
    /// Drops a candidate whose teacher score is above this share of the positive's (NV-Retriever,
    /// arXiv 2407.15831). For a negative positive score p the bound is p − (1 − ratio)·|p|, so that a
    /// ratio below 1 always asks for a lower score than the positive's.
    #[serde(default)]
    pub ratio: Option<f64>,
    /// Drops a candidate whose teacher score is above this.
    #[serde(default)]
    pub ceiling: Option<f64>,
    /// Drops a candidate with the text of a known positive or of a candidate kept before it.
    #[serde(default)]
    pub drop_duplicate_texts: bool,
    /// Drops a candidate that contains an answer of the query (DPR's rule).
    #[serde(default)]
    pub drop_answers: bool,
    /// Drops a candidate that is an answer with a probability above this, as a cross-encoder has it (RocketQA,
    /// arXiv 2010.08191).
    #[serde(default)]
    pub below: Option<f64>,
    /// Cases that the audit lists, those with the smallest gap to the positive's score.
    #[serde(default = "suspicious_cases")]
    pub suspicious_cases: usize,
}

/// Most cases an audit may list.
pub const MAX_SUSPICIOUS_CASES: usize = 10_000;

fn suspicious_cases() -> usize {
    100
}

/// Which of the candidates that pass all filters become negatives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sampling {
    /// The best ranked; lists of several sources take turns.
    #[default]
    Top,
    /// A random choice that depends on (seed, query row, candidate row) alone.
    Random,
}

/// Mining that cannot be done as specified.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum MiningSpecError {
    #[error("mining ranks {from} to {to} are empty: set rank_to above rank_from")]
    EmptyWindow { from: usize, to: usize },
    #[error("mining takes 0 negatives per query: set per_query to at least 1")]
    NoNegatives,
    #[error(
        "mining takes {per_query} negatives of each query from {lists} lists of {window} ranks: widen the window"
    )]
    WindowTooSmall { per_query: usize, lists: usize, window: usize },
    #[error("mining {field} is {value}: it must be finite{bound}")]
    OutOfRange { field: &'static str, value: f64, bound: &'static str },
    #[error("mining audit lists {got} cases: ask for at most {MAX_SUSPICIOUS_CASES}")]
    TooManyCases { got: usize },
}

impl MiningSpec {
    /// Checks the numbers, for candidates that come from `lists` ranked lists per query.
    pub fn check(&self, lists: usize) -> Result<(), MiningSpecError> {
        let Self { rank_from: from, rank_to: to, per_query, .. } = *self;
        if to <= from {
            return Err(MiningSpecError::EmptyWindow { from, to });
        }
        if per_query == 0 {
            return Err(MiningSpecError::NoNegatives);
        }
        let window = to - from;
        if window.saturating_mul(lists) < per_query {
            return Err(MiningSpecError::WindowTooSmall { per_query, lists, window });
        }
        let finite = |field, value: Option<f64>, least: f64, bound| match value {
            Some(value) if !value.is_finite() || value < least => {
                Err(MiningSpecError::OutOfRange { field, value, bound })
            }
            _ => Ok(()),
        };
        finite("margin", self.margin, 0.0, " and at least 0")?;
        finite("ratio", self.ratio, f64::MIN_POSITIVE, " and greater than 0")?;
        finite("ceiling", self.ceiling, f64::MIN, "")?;
        finite("below", self.below, 0.0, " and at least 0")?;
        if self.suspicious_cases > MAX_SUSPICIOUS_CASES {
            return Err(MiningSpecError::TooManyCases { got: self.suspicious_cases });
        }
        Ok(())
    }
}
