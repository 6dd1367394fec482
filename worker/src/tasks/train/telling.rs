//! What a training tells the coordinator of its steps.
//!
//! Messages may be lost with a session, and a restarted coordinator has forgotten all: everything is told again in
//! each new session. Steps that come twice are compared there and kept once.

use super::super::bench::Seat;
use crate::report::StepPoint;
use retort_common::metrics::{StepReport, StepTiming};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Steps in one message.
const STEPS_AT_ONCE: usize = 200;
/// Longest pause between two messages while steps are taken.
const PAUSE: Duration = Duration::from_millis(200);
/// Timings that are kept to be told again.
const MAX_TIMINGS: usize = 20_000;

/// What was told, and what can be told again.
#[derive(Default)]
pub(super) struct Telling {
    timings: VecDeque<(u64, StepTiming)>,
    /// Number of the session in which the following was told.
    session: u64,
    /// The last step whose figures were told.
    points_told: u64,
    /// The last step whose timing was told.
    timings_told: u64,
    last: Option<Instant>,
}

impl Telling {
    /// Notes where this worker's time in a step went.
    pub(super) fn note(&mut self, step: u64, timing: StepTiming) {
        self.timings.push_back((step, timing));
        if self.timings.len() > MAX_TIMINGS {
            self.timings.pop_front();
        }
    }

    /// The training goes on after this step; what was told of later ones will be told again.
    pub(super) fn rewind(&mut self, step: u64) {
        self.points_told = self.points_told.min(step);
        self.timings_told = self.timings_told.min(step);
        self.timings.retain(|(noted, _)| *noted <= step);
    }

    /// Tells what is new, now and then, or at once at the end. Figures come from the first member alone; those up to
    /// step `first` belong to the part of the phase before this one.
    pub(super) fn tell(
        &mut self,
        seat: &Seat<'_>,
        lineage: &str,
        curve: &[StepPoint],
        (first, leads): (u64, bool),
        at_once: bool,
    ) {
        if !at_once && self.last.is_some_and(|last| last.elapsed() < PAUSE) {
            return;
        }
        self.last = Some(Instant::now());
        let session = seat.context.control().borrow().session;
        if session != self.session {
            (self.session, self.points_told, self.timings_told) = (session, first, 0);
        }
        self.points_told = self.points_told.max(first);
        loop {
            let steps = self.next(if leads { curve } else { &[] });
            let Some(last) = steps.last().map(|report| report.step) else { return };
            // A full queue means that the coordinator is away: the next session hears it all.
            if !seat.context.metrics(lineage, steps) {
                return;
            }
            // They go in order, so that nothing up to the last one is left.
            self.timings_told = self.timings_told.max(last);
            if leads {
                self.points_told = self.points_told.max(last);
            }
        }
    }

    /// The next steps to tell, in order.
    fn next(&self, curve: &[StepPoint]) -> Vec<StepReport> {
        let begin = curve.partition_point(|point| point.step <= self.points_told);
        let points = &curve[begin..];
        let begin = self.timings.partition_point(|(step, _)| *step <= self.timings_told);
        let mut timings = self.timings.iter().skip(begin).copied().peekable();
        let mut points = points.iter().peekable();
        let mut steps: Vec<StepReport> = Vec::new();
        while steps.len() < STEPS_AT_ONCE {
            let next = [points.peek().map(|point| point.step), timings.peek().map(|(step, _)| *step)];
            let Some(step) = next.into_iter().flatten().min() else { break };
            let point = points.next_if(|point| point.step == step).cloned();
            let timing = timings.next_if(|(noted, _)| *noted == step).map(|(_, timing)| timing);
            steps.push(StepReport { step, point, timing });
        }
        steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(step: u64) -> StepPoint {
        StepPoint { step, loss: 1.0, terms: Vec::new(), learning_rate: 0.1, gradient_norm: 1.0 }
    }

    #[test]
    fn figures_and_timings_go_together_and_each_once() {
        let check = |points_told, timings_told, expected: &[(u64, bool, bool)]| {
            let mut telling = Telling { points_told, timings_told, ..Telling::default() };
            (3..=5).for_each(|step| telling.note(step, StepTiming::default()));
            let curve: Vec<_> = (1..=5).map(point).collect();
            let told = telling.next(&curve);
            let told: Vec<_> =
                told.iter().map(|one| (one.step, one.point.is_some(), one.timing.is_some())).collect();
            assert_eq!(told, expected, "{points_told} {timings_told}");
        };
        check(2, 0, &[(3, true, true), (4, true, true), (5, true, true)]);
        check(4, 0, &[(3, false, true), (4, false, true), (5, true, true)]);
        check(
            0,
            4,
            &[(1, true, false), (2, true, false), (3, true, false), (4, true, false), (5, true, true)],
        );
        check(5, 5, &[]);
    }

    #[test]
    fn a_step_back_is_told_again() {
        let mut telling = Telling { points_told: 9, timings_told: 9, ..Telling::default() };
        (1..=9).for_each(|step| telling.note(step, StepTiming::default()));
        telling.rewind(7);
        assert_eq!((telling.points_told, telling.timings_told, telling.timings.len()), (7, 7, 7));
    }
}
