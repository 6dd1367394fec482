//! What the client's calls return, apart from the generated types.
//!
//! Conversions destructure the generated types, so that a new field breaks the build here.

use super::ClientError;
use crate::proto;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobState {
    /// Accepted; no task of it has run yet.
    Pending,
    /// At least one of its tasks has run.
    Running,
    /// A client paused it.
    Paused,
    /// Every task is done and the report is written.
    Succeeded,
    /// A task failed for good.
    Failed,
    /// A client ended it.
    Cancelled,
}

/// A text that names no state.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no state of a job: use PENDING, RUNNING, PAUSED, SUCCEEDED, FAILED or CANCELLED")]
pub struct UnknownState(String);

impl JobState {
    const ALL: [JobState; 6] = [
        JobState::Pending,
        JobState::Running,
        JobState::Paused,
        JobState::Succeeded,
        JobState::Failed,
        JobState::Cancelled,
    ];

    /// Its name, as everything prints it.
    pub fn name(self) -> &'static str {
        match self {
            JobState::Pending => "PENDING",
            JobState::Running => "RUNNING",
            JobState::Paused => "PAUSED",
            JobState::Succeeded => "SUCCEEDED",
            JobState::Failed => "FAILED",
            JobState::Cancelled => "CANCELLED",
        }
    }

    /// Whether the job will never change again.
    pub fn has_ended(self) -> bool {
        match self {
            JobState::Pending | JobState::Running | JobState::Paused => false,
            JobState::Succeeded | JobState::Failed | JobState::Cancelled => true,
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for JobState {
    type Err = UnknownState;

    fn from_str(text: &str) -> Result<Self, UnknownState> {
        let found = Self::ALL.into_iter().find(|state| state.name().eq_ignore_ascii_case(text));
        found.ok_or_else(|| UnknownState(text.to_owned()))
    }
}

/// A job as it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct JobView {
    /// Its id.
    pub id: String,
    /// The spec's name.
    pub name: String,
    /// Where it stands.
    pub state: JobState,
    /// The earliest stage that is not done; empty when all are.
    pub stage: String,
    /// Why it stands there, in words.
    pub reason: String,
    /// Digest of spec and inputs, hex.
    pub spec_digest: String,
    /// When it was accepted, milliseconds since 1970 by the coordinator's clock.
    pub submitted_unix_ms: u64,
    /// How long it has been in work.
    pub elapsed: Duration,
    /// Its stages in order.
    pub stages: Vec<StageView>,
    /// The URL of its report; empty until it succeeded.
    pub report_url: String,
    /// The numerics fingerprint of its float tasks; empty until chosen.
    pub fingerprint: String,
}

/// A stage of a job as it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct StageView {
    /// Its name, e.g. "embed".
    pub name: String,
    /// Tasks known so far.
    pub tasks: u32,
    /// Tasks done, cached ones included.
    pub done: u32,
    /// Tasks whose artifact was there already.
    pub cached: u32,
    /// Tasks in work.
    pub running: u32,
    /// Worker seconds spent on tasks that are done.
    pub seconds: f64,
    /// Share of the stage's work that is done, 0 to 1.
    pub fraction: f64,
    /// Estimated seconds until it is done, where known.
    pub eta_seconds: Option<f64>,
    /// What its tasks in work report.
    pub detail: String,
    /// False while later plans may add tasks.
    pub complete_plan: bool,
}

impl StageView {
    /// Whether nothing is left to do in it.
    pub fn is_done(&self) -> bool {
        self.complete_plan && self.done == self.tasks
    }
}

/// A worker as the coordinator sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerView {
    /// Its id.
    pub id: String,
    /// Whether its session is up.
    pub connected: bool,
    /// Its device.
    pub device: String,
    /// What the device computes with: library, version, instructions.
    pub kernels: String,
    /// The device's memory; 0 when unknown.
    pub memory_bytes: u64,
    /// Its numerics fingerprint, hex.
    pub fingerprint: String,
    /// The version of its program.
    pub version: String,
    /// The task in work, or the one that it is letting go of ("…, stopping"); empty when idle.
    pub task: String,
    /// Compute threads.
    pub threads: u32,
    /// Tasks it has finished in this session.
    pub tasks_done: u64,
}

