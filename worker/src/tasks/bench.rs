//! What every task works with: artifacts in, scratch files, progress out.

use crate::exchange::Exchange;
use crate::model::Device;
use crate::session::TaskContext;
use crate::tables::{Judgement, PassageShard, QueryShard, TableError, read_judgements};
use crate::vectors::{VectorError, VectorRows};
use bytes::Bytes;
use retort_common::artifact::{ArtifactError, ArtifactReader, Manifest};
use retort_common::checkpoint::Place;
use retort_common::ids::WorkerId;
use retort_common::store::StoreError;
use retort_common::task::{ArtifactId, Table};
use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;
use tokio::runtime::Handle;

/// A task that failed: what, where and what to do.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// An artifact could not be read or written.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A table could not be read or written.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A tensor file could not be read or written.
    #[error(transparent)]
    Vectors(#[from] VectorError),
    /// A scratch file failed.
    #[error("{path}: {source}")]
    Scratch {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// An input that is not as it must be: file, place in it, and what to do.
    #[error("{0}")]
    Input(String),
    /// A cohort or this worker's part in it is not as it must be.
    #[error("cohort: {0}")]
    Cohort(String),
    /// The coordinator asked to stop.
    #[error("stopped on request")]
    Stopped,
}

impl TaskError {
    /// Wraps the error of an input's own reader, which names place and remedy.
    pub fn input(error: impl std::fmt::Display) -> Self {
        Self::Input(error.to_string())
    }

    /// Whether another try can help.
    pub fn is_retryable(&self) -> bool {
        match self {
            TaskError::Artifact(ArtifactError::Store(error)) | TaskError::Store(error) => {
                error.is_transient()
            }
            // This worker's disk or this copy is at fault; another worker may do better.
            TaskError::Artifact(ArtifactError::Disk { .. } | ArtifactError::Corrupt { .. })
            | TaskError::Table(TableError::Io { .. })
            | TaskError::Vectors(VectorError::Io { .. })
            | TaskError::Scratch { .. }
            | TaskError::Cohort(_) => true,
            _ => false,
        }
    }
}

/// A part of an artifact before it is stored.
#[derive(Debug)]
pub enum Content {
    /// In memory.
    Bytes(Bytes),
    /// In a scratch file.
    File(PathBuf),
}

/// What a task made.
#[derive(Debug)]
pub struct Produced {
    /// The parts by name.
    pub parts: Vec<(String, Content)>,
    /// The numbers about it.
    pub meta: Value,
}

/// Where a task says how far it has come and asks whether to stop.
pub trait Progress: Sync {
    /// Units done of all.
    fn progress(&self, done: u64, total: u64, detail: &str);
    /// A line for the job's log.
    fn log(&self, message: &str);
    /// Whether the coordinator asked to stop.
    fn stopped(&self) -> bool;
}

/// Everything a task may use. Tasks are plain functions on their own thread; only here do they meet the runtime.
pub struct Workbench<'a> {
    /// Artifacts through the cache.
    pub artifacts: ArtifactReader,
    /// The device for tensors.
    pub device: Device,
    /// Compute threads.
    pub threads: usize,
    /// Where a training's checkpoints lie.
    pub checkpoints: Place,
    /// A folder that is removed after the task.
    pub scratch: PathBuf,
    /// Where progress goes.
    pub progress: &'a dyn Progress,
    /// The runtime that does input and output.
    pub runtime: Handle,
    /// The encoder used last, loaded.
    pub encoders: &'a super::embed::EncoderCache,
    /// The worker's place among others that compute the task, where they may.
    pub seat: Option<Seat<'a>>,
}

/// What a task for a cohort needs of its worker.
pub struct Seat<'a> {
    /// The line to the coordinator, who names generations.
    pub context: &'a TaskContext,
    /// Who this is.
    pub worker: WorkerId,
    /// The exchange with peers; none where the worker has none.
    pub exchange: Option<Exchange>,
    /// How long to go on without the coordinator.
    pub orphan_limit: Duration,
}

impl Seat<'_> {
    /// Whether the coordinator names generations for this task.
    pub fn is_in_cohort(&self) -> bool {
        self.context.control().borrow().generation.is_some()
    }

    /// Whether the cohort goes on without this worker until it says that it is ready.
    pub fn stands_by(&self) -> bool {
        self.context
            .control()
            .borrow()
            .generation
            .as_ref()
            .is_some_and(|generation| generation.members.is_empty())
    }
}

impl Workbench<'_> {
    /// Waits for input or output.
    pub fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Fails if the coordinator asked to stop.
    pub fn go_on(&self) -> Result<(), TaskError> {
        if self.progress.stopped() { Err(TaskError::Stopped) } else { Ok(()) }
    }

    /// A path for a scratch file.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    /// Reports a failed scratch file.
    pub fn scratch_error(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> TaskError {
        let path = path.to_owned();
        move |source| TaskError::Scratch { path, source }
    }

    /// The manifest of an artifact.
    pub fn manifest(&self, artifact: &ArtifactId) -> Result<Manifest, TaskError> {
        Ok(self.wait(self.artifacts.manifest(artifact))?)
    }

    /// A verified local copy of a part.
    pub fn part(&self, artifact: &ArtifactId, name: &str) -> Result<PathBuf, TaskError> {
        let manifest = self.manifest(artifact)?;
        Ok(self.wait(self.artifacts.part(&manifest, name))?)
    }

    /// A JSON part.
    pub fn json<T: serde::de::DeserializeOwned>(
        &self,
        artifact: &ArtifactId,
        name: &str,
    ) -> Result<T, TaskError> {
        let path = self.part(artifact, name)?;
        let bytes = std::fs::read(&path).map_err(Self::scratch_error(&path))?;
        serde_json::from_slice(&bytes)
            .map_err(|error| TaskError::Input(format!("{artifact} part {name}: {error}")))
    }

    /// One shard of the corpus.
    pub fn passages(&self, table: &Table, shard: u32) -> Result<PassageShard, TaskError> {
        Ok(PassageShard::read(&self.part(&table.artifact, &shard_name(shard))?)?)
    }

    /// One shard of the questions.
    pub fn queries(&self, table: &Table, shard: u32) -> Result<QueryShard, TaskError> {
        Ok(QueryShard::read(&self.part(&table.artifact, &shard_name(shard))?)?)
    }

    /// The judgements of some sets.
    pub fn judgements(&self, queries: &Table, sets: &[String]) -> Result<Vec<Judgement>, TaskError> {
        let mut judgements = read_judgements(&self.part(&queries.artifact, JUDGEMENTS)?)?;
        judgements.retain(|judgement| sets.contains(&judgement.set));
        Ok(judgements)
    }

    /// Vectors by row.
    pub fn vector_rows(&self, shards: &[ArtifactId]) -> Result<VectorRows, TaskError> {
        let mut rows = VectorRows::default();
        for shard in shards {
            // Opened at once: the cache may drop the file's name when it fetches the next one.
            rows.push(&self.part(shard, VECTORS)?)?;
        }
        Ok(rows)
    }
}

/// The part that holds vectors.
pub const VECTORS: &str = "vectors.safetensors";
/// The part that holds judgements.
pub const JUDGEMENTS: &str = "judgements.parquet";
/// The part that holds ranked lists.
pub const RANKING: &str = "ranking.parquet";

/// The part that holds a shard of a table.
pub fn shard_name(shard: u32) -> String {
    format!("{shard:06}.parquet")
}
