//! Generations of cohorts: who joins, who leaves, and who computes what.
//!
//! A training begins on one worker. Workers with nothing else to do *stand by*: they open its inputs while the others
//! train on, say that they are ready, and the next generation has them as members. Every other change of membership
//! names a generation, too: a member that is lost, cut off, stalled, in quarantine, or lent to other work.

use super::deal;
use super::decide::{self, changed, log, stop};
use super::fact::Fact;
use super::input::{Command, Decision};
use super::place;
use super::state::{State, TaskRecord, TaskStatus};
use retort_common::cohort::Member;
use retort_common::ids::{AttemptNumber, TaskId, WorkerId};
use std::collections::{BTreeMap, BTreeSet};

/// How long two workers that could not reach each other are remembered.
const BAD_PAIR_MS: u64 = 60_000;
/// Failures in that time after which they are kept apart; before, the same generation is tried again.
const BAD_PAIR_LIMIT: u32 = 2;
/// Least age of a generation before its deal is looked at again.
const REDEAL_PAUSE_MS: u64 = 5_000;
/// A new deal is made where a step would take at most this share of the time, in percent.
const REDEAL_GAIN_PERCENT: u64 = 75;

/// The members of a training's first generation: its worker alone. Nobody for a task that is not for a cohort.
pub(super) fn first(state: &State, record: &TaskRecord, worker: &WorkerId) -> Vec<Member> {
    record.cohort_limit().map_or_else(Vec::new, |_| dealt(state, record, std::slice::from_ref(worker)))
}

/// Has a worker run a task, or join its cohort, or stand by where the cohort is empty.
pub(super) fn run(
    record: &TaskRecord,
    id: TaskId,
    attempt: AttemptNumber,
    worker: &WorkerId,
    job: &retort_common::ids::JobId,
    cohort: &[Member],
) -> Command {
    Command::Run {
        worker: worker.clone(),
        attempt,
        job: job.clone(),
        task: Box::new(record.task.clone()),
        id,
        stage: record.stage,
        incarnation: super::INCARNATION,
        cohort: cohort.to_vec(),
        checkpoints: record.cohort_limit().map(|_| record.place(job)),
    }
}

/// Workers with their microbatches, by their speed; those that would only hold up the others are left out.
fn dealt(state: &State, record: &TaskRecord, workers: &[WorkerId]) -> Vec<Member> {
    let costs: Vec<_> = workers.iter().map(|worker| record.live.costs.get(worker).copied()).collect();
    let units = record.units();
    let shares = deal::shares(units.count(), &costs);
    let mut next = 0;
    let mut members = Vec::new();
    for (worker, share) in workers.iter().zip(shares).filter(|(_, share)| *share > 0) {
        let address = state.workers.get(worker).map(|known| known.address.clone()).unwrap_or_default();
        let microbatches = units.microbatches(next..next + share);
        members.push(Member { worker: worker.clone(), address, microbatches });
        next += share;
    }
    members
}

/// Names a task's next generation, with these workers at most.
pub(super) fn regroup(
    state: &State,
    now_ms: u64,
    id: TaskId,
    workers: &[WorkerId],
    why: &str,
    decision: &mut Decision,
) {
    let Some(record) = state.tasks.get(&id) else { return };
    let TaskStatus::Running { attempt, job, cohort, .. } = &record.status else { return };
    let members = dealt(state, record, workers);
    let Some(lead) = members.first().map(|member| member.worker.clone()) else { return };
    let next = AttemptNumber(record.attempts + 1);
    for old in cohort.iter().filter(|old| members.iter().all(|member| member.worker != old.worker)) {
        stop(state, &old.worker, id, *attempt, true, decision);
    }
    for member in &members {
        decision.commands.push(run(record, id, next, &member.worker, job, &members));
    }
    let names: Vec<_> = members.iter().map(|member| format!("{}", member.worker)).collect();
    let message = format!("generation {} with {}: {why}", next.0, names.join(", "));
    log(decision, record, None, "INFO", message);
    changed(decision, record);
    decision.reason = format!("{} {id:?}: {why}", record.stage);
    let (job, cohort) = (job.clone(), members);
    decision.facts.push(Fact::Started { task: id, attempt: next, worker: lead, job, cohort, at_ms: now_ms });
}

