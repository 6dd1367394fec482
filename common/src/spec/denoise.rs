//! A cross-encoder's look at mined candidates: its keys and their contradictions.

use super::MiningSpec;
use super::check::{Check, ensure, within};
use serde::{Deserialize, Serialize};

/// Candidates that are scored for each negative that is kept, where the spec is silent.
const CANDIDATES_EACH: u32 = 4;

/// Negatives without those that the job's cross-encoder takes for answers (RocketQA, Qu et al. 2021).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenoiseSpec {
    /// Largest probability of being an answer, the logit's sigmoid, that a negative may have.
    #[serde(default = "default_below")]
    pub below: f64,
    /// How many candidates of each question are scored, chosen among those that pass all other filters; four for each
    /// negative without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidates: Option<u32>,
}

impl DenoiseSpec {
    /// How many candidates of each question are mined to be scored, from so many lists: at most what those hold.
    pub fn mined(&self, mining: &MiningSpec, lists: usize) -> u32 {
        let most = mining.per_query.saturating_mul(CANDIDATES_EACH);
        self.candidates.unwrap_or(most).min(window(mining, lists))
    }
}

/// Candidates that so many lists hold for a question.
fn window(mining: &MiningSpec, lists: usize) -> u32 {
    let ranks = (mining.depth + 1).saturating_sub(mining.from_rank);
    ranks.saturating_mul(u32::try_from(lists).unwrap_or(u32::MAX))
}

pub(super) fn check_denoise(mining: &MiningSpec) -> Check {
    let Some(denoise) = &mining.denoise else { return Ok(()) };
    let key = |name| ["mining", "denoise", name];
    let share = denoise.below > 0.0 && denoise.below < 1.0;
    ensure(share, &key("below"), "is a probability: above 0 and below 1")?;
    let most = window(mining, mining.from.len());
    within(denoise.candidates.unwrap_or(mining.per_query), mining.per_query, most, &key("candidates"))
}

fn default_below() -> f64 {
    0.1
}
