//! From an input to facts, commands and a reply.

use super::advance;
use super::cohort;
use super::fact::{Fact, Outcome};
use super::input::{Command, Decision, Input, Refusal, Reply};
use super::metrics;
use super::place;
use super::sessions;
use super::state::{State, TaskRecord, TaskStatus};
use retort_common::checkpoint::{self, Origin};
use retort_common::ids::{AttemptNumber, Digest, JobId, RequestId, TaskId, WorkerId};
use retort_common::metrics::StepReport;
use retort_common::spec::inputs::JobInputs;
use retort_common::spec::{self, Difference, JobSpec};
use serde_json::Value;
use std::collections::BTreeSet;

/// Jobs that may be at work at one time.
pub const MAX_LIVE_JOBS: usize = 1_000;
/// Failed tries after which a task is given up, wherever they were.
pub const MAX_FAILURES: usize = 5;
/// Different workers that make a task poison.
pub const POISON_WORKERS: usize = 3;
/// Tries that even a task with few eligible workers gets: one hiccup of the store on a cluster of one worker
/// must not fail a job.
pub const MIN_FAILURES: usize = 3;
/// Attempts lost with their sessions after which a task is given up.
pub const MAX_LOSSES: u32 = 100;
/// How long a worker that is gone stays listed.
const FORGET_WORKER_MS: u64 = 3_600_000;

/// What follows from `input` at uptime `now_ms`. The state is not changed.
pub fn decide(state: &State, now_ms: u64, input: Input) -> Decision {
    match input {
        Input::Submit { job, request, spec, inputs, unix_ms } => {
            submit(state, now_ms, job, request, spec, inputs, unix_ms)
        }
        Input::Cancel { job, force } => cancel(state, now_ms, &job, force),
        Input::Pause { job } => pause(state, now_ms, &job),
        Input::Resume { job, branches, spec } => resume(state, now_ms, &job, branches, spec),
        Input::WorkerHello { worker, session, info } => sessions::hello(state, now_ms, worker, session, info),
        Input::WorkerGone { worker, session } => sessions::gone(state, now_ms, &worker, session),
        Input::Beat { worker, session } => sessions::heard(state, now_ms, &worker, session),
        Input::Progress { worker, session, task, attempt, done, total, detail, microbatch_us, waiting } => {
            let mut decision = sessions::heard(state, now_ms, &worker, session);
            let current = state.tasks.get(&task).filter(|record| record.is_current(&worker, attempt));
            let (false, Some(record)) = (decision.facts.is_empty(), current) else { return decision };
            // A cohort speaks through its first member.
            if record.members().next() == Some(&worker) {
                decision.facts.push(Fact::Progressed { task, done, total, detail });
                changed(&mut decision, record);
            }
            if record.cohort().is_some() {
                let at_ms = now_ms;
                decision.facts.push(Fact::Measured { task, worker, done, microbatch_us, waiting, at_ms });
            }
            decision
        }
        Input::Ready { worker, session, task } => {
            let mut decision = sessions::heard(state, now_ms, &worker, session);
            let stands_by =
                state.tasks.get(&task).is_some_and(|record| record.live.standby.contains_key(&worker));
            if !decision.facts.is_empty() && stands_by {
                decision.facts.push(Fact::Ready { task, worker });
            }
            decision
        }
        Input::Trouble { worker, session, task, attempt, peers, suspect, message } => {
            trouble(state, now_ms, worker, session, (task, attempt), peers, suspect, message)
        }
        Input::Finished { worker, session, task, attempt, meta, elapsed_ms, found } => {
            finished(state, now_ms, worker, session, (task, attempt), meta, elapsed_ms, found)
        }
        Input::Failed { worker, session, task, attempt, message, retryable } => {
            failed(state, now_ms, worker, session, (task, attempt), message, retryable)
        }
        Input::Metrics { worker, session, task, lineage, steps } => {
            stepped(state, now_ms, worker, session, task, lineage, steps)
        }
        Input::Log { worker, session, task, level, message } => {
            let mut decision = sessions::heard(state, now_ms, &worker, session);
            if let (false, Some(record)) = (decision.facts.is_empty(), state.tasks.get(&task)) {
                log(&mut decision, record, Some(&worker), &level, message);
            }
            decision
        }
        Input::Probed { task, found } => probed(state, task, found),
        Input::Tick { late_ms } => tick(state, now_ms, late_ms),
        Input::Advance => advance::advance(state, now_ms),
    }
}

