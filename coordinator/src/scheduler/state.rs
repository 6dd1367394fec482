//! Jobs, tasks and workers as they stand.

use super::fact::Outcome;
use super::input::Refusal;
use super::metrics::Lineages;
use retort_common::checkpoint::{Lineage, Place};
use retort_common::cohort::{self, Member};
use retort_common::ids::{AttemptNumber, Digest, JobId, RequestId, TaskId, WorkerId};
use retort_common::spec::JobSpec;
use retort_common::spec::inputs::JobInputs;
use retort_common::task::{Stage, Task};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Time without a step after which a member of a cohort counts as stalled, unless told otherwise.
pub const DEFAULT_STALL_LIMIT_MS: u64 = 600_000;

/// Everything the scheduler knows.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Silence after which a session counts as lost.
    pub failure_detection_ms: u64,
    /// Time without a step after which a member of a cohort counts as stalled.
    pub stall_limit_ms: u64,
    /// The uptime of the newest durable fact; time goes on from here after a restart.
    pub clock_ms: u64,
    /// Jobs by id.
    pub jobs: BTreeMap<JobId, JobRecord>,
    /// Jobs that have not ended, oldest first.
    pub live: BTreeMap<u64, JobId>,
    /// Jobs by the clients' names for them.
    pub requests: BTreeMap<RequestId, JobId>,
    /// Tasks of all jobs. Jobs with the same task share it.
    pub tasks: BTreeMap<TaskId, TaskRecord>,
    /// Workers by id. Volatile.
    pub workers: BTreeMap<WorkerId, WorkerRecord>,
    /// Attempts by worker, also those that it only stands by for; derived from the tasks.
    pub running: BTreeMap<WorkerId, BTreeSet<(TaskId, AttemptNumber)>>,
    /// Wanted tasks whose artifact has not been looked for; derived from the tasks.
    pub unprobed: BTreeSet<TaskId>,
    /// Wanted tasks that could run now; derived from the tasks.
    pub ready: BTreeSet<TaskId>,
    /// What trainings said of their steps, by task. Volatile: workers say it again.
    pub metrics: BTreeMap<TaskId, Lineages>,
    /// Pairs of workers, the lesser first, that could not reach each other: how often, and when last. Volatile.
    pub bad_pairs: BTreeMap<(WorkerId, WorkerId), (u32, u64)>,
}

/// A job.
#[derive(Clone, Debug, PartialEq)]
pub struct JobRecord {
    /// Its place among all jobs, from 0.
    pub order: u64,
    /// What to do.
    pub spec: JobSpec,
    /// On which files.
    pub inputs: JobInputs,
    /// Digest of both.
    pub digest: Digest,
    /// For display only.
    pub submitted_unix_ms: u64,
    /// Uptime when it was accepted.
    pub submitted_at_ms: u64,
    /// Whether a client has paused it.
    pub paused: bool,
    /// How it ended, if it has.
    pub end: Option<JobEnd>,
    /// What its float tasks are bound to.
    pub fingerprint: Option<String>,
    /// Its tasks so far.
    pub tasks: BTreeSet<TaskId>,
    /// Those that are not done.
    pub open: BTreeSet<TaskId>,
    /// Uptime of the first attempt in each stage on its behalf.
    pub stage_started_ms: BTreeMap<Stage, u64>,
    /// Whether no tasks will be added.
    pub complete_plan: bool,
    /// Whether everything but the report is planned.
    pub rows_planned: bool,
    /// Whether more could be planned than when it was last tried. Volatile.
    pub replan: bool,
    /// Whether planning waits for a fingerprint. Volatile.
    pub wants_fingerprint: bool,
    /// Decisions from measurements that were told. Volatile.
    pub decided: BTreeSet<String>,
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobEnd {
    /// How.
    pub outcome: Outcome,
    /// Why.
    pub reason: String,
    /// Uptime.
    pub at_ms: u64,
}

/// A task.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskRecord {
    /// What to do.
    pub task: Task,
    /// Its stage.
    pub stage: Stage,
    /// Tasks whose outputs it reads.
    pub needs: Vec<TaskId>,
    /// Tasks that read its output.
    pub dependents: BTreeSet<TaskId>,
    /// How many of its needs are not done.
    pub blocked: usize,
    /// Jobs that want it and have not ended.
    pub jobs: BTreeSet<JobId>,
    /// Where it stands.
    pub status: TaskStatus,
    /// The highest attempt number given.
    pub attempts: u32,
    /// Its failures that another try may mend.
    pub failures: Vec<(WorkerId, String)>,
    /// Uptime before which it is not tried again.
    pub not_before_ms: u64,
    /// Attempts lost with their sessions.
    pub losses: u32,
    /// The job that it was first begun for, under which a training's checkpoints lie.
    pub home: Option<JobId>,
    /// Which of a training's histories goes on.
    pub lineage: Lineage,
    /// What is known of its attempt only while this process lives.
    pub live: Live,
}

