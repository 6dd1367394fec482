//! Checkpoints of trainings as they lie in the store: `jobs/{job}/checkpoints/{lineage}/{step:010}/manifest.json`
//! beside the parts that it names. A checkpoint exists once its manifest does.

use crate::ids::{Digest, JobId, TaskId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The form of manifests.
pub const SCHEMA_VERSION: u32 = 2;

/// What a checkpoint consists of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointManifest {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The training.
    pub task: TaskId,
    /// Steps taken.
    pub step: u64,
    /// Path of the file with parameters and moments, named by its content.
    pub part: String,
    /// Its size.
    pub bytes: u64,
    /// Its digest.
    pub sha256: Digest,
    /// Digest of the flat parameters as little-endian f32.
    pub weights_sha256: Digest,
    /// Loss of the last step; none before the first.
    pub loss: Option<f64>,
    /// The loss curve so far.
    pub curve: Value,
}

/// Which history of a training goes on: its number, and where it branched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lineage {
    /// 1 for the first.
    pub number: u32,
    /// The state that it began with; without one it began with the training's own beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

/// A checkpoint of an earlier lineage of the same training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// The number of that lineage.
    pub number: u32,
    /// Steps taken.
    pub step: u64,
}

impl Lineage {
    /// The lineage that every training begins with.
    pub const FIRST: Self = Self { number: 1, origin: None };

    /// The one that comes after this one.
    pub fn next(self, origin: Option<Origin>) -> Self {
        Self { number: self.number.saturating_add(1), origin }
    }
}

/// Where a training's checkpoints lie, and which of its histories goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The job that the training was begun for; others that want it go on from there.
    pub job: JobId,
    /// The history.
    pub lineage: Lineage,
}

/// Folder of a job's checkpoints.
pub fn folder(job: &JobId) -> String {
    format!("jobs/{job}/checkpoints")
}

/// One unbroken history of a training: its name within the job. The first has number 1.
pub fn lineage(task: TaskId, number: u32) -> String {
    if number <= 1 { task.0.short() } else { format!("{}-{number}", task.0.short()) }
}

/// A lineage's number, if it is one of a training's.
pub fn number(name: &str, task: TaskId) -> Option<u32> {
    match name.strip_prefix(task.0.short().as_str())? {
        "" => Some(1),
        rest => rest.strip_prefix('-')?.parse().ok().filter(|number| *number > 1),
    }
}

/// Folder of one checkpoint.
pub fn step_folder(job: &JobId, lineage: &str, step: u64) -> String {
    format!("{}/{lineage}/{step:010}", folder(job))
}

/// Lineage and step of a manifest's path, if it is one.
pub fn parse_path<'a>(job: &JobId, path: &'a str) -> Option<(&'a str, u64)> {
    let rest = path.strip_prefix(&folder(job))?.strip_prefix('/')?.strip_suffix("/manifest.json")?;
    let (lineage, step) = rest.split_once('/')?;
    (!lineage.is_empty()).then_some((lineage, step.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_as_they_are_written() {
        let (job, task) = ("j".parse().unwrap(), TaskId(Digest::of(b"t")));
        for (number, step) in [(1, 0), (2, 12_345_678_901)] {
            let lineage = lineage(task, number);
            let path = format!("{}/manifest.json", step_folder(&job, &lineage, step));
            assert_eq!(parse_path(&job, &path), Some((lineage.as_str(), step)));
            let (own, other) = (super::number(&lineage, task), TaskId(Digest::of(b"u")));
            assert_eq!((own, super::number(&lineage, other)), (Some(number), None));
        }
        for name in ["-2", "-1", "-x", "x", "-"] {
            assert_eq!(
                super::number(&format!("{}{name}", task.0.short()), task),
                (name == "-2").then_some(2)
            );
        }
        for path in ["jobs/j/checkpoints/manifest.json", "jobs/k/checkpoints/a/1/manifest.json", "x"] {
            assert_eq!(parse_path(&job, path), None, "{path}");
        }
    }
}
