//! Exit codes, and the one place where an error gets its own.

use retort_common::client::ClientError;
use retort_common::net::NetError;
use retort_common::spec::SpecError;
use retort_common::view::JobState;
use std::io;
use std::process::ExitCode;

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Ok,
    Error,
    Usage,
    Unreachable,
    Denied,
    JobFailed,
    JobNotFinished,
    JobNotFound,
    JobCancelled,
    TimedOut,
    Interrupted,
}

impl Exit {
    /// The number; scripts depend on it.
    pub fn code(self) -> u8 {
        match self {
            Exit::Ok => 0,
            Exit::Error => 1,
            Exit::Usage => 2,
            Exit::Unreachable => 3,
            Exit::Denied => 4,
            Exit::JobFailed => 100,
            Exit::JobNotFinished => 101,
            Exit::JobNotFound => 102,
            Exit::JobCancelled => 103,
            Exit::TimedOut => 124,
            Exit::Interrupted => 130,
        }
    }

    /// What a job's state says to a script that waited for it.
    pub fn of_job(state: JobState) -> Self {
        match state {
            JobState::Succeeded => Exit::Ok,
            JobState::Failed => Exit::JobFailed,
            JobState::Cancelled => Exit::JobCancelled,
            JobState::Pending | JobState::Running | JobState::Paused => Exit::JobNotFinished,
        }
    }

    /// What an error says to a script.
    pub fn of_error(error: &anyhow::Error) -> Self {
        for cause in error.chain() {
            if let Some(error) = cause.downcast_ref::<ClientError>() {
                return Self::of_client(error);
            }
            // Whoever read our output has seen enough.
            if cause
                .downcast_ref::<io::Error>()
                .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
            {
                return Exit::Ok;
            }
            if cause.is::<SpecError>() || cause.is::<UsageError>() {
                return Exit::Usage;
            }
        }
        Exit::Error
    }

    fn of_client(error: &ClientError) -> Self {
        match error {
            ClientError::Unreachable(_) => Exit::Unreachable,
            ClientError::Denied(_) => Exit::Denied,
            ClientError::NotFound(_) => Exit::JobNotFound,
            ClientError::NoAddress => Exit::Usage,
            ClientError::Net(NetError::Address { .. } | NetError::NoTls { .. }) => Exit::Usage,
            ClientError::Net(_)
            | ClientError::Refused(_)
            | ClientError::Internal(_)
            | ClientError::Answer(_) => Exit::Error,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.code())
    }
}

/// Something wrong with how the command was called that clap cannot see.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_the_codes_that_scripts_expect() {
        let of = |error: anyhow::Error| Exit::of_error(&error.context("while asking")).code();
        assert_eq!(of(ClientError::Unreachable("x".into()).into()), 3);
        assert_eq!(of(ClientError::Denied("x".into()).into()), 4);
        assert_eq!(of(ClientError::NotFound("x".into()).into()), 102);
        assert_eq!(of(ClientError::Refused("x".into()).into()), 1);
        assert_eq!(of(UsageError("x".into()).into()), 2);
        assert_eq!(of(anyhow::anyhow!("x")), 1);
        assert_eq!(of(io::Error::from(io::ErrorKind::BrokenPipe).into()), 0);
    }
}
