//! Tables and lines for people.

use comfy_table::{Table, presets};
use retort_common::view::{CheckpointView, JobView, LogLine, StageView, WorkerView, timestamp};
use std::fmt::Write;

/// Jobs, one in a row.
pub fn jobs(jobs: &[JobView], wide: bool) -> String {
    let mut header = vec!["ID", "NAME", "STATE", "STAGE", "DONE", "ELAPSED"];
    if wide {
        header.extend(["SUBMITTED", "SPEC", "FINGERPRINT", "REASON"]);
    }
    let rows = jobs.iter().map(|job| {
        let mut row = vec![
            job.id.clone(),
            job.name.clone(),
            job.state.to_string(),
            dash(&job.stage),
            tasks(&job.stages),
            duration(job.elapsed.as_secs_f64()),
        ];
        if wide {
            let fingerprint = dash(short_fingerprint(&job.fingerprint));
            row.extend([timestamp(job.submitted_unix_ms), dash(short(&job.spec_digest)), fingerprint]);
            row.push(dash(&job.reason));
        }
        row
    });
    columns(&header, rows)
}

/// Workers, one in a row.
pub fn workers(workers: &[WorkerView], wide: bool) -> String {
    let mut header = vec!["ID", "CONNECTED", "DEVICE", "MEMORY", "THREADS", "TASKS DONE", "TASK"];
    if wide {
        header.extend(["VERSION", "KERNELS", "FINGERPRINT"]);
    }
    let rows = workers.iter().map(|worker| {
        let mut row = vec![
            worker.id.clone(),
            if worker.connected { "yes" } else { "no" }.to_owned(),
            dash(&worker.device),
            if worker.memory_bytes == 0 {
                "-".to_owned()
            } else {
                format!("{:.1} GB", worker.memory_bytes as f64 / 1e9)
            },
            worker.threads.to_string(),
            worker.tasks_done.to_string(),
            if worker.task.is_empty() { "idle".to_owned() } else { worker.task.clone() },
        ];
        if wide {
            row.extend([
                dash(&worker.version),
                dash(&worker.kernels),
                dash(short_fingerprint(&worker.fingerprint)),
            ]);
        }
        row
    });
    columns(&header, rows)
}

/// Checkpoints in columns.
pub fn checkpoints(checkpoints: &[CheckpointView], wide: bool) -> String {
    let mut header = vec!["TRAINING", "STEP", "LOSS", "FINAL", "WEIGHTS"];
    if wide {
        header.extend(["BYTES", "URL"]);
    }
    let rows = checkpoints.iter().map(|checkpoint| {
        let weights = &checkpoint.weights_sha256;
        let mut row = vec![
            short(&checkpoint.task).to_owned(),
            checkpoint.step.to_string(),
            checkpoint.loss.map_or_else(|| "-".to_owned(), |loss| format!("{loss:.4}")),
            if checkpoint.is_final { "yes" } else { "no" }.to_owned(),
            if wide { weights.clone() } else { short(weights).to_owned() },
        ];
        if wide {
            row.extend([checkpoint.bytes.to_string(), dash(&checkpoint.url)]);
        }
        row
    });
    columns(&header, rows)
}

/// A job and its stages.
pub fn describe(job: &JobView) -> String {
    let fields = [
        ("id", job.id.clone()),
        ("name", job.name.clone()),
        ("state", job.state.to_string()),
        ("stage", dash(&job.stage)),
        ("reason", dash(&job.reason)),
        ("submitted", timestamp(job.submitted_unix_ms)),
        ("elapsed", duration(job.elapsed.as_secs_f64())),
        ("spec digest", dash(&job.spec_digest)),
        ("fingerprint", dash(&job.fingerprint)),
        ("report", dash(&job.report_url)),
    ];
    let mut text = String::new();
    for (name, value) in fields {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{:<13}{value}", format!("{name}:"));
    }
    let header = ["STAGE", "DONE", "CACHED", "RUNNING", "PROGRESS", "SECONDS", "ETA", "DETAIL"];
    let rows = job.stages.iter().map(|stage| {
        vec![
            stage.name.clone(),
            format!("{}/{}{}", stage.done, stage.tasks, if stage.complete_plan { "" } else { "+" }),
            stage.cached.to_string(),
            stage.running.to_string(),
            format!("{:.0}%", stage.fraction * 100.0),
            format!("{:.1}", stage.seconds),
            stage.eta_seconds.map_or_else(|| "-".to_owned(), duration),
            dash(&stage.detail),
        ]
    });
    text.push('\n');
    text.push_str(&columns(&header, rows));
    text
}

/// A log line.
pub fn log_text(log: &LogLine) -> String {
    let who = if log.worker.is_empty() { "coordinator" } else { &log.worker };
    let stage = if log.stage.is_empty() { String::new() } else { format!(" {}", log.stage) };
    format!("{} {:<5} {who}{stage}: {}", timestamp(log.unix_ms), log.level, log.message)
}

/// Seconds as people say them, e.g. "4.2s", "3m05s" or "1h02m".
pub fn duration(seconds: f64) -> String {
    // The cast saturates, and nothing here runs for 10^19 seconds.
    let whole = seconds.round() as u64;
    match whole {
        0..10 => format!("{seconds:.1}s"),
        10..60 => format!("{whole}s"),
        60..3600 => format!("{}m{:02}s", whole / 60, whole % 60),
        _ => format!("{}h{:02}m", whole / 3600, whole % 3600 / 60),
    }
}

/// Aligned columns without borders.
pub fn columns(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().copied()).add_rows(rows);
    // The distance between columns stands on the right only, so that lines begin at the margin.
    table.column_iter_mut().for_each(|column| {
        column.set_padding((0, 3));
    });
    table.trim_fmt()
}

fn tasks(stages: &[StageView]) -> String {
    let sum = |count: fn(&StageView) -> u32| stages.iter().map(count).map(u64::from).sum::<u64>();
    let open = stages.iter().any(|stage| !stage.complete_plan);
    format!("{}/{}{}", sum(|stage| stage.done), sum(|stage| stage.tasks), if open { "+" } else { "" })
}

fn short(hex: &str) -> &str {
    hex.get(..12).unwrap_or(hex)
}

/// The backend and the beginning of the digest.
fn short_fingerprint(text: &str) -> &str {
    let digest = text.rfind('-').map_or(0, |at| at + 1);
    text.get(..digest + 8).unwrap_or(text)
}

fn dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_as_people_write_them() {
        let read = [4.21, 59.4, 59.6, 185.0, 3720.0].map(duration);
        assert_eq!(read, ["4.2s", "59s", "1m00s", "3m05s", "1h02m"]);
    }

    #[test]
    fn columns_begin_at_the_margin_and_are_aligned() {
        let rows = [vec!["a".to_owned(), "b".to_owned()], vec!["long".to_owned(), "c".to_owned()]];
        assert_eq!(columns(&["X", "Y"], rows.into_iter()), "X      Y\na      b\nlong   c");
    }
}
