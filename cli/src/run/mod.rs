//! `retort run`: a whole cluster on this machine, for one job.
//!
//! - [`supervisor`]: the child processes: started, restarted, ended
//! - [`place`]: where store, logs and lock lie; one run per store at a time
//! - [`progress`]: what the job does, live on stderr

mod place;
mod progress;
mod supervisor;

use crate::args::{ReportFormat, RunArgs};
use crate::exit::Exit;
use crate::{output, verbs};
use anyhow::Context;
use place::Place;
use progress::Progress;
use retort_common::client::{Client, LogQuery};
use retort_common::net::NetOptions;
use retort_common::spec;
use retort_common::spec::JobSpec;
use retort_common::spec::inputs::JobInputs;
use retort_common::store::{Store, StoreError};
use retort_common::view::{JobState, JobView};
use retort_worker::model::Device;
use std::time::Duration;
use supervisor::{Folders, Means, Supervisor};

/// Most workers that are started unless told otherwise.
const MOST_WORKERS: usize = 8;
/// The supervisor decides whether the coordinator comes back, so the client waits longer than any restart.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);
/// Log lines shown when a job has failed.
const LAST_LINES: usize = 10;

pub async fn run(args: RunArgs) -> anyhow::Result<Exit> {
    // A wrong spec is reported before anything is started.
    let (spec, inputs) = verbs::load(&args.spec, None).await?;
    let device = Device::parse(&args.device)?.name().to_owned();
    let place = Place::take(args.store.as_deref())?;
    eprintln!("store: {}", place.store.url());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = args.workers.map_or(cores.min(MOST_WORKERS), usize::from);
    let program = std::env::current_exe().context("cannot find the retort program itself")?;
    let folders = Folders { logs: place.logs.clone(), cache: place.cache.clone() };
    let means = Means { threads: args.threads, device };
    let mut supervisor = Supervisor::new(program, place.store.url(), folders, workers, means)?;
    let failure = supervisor.failure();
    let outcome = tokio::select! {
        outcome = drive(&supervisor, &place.store, &spec, &inputs) => outcome,
        cause = failure => Err(cause),
        _ = tokio::signal::ctrl_c() => Ok(None),
    };
    supervisor.stop().await;
    // Everything in it came from the store or has been put there; what cannot be removed serves the next run.
    let _ = std::fs::remove_dir_all(&place.cache);
    match outcome {
        Ok(Some(job)) => finish(&job, &place, args.output).await,
        Ok(None) => {
            eprintln!("interrupted; run the same command again to resume");
            Ok(Exit::Interrupted)
        }
        Err(error) => {
            Err(error.context(format!("the run ended; its processes' logs are in {}", place.logs.display())))
        }
    }
}

/// Finds or submits the job and shows it until it has ended.
async fn drive(
    supervisor: &Supervisor,
    store: &Store,
    spec: &JobSpec,
    inputs: &JobInputs,
) -> anyhow::Result<Option<JobView>> {
    let address = supervisor.coordinator_address().await;
    let client = Client::new(&[address], &NetOptions::default())?.with_patience(PATIENCE);
    let id = find_or_submit(&mut client.clone(), store, spec, inputs).await?;
    let (mut changes, mut lines) =
        (client.watch(&id), client.logs(&id, LogQuery { follow: true, ..LogQuery::default() }));
    let (mut progress, mut last, mut logging) = (Progress::new(), None, true);
    loop {
        tokio::select! {
            change = changes.next() => match change? {
                Some(job) => {
                    // A finished job needs no workers.
                    if !job.state.has_ended() {
                        supervisor.need_workers();
                    }
                    progress.show(&job);
                    last = Some(job);
                }
                None => break,
            },
            line = lines.next(), if logging => match line {
                Ok(Some(line)) if line.level != "INFO" => progress.say(&output::log_text(&line)),
                Ok(Some(_)) => {}
                // The job's state comes by the other stream, so a log that breaks is no reason to stop.
                Ok(None) | Err(_) => logging = false,
            },
        }
    }
    progress.finish();
    let job = last.context("the coordinator said nothing about the job")?;
    if job.state == JobState::Failed {
        show_last_lines(&client, &id).await;
    }
    Ok(Some(job))
}

/// The newest job with the same digest unless it came to nothing, else a new one.
async fn find_or_submit(
    client: &mut Client,
    store: &Store,
    spec: &JobSpec,
    inputs: &JobInputs,
) -> anyhow::Result<String> {
    let digest = spec::digest(spec, inputs).to_string();
    let jobs = client.list(true).await?;
    for job in jobs.iter().filter(|job| !job.state.has_ended() && job.spec_digest != digest) {
        eprintln!(
            "job {}: of an earlier run with another spec, unfinished; it goes on beside this one",
            job.id
        );
    }
    if let Some(job) = jobs.into_iter().find(|job| job.spec_digest == digest) {
        match job.state {
            JobState::Paused => {
                eprintln!("job {}: resumed", job.id);
                return Ok(client.resume(&job.id, None, None).await?.id);
            }
            JobState::Pending | JobState::Running => {
                eprintln!("job {}: resumed", job.id);
                return Ok(job.id);
            }
            JobState::Succeeded if store.exists(&report(&job.id, "table.txt")).await? => {
                eprintln!(
                    "job {}: finished before with the same spec and files; nothing is computed again",
                    job.id
                );
                return Ok(job.id);
            }
            JobState::Succeeded | JobState::Failed | JobState::Cancelled => {}
        }
    }
    let id = client.submit(&verbs::new_request_id(), spec, inputs).await?.job_id;
    eprintln!("job {id}: submitted");
    Ok(id)
}

async fn show_last_lines(client: &Client, id: &str) {
    let mut lines = client.logs(id, LogQuery::default());
    let mut kept = Vec::new();
    while let Ok(Some(line)) = lines.next().await {
        if line.level != "INFO" {
            kept.push(line);
        }
    }
    for line in kept.iter().rev().take(LAST_LINES).rev() {
        eprintln!("{}", output::log_text(line));
    }
}

/// Prints the report, or why there is none.
async fn finish(job: &JobView, place: &Place, format: ReportFormat) -> anyhow::Result<Exit> {
    let exit = Exit::of_job(job.state);
    if job.state != JobState::Succeeded {
        let reason = if job.reason.is_empty() { "no reason given" } else { &job.reason };
        eprintln!("job {} {}: {reason}", job.id, job.state);
        eprintln!("logs of its processes: {}", place.logs.display());
        return Ok(exit);
    }
    let name = match format {
        ReportFormat::Table => "table.txt",
        ReportFormat::Json => "report.json",
    };
    let text = match place.store.get(&report(&job.id, name)).await {
        Ok(bytes) => {
            String::from_utf8(bytes.to_vec()).with_context(|| format!("the report {name} is not text"))?
        }
        Err(error @ StoreError::Missing { .. }) => {
            return Err(
                anyhow::Error::from(error).context("the job succeeded but its report is not in the store")
            );
        }
        Err(error) => return Err(error.into()),
    };
    output::line(&text)?;
    for name in ["report.json", "report.html"] {
        let path = report(&job.id, name);
        eprintln!("{name}: {}", place.store.url_of(&path));
    }
    Ok(exit)
}

/// Where a job's report lies in the store.
fn report(id: &str, name: &str) -> String {
    format!("jobs/{id}/report/{name}")
}
