//! The `retort` command.
//!
//! - [`args`]: the command line
//! - [`verbs`]: the client's verbs
//! - [`dataset`]: a look into data sets, without a cluster
//! - [`compare`]: finished jobs side by side
//! - [`eval`]: metrics of run files, without a cluster
//! - [`checkpoint`]: the verbs for checkpoints
//! - [`run`]: a whole cluster on this machine, for one job
//! - [`export`]: results in the formats of other programs
//! - [`local`]: verbs that need no cluster
//! - [`serve`]: the coordinator's and the worker's process
//! - [`config`]: where the coordinator is
//! - [`metrics`]: the steps of trainings
//! - [`negatives`]: the audits of mined negatives
//! - [`output`]: tables and JSON
//! - [`exit`]: exit codes

mod args;
mod checkpoint;
mod compare;
mod config;
mod dataset;
mod eval;
mod exit;
mod export;
mod local;
mod metrics;
mod negatives;
mod output;
mod run;
mod serve;
mod verbs;

use args::{Cli, NegativesVerb, Verb, WorkerVerb};
use clap::Parser;
use exit::Exit;
use std::process::ExitCode;

/// Large, short-lived buffers on several threads are what it is good at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // clap itself prints usage errors and exits with 2.
    let cli = Cli::parse();
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| {
            let outcome = runtime.block_on(dispatch(cli.verb));
            // A blocked thread must not hold the process that has nothing left to do.
            runtime.shutdown_background();
            outcome
        });
    match outcome {
        Ok(exit) => exit.into(),
        Err(error) => {
            let exit = Exit::of_error(&error);
            if exit != Exit::Ok {
                eprintln!("error: {}", one_text(&error));
            }
            exit.into()
        }
    }
}

async fn dispatch(verb: Verb) -> anyhow::Result<Exit> {
    match verb {
        Verb::Run(args) => run::run(args).await,
        Verb::Submit(args) => verbs::submit(args).await,
        Verb::List(args) => verbs::list(args).await,
        Verb::Get(args) => verbs::get(args).await,
        Verb::Describe(args) => verbs::describe(args).await,
        Verb::Logs(args) => verbs::logs(args).await,
        Verb::Metrics(args) => metrics::metrics(args).await,
        Verb::Wait(args) => verbs::wait(args).await,
        Verb::Cancel(args) => verbs::cancel(args).await,
        Verb::Negatives(args) => match args.verb {
            NegativesVerb::Report(report) => negatives::report(report).await,
        },
        Verb::Pause(args) => verbs::pause(args).await,
        Verb::Resume(args) => verbs::resume(args).await,
        Verb::Checkpoint(args) => checkpoint::checkpoint(args.verb).await,
        Verb::Export(args) => export::export(args).await,
        Verb::Worker(args) => match args.verb {
            Some(WorkerVerb::List(list)) => verbs::worker_list(list, &args.start.connect).await,
            None => serve::worker(args.start).await,
        },
        Verb::Dataset(args) => dataset::dataset(args).await,
        Verb::Compare(args) => compare::compare(args).await,
        Verb::Eval(args) => tokio::task::spawn_blocking(move || eval::eval(&args)).await?,
        Verb::Coordinator(args) => serve::coordinator(args).await,
        Verb::Encode(args) => local::encode(args).await,
        Verb::Search(args) => local::search(args).await,
        Verb::Version => {
            output::line(&format!("retort {}", env!("CARGO_PKG_VERSION")))?;
            Ok(Exit::Ok)
        }
    }
}

/// The error and its causes, leaving out causes that an outer message repeats.
fn one_text(error: &anyhow::Error) -> String {
    error.chain().skip(1).fold(error.to_string(), |text, cause| {
        let cause = cause.to_string();
        if text.contains(&cause) { text } else { format!("{text}: {cause}") }
    })
}