/// The identity of a job: what is to be done on which files.
pub fn spec_digest(spec: &JobSpec, inputs: &JobInputs) -> Digest {
    Digest::of_json(&serde_json::json!({ "spec": spec, "inputs": inputs }))
}

fn submit(
    state: &State,
    now_ms: u64,
    job: JobId,
    request: RequestId,
    spec: Box<JobSpec>,
    inputs: Box<JobInputs>,
    unix_ms: u64,
) -> Decision {
    let digest = spec_digest(&spec, &inputs);
    if let Some((known, record)) = state.requests.get(&request).and_then(|id| state.jobs.get_key_value(id)) {
        if record.digest == digest {
            return reply(Ok(Reply::Submitted { job: known.clone(), created: false }), "submitted before");
        }
        let refusal = Refusal::RequestReused { request, job: known.clone(), digest: record.digest };
        return reply(Err(refusal), "request id reused");
    }
    if state.jobs.contains_key(&job) {
        return reply(Err(Refusal::JobExists { job }), "job id taken");
    }
    if state.live.len() >= MAX_LIVE_JOBS {
        return reply(Err(Refusal::TooManyJobs { limit: MAX_LIVE_JOBS }), "too many jobs");
    }
    let mut decision = reply(Ok(Reply::Submitted { job: job.clone(), created: true }), "a new job");
    decision.commands.push(job_log(&job, "INFO", format!("job {job} accepted")));
    decision.commands.push(Command::JobChanged(job.clone()));
    let submitted_unix_ms = unix_ms;
    decision.facts.push(Fact::Submitted {
        job,
        request,
        spec,
        inputs,
        digest,
        submitted_unix_ms,
        at_ms: now_ms,
    });
    decision
}

fn reply(reply: Result<Reply, Refusal>, reason: &str) -> Decision {
    Decision { reply: Some(reply), reason: reason.to_owned(), ..Decision::default() }
}

fn job_log(job: &JobId, level: &str, message: String) -> Command {
    Command::Log { job: job.clone(), worker: None, stage: None, level: level.to_owned(), message }
}

pub(super) fn log(
    decision: &mut Decision,
    record: &TaskRecord,
    worker: Option<&WorkerId>,
    level: &str,
    message: String,
) {
    for job in &record.jobs {
        decision.commands.push(Command::Log {
            job: job.clone(),
            worker: worker.cloned(),
            stage: Some(record.stage),
            level: level.to_owned(),
            message: message.clone(),
        });
    }
}

pub(super) fn changed(decision: &mut Decision, record: &TaskRecord) {
    decision.commands.extend(record.jobs.iter().cloned().map(Command::JobChanged));
}

fn cancel(state: &State, now_ms: u64, job: &JobId, force: bool) -> Decision {
    let Some(record) = state.jobs.get(job) else {
        return reply(Err(Refusal::NotFound { text: job.to_string() }), "no such job");
    };
    let mut decision = reply(Ok(Reply::Cancelled { job: job.clone() }), "cancelled by a client");
    if record.end.is_none() {
        let jobs = BTreeSet::from([job.clone()]);
        end_jobs(state, now_ms, &jobs, Outcome::Cancelled, "cancelled by a client", force, &mut decision);
    }
    decision
}

fn pause(state: &State, now_ms: u64, job: &JobId) -> Decision {
    let refusal = match state.jobs.get(job) {
        None => Some(Refusal::NotFound { text: job.to_string() }),
        Some(record) => record.end.is_some().then(|| Refusal::Ended { job: job.clone() }),
    };
    if let Some(refusal) = refusal {
        return reply(Err(refusal), "no job to pause");
    }
    let mut decision = reply(Ok(Reply::Paused { job: job.clone() }), "paused by a client");
    if state.jobs.get(job).is_some_and(|record| !record.paused) {
        decision.facts.push(Fact::Paused { job: job.clone(), at_ms: now_ms });
        decision.commands.push(job_log(job, "INFO", format!("job {job} is paused")));
        // What no job that goes on wants is stopped; a training leaves a checkpoint.
        let paused = state.jobs.iter().filter(|(id, record)| record.paused || *id == job);
        let paused: BTreeSet<_> = paused.map(|(id, _)| id.clone()).collect();
        withdraw(state, &paused, false, &mut decision);
    }
    decision.commands.push(Command::JobChanged(job.clone()));
    decision
}

