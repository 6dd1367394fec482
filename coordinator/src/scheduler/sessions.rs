//! Workers that come, are heard and go: what becomes of the tasks in their hands.

use super::cohort;
use super::decide::{changed, log, lose};
use super::fact::Fact;
use super::input::{Command, Decision, HelloInfo};
use super::state::{State, TaskRecord, TaskStatus};
use retort_common::ids::{AttemptNumber, TaskId, WorkerId};
use std::collections::BTreeSet;

pub(super) fn hello(state: &State, now_ms: u64, worker: WorkerId, session: u64, info: HelloInfo) -> Decision {
    let mut decision = Decision { reason: format!("worker {worker} is there"), ..Decision::default() };
    if state.workers.get(&worker).is_some_and(|known| known.session >= session) {
        decision.reason = format!("worker {worker} has a newer session");
        return decision;
    }
    let HelloInfo { device, kernels, memory_bytes, fingerprint, version, threads, address, in_hand } = info;
    let at_ms = now_ms;
    decision.facts.push(Fact::WorkerUp {
        worker: worker.clone(),
        session,
        device,
        kernels,
        memory_bytes,
        fingerprint,
        version,
        threads,
        address,
        at_ms,
    });
    let in_hand: BTreeSet<_> = in_hand.into_iter().collect();
    for (task, attempt) in &in_hand {
        let record = state.tasks.get(task).filter(|record| record.has_member(&worker));
        match record.map(|record| (record, &record.status)) {
            Some((record, TaskStatus::Running { attempt: current, job, cohort, .. }))
                if attempt == current || (!cohort.is_empty() && attempt < current) =>
            {
                decision.facts.push(Fact::Reclaimed { task: *task });
                // It missed that its cohort has another generation now.
                if attempt != current {
                    decision.commands.push(cohort::run(record, *task, *current, &worker, job, cohort));
                }
            }
            _ => {
                let (worker, task, attempt) = (worker.clone(), *task, *attempt);
                decision.facts.push(Fact::Stale { worker: worker.clone(), task, attempt });
                decision.commands.push(Command::Stop { worker, task, attempt, force: true });
            }
        }
    }
    // What it was given and does not have never reached it, or died with its former process.
    for (task, attempt) in state.running.get(&worker).into_iter().flatten() {
        let Some(record) = state.tasks.get(task) else { continue };
        if record.live.standby.contains_key(&worker) {
            let (task, worker) = (*task, worker.clone());
            decision.facts.push(Fact::StoodDown { task, worker, declined: false });
        } else if !in_hand.iter().any(|(known, _)| known == task) {
            without(state, now_ms, (*task, *attempt), record, &worker, &mut decision);
        }
    }
    decision
}

/// A member has lost its part of a task. The others go on without it.
fn without(
    state: &State,
    now_ms: u64,
    (task, attempt): (TaskId, AttemptNumber),
    record: &TaskRecord,
    worker: &WorkerId,
    decision: &mut Decision,
) {
    let rest: Vec<_> = record.members().filter(|member| *member != worker).cloned().collect();
    if rest.is_empty() {
        lose(state, now_ms, task, attempt, "its worker came back without it", decision);
    } else {
        let why = format!("{worker} came back without its part");
        cohort::regroup(state, now_ms, task, &rest, &why, decision);
    }
}

pub(super) fn gone(state: &State, now_ms: u64, worker: &WorkerId, session: u64) -> Decision {
    let mut decision = Decision::default();
    if current_session(state, worker, session) {
        decision.reason = format!("the session of worker {worker} ended");
        worker_down(state, now_ms, worker, &mut decision);
    }
    decision
}

pub(super) fn worker_down(state: &State, now_ms: u64, worker: &WorkerId, decision: &mut Decision) {
    decision.facts.push(Fact::WorkerDown { worker: worker.clone(), at_ms: now_ms });
    let until_ms = now_ms + state.failure_detection_ms;
    for (task, _) in state.running.get(worker).into_iter().flatten() {
        let Some(record) = state.tasks.get(task) else { continue };
        if record.live.standby.contains_key(worker) {
            let (task, worker) = (*task, worker.clone());
            decision.facts.push(Fact::StoodDown { task, worker, declined: false });
            continue;
        }
        // A cohort goes on without it at once, unless it is being put together again after a restart.
        let others = record
            .members()
            .any(|member| member != worker && state.workers.get(member).is_some_and(|known| known.connected));
        if !others {
            decision.facts.push(Fact::Expiring { task: *task, until_ms });
        }
        log(decision, record, None, "WARN", format!("lost the session of worker {worker}"));
        changed(decision, record);
    }
}

pub(super) fn current_session(state: &State, worker: &WorkerId, session: u64) -> bool {
    state.workers.get(worker).is_some_and(|record| record.connected && record.session == session)
}

/// Every message of a worker shows that it lives; nothing follows from one of an old session.
pub(super) fn heard(state: &State, now_ms: u64, worker: &WorkerId, session: u64) -> Decision {
    let mut decision = Decision::default();
    if current_session(state, worker, session) {
        decision.facts.push(Fact::Heard { worker: worker.clone(), at_ms: now_ms });
    }
    decision
}
