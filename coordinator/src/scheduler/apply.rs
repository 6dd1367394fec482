//! Facts into the state. A fact that does not fit the state is ignored where a replay could meet it.

use super::cohort::count_bad_pair;
use super::fact::{Fact, Outcome};
use super::metrics;
use super::state::{JobEnd, JobRecord, Live, State, TaskRecord, TaskStatus, WorkerRecord};
use retort_common::checkpoint::Lineage;
use retort_common::ids::{AttemptNumber, JobId, TaskId, WorkerId};
use retort_common::task::{Stage, Task};
use std::collections::{BTreeMap, BTreeSet};

/// First pause before a failed task is tried again; doubles with each failure.
const FIRST_RETRY_PAUSE_MS: u64 = 200;

/// Applies one fact.
pub fn apply(state: &mut State, fact: &Fact) {
    match fact {
        Fact::Submitted { .. }
        | Fact::Pinned { .. }
        | Fact::Planned { .. }
        | Fact::Ended { .. }
        | Fact::Paused { .. }
        | Fact::Resumed { .. }
        | Fact::Respecified { .. }
        | Fact::Dropped { .. }
        | Fact::Decided { .. } => {
            apply_to_job(state, fact);
        }
        Fact::WorkerUp { .. }
        | Fact::WorkerDown { .. }
        | Fact::WorkerForgotten { .. }
        | Fact::Heard { .. }
        | Fact::Stale { .. }
        | Fact::StaleEnded { .. }
        | Fact::Quarantined { .. } => apply_to_worker(state, fact),
        Fact::Late { by_ms } => delay(state, *by_ms),
        Fact::Surveyed { job, wants_fingerprint } => {
            if let Some(job) = state.jobs.get_mut(job) {
                (job.replan, job.wants_fingerprint) = (false, *wants_fingerprint);
            }
        }
        Fact::Cached { .. }
        | Fact::Started { .. }
        | Fact::MemberFailed { .. }
        | Fact::Completed { .. }
        | Fact::Retried { .. }
        | Fact::Lost { .. }
        | Fact::TaskFailed { .. }
        | Fact::Branched { .. }
        | Fact::Withdrawn { .. } => apply_to_task(state, fact),
        Fact::Probing { task } => with_live(state, *task, |live| live.probing = true),
        Fact::Absent { task } => {
            with_live(state, *task, |live| live.probing = false);
            if state.tasks.get(task).is_some_and(|record| record.status == TaskStatus::Unprobed) {
                set_status(state, *task, TaskStatus::Pending);
            }
        }
        Fact::Expiring { task, until_ms } => with_live(state, *task, |live| live.until_ms = Some(*until_ms)),
        Fact::Reclaimed { task } => {
            let all = state.tasks.get(task).is_some_and(|record| {
                record.members().all(|member| state.workers.get(member).is_some_and(|known| known.connected))
            });
            if all {
                with_live(state, *task, |live| live.until_ms = None);
            }
        }
        Fact::GivenUp { task } => with_live(state, *task, |live| live.until_ms = None),
        Fact::StandingBy { .. } | Fact::Ready { .. } | Fact::StoodDown { .. } => {
            apply_to_standby(state, fact)
        }
        Fact::Measured { .. } | Fact::Cut { .. } | Fact::Suspected { .. } => apply_to_cohort(state, fact),
        Fact::Stepped { task, lineage, worker, steps, at_ms } => {
            metrics::keep(state, *task, lineage, worker, steps, *at_ms);
        }
        Fact::Progressed { task, done, total, detail } => with_live(state, *task, |live| {
            live.progress = (*done, *total);
            live.first_done.get_or_insert(*done);
            live.detail.clone_from(detail);
        }),
    }
}