/// What a restart forgets about a task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// Whether its manifest is being looked for.
    pub probing: bool,
    /// Until when its attempt, or what is missing of its cohort, may come back.
    pub until_ms: Option<u64>,
    /// Units done and in all.
    pub progress: (u64, u64),
    /// Units that were done when its generation first told of any.
    pub first_done: Option<u64>,
    /// For people.
    pub detail: String,
    /// Workers that get ready to join its cohort: since which generation, and whether they are.
    pub standby: BTreeMap<WorkerId, (AttemptNumber, bool)>,
    /// Workers that could not get ready and are not asked again.
    pub declined: BTreeSet<WorkerId>,
    /// Time that each worker needs for a microbatch, in microseconds.
    pub costs: BTreeMap<WorkerId, u64>,
    /// Uptime when its generation began.
    pub since_ms: u64,
    /// Uptime when each member last went on, and whether it waited for its peers then.
    pub moved: BTreeMap<WorkerId, (u64, u64, bool)>,
    /// Who could not reach whom in this generation.
    pub edges: BTreeSet<(WorkerId, WorkerId)>,
    /// Uptime when the first of them was told.
    pub cut_ms: Option<u64>,
    /// Whom members of this generation take for wrong: accused and accuser.
    pub suspects: BTreeSet<(WorkerId, WorkerId)>,
}

/// Where a task stands.
#[derive(Clone, Debug, PartialEq)]
pub enum TaskStatus {
    /// Nobody has looked whether its artifact exists.
    Unprobed,
    /// It has to be run.
    Pending,
    /// It is being run.
    Running {
        /// The try; for a cohort, its generation.
        attempt: AttemptNumber,
        /// Who; for a cohort, its first member, who writes checkpoints and the artifact.
        worker: WorkerId,
        /// On whose behalf.
        job: JobId,
        /// Its cohort in the order of ranks; nobody where the task is for one worker alone.
        cohort: Vec<Member>,
    },
    /// Its artifact exists. Final.
    Done {
        /// The manifest's meta.
        meta: Value,
        /// The manifest's number.
        incarnation: u32,
        /// Wall time of the attempt that made it.
        elapsed_ms: u64,
        /// The job on whose behalf it was made; none where it was found.
        made_for: Option<JobId>,
        /// Who has it in its cache.
        made_by: Option<WorkerId>,
    },
    /// It failed for good, until another job asks for it.
    Failed {
        /// Why.
        message: String,
    },
}

/// A worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerRecord {
    /// Whether its session is up.
    pub connected: bool,
    /// Its newest session.
    pub session: u64,
    /// Its device.
    pub device: String,
    /// What the device computes with.
    pub kernels: String,
    /// The device's memory; 0 when unknown.
    pub memory_bytes: u64,
    /// Its kernels' fingerprint.
    pub fingerprint: String,
    /// Its program's version.
    pub version: String,
    /// Compute threads.
    pub threads: u32,
    /// Uptime of its last sign of life.
    pub heard_ms: u64,
    /// Tasks finished.
    pub tasks_done: u64,
    /// Attempts it was told to stop and has not ended yet.
    pub stale: BTreeSet<(TaskId, AttemptNumber)>,
    /// Where its peers reach it; empty where it can join no cohort.
    pub address: String,
    /// Why it gets no more float tasks, if it does not.
    pub quarantined: Option<String>,
}

impl TaskRecord {
    /// The meta of its artifact, once there is one.
    pub fn meta(&self) -> Option<&Value> {
        match &self.status {
            TaskStatus::Done { meta, .. } => Some(meta),
            _ => None,
        }
    }

    /// Whether it is done.
    pub fn is_done(&self) -> bool {
        matches!(self.status, TaskStatus::Done { .. })
    }

    /// Whether `attempt` by `worker` is the one that counts.
    pub fn is_current(&self, of: &WorkerId, number: AttemptNumber) -> bool {
        matches!(&self.status, TaskStatus::Running { attempt, .. } if *attempt == number)
            && self.has_member(of)
    }

    /// Whether a worker is at work on it.
    pub fn has_member(&self, worker: &WorkerId) -> bool {
        self.members().any(|member| member == worker)
    }

    /// Who is at work on it, in the order of ranks.
    pub fn members(&self) -> impl Iterator<Item = &WorkerId> {
        let (alone, cohort) = match &self.status {
            TaskStatus::Running { worker, cohort, .. } => {
                (cohort.is_empty().then_some(worker), cohort.as_slice())
            }
            _ => (None, &[][..]),
        };
        alone.into_iter().chain(cohort.iter().map(|member| &member.worker))
    }

