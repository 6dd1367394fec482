//! Who trains together, and which microbatches each computes.

use crate::training::tree::Wire;
use retort_common::ids::{Digest, WorkerId};
use std::collections::BTreeSet;
use std::ops::Range;

/// Most members of a cohort.
pub const MAX_MEMBERS: usize = 1024;
/// Longest name of a lineage.
pub const MAX_LINEAGE_BYTES: usize = 256;

/// A generation of a cohort as one of its members sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roster {
    /// One unbroken history of a job's training.
    pub lineage: String,
    /// The number of the membership; rises within a lineage.
    pub generation: u64,
    /// The members in rank order. Their deals are contiguous and cover the microbatches once.
    pub members: Vec<Member>,
    /// Which member this worker is.
    pub rank: usize,
}

/// One member of a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Who it is.
    pub worker: WorkerId,
    /// Where its exchange listens, host:port.
    pub address: String,
    /// Its deal.
    pub microbatches: Range<u32>,
}

/// A roster that cannot be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RosterError {
    /// Nobody, or far too many.
    #[error("a roster of {0} members cannot be: 1 to {MAX_MEMBERS} can train together")]
    Members(usize),
    /// The lineage's name.
    #[error("a lineage of {0} bytes cannot be: use 1 to {MAX_LINEAGE_BYTES}")]
    Lineage(usize),
    /// The rank.
    #[error("rank {rank} is not in a roster of {members}")]
    Rank {
        /// As given.
        rank: usize,
        /// How many there are.
        members: usize,
    },
    /// Another worker stands at this worker's rank.
    #[error("the roster has {found} at rank {rank} where this worker, {own}, must stand")]
    NotOwn {
        /// The rank.
        rank: usize,
        /// Who stands there.
        found: WorkerId,
        /// This worker.
        own: WorkerId,
    },
    /// A worker that is there twice.
    #[error("the roster has {0} twice")]
    Twice(WorkerId),
    /// Deals with a gap, an overlap or nothing in one.
    #[error("{worker} has microbatches {found:?} where a deal from {expected} on must follow")]
    Deal {
        /// Whose deal.
        worker: WorkerId,
        /// As given.
        found: Range<u32>,
        /// Where it must begin.
        expected: u32,
    },
    /// A deal that cuts a block whose sum is rounded.
    #[error("{worker} has microbatches {found:?}, which cuts a block of {block}; bf16 needs whole ones")]
    Cut {
        /// Whose deal.
        worker: WorkerId,
        /// As given.
        found: Range<u32>,
        /// Microbatches in a block.
        block: u32,
    },
    /// A generation that is not newer than one joined before.
    #[error("generation {found} of {lineage} is not newer than {known}, which was joined before")]
    Old {
        /// The lineage.
        lineage: String,
        /// As given.
        found: u64,
        /// As known.
        known: u64,
    },
}

impl Roster {
    /// Microbatches of a step: the leaves of the canonical tree.
    pub fn leaves(&self) -> u32 {
        self.members.last().map_or(0, |member| member.microbatches.end)
    }

    /// Checks everything that members must be able to rely on.
    pub fn validate(&self, wire: Wire) -> Result<(), RosterError> {
        let members = self.members.len();
        if members == 0 || members > MAX_MEMBERS {
            return Err(RosterError::Members(members));
        }
        if self.lineage.is_empty() || self.lineage.len() > MAX_LINEAGE_BYTES {
            return Err(RosterError::Lineage(self.lineage.len()));
        }
        if self.rank >= members {
            return Err(RosterError::Rank { rank: self.rank, members });
        }
        let mut workers = BTreeSet::new();
        let mut expected = 0;
        for member in &self.members {
            let (worker, found) = (member.worker.clone(), member.microbatches.clone());
            if !workers.insert(worker.clone()) {
                return Err(RosterError::Twice(worker));
            }
            if found.start != expected || found.end <= found.start {
                return Err(RosterError::Deal { worker, found, expected });
            }
            expected = found.end;
        }
        let block = wire.block();
        let cut = |end: u32| !end.is_multiple_of(block) && end != expected;
        match self.members.iter().find(|member| cut(member.microbatches.end)) {
            Some(Member { worker, microbatches, .. }) => {
                Err(RosterError::Cut { worker: worker.clone(), found: microbatches.clone(), block })
            }
            None => Ok(()),
        }
    }

    /// What all members must agree on: everything but the own rank.
    pub fn digest(&self, wire: Wire) -> Digest {
        let mut text = format!("{:?} {} {wire:?}\n", self.lineage, self.generation);
        for Member { worker, address, microbatches } in &self.members {
            text += &format!("{worker} {address:?} {microbatches:?}\n");
        }
        Digest::of(text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roster(deals: &[Range<u32>]) -> Roster {
        let member = |(at, deal): (usize, &Range<u32>)| Member {
            worker: format!("w{at}").parse().unwrap(),
            address: format!("127.0.0.1:{at}"),
            microbatches: deal.clone(),
        };
        let members = deals.iter().enumerate().map(member).collect();
        Roster { lineage: "job.1".to_owned(), generation: 1, members, rank: 0 }
    }

    #[test]
    fn deals_cover_the_microbatches_once() {
        let check = |deals: &[Range<u32>], wire, says: &str| match roster(deals).validate(wire) {
            Ok(()) => assert_eq!(says, "", "{deals:?}"),
            Err(error) => assert!(!says.is_empty() && error.to_string().contains(says), "{deals:?}: {error}"),
        };
        check(&[0..4, 4..5, 5..8], Wire::F32, "");
        check(&[0..1], Wire::F32, "");
        check(&[], Wire::F32, "0 members");
        check(&[0..4, 5..8], Wire::F32, "from 4 on");
        check(&[0..4, 3..8], Wire::F32, "from 4 on");
        check(&[0..4, 4..4], Wire::F32, "from 4 on");
        check(&[1..4], Wire::F32, "from 0 on");
        check(&[0..4, 4..7], Wire::Bf16 { level: 2 }, "");
        check(&[0..3, 3..7], Wire::Bf16 { level: 2 }, "cuts a block of 4");
    }

    #[test]
    fn the_rest_is_checked_too() {
        let mut twice = roster(&[0..1, 1..2]);
        twice.members[1].worker = twice.members[0].worker.clone();
        assert!(matches!(twice.validate(Wire::F32), Err(RosterError::Twice(_))));
        let strange = Roster { rank: 2, ..roster(&[0..1, 1..2]) };
        assert!(matches!(strange.validate(Wire::F32), Err(RosterError::Rank { .. })));
        let nameless = Roster { lineage: String::new(), ..roster(&[0..1]) };
        assert!(matches!(nameless.validate(Wire::F32), Err(RosterError::Lineage(0))));
    }

    #[test]
    fn the_digest_is_of_all_that_members_share() {
        let one = roster(&[0..4, 4..8]);
        let other = Roster { rank: 1, ..one.clone() };
        assert_eq!(one.digest(Wire::F32), other.digest(Wire::F32));
        assert_ne!(one.digest(Wire::F32), one.digest(Wire::Bf16 { level: 0 }));
        assert_ne!(one.digest(Wire::F32), roster(&[0..3, 3..8]).digest(Wire::F32));
    }
}