fn apply_to_job(state: &mut State, fact: &Fact) {
    match fact {
        Fact::Submitted { job, request, spec, inputs, digest, submitted_unix_ms, at_ms } => {
            let order = state.jobs.len() as u64;
            let record = JobRecord {
                order,
                spec: (**spec).clone(),
                inputs: (**inputs).clone(),
                digest: *digest,
                submitted_unix_ms: *submitted_unix_ms,
                submitted_at_ms: *at_ms,
                paused: false,
                end: None,
                fingerprint: None,
                tasks: BTreeSet::new(),
                open: BTreeSet::new(),
                stage_started_ms: BTreeMap::new(),
                complete_plan: false,
                rows_planned: false,
                replan: true,
                wants_fingerprint: false,
                decided: BTreeSet::new(),
            };
            state.jobs.insert(job.clone(), record);
            state.live.insert(order, job.clone());
            state.requests.insert(request.clone(), job.clone());
            state.clock_ms = state.clock_ms.max(*at_ms);
        }
        Fact::Pinned { job, fingerprint } => {
            if let Some(job) = state.jobs.get_mut(job) {
                job.fingerprint = Some(fingerprint.clone());
                (job.replan, job.wants_fingerprint) = (true, false);
            }
        }
        Fact::Paused { job, at_ms } | Fact::Resumed { job, at_ms } => {
            if let Some(job) = state.jobs.get_mut(job) {
                job.paused = matches!(fact, Fact::Paused { .. });
            }
            state.clock_ms = state.clock_ms.max(*at_ms);
        }
        Fact::Planned { job, tasks, complete } => add_tasks(state, job, tasks, *complete),
        Fact::Respecified { job, spec } => {
            if let Some(job) = state.jobs.get_mut(job) {
                job.spec = (**spec).clone();
            }
        }
        Fact::Dropped { job, tasks } => drop_tasks(state, job, tasks),
        Fact::Decided { job, decisions } => {
            if let Some(job) = state.jobs.get_mut(job) {
                job.decided.extend(decisions.iter().cloned());
            }
        }
        Fact::Ended { job, outcome, reason, at_ms } => end_job(state, job, *outcome, reason, *at_ms),
        _ => {}
    }
}

fn add_tasks(state: &mut State, job: &JobId, tasks: &[Task], complete: bool) {
    let Some(record) = state.jobs.get_mut(job) else { return };
    (record.complete_plan, record.replan) = (complete, !complete);
    record.rows_planned |= tasks.iter().any(|task| task.stage() == Stage::Evaluate);
    let ids: Vec<_> = tasks.iter().map(Task::id).collect();
    for (id, task) in ids.iter().zip(tasks) {
        let known = state.tasks.entry(*id).or_insert_with(|| new_task(task));
        // The same task for another job may have its input files elsewhere, and a failure may have been mended.
        if matches!(known.status, TaskStatus::Failed { .. }) {
            known.status = TaskStatus::Unprobed;
            known.failures.clear();
            (known.losses, known.not_before_ms, known.live) = (0, 0, Live::default());
            state.metrics.remove(id);
        }
        if !matches!(known.status, TaskStatus::Running { .. }) {
            known.task = task.clone();
        }
        known.jobs.insert(job.clone());
        let done = known.is_done();
        if let Some(record) = state.jobs.get_mut(job) {
            record.tasks.insert(*id);
            if !done {
                record.open.insert(*id);
            }
        }
    }
    // Only now is every need of the new tasks known.
    for id in ids {
        let needs = state.tasks.get(&id).map(|record| record.needs.clone()).unwrap_or_default();
        let mut blocked = 0;
        for need in needs {
            let Some(record) = state.tasks.get_mut(&need) else {
                blocked += 1;
                continue;
            };
            record.dependents.insert(id);
            blocked += usize::from(!record.is_done());
        }
        if let Some(record) = state.tasks.get_mut(&id) {
            record.blocked = blocked;
        }
        state.reindex(id);
    }
}

fn new_task(task: &Task) -> TaskRecord {
    let mut needs: Vec<_> = task.needs().into_iter().map(|artifact| artifact.task).collect();
    needs.dedup();
    TaskRecord {
        task: task.clone(),
        stage: task.stage(),
        needs,
        dependents: BTreeSet::new(),
        blocked: 0,
        jobs: BTreeSet::new(),
        status: TaskStatus::Unprobed,
        attempts: 0,
        failures: Vec::new(),
        not_before_ms: 0,
        losses: 0,
        home: None,
        lineage: Lineage::FIRST,
        live: Live::default(),
    }
}

/// Tasks that a job does not want any more. What others want of them goes on.
fn drop_tasks(state: &mut State, job: &JobId, tasks: &[TaskId]) {
    for id in tasks {
        if let Some(record) = state.jobs.get_mut(job) {
            record.tasks.remove(id);
            record.open.remove(id);
            record.replan |= !record.complete_plan;
        }
        if let Some(task) = state.tasks.get_mut(id) {
            task.jobs.remove(job);
        }
        state.reindex(*id);
    }
}