/// Lets a paused job go on, as it is or with another spec, its trainings from where they are or from other states.
fn resume(
    state: &State,
    now_ms: u64,
    job: &JobId,
    branches: Vec<(TaskId, Option<Origin>)>,
    spec: Option<Box<JobSpec>>,
) -> Decision {
    let refuse = |refusal| reply(Err(refusal), "a job that cannot be resumed so");
    let Some(record) = state.jobs.get(job) else {
        return refuse(Refusal::NotFound { text: job.to_string() });
    };
    if record.end.is_some() {
        return refuse(Refusal::Ended { job: job.clone() });
    }
    if !record.paused {
        return refuse(Refusal::NotPaused { job: job.clone() });
    }
    let mut decision = reply(Ok(Reply::Paused { job: job.clone() }), "resumed by a client");
    if let Some(mut spec) = spec {
        // The job has its name already.
        spec.name.clone_from(&record.spec.name);
        let all = spec::differences(&record.spec, &spec);
        let (changing, harmless): (Vec<_>, Vec<_>) = all.into_iter().partition(Difference::changes_results);
        if !changing.is_empty() {
            let differences = changing.iter().map(ToString::to_string).collect();
            return refuse(Refusal::Respecified { job: job.clone(), differences });
        }
        for difference in &harmless {
            decision.commands.push(job_log(job, "INFO", format!("the spec changes: {difference}")));
        }
        // The tasks keep their names and have the new settings.
        let tasks = advance::tasks_with(state, job, record, &spec);
        decision.facts.push(Fact::Respecified { job: job.clone(), spec });
        if !tasks.is_empty() {
            decision.facts.push(Fact::Planned { job: job.clone(), tasks, complete: record.complete_plan });
        }
    }
    for (task, origin) in branches {
        let known = state
            .tasks
            .get(&task)
            .filter(|known| known.jobs.contains(job) && !known.is_done() && known.members().next().is_none());
        let Some(known) = known else { return refuse(Refusal::NoBranch { task, job: job.clone() }) };
        let lineage = known.lineage.next(origin);
        let from = origin.map_or("its beginning".to_owned(), |origin| {
            format!("step {} of lineage {}", origin.step, checkpoint::lineage(task, origin.number))
        });
        let name = checkpoint::lineage(task, lineage.number);
        log(&mut decision, known, None, "INFO", format!("lineage {name} begins with {from}"));
        decision.facts.push(Fact::Branched { task, lineage });
    }
    decision.facts.push(Fact::Resumed { job: job.clone(), at_ms: now_ms });
    decision.commands.push(job_log(job, "INFO", format!("job {job} goes on")));
    decision.commands.push(Command::JobChanged(job.clone()));
    decision
}

/// Ends jobs and stops the running tasks that no other live job needs.
pub(super) fn end_jobs(
    state: &State,
    now_ms: u64,
    jobs: &BTreeSet<JobId>,
    outcome: Outcome,
    reason: &str,
    force: bool,
    decision: &mut Decision,
) {
    withdraw(state, jobs, force, decision);
    for job in jobs {
        let level = if outcome == Outcome::Failed { "ERROR" } else { "INFO" };
        decision.commands.push(job_log(job, level, reason.to_owned()));
        decision.commands.push(Command::JobChanged(job.clone()));
        decision.facts.push(Fact::Ended {
            job: job.clone(),
            outcome,
            reason: reason.to_owned(),
            at_ms: now_ms,
        });
    }
}

/// Stops those of some running tasks that no other job wants.
pub(super) fn withdraw_tasks(state: &State, job: &JobId, tasks: &[TaskId], decision: &mut Decision) {
    for id in tasks {
        let Some(record) = state.tasks.get(id) else { continue };
        let TaskStatus::Running { attempt, .. } = &record.status else { continue };
        if !is_wanted(state, record, &BTreeSet::from([job.clone()])) {
            decision.facts.push(Fact::Withdrawn { task: *id, attempt: *attempt });
            cohort::stop_others(state, *id, None, true, decision);
        }
    }
}

