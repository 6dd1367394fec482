//! What trainings say of their steps, as lines for people or for programs.

use crate::args::{Format, MetricsArgs};
use crate::config;
use crate::exit::Exit;
use crate::output;
use crate::verbs::{detached, say_end};
use anyhow::Context;
use retort_common::client::StepView;
use retort_common::metrics::{StepPoint, StepTiming};
use retort_worker::report::tensorboard;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

pub async fn metrics(args: MetricsArgs) -> anyhow::Result<Exit> {
    let MetricsArgs { id, follow, tensorboard, output, connect } = args;
    let client = config::client(&connect)?;
    let mut steps = client.metrics(&id, follow);
    // One document cannot grow: what is followed comes as lines.
    let format = if follow && output == Format::Json { Format::Jsonl } else { output };
    let mut events = tensorboard.map(|folder| EventFiles { folder, open: BTreeMap::new() });
    let mut table = Table::default();
    let mut all = Vec::new();
    loop {
        let step = tokio::select! {
            step = steps.next() => step?,
            _ = tokio::signal::ctrl_c() => return Ok(detached(&id)),
        };
        let Some(step) = step else { break };
        if let Some(events) = &mut events {
            events.add(&step)?;
        }
        match format {
            Format::Table | Format::Wide => table.row(&step, format == Format::Wide)?,
            Format::Jsonl => output::json_line(&output::versioned(document(&step)))?,
            Format::Json => all.push(document(&step)),
        }
    }
    if format == Format::Json {
        output::json_document(json!({ "metrics": all }))?;
    }
    if !follow {
        return Ok(Exit::Ok);
    }
    let job = client.clone().get(&id).await?;
    say_end(&job);
    Ok(Exit::of_job(job.state))
}

/// A step in JSON; durations are in seconds.
fn document(step: &StepView) -> Value {
    let StepView { task, lineage, student, phase, point, samples_per_second, workers } = step;
    let StepPoint { step, loss, terms, learning_rate, gradient_norm } = point;
    let terms: serde_json::Map<_, _> =
        terms.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    let worker = |(worker, timing): &(String, StepTiming)| {
        json!({
            "worker": worker,
            "microbatches": timing.microbatches,
            "seconds": seconds(timing.step_us),
            "compute_seconds": seconds(timing.compute_us()),
            "exchange_seconds": seconds(timing.exchange_us),
            "waiting_seconds": seconds(timing.waiting_us),
        })
    };
    json!({
        "task": task,
        "lineage": lineage,
        "student": student,
        "phase": phase,
        "step": step,
        "loss": loss,
        "terms": terms,
        "learning_rate": learning_rate,
        "gradient_norm": gradient_norm,
        "samples_per_second": samples_per_second,
        "workers": workers.iter().map(worker).collect::<Vec<_>>(),
    })
}

/// TensorBoard event files: one for each lineage of a training.
struct EventFiles {
    folder: PathBuf,
    open: BTreeMap<PathBuf, File>,
}

impl EventFiles {
    fn add(&mut self, step: &StepView) -> anyhow::Result<()> {
        let StepView { task: _, lineage, student, phase, point, .. } = step;
        let path = self.folder.join(student).join(format!("phase-{phase}"));
        let path = path.join(format!("events.out.tfevents.{lineage}.retort"));
        let failed = || format!("cannot write {}", path.display());
        let file = match self.open.entry(path.clone()) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                std::fs::create_dir_all(path.parent().unwrap_or(&self.folder)).with_context(failed)?;
                let mut file = File::create(&path).with_context(failed)?;
                file.write_all(&tensorboard::file_version()).with_context(failed)?;
                entry.insert(file)
            }
        };
        file.write_all(&tensorboard::step_event(point, times(step))).with_context(failed)
    }
}

