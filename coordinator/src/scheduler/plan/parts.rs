//! The parts that a phase is trained in, and what measurements of their students decide.

use retort_common::spec::PhaseSpec;
use retort_common::task::{ArtifactId, Span};
use std::collections::BTreeSet;

/// Evaluated parts that a phase that may end early trains beyond those whose figures are known.
const AHEAD: usize = 2;

/// A part of a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Its steps; none where it is the whole phase.
    pub(super) span: Option<Span>,
    /// Which period of one kind of negatives it belongs to, from 0.
    pub(super) period: usize,
    /// Whether it is the last of its period.
    pub(super) ends_period: bool,
    /// Whether its student is evaluated.
    pub(super) evaluated: bool,
}

/// The parts of a phase: cut where negatives are mined anew or the student is evaluated, else one.
pub(super) fn parts(phase: &PhaseSpec) -> Vec<Part> {
    let cuts = [phase.refresh_every, phase.evaluate_every];
    let Some(total) = phase.steps.filter(|_| cuts.iter().any(Option::is_some)) else {
        return vec![Part { span: None, period: 0, ends_period: true, evaluated: false }];
    };
    let of = |every: u32| (every.max(1)..total).step_by(every.max(1) as usize);
    let mut ends: BTreeSet<u32> = cuts.into_iter().flatten().flat_map(of).collect();
    ends.insert(total);
    let mut first = 0;
    let part = |end: u32| {
        let span = Some(Span { first: std::mem::replace(&mut first, end), end, total });
        let multiple = |every: Option<u32>| every.is_some_and(|every| end.is_multiple_of(every.max(1)));
        Part {
            span,
            period: phase.refresh_every.map_or(0, |every| (end - 1) / every.max(1)) as usize,
            ends_period: multiple(phase.refresh_every) || end == total,
            evaluated: phase.evaluate_every.is_some() && (end == total || multiple(phase.evaluate_every)),
        }
    };
    ends.into_iter().map(part).collect()
}

/// The students of a phase as they are measured, in the order of steps.
pub(super) struct Race {
    /// The measured ones: step, student, figure.
    measured: Vec<(u32, ArtifactId, f64)>,
    /// The newest.
    last: Option<(u32, ArtifactId)>,
    /// Whether it is the end of the phase.
    at_end: bool,
    /// Evaluated students whose figure is not known.
    open: usize,
    evaluates: bool,
    patience: Option<usize>,
}

impl Race {
    pub(super) fn new(phase: &PhaseSpec) -> Self {
        let (evaluates, patience) = (phase.evaluate_every.is_some(), phase.patience);
        let patience = patience.map(|patience| patience as usize);
        Self { measured: Vec::new(), last: None, at_end: false, open: 0, evaluates, patience }
    }

    /// A part with its student.
    pub(super) fn enter(&mut self, part: &Part, student: &ArtifactId) {
        self.at_end = part.span.is_none_or(|span| span.end == span.total);
        self.last = Some((part.span.map_or(0, |span| span.end), student.clone()));
    }

    /// The figure of the newest student. One that comes after an unknown one counts when that is known.
    pub(super) fn measured(&mut self, figure: Option<f64>) {
        match (figure, &self.last) {
            (Some(figure), Some((step, student))) if self.open == 0 => {
                self.measured.push((*step, student.clone(), figure));
            }
            _ => self.open += 1,
        }
    }

    /// The best measured student: its place among them. The earliest of equals.
    fn best(&self) -> Option<usize> {
        let better = |best: usize, at: usize| self.measured[at].2 > self.measured[best].2;
        (0..self.measured.len()).reduce(|best, at| if better(best, at) { at } else { best })
    }

    /// Whether patience has come to its end.
    pub(super) fn is_over(&self) -> bool {
        let waited = self.best().map(|best| self.measured.len() - 1 - best);
        waited.zip(self.patience).is_some_and(|(waited, patience)| waited >= patience)
    }

    /// Whether to wait for figures before training on.
    pub(super) fn is_far_ahead(&self) -> bool {
        self.patience.is_some() && self.open > AHEAD
    }

    /// What the phase gives: its last student, or the best of the measured ones once all that count are known.
    pub(super) fn winner(&self) -> Option<ArtifactId> {
        if !self.evaluates {
            return self.last.as_ref().map(|(_, student)| student.clone());
        }
        let known = self.is_over() || (self.at_end && self.open == 0);
        self.best().filter(|_| known).map(|best| self.measured[best].1.clone())
    }

