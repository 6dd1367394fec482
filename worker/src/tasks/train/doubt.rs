//! A value that is not finite although nothing was wrong with its checksum: is it the data, or a machine?
//!
//! The generation in which it was met ends. The next one begins with the same state, its members tell each other what
//! was met, and somebody else computes the same once more. Where that is not finite either, the job fails with the rows
//! that it comes from; where it is, the worker whose value it was computes other bits and is put into quarantine.

use super::super::order::{StepRows, TextRow};
use retort_common::ids::WorkerId;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Most bytes of a doubt on the wire.
pub(super) const MAX_BYTES: usize = 4 << 10;
/// Rows of each kind that a message names.
const MAX_NAMED: usize = 16;

/// What was not finite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum What {
    /// Vectors of microbatches.
    Vectors,
    /// The loss, of finite vectors.
    Loss,
    /// A sum of gradients of microbatches.
    Gradient,
    /// The sum of finite sums of gradients.
    Sum,
}

impl What {
    pub(super) fn name(self) -> &'static str {
        match self {
            What::Vectors => "vectors",
            What::Loss => "a loss",
            What::Gradient => "gradients",
            What::Sum => "a sum of gradients",
        }
    }
}

/// A value that is to be computed once more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Doubt {
    /// Steps taken before the one in which it was met.
    pub(super) step: u64,
    /// Who computed it.
    pub(super) worker: WorkerId,
    /// From which microbatches.
    pub(super) microbatches: Range<u32>,
    /// What it is.
    pub(super) what: What,
}

/// A doubt and the member that computes the value once more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Check {
    pub(super) doubt: Doubt,
    /// Rank of that member.
    pub(super) by: usize,
}

impl Doubt {
    pub(super) fn encode(doubt: Option<&Self>) -> Vec<u8> {
        doubt.map_or_else(Vec::new, |doubt| serde_json::to_vec(doubt).expect("a doubt has a JSON form"))
    }

    /// What a member said; nothing where that is no doubt about these microbatches.
    pub(super) fn decode(bytes: &[u8], microbatches: u32) -> Option<Option<Self>> {
        if bytes.is_empty() {
            return Some(None);
        }
        if bytes.len() > MAX_BYTES {
            return None;
        }
        let doubt: Self = serde_json::from_slice(bytes).ok()?;
        let Range { start, end } = doubt.microbatches;
        (start < end && end <= microbatches).then_some(Some(doubt))
    }

    /// What was met, in words.
    pub(super) fn says(&self) -> String {
        let Self { step, worker, microbatches, what } = self;
        let (step, what) = (step + 1, what.name());
        format!(
            "step {step}: worker {worker} has {what} of microbatches {microbatches:?} that are not finite"
        )
    }
}

/// What the members of a generation check in its first step: the first doubt about one of them after so many steps.
/// All members come to the same.
pub(super) fn check(doubts: &[Option<Doubt>], step: u64, workers: &[WorkerId]) -> Option<Check> {
    let about = |doubt: &&Doubt| doubt.step == step && workers.contains(&doubt.worker);
    let doubt = doubts.iter().flatten().find(about)?.clone();
    // Somebody else, if there is anybody.
    let by = workers.iter().position(|worker| *worker != doubt.worker).unwrap_or(0);
    Some(Check { doubt, by })
}

/// The rows that microbatches are made of, by number.
pub(super) fn rows(rows: &StepRows, microbatches: &Range<u32>, all: u32) -> String {
    let cells = rows.texts.len() / all.max(1) as usize;
    let texts = &rows.texts[microbatches.start as usize * cells..microbatches.end as usize * cells];
    let numbers = |wanted: fn(&TextRow) -> Option<u64>| {
        let mut numbers: Vec<u64> = texts.iter().filter_map(wanted).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let named: Vec<_> = numbers.iter().take(MAX_NAMED).map(u64::to_string).collect();
        let more = if numbers.len() > MAX_NAMED { ", …" } else { "" };
        if named.is_empty() { "none".to_owned() } else { named.join(", ") + more }
    };
    let queries = numbers(|text| if let TextRow::Query(row) = text { Some(*row) } else { None });
    let passages = numbers(|text| if let TextRow::Passage(row) = text { Some(*row) } else { None });
    let sentences = numbers(|text| if let TextRow::Sentence(row) = text { Some(*row) } else { None });
    let sentences = if sentences == "none" { String::new() } else { format!("; sentence rows {sentences}") };
    format!("question rows {queries}; passage rows {passages}{sentences}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn worker(name: &str) -> WorkerId {
        name.parse().unwrap()
    }

    fn doubt(step: u64, name: &str) -> Doubt {
        Doubt { step, worker: worker(name), microbatches: 1..2, what: What::Gradient }
    }

    #[test]
    fn somebody_else_checks_the_first_doubt_about_a_member() {
        let workers = ["a", "b", "c"].map(worker);
        let check = |doubts: &[Option<Doubt>], expected: Option<(&str, usize)>| {
            let found = super::check(doubts, 7, &workers);
            let found = found.as_ref().map(|check| (check.doubt.worker.as_str(), check.by));
            assert_eq!(found, expected, "{doubts:?}");
        };
        check(&[None, None, None], None);
        check(&[None, Some(doubt(7, "a")), None], Some(("a", 1)));
        check(&[None, Some(doubt(7, "b")), Some(doubt(7, "c"))], Some(("b", 0)));
        // Of a step that is over, or that is to come; of a worker that has left.
        check(&[Some(doubt(6, "a")), Some(doubt(8, "a")), Some(doubt(7, "d"))], None);
        let alone = super::check(&[Some(doubt(7, "a"))], 7, &workers[..1]);
        assert_eq!(alone.unwrap().by, 0);
    }

    #[test]
    fn rows_are_named_once_and_not_too_many() {
        let texts = (0..60).map(|at| if at % 3 == 0 { TextRow::Query(at / 6) } else { TextRow::Passage(at) });
        let step = StepRows { texts: texts.collect(), tokens: Vec::new(), known_positives: Vec::new() };
        assert_eq!(rows(&step, &(1..2), 10), "question rows 1; passage rows 7, 8, 10, 11");
        assert!(rows(&step, &(0..10), 10).ends_with("22, 23, …"), "{}", rows(&step, &(0..10), 10));
        let step = StepRows { texts: vec![TextRow::Sentence(3), TextRow::Passage(1)], ..StepRows::default() };
        assert_eq!(rows(&step, &(0..1), 1), "question rows none; passage rows 1; sentence rows 3");
    }

    proptest! {
        #[test]
        fn doubts_survive_the_wire(step: u64, start in 0u32..20, len in 1u32..20, name in "[a-z]{1,9}", cut in 0usize..60) {
            let doubt = Doubt { step, worker: worker(&name), microbatches: start..start + len, what: What::Loss };
            let bytes = Doubt::encode(Some(&doubt));
            prop_assert_eq!(Doubt::decode(&bytes, start + len), Some(Some(doubt)));
            prop_assert_eq!(Doubt::decode(&bytes, start + len - 1), None);
            prop_assert_eq!(Doubt::decode(&bytes[..cut.min(bytes.len() - 1)], start + len), (cut == 0).then_some(None));
        }
    }
}
