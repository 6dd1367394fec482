//! What a training says of its steps: figures that depend on spec and data alone, and the time that each worker took.

use crate::proto;
use serde::{Deserialize, Serialize};

/// The part of a training's artifact that holds its loss curve: a JSON list of [`StepPoint`].
pub const CURVE: &str = "curve.json";

/// One step of training. It is a function of spec and data, whoever computed it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepPoint {
    /// Its number within the phase.
    pub step: u64,
    /// The loss that was minimised.
    pub loss: f64,
    /// The terms of the loss by name, as they enter the sum.
    pub terms: Vec<(String, f64)>,
    /// The learning rate.
    pub learning_rate: f64,
    /// The norm of the gradient before it was clipped.
    pub gradient_norm: f64,
}

/// Where a worker's time in a step went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepTiming {
    /// Microbatches that it computed.
    pub microbatches: u32,
    /// All of the step, microseconds.
    pub step_us: u64,
    /// Waiting for peers that were still computing, microseconds.
    pub waiting_us: u64,
    /// Exchanging tensors, microseconds.
    pub exchange_us: u64,
}

impl StepTiming {
    /// What was neither waiting nor exchanging, microseconds.
    pub fn compute_us(&self) -> u64 {
        self.step_us.saturating_sub(self.waiting_us).saturating_sub(self.exchange_us)
    }
}

/// What one worker says of one step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// The step's number within the phase.
    pub step: u64,
    /// Its figures; the first member of a cohort speaks for all.
    pub point: Option<StepPoint>,
    /// Where this worker's time went.
    pub timing: Option<StepTiming>,
}

/// Why a report is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidReport {
    /// A loss, rate or norm that is NaN or infinite.
    #[error("step {0}: a figure is not finite")]
    NotFinite(u64),
    /// Far more terms than a loss has.
    #[error("step {0}: more than {MAX_TERMS} terms of the loss")]
    Terms(u64),
}

/// Terms that a loss may have.
const MAX_TERMS: usize = 64;
/// Longest name of a term.
const MAX_NAME_BYTES: usize = 64;

impl From<StepReport> for proto::StepReport {
    fn from(report: StepReport) -> Self {
        let StepReport { step, point, timing } = report;
        let timing = timing.map(Into::into);
        Self { step, point: point.map(Into::into), timing }
    }
}

impl TryFrom<proto::StepReport> for StepReport {
    type Error = InvalidReport;

    fn try_from(report: proto::StepReport) -> Result<Self, InvalidReport> {
        let proto::StepReport { step, point, timing } = report;
        let point = point.map(|point| decode_point(step, point)).transpose()?;
        Ok(Self { step, point, timing: timing.map(Into::into) })
    }
}

impl From<StepPoint> for proto::StepPoint {
    fn from(point: StepPoint) -> Self {
        let StepPoint { step: _, loss, terms, learning_rate, gradient_norm } = point;
        let terms = terms.into_iter().map(|(name, value)| proto::LossTerm { name, value }).collect();
        Self { loss, terms, learning_rate, gradient_norm }
    }
}

/// The figures of a step as they came over the wire.
pub fn decode_point(step: u64, point: proto::StepPoint) -> Result<StepPoint, InvalidReport> {
    let proto::StepPoint { loss, terms, learning_rate, gradient_norm } = point;
    if terms.len() > MAX_TERMS {
        return Err(InvalidReport::Terms(step));
    }
    let named = |proto::LossTerm { mut name, value }| {
        let end = (0..=MAX_NAME_BYTES).rev().find(|end| name.is_char_boundary(*end)).unwrap_or(0);
        name.truncate(end);
        (name, value)
    };
    let terms: Vec<_> = terms.into_iter().map(named).collect();
    let figures =
        [loss, learning_rate, gradient_norm].into_iter().chain(terms.iter().map(|(_, value)| *value));
    if figures.into_iter().any(|figure| !figure.is_finite()) {
        return Err(InvalidReport::NotFinite(step));
    }
    Ok(StepPoint { step, loss, terms, learning_rate, gradient_norm })
}

impl From<StepTiming> for proto::StepTiming {
    fn from(timing: StepTiming) -> Self {
        let StepTiming { microbatches, step_us, waiting_us, exchange_us } = timing;
        Self { microbatches, step_us, waiting_us, exchange_us }
    }
}

impl From<proto::StepTiming> for StepTiming {
    fn from(timing: proto::StepTiming) -> Self {
        let proto::StepTiming { microbatches, step_us, waiting_us, exchange_us } = timing;
        Self { microbatches, step_us, waiting_us, exchange_us }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn reports_survive_the_wire(
            step: u64, figures in proptest::array::uniform3(-1e300..1e300f64), terms in proptest::collection::vec(("[a-z_]{1,20}", -1e9..1e9f64), 0..5),
            timing: [u32; 4], has: [bool; 2],
        ) {
            let [loss, learning_rate, gradient_norm] = figures;
            let point = StepPoint { step, loss, terms, learning_rate, gradient_norm };
            let [microbatches, step_us, waiting_us, exchange_us] = timing;
            let [step_us, waiting_us, exchange_us] = [step_us, waiting_us, exchange_us].map(u64::from);
            let timing = StepTiming { microbatches, step_us, waiting_us, exchange_us };
            let report = StepReport { step, point: has[0].then_some(point), timing: has[1].then_some(timing) };
            let wire: proto::StepReport = report.clone().into();
            prop_assert_eq!(StepReport::try_from(wire), Ok(report));
        }
    }

    #[test]
    fn figures_that_are_none_are_refused() {
        let point = proto::StepPoint { loss: 1.0, terms: Vec::new(), learning_rate: 0.1, gradient_norm: 1.0 };
        let term = |value| proto::LossTerm { name: "ä".repeat(40), value };
        let named = proto::StepPoint { terms: vec![term(1.0)], ..point.clone() };
        assert_eq!(decode_point(3, named).unwrap().terms[0].0, "ä".repeat(32));
        let check = |point, error| assert_eq!(decode_point(3, point), Err(error));
        check(proto::StepPoint { loss: f64::NAN, ..point.clone() }, InvalidReport::NotFinite(3));
        check(
            proto::StepPoint { gradient_norm: f64::INFINITY, ..point.clone() },
            InvalidReport::NotFinite(3),
        );
        check(proto::StepPoint { terms: vec![term(f64::NAN)], ..point.clone() }, InvalidReport::NotFinite(3));
        check(proto::StepPoint { terms: vec![term(0.0); 65], ..point }, InvalidReport::Terms(3));
    }
}