/// What follows for cohorts from the state alone.
pub(super) fn advance(state: &State, now_ms: u64, decision: &mut Decision) {
    let running: BTreeSet<TaskId> = state.running.values().flatten().map(|(id, _)| *id).collect();
    for id in &running {
        mend(state, now_ms, *id, decision);
    }
    if decision.facts.is_empty() {
        offer(state, now_ms, &running, decision);
    }
    if decision.facts.is_empty() {
        lend(state, now_ms, &running, decision);
    }
}

fn is_sound(state: &State, worker: &WorkerId) -> bool {
    state.workers.get(worker).is_some_and(|known| known.connected && known.quarantined.is_none())
}

/// Drops members that are gone and takes in those that are ready.
fn mend(state: &State, now_ms: u64, id: TaskId, decision: &mut Decision) {
    let Some(record) = state.tasks.get(&id) else { return };
    let Some((_, cohort)) = record.cohort() else { return };
    // After a restart of the coordinator, members that are missing have time to come back.
    if record.live.until_ms.is_some() {
        return;
    }
    let (sound, gone): (Vec<_>, Vec<_>) =
        cohort.iter().map(|member| member.worker.clone()).partition(|worker| is_sound(state, worker));
    if sound.is_empty() {
        let until_ms = now_ms + state.failure_detection_ms;
        decision.facts.push(Fact::Expiring { task: id, until_ms });
        return;
    }
    let ready = record.live.standby.iter().filter(|(_, (_, ready))| *ready).map(|(worker, _)| worker);
    let ready: Vec<_> = ready.filter(|worker| is_sound(state, worker)).cloned().collect();
    let all: Vec<_> = sound.iter().chain(&ready).cloned().collect();
    if gone.is_empty() && ready.is_empty() {
        return;
    }
    let members = dealt(state, record, &all);
    for worker in ready.iter().filter(|worker| members.iter().all(|member| member.worker != **worker)) {
        stand_down(state, id, worker, true, decision);
    }
    let names = |workers: &[WorkerId]| workers.iter().map(WorkerId::as_str).collect::<Vec<_>>().join(", ");
    if !gone.is_empty() {
        regroup(state, now_ms, id, &all, &format!("{} left", names(&gone)), decision);
    } else if members.iter().any(|member| ready.contains(&member.worker)) {
        regroup(state, now_ms, id, &all, &format!("{} joined", names(&ready)), decision);
    }
}

fn stand_down(state: &State, id: TaskId, worker: &WorkerId, declined: bool, decision: &mut Decision) {
    let standby = state.tasks.get(&id).and_then(|record| record.live.standby.get(worker));
    let Some((attempt, _)) = standby else { return };
    decision.facts.push(Fact::StoodDown { task: id, worker: worker.clone(), declined });
    stop(state, worker, id, *attempt, true, decision);
}

/// Stops everybody else who is at work on a task or stands by for it.
pub(super) fn stop_others(
    state: &State,
    id: TaskId,
    but: Option<&WorkerId>,
    force: bool,
    decision: &mut Decision,
) {
    let Some(record) = state.tasks.get(&id) else { return };
    let TaskStatus::Running { attempt, .. } = &record.status else { return };
    for worker in record.members().filter(|worker| Some(*worker) != but) {
        stop(state, worker, id, *attempt, force, decision);
    }
    for (worker, (attempt, _)) in record.live.standby.iter().filter(|(worker, _)| Some(*worker) != but) {
        stop(state, worker, id, *attempt, true, decision);
    }
}

/// Whether two workers are kept apart.
fn is_bad_pair(state: &State, now_ms: u64, a: &WorkerId, b: &WorkerId) -> bool {
    let pair = if a < b { (a.clone(), b.clone()) } else { (b.clone(), a.clone()) };
    let bad = state.bad_pairs.get(&pair);
    bad.is_some_and(|(times, last_ms)| *times >= BAD_PAIR_LIMIT && last_ms + BAD_PAIR_MS > now_ms)
}

