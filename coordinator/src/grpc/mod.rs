//! gRPC adapters: decode, send an input, encode. Generated types end here.
//!
//! - [`jobs`]: what clients ask; [`session`]: workers
//! - `lineages`: from which states trainings go on
//! - `checkpoints`: what lies in the store beside the artifacts of trainings; `metrics`: their steps
//! - [`status`]: refusals as gRPC statuses, in one place

mod checkpoints;
pub mod jobs;
mod lineages;
mod metrics;
pub mod session;

use crate::driver::Stopped;
use crate::scheduler::Refusal;
use retort_common::ids::JobId;
use retort_common::store::StoreError;
use tonic::Status;

/// Why a call was refused.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// By the scheduler.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Because the store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Because the process ends.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// A field that does not parse.
    #[error("{field}: {cause}")]
    Invalid {
        /// Which.
        field: &'static str,
        /// What is wrong.
        cause: String,
    },
    /// No such checkpoint.
    #[error(
        "no checkpoint of step {step} in lineage {lineage:?} of job {job}; `retort checkpoint list` shows them"
    )]
    NoCheckpoint {
        /// Whose.
        job: JobId,
        /// As given.
        lineage: String,
        /// As given.
        step: u64,
    },
    /// A checkpoint that is still needed.
    #[error(
        "the checkpoint of step {step} is the newest of a training that is not done, which goes on from it; cancel the \
         job or wait for a newer one"
    )]
    NeededCheckpoint {
        /// As given.
        step: u64,
    },
    /// A state that no training can go on from.
    #[error("{0}")]
    NoBranch(String),
    /// A worker of another protocol.
    #[error(
        "worker speaks session protocol {theirs}, coordinator {ours}; use the same version of retort on both"
    )]
    Protocol {
        /// The worker's.
        theirs: u32,
        /// The coordinator's.
        ours: u32,
    },
    /// A session that did not begin with Hello.
    #[error("a session begins with Hello within the failure detection time")]
    NoHello,
}

impl CallError {
    /// A field that does not parse.
    pub fn invalid(field: &'static str, cause: impl std::fmt::Display) -> Self {
        Self::Invalid { field, cause: cause.to_string() }
    }
}

/// The one mapping of refusals to statuses.
pub fn status(error: impl Into<CallError>) -> Status {
    let error = error.into();
    let text = error.to_string();
    match error {
        CallError::Refused(refusal) => match refusal {
            Refusal::RequestReused { .. } | Refusal::JobExists { .. } => Status::already_exists(text),
            Refusal::Ended { .. }
            | Refusal::NotPaused { .. }
            | Refusal::Respecified { .. }
            | Refusal::NoBranch { .. } => Status::failed_precondition(text),
            Refusal::TooManyJobs { .. } => Status::resource_exhausted(text),
            Refusal::NotFound { .. } => Status::not_found(text),
            Refusal::Ambiguous { .. } => Status::invalid_argument(text),
        },
        CallError::Store(ref error) if !error.is_transient() => Status::internal(text),
        CallError::Stopped(_) | CallError::Store(_) => Status::unavailable(text),
        CallError::Invalid { .. } | CallError::NoHello => Status::invalid_argument(text),
        CallError::NoCheckpoint { .. } => Status::not_found(text),
        CallError::NeededCheckpoint { .. } | CallError::NoBranch(_) => Status::failed_precondition(text),
        CallError::Protocol { .. } => Status::failed_precondition(text),
    }
}
