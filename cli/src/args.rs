//! The command line: every verb and flag, as clap reads them. `local`: the verbs that need no cluster.

mod local;
mod values;

pub use local::*;
pub use values::duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use retort_common::view::JobState;
use retort_worker::export::Format as ExportFormat;
use std::path::PathBuf;
use std::time::Duration;
use values::{bytes, export_formats, goal, key_value};

const EXIT_CODES: &str = "Exit codes: 0 ok, 1 error, 2 usage or a bad spec, 3 coordinator unreachable, 4 denied, \
    100 job failed, 101 job not finished, 102 job not found, 103 job cancelled, 124 wait timed out, 130 interrupted.";

/// Distils dense retrievers on a cluster, or on this machine.
#[derive(Debug, Parser)]
#[command(name = "retort", version, propagate_version = true, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run a job to its end on this machine: starts a coordinator and workers, and ends them with the job.
    Run(RunArgs),
    /// Submit a job and print its id.
    Submit(SubmitArgs),
    /// List jobs, newest first; those that have ended with --all.
    List(ListArgs),
    /// Show one job in a line.
    Get(GetArgs),
    /// Show one job with its stages.
    Describe(GetArgs),
    /// Print a job's log.
    Logs(LogsArgs),
    /// Print every step of a job's trainings: loss, gradient norm, learning rate, and where each worker's time went.
    Metrics(MetricsArgs),
    /// Wait until a job has ended, or for a stage of it; the exit code says how it ended.
    Wait(WaitArgs),
    /// End a job.
    Cancel(CancelArgs),
    /// Look at a job's mined negatives.
    Negatives(NegativesArgs),
    /// Stop a job's work until it is resumed; trainings leave a checkpoint.
    Pause(GetArgs),
    /// Let a paused job go on, with whatever workers there are then.
    Resume(ResumeArgs),
    /// Look at checkpoints.
    Checkpoint(CheckpointArgs),
    /// Write a finished job's model, embeddings, index, runs or negatives in the format of another program.
    Export(ExportArgs),
    /// Start a worker, or list the coordinator's workers.
    Worker(WorkerArgs),
    /// Look into data sets.
    Dataset(DatasetArgs),
    /// Set the results of finished jobs side by side, with p-values.
    Compare(CompareArgs),
    /// Judge a run file: metrics with bootstrap intervals, and a paired test against another run.
    Eval(EvalArgs),
    /// Start a coordinator.
    Coordinator(CoordinatorArgs),
    /// Embed passages with a finished student and write an index, without a cluster.
    Encode(EncodeArgs),
    /// Search an index, without a cluster.
    Search(SearchArgs),
    /// Print the version.
    Version,
}

/// Where the coordinator is.
#[derive(Clone, Debug, Args)]
pub struct Connect {
    /// Address of the coordinator, http://HOST:PORT; several, with commas between, are tried in turn.
    #[arg(
        long,
        value_name = "URL",
        env = "RETORT_COORDINATOR",
        value_delimiter = ',',
        hide_env_values = true
    )]
    pub coordinator: Vec<String>,
    #[command(flatten)]
    pub tls: Tls,
}

/// Mutual TLS: all three files or none.
#[derive(Clone, Debug, Default, Args)]
pub struct Tls {
    /// Own certificate chain, PEM.
    #[arg(long, value_name = "FILE", env = "RETORT_TLS_CERT", hide_env_values = true)]
    pub tls_cert: Option<PathBuf>,
    /// Key of the own certificate, PEM.
    #[arg(long, value_name = "FILE", env = "RETORT_TLS_KEY", hide_env_values = true)]
    pub tls_key: Option<PathBuf>,
    /// Authority that the other side's certificate must come from, PEM.
    #[arg(long, value_name = "FILE", env = "RETORT_TLS_CA", hide_env_values = true)]
    pub tls_ca: Option<PathBuf>,
}

/// A spec file and what to change in it.
#[derive(Debug, Args)]
pub struct SpecArgs {
    /// The job spec, TOML.
    #[arg(value_name = "SPEC")]
    pub file: PathBuf,
    /// Set a key of the spec, e.g. --set corpus.path=/data/wiki; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    pub sets: Vec<(String, String)>,
}

