//! Contradictions between a phase and a signal that is scores of single pairs.

use super::check::{Check, ensure};
use super::{LossKind, LossScope, LossSpec, PairScores, PhaseData, PhaseSpec};

/// Checks a phase that learns from scores of pairs: a question has them for its own positive and mined negatives only.
/// Any other phase passes.
pub(super) fn check_pair_scores(phase: &PhaseSpec, at: &[&str; 4]) -> Check {
    if phase.pair_scores().is_none() {
        return Ok(());
    }
    let signal = &phase.signal;
    let refuse = |holds: bool, name: &str, message: String| {
        ensure(holds, &[at[0], at[1], at[2], at[3], name], message)
    };
    let pairs = phase.data == PhaseData::Queries;
    refuse(pairs, "signal", format!("{signal:?} is scores of pairs: use data = \"queries\""))?;
    let unscored = |what: &str| {
        format!("nobody scores {what} with signal = {signal:?}: leave it out, or use signal = \"teacher\"")
    };
    let drawn = "passages that are drawn from the corpus";
    refuse(phase.corpus_samples == 0, "corpus_samples", unscored(drawn))?;
    refuse(phase.unlabelled == 0.0, "unlabelled", unscored("candidates of questions without a label"))?;
    let message = format!("signal = {signal:?} compares a positive with mined negatives: take at least 1");
    refuse(phase.negatives > 0, "negatives", message)?;
    let given = phase.pair_scores() == Some(PairScores::Given);
    let message = "negatives of the student itself have no given scores: leave it out, or use signal = \"cross-encoder\"";
    refuse(!given || phase.refresh_every.is_none(), "refresh_every", message.to_owned())?;
    phase.loss.iter().try_for_each(|loss| {
        let message = objection(loss).map(|objection| format!("{}: {objection}", loss.kind.name()));
        let message = message.map(|message| format!("{message}, or use signal = \"teacher\""));
        refuse(message.is_none(), "loss", message.unwrap_or_default())
    })
}

/// Why scores of a question's own candidates are not enough for a loss, and what to do.
fn objection(loss: &LossSpec) -> Option<&'static str> {
    let masks = loss.mask_margin.is_some() || loss.mask_ratio.is_some();
    match loss.kind {
        LossKind::EmbeddingMse | LossKind::EmbeddingCosine => {
            Some("the signal has scores of pairs and no vectors: use kl or margin_mse")
        }
        LossKind::MarginMse => None,
        LossKind::InfoNce if !masks => None,
        LossKind::InfoNce | LossKind::Kl => (loss.scope != Some(LossScope::Listed)).then_some(
            "the signal has scores of a question's own positive and negatives alone: set scope = \"listed\"",
        ),
    }
}