fn end_job(state: &mut State, job: &JobId, outcome: Outcome, reason: &str, at_ms: u64) {
    let Some(record) = state.jobs.get_mut(job).filter(|record| record.end.is_none()) else { return };
    record.end = Some(JobEnd { outcome, reason: reason.to_owned(), at_ms });
    (record.replan, record.wants_fingerprint) = (false, false);
    state.live.remove(&record.order);
    for id in record.tasks.clone() {
        if let Some(task) = state.tasks.get_mut(&id) {
            task.jobs.remove(job);
        }
        state.reindex(id);
    }
    state.clock_ms = state.clock_ms.max(at_ms);
}

fn apply_to_task(state: &mut State, fact: &Fact) {
    match fact {
        Fact::Cached { task, meta, incarnation } => {
            let done = TaskStatus::Done {
                meta: meta.clone(),
                incarnation: *incarnation,
                elapsed_ms: 0,
                made_for: None,
                made_by: None,
            };
            set_status(state, *task, done);
        }
        Fact::Started { task, attempt, worker, job, cohort, at_ms } => {
            let Some(record) = state.tasks.get_mut(task) else { return };
            record.attempts = attempt.0;
            record.home.get_or_insert_with(|| job.clone());
            let (stage, live) = (record.stage, std::mem::take(&mut record.live));
            let (worker, cohort) = (worker.clone(), cohort.clone());
            let running = TaskStatus::Running { attempt: *attempt, worker, job: job.clone(), cohort };
            set_status(state, *task, running);
            next_generation(state, *task, live, *at_ms);
            if let Some(job) = state.jobs.get_mut(job) {
                job.stage_started_ms.entry(stage).or_insert(*at_ms);
            }
            state.clock_ms = state.clock_ms.max(*at_ms);
        }
        Fact::MemberFailed { task, worker, message, .. } => {
            if let Some(record) = state.tasks.get_mut(task) {
                record.failures.push((worker.clone(), message.clone()));
            }
        }
        Fact::Completed { task, worker: by, meta, elapsed_ms, found, at_ms, .. } => {
            let Some(TaskStatus::Running { worker, job, .. }) =
                state.tasks.get(task).map(|record| &record.status)
            else {
                return;
            };
            let (worker, job) = (by.as_ref().unwrap_or(worker).clone(), job.clone());
            if let Some(worker) = state.workers.get_mut(&worker) {
                worker.tasks_done += 1;
            }
            let done = TaskStatus::Done {
                meta: meta.clone(),
                incarnation: 1,
                elapsed_ms: *elapsed_ms,
                made_for: (!found).then_some(job),
                made_by: Some(worker),
            };
            set_status(state, *task, done);
            state.clock_ms = state.clock_ms.max(*at_ms);
        }
        Fact::Retried { task, worker, message, at_ms, .. } => {
            if let Some(record) = state.tasks.get_mut(task) {
                record.not_before_ms = at_ms + (FIRST_RETRY_PAUSE_MS << record.failures.len().min(6));
                record.failures.push((worker.clone(), message.clone()));
            }
            set_status(state, *task, TaskStatus::Pending);
        }
        // The worker may have written the manifest before it was lost, so that it is looked for again.
        Fact::Lost { task, .. } => {
            if let Some(record) = state.tasks.get_mut(task) {
                record.losses += 1;
            }
            set_status(state, *task, TaskStatus::Unprobed);
        }
        Fact::Withdrawn { task, .. } => set_status(state, *task, TaskStatus::Unprobed),
        Fact::Branched { task, lineage } => {
            if let Some(record) = state.tasks.get_mut(task) {
                record.lineage = *lineage;
            }
        }
        Fact::TaskFailed { task, message, .. } => {
            set_status(state, *task, TaskStatus::Failed { message: message.clone() });
        }
        _ => {}
    }
}

