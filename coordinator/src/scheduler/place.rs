//! Which ready task goes to which idle worker.

use super::state::{State, TaskRecord, TaskStatus, WorkerRecord};
use retort_common::ids::{JobId, TaskId, WorkerId};
use std::collections::BTreeSet;

/// A task for a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The task.
    pub task: TaskId,
    /// Who runs it.
    pub worker: WorkerId,
    /// On whose behalf.
    pub job: JobId,
}

/// Whether a worker is connected and has the kernels that a task is bound to.
pub fn is_eligible(worker: &WorkerRecord, task: &TaskRecord) -> bool {
    let bound = task.task.fingerprint();
    worker.connected && bound.is_none_or(|bound| bound == worker.fingerprint && worker.quarantined.is_none())
}

/// Workers with nothing to do, not even to end something.
pub fn idle(state: &State) -> impl Iterator<Item = (&WorkerId, &WorkerRecord)> {
    state
        .workers
        .iter()
        .filter(|(id, worker)| worker.connected && worker.stale.is_empty() && !state.running.contains_key(id))
}

/// Ready tasks whose time has come.
pub fn due(state: &State, now_ms: u64) -> impl Iterator<Item = TaskId> {
    state.ready.iter().copied().filter(move |id| key(state, *id, now_ms).is_some())
}

/// Tasks for all idle workers: the oldest job's first, in the order of stages.
pub fn place(state: &State, now_ms: u64) -> Vec<Placement> {
    let mut idle: BTreeSet<&WorkerId> = idle(state).map(|(id, _)| id).collect();
    if idle.is_empty() {
        return Vec::new();
    }
    let mut queue: Vec<_> = state.ready.iter().filter_map(|id| key(state, *id, now_ms)).collect();
    queue.sort();
    let mut placements = Vec::new();
    for (_, _, task) in queue {
        if idle.is_empty() {
            break;
        }
        let Some(record) = state.tasks.get(&task) else { continue };
        let Some(job) = oldest_job(state, record).map(|(_, job)| job.clone()) else { continue };
        if let Some(worker) = choose(state, record, &idle) {
            idle.remove(worker);
            placements.push(Placement { task, worker: worker.clone(), job });
        }
    }
    placements
}

fn key(state: &State, id: TaskId, now_ms: u64) -> Option<(u64, retort_common::task::Stage, TaskId)> {
    let record = state.tasks.get(&id).filter(|record| record.not_before_ms <= now_ms)?;
    Some((oldest_job(state, record)?.0, record.stage, id))
}

pub(super) fn oldest_job<'a>(state: &State, record: &'a TaskRecord) -> Option<(u64, &'a JobId)> {
    let at_work = |job: &JobId| state.jobs.get(job).filter(|record| !record.paused);
    record.jobs.iter().filter_map(|job| Some((at_work(job)?.order, job))).min()
}

/// An idle worker for a task: one that has not failed it, if any such is connected at all; then the one that
/// made most of its inputs and so has them in its cache; then the first by id.
fn choose<'a>(state: &State, record: &TaskRecord, idle: &BTreeSet<&'a WorkerId>) -> Option<&'a WorkerId> {
    let failed = |id: &WorkerId| record.failures.iter().any(|(worker, _)| worker == id);
    let eligible = |id: &WorkerId| state.workers.get(id).is_some_and(|worker| is_eligible(worker, record));
    let fresh_exists = state.workers.keys().any(|id| eligible(id) && !failed(id));
    let makers: Vec<&WorkerId> = record.needs.iter().filter_map(|need| maker(state, need)).collect();
    let mut best: Option<(usize, &WorkerId)> = None;
    for id in idle.iter().copied().filter(|id| eligible(id) && !(fresh_exists && failed(id))) {
        let warm = makers.iter().filter(|maker| **maker == id).count();
        if best.is_none_or(|(most, _)| warm > most) {
            best = Some((warm, id));
        }
    }
    best.map(|(_, id)| id)
}

fn maker<'a>(state: &'a State, need: &TaskId) -> Option<&'a WorkerId> {
    match &state.tasks.get(need)?.status {
        TaskStatus::Done { made_by, .. } => made_by.as_ref(),
        _ => None,
    }
}
