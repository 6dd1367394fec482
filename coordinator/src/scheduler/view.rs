//! Jobs and workers as people see them.

use super::advance::{best_steps, stage_summaries};
use super::fact::Outcome;
use super::place;
use super::state::{JobRecord, State, TaskRecord, TaskStatus};
use retort_common::checkpoint::Place;
use retort_common::ids::{JobId, TaskId, WorkerId};
use retort_common::task::{Stage, Task};
use retort_common::view::{JobState, JobView, StageView, WorkerView};
use std::collections::BTreeMap;
use std::time::Duration;

/// A training that is done.
#[derive(Clone, Debug, PartialEq)]
pub struct Training {
    /// Its task.
    pub task: TaskId,
    /// Steps taken.
    pub steps: u64,
    /// Digest of the flat parameters as little-endian f32, hex.
    pub weights_sha256: String,
    /// Loss of the last step.
    pub loss: Option<f64>,
}

/// A job's trainings that are done.
pub fn trainings(state: &State, id: &JobId) -> Vec<Training> {
    let of = |id: &TaskId| {
        let record = state.tasks.get(id).filter(|record| record.stage == Stage::Train)?;
        let meta = record.meta()?;
        let weights_sha256 = meta.get("weights_sha256")?.as_str()?.to_owned();
        let (steps, loss) = (meta.get("steps")?.as_u64()?, meta.get("loss")?.as_f64());
        Some(Training { task: *id, steps, weights_sha256, loss })
    };
    state.jobs.get(id).into_iter().flat_map(|job| &job.tasks).filter_map(of).collect()
}

/// A training that is not done and may go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenTraining {
    /// Its task.
    pub task: TaskId,
    /// Where its checkpoints lie.
    pub place: Place,
    /// The step that it begins with.
    pub first: u64,
    /// The best evaluated step of its phase so far; none where nothing is evaluated yet.
    pub best: Option<u64>,
}

/// A job's trainings that some job still wants and that are not done.
pub fn open_trainings(state: &State, id: &JobId) -> Vec<OpenTraining> {
    let Some(job) = state.jobs.get(id) else { return Vec::new() };
    let best = best_steps(state, id, job);
    let open = |task: &TaskId| {
        let record = state.tasks.get(task).filter(|record| !record.is_done() && !record.jobs.is_empty())?;
        let Task::Train { seed, span, .. } = &record.task else { return None };
        let (first, best) =
            (span.map_or(0, |span| span.first.into()), best.get(seed).copied().map(u64::from));
        Some(OpenTraining { task: *task, place: record.place(id), first, best })
    };
    job.tasks.iter().filter_map(open).collect()
}

/// Where the checkpoints of each of a job's trainings lie.
pub fn places(state: &State, id: &JobId) -> BTreeMap<TaskId, Place> {
    let of = |task: &TaskId| {
        let record = state.tasks.get(task).filter(|record| record.stage == Stage::Train)?;
        Some((*task, record.place(id)))
    };
    state.jobs.get(id).into_iter().flat_map(|job| &job.tasks).filter_map(of).collect()
}

/// A job as it stands. Where its report lies is known to whoever has the store.
pub fn job(state: &State, id: &JobId, now_ms: u64) -> Option<JobView> {
    let record = state.jobs.get(id)?;
    let stages: Vec<_> = stage_views(state, id, record, now_ms);
    let begun = record.tasks.iter().filter_map(|id| state.tasks.get(id)).any(|task| task.attempts > 0);
    let state_of_job = match &record.end {
        Some(end) => match end.outcome {
            Outcome::Succeeded => JobState::Succeeded,
            Outcome::Failed => JobState::Failed,
            Outcome::Cancelled => JobState::Cancelled,
        },
        None if record.paused => JobState::Paused,
        None if begun || stages.iter().any(|stage| stage.done > 0) => JobState::Running,
        None => JobState::Pending,
    };
    let open = stages.iter().find(|stage| stage.done < stage.tasks);
    let until_ms = record.end.as_ref().map_or(now_ms, |end| end.at_ms);
    Some(JobView {
        id: id.to_string(),
        name: record.spec.name.clone(),
        state: state_of_job,
        stage: open.map(|stage| stage.name.clone()).unwrap_or_default(),
        reason: reason(state, id, record),
        spec_digest: record.digest.to_string(),
        submitted_unix_ms: record.submitted_unix_ms,
        elapsed: Duration::from_millis(until_ms.saturating_sub(record.submitted_at_ms)),
        stages,
        report_url: String::new(),
        fingerprint: record.fingerprint.clone().unwrap_or_default(),
    })
}

