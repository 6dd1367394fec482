//! The client's verbs: each asks the coordinator, prints what it says and returns how to exit.

use crate::args::{
    CancelArgs, Connect, Format, GetArgs, Goal, ListArgs, LogFormat, LogsArgs, ResumeArgs, SpecArgs,
    SubmitArgs, WaitArgs, WorkerListArgs,
};
use crate::config;
use crate::exit::{Exit, UsageError};
use crate::output;
use anyhow::Context;
use retort_common::client::{Client, LogQuery, RECONNECT_LIMIT};
use retort_common::ids::RequestId;
use retort_common::spec::inputs::JobInputs;
use retort_common::spec::{self, JobSpec};
use retort_common::store::Location;
use retort_common::view::JobView;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// Pause between two looks of `list --watch`.
const LIST_PAUSE: Duration = Duration::from_secs(2);

/// Reads a spec and finds its files.
pub async fn load(args: &SpecArgs, name: Option<&str>) -> anyhow::Result<(JobSpec, JobInputs)> {
    let mut sets = args.sets.clone();
    if let Some(name) = name {
        let name = serde_json::to_string(name).expect("a text has a JSON form");
        sets.push(("name".to_owned(), name));
    }
    let spec = parse(&args.file, &sets)?;
    let path = std::path::absolute(&args.file)
        .with_context(|| format!("no absolute path for {}", args.file.display()))?;
    let base = Location::of_path(path.parent().unwrap_or(&path))?;
    let inputs = JobInputs::collect(&spec, &base).await?;
    Ok((spec, inputs))
}

fn parse(file: &Path, sets: &[(String, String)]) -> anyhow::Result<JobSpec> {
    let name = file.display().to_string();
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read the spec {name}"))?;
    Ok(spec::parse(&text, &name, sets)?)
}

pub async fn submit(args: SubmitArgs) -> anyhow::Result<Exit> {
    let (spec, inputs) = load(&args.spec, args.name.as_deref()).await?;
    if args.dry_run {
        return dry_run(&spec, &inputs, args.output);
    }
    let request_id = match &args.request_id {
        Some(text) => text.parse().map_err(|error| UsageError(format!("--request-id: {error}")))?,
        None => new_request_id(),
    };
    let mut client = config::client(&args.connect)?;
    let submitted = client.submit(&request_id, &spec, &inputs).await?;
    let id = submitted.job_id;
    if args.id_only {
        output::line(&id)?;
    } else {
        if !submitted.created {
            eprintln!("request {request_id} was accepted before; this is its job");
        }
        output::job(&client.get(&id).await?, args.output)?;
        eprintln!("follow it with: retort logs {id} -f");
    }
    if args.follow {
        return follow(&client, &id, LogQuery { follow: true, ..LogQuery::default() }, LogFormat::Text, true)
            .await;
    }
    if args.wait {
        return until(&client, &id, &Goal::Succeeded, None).await;
    }
    Ok(Exit::Ok)
}

/// A new name for a submit.
pub fn new_request_id() -> RequestId {
    uuid::Uuid::now_v7().to_string().parse().expect("a UUID has only digits, letters and '-'")
}

fn dry_run(spec: &JobSpec, inputs: &JobInputs, format: Format) -> anyhow::Result<Exit> {
    let digest = spec::digest(spec, inputs);
    match format {
        Format::Json => output::json_document(output::dry_run(spec, inputs, digest))?,
        Format::Jsonl => output::json_line(&output::dry_run(spec, inputs, digest))?,
        Format::Table | Format::Wide => {
            output::line(&format!("job {:?}, spec digest {digest}", spec.name))?;
            let students: Vec<_> = spec.student.iter().map(|student| student.name.as_str()).collect();
            output::line(&format!(
                "students: {}",
                if students.is_empty() { "none".into() } else { students.join(", ") }
            ))?;
            let JobInputs { corpus, teacher, teacher_query, cross_encoder, students, checkpoints } = inputs;
            let models = students.values().chain([teacher]).chain(teacher_query).chain(cross_encoder);
            let models = models.flat_map(|model| model.files.by_name.values());
            for file in corpus.files().chain(models).chain(checkpoints.values()) {
                output::line(&format!("{}  {:>12} bytes  {}", file.sha256.short(), file.bytes, file.url))?;
            }
            eprintln!("nothing was submitted");
        }
    }
    Ok(Exit::Ok)
}

pub async fn list(args: ListArgs) -> anyhow::Result<Exit> {
    let mut client = config::client(&args.connect)?;
    let mut seen: BTreeMap<String, JobView> = BTreeMap::new();
    let wanted = |job: &JobView| args.state.is_none_or(|state| job.state == state);
    // One document cannot grow: what is watched comes as lines.
    let format = if args.watch && args.output == Format::Json { Format::Jsonl } else { args.output };
    loop {
        let mut jobs = client.list(args.all || args.state.is_some()).await?;
        jobs.retain(wanted);
        if !args.watch {
            output::jobs(&jobs, format)?;
            return Ok(Exit::Ok);
        }
        let current: BTreeMap<_, _> = jobs.iter().map(|job| (job.id.clone(), job.clone())).collect();
        jobs.retain(|job| seen.get(&job.id) != Some(job));
        if !jobs.is_empty() {
            output::jobs(&jobs, format)?;
        }
        seen = current;
        client = client.with_patience(RECONNECT_LIMIT);
        tokio::select! {
            () = tokio::time::sleep(LIST_PAUSE) => {}
            _ = tokio::signal::ctrl_c() => return Ok(Exit::Interrupted),
        }
    }
}

