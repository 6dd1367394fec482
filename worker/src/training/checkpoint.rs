//! Checkpoints of a phase: parts named by their content, a manifest written last.
//!
//! They are written in the background, at most one at a time, so that no step waits for the store: one that falls due
//! while another is being written is left out. Any of them gives the bits that an undisturbed training gives.

use crate::report::StepPoint;
use crate::tasks::{TaskError, Workbench};
use crate::vectors::{Tensors, Values, write_tensors};
use retort_common::checkpoint::{self, CheckpointManifest, Lineage, Origin, Place, SCHEMA_VERSION};
use retort_common::ids::{Digest, JobId, TaskId};
use retort_common::store::Store;
use std::path::PathBuf;
use std::thread::JoinHandle;
use tokio::runtime::Handle;

/// The state after a step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Checkpoint {
    /// Steps taken.
    pub step: u64,
    /// Flat parameters.
    pub params: Vec<f32>,
    /// AdamW's first moment.
    pub first_moment: Vec<f32>,
    /// AdamW's second moment.
    pub second_moment: Vec<f32>,
    /// The loss curve so far.
    pub curve: Vec<StepPoint>,
}

/// The checkpoints of one lineage of a job's training.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    store: Store,
    runtime: Handle,
    scratch: PathBuf,
    job: JobId,
    task: TaskId,
    lineage: String,
    /// The state that the lineage began with, where it is a checkpoint of another.
    origin: Option<Origin>,
    /// How many are kept; older ones are deleted once a newer one is complete.
    keep: usize,
}

/// The one checkpoint that is being written, and memory for the next.
#[derive(Debug, Default)]
pub struct InFlight {
    writing: Option<JoinHandle<(Checkpoint, Result<(), TaskError>)>>,
    spare: Checkpoint,
}

/// What became of a checkpoint that fell due.
#[derive(Debug)]
pub enum Offered {
    /// It is being written.
    Taken,
    /// The one before is not complete yet.
    LeftOut,
}

impl Checkpoints {
    /// Those of a task's history that goes on, under the job that the task was begun for.
    pub fn new(bench: &Workbench<'_>, task: TaskId, keep: u32) -> Self {
        let Place { job, lineage: Lineage { number, origin } } = bench.checkpoints.clone();
        Self {
            store: bench.artifacts.store().clone(),
            runtime: bench.runtime.clone(),
            scratch: bench.scratch.clone(),
            job,
            task,
            lineage: checkpoint::lineage(task, number),
            origin,
            keep: keep.max(1) as usize,
        }
    }

    /// The lineage's name.
    pub fn lineage(&self) -> &str {
        &self.lineage
    }

    /// Writes a checkpoint; it exists once its manifest does.
    pub fn save(&self, checkpoint: &Checkpoint) -> Result<(), TaskError> {
        let Checkpoint { step, params, first_moment, second_moment, curve } = checkpoint;
        let path = self.scratch.join("checkpoint.safetensors");
        let shape = || vec![params.len()];
        write_tensors(
            &path,
            &[
                ("first_moment", shape(), Values::F32(first_moment)),
                ("params", shape(), Values::F32(params)),
                ("second_moment", shape(), Values::F32(second_moment)),
            ],
        )?;
        let bytes = std::fs::read(&path).map_err(Workbench::scratch_error(&path))?;
        let sha256 = Digest::of(&bytes);
        let folder = checkpoint::step_folder(&self.job, &self.lineage, *step);
        let manifest = CheckpointManifest {
            schema_version: SCHEMA_VERSION,
            task: self.task,
            step: *step,
            part: format!("{folder}/{sha256}.safetensors"),
            bytes: bytes.len() as u64,
            sha256,
            weights_sha256: weights_sha256(params),
            loss: curve.last().map(|point| point.loss),
            curve: serde_json::to_value(curve).map_err(TaskError::input)?,
        };
        let json = serde_json::to_vec_pretty(&manifest).map_err(TaskError::input)?;
        self.runtime.block_on(async {
            self.store.upload(&manifest.part, &path).await?;
            self.store.put_if_absent(&format!("{folder}/manifest.json"), json.into()).await
        })?;
        self.prune()
    }

    /// Has a checkpoint written in the background. `fill` puts the state into memory that is used again and again.
    /// Also says what went wrong with the one before.
    pub fn offer(
        &self,
        in_flight: &mut InFlight,
        fill: impl FnOnce(&mut Checkpoint),
    ) -> Result<Offered, TaskError> {
        if in_flight.writing.as_ref().is_some_and(|writing| !writing.is_finished()) {
            return Ok(Offered::LeftOut);
        }
        let before = in_flight.settle();
        let mut checkpoint = std::mem::take(&mut in_flight.spare);
        fill(&mut checkpoint);
        let own = self.clone();
        let write = move || {
            let outcome = own.save(&checkpoint);
            (checkpoint, outcome)
        };
        let thread = std::thread::Builder::new().name("checkpoint".to_owned()).spawn(write);
        let scratch = self.scratch.clone();
        in_flight.writing = Some(thread.map_err(Workbench::scratch_error(&scratch))?);
        before.map(|()| Offered::Taken)
    }

