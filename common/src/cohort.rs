//! Cohorts: the workers that compute one training together.
//!
//! A training's attempt number is its *generation*: every change of membership names the next one. The members'
//! *deal* says who computes which microbatches; it changes no bit of the result.

use crate::ids::WorkerId;
use crate::task::Task;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// A worker in a generation, in the order of ranks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Who.
    pub worker: WorkerId,
    /// Where its peers reach it; may be empty in a generation of one.
    pub address: String,
    /// The microbatches it computes: not empty, and those of rank r end where those of rank r + 1 begin.
    pub microbatches: Range<u32>,
}

/// Why a list of members is no generation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMembers {
    /// A worker twice.
    #[error("worker {0} is in it twice")]
    Twice(WorkerId),
    /// Microbatches that are left out or dealt twice.
    #[error("worker {worker} has microbatches {start}..{end} where {expected} should be the first")]
    Deal {
        /// Whose.
        worker: WorkerId,
        /// Its first.
        start: u32,
        /// The one after its last.
        end: u32,
        /// What follows from the members before it.
        expected: u32,
    },
    /// Nobody, or not every microbatch.
    #[error("{dealt} of {microbatches} microbatches are dealt")]
    Incomplete {
        /// How many are dealt.
        dealt: u32,
        /// How many there are.
        microbatches: u32,
    },
    /// A peer without an address.
    #[error("worker {0} has no address for its peers")]
    NoAddress(WorkerId),
}

/// Checks that members are a generation over so many microbatches.
pub fn check(members: &[Member], microbatches: u32) -> Result<(), InvalidMembers> {
    let mut expected = 0;
    for (rank, member) in members.iter().enumerate() {
        let Range { start, end } = member.microbatches;
        if members[..rank].iter().any(|other| other.worker == member.worker) {
            return Err(InvalidMembers::Twice(member.worker.clone()));
        }
        if start != expected || end <= start {
            return Err(InvalidMembers::Deal { worker: member.worker.clone(), start, end, expected });
        }
        if members.len() > 1 && member.address.is_empty() {
            return Err(InvalidMembers::NoAddress(member.worker.clone()));
        }
        expected = end;
    }
    if expected == microbatches && !members.is_empty() {
        Ok(())
    } else {
        Err(InvalidMembers::Incomplete { dealt: expected, microbatches })
    }
}

/// How many workers at most can compute a task together; none where it is a task for one worker.
pub fn limit(task: &Task) -> Option<u32> {
    units(task).map(Units::count)
}

/// What is dealt in a cohort: microbatches, or blocks of them where sums are rounded by block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Units {
    /// All microbatches.
    pub microbatches: u32,
    /// Microbatches of a block; the last block may have fewer.
    pub block: u32,
}

impl Units {
    /// How many blocks there are.
    pub fn count(self) -> u32 {
        self.microbatches.div_ceil(self.block)
    }

    /// The microbatches of some blocks.
    pub fn microbatches(self, blocks: Range<u32>) -> Range<u32> {
        let edge = |block: u32| block.saturating_mul(self.block).min(self.microbatches);
        edge(blocks.start)..edge(blocks.end)
    }

    /// How many blocks a deal holds.
    pub fn blocks(self, deal: &Range<u32>) -> u32 {
        deal.end.saturating_sub(deal.start).div_ceil(self.block)
    }
}

/// What is dealt of a task; none where it is a task for one worker.
pub fn units(task: &Task) -> Option<Units> {
    match task {
        Task::Train { phase, .. } => {
            Some(Units { microbatches: phase.microbatches.max(1), block: phase.block().max(1) })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, microbatches: Range<u32>) -> Member {
        Member { worker: name.parse().unwrap(), address: "here:1".to_owned(), microbatches }
    }

    #[test]
    fn blocks_cover_the_microbatches() {
        let check = |microbatches, block, count, deals: &[(Range<u32>, Range<u32>)]| {
            let units = Units { microbatches, block };
            assert_eq!(units.count(), count);
            for (blocks, expected) in deals {
                assert_eq!(units.microbatches(blocks.clone()), *expected, "{units:?}");
                assert_eq!(units.blocks(expected), blocks.end - blocks.start, "{units:?}");
            }
        };
        check(8, 1, 8, &[(0..3, 0..3), (3..8, 3..8)]);
        check(8, 4, 2, &[(0..1, 0..4), (1..2, 4..8)]);
        check(6, 4, 2, &[(0..1, 0..4), (1..2, 4..6), (0..2, 0..6)]);
        check(3, 8, 1, &[(0..1, 0..3)]);
    }

    #[test]
    fn generations_deal_every_microbatch_once() {
        let check = |members: &[(&str, Range<u32>)], says: Option<&str>| {
            let members: Vec<_> = members.iter().map(|(name, deal)| member(name, deal.clone())).collect();
            let found = super::check(&members, 4).map_err(|error| error.to_string());
            match (&found, says) {
                (Ok(()), None) => {}
                (Err(text), Some(says)) if text.contains(says) => {}
                _ => panic!("{members:?}: {found:?}, not {says:?}"),
            }
        };
        check(&[("a", 0..4)], None);
        check(&[("a", 0..1), ("b", 1..4)], None);
        check(&[], Some("0 of 4"));
        check(&[("a", 0..3)], Some("3 of 4"));
        check(&[("a", 0..2), ("b", 3..4)], Some("2 should be the first"));
        check(&[("a", 0..2), ("b", 1..4)], Some("2 should be the first"));
        check(&[("a", 0..4), ("b", 4..4)], Some("4 should be the first"));
        check(&[("a", 0..2), ("a", 2..4)], Some("twice"));
        let alone = Member { address: String::new(), ..member("a", 0..4) };
        assert_eq!(super::check(std::slice::from_ref(&alone), 4), Ok(()));
        let alone = Member { microbatches: 0..2, ..alone };
        assert!(super::check(&[alone, member("b", 2..4)], 4).unwrap_err().to_string().contains("no address"));
    }
}