#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub spec: SpecArgs,
    /// Where artifacts, reports and the journal are kept; a folder in the user's data directory without it.
    #[arg(long, value_name = "URL")]
    pub store: Option<String>,
    /// Worker processes; as many as cores, at most 8, without it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: Option<u16>,
    /// Compute threads of each worker.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: u16,
    /// What computes, as in `retort worker --device`.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: String,
    /// What to print at the end: the report's table, or report.json.
    #[arg(long, short, value_name = "FORMAT", default_value = "table")]
    pub output: ReportFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    Table,
    Json,
}

#[derive(Debug, Args)]
pub struct SubmitArgs {
    #[command(flatten)]
    pub spec: SpecArgs,
    /// Name of the job instead of the spec's.
    #[arg(long)]
    pub name: Option<String>,
    /// Wait until the job has ended; the exit code says how.
    #[arg(long, conflicts_with = "follow")]
    pub wait: bool,
    /// Print the job's log until it has ended; the exit code says how.
    #[arg(long)]
    pub follow: bool,
    /// Print nothing but the id.
    #[arg(long)]
    pub id_only: bool,
    /// Name of this submit: repeating it with the same name gives the same job.
    #[arg(long, value_name = "ID")]
    pub request_id: Option<String>,
    /// Check the spec, find and hash its files, and print what would be submitted.
    #[arg(long, conflicts_with_all = ["wait", "follow", "id_only"])]
    pub dry_run: bool,
    #[arg(long, short, value_name = "FORMAT", default_value = "table")]
    pub output: Format,
    #[command(flatten)]
    pub connect: Connect,
}

#[derive(Debug, Args)]
pub struct ListArgs {
    /// Also jobs that have ended.
    #[arg(long, short)]
    pub all: bool,
    /// Only jobs in this state; implies --all.
    #[arg(long, value_name = "STATE", ignore_case = true)]
    pub state: Option<JobState>,
    /// Go on and print a job again whenever it has changed.
    #[arg(long)]
    pub watch: bool,
    #[arg(long, short, value_name = "FORMAT", default_value = "table")]
    pub output: Format,
    #[command(flatten)]
    pub connect: Connect,
}

#[derive(Debug, Args)]
pub struct GetArgs {
    /// The job's id, or as much of its beginning as no other job has.
    pub id: String,
    #[arg(long, short, value_name = "FORMAT", default_value = "table")]
    pub output: Format,
    #[command(flatten)]
    pub connect: Connect,
}

#[derive(Debug, Args)]
pub struct ResumeArgs {
    /// The job's id, or as much of its beginning as no other job has.
    pub id: String,
    /// Trainings in work go on from this state, in another lineage: a step, "latest" or "best".
    #[arg(long, value_name = "STEP|latest|best")]
    pub from: Option<String>,
    /// The job's spec with other values of keys that change no result: checkpoint_every and keep_last.
    #[arg(long, value_name = "FILE")]
    pub spec: Option<PathBuf>,
    /// Set a key of that spec; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value, requires = "spec")]
    pub sets: Vec<(String, String)>,
    #[arg(long, short, value_name = "FORMAT", default_value = "table")]
    pub output: Format,
    #[command(flatten)]
    pub connect: Connect,
}

#[derive(Debug, Args)]
pub struct LogsArgs {
    /// The job's id or its unambiguous beginning.
    pub id: String,
    /// Go on until the job has ended; the exit code says how.
    #[arg(long, short)]
    pub follow: bool,
    /// Only the newest lines.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub tail: Option<u32>,
    /// Only lines of this worker.
    #[arg(long, value_name = "ID")]
    pub worker: Option<String>,
    /// Only lines of this stage.
    #[arg(long)]
    pub stage: Option<String>,
    #[arg(long, short, value_name = "FORMAT", default_value = "text")]
    pub output: LogFormat,
    #[command(flatten)]
    pub connect: Connect,
}

