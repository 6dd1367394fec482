//! A model that reads question and passage together and scores the pair: its keys, and who needs it.

use super::check::{Check, LARGEST_TOKENS, ensure, within};
use super::{JobSpec, PairScores};
use serde::{Deserialize, Serialize};

/// Fewest tokens of a pair: its special tokens and one or two of each text.
const FEWEST_TOKENS: u32 = 8;

/// A cross-encoder. Mining asks it which candidates are answers, phases learn from its scores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CrossEncoderSpec {
    /// The model: a folder relative to the spec, a URL or `hf:org/name@revision`.
    pub model: String,
    /// Longest pair of question and passage in tokens, special tokens included.
    #[serde(default = "default_max_tokens")]
    pub max_tokens: u32,
}

/// Checks its keys, and that it is there where it is asked. One that nobody asks does no harm.
pub(super) fn check_cross_encoder(spec: &JobSpec) -> Check {
    let Some(cross) = &spec.cross_encoder else {
        let needs = |path: &[&str]| ensure(false, path, "needs a table [cross_encoder] with its `model`");
        if spec.mining.denoise.is_some() {
            return needs(&["mining", "denoise"]);
        }
        for (index, student) in spec.student.iter().enumerate() {
            let asks = |phase: &super::PhaseSpec| phase.pair_scores() == Some(PairScores::CrossEncoder);
            if let Some(number) = student.phase.iter().position(asks) {
                return needs(&["student", &index.to_string(), "phase", &number.to_string(), "signal"]);
            }
        }
        return Ok(());
    };
    let key = |name| ["cross_encoder", name];
    let message = "name a cross-encoder: a folder, a URL or hf:org/name@revision";
    ensure(!cross.model.is_empty(), &key("model"), message)?;
    within(cross.max_tokens, FEWEST_TOKENS, LARGEST_TOKENS, &key("max_tokens"))
}

fn default_max_tokens() -> u32 {
    256
}