    /// Its generation and members, if a cohort is at work on it.
    pub fn cohort(&self) -> Option<(AttemptNumber, &[Member])> {
        match &self.status {
            TaskStatus::Running { attempt, cohort, .. } if !cohort.is_empty() => Some((*attempt, cohort)),
            _ => None,
        }
    }

    /// How many workers can compute it together; none where it is for one alone.
    pub fn cohort_limit(&self) -> Option<u32> {
        cohort::limit(&self.task)
    }

    /// What is dealt to the workers that compute it together.
    pub fn units(&self) -> cohort::Units {
        cohort::units(&self.task).unwrap_or(cohort::Units { microbatches: 1, block: 1 })
    }

    /// Where a training's checkpoints lie; those of one that has not begun will lie under `job`.
    pub fn place(&self, job: &JobId) -> Place {
        Place { job: self.home.as_ref().unwrap_or(job).clone(), lineage: self.lineage }
    }

    /// Whether it is done without work on behalf of `job`.
    pub fn is_cached_for(&self, job: &JobId) -> bool {
        matches!(&self.status, TaskStatus::Done { made_for, .. } if made_for.as_ref() != Some(job))
    }
}

impl State {
    /// A cluster without jobs.
    pub fn new(failure_detection_ms: u64) -> Self {
        Self {
            failure_detection_ms,
            stall_limit_ms: DEFAULT_STALL_LIMIT_MS,
            clock_ms: 0,
            jobs: BTreeMap::new(),
            live: BTreeMap::new(),
            requests: BTreeMap::new(),
            tasks: BTreeMap::new(),
            workers: BTreeMap::new(),
            running: BTreeMap::new(),
            unprobed: BTreeSet::new(),
            ready: BTreeSet::new(),
            metrics: BTreeMap::new(),
            bad_pairs: BTreeMap::new(),
        }
    }

    /// The job with this id, or the only one whose id begins so.
    pub fn resolve(&self, text: &str) -> Result<JobId, Refusal> {
        let not_found = || Refusal::NotFound { text: text.chars().take(140).collect() };
        let exact: JobId = text.parse().map_err(|_| not_found())?;
        if self.jobs.contains_key(&exact) {
            return Ok(exact);
        }
        let found: Vec<_> = self
            .jobs
            .range(exact..)
            .map(|(id, _)| id)
            .take_while(|id| id.as_str().starts_with(text))
            .collect();
        match found.as_slice() {
            [] => Err(not_found()),
            [id] => Ok((*id).clone()),
            [first, second, ..] => Err(Refusal::Ambiguous {
                text: text.to_owned(),
                count: found.len(),
                first: (*first).clone(),
                second: (*second).clone(),
            }),
        }
    }

    /// The state as a replay of the journal gives it: without sessions and what else dies with the process.
    pub fn durable(&self) -> Self {
        let mut state = self.clone();
        state.workers.clear();
        state.bad_pairs.clear();
        state.metrics.clear();
        for job in state.jobs.values_mut() {
            (job.replan, job.wants_fingerprint) = (job.end.is_none() && !job.complete_plan, false);
            job.decided.clear();
        }
        let ids: Vec<_> = state.tasks.keys().copied().collect();
        for id in ids {
            let Some(record) = state.tasks.get_mut(&id) else { continue };
            for worker in record.live.standby.keys() {
                state.running.remove(worker);
            }
            record.live = Live::default();
            if record.status == TaskStatus::Pending {
                record.status = TaskStatus::Unprobed;
            }
            state.reindex(id);
        }
        state
    }

    /// Starts deadlines anew after a replay. Workers need a while to notice and to dial again, so that their
    /// attempts have twice the usual time.
    pub fn recover(&mut self, now_ms: u64) {
        *self = self.durable();
        let until_ms = now_ms + 2 * self.failure_detection_ms;
        for record in self.tasks.values_mut() {
            if matches!(record.status, TaskStatus::Running { .. }) {
                record.live.until_ms = Some(until_ms);
            }
        }
    }

    /// Brings the derived sets up to date with a task's status.
    pub(super) fn reindex(&mut self, id: TaskId) {
        let Some(record) = self.tasks.get(&id) else { return };
        let wanted = !record.jobs.is_empty();
        let unprobed = wanted && record.status == TaskStatus::Unprobed && !record.live.probing;
        let ready = wanted && record.status == TaskStatus::Pending && record.blocked == 0;
        if unprobed {
            self.unprobed.insert(id)
        } else {
            self.unprobed.remove(&id)
        };
        if ready {
            self.ready.insert(id)
        } else {
            self.ready.remove(&id)
        };
    }
}
