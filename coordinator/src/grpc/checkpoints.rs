//! Checkpoints as they lie in the store, and the weights of trainings that are done.

use super::CallError;
use crate::scheduler::view::Training;
use retort_common::checkpoint::{self, CheckpointManifest};
use retort_common::ids::{JobId, TaskId};
use retort_common::proto;
use retort_common::store::Store;
use std::collections::BTreeSet;

/// Checkpoints that one answer holds at most; the newest of each training stay.
const MAX_LISTED: usize = 10_000;

/// A job's checkpoints by training and step, those of trainings that are done last in theirs. A checkpoint that goes
/// away meanwhile, or cannot be read, is left out.
pub async fn list(
    store: &Store,
    job: &JobId,
    finished: Vec<Training>,
) -> Result<Vec<proto::Checkpoint>, CallError> {
    let mut found = Vec::new();
    for path in store.list(&checkpoint::folder(job)).await?.into_iter().take(MAX_LISTED) {
        let Some((lineage, step)) = checkpoint::parse_path(job, &path) else { continue };
        let Ok(bytes) = store.get(&path).await else { continue };
        let Ok(manifest) = serde_json::from_slice::<CheckpointManifest>(&bytes) else {
            tracing::warn!(path, "a checkpoint's manifest cannot be read");
            continue;
        };
        if manifest.step != step {
            continue;
        }
        found.push(encode(store, lineage, manifest));
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

/// Deletes a checkpoint, its manifest first, so that none stands without its parts. That from which one of the `open`
/// trainings would go on is refused.
pub async fn delete(
    store: &Store,
    job: &JobId,
    lineage: &str,
    step: u64,
    open: &BTreeSet<TaskId>,
) -> Result<(), CallError> {
    let folder = checkpoint::step_folder(job, lineage, step);
    let path = format!("{folder}/manifest.json");
    let plain = checkpoint::parse_path(job, &path) == Some((lineage, step)) && !lineage.contains(['/', '.']);
    let all = if plain { store.list(&checkpoint::folder(job)).await? } else { Vec::new() };
    if !all.contains(&path) {
        return Err(CallError::NoCheckpoint { job: job.clone(), lineage: lineage.to_owned(), step });
    }
    let steps = all.iter().filter_map(|path| checkpoint::parse_path(job, path));
    let newest = steps.filter(|(name, _)| *name == lineage).map(|(_, step)| step).max();
    if newest == Some(step) && open.iter().any(|task| checkpoint::is_of(lineage, *task)) {
        return Err(CallError::NeededCheckpoint { step });
    }
    store.delete(&path).await?;
    for part in all.iter().filter(|part| part.starts_with(&format!("{folder}/")) && **part != path) {
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