pub async fn get(args: GetArgs) -> anyhow::Result<Exit> {
    let job = config::client(&args.connect)?.get(&args.id).await?;
    output::job(&job, args.output)?;
    Ok(Exit::Ok)
}

pub async fn describe(args: GetArgs) -> anyhow::Result<Exit> {
    let job = config::client(&args.connect)?.get(&args.id).await?;
    match args.output {
        Format::Table | Format::Wide => output::line(&output::describe(&job))?,
        Format::Json | Format::Jsonl => output::job(&job, args.output)?,
    }
    Ok(Exit::Ok)
}

pub async fn logs(args: LogsArgs) -> anyhow::Result<Exit> {
    let LogsArgs { id, follow, tail, worker, stage, output, connect } = args;
    let query = LogQuery { follow, tail: tail.unwrap_or(0), worker, stage };
    self::follow(&config::client(&connect)?, &id, query, output, follow).await
}

/// Prints log lines until they end; with `judge` the job's state then decides the exit code.
async fn follow(
    client: &Client,
    id: &str,
    query: LogQuery,
    format: LogFormat,
    judge: bool,
) -> anyhow::Result<Exit> {
    let mut lines = client.logs(id, query);
    loop {
        let line = tokio::select! {
            line = lines.next() => line?,
            _ = tokio::signal::ctrl_c() => return Ok(detached(id)),
        };
        match (line, format) {
            (Some(line), LogFormat::Text) => output::line(&output::log_text(&line))?,
            (Some(line), LogFormat::Jsonl) => output::json_line(&serde_json::to_value(line)?)?,
            (None, _) => break,
        }
    }
    if !judge {
        return Ok(Exit::Ok);
    }
    let job = client.clone().get(id).await?;
    say_end(&job);
    Ok(Exit::of_job(job.state))
}

pub async fn wait(args: WaitArgs) -> anyhow::Result<Exit> {
    until(&config::client(&args.connect)?, &args.id, &args.goal, args.timeout).await
}

async fn until(client: &Client, id: &str, goal: &Goal, timeout: Option<Duration>) -> anyhow::Result<Exit> {
    let deadline = async {
        match timeout {
            Some(timeout) => tokio::time::sleep(timeout).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        exit = reach(client, id, goal) => exit,
        () = deadline => {
            eprintln!("job {id} goes on; the wait for it timed out");
            Ok(Exit::TimedOut)
        }
        _ = tokio::signal::ctrl_c() => Ok(detached(id)),
    }
}

async fn reach(client: &Client, id: &str, goal: &Goal) -> anyhow::Result<Exit> {
    let mut changes = client.watch(id);
    let mut last = None;
    while let Some(job) = changes.next().await? {
        if let Goal::Stage(name) = goal
            && job.stages.iter().any(|stage| &stage.name == name && stage.is_done())
        {
            eprintln!("stage {name} of job {} is done", job.id);
            return Ok(Exit::Ok);
        }
        last = Some(job);
    }
    let job = last.context("the coordinator said nothing about the job")?;
    say_end(&job);
    Ok(Exit::of_job(job.state))
}

pub fn detached(id: &str) -> Exit {
    eprintln!(
        "detached; job {id} goes on. follow it with: retort logs {id} -f; end it with: retort cancel {id}"
    );
    Exit::Interrupted
}

pub fn say_end(job: &JobView) {
    let reason = if job.reason.is_empty() { String::new() } else { format!(": {}", job.reason) };
    eprintln!("job {} {}{reason}", job.id, job.state);
    if !job.report_url.is_empty() {
        eprintln!("report: {}", job.report_url);
    }
}

pub async fn cancel(args: CancelArgs) -> anyhow::Result<Exit> {
    let job = config::client(&args.connect)?.cancel(&args.id, args.force).await?;
    output::job(&job, args.output)?;
    Ok(Exit::Ok)
}

pub async fn pause(args: GetArgs) -> anyhow::Result<Exit> {
    let job = config::client(&args.connect)?.pause(&args.id).await?;
    output::job(&job, args.output)?;
    Ok(Exit::Ok)
}

pub async fn resume(args: ResumeArgs) -> anyhow::Result<Exit> {
    let ResumeArgs { id, from, spec, sets, output, connect } = args;
    let spec = spec.map(|file| parse(&file, &sets)).transpose()?;
    let job = config::client(&connect)?.resume(&id, from.as_deref(), spec.as_ref()).await?;
    output::job(&job, output)?;
    Ok(Exit::Ok)
}

pub async fn worker_list(args: WorkerListArgs, outer: &Connect) -> anyhow::Result<Exit> {
    let connect = if args.connect.coordinator.is_empty() { outer } else { &args.connect };
    output::workers(&config::client(connect)?.workers().await?, args.output)?;
    Ok(Exit::Ok)
}