/// One line of a job's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// Where in the job's log it stands, rising from 1.
    pub sequence: u64,
    /// When the coordinator received it, milliseconds since 1970 by its clock.
    pub unix_ms: u64,
    /// INFO, WARN or ERROR.
    pub level: String,
    /// The worker that said it; empty for the coordinator.
    pub worker: String,
    /// The stage it belongs to; empty for the job as a whole.
    pub stage: String,
    /// The text.
    pub message: String,
}

pub(super) fn present(job: Option<proto::Job>) -> Result<JobView, ClientError> {
    job.map_or_else(|| Err(ClientError::Answer("no job in it".to_owned())), self::job)
}

pub(super) fn job(job: proto::Job) -> Result<JobView, ClientError> {
    let proto::Job {
        id,
        name,
        state,
        stage,
        reason,
        spec_digest,
        submitted_unix_ms,
        elapsed_ms,
        stages,
        report_url,
        fingerprint,
    } = job;
    Ok(JobView {
        id,
        name,
        state: self::state(state)?,
        stage,
        reason,
        spec_digest,
        submitted_unix_ms,
        elapsed: Duration::from_millis(elapsed_ms),
        stages: stages.into_iter().map(self::stage).collect(),
        report_url,
        fingerprint,
    })
}

fn state(state: i32) -> Result<JobState, ClientError> {
    match proto::JobState::try_from(state) {
        Ok(proto::JobState::Pending) => Ok(JobState::Pending),
        Ok(proto::JobState::Running) => Ok(JobState::Running),
        Ok(proto::JobState::Paused) => Ok(JobState::Paused),
        Ok(proto::JobState::Succeeded) => Ok(JobState::Succeeded),
        Ok(proto::JobState::Failed) => Ok(JobState::Failed),
        Ok(proto::JobState::Cancelled) => Ok(JobState::Cancelled),
        Ok(proto::JobState::Unspecified) | Err(_) => {
            Err(ClientError::Answer(format!("unknown job state {state}")))
        }
    }
}

fn stage(stage: proto::StageStatus) -> StageView {
    let proto::StageStatus {
        name,
        tasks,
        done,
        cached,
        running,
        seconds,
        fraction,
        eta_seconds,
        detail,
        complete_plan,
    } = stage;
    let eta_seconds = (eta_seconds.is_finite() && eta_seconds >= 0.0).then_some(eta_seconds);
    let fraction = if fraction.is_finite() { fraction.clamp(0.0, 1.0) } else { 0.0 };
    StageView { name, tasks, done, cached, running, seconds, fraction, eta_seconds, detail, complete_plan }
}

/// The state of a training after a step.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckpointView {
    /// Digest that names the training.
    pub task: String,
    /// The history it belongs to; empty for the weights of a training that is done.
    pub lineage: String,
    /// Steps taken.
    pub step: u64,
    /// SHA-256 of the flat parameters as little-endian f32.
    pub weights_sha256: String,
    /// Loss of the last step, if there was one.
    pub loss: Option<f64>,
    /// Size of its file.
    pub bytes: u64,
    /// Whether the training is done with this step.
    pub is_final: bool,
    /// URL of its file.
    pub url: String,
}

pub(super) fn checkpoint(checkpoint: proto::Checkpoint) -> CheckpointView {
    let proto::Checkpoint { task, lineage, step, weights_sha256, loss, bytes, r#final: is_final, url } =
        checkpoint;
    CheckpointView { task, lineage, step, weights_sha256, loss, bytes, is_final, url }
}

pub(super) fn worker(worker: proto::Worker) -> WorkerView {
    let proto::Worker {
        id,
        connected,
        device,
        kernels,
        memory_bytes,
        fingerprint,
        version,
        task,
        threads,
        tasks_done,
    } = worker;
    WorkerView {
        id,
        connected,
        device,
        kernels,
        memory_bytes,
        fingerprint,
        version,
        task,
        threads,
        tasks_done,
    }
}

pub(super) fn log_line(line: proto::LogsResponse) -> LogLine {
    let proto::LogsResponse { sequence, unix_ms, level, worker, stage, message } = line;
    LogLine { sequence, unix_ms, level, worker, stage, message }
}
