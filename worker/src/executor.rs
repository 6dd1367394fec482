//! Runs assignments: finds or makes the artifact of a task.

use crate::exchange::Exchange;
use crate::model::Device;
use crate::session::{Assignment, Executor, Outcome, TaskContext, TaskFailure};
use crate::tasks::{self, Content, EncoderCache, Produced, Progress, Seat, TaskError, Workbench};
use retort_common::artifact::{ArtifactReader, ArtifactWriter, Cache, find};
use retort_common::ids::WorkerId;
use retort_common::store::Store;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;
use tokio::runtime::Handle;

/// The executor of a worker process.
pub struct TaskExecutor {
    device: Device,
    threads: usize,
    cache: Cache,
    scratch: PathBuf,
    runtime: Handle,
    encoders: EncoderCache,
    store: Mutex<Option<(String, Store)>>,
    cohorts: Option<Cohorts>,
}

/// What a worker needs to compute tasks together with others.
#[derive(Clone)]
pub struct Cohorts {
    /// Who this is.
    pub worker: WorkerId,
    /// The exchange with peers.
    pub exchange: Exchange,
    /// How long a cohort goes on without the coordinator.
    pub orphan_limit: Duration,
}

/// A folder that is removed when the task is over, however it ends.
struct Scratch(tempfile::TempDir);

impl TaskExecutor {
    /// An executor whose cache and scratch files lie under `folder`; it belongs to one process.
    pub fn new(
        device: Device,
        threads: usize,
        folder: &Path,
        cache_bytes: u64,
        runtime: Handle,
    ) -> Result<Self, TaskError> {
        let cache = Cache::open(&folder.join("cache"), cache_bytes)?;
        let scratch = folder.join("scratch");
        // What an earlier process left here belongs to attempts that are over.
        if scratch.exists() {
            std::fs::remove_dir_all(&scratch).map_err(Workbench::scratch_error(&scratch))?;
        }
        std::fs::create_dir_all(&scratch).map_err(Workbench::scratch_error(&scratch))?;
        let (encoders, store) = (EncoderCache::default(), Mutex::new(None));
        Ok(Self { device, threads, cache, scratch, runtime, encoders, store, cohorts: None })
    }

    /// The same executor with peers.
    pub fn with_cohorts(self, cohorts: Cohorts) -> Self {
        Self { cohorts: Some(cohorts), ..self }
    }

    fn store(&self, url: &str) -> Result<Store, TaskError> {
        let mut slot = self.store.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((held, store)) = slot.as_ref()
            && held == url
        {
            return Ok(store.clone());
        }
        let store = Store::open(url)?;
        *slot = Some((url.to_owned(), store.clone()));
        Ok(store)
    }

    fn execute(&self, assignment: &Assignment, context: &TaskContext) -> Result<Outcome, TaskError> {
        let store = self.store(&assignment.store_url)?;
        let artifact = assignment.task.output();
        let incarnation = assignment.incarnation;
        // Another attempt may have finished while its worker was lost.
        if let Some(manifest) = self.runtime.block_on(find(&store, &artifact, incarnation))? {
            return Ok(Outcome { meta: manifest.meta, found: true });
        }
        let scratch = tempfile::tempdir_in(&self.scratch).map_err(Workbench::scratch_error(&self.scratch))?;
        let scratch = Scratch(scratch);
        let progress = Reporter(context);
        let bench = Workbench {
            artifacts: ArtifactReader::new(store.clone(), self.cache.clone()),
            device: self.device.clone(),
            threads: self.threads,
            checkpoints: assignment.checkpoints.clone(),
            scratch: scratch.0.path().to_owned(),
            progress: &progress,
            runtime: self.runtime.clone(),
            encoders: &self.encoders,
            seat: self.cohorts.as_ref().map(|cohorts| Seat {
                context,
                worker: cohorts.worker.clone(),
                exchange: Some(cohorts.exchange.clone()),
                orphan_limit: cohorts.orphan_limit,
            }),
        };
        let Produced { parts, meta } = tasks::run(&bench, &assignment.task)?;
        let nonce = uuid::Uuid::new_v4().simple().to_string();
        let mut writer = ArtifactWriter::new(&store, artifact, incarnation, context.attempt(), nonce);
        let manifest = self.runtime.block_on(async {
            for (name, content) in parts {
                match content {
                    Content::Bytes(bytes) => writer.add(&name, bytes).await?,
                    Content::File(path) => writer.add_file(&name, &path).await?,
                }
            }
            writer.finish(meta).await
        })?;
        Ok(Outcome { meta: manifest.meta, found: false })
    }
}

impl Executor for TaskExecutor {
    fn run(&self, assignment: Assignment, context: &TaskContext) -> Result<Outcome, TaskFailure> {
        self.execute(&assignment, context)
            .map_err(|error| TaskFailure { message: error.to_string(), retryable: error.is_retryable() })
    }
}

/// Passes progress on to the session.
struct Reporter<'a>(&'a TaskContext);

impl Progress for Reporter<'_> {
    fn progress(&self, done: u64, total: u64, detail: &str) {
        self.0.progress(done, total, detail);
    }

    fn log(&self, message: &str) {
        self.0.log("INFO", message);
    }

    fn stopped(&self) -> bool {
        self.0.cancelled().is_some()
    }
}