/// The one place where a task's status changes, so that everything derived from it stays true.
fn set_status(state: &mut State, id: TaskId, status: TaskStatus) {
    let Some(record) = state.tasks.get_mut(&id) else { return };
    if record.is_done() {
        return;
    }
    let members = |record: &TaskRecord| record.members().cloned().collect::<Vec<_>>();
    let before = match &record.status {
        TaskStatus::Running { attempt, .. } => Some((*attempt, members(record))),
        _ => None,
    };
    let standby = std::mem::take(&mut record.live.standby);
    record.status = status;
    record.live = Live::default();
    let after = match &record.status {
        TaskStatus::Running { attempt, .. } => Some((*attempt, members(record))),
        _ => None,
    };
    let done = record.is_done();
    for (worker, attempt) in
        before.iter().flat_map(|(attempt, workers)| workers.iter().map(|worker| (worker, *attempt)))
    {
        leave(state, worker, (id, attempt));
    }
    for (worker, (attempt, _)) in &standby {
        leave(state, worker, (id, *attempt));
    }
    if let Some((attempt, workers)) = &after {
        for worker in workers {
            state.running.entry(worker.clone()).or_default().insert((id, *attempt));
        }
    }
    let Some(record) = state.tasks.get_mut(&id) else { return };
    if done {
        let dependents = record.dependents.clone();
        let (jobs, stage) = (record.jobs.clone(), record.stage);
        for dependent in dependents {
            if let Some(record) = state.tasks.get_mut(&dependent) {
                record.blocked = record.blocked.saturating_sub(1);
            }
            state.reindex(dependent);
        }
        for job in jobs {
            let Some(job) = state.jobs.get_mut(&job) else { continue };
            job.open.remove(&id);
            // A plan is costly, so it is made again only after a task whose meta it waits for.
            let tells = match stage {
                Stage::Shard => true,
                Stage::Embed => !job.rows_planned,
                Stage::Evaluate => job.spec.decides(),
                _ => false,
            } || job.open.is_empty();
            job.replan |= tells && job.end.is_none() && !job.complete_plan;
        }
    }
    state.reindex(id);
}

fn leave(state: &mut State, worker: &WorkerId, attempt: (TaskId, AttemptNumber)) {
    if let Some(set) = state.running.get_mut(worker) {
        set.remove(&attempt);
        if set.is_empty() {
            state.running.remove(worker);
        }
    }
}

/// What a cohort's next generation keeps of the one before.
fn next_generation(state: &mut State, id: TaskId, before: Live, at_ms: u64) {
    let Some(record) = state.tasks.get_mut(&id) else { return };
    let members: BTreeSet<_> = record.members().cloned().collect();
    let Live { standby, declined, costs, progress, detail, .. } = before;
    let (joined, standby): (BTreeMap<_, _>, BTreeMap<_, _>) =
        standby.into_iter().partition(|(worker, _)| members.contains(worker));
    record.live = Live { standby: standby.clone(), declined, costs, since_ms: at_ms, ..Live::default() };
    if record.cohort().is_some() {
        (record.live.progress, record.live.detail) = (progress, detail);
    }
    for (worker, (attempt, _)) in joined {
        leave(state, &worker, (id, attempt));
    }
    for (worker, (attempt, _)) in standby {
        state.running.entry(worker).or_default().insert((id, attempt));
    }
    let Some(record) = state.tasks.get(&id) else { return };
    if let TaskStatus::Running { attempt, .. } = record.status {
        for worker in members {
            state.running.entry(worker).or_default().insert((id, attempt));
        }
    }
    state.reindex(id);
}

fn apply_to_standby(state: &mut State, fact: &Fact) {
    match fact {
        Fact::StandingBy { task, attempt, worker } => {
            let Some(record) = state.tasks.get_mut(task) else { return };
            record.live.standby.insert(worker.clone(), (*attempt, false));
            state.running.entry(worker.clone()).or_default().insert((*task, *attempt));
        }
        Fact::Ready { task, worker } => {
            let standby = state.tasks.get_mut(task).and_then(|record| record.live.standby.get_mut(worker));
            if let Some((_, ready)) = standby {
                *ready = true;
            }
        }
        Fact::StoodDown { task, worker, declined } => {
            let Some(record) = state.tasks.get_mut(task) else { return };
            if *declined {
                record.live.declined.insert(worker.clone());
            }
            if let Some((attempt, _)) = record.live.standby.remove(worker) {
                leave(state, worker, (*task, attempt));
            }
        }
        _ => {}
    }
}