/// What is measured of a step, by TensorBoard's tags; durations are in seconds.
fn times(step: &StepView) -> Vec<(String, f64)> {
    let samples = step.samples_per_second.map(|samples| ("samples_per_second".to_owned(), samples));
    let of_worker = |(worker, timing): &(String, StepTiming)| {
        let named = [
            ("step", timing.step_us),
            ("compute", timing.compute_us()),
            ("exchange", timing.exchange_us),
            ("waiting", timing.waiting_us),
        ];
        named.map(|(name, us)| (format!("{name}_seconds/{worker}"), seconds(us)))
    };
    samples.into_iter().chain(step.workers.iter().flat_map(of_worker)).collect()
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

/// Rows of fixed width, so that they can be printed as they come.
#[derive(Default)]
struct Table {
    begun: bool,
}

impl Table {
    fn row(&mut self, step: &StepView, wide: bool) -> anyhow::Result<()> {
        if !std::mem::replace(&mut self.begun, true) {
            output::line(&format!(
                "{:<16} {:>5} {:>7} {:>11} {:>10} {:>10} {:>10} {:>9} {:>9}  {}",
                "STUDENT",
                "PHASE",
                "STEP",
                "LOSS",
                "RATE",
                "GRAD NORM",
                "SAMPLES/S",
                "EXCHANGE",
                "WAITING",
                if wide { "TERMS  WORKERS: MICROBATCHES, COMPUTE, EXCHANGE, WAITING" } else { "TERMS" }
            ))?;
        }
        output::line(&row(step, wide))?;
        Ok(())
    }
}

/// The longest exchange and wait of any worker stand for the step.
fn row(step: &StepView, wide: bool) -> String {
    let StepView { task: _, lineage: _, student, phase, point, samples_per_second, workers } = step;
    let StepPoint { step, loss, terms, learning_rate, gradient_norm } = point;
    let longest = |of: fn(&StepTiming) -> u64| {
        let longest = workers.iter().map(|(_, timing)| of(timing)).max();
        longest.map_or("-".to_owned(), milliseconds)
    };
    let samples = samples_per_second.map_or("-".to_owned(), |samples| format!("{samples:.1}"));
    let terms: Vec<_> = terms.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
    let mut text = format!(
        "{student:<16} {phase:>5} {step:>7} {loss:>11.6} {learning_rate:>10.3e} {gradient_norm:>10.4} {samples:>10} \
         {:>9} {:>9}  {}",
        longest(|timing| timing.exchange_us),
        longest(|timing| timing.waiting_us),
        terms.join(", ")
    );
    if wide {
        for (worker, timing) in workers {
            let StepTiming { microbatches, step_us: _, waiting_us, exchange_us } = timing;
            let [compute, exchange, waiting] =
                [timing.compute_us(), *exchange_us, *waiting_us].map(milliseconds);
            text += &format!("  {worker}: {microbatches}, {compute}, {exchange}, {waiting}");
        }
    }
    text
}

fn milliseconds(us: u64) -> String {
    format!("{:.1} ms", us as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step() -> StepView {
        let timing = StepTiming { microbatches: 3, step_us: 20_000, waiting_us: 4_000, exchange_us: 1_500 };
        StepView {
            task: "t".into(),
            lineage: "l".into(),
            student: "encoder-8".into(),
            phase: 2,
            point: StepPoint {
                step: 7,
                loss: 0.25,
                terms: vec![("kl".into(), 0.25)],
                learning_rate: 1e-3,
                gradient_norm: 2.0,
            },
            samples_per_second: Some(400.0),
            workers: vec![("w1".into(), timing)],
        }
    }

    #[test]
    fn a_step_is_a_row_or_an_object() {
        let text = row(&step(), true);
        for word in ["encoder-8", " 7 ", "0.250000", "kl 0.2500", "400.0", "w1: 3, 14.5 ms, 1.5 ms, 4.0 ms"] {
            assert!(text.contains(word), "{word:?} in {text}");
        }
        let json = document(&step());
        assert_eq!(json["terms"]["kl"], 0.25);
        assert_eq!(json["workers"][0]["compute_seconds"], 0.0145);
        let times = times(&step());
        assert_eq!(times[0], ("samples_per_second".to_owned(), 400.0));
        assert!(times.contains(&("waiting_seconds/w1".to_owned(), 0.004)));
        let unknown = StepView { samples_per_second: None, workers: Vec::new(), ..step() };
        assert!(row(&unknown, true).contains(" - "));
        assert_eq!(document(&unknown)["samples_per_second"], Value::Null);
    }
}
