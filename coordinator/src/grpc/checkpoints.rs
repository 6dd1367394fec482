//! Checkpoints as they lie in the store, and the weights of trainings that are done.

use super::CallError;
use crate::scheduler::view::{OpenTraining, Training};
use retort_common::checkpoint::{self, CheckpointManifest, Lineage, Origin, Place};
use retort_common::ids::{JobId, TaskId};
use retort_common::proto;
use retort_common::store::Store;
use std::collections::{BTreeMap, BTreeSet};

/// Checkpoints that one answer holds at most; the newest of each training stay.
const MAX_LISTED: usize = 10_000;

/// One checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct Which<'a> {
    /// Whose.
    pub job: &'a JobId,
    /// In which history.
    pub lineage: &'a str,
    /// After how many steps.
    pub step: u64,
}

/// A job's checkpoints by training and step, those of trainings that are done last in theirs. A checkpoint that goes
/// away meanwhile, or cannot be read, is left out.
pub async fn list(
    store: &Store,
    job: &JobId,
    places: &BTreeMap<TaskId, Place>,
    finished: Vec<Training>,
) -> Result<Vec<proto::Checkpoint>, CallError> {
    let mut found = Vec::new();
    for (home, lineage, step) in manifests(store, job, places).await?.into_iter().take(MAX_LISTED) {
        let path = format!("{}/manifest.json", checkpoint::step_folder(&home, &lineage, step));
        let Ok(bytes) = store.get(&path).await else { continue };
        let Ok(manifest) = serde_json::from_slice::<CheckpointManifest>(&bytes) else {
            tracing::warn!(path, "a checkpoint's manifest cannot be read");
            continue;
        };
        if manifest.step != step {
            continue;
        }
        found.push(encode(store, &lineage, manifest));
    }
    found.extend(finished.into_iter().map(|training| {
        let Training { task, steps, weights_sha256, loss } = training;
        proto::Checkpoint {
            task: task.to_string(),
            lineage: String::new(),
            step: steps,
            weights_sha256,
            loss,
            bytes: 0,
            r#final: true,
            url: String::new(),
        }
    }));
    found.sort_by(|a, b| (&a.task, a.step, a.r#final).cmp(&(&b.task, b.step, b.r#final)));
    Ok(found)
}

/// The checkpoints that lie under a job, and those of its trainings that were begun for another: whose folder, lineage
/// and step.
pub(super) async fn manifests(
    store: &Store,
    job: &JobId,
    places: &BTreeMap<TaskId, Place>,
) -> Result<Vec<(JobId, String, u64)>, CallError> {
    let homes: BTreeSet<&JobId> = places.values().map(|place| &place.job).chain([job]).collect();
    let mut found = Vec::new();
    for home in homes {
        let paths = store.list(&checkpoint::folder(home)).await?;
        let read = paths.iter().filter_map(|path| checkpoint::parse_path(home, path));
        let own = |lineage: &str| {
            let mut of = places.iter().filter(|(task, _)| checkpoint::number(lineage, **task).is_some());
            of.next().map_or(home == job, |(_, place)| place.job == *home)
        };
        let kept = read.filter(|(lineage, _)| own(lineage));
        found.extend(kept.map(|(lineage, step)| (home.clone(), lineage.to_owned(), step)));
    }
    Ok(found)
}

/// Deletes a checkpoint, its manifest first, so that none stands without its parts. That from which one of the `open`
/// trainings would go on is refused.
pub async fn delete(
    store: &Store,
    Which { job, lineage, step }: Which<'_>,
    places: &BTreeMap<TaskId, Place>,
    open: &[OpenTraining],
) -> Result<(), CallError> {
    let all = manifests(store, job, places).await?;
    let is_meant = |(_, name, at): &&(JobId, String, u64)| name == lineage && *at == step;
    let missing = || CallError::NoCheckpoint { job: job.clone(), lineage: lineage.to_owned(), step };
    let (home, ..) = all.iter().find(is_meant).ok_or_else(missing)?;
    let steps = all.iter().filter(|(_, name, _)| name == lineage).map(|(_, _, step)| *step);
    let newest = steps.max() == Some(step);
    let needed = open.iter().any(|training| {
        let number = checkpoint::number(lineage, training.task);
        let Lineage { number: own, origin } = training.place.lineage;
        let begins_with = |origin: Origin| number == Some(origin.number) && origin.step == step;
        (number == Some(own) && newest) || origin.is_some_and(begins_with)
    });
    if needed {
        return Err(CallError::NeededCheckpoint { step });
    }
    let folder = checkpoint::step_folder(home, lineage, step);
    let path = format!("{folder}/manifest.json");
    store.delete(&path).await?;
    for part in store.list(&folder).await?.iter().filter(|part| **part != path) {
        store.delete(part).await?;
    }
    Ok(())
}

fn encode(store: &Store, lineage: &str, manifest: CheckpointManifest) -> proto::Checkpoint {
    let CheckpointManifest {
        schema_version: _,
        task,
        step,
        part,
        bytes,
        sha256: _,
        weights_sha256,
        loss,
        curve: _,
    } = manifest;
    proto::Checkpoint {
        task: task.to_string(),
        lineage: lineage.to_owned(),
        step,
        weights_sha256: weights_sha256.to_string(),
        loss,
        bytes,
        r#final: false,
        url: store.url_of(&part),
    }
}
