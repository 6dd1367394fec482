//! How data is printed: tables for people, JSON for programs. Data goes to stdout, everything else to stderr.

mod document;
mod table;

pub use document::dry_run;
pub use table::{columns, describe, duration, log_text};

use crate::args::Format;
use retort_common::checkpoint::CheckpointManifest;
use retort_common::view::{CheckpointView, JobView, WorkerView};
use serde::Serialize;
use serde_json::{Value, json};
use std::io::{self, Write};

/// Raised when a key of a JSON document is removed or means something else.
pub const SCHEMA_VERSION: u32 = 1;

/// Writes a line of data. Unlike println, a closed pipe is an error and no panic.
pub fn line(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", text.trim_end_matches('\n'))?;
    out.flush()
}

/// One JSON document, with its schema's version.
pub fn json_document(mut value: Value) -> io::Result<()> {
    if let Value::Object(fields) = &mut value {
        fields.insert("schema_version".to_owned(), json!(SCHEMA_VERSION));
    }
    line(&format!("{value:#}"))
}

/// One JSON object in one line.
pub fn json_line(value: &Value) -> io::Result<()> {
    line(&value.to_string())
}

/// A list of jobs.
pub fn jobs(jobs: &[JobView], format: Format) -> io::Result<()> {
    list("jobs", jobs, format, table::jobs)
}

/// One job.
pub fn job(job: &JobView, format: Format) -> io::Result<()> {
    match format {
        Format::Table | Format::Wide => jobs(std::slice::from_ref(job), format),
        Format::Json => json_document(serde_json::to_value(job)?),
        Format::Jsonl => json_line(&versioned(serde_json::to_value(job)?)),
    }
}

/// A list of workers.
pub fn workers(workers: &[WorkerView], format: Format) -> io::Result<()> {
    list("workers", workers, format, table::workers)
}

/// A list of checkpoints.
pub fn checkpoints(checkpoints: &[CheckpointView], format: Format) -> io::Result<()> {
    list("checkpoints", checkpoints, format, table::checkpoints)
}

/// Things under their name in one document, or one in a line; a table with more columns where `Wide` is asked for.
fn list<T: Serialize>(
    name: &str,
    all: &[T],
    format: Format,
    table: fn(&[T], bool) -> String,
) -> io::Result<()> {
    match format {
        Format::Table | Format::Wide => line(&table(all, format == Format::Wide)),
        Format::Json => json_document(json!({ name: all })),
        Format::Jsonl => all.iter().try_for_each(|one| json_line(&versioned(serde_json::to_value(one)?))),
    }
}

/// One checkpoint with all that its manifest says; of the loss curve its last point.
pub fn checkpoint(
    checkpoint: &CheckpointView,
    manifest: &CheckpointManifest,
    format: Format,
) -> io::Result<()> {
    let value = document::checkpoint_details(checkpoint, manifest)?;
    match format {
        Format::Json => json_document(value),
        Format::Jsonl => json_line(&versioned(value)),
        Format::Table | Format::Wide => {
            let fields = value.as_object().into_iter().flatten();
            let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            fields.into_iter().try_for_each(|(name, value)| line(&format!("{name:<18}{}", text(value))))
        }
    }
}

/// A JSON object with its schema's version.
pub fn versioned(mut value: Value) -> Value {
    if let Value::Object(fields) = &mut value {
        fields.insert("schema_version".to_owned(), json!(SCHEMA_VERSION));
    }
    value
}