/// Whether a job that goes on, and is none of these, wants a task.
fn is_wanted(state: &State, record: &TaskRecord, but: &BTreeSet<JobId>) -> bool {
    let goes_on = |job: &JobId| state.jobs.get(job).is_some_and(|record| !record.paused);
    record.jobs.iter().any(|job| !but.contains(job) && goes_on(job))
}

/// Stops the running tasks that no other job wants.
fn withdraw(state: &State, jobs: &BTreeSet<JobId>, force: bool, decision: &mut Decision) {
    let running: BTreeSet<TaskId> = state.running.values().flatten().map(|(id, _)| *id).collect();
    for id in &running {
        let Some(record) = state.tasks.get(id) else { continue };
        let TaskStatus::Running { attempt, .. } = &record.status else { continue };
        if record.jobs.is_empty() || is_wanted(state, record, jobs) {
            continue;
        }
        // The decision may have dealt with the task already.
        if decision.facts.iter().any(|fact| matches!(fact, Fact::TaskFailed { task, .. } if task == id)) {
            continue;
        }
        decision.facts.push(Fact::Withdrawn { task: *id, attempt: *attempt });
        cohort::stop_others(state, *id, None, force, decision);
    }
}

/// Has a connected worker stop an attempt; until it has, it gets no other work.
pub(super) fn stop(
    state: &State,
    worker: &WorkerId,
    task: TaskId,
    attempt: AttemptNumber,
    force: bool,
    decision: &mut Decision,
) {
    if state.workers.get(worker).is_some_and(|record| record.connected) {
        decision.facts.push(Fact::Stale { worker: worker.clone(), task, attempt });
        decision.commands.push(Command::Stop { worker: worker.clone(), task, attempt, force });
    }
}

/// Settles a result; the record, if the attempt is the one that counts.
fn settle<'a>(
    state: &'a State,
    worker: &WorkerId,
    (task, attempt): (TaskId, AttemptNumber),
    decision: &mut Decision,
) -> Option<&'a TaskRecord> {
    decision.commands.push(Command::Settle { worker: worker.clone(), task, attempt });
    let stale = state.workers.get(worker).is_some_and(|record| record.stale.contains(&(task, attempt)));
    if stale {
        decision.facts.push(Fact::StaleEnded { worker: worker.clone(), task, attempt });
    }
    let record = state.tasks.get(&task).filter(|record| record.is_current(worker, attempt));
    if record.is_none() {
        decision.reason = format!("a result of {task:?} attempt {} counts no more", attempt.0);
    }
    record
}

#[allow(clippy::too_many_arguments)]
fn finished(
    state: &State,
    now_ms: u64,
    worker: WorkerId,
    session: u64,
    (task, attempt): (TaskId, AttemptNumber),
    meta: Value,
    elapsed_ms: u64,
    found: bool,
) -> Decision {
    let mut decision = sessions::heard(state, now_ms, &worker, session);
    if decision.facts.is_empty() {
        return decision;
    }
    let Some(record) = settle(state, &worker, (task, attempt), &mut decision) else { return decision };
    decision.reason = format!("{} {task:?} is done by {worker}", record.stage);
    cohort::stop_others(state, task, Some(&worker), true, &mut decision);
    let worker = Some(worker);
    decision.facts.push(Fact::Completed { task, attempt, worker, meta, elapsed_ms, found, at_ms: now_ms });
    changed(&mut decision, record);
    decision
}

