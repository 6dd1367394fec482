//! Jobs and workers as people see them: what the scheduler makes, the wire carries, the client returns and `-o json` prints.
//!
//! Conversions destructure both sides, so that a new field breaks the build here.

use crate::proto;
use serde::{Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
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

/// A message from the other side that makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// A call about one job was answered without one.
    #[error("no job in it")]
    NoJob,
    /// A state that this program does not know.
    #[error("unknown job state {0}")]
    State(i32),
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
#[derive(Clone, Debug, PartialEq, Serialize)]
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
    /// When it was accepted, milliseconds since 1970 by the coordinator's clock; for display only.
    #[serde(rename = "submitted_at", serialize_with = "timestamp_of")]
    pub submitted_unix_ms: u64,
    /// Time since it was accepted, until it ended; pauses of the coordinator not counted.
    #[serde(rename = "elapsed_seconds", serialize_with = "seconds")]
    pub elapsed: Duration,
    /// Its stages in order.
    pub stages: Vec<StageView>,
    /// The URL of its report; empty until it succeeded.
    pub report_url: String,
    /// The numerics fingerprint of its float tasks; empty until chosen.
    pub fingerprint: String,
}

/// A stage of a job as it stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
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
    /// The task in work, or the one that it is letting go of, as "job/stage digest"; empty when idle.
    pub task: String,
    /// Compute threads.
    pub threads: u32,
    /// Tasks it has finished in this session.
    pub tasks_done: u64,
}

/// One line of a job's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LogLine {
    /// Where in the job's log it stands, rising from 1.
    pub sequence: u64,
    /// When the coordinator received it, milliseconds since 1970 by its clock.
    #[serde(rename = "time", serialize_with = "timestamp_of")]
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

impl TryFrom<proto::Job> for JobView {
    type Error = ViewError;

    fn try_from(job: proto::Job) -> Result<Self, ViewError> {
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
        let state = proto::JobState::try_from(state).map_err(|_| ViewError::State(state))?;
        Ok(JobView {
            id,
            name,
            state: state.try_into()?,
            stage,
            reason,
            spec_digest,
            submitted_unix_ms,
            elapsed: Duration::from_millis(elapsed_ms),
            stages: stages.into_iter().map(StageView::from).collect(),
            report_url,
            fingerprint,
        })
    }
}

impl TryFrom<Option<proto::Job>> for JobView {
    type Error = ViewError;

    fn try_from(job: Option<proto::Job>) -> Result<Self, ViewError> {
        job.ok_or(ViewError::NoJob)?.try_into()
    }
}

impl From<JobView> for proto::Job {
    fn from(job: JobView) -> Self {
        let JobView {
            id,
            name,
            state,
            stage,
            reason,
            spec_digest,
            submitted_unix_ms,
            elapsed,
            stages,
            report_url,
            fingerprint,
        } = job;
        proto::Job {
            id,
            name,
            state: proto::JobState::from(state) as i32,
            stage,
            reason,
            spec_digest,
            submitted_unix_ms,
            elapsed_ms: elapsed.as_millis() as u64,
            stages: stages.into_iter().map(proto::StageStatus::from).collect(),
            report_url,
            fingerprint,
        }
    }
}

impl TryFrom<proto::JobState> for JobState {
    type Error = ViewError;

    fn try_from(state: proto::JobState) -> Result<Self, ViewError> {
        match state {
            proto::JobState::Pending => Ok(JobState::Pending),
            proto::JobState::Running => Ok(JobState::Running),
            proto::JobState::Paused => Ok(JobState::Paused),
            proto::JobState::Succeeded => Ok(JobState::Succeeded),
            proto::JobState::Failed => Ok(JobState::Failed),
            proto::JobState::Cancelled => Ok(JobState::Cancelled),
            proto::JobState::Unspecified => Err(ViewError::State(state as i32)),
        }
    }
}

impl From<JobState> for proto::JobState {
    fn from(state: JobState) -> Self {
        match state {
            JobState::Pending => proto::JobState::Pending,
            JobState::Running => proto::JobState::Running,
            JobState::Paused => proto::JobState::Paused,
            JobState::Succeeded => proto::JobState::Succeeded,
            JobState::Failed => proto::JobState::Failed,
            JobState::Cancelled => proto::JobState::Cancelled,
        }
    }
}

/// The state of a training after a step.
#[derive(Clone, Debug, PartialEq, Serialize)]
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
    #[serde(rename = "final")]
    pub is_final: bool,
    /// URL of its file.
    pub url: String,
}

impl From<proto::StageStatus> for StageView {
    fn from(stage: proto::StageStatus) -> Self {
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
        StageView {
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
        }
    }
}

impl From<StageView> for proto::StageStatus {
    fn from(stage: StageView) -> Self {
        let StageView {
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
        let eta_seconds = eta_seconds.unwrap_or(-1.0);
        proto::StageStatus {
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
        }
    }
}

impl From<proto::Worker> for WorkerView {
    fn from(worker: proto::Worker) -> Self {
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
}

impl From<WorkerView> for proto::Worker {
    fn from(worker: WorkerView) -> Self {
        let WorkerView {
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
        proto::Worker {
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
}

impl From<proto::LogsResponse> for LogLine {
    fn from(line: proto::LogsResponse) -> Self {
        let proto::LogsResponse { sequence, unix_ms, level, worker, stage, message } = line;
        LogLine { sequence, unix_ms, level, worker, stage, message }
    }
}

impl From<proto::Checkpoint> for CheckpointView {
    fn from(checkpoint: proto::Checkpoint) -> Self {
        let proto::Checkpoint { task, lineage, step, weights_sha256, loss, bytes, r#final: is_final, url } =
            checkpoint;
        CheckpointView { task, lineage, step, weights_sha256, loss, bytes, is_final, url }
    }
}

impl From<CheckpointView> for proto::Checkpoint {
    fn from(checkpoint: CheckpointView) -> Self {
        let CheckpointView { task, lineage, step, weights_sha256, loss, bytes, is_final, url } = checkpoint;
        proto::Checkpoint { task, lineage, step, weights_sha256, loss, bytes, r#final: is_final, url }
    }
}

/// Milliseconds since 1970 as RFC 3339 in UTC.
pub fn timestamp(unix_ms: u64) -> String {
    let (days, second) = (unix_ms / 86_400_000, unix_ms / 1000 % 86_400);
    // Hinnant's civil_from_days: years begin in March, so that the leap day comes last.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second % 3600 / 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

fn timestamp_of<S: Serializer>(unix_ms: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&timestamp(*unix_ms))
}

fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00Z");
        assert_eq!(timestamp(951_782_400_000), "2000-02-29T00:00:00Z");
        assert_eq!(timestamp(1_767_225_599_999), "2025-12-31T23:59:59Z");
    }
}
