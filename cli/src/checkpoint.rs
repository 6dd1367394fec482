//! The verbs for checkpoints. The coordinator knows which there are; their bytes are read from the store itself.

use crate::args::{
    CheckpointDescribeArgs, CheckpointDownloadArgs, CheckpointOneArgs, CheckpointVerb, GetArgs,
};
use crate::config;
use crate::exit::{Exit, UsageError};
use crate::output;
use anyhow::{Context, bail};
use retort_common::checkpoint::CheckpointManifest;
use retort_common::ids::Digest;
use retort_common::store::{self, Location};
use retort_common::view::CheckpointView;
use std::path::PathBuf;

/// Largest manifest that is read; it holds the loss curve.
const MAX_MANIFEST_BYTES: u64 = 256 << 20;

pub async fn checkpoint(verb: CheckpointVerb) -> anyhow::Result<Exit> {
    match verb {
        CheckpointVerb::List(args) => list(args).await,
        CheckpointVerb::Verify(args) => verify(args).await,
        CheckpointVerb::Download(args) => download(args).await,
        CheckpointVerb::Describe(args) => describe(args).await,
        CheckpointVerb::Delete(args) => delete(args).await,
    }
}

async fn list(args: GetArgs) -> anyhow::Result<Exit> {
    let checkpoints = config::client(&args.connect)?.checkpoints(&args.id).await?;
    output::checkpoints(&checkpoints, args.output)?;
    Ok(Exit::Ok)
}

/// Reads every checkpoint and compares it with its digest.
async fn verify(args: GetArgs) -> anyhow::Result<Exit> {
    let checkpoints = config::client(&args.connect)?.checkpoints(&args.id).await?;
    let mut exit = Exit::Ok;
    for checkpoint in checkpoints.iter().filter(|checkpoint| !checkpoint.is_final) {
        let CheckpointView { lineage, step, .. } = checkpoint;
        match read(checkpoint).await {
            Ok(_) => output::line(&format!("{lineage} step {step}: ok"))?,
            Err(error) => {
                output::line(&format!("{lineage} step {step}: damaged: {error:#}"))?;
                exit = Exit::Error;
            }
        }
    }
    Ok(exit)
}

/// Copies one checkpoint to a file.
async fn download(args: CheckpointDownloadArgs) -> anyhow::Result<Exit> {
    let CheckpointDownloadArgs { one, out } = args;
    let checkpoint = find(&one).await?;
    let bytes = read(&checkpoint).await?;
    let name = || PathBuf::from(format!("{}-{}.safetensors", checkpoint.lineage, checkpoint.step));
    let out = out.unwrap_or_else(name);
    std::fs::write(&out, bytes).with_context(|| format!("cannot write {}", out.display()))?;
    output::line(&out.display().to_string())?;
    Ok(Exit::Ok)
}

/// Everything that a checkpoint's manifest says.
async fn describe(args: CheckpointDescribeArgs) -> anyhow::Result<Exit> {
    let CheckpointDescribeArgs { one, output } = args;
    let checkpoint = find(&one).await?;
    let (folder, _) = checkpoint.url.rsplit_once('/').context("the checkpoint's url has no folder")?;
    let url = format!("{folder}/manifest.json");
    let stream = Location::parse(&url)?.stream().await?.with_context(|| format!("{url} is missing"))?;
    let manifest: CheckpointManifest =
        serde_json::from_slice(&store::read_all(stream, &url, MAX_MANIFEST_BYTES).await?)
            .with_context(|| format!("{url} is damaged"))?;
    output::checkpoint(&checkpoint, &manifest, output)?;
    Ok(Exit::Ok)
}

async fn delete(args: CheckpointOneArgs) -> anyhow::Result<Exit> {
    let checkpoint = find(&args).await?;
    let CheckpointView { lineage, step, .. } = &checkpoint;
    config::client(&args.connect)?.delete_checkpoint(&args.id, lineage, *step).await?;
    output::line(&format!("{lineage} step {step}: deleted"))?;
    Ok(Exit::Ok)
}

/// The one checkpoint that is meant.
async fn find(args: &CheckpointOneArgs) -> anyhow::Result<CheckpointView> {
    let CheckpointOneArgs { id, step, lineage, connect } = args;
    let all = config::client(connect)?.checkpoints(id).await?;
    let is_meant = |one: &CheckpointView| {
        !one.is_final
            && one.step == *step
            && lineage.as_ref().is_none_or(|lineage| one.lineage.starts_with(lineage))
    };
    let mut found = all.into_iter().filter(is_meant);
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one),
        (None, _) => {
            bail!("no checkpoint of step {step}; `retort checkpoint list {id}` shows those that there are")
        }
        _ => {
            let text =
                format!("several trainings have a checkpoint of step {step}; say which with --lineage");
            Err(UsageError(text).into())
        }
    }
}

/// A checkpoint's file, if it is what its name says: it is named by its content.
async fn read(checkpoint: &CheckpointView) -> anyhow::Result<Vec<u8>> {
    let url = &checkpoint.url;
    let stream = Location::parse(url)?.stream().await?.with_context(|| format!("{url} is missing"))?;
    let bytes = store::read_all(stream, url, checkpoint.bytes).await?;
    let name = url.rsplit('/').next().unwrap_or_default();
    let digest = Digest::of(&bytes).to_string();
    if name.strip_suffix(".safetensors") != Some(digest.as_str()) {
        bail!("{url}: its digest is {digest}, which is not its name");
    }
    Ok(bytes)
}
