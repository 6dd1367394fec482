//! The verbs for checkpoints. The coordinator knows which there are; their bytes are read from the store itself.

use crate::args::{CheckpointDownloadArgs, CheckpointVerb, GetArgs};
use crate::config;
use crate::exit::{Exit, UsageError};
use crate::output;
use anyhow::{Context, bail};
use retort_common::client::CheckpointView;
use retort_common::ids::Digest;
use retort_common::store::{self, Location};
use std::path::PathBuf;

pub async fn checkpoint(verb: CheckpointVerb) -> anyhow::Result<Exit> {
    match verb {
        CheckpointVerb::List(args) => list(args).await,
        CheckpointVerb::Verify(args) => verify(args).await,
        CheckpointVerb::Download(args) => download(args).await,
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
    let CheckpointDownloadArgs { id, step, lineage, out, connect } = args;
    let all = config::client(&connect)?.checkpoints(&id).await?;
    let of_lineage =
        |one: &&CheckpointView| lineage.as_ref().is_none_or(|lineage| one.lineage.starts_with(lineage));
    let found: Vec<_> =
        all.iter().filter(|one| !one.is_final && one.step == step).filter(of_lineage).collect();
    let checkpoint = match found.as_slice() {
        [one] => *one,
        [] => bail!("no checkpoint of step {step}; `retort checkpoint list {id}` shows those that there are"),
        _ => {
            let text =
                format!("several trainings have a checkpoint of step {step}; say which with --lineage");
            return Err(UsageError(text).into());
        }
    };
    let bytes = read(checkpoint).await?;
    let out = out.unwrap_or_else(|| PathBuf::from(format!("{}-{step}.safetensors", checkpoint.lineage)));
    std::fs::write(&out, bytes).with_context(|| format!("cannot write {}", out.display()))?;
    output::line(&out.display().to_string())?;
    Ok(Exit::Ok)
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