fn failed(
    state: &State,
    now_ms: u64,
    worker: WorkerId,
    session: u64,
    (task, attempt): (TaskId, AttemptNumber),
    message: String,
    retryable: bool,
) -> Decision {
    let mut decision = sessions::heard(state, now_ms, &worker, session);
    if decision.facts.is_empty() {
        return decision;
    }
    let Some(record) = settle(state, &worker, (task, attempt), &mut decision) else {
        let standby = state.tasks.get(&task).filter(|record| record.live.standby.contains_key(&worker));
        if let Some(record) = standby {
            let text = format!("worker {worker} cannot join the training: {message}");
            log(&mut decision, record, None, "WARN", text);
            decision.facts.push(Fact::StoodDown { task, worker, declined: true });
        }
        return decision;
    };
    let verdict = if retryable { poison(state, record, &worker) } else { Some(String::new()) };
    let what = format!("{} task {task:?} failed on worker {worker}: {message}", record.stage);
    let up = |member: &&WorkerId| {
        **member != worker && state.workers.get(*member).is_some_and(|known| known.connected)
    };
    let rest: Vec<_> = record.members().filter(up).cloned().collect();
    match verdict {
        None if !rest.is_empty() => {
            log(&mut decision, record, None, "WARN", format!("{what}; the others go on"));
            let failed = worker.clone();
            decision.facts.push(Fact::MemberFailed { task, attempt, worker, message });
            let why = format!("{failed} failed");
            cohort::regroup(state, now_ms, task, &rest, &why, &mut decision);
            // It has ended already.
            decision
                .commands
                .retain(|command| !matches!(command, Command::Stop { worker, .. } if *worker == failed));
            decision.facts.retain(|fact| !matches!(fact, Fact::Stale { worker, .. } if *worker == failed));
        }
        None => {
            decision.reason = format!("{what}; trying again");
            log(&mut decision, record, None, "WARN", format!("{what}; trying again"));
            changed(&mut decision, record);
            cohort::stop_others(state, task, Some(&worker), true, &mut decision);
            decision.facts.push(Fact::Retried { task, attempt, worker, message, at_ms: now_ms });
        }
        Some(why) => {
            cohort::stop_others(state, task, Some(&worker), true, &mut decision);
            fail_task(state, now_ms, (task, attempt), worker, format!("{what}{why}"), &mut decision);
        }
    }
    decision
}

#[allow(clippy::too_many_arguments)]
fn trouble(
    state: &State,
    now_ms: u64,
    worker: WorkerId,
    session: u64,
    (task, attempt): (TaskId, AttemptNumber),
    peers: Vec<WorkerId>,
    suspect: bool,
    message: String,
) -> Decision {
    let mut decision = sessions::heard(state, now_ms, &worker, session);
    let current = state.tasks.get(&task).filter(|record| record.is_current(&worker, attempt));
    let (false, Some(record)) = (decision.facts.is_empty(), current) else { return decision };
    log(&mut decision, record, Some(&worker), "WARN", message);
    // A worker whose value was computed anew elsewhere may find itself to be wrong.
    let peers = peers.into_iter().filter(|peer| record.has_member(peer) && (suspect || *peer != worker));
    let peers: Vec<_> = peers.collect();
    decision.facts.push(if suspect {
        Fact::Suspected { task, worker, peers }
    } else {
        Fact::Cut { task, worker, peers, at_ms: now_ms }
    });
    decision
}

/// Keeps what a training says of its steps. A step that was told before with other figures fails the job: nobody knows
/// which of them is right, and nothing is averaged.
fn stepped(
    state: &State,
    now_ms: u64,
    worker: WorkerId,
    session: u64,
    task: TaskId,
    lineage: String,
    steps: Vec<StepReport>,
) -> Decision {
    let mut decision = sessions::heard(state, now_ms, &worker, session);
    let of = |record: &&TaskRecord| record.has_member(&worker) || record.is_done();
    let record = state.tasks.get(&task).filter(of);
    let (false, Some(record)) = (decision.facts.is_empty(), record) else { return decision };
    if let (Some(message), TaskStatus::Running { attempt, .. }) =
        (metrics::divergence(state, task, &lineage, &worker, &steps), &record.status)
    {
        let message = format!("{} task {task:?}: {message}", record.stage);
        cohort::stop_others(state, task, None, true, &mut decision);
        fail_task(state, now_ms, (task, *attempt), worker, message, &mut decision);
        // Nobody knows which state is right, the checkpoints' included: another job begins anew.
        decision.facts.push(Fact::Branched { task, lineage: record.lineage.next(None) });
        return decision;
    }
    decision.facts.push(Fact::Stepped { task, lineage, worker, steps, at_ms: now_ms });
    decision
}