/// Counts a failure between two workers.
pub(super) fn count_bad_pair(
    bad_pairs: &mut BTreeMap<(WorkerId, WorkerId), (u32, u64)>,
    (a, b): (&WorkerId, &WorkerId),
    at_ms: u64,
) {
    let pair = if a < b { (a.clone(), b.clone()) } else { (b.clone(), a.clone()) };
    bad_pairs.retain(|_, (_, last_ms)| *last_ms + BAD_PAIR_MS > at_ms);
    let entry = bad_pairs.entry(pair).or_default();
    *entry = (entry.0 + 1, at_ms);
}

/// Has workers with nothing else to do stand by for cohorts that have room, the smallest cohort first.
fn offer(state: &State, now_ms: u64, running: &BTreeSet<TaskId>, decision: &mut Decision) {
    let mut sizes: BTreeMap<TaskId, usize> = BTreeMap::new();
    for id in running {
        let Some(record) = state.tasks.get(id) else { continue };
        let Some((_, cohort)) = record.cohort() else { continue };
        if record.live.until_ms.is_none() && cohort.iter().all(|member| !member.address.is_empty()) {
            sizes.insert(*id, cohort.len() + record.live.standby.len());
        }
    }
    for (worker, known) in place::idle(state) {
        if known.address.is_empty() || known.quarantined.is_some() {
            continue;
        }
        let fits = |id: &TaskId, size: usize| {
            let Some(record) = state.tasks.get(id) else { return false };
            let failed = record.failures.iter().any(|(failed, _)| failed == worker);
            size < record.cohort_limit().unwrap_or(1) as usize
                && place::is_eligible(known, record)
                && !failed
                && !record.live.declined.contains(worker)
                && !record.members().any(|member| is_bad_pair(state, now_ms, member, worker))
        };
        let order = |id: &TaskId| state.tasks.get(id).and_then(|record| place::oldest_job(state, record));
        let found = sizes.iter().filter(|(id, size)| fits(id, **size));
        let found = found.min_by_key(|(id, size)| (**size, order(id).map(|(order, _)| order), **id));
        let Some(id) = found.map(|(id, _)| *id) else { continue };
        let Some(record) = state.tasks.get(&id) else { continue };
        let TaskStatus::Running { attempt, job, .. } = &record.status else { continue };
        *sizes.entry(id).or_default() += 1;
        decision.reason = format!("worker {worker} stands by for {} {id:?}", record.stage);
        decision.commands.push(run(record, id, *attempt, worker, job, &[]));
        decision.facts.push(Fact::StandingBy { task: id, attempt: *attempt, worker: worker.clone() });
    }
}

/// Gives back workers for tasks that wait for one: those that stand by, then members of the largest cohort, of
/// which half of all eligible workers stay.
fn lend(state: &State, now_ms: u64, running: &BTreeSet<TaskId>, decision: &mut Decision) {
    let coming = state.workers.values().filter(|known| known.connected && !known.stale.is_empty()).count();
    let waiting: Vec<_> = place::due(state, now_ms).filter_map(|id| state.tasks.get(&id)).collect();
    if waiting.len() <= coming {
        return;
    }
    let wanted = |worker: &WorkerId| {
        let known = state.workers.get(worker);
        known.is_some_and(|known| waiting.iter().any(|record| place::is_eligible(known, record)))
    };
    let records = || running.iter().filter_map(|id| Some((*id, state.tasks.get(id)?)));
    for (id, record) in records() {
        if let Some(worker) = record.live.standby.keys().find(|worker| wanted(worker)) {
            stand_down(state, id, worker, false, decision);
            decision.reason = format!("worker {worker} is wanted elsewhere");
            return;
        }
    }
    let largest = records()
        .filter(|(_, record)| record.live.until_ms.is_none())
        .filter_map(|(id, record)| Some((record.cohort()?.1.len(), id, record)))
        .max_by_key(|(size, id, _)| (*size, *id));
    let Some((size, id, record)) = largest else { return };
    let eligible = state.workers.values().filter(|known| place::is_eligible(known, record)).count();
    if size <= eligible.div_ceil(2).max(1) {
        return;
    }
    let workers: Vec<_> = record.members().cloned().collect();
    let Some(lent) = workers.iter().skip(1).rev().find(|worker| wanted(worker)).cloned() else { return };
    let rest: Vec<_> = workers.into_iter().filter(|worker| *worker != lent).collect();
    regroup(state, now_ms, id, &rest, &format!("{lent} is wanted elsewhere"), decision);
}

