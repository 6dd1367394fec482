//! What comes in and what goes out.

use super::fact::Fact;
use retort_common::checkpoint::{Origin, Place};
use retort_common::cohort::Member;
use retort_common::ids::{AttemptNumber, Digest, JobId, RequestId, TaskId, WorkerId};
use retort_common::metrics::StepReport;
use retort_common::spec::JobSpec;
use retort_common::spec::inputs::JobInputs;
use retort_common::task::{ArtifactId, Stage, Task};
use serde_json::Value;

/// What a worker says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct HelloInfo {
    /// Its device.
    pub device: String,
    /// What the device computes with.
    pub kernels: String,
    /// The device's memory; 0 when unknown.
    pub memory_bytes: u64,
    /// Its kernels' fingerprint; empty when it can run no float task.
    pub fingerprint: String,
    /// Its program's version.
    pub version: String,
    /// Compute threads.
    pub threads: u32,
    /// Where its peers reach it; empty where it can join no cohort.
    pub address: String,
    /// Attempts it runs or whose results it holds.
    pub in_hand: Vec<(TaskId, AttemptNumber)>,
}

/// Something to decide on.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// A client submits a job under an id made for it.
    Submit {
        /// The id, used if the request is new.
        job: JobId,
        /// The client's name for the submit.
        request: RequestId,
        /// What to do.
        spec: Box<JobSpec>,
        /// On which files.
        inputs: Box<JobInputs>,
        /// For display only.
        unix_ms: u64,
    },
    /// A client ends a job.
    Cancel {
        /// The job.
        job: JobId,
        /// Stop at once.
        force: bool,
    },
    /// A client pauses a job.
    Pause {
        /// The job.
        job: JobId,
    },
    /// A client lets a paused job go on.
    Resume {
        /// The job.
        job: JobId,
        /// Trainings that go on in another lineage, and what that begins with: a checkpoint, or the training's own
        /// beginning.
        branches: Vec<(TaskId, Option<Origin>)>,
        /// A spec that may differ in keys that change no result; that of the job without one.
        spec: Option<Box<JobSpec>>,
    },
    /// A worker opens a session.
    WorkerHello {
        /// Who.
        worker: WorkerId,
        /// The session's number.
        session: u64,
        /// What it says.
        info: HelloInfo,
    },
    /// A session's stream ended.
    WorkerGone {
        /// Who.
        worker: WorkerId,
        /// Which session.
        session: u64,
    },
    /// A sign of life.
    Beat {
        /// Who.
        worker: WorkerId,
        /// Which session.
        session: u64,
    },
    /// How far a task has come.
    Progress {
        /// Who.
        worker: WorkerId,
        /// Which session.
        session: u64,
        /// The task.
        task: TaskId,
        /// The try.
        attempt: AttemptNumber,
        /// Units done.
        done: u64,
        /// Units in all.
        total: u64,
        /// For people.
        detail: String,
        /// Microseconds that the worker needs for a microbatch; 0 when unknown.
        microbatch_us: u64,
        /// Whether it waits for its peers.
        waiting: bool,
    },
    /// A worker is ready to join a cohort.
    Ready {
        /// Who.
        worker: WorkerId,
        /// Which session.
        session: u64,
        /// The task.
        task: TaskId,
    },
    /// A member of a cohort cannot go on with its peers.
    Trouble {
        /// Who.
        worker: WorkerId,
        /// Which session.
        session: u64,
        /// The task.
        task: TaskId,
        /// The try.
        attempt: AttemptNumber,
        /// The peers it is about.
        peers: Vec<WorkerId>,
        /// Whether they have other bits, rather than being out of reach.
        suspect: bool,
        /// Why.
        message: String,
    },
    /// A task is done.
    Finished {
        /// Who.
        worker: WorkerId,
        /// Which session.
        session: u64,
        /// The task.
        task: TaskId,
        /// The try.
        attempt: AttemptNumber,
        /// The manifest's meta.
        meta: Value,
        /// Wall time.
        elapsed_ms: u64,
        /// Whether the artifact was found.
        found: bool,
    },
    /// A task failed.
    Failed {
        /// Who.
        worker: WorkerId,
        /// Which session.
        session: u64,
        /// The task.
        task: TaskId,
        /// The try.
        attempt: AttemptNumber,
        /// Why.
        message: String,
        /// Whether another try can help.
        retryable: bool,
    },
    /// What a training says of its steps.
    Metrics {
        /// Who.
        worker: WorkerId,
        /// Which session.
        session: u64,
        /// The task.
        task: TaskId,
        /// The history that the steps belong to.
        lineage: String,
        /// The steps.
        steps: Vec<StepReport>,
    },
    /// A line for the log.
    Log {
        /// Who.
        worker: WorkerId,
        /// Which session.
        session: u64,
        /// The task.
        task: TaskId,
        /// INFO, WARN or ERROR.
        level: String,
        /// One line.
        message: String,
    },
    /// The store was asked for a task's manifest.
    Probed {
        /// The task.
        task: TaskId,
        /// Meta and incarnation, where it exists.
        found: Option<(Value, u32)>,
    },
    /// Time has passed; the driver was late by so much.
    Tick {
        /// How much longer than meant the driver was away.
        late_ms: u64,
    },
    /// Do what follows from what has happened: plan, probe, deal, end.
    Advance,
}

