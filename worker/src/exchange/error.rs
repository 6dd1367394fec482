//! What can go wrong between the members of a cohort, and whose edge it is.

use super::roster::RosterError;
use retort_common::ids::WorkerId;
use retort_common::net::NetError;
use std::ops::Range;
use std::time::Duration;

/// Why an exchange failed. Nothing of a failed exchange is ever averaged in.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// A roster that cannot be.
    #[error(transparent)]
    Roster(#[from] RosterError),
    /// The listener or the TLS files.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The exchange's thread could not be started or has ended.
    #[error("the exchange has stopped: {0}")]
    Stopped(String),
    /// A peer that died, froze or is cut off.
    #[error("peer {peer} cannot be reached: {cause}")]
    Unreachable {
        /// The peer.
        peer: WorkerId,
        /// What the network says.
        cause: String,
    },
    /// A peer that lives and sends nothing.
    #[error("peer {peer} lives but gave no {what} for {after:?}; it is stuck or far slower than the others")]
    TimedOut {
        /// The peer.
        peer: WorkerId,
        /// What was waited for.
        what: &'static str,
        /// How long.
        after: Duration,
    },
    /// A peer that refuses what this worker sent.
    #[error("peer {peer} refuses: {reason}")]
    Refused {
        /// The peer.
        peer: WorkerId,
        /// In its words.
        reason: String,
    },
    /// A peer that has joined a newer generation.
    #[error("peer {peer} has gone on to a newer generation: {reason}")]
    Stale {
        /// The peer.
        peer: WorkerId,
        /// In its words.
        reason: String,
    },
    /// A peer that ended the generation for a reason of its own.
    #[error("peer {peer} has left the generation: {reason}")]
    Left {
        /// The peer.
        peer: WorkerId,
        /// In its words.
        reason: String,
    },
    /// This worker itself has joined a newer generation.
    #[error("generation {generation} of {lineage} is over here")]
    Over {
        /// The lineage.
        lineage: String,
        /// The generation that ended.
        generation: u64,
    },
    /// A contribution to another step than the one that is due.
    #[error("peer {peer} contributes to {found} while {expected} is due")]
    OutOfStep {
        /// The peer.
        peer: WorkerId,
        /// What is due.
        expected: String,
        /// What came.
        found: String,
    },
    /// A wrong number of values or bytes.
    #[error("peer {peer} sends {found} {what} where {expected} are due")]
    Length {
        /// The peer.
        peer: WorkerId,
        /// Of what.
        what: &'static str,
        /// As it must be.
        expected: u64,
        /// As it is.
        found: u64,
    },
    /// Bytes that changed on their way.
    #[error("peer {peer}: the checksum of {what} at {offset} is wrong; look at its memory and network")]
    Checksum {
        /// The peer.
        peer: WorkerId,
        /// Of what.
        what: &'static str,
        /// Place of the first value or byte.
        offset: u64,
    },
    /// NaN or infinity in what a worker computed; the worker may be this one.
    #[error(
        "worker {worker} gives a value that is not finite at {offset}, from microbatches {microbatches:?}"
    )]
    NonFinite {
        /// Who computed it.
        worker: WorkerId,
        /// The node of the canonical tree.
        microbatches: Range<u32>,
        /// Place in the gradient.
        offset: u64,
    },
    /// Finite partial sums whose sum is not.
    #[error("the sum of the gradients overflows at {offset}; lower the learning rate or look at the rows")]
    Overflow {
        /// Place in the gradient.
        offset: u64,
    },
    /// Messages that break the protocol.
    #[error("peer {peer} breaks the protocol: {what}")]
    Malformed {
        /// The peer.
        peer: WorkerId,
        /// In which way.
        what: String,
    },
    /// A call that this worker must not make.
    #[error("{0}")]
    Misuse(String),
}

impl ExchangeError {
    /// The peers that it is about: with this worker they make the edges that failed. Empty where the cause lies
    /// elsewhere.
    pub fn peers(&self) -> Vec<WorkerId> {
        match self {
            Self::Unreachable { peer, .. }
            | Self::TimedOut { peer, .. }
            | Self::Refused { peer, .. }
            | Self::OutOfStep { peer, .. }
            | Self::Length { peer, .. }
            | Self::Checksum { peer, .. }
            | Self::Malformed { peer, .. } => vec![peer.clone()],
            Self::NonFinite { worker, .. } => vec![worker.clone()],
            Self::Roster(_)
            | Self::Net(_)
            | Self::Stopped(_)
            | Self::Stale { .. }
            | Self::Left { .. }
            | Self::Over { .. }
            | Self::Overflow { .. }
            | Self::Misuse(_) => Vec::new(),
        }
    }

    /// Whether a newer generation is known already.
    pub fn is_stale(&self) -> bool {
        matches!(self, Self::Stale { .. } | Self::Over { .. })
    }

    /// Whether a peer ended the generation for a reason of its own; the next roster will tell.
    pub fn is_aborted(&self) -> bool {
        matches!(self, Self::Left { .. })
    }
}