/// What time does to cohorts: deals by speed, troubles between members, stalls.
pub(super) fn tick(state: &State, now_ms: u64, decision: &mut Decision) {
    let running: BTreeSet<TaskId> = state.running.values().flatten().map(|(id, _)| *id).collect();
    for id in running {
        let Some(record) = state.tasks.get(&id) else { continue };
        let Some((attempt, cohort)) = record.cohort() else { continue };
        // Members that are gone are dealt with first.
        if record.live.until_ms.is_some() || !cohort.iter().all(|member| is_sound(state, &member.worker)) {
            continue;
        }
        let before = decision.facts.len();
        settle_suspicion(state, now_ms, (id, attempt), record, decision);
        if decision.facts.len() == before {
            settle_cuts(state, now_ms, id, record, decision);
        }
        if decision.facts.len() == before {
            drop_stalled(state, now_ms, (id, attempt), record, decision);
        }
        if decision.facts.len() == before {
            redeal(state, now_ms, id, record, decision);
        }
    }
}

fn workers_of(record: &TaskRecord) -> Vec<WorkerId> {
    record.members().cloned().collect()
}

/// Whom most of the others take for wrong gets no more float tasks. Where there is no majority nobody knows who is
/// right: the generation goes back to what the store has, a bounded number of times.
fn settle_suspicion(
    state: &State,
    now_ms: u64,
    attempt: (TaskId, AttemptNumber),
    record: &TaskRecord,
    decision: &mut Decision,
) {
    let suspects = &record.live.suspects;
    let Some((_, accuser)) = suspects.first() else { return };
    let members = workers_of(record);
    for accused in &members {
        let accusers = suspects.iter().filter(|(who, _)| who == accused).count();
        if 2 * accusers > members.len() {
            let message =
                format!("computes other bits than others do, say {accusers} of {} members", members.len());
            log(
                decision,
                record,
                None,
                "ERROR",
                format!("worker {accused} {message}: no more float tasks for it"),
            );
            decision.facts.push(Fact::Quarantined { worker: accused.clone(), message });
        }
    }
    // The quarantined are dropped by the next look at the cohort.
    if !decision.facts.is_empty() || now_ms < record.live.since_ms + state.failure_detection_ms {
        return;
    }
    let names: Vec<_> = members.iter().map(WorkerId::as_str).collect();
    let message = format!(
        "workers {} got different bits from the same state, and no majority agrees",
        names.join(", ")
    );
    match decide::poison(state, record, accuser) {
        Some(why) => {
            let message = format!("{} task {:?}: {message}{why}", record.stage, attempt.0);
            decide::fail_task(state, now_ms, attempt, accuser.clone(), message, decision);
        }
        None => {
            let (task, attempt) = attempt;
            let worker = accuser.clone();
            decision.facts.push(Fact::MemberFailed { task, attempt, worker, message: message.clone() });
            regroup(state, now_ms, task, &members, &message, decision);
        }
    }
}

