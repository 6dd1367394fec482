//! What goes over the session, from and to plain types.

use super::{Assignment, MAX_META_BYTES, Outcome, TaskFailure};
use retort_common::checkpoint::{Lineage, Origin, Place};
use retort_common::cohort::{self, Member};
use retort_common::ids::{AttemptNumber, JobId, TaskId};
use retort_common::proto;
use retort_common::proto::session_request::Message as ToCoordinator;
use retort_common::task::Task;
use std::any::Any;
use std::time::Duration;

/// A task and one try of it.
pub(super) type Key = (TaskId, AttemptNumber);

pub(super) fn attempt(id: TaskId, number: AttemptNumber) -> proto::Attempt {
    proto::Attempt { task: id.to_string(), attempt: number.0 }
}

pub(super) fn key(attempt: proto::Attempt) -> Option<Key> {
    let proto::Attempt { task, attempt } = attempt;
    Some((TaskId(task.parse().ok()?), AttemptNumber(attempt)))
}

pub(super) fn decode(run: proto::Run, (id, attempt): Key, store_url: &str) -> Result<Assignment, String> {
    let proto::Run { attempt: _, job_id, stage: _, task_json, incarnation, cohort, checkpoints } = run;
    let job: JobId = job_id.parse().map_err(|error| format!("{error}"))?;
    let task: Task = serde_json::from_str(&task_json).map_err(|error| error.to_string())?;
    // Another version of the task's form would give its output a wrong name.
    if task.id() != id {
        return Err("the task's digest is another; use the same version of retort everywhere".to_owned());
    }
    let cohort = cohort.into_iter().map(member).collect::<Result<Vec<_>, _>>()?;
    match cohort::units(&task) {
        Some(units) if !cohort.is_empty() => {
            cohort::check(&cohort, units.microbatches).map_err(|error| error.to_string())?;
        }
        None if !cohort.is_empty() => return Err("it is no task for a cohort".to_owned()),
        _ => {}
    }
    let checkpoints = match checkpoints {
        Some(checkpoints) => place(checkpoints)?,
        None => Place { job: job.clone(), lineage: Lineage::FIRST },
    };
    let (stage, store_url) = (task.stage(), store_url.to_owned());
    Ok(Assignment { id, attempt, job, stage, task, incarnation, store_url, cohort, checkpoints })
}

fn place(place: proto::CheckpointPlace) -> Result<Place, String> {
    let proto::CheckpointPlace { job_id, lineage: number, origin_lineage, origin_step: step } = place;
    let job = job_id.parse().map_err(|error| format!("{error}"))?;
    if number == 0 || origin_lineage >= number {
        return Err(format!("lineage {number} cannot branch off from lineage {origin_lineage}"));
    }
    let origin = (origin_lineage > 0).then_some(Origin { number: origin_lineage, step });
    Ok(Place { job, lineage: Lineage { number, origin } })
}

fn member(member: proto::CohortMember) -> Result<Member, String> {
    let proto::CohortMember { worker_id, address, first_microbatch, microbatches } = member;
    let worker = worker_id.parse().map_err(|error| format!("{error}"))?;
    let end = first_microbatch.checked_add(microbatches).ok_or("too many microbatches")?;
    Ok(Member { worker, address, microbatches: first_microbatch..end })
}

/// A result under a later attempt's number: the work is the same.
pub(super) fn renumbered(result: ToCoordinator, (id, number): Key) -> ToCoordinator {
    let attempt = Some(attempt(id, number));
    match result {
        ToCoordinator::Finished(finished) => ToCoordinator::Finished(proto::Finished { attempt, ..finished }),
        ToCoordinator::Failed(failed) => ToCoordinator::Failed(proto::Failed { attempt, ..failed }),
        other => other,
    }
}

pub(super) fn failure(message: String, retryable: bool) -> TaskFailure {
    TaskFailure { message, retryable }
}

pub(super) fn panicked(panic: &(dyn Any + Send)) -> TaskFailure {
    let text =
        panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    // A panic may be of this machine alone, so another may try.
    failure(format!("panicked: {}", text.unwrap_or("without a message")), true)
}

pub(super) fn result(key: Key, outcome: Result<Outcome, TaskFailure>, elapsed: Duration) -> ToCoordinator {
    let Outcome { meta, found } = match outcome {
        Ok(outcome) => outcome,
        Err(failure) => return failed(key, failure, elapsed),
    };
    let meta_json = meta.to_string();
    if meta_json.len() > MAX_META_BYTES {
        let message =
            format!("the artifact's meta has {} bytes, more than {MAX_META_BYTES}", meta_json.len());
        return failed(key, failure(message, false), elapsed);
    }
    let (attempt, elapsed_ms) = (Some(attempt(key.0, key.1)), elapsed.as_millis() as u64);
    ToCoordinator::Finished(proto::Finished { attempt, meta_json, elapsed_ms, found })
}

pub(super) fn failed(key: Key, failure: TaskFailure, elapsed: Duration) -> ToCoordinator {
    let TaskFailure { message, retryable } = failure;
    let (attempt, elapsed_ms) = (Some(attempt(key.0, key.1)), elapsed.as_millis() as u64);
    ToCoordinator::Failed(proto::Failed { attempt, message, retryable, elapsed_ms })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::catch_unwind;

    #[test]
    fn panics_are_failures_with_their_text() {
        let panic = catch_unwind(|| panic!("row {} is torn", 7)).unwrap_err();
        assert!(panicked(&*panic).message.contains("row 7 is torn"));
    }
}