    /// The newest checkpoint that is whole and of this task; with `at_most`, the newest of at most so many steps.
    /// Where the lineage has none yet, what it branched off from. Damaged ones are passed over and told to `log`.
    pub fn latest(
        &self,
        parameters: usize,
        at_most: Option<u64>,
        log: &dyn Fn(&str),
    ) -> Result<Option<Checkpoint>, TaskError> {
        let origin = self.origin.map(|Origin { number, step }| {
            let lineage = checkpoint::lineage(self.task, number);
            format!("{}/manifest.json", checkpoint::step_folder(&self.job, &lineage, step))
        });
        for manifest in self.manifests()?.iter().rev().chain(&origin) {
            let step = checkpoint::parse_path(&self.job, manifest).map(|(_, step)| step);
            if step.is_none_or(|step| at_most.is_some_and(|limit| step > limit)) {
                continue;
            }
            match self.load(manifest, parameters) {
                Ok(checkpoint) => return Ok(Some(checkpoint)),
                Err(error) if error.is_retryable() => return Err(error),
                Err(error) => log(&format!("checkpoint {manifest} is not usable: {error}")),
            }
        }
        Ok(None)
    }

    /// The manifests of this lineage, in the order of steps.
    fn manifests(&self) -> Result<Vec<String>, TaskError> {
        let folder = format!("{}/{}", checkpoint::folder(&self.job), self.lineage);
        let mut paths = self.runtime.block_on(self.store.list(&folder))?;
        paths.retain(|path| path.ends_with("/manifest.json"));
        paths.sort();
        Ok(paths)
    }

    fn load(&self, path: &str, parameters: usize) -> Result<Checkpoint, TaskError> {
        let bytes = self.runtime.block_on(self.store.get(path))?;
        let manifest: CheckpointManifest = serde_json::from_slice(&bytes).map_err(TaskError::input)?;
        if manifest.task != self.task {
            return Err(TaskError::Input(format!("it is of task {}", manifest.task)));
        }
        let curve = serde_json::from_value(manifest.curve).map_err(TaskError::input)?;
        let bytes = self.runtime.block_on(self.store.get(&manifest.part))?;
        if Digest::of(&bytes) != manifest.sha256 {
            return Err(TaskError::Input(format!("{}: its digest is not the manifest's", manifest.part)));
        }
        let file = self.scratch.join("resume.safetensors");
        std::fs::write(&file, &bytes).map_err(Workbench::scratch_error(&file))?;
        let tensors = Tensors::read(&file)?;
        let take = |name: &str| {
            let (_, values) = tensors.f32(name)?;
            if values.len() == parameters {
                return Ok(values);
            }
            let (found, part) = (values.len(), &manifest.part);
            Err(TaskError::Input(format!("{part}: {name} has {found} values, the student {parameters}")))
        };
        let (params, first_moment) = (take("params")?, take("first_moment")?);
        let second_moment = take("second_moment")?;
        Ok(Checkpoint { step: manifest.step, params, first_moment, second_moment, curve })
    }

    /// Deletes old checkpoints, manifests first, so that none stands without its parts.
    fn prune(&self) -> Result<(), TaskError> {
        let manifests = self.manifests()?;
        let old = manifests.len().saturating_sub(self.keep);
        for manifest in &manifests[..old] {
            let folder = manifest.trim_end_matches("manifest.json");
            self.runtime.block_on(async {
                self.store.delete(manifest).await?;
                for part in self.store.list(folder).await? {
                    self.store.delete(&part).await?;
                }
                Ok::<_, retort_common::store::StoreError>(())
            })?;
        }
        Ok(())
    }
}

impl InFlight {
    /// Waits until nothing is being written; what went wrong with it.
    pub fn settle(&mut self) -> Result<(), TaskError> {
        match self.writing.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok((checkpoint, outcome))) => {
                self.spare = checkpoint;
                outcome
            }
            Some(Err(_)) => Err(TaskError::Cohort("writing a checkpoint panicked".to_owned())),
        }
    }
}

impl Drop for InFlight {
    /// The scratch folder must outlive what is being written from it.
    fn drop(&mut self) {
        if let Some(writing) = self.writing.take() {
            let _ = writing.join();
        }
    }
}

/// The digest of flat parameters as little-endian f32.
pub fn weights_sha256(params: &[f32]) -> Digest {
    let flat: Vec<u8> = params.iter().flat_map(|value| value.to_le_bytes()).collect();
    Digest::of(&flat)
}