/// All workers, sorted by id.
pub fn workers(state: &State) -> Vec<WorkerView> {
    let of = |(id, worker): (&WorkerId, &super::state::WorkerRecord)| WorkerView {
        id: id.to_string(),
        connected: worker.connected,
        device: worker.device.clone(),
        kernels: worker.kernels.clone(),
        memory_bytes: worker.memory_bytes,
        fingerprint: worker.fingerprint.clone(),
        version: worker.version.clone(),
        task: in_work(state, id),
        threads: worker.threads,
        tasks_done: worker.tasks_done,
    };
    state.workers.iter().map(of).collect()
}

fn in_work(state: &State, worker: &WorkerId) -> String {
    let Some((id, _)) = state.running.get(worker).and_then(|set| set.first()) else {
        return stopping(state, worker);
    };
    let Some(record) = state.tasks.get(id) else { return String::new() };
    match &record.status {
        TaskStatus::Running { job, .. } => {
            let standby = if record.has_member(worker) { "" } else { ", standing by" };
            format!("{job}/{} {id:?}{standby}", record.stage)
        }
        _ => String::new(),
    }
}

/// What a worker was told to stop and has not let go of: it may still write a checkpoint, and gets nothing else yet.
fn stopping(state: &State, worker: &WorkerId) -> String {
    let stale = state.workers.get(worker).and_then(|known| known.stale.first());
    let Some((id, record)) = stale.and_then(|(id, _)| Some((id, state.tasks.get(id)?))) else {
        return String::new();
    };
    let job = record.jobs.first().map(|job| format!("{job}/")).unwrap_or_default();
    format!("{job}{} {id:?}, stopping", record.stage)
}

fn stage_views(state: &State, id: &JobId, record: &JobRecord, now_ms: u64) -> Vec<StageView> {
    let of = |summary: retort_common::task::StageSummary| {
        let tasks = record.tasks.iter().filter_map(|id| state.tasks.get(id));
        let tasks: Vec<_> = tasks.filter(|task| task.stage == summary.name).collect();
        let done = tasks.iter().filter(|task| task.is_done()).count() as u32;
        let running: Vec<_> =
            tasks.iter().filter(|task| matches!(task.status, TaskStatus::Running { .. })).collect();
        let in_work: f64 = running.iter().map(|task| progress(task)).sum();
        let made = f64::from(done - summary.cached) + in_work;
        let to_make = f64::from(summary.tasks - summary.cached);
        let started_ms = record.stage_started_ms.get(&summary.name);
        let spent_ms = started_ms.map(|started_ms| now_ms.saturating_sub(*started_ms));
        let live = record.end.is_none() && !running.is_empty() && made > 0.0;
        // Tasks of a stage may differ: it ends no sooner than any of those in work.
        let longest = running.iter().filter_map(|task| seconds_left(task, now_ms)).fold(0.0, f64::max);
        let eta = |spent_ms: u64| (spent_ms as f64 / 1000.0 * (to_make - made) / made).max(longest);
        StageView {
            name: summary.name.name().to_owned(),
            tasks: summary.tasks,
            done,
            cached: summary.cached,
            running: running.len() as u32,
            seconds: summary.seconds,
            fraction: (f64::from(done) + in_work) / f64::from(summary.tasks.max(1)),
            eta_seconds: spent_ms.filter(|_| live).map(eta),
            detail: detail(&running),
            complete_plan: record.complete_plan,
        }
    };
    stage_summaries(state, id, record).into_iter().map(of).collect()
}

fn progress(task: &TaskRecord) -> f64 {
    let (done, total) = task.live.progress;
    if total == 0 { 0.0 } else { (done as f64 / total as f64).min(1.0) }
}

