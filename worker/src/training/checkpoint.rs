//! Checkpoints of a phase: parts named by their content, a manifest written last.

use crate::report::StepPoint;
use crate::tasks::{TaskError, Workbench};
use crate::vectors::{Tensors, Values, write_tensors};
use retort_common::ids::{Digest, TaskId};
use retort_common::store::Store;
use serde::{Deserialize, Serialize};

/// Checkpoints that are kept; older ones are deleted once a newer one is complete.
const KEEP: usize = 2;

/// The state after a step.
#[derive(Clone, Debug, PartialEq)]
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

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    schema_version: u32,
    task: TaskId,
    step: u64,
    part: String,
    sha256: Digest,
    weights_sha256: Digest,
    curve: Vec<StepPoint>,
}

/// The checkpoints of one phase of a job.
pub struct Checkpoints<'a> {
    bench: &'a Workbench<'a>,
    task: TaskId,
    folder: String,
}

impl<'a> Checkpoints<'a> {
    /// Those of a task, under the job on whose behalf it runs.
    pub fn new(bench: &'a Workbench<'a>, task: TaskId) -> Self {
        let folder = format!("jobs/{}/checkpoints/{}", bench.job, task.0.short());
        Self { bench, task, folder }
    }

    fn store(&self) -> &Store {
        self.bench.artifacts.store()
    }

    /// Writes a checkpoint; it exists once its manifest does.
    pub fn save(
        &self,
        step: u64,
        params: &[f32],
        first_moment: &[f32],
        second_moment: &[f32],
        curve: &[StepPoint],
    ) -> Result<(), TaskError> {
        let path = self.bench.scratch("checkpoint.safetensors");
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
        let flat: Vec<u8> = params.iter().flat_map(|value| value.to_le_bytes()).collect();
        let folder = format!("{}/{step:010}", self.folder);
        let manifest = Manifest {
            schema_version: 1,
            task: self.task,
            step,
            part: format!("{folder}/{sha256}.safetensors"),
            sha256,
            weights_sha256: Digest::of(&flat),
            curve: curve.to_vec(),
        };
        let json = serde_json::to_vec_pretty(&manifest).map_err(TaskError::input)?;
        self.bench.wait(async {
            self.store().upload(&manifest.part, &path).await?;
            self.store().put_if_absent(&format!("{folder}/manifest.json"), json.into()).await
        })?;
        self.prune()
    }

    /// The newest checkpoint that is whole and of this task; damaged ones are passed over and logged.
    pub fn latest(&self, parameters: usize) -> Result<Option<Checkpoint>, TaskError> {
        for manifest in self.manifests()?.iter().rev() {
            match self.load(manifest, parameters) {
                Ok(checkpoint) => return Ok(Some(checkpoint)),
                Err(error) if error.is_retryable() => return Err(error),
                Err(error) => {
                    self.bench.progress.log(&format!("checkpoint {manifest} is not usable: {error}"))
                }
            }
        }
        Ok(None)
    }

    fn manifests(&self) -> Result<Vec<String>, TaskError> {
        let mut paths = self.bench.wait(self.store().list(&self.folder))?;
        paths.retain(|path| path.ends_with("/manifest.json"));
        Ok(paths)
    }

    fn load(&self, path: &str, parameters: usize) -> Result<Checkpoint, TaskError> {
        let bytes = self.bench.wait(self.store().get(path))?;
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(TaskError::input)?;
        if manifest.task != self.task {
            return Err(TaskError::Input(format!("it is of task {}", manifest.task)));
        }
        let bytes = self.bench.wait(self.store().get(&manifest.part))?;
        if Digest::of(&bytes) != manifest.sha256 {
            return Err(TaskError::Input(format!("{}: its digest is not the manifest's", manifest.part)));
        }
        let file = self.bench.scratch("resume.safetensors");
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
        Ok(Checkpoint {
            step: manifest.step,
            params: take("params")?,
            first_moment: take("first_moment")?,
            second_moment: take("second_moment")?,
            curve: manifest.curve,
        })
    }

    /// Deletes old checkpoints, manifests first, so that none stands without its parts.
    fn prune(&self) -> Result<(), TaskError> {
        let manifests = self.manifests()?;
        let old = manifests.len().saturating_sub(KEEP);
        for manifest in &manifests[..old] {
            let folder = manifest.trim_end_matches("manifest.json");
            self.bench.wait(async {
                self.store().delete(manifest).await?;
                for part in self.store().list(folder).await? {
                    self.store().delete(&part).await?;
                }
                Ok::<_, retort_common::store::StoreError>(())
            })?;
        }
        Ok(())
    }
}
