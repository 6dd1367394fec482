//! `retort compare`: finished jobs side by side, with p-values from their exported runs.

use crate::args::{CompareArgs, Format};
use crate::config;
use crate::exit::{Exit, UsageError};
use crate::export::of_store;
use crate::output;
use anyhow::{Context, bail};
use retort_common::store::{Location, read_all};
use retort_worker::metrics::evaluation::evaluate;
use retort_worker::metrics::metric::Metric;
use retort_worker::metrics::qrels::Qrels;
use retort_worker::metrics::run::Run;
use retort_worker::metrics::significance::randomization_test;
use serde_json::{Value, json};

/// Largest file of a report that is read.
const FILE_BYTES: u64 = 1 << 30;
/// Permutations of the test and their seed: the same jobs give the same figures.
const PERMUTATIONS: u32 = 10_000;
const SEED: u64 = 1;

/// A finished job.
struct Job {
    id: String,
    folder: Location,
    report: Value,
}

impl Job {
    async fn open(id: &str, args: &CompareArgs) -> anyhow::Result<Self> {
        let (id, url) = match &args.store {
            Some(url) => {
                let (store, job) = of_store(url, id).await?;
                (job.to_string(), store.url_of(&format!("jobs/{job}/report")))
            }
            None => {
                let job = config::client(&args.connect)?.get(id).await?;
                if job.report_url.is_empty() {
                    bail!("job {} is {}: only jobs that have succeeded are compared", job.id, job.state);
                }
                (job.id, job.report_url)
            }
        };
        let folder = Location::parse(&url)?;
        let bytes = fetch(&folder, "report.json").await?;
        let report = serde_json::from_slice(&bytes).with_context(|| format!("{url}/report.json"))?;
        Ok(Self { id, folder, report })
    }

    fn row(&self, name: &str) -> Option<&Value> {
        self.report["rows"].as_array()?.iter().find(|row| row["name"] == name)
    }

    fn value(&self, row: &str, set: &str, metric: &str) -> Option<f64> {
        self.row(row)?["metrics"][set][metric].as_f64()
    }

    /// The questions of a row with their values, from its exported run.
    async fn questions(&self, row: &str, set: &str, metric: &Metric) -> anyhow::Result<Vec<(String, f64)>> {
        let variant = self.row(row).and_then(|row| row["variant"].as_str());
        let tag = variant.map_or_else(|| row.to_owned(), |variant| format!("{row}-{variant}"));
        let (qrels, run) = (format!("qrels/{set}.qrels"), format!("runs/{tag}.{set}.trec"));
        let judgements = Qrels::read_trec(&qrels, fetch(&self.folder, &qrels).await?.as_slice())?;
        let found = Run::read_trec(&run, fetch(&self.folder, &run).await?.as_slice())?;
        let values = evaluate(&judgements, &found, std::slice::from_ref(metric)).by_query;
        Ok(values.into_iter().map(|(query, values)| (query, values[0])).collect())
    }
}

async fn fetch(folder: &Location, name: &str) -> anyhow::Result<Vec<u8>> {
    let file = folder.join(name)?;
    let stream = file.stream().await?.with_context(|| format!("{file}: does not exist"))?;
    Ok(read_all(stream, name, FILE_BYTES).await?)
}

pub async fn compare(args: CompareArgs) -> anyhow::Result<Exit> {
    if args.ids.len() < 2 {
        return Err(UsageError("name at least two jobs".to_owned()).into());
    }
    let mut jobs = Vec::new();
    for id in &args.ids {
        jobs.push(Job::open(id, &args).await?);
    }
    let first = &jobs[0];
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
    };
    let metric = match &args.metric {
        Some(metric) => metric.clone(),
        None => texts(&first.report["metrics"]).first().cloned().context("the first job has no metrics")?,
    };
    let names: Vec<String> = first.report["rows"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|row| row["name"].as_str().map(str::to_owned))
        .collect();
    let mut rows = Vec::new();
    for set in texts(&first.report["test"]) {
        for name in &names {
            let mut cells = Vec::new();
            for job in &jobs {
                let value = job.value(name, &set, &metric);
                let p_value = match value {
                    Some(_) if job.id != first.id => p_value(first, job, name, &set, &metric).await,
                    _ => None,
                };
                cells.push(json!({ "job": job.id, "value": value, "p_value": p_value }));
            }
            if cells.iter().skip(1).any(|cell| !cell["value"].is_null()) {
                rows.push(json!({ "set": set, "row": name, "jobs": cells }));
            }
        }
    }
    if rows.is_empty() {
        bail!("the jobs have no row and test set in common, or none with {metric}");
    }
    match args.output {
        Format::Json | Format::Jsonl => output::json_document(json!({ "metric": metric, "rows": rows }))?,
        Format::Table | Format::Wide => output::line(&table(&jobs, &metric, &rows))?,
    }
    Ok(Exit::Ok)
}

/// The p-value of a row of two jobs, where both judged the same questions and exported their runs; a metric of answers
/// has none.
async fn p_value(first: &Job, other: &Job, row: &str, set: &str, metric: &str) -> Option<f64> {
    let metric = metric.parse().ok()?;
    let (own, theirs) =
        (first.questions(row, set, &metric).await.ok()?, other.questions(row, set, &metric).await.ok()?);
    if !own.iter().map(|(query, _)| query).eq(theirs.iter().map(|(query, _)| query)) {
        return None;
    }
    let column = |values: &[(String, f64)]| values.iter().map(|(_, value)| *value).collect::<Vec<_>>();
    let test = randomization_test(&column(&own), &column(&theirs), PERMUTATIONS, SEED).ok()?;
    Some(test.p_value)
}

fn table(jobs: &[Job], metric: &str, rows: &[Value]) -> String {
    let mut header = vec!["SET".to_owned(), "ROW".to_owned()];
    for (at, job) in jobs.iter().enumerate() {
        header.push(job.id.clone());
        if at > 0 {
            header.push("P".to_owned());
        }
    }
    let number = |value: &Value| value.as_f64().map_or_else(|| "-".to_owned(), |value| format!("{value:.4}"));
    let lines = rows.iter().map(|row| {
        let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
        let mut cells = vec![text("set"), text("row")];
        for (at, cell) in row["jobs"].as_array().into_iter().flatten().enumerate() {
            cells.push(number(&cell["value"]));
            if at > 0 {
                cells.push(number(&cell["p_value"]));
            }
        }
        cells
    });
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    format!(
        "{metric}; p-values by paired randomisation against the first job\n{}",
        output::columns(&header, lines)
    )
}
