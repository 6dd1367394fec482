//! `retort export`: results of a finished job in the formats of other programs, read from the store.

use crate::args::ExportArgs;
use crate::config;
use crate::exit::{Exit, UsageError};
use crate::output;
use anyhow::{Context, bail};
use retort_common::artifact::{ArtifactReader, Cache};
use retort_common::checkpoint::{Lineage, Place};
use retort_common::ids::JobId;
use retort_common::store::{Store, StoreError};
use retort_worker::export::catalog::{CATALOG, Catalog};
use retort_worker::export::{self, Format};
use retort_worker::model::Device;
use retort_worker::tasks::{EncoderCache, Progress, TaskError, Workbench};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;

/// What artifacts may take on this machine while they are read.
const CACHE_BYTES: u64 = 10_000_000_000;
/// Pause between looks for an interrupt.
const POLL: Duration = Duration::from_millis(50);

/// Exports a row of a job.
pub async fn export(args: ExportArgs) -> anyhow::Result<Exit> {
    let (store, job) = match &args.store {
        Some(url) => of_store(url, &args.id).await?,
        None => match of_coordinator(&args).await? {
            Ok(found) => found,
            Err(exit) => return Ok(exit),
        },
    };
    let path = format!("jobs/{job}/report/{CATALOG}");
    let bytes = match store.get(&path).await {
        Ok(bytes) => bytes,
        Err(StoreError::Missing { .. }) => bail!(
            "job {job} has no {CATALOG} beside its report in {}: it has not ended well, or an older version made it; \
             submit it again, what is there already is not computed again",
            store.url()
        ),
        Err(error) => return Err(error.into()),
    };
    let catalog: Catalog =
        serde_json::from_slice(&bytes).with_context(|| format!("{path} cannot be read"))?;
    let folder = args.out.clone().unwrap_or_else(|| default_folder(&catalog, &args));
    let scratch = tempfile::tempdir().context("cannot make a temporary folder")?;
    let stopped = std::sync::Arc::new(AtomicBool::new(false));
    let work = {
        let (row, format) = (args.row.clone(), args.format);
        let (folder, stopped, scratch) = (folder.clone(), stopped.clone(), scratch.path().to_owned());
        let runtime = Handle::current();
        tokio::task::spawn_blocking(move || {
            write(&store, &catalog, row.as_deref(), format, &folder, &scratch, &stopped, runtime)
        })
    };
    tokio::pin!(work);
    let done = loop {
        tokio::select! {
            done = &mut work => break done.context("the export broke off")?,
            _ = tokio::signal::ctrl_c() => stopped.store(true, Ordering::Relaxed),
            () = tokio::time::sleep(POLL) => {}
        }
    };
    match done {
        Ok(manifest) => {
            print(&manifest, &folder, args.output == crate::args::ReportFormat::Json)?;
            Ok(Exit::Ok)
        }
        Err(TaskError::Stopped) => {
            eprintln!("stopped; {} has no manifest and is not complete", folder.display());
            Ok(Exit::Interrupted)
        }
        Err(error) => Err(error.into()),
    }
}

#[expect(clippy::too_many_arguments, reason = "the one call that carries everything to the other thread")]
fn write(
    store: &Store,
    catalog: &Catalog,
    row: Option<&str>,
    format: Format,
    folder: &Path,
    scratch: &Path,
    stopped: &AtomicBool,
    runtime: Handle,
) -> Result<Value, TaskError> {
    let cache = Cache::open(&scratch.join("cache"), CACHE_BYTES)?;
    let job = catalog.job.parse().map_err(TaskError::input)?;
    let bench = Workbench {
        artifacts: ArtifactReader::new(store.clone(), cache),
        device: Device::flex(),
        threads: 1,
        checkpoints: Place { job, lineage: Lineage::FIRST },
        scratch: scratch.to_owned(),
        progress: &Watch { stopped },
        runtime,
        encoders: &EncoderCache::default(),
        seat: None,
    };
    export::export(&bench, catalog, row, format, folder)
}

/// Passes the user's interrupt on; says nothing of its own.
struct Watch<'a> {
    stopped: &'a AtomicBool,
}

impl Progress for Watch<'_> {
    fn progress(&self, _: u64, _: u64, _: &str) {}

    fn log(&self, message: &str) {
        eprintln!("{message}");
    }

    fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }
}

/// The store and the full id of a job that the coordinator knows; an exit code where it has not succeeded.
async fn of_coordinator(args: &ExportArgs) -> anyhow::Result<Result<(Store, JobId), Exit>> {
    let job = config::client(&args.connect)?.get(&args.id).await?;
    if job.report_url.is_empty() {
        eprintln!("job {} is {}: only jobs that have succeeded are exported", job.id, job.state);
        return Ok(Err(match Exit::of_job(job.state) {
            Exit::Ok => Exit::Error,
            exit => exit,
        }));
    }
    let root = job.report_url.strip_suffix(&format!("jobs/{}/report", job.id));
    let root = root.with_context(|| format!("{} names no store", job.report_url))?;
    Ok(Ok((Store::open(root)?, job.id.parse()?)))
}

/// The job in a store whose id begins with `prefix`.
pub async fn of_store(url: &str, prefix: &str) -> anyhow::Result<(Store, JobId)> {
    let store = Store::open(url)?;
    let reports = store.list("jobs").await?;
    let mut found: Vec<&str> = reports
        .iter()
        .filter_map(|path| path.strip_prefix("jobs/")?.strip_suffix(&format!("/report/{CATALOG}")))
        .filter(|id| id.starts_with(prefix))
        .collect();
    found.dedup();
    if let Some(exact) = found.iter().find(|id| **id == prefix) {
        let id = exact.parse()?;
        return Ok((store, id));
    }
    match found.as_slice() {
        [id] => {
            let id = id.parse()?;
            Ok((store, id))
        }
        [] => {
            Err(UsageError(format!("no finished job in {url} has an id that begins with {prefix:?}")).into())
        }
        several => Err(UsageError(format!("{prefix:?} begins the ids of {}", several.join(", "))).into()),
    }
}

fn default_folder(catalog: &Catalog, args: &ExportArgs) -> PathBuf {
    let row = args.row.as_ref().map(|row| format!("-{row}")).unwrap_or_default();
    PathBuf::from(format!("{}{row}-{}", catalog.job, args.format.name()))
}

fn print(manifest: &Value, folder: &Path, json: bool) -> anyhow::Result<()> {
    if json {
        return Ok(output::json_document(manifest.clone())?);
    }
    for file in manifest["files"].as_array().into_iter().flatten() {
        let (name, bytes) = (file["name"].as_str().unwrap_or_default(), file["bytes"].as_u64().unwrap_or(0));
        output::line(&format!("{bytes:>14}  {}", folder.join(name).display()))?;
    }
    output::line(&format!("{:>14}  {}", "", folder.join(export::MANIFEST).display()))?;
    Ok(())
}
