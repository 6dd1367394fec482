//! What has happened.

use retort_common::checkpoint::Lineage;
use retort_common::cohort::Member;
use retort_common::ids::{AttemptNumber, Digest, JobId, RequestId, TaskId, WorkerId};
use retort_common::metrics::StepReport;
use retort_common::spec::JobSpec;
use retort_common::spec::inputs::JobInputs;
use retort_common::task::Task;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Every task is done.
    Succeeded,
    /// A task failed for good.
    Failed,
    /// A client ended it.
    Cancelled,
}

/// One change of the state.
///
/// Durable facts are journalled; `at_ms` is the cluster's uptime, a duration summed over leaders, and never an
/// instant of any machine's clock. Volatile facts are about sessions and die with the process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "fact", rename_all = "snake_case", deny_unknown_fields)]
pub enum Fact {
    /// A job was accepted.
    Submitted {
        /// Its id.
        job: JobId,
        /// The client's name for the submit.
        request: RequestId,
        /// What to do.
        spec: Box<JobSpec>,
        /// On which files.
        inputs: Box<JobInputs>,
        /// Digest of both.
        digest: Digest,
        /// For display only.
        submitted_unix_ms: u64,
        /// Uptime.
        at_ms: u64,
    },
    /// A job's float tasks were bound to a fingerprint.
    Pinned {
        /// The job.
        job: JobId,
        /// The fingerprint.
        fingerprint: String,
    },
    /// A job got tasks.
    Planned {
        /// The job.
        job: JobId,
        /// The tasks it did not have before.
        tasks: Vec<Task>,
        /// Whether these were the last ones.
        complete: bool,
    },
    /// A task's artifact was in the store already.
    Cached {
        /// The task.
        task: TaskId,
        /// Its manifest's meta.
        meta: Value,
        /// Its incarnation.
        incarnation: u32,
    },
    /// A worker was given a task, or a cohort's next generation was named.
    Started {
        /// The task.
        task: TaskId,
        /// The try.
        attempt: AttemptNumber,
        /// Who; a cohort's first member.
        worker: WorkerId,
        /// The job on whose behalf.
        job: JobId,
        /// The members where it is a task for a cohort.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        cohort: Vec<Member>,
        /// Uptime.
        at_ms: u64,
    },
    /// A member of a cohort failed and the others may do better.
    MemberFailed {
        /// The task.
        task: TaskId,
        /// The try.
        attempt: AttemptNumber,
        /// Who.
        worker: WorkerId,
        /// Why.
        message: String,
    },
    /// The current attempt of a task succeeded.
    Completed {
        /// The task.
        task: TaskId,
        /// The try.
        attempt: AttemptNumber,
        /// Who said so; a cohort's first member where it is left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        worker: Option<WorkerId>,
        /// Its manifest's meta.
        meta: Value,
        /// Wall time of the attempt.
        elapsed_ms: u64,
        /// Whether the worker found the artifact instead of making it.
        found: bool,
        /// Uptime.
        at_ms: u64,
    },
    /// The current attempt of a task failed and another may help.
    Retried {
        /// The task.
        task: TaskId,
        /// The try.
        attempt: AttemptNumber,
        /// Who.
        worker: WorkerId,
        /// Why.
        message: String,
        /// Uptime.
        at_ms: u64,
    },
    /// The current attempt of a task was lost with its session.
    Lost {
        /// The task.
        task: TaskId,
        /// The try.
        attempt: AttemptNumber,
    },
    /// A task failed for good.
    TaskFailed {
        /// The task.
        task: TaskId,
        /// The try.
        attempt: AttemptNumber,
        /// Who.
        worker: WorkerId,
        /// Why.
        message: String,
    },
    /// A running task was stopped because no job needs it any more.
    Withdrawn {
        /// The task.
        task: TaskId,
        /// The try.
        attempt: AttemptNumber,
    },
    /// A job ended.
    Ended {
        /// The job.
        job: JobId,
        /// How.
        outcome: Outcome,
        /// Why.
        reason: String,
        /// Uptime.
        at_ms: u64,
    },

    /// A client paused a job.
    Paused {
        /// The job.
        job: JobId,
        /// Uptime.
        at_ms: u64,
    },
    /// A client let a paused job go on.
    Resumed {
        /// The job.
        job: JobId,
        /// Uptime.
        at_ms: u64,
    },

    /// A training goes on in another lineage.
    Branched {
        /// The task.
        task: TaskId,
        /// The lineage.
        lineage: Lineage,
    },
    /// A client changed keys of a job's spec that change no result.
    Respecified {
        /// The job.
        job: JobId,
        /// The spec as it is now.
        spec: Box<JobSpec>,
    },
    /// Measurements decided against tasks of a job.
    Dropped {
        /// The job.
        job: JobId,
        /// The tasks that it does not want any more.
        tasks: Vec<TaskId>,
    },
    /// Decisions from measurements were told.
    Decided {
        /// The job.
        job: JobId,
        /// Each in words.
        decisions: Vec<String>,
    },