#[derive(Debug, Args)]
pub struct MetricsArgs {
    /// The job's id or its unambiguous beginning.
    pub id: String,
    /// Go on until the job has ended; the exit code says how.
    #[arg(long, short)]
    pub follow: bool,
    /// Also write TensorBoard event files, with samples a second and each worker's times, under this folder.
    #[arg(long, value_name = "FOLDER")]
    pub tensorboard: Option<PathBuf>,
    /// With wide, each worker's times in the step; json is one document, or a line for each step with --follow.
    #[arg(long, short, value_name = "FORMAT", default_value = "table")]
    pub output: Format,
    #[command(flatten)]
    pub connect: Connect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Jsonl,
}

#[derive(Debug, Args)]
pub struct WaitArgs {
    /// The job's id or its unambiguous beginning.
    pub id: String,
    /// What to wait for: succeeded, or stage=NAME for the end of a stage.
    #[arg(long = "for", value_name = "WHAT", default_value = "succeeded", value_parser = goal)]
    pub goal: Goal,
    /// Give up after this long, e.g. 90s, 10m or 2h.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub timeout: Option<Duration>,
    #[command(flatten)]
    pub connect: Connect,
}

/// What a wait is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Goal {
    /// The job's success.
    Succeeded,
    /// The end of a stage.
    Stage(String),
}

#[derive(Debug, Args)]
pub struct CancelArgs {
    /// The job's id or its unambiguous beginning.
    pub id: String,
    /// Stop at once, without a checkpoint.
    #[arg(long)]
    pub force: bool,
    #[arg(long, short, value_name = "FORMAT", default_value = "table")]
    pub output: Format,
    #[command(flatten)]
    pub connect: Connect,
}

#[derive(Debug, Args)]
pub struct NegativesArgs {
    #[command(subcommand)]
    pub verb: NegativesVerb,
}

#[derive(Debug, Subcommand)]
pub enum NegativesVerb {
    /// Show what mining kept and why it dropped the rest: counts of the filters, gaps between the scores of positives
    /// and negatives, and the cases that look most like positives, with their texts.
    Report(NegativesReportArgs),
}

#[derive(Debug, Args)]
pub struct NegativesReportArgs {
    /// The job's id or its unambiguous beginning.
    pub id: String,
    /// Suspicious cases to show of each mining.
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub cases: usize,
    #[arg(long, short, value_name = "FORMAT", default_value = "table")]
    pub output: ReportFormat,
    #[command(flatten)]
    pub connect: Connect,
}

#[derive(Debug, Args)]
pub struct CheckpointArgs {
    #[command(subcommand)]
    pub verb: CheckpointVerb,
}

#[derive(Debug, Subcommand)]
pub enum CheckpointVerb {
    /// List the checkpoints of a job's trainings, and the weights of those that are done.
    List(GetArgs),
    /// Read every checkpoint from the store and compare it with its digest; exits with 1 where one is damaged.
    Verify(GetArgs),
    /// Copy a checkpoint to a file.
    Download(CheckpointDownloadArgs),
    /// Say everything about one checkpoint.
    Describe(CheckpointDescribeArgs),
    /// Delete one checkpoint; not the newest of a training that is not done.
    Delete(CheckpointOneArgs),
}

#[derive(Debug, Args)]
pub struct CheckpointOneArgs {
    /// The job's id or its unambiguous beginning.
    pub id: String,
    /// The checkpoint's step.
    #[arg(long, value_name = "N")]
    pub step: u64,
    /// The training's lineage or its beginning, where several have a checkpoint of that step.
    #[arg(long, value_name = "NAME")]
    pub lineage: Option<String>,
    #[command(flatten)]
    pub connect: Connect,
}

#[derive(Debug, Args)]
pub struct CheckpointDescribeArgs {
    #[command(flatten)]
    pub one: CheckpointOneArgs,
    #[arg(long, short, value_name = "FORMAT", default_value = "table")]
    pub output: Format,
}