    /// The step of the best measured student so far.
    pub(super) fn best_step(&self) -> Option<u32> {
        self.best().map(|best| self.measured[best].0)
    }

    /// What was measured, and how the phase was decided, in words.
    pub(super) fn says(&self, metric: &str) -> Vec<String> {
        let of = |(step, _, figure): &(u32, ArtifactId, f64)| {
            format!("step {step} has {metric} {figure:.4} on dev")
        };
        let mut said: Vec<String> = self.measured.iter().map(of).collect();
        if let (Some(_), Some(step), Some((last, ..))) =
            (self.winner(), self.best_step(), self.measured.last())
        {
            let early = if self.at_end { "" } else { &format!("; the phase ends early, after step {last}") };
            said.push(format!("step {step} is the best of {} evaluations{early}", self.measured.len()));
        }
        said
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use retort_common::ids::{Digest, TaskId};
    use serde_json::json;

    fn phase(refresh: Option<u32>, evaluate: Option<u32>, patience: Option<u32>) -> PhaseSpec {
        let value = json!({
            "data": "queries", "steps": 10, "batch": 4, "learning_rate": 0.1, "loss": [],
            "refresh_every": refresh, "evaluate_every": evaluate, "patience": patience,
        });
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_phase_is_cut_where_something_is_to_be_done() {
        let check = |refresh, evaluate, expected: &[(u32, u32, usize, bool, bool)]| {
            let found: Vec<_> = parts(&phase(refresh, evaluate, None))
                .into_iter()
                .map(|part| {
                    let span = part.span.unwrap_or(Span { first: 0, end: 0, total: 0 });
                    (span.first, span.end, part.period, part.ends_period, part.evaluated)
                })
                .collect();
            assert_eq!(found, expected, "{refresh:?} {evaluate:?}");
        };
        check(None, None, &[(0, 0, 0, true, false)]);
        let periods = [(0, 4, 0, true, false), (4, 8, 1, true, false), (8, 10, 2, true, false)];
        check(Some(4), None, &periods);
        check(None, Some(5), &[(0, 5, 0, false, true), (5, 10, 0, true, true)]);
        check(
            Some(4),
            Some(3),
            &[
                (0, 3, 0, false, true),
                (3, 4, 0, true, false),
                (4, 6, 1, false, true),
                (6, 8, 1, true, false),
                (8, 9, 2, false, true),
                (9, 10, 2, true, true),
            ],
        );
        check(None, Some(10), &[(0, 10, 0, true, true)]);
    }

    #[test]
    fn the_best_wins_once_it_is_known_and_patience_ends_a_phase() {
        // Figures of the evaluations after each two of ten steps; the winner's step, whether it is over, and whether
        // training waits.
        let check = |patience, figures: &[Option<f64>], expected: (Option<u32>, bool, bool)| {
            let spec = phase(None, Some(2), patience);
            let mut race = Race::new(&spec);
            let student = |step: u32| ArtifactId {
                kind: "student".to_owned(),
                task: TaskId(Digest::of(&step.to_le_bytes())),
            };
            for (part, figure) in parts(&spec).iter().zip(figures) {
                race.enter(part, &student(part.span.unwrap().end));
                race.measured(*figure);
            }
            let winner = race.winner().map(|one| (2..=10).find(|step| student(*step) == one).unwrap());
            assert_eq!((winner, race.is_over(), race.is_far_ahead()), expected, "{patience:?} {figures:?}");
        };
        let known = |figures: &[f64]| figures.iter().copied().map(Some).collect::<Vec<_>>();
        check(None, &known(&[0.1, 0.5, 0.5, 0.3, 0.2]), (Some(4), false, false));
        check(None, &known(&[0.1, 0.5]), (None, false, false));
        check(None, &[Some(0.1), None, Some(0.9), Some(0.3), Some(0.2)], (None, false, false));
        check(Some(2), &known(&[0.1, 0.5, 0.5, 0.3]), (Some(4), true, false));
        check(Some(3), &known(&[0.1, 0.5, 0.5, 0.3]), (None, false, false));
        check(Some(1), &[Some(0.5), None, Some(0.1), None], (None, false, true));
        check(Some(1), &[Some(0.5), None, Some(0.1)], (None, false, false));
    }
}