    /// A worker's session is up.
    WorkerUp {
        /// Who.
        worker: WorkerId,
        /// Number of the session, rising.
        session: u64,
        /// Its device.
        device: String,
        /// What the device computes with.
        #[serde(default)]
        kernels: String,
        /// The device's memory; 0 when unknown.
        #[serde(default)]
        memory_bytes: u64,
        /// Its kernels' fingerprint.
        fingerprint: String,
        /// Its program's version.
        version: String,
        /// Compute threads.
        threads: u32,
        /// Where its peers reach it.
        address: String,
        /// Uptime.
        at_ms: u64,
    },
    /// A worker's session is down.
    WorkerDown {
        /// Who.
        worker: WorkerId,
        /// Uptime.
        at_ms: u64,
    },
    /// A worker that is long gone is no longer listed.
    WorkerForgotten {
        /// Who.
        worker: WorkerId,
    },
    /// A worker gave a sign of life.
    Heard {
        /// Who.
        worker: WorkerId,
        /// Uptime.
        at_ms: u64,
    },
    /// The driver itself was late, so that no deadline may count the delay.
    Late {
        /// By how much.
        by_ms: u64,
    },
    /// A task's manifest is being looked for.
    Probing {
        /// The task.
        task: TaskId,
    },
    /// A task's artifact is not in the store.
    Absent {
        /// The task.
        task: TaskId,
    },
    /// A planning pass found nothing new.
    Surveyed {
        /// The job.
        job: JobId,
        /// Whether planning waits for a fingerprint.
        wants_fingerprint: bool,
    },
    /// An attempt has until then to come back.
    Expiring {
        /// The task.
        task: TaskId,
        /// Uptime.
        until_ms: u64,
    },
    /// A worker came back with its attempt.
    Reclaimed {
        /// The task.
        task: TaskId,
    },
    /// What is missing of a cohort will not come back.
    GivenUp {
        /// The task.
        task: TaskId,
    },
    /// A worker gets ready to join a cohort.
    StandingBy {
        /// The task.
        task: TaskId,
        /// The cohort's generation.
        attempt: AttemptNumber,
        /// Who.
        worker: WorkerId,
    },
    /// It is ready.
    Ready {
        /// The task.
        task: TaskId,
        /// Who.
        worker: WorkerId,
    },
    /// It does not get ready any more.
    StoodDown {
        /// The task.
        task: TaskId,
        /// Who.
        worker: WorkerId,
        /// Whether it could not, and is not asked again.
        declined: bool,
    },
    /// How a member of a cohort does.
    Measured {
        /// The task.
        task: TaskId,
        /// Who.
        worker: WorkerId,
        /// Its steps done.
        done: u64,
        /// Microseconds that it needs for a microbatch; 0 when unknown.
        microbatch_us: u64,
        /// Whether it waits for its peers.
        waiting: bool,
        /// Uptime.
        at_ms: u64,
    },
    /// A member of a cohort could not reach others.
    Cut {
        /// The task.
        task: TaskId,
        /// Who.
        worker: WorkerId,
        /// Whom.
        peers: Vec<WorkerId>,
        /// Uptime.
        at_ms: u64,
    },
    /// A member takes others for wrong.
    Suspected {
        /// The task.
        task: TaskId,
        /// Who says so.
        worker: WorkerId,
        /// Whom.
        peers: Vec<WorkerId>,
    },
    /// A worker computes other bits than its peers and gets no more float tasks.
    Quarantined {
        /// Who.
        worker: WorkerId,
        /// Why.
        message: String,
    },
    /// How far the current attempt has come.
    Progressed {
        /// The task.
        task: TaskId,
        /// Units done.
        done: u64,
        /// Units in all; 0 when unknown.
        total: u64,
        /// For people.
        detail: String,
    },
    /// A training said something of its steps.
    Stepped {
        /// The task.
        task: TaskId,
        /// The history that the steps belong to.
        lineage: String,
        /// Who.
        worker: WorkerId,
        /// The steps.
        steps: Vec<StepReport>,
        /// Uptime.
        at_ms: u64,
    },
    /// A worker was told to stop an attempt that counts no more; it gets no work until it has.
    Stale {
        /// Who.
        worker: WorkerId,
        /// The task.
        task: TaskId,
        /// The try.
        attempt: AttemptNumber,
    },
    /// A worker has ended such an attempt.
    StaleEnded {
        /// Who.
        worker: WorkerId,
        /// The task.
        task: TaskId,
        /// The try.
        attempt: AttemptNumber,
    },
}

impl Fact {
    /// Whether it goes into the journal.
    pub fn is_durable(&self) -> bool {
        match self {
            Fact::Submitted { .. }
            | Fact::Pinned { .. }
            | Fact::Planned { .. }
            | Fact::Cached { .. }
            | Fact::Started { .. }
            | Fact::MemberFailed { .. }
            | Fact::Completed { .. }
            | Fact::Retried { .. }
            | Fact::Lost { .. }
            | Fact::TaskFailed { .. }
            | Fact::Withdrawn { .. }
            | Fact::Paused { .. }
            | Fact::Resumed { .. }
            | Fact::Branched { .. }
            | Fact::Respecified { .. }
            | Fact::Dropped { .. }
            | Fact::Ended { .. } => true,
            Fact::WorkerUp { .. }
            | Fact::Decided { .. }
            | Fact::WorkerDown { .. }
            | Fact::WorkerForgotten { .. }
            | Fact::Heard { .. }
            | Fact::Late { .. }
            | Fact::Probing { .. }
            | Fact::Absent { .. }
            | Fact::Surveyed { .. }
            | Fact::Expiring { .. }
            | Fact::Reclaimed { .. }
            | Fact::GivenUp { .. }
            | Fact::StandingBy { .. }
            | Fact::Ready { .. }
            | Fact::StoodDown { .. }
            | Fact::Measured { .. }
            | Fact::Cut { .. }
            | Fact::Suspected { .. }
            | Fact::Quarantined { .. }
            | Fact::Progressed { .. }
            | Fact::Stepped { .. }
            | Fact::Stale { .. }
            | Fact::StaleEnded { .. } => false,
        }
    }
}