#[derive(Debug, Args)]
pub struct CheckpointDownloadArgs {
    #[command(flatten)]
    pub one: CheckpointOneArgs,
    /// File to write; named after lineage and step without it.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The job's id or its unambiguous beginning.
    pub id: String,
    /// Row of the report, e.g. a student's name, teacher or pca-64; the only student without it.
    pub row: Option<String>,
    /// What to write.
    #[arg(long, value_name = "FORMAT", value_parser = export_formats())]
    pub format: ExportFormat,
    /// Folder to write to, new or empty; named after job, row and format without it.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Read the job from this store instead of asking a coordinator, e.g. after `retort run`.
    #[arg(long, value_name = "URL")]
    pub store: Option<String>,
    /// How the list of files is printed: as lines, or the manifest as JSON.
    #[arg(long, short, value_name = "FORMAT", default_value = "table")]
    pub output: ReportFormat,
    #[command(flatten)]
    pub connect: Connect,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct WorkerArgs {
    #[command(subcommand)]
    pub verb: Option<WorkerVerb>,
    #[command(flatten)]
    pub start: WorkerStart,
}

#[derive(Debug, Subcommand)]
pub enum WorkerVerb {
    /// List the workers that the coordinator knows.
    List(WorkerListArgs),
}

#[derive(Debug, Args)]
pub struct WorkerListArgs {
    #[arg(long, short, value_name = "FORMAT", default_value = "table")]
    pub output: Format,
    #[command(flatten)]
    pub connect: Connect,
}

#[derive(Debug, Args)]
pub struct WorkerStart {
    #[command(flatten)]
    pub connect: Connect,
    /// Id of this worker; made from the host's name without it.
    #[arg(long, value_name = "NAME")]
    pub id: Option<String>,
    /// Compute threads; as many as cores without it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
    /// What computes: flex; tch:cpu, tch:cuda:N or cuda:N where they are built in; auto for the best of them that is there.
    /// +bf16 or +f16 behind it has encoders multiply with such floats, where the device has them.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: String,
    /// Folder for artifacts read from the store; a temporary one without it.
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
    /// Most bytes kept in the cache, e.g. 20GB.
    #[arg(long, value_name = "N", default_value = "10GB", value_parser = bytes)]
    pub cache_bytes: u64,
    /// Silence after which the coordinator or a worker in the same training counts as lost, e.g. 5s.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    pub failure_detection: Duration,
    /// Address on which workers that train together reach this one; port 0 takes a free one.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:0")]
    pub exchange_listen: String,
    /// Host, or host and port, by which the others reach it; the address listened on without it.
    #[arg(long, value_name = "HOST[:PORT]")]
    pub exchange_advertise: Option<String>,
    /// How long a training goes on without the coordinator, e.g. 10m.
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = duration)]
    pub orphan_limit: Duration,
    #[command(flatten)]
    pub process: Process,
}

#[derive(Debug, Args)]
pub struct CoordinatorArgs {
    /// Where artifacts, reports and the journal are kept: file://, s3://, gs:// or az:// URL, or a path.
    #[arg(long, value_name = "URL")]
    pub store: String,
    /// Address to listen on; port 0 takes a free one.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7070")]
    pub listen: String,
    /// Silence after which a worker counts as lost; every other time-out derives from it.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    pub failure_detection: Duration,
    /// A worker that makes no step of a training for so long while others wait for it leaves them.
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = duration)]
    pub stall_limit: Duration,
    /// Write the address listened on to this file once it is bound.
    #[arg(long, value_name = "FILE")]
    pub address_file: Option<PathBuf>,
    #[command(flatten)]
    pub tls: Tls,
    #[command(flatten)]
    pub process: Process,
}

/// What every long-running process has.
#[derive(Clone, Debug, Args)]
pub struct Process {
    /// Log records as JSON.
    #[arg(long)]
    pub log_json: bool,
    /// End when standard input ends: `retort run` holds the other end, so that its children never outlive it.
    #[arg(long, hide = true)]
    pub with_parent: bool,
}

/// How data is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Aligned columns.
    Table,
    /// More columns.
    Wide,
    /// One document.
    Json,
    /// One line for each object.
    Jsonl,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn worker_starts_one_and_worker_list_lists_them() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' ')).unwrap().verb;
        let Verb::Worker(start) = parse("retort worker --coordinator http://a:1,http://b:2") else {
            panic!()
        };
        assert!(start.verb.is_none());
        assert_eq!(start.start.connect.coordinator, ["http://a:1", "http://b:2"]);
        let Verb::Worker(list) = parse("retort worker list --coordinator http://a:1") else { panic!() };
        assert!(matches!(list.verb, Some(WorkerVerb::List(_))));
    }
}