fn apply_to_cohort(state: &mut State, fact: &Fact) {
    match fact {
        Fact::Measured { task, worker, done, microbatch_us, waiting, at_ms } => {
            let Some(record) = state.tasks.get_mut(task) else { return };
            if *microbatch_us > 0 {
                record.live.costs.insert(worker.clone(), *microbatch_us);
            }
            let since_ms = record.live.since_ms;
            let (before, moved_ms, waits) =
                record.live.moved.entry(worker.clone()).or_insert((*done, since_ms, *waiting));
            if *done > *before {
                *moved_ms = *at_ms;
            }
            (*before, *waits) = (*done, *waiting);
        }
        Fact::Cut { task, worker, peers, at_ms } => {
            let State { tasks, bad_pairs, .. } = state;
            let Some(record) = tasks.get_mut(task) else { return };
            record.live.cut_ms = record.live.cut_ms.or(Some(*at_ms));
            for peer in peers {
                // An edge has two ends and counts once in a generation.
                if !record.live.edges.contains(&(peer.clone(), worker.clone()))
                    && record.live.edges.insert((worker.clone(), peer.clone()))
                {
                    count_bad_pair(bad_pairs, (worker, peer), *at_ms);
                }
            }
        }
        Fact::Suspected { task, worker, peers } => {
            let Some(record) = state.tasks.get_mut(task) else { return };
            record.live.suspects.extend(peers.iter().map(|peer| (peer.clone(), worker.clone())));
        }
        _ => {}
    }
}

fn with_live(state: &mut State, id: TaskId, change: impl FnOnce(&mut Live)) {
    if let Some(record) = state.tasks.get_mut(&id) {
        change(&mut record.live);
    }
    state.reindex(id);
}

fn apply_to_worker(state: &mut State, fact: &Fact) {
    match fact {
        Fact::WorkerUp {
            worker,
            session,
            device,
            kernels,
            memory_bytes,
            fingerprint,
            version,
            threads,
            address,
            at_ms,
        } => {
            let known = state.workers.get(worker);
            let tasks_done = known.map_or(0, |known| known.tasks_done);
            let quarantined = known.and_then(|known| known.quarantined.clone());
            let record = WorkerRecord {
                connected: true,
                session: *session,
                device: device.clone(),
                kernels: kernels.clone(),
                memory_bytes: *memory_bytes,
                fingerprint: fingerprint.clone(),
                version: version.clone(),
                threads: *threads,
                heard_ms: *at_ms,
                tasks_done,
                stale: BTreeSet::new(),
                address: address.clone(),
                quarantined,
            };
            state.workers.insert(worker.clone(), record);
        }
        Fact::WorkerDown { worker, .. } => {
            with_worker(state, worker, |record| {
                record.connected = false;
                record.stale.clear();
            });
            // That its peers could not reach it either says nothing of the ways between them.
            state.bad_pairs.retain(|(a, b), _| a != worker && b != worker);
        }
        Fact::WorkerForgotten { worker } => {
            state.workers.remove(worker);
        }
        Fact::Heard { worker, at_ms } => with_worker(state, worker, |record| record.heard_ms = *at_ms),
        Fact::Stale { worker, task, attempt } => with_worker(state, worker, |record| {
            record.stale.insert((*task, *attempt));
        }),
        Fact::Quarantined { worker, message } => {
            with_worker(state, worker, |record| record.quarantined = Some(message.clone()));
            metrics::forget_worker(state, worker);
        }
        Fact::StaleEnded { worker, task, attempt } => with_worker(state, worker, |record| {
            record.stale.remove(&(*task, *attempt));
        }),
        _ => {}
    }
}

fn with_worker(state: &mut State, id: &WorkerId, change: impl FnOnce(&mut WorkerRecord)) {
    if let Some(record) = state.workers.get_mut(id) {
        change(record);
    }
}

/// While the driver was away nobody could be heard.
fn delay(state: &mut State, by_ms: u64) {
    for worker in state.workers.values_mut().filter(|worker| worker.connected) {
        worker.heard_ms += by_ms;
    }
    // Each once, however many members it has.
    let running: BTreeSet<TaskId> = state.running.values().flatten().map(|(id, _)| *id).collect();
    for id in running {
        let Some(live) = state.tasks.get_mut(&id).map(|task| &mut task.live) else { continue };
        for deadline in [&mut live.until_ms, &mut live.cut_ms].into_iter().flatten() {
            *deadline += by_ms;
        }
        live.since_ms += by_ms;
        live.moved.values_mut().for_each(|(_, at_ms, _)| *at_ms += by_ms);
    }
}