/// Members that could not reach each other: first the same generation is named again, as connections do break; then
/// the one with more bad edges goes.
fn settle_cuts(state: &State, now_ms: u64, id: TaskId, record: &TaskRecord, decision: &mut Decision) {
    let edges = &record.live.edges;
    let Some(since_ms) = record.live.cut_ms else { return };
    let members = workers_of(record);
    if !edges.iter().any(|(a, b)| is_bad_pair(state, now_ms, a, b)) {
        let why = edges.first().map(|(a, b)| format!("{a} could not reach {b}"));
        let why = why.unwrap_or_else(|| "its members could not go on together".to_owned());
        return regroup(state, now_ms, id, &members, &why, decision);
    }
    // Both ends of an edge get the time to say so.
    if now_ms < since_ms + state.failure_detection_ms {
        return;
    }
    let count = |worker: &WorkerId| {
        let peers = edges.iter().filter_map(|(a, b)| match worker {
            _ if a == worker => Some(b),
            _ if b == worker => Some(a),
            _ => None,
        });
        peers.collect::<BTreeSet<_>>().len()
    };
    let worst = members.iter().enumerate().max_by_key(|(rank, worker)| (count(worker), *rank));
    let Some((_, worst)) = worst else { return };
    let rest: Vec<_> = members.iter().filter(|worker| *worker != worst).cloned().collect();
    let why = format!("{worst} is cut off from {} of its peers", count(worst));
    log(decision, record, None, "WARN", format!("worker {why}"));
    regroup(state, now_ms, id, &rest, &why, decision);
}

/// A member that lives but does not go on while others wait for it leaves its cohort.
fn drop_stalled(
    state: &State,
    now_ms: u64,
    (id, attempt): (TaskId, AttemptNumber),
    record: &TaskRecord,
    decision: &mut Decision,
) {
    let live = &record.live;
    let last_ms = live.moved.values().map(|(_, at_ms, _)| *at_ms).max().unwrap_or(0).max(live.since_ms);
    if now_ms < last_ms + state.stall_limit_ms {
        return;
    }
    let members = workers_of(record);
    let waits = |worker: &WorkerId| live.moved.get(worker).is_some_and(|(_, _, waiting)| *waiting);
    let (rest, stalled): (Vec<_>, Vec<_>) = members.iter().cloned().partition(waits);
    let seconds = state.stall_limit_ms / 1000;
    let names = stalled.iter().map(WorkerId::as_str).collect::<Vec<_>>().join(", ");
    let why = format!("{names} made no progress for {seconds} s");
    if !rest.is_empty() && !stalled.is_empty() {
        log(decision, record, None, "WARN", format!("worker {why}"));
        for worker in stalled {
            let message = format!("no progress for {seconds} s");
            decision.facts.push(Fact::MemberFailed { task: id, attempt, worker, message });
        }
        return regroup(state, now_ms, id, &rest, &why, decision);
    }
    // Nobody knows whose fault it is; another worker may do better, if there is one.
    let others = state.workers.iter().any(|(worker, known)| {
        place::is_eligible(known, record)
            && !record.has_member(worker)
            && !record.live.declined.contains(worker)
    });
    if others {
        stop_others(state, id, None, true, decision);
        decide::lose(state, now_ms, id, attempt, &why, decision);
    }
}

/// Deals by the members' speed where that makes steps clearly shorter.
fn redeal(state: &State, now_ms: u64, id: TaskId, record: &TaskRecord, decision: &mut Decision) {
    let Some((_, cohort)) = record.cohort() else { return };
    if cohort.len() < 2 || now_ms < record.live.since_ms + REDEAL_PAUSE_MS {
        return;
    }
    let costs: Vec<_> = cohort.iter().map(|member| record.live.costs.get(&member.worker).copied()).collect();
    if costs.iter().any(Option::is_none) {
        return;
    }
    let units = record.units();
    let current: Vec<u32> = cohort.iter().map(|member| units.blocks(&member.microbatches)).collect();
    let best = deal::shares(units.count(), &costs);
    let (now, then) = (deal::step_cost(&current, &costs), deal::step_cost(&best, &costs));
    if then.saturating_mul(100) <= now.saturating_mul(REDEAL_GAIN_PERCENT) {
        regroup(state, now_ms, id, &workers_of(record), &format!("shares {best:?} by speed"), decision);
    }
}
