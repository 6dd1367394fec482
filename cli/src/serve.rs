//! The coordinator's and the worker's process.

use crate::args::{CoordinatorArgs, Process, WorkerStart};
use crate::config;
use crate::exit::Exit;
use retort_common::telemetry;
use std::io::Read;

pub async fn coordinator(args: CoordinatorArgs) -> anyhow::Result<Exit> {
    begin(&args.process)?;
    anyhow::bail!("the coordinator is not wired yet")
}

pub async fn worker(args: WorkerStart) -> anyhow::Result<Exit> {
    let (_addresses, _net) = config::resolve(&args.connect)?;
    begin(&args.process)?;
    anyhow::bail!("the worker is not wired yet")
}

fn begin(process: &Process) -> anyhow::Result<()> {
    telemetry::init(process.log_json)?;
    if process.with_parent {
        std::thread::Builder::new().name("parent".to_owned()).spawn(end_with_parent)?;
    }
    Ok(())
}

/// Ends the process when standard input ends. The parent holds the pipe's other end and the kernel closes it
/// when the parent dies, however that happens. Stopping in mid-work is safe: everything survives a kill -9.
fn end_with_parent() {
    let mut buffer = [0; 64];
    let mut input = std::io::stdin().lock();
    loop {
        match input.read(&mut buffer) {
            Ok(0) => std::process::exit(0),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => std::process::exit(0),
        }
    }
}