/// Why a task is given up after one more failure that another try might have mended, if it is.
pub(super) fn poison(state: &State, record: &TaskRecord, worker: &WorkerId) -> Option<String> {
    let failures = record.failures.len() + 1;
    let mut failed_on: BTreeSet<_> = record.failures.iter().map(|(worker, _)| worker).collect();
    failed_on.insert(worker);
    let eligible = state.workers.values().filter(|known| place::is_eligible(known, record)).count();
    let limit = POISON_WORKERS.min(eligible.max(1));
    let poison = failed_on.len() >= limit && failures >= MIN_FAILURES;
    (poison || failures >= MAX_FAILURES)
        .then(|| format!(" (given up after {failures} tries on {} workers)", failed_on.len()))
}

pub(super) fn fail_task(
    state: &State,
    now_ms: u64,
    (task, attempt): (TaskId, AttemptNumber),
    worker: WorkerId,
    message: String,
    decision: &mut Decision,
) {
    decision.reason.clone_from(&message);
    decision.facts.push(Fact::TaskFailed { task, attempt, worker, message: message.clone() });
    if let Some(record) = state.tasks.get(&task) {
        end_jobs(state, now_ms, &record.jobs, Outcome::Failed, &message, true, decision);
    }
}

pub(super) fn lose(
    state: &State,
    now_ms: u64,
    task: TaskId,
    attempt: AttemptNumber,
    why: &str,
    decision: &mut Decision,
) {
    let Some(record) = state.tasks.get(&task) else { return };
    let TaskStatus::Running { worker, .. } = &record.status else { return };
    if record.losses + 1 >= MAX_LOSSES {
        let stage = record.stage;
        let message =
            format!("{stage} task {task:?} was lost with its worker {MAX_LOSSES} times, last {worker}");
        return fail_task(state, now_ms, (task, attempt), worker.clone(), message, decision);
    }
    decision.facts.push(Fact::Lost { task, attempt });
    let message = format!("task {task:?} attempt {} on worker {worker} is lost: {why}", attempt.0);
    log(decision, record, None, "WARN", message);
    changed(decision, record);
}

fn probed(state: &State, task: TaskId, found: Option<(Value, u32)>) -> Decision {
    let mut decision = Decision::default();
    // The answer to an old question says nothing about a task that has moved on.
    let Some(record) = state.tasks.get(&task).filter(|record| record.status == TaskStatus::Unprobed) else {
        return decision;
    };
    match found {
        Some((meta, incarnation)) => {
            decision.reason = format!("the artifact of {task:?} exists");
            decision.facts.push(Fact::Cached { task, meta, incarnation });
        }
        None => decision.facts.push(Fact::Absent { task }),
    }
    changed(&mut decision, record);
    decision
}

fn tick(state: &State, now_ms: u64, late_ms: u64) -> Decision {
    let mut decision = Decision::default();
    if late_ms > 0 {
        // Deadlines are looked at again at the next tick, when they have moved.
        decision.reason = format!("the coordinator was late by {late_ms} ms; deadlines extend");
        decision.facts.push(Fact::Late { by_ms: late_ms });
        return decision;
    }
    for (worker, record) in &state.workers {
        let silent_ms = now_ms.saturating_sub(record.heard_ms);
        if record.connected && silent_ms > state.failure_detection_ms {
            decision.reason = format!("worker {worker} was silent for {silent_ms} ms");
            decision.commands.push(Command::Close { worker: worker.clone() });
            sessions::worker_down(state, now_ms, worker, &mut decision);
        } else if !record.connected && silent_ms > FORGET_WORKER_MS {
            decision.facts.push(Fact::WorkerForgotten { worker: worker.clone() });
        }
    }
    let running: BTreeSet<TaskId> = state.running.values().flatten().map(|(id, _)| *id).collect();
    for task in running {
        let Some(record) = state.tasks.get(&task) else { continue };
        let TaskStatus::Running { attempt, .. } = &record.status else { continue };
        if record.live.until_ms.is_none_or(|until_ms| until_ms > now_ms) {
            continue;
        }
        if record.members().any(|member| state.workers.get(member).is_some_and(|known| known.connected)) {
            decision.facts.push(Fact::GivenUp { task });
        } else {
            cohort::stop_others(state, task, None, true, &mut decision);
            lose(state, now_ms, task, *attempt, "its worker did not come back", &mut decision);
        }
    }
    cohort::tick(state, now_ms, &mut decision);
    decision
}