/// Something to do outside.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Look for these manifests.
    Probe(Vec<ArtifactId>),
    /// Have a worker run a task.
    Run {
        /// Who.
        worker: WorkerId,
        /// The try.
        attempt: AttemptNumber,
        /// On whose behalf.
        job: JobId,
        /// What.
        task: Box<Task>,
        /// Its name.
        id: TaskId,
        /// Its stage.
        stage: Stage,
        /// Under which number to write the manifest.
        incarnation: u32,
        /// The cohort it is a member of; nobody where it is alone or stands by.
        cohort: Vec<Member>,
        /// Where a training's checkpoints lie.
        checkpoints: Option<Place>,
    },
    /// Have a worker stop an attempt.
    Stop {
        /// Who.
        worker: WorkerId,
        /// The task.
        task: TaskId,
        /// The try.
        attempt: AttemptNumber,
        /// At once, without a checkpoint.
        force: bool,
    },
    /// Let a worker forget a result.
    Settle {
        /// Who.
        worker: WorkerId,
        /// The task.
        task: TaskId,
        /// The try.
        attempt: AttemptNumber,
    },
    /// Close a session.
    Close {
        /// Who.
        worker: WorkerId,
    },
    /// A job looks different now.
    JobChanged(JobId),
    /// A line for a job's log.
    Log {
        /// The job.
        job: JobId,
        /// Who said it; nobody for the coordinator.
        worker: Option<WorkerId>,
        /// About which stage.
        stage: Option<Stage>,
        /// INFO, WARN or ERROR.
        level: String,
        /// One line.
        message: String,
    },
}

/// A good answer to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The job is accepted.
    Submitted {
        /// Its id.
        job: JobId,
        /// False where the request had been accepted before.
        created: bool,
    },
    /// The job has ended, now or before.
    Cancelled {
        /// Its id.
        job: JobId,
    },
    /// The job is paused, or goes on.
    Paused {
        /// Its id.
        job: JobId,
    },
}

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A request id used for two different jobs.
    #[error(
        "request id {request} was used for job {job} with another spec or other inputs; use a new request id"
    )]
    RequestReused {
        /// The request.
        request: RequestId,
        /// Its job.
        job: JobId,
        /// What that job is.
        digest: Digest,
    },
    /// An id that is taken already.
    #[error("job id {job} exists already; submit again")]
    JobExists {
        /// The id.
        job: JobId,
    },
    /// A job that has ended.
    #[error("job {job} has ended; submit it again")]
    Ended {
        /// The job.
        job: JobId,
    },
    /// A spec that would give another result.
    #[error(
        "the spec of job {job} cannot change in {}: that gives another result; submit it as a job of its own, or \
         resume without these changes",
        differences.join(", ")
    )]
    Respecified {
        /// The job.
        job: JobId,
        /// The keys, with their values.
        differences: Vec<String>,
    },
    /// A training that cannot branch off.
    #[error("training {task:?} is in work for job {job}, or done: it cannot go on from another state")]
    NoBranch {
        /// The training.
        task: TaskId,
        /// For whom.
        job: JobId,
    },
    /// A job that is not paused.
    #[error("job {job} is not paused")]
    NotPaused {
        /// The job.
        job: JobId,
    },
    /// Too many jobs at work.
    #[error("{limit} jobs are at work already; wait for one to end or cancel one")]
    TooManyJobs {
        /// The limit.
        limit: usize,
    },
    /// No such job.
    #[error("no job {text:?}; `retort list -a` shows all")]
    NotFound {
        /// As asked for.
        text: String,
    },
    /// A prefix that several jobs have.
    #[error("{text:?} is the beginning of {count} job ids, e.g. {first} and {second}; give more of it")]
    Ambiguous {
        /// As asked for.
        text: String,
        /// How many.
        count: usize,
        /// One of them.
        first: JobId,
        /// Another.
        second: JobId,
    },
}

/// What follows from an input.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    /// What has happened.
    pub facts: Vec<Fact>,
    /// What to do, once the durable facts are in the journal.
    pub commands: Vec<Command>,
    /// The answer to a client, to be sent no sooner.
    pub reply: Option<Result<Reply, Refusal>>,
    /// Why, in words.
    pub reason: String,
}