/// What is left of a task at the speed of its generation.
fn seconds_left(task: &TaskRecord, now_ms: u64) -> Option<f64> {
    let (done, total) = task.live.progress;
    let made = done.checked_sub(task.live.first_done?).filter(|made| *made > 0)?;
    let spent_s = now_ms.saturating_sub(task.live.since_ms) as f64 / 1000.0;
    Some(spent_s * total.saturating_sub(done) as f64 / made as f64)
}

fn detail(running: &[&&TaskRecord]) -> String {
    let of = |task: &&&TaskRecord| match task.cohort() {
        Some((_, cohort)) if cohort.len() > 1 && !task.live.detail.is_empty() => {
            format!("{}, {} workers", task.live.detail, cohort.len())
        }
        _ => task.live.detail.clone(),
    };
    let details: Vec<_> = running.iter().map(of).filter(|detail| !detail.is_empty()).collect();
    match details.as_slice() {
        [] => String::new(),
        [one] => one.clone(),
        [first, rest @ ..] => format!("{first} (and {} more)", rest.len()),
    }
}

/// Why a job stands where it does.
fn reason(state: &State, id: &JobId, record: &JobRecord) -> String {
    if let Some(end) = &record.end {
        return end.reason.clone();
    }
    if record.paused {
        return format!("paused by a client; `retort resume {id}` lets it go on");
    }
    let connected = state.workers.values().filter(|worker| worker.connected).count();
    let open: Vec<_> = record.open.iter().filter_map(|id| state.tasks.get(id)).collect();
    let running = open.iter().filter(|task| matches!(task.status, TaskStatus::Running { .. })).count();
    if running > 0 {
        let lost = open.iter().filter(|task| task.live.until_ms.is_some()).count();
        let lost = if lost > 0 {
            format!(", {lost} of them wait for their worker to come back")
        } else {
            String::new()
        };
        return format!("{running} tasks in work{lost}{}", left_out(state, record));
    }
    if connected == 0 {
        return "waits for a worker: none is connected".to_owned();
    }
    if record.wants_fingerprint {
        return "waits for a worker with a numerics fingerprint: none is connected".to_owned();
    }
    let stuck = open.iter().find(|task| {
        task.blocked == 0
            && task.status == TaskStatus::Pending
            && !state.workers.values().any(|worker| place::is_eligible(worker, task))
    });
    if let Some(fingerprint) = stuck.and_then(|task| task.task.fingerprint()) {
        let have: std::collections::BTreeSet<_> = (state.workers.values())
            .filter(|worker| worker.connected)
            .map(|worker| format!("{} has {}", worker.device, worker.fingerprint))
            .collect();
        let have = have.into_iter().collect::<Vec<_>>().join(", ");
        return format!(
            "waits for a worker with numerics fingerprint {fingerprint}: none of the {connected} connected has it ({have})"
        );
    }
    if let Some((worker, message)) = open.iter().find_map(|task| task.failures.last()) {
        return format!("will try again after a failure on worker {worker}: {message}");
    }
    if open.iter().any(|task| task.status == TaskStatus::Unprobed) {
        return "looks for artifacts that exist already".to_owned();
    }
    if state.ready.iter().filter_map(|id| state.tasks.get(id)).any(|task| task.jobs.contains(id)) {
        return format!("waits for one of {connected} workers to be free");
    }
    "is being planned".to_owned()
}

/// Why connected workers take no part in a job that has work for others: all of its tasks, and so the members of a
/// training, have one backend with the same kernels.
fn left_out(state: &State, record: &JobRecord) -> String {
    let Some(fingerprint) = &record.fingerprint else { return String::new() };
    let others: std::collections::BTreeSet<_> = (state.workers.values())
        .filter(|worker| worker.connected && worker.fingerprint != *fingerprint)
        .map(|worker| worker.device.as_str())
        .collect();
    if others.is_empty() {
        return String::new();
    }
    let others = others.into_iter().collect::<Vec<_>>().join(", ");
    format!("; workers on {others} take no part in what is computed, whose kernels are {fingerprint}")
}
