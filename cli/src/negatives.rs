//! `retort negatives report`: the audits of a job's mined negatives.

use crate::args::{NegativesReportArgs, ReportFormat};
use crate::config;
use crate::exit::Exit;
use crate::output;
use anyhow::Context;
use retort_common::store::{Location, read_all};
use retort_common::view::JobState;
use retort_worker::report::{NegativesAudit, render_negatives};
use serde::Deserialize;
use serde_json::json;

/// The largest report.json that is read.
const LARGEST_REPORT: u64 = 256 << 20;

/// What is read of report.json.
#[derive(Deserialize)]
struct Report {
    negatives: Vec<NegativesAudit>,
}

pub async fn report(args: NegativesReportArgs) -> anyhow::Result<Exit> {
    let mut client = config::client(&args.connect)?;
    let job = client.get(&args.id).await?;
    if job.state != JobState::Succeeded {
        eprintln!("job {} is {}; its negatives are reported once it has succeeded", job.id, job.state);
        return Ok(Exit::of_job(job.state));
    }
    let place = Location::parse(&job.report_url)?.join("report.json")?;
    let stream = place.stream().await?.with_context(|| format!("{place} is not there"))?;
    let bytes = read_all(stream, &place.to_string(), LARGEST_REPORT).await?;
    let found: Report =
        serde_json::from_slice(&bytes).with_context(|| format!("{place} is of another version"))?;
    match args.output {
        ReportFormat::Table => output::line(&render_negatives(&found.negatives, args.cases))?,
        ReportFormat::Json => {
            output::json_document(json!({ "job": job.id, "negatives": found.negatives }))?;
        }
    }
    Ok(Exit::Ok)
}
