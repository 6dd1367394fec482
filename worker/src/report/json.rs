//! report.json: for programs. Keys come in a fixed order, so that equal reports are equal files; what is
//! not finite is null.

use super::data::{BadRecords, Comparison, Kind, NegativesAudit, ReportData, StageTime};
use super::summary;
use serde::Serialize;
use std::collections::BTreeMap;

/// Raised when a key changes its meaning or goes away; new keys do not raise it.
pub const SCHEMA_VERSION: u32 = 1;

/// Renders report.json, with a line feed at its end.
///
/// # Errors
/// None that this data can cause; the type is that of the serialiser.
pub fn render_json(data: &ReportData) -> Result<String, serde_json::Error> {
    let mut text = serde_json::to_string_pretty(&document(data))?;
    text.push('\n');
    Ok(text)
}

#[derive(Serialize)]
struct Document<'a> {
    schema_version: u32,
    job: &'a str,
    name: &'a str,
    spec_digest: &'a str,
    dev: &'a [String],
    test: &'a [String],
    metrics: &'a [String],
    summary: Vec<String>,
    rows: Vec<RowDocument<'a>>,
    comparisons: &'a [Comparison],
    stages: &'a [StageTime],
    training: Vec<TrainingDocument<'a>>,
    negatives: &'a [NegativesAudit],
    bad_records: &'a BadRecords,
}

#[derive(Serialize)]
struct RowDocument<'a> {
    name: &'a str,
    kind: Kind,
    dim: Option<u32>,
    bytes_per_passage: f64,
    variant: Option<&'a str>,
    metrics: &'a BTreeMap<String, BTreeMap<String, f64>>,
    queries: &'a BTreeMap<String, u64>,
}

#[derive(Serialize)]
struct TrainingDocument<'a> {
    student: &'a str,
    phases: Vec<PhaseDocument<'a>>,
}

/// The curves themselves stay in the training artifacts: a report is read often, they are not.
#[derive(Serialize)]
struct PhaseDocument<'a> {
    name: &'a str,
    signal: &'a str,
    steps: usize,
    first_loss: Option<f64>,
    last_loss: Option<f64>,
}

fn document(data: &ReportData) -> Document<'_> {
    let rows = summary::ordered(data)
        .into_iter()
        .map(|row| RowDocument {
            name: &row.name,
            kind: row.kind,
            dim: row.dim,
            bytes_per_passage: row.bytes_per_passage,
            variant: row.variant.as_deref(),
            metrics: &row.metrics,
            queries: &row.queries,
        })
        .collect();
    let training = data.training.iter().map(|training| TrainingDocument {
        student: &training.student,
        phases: training
            .phases
            .iter()
            .map(|phase| PhaseDocument {
                name: &phase.name,
                signal: &phase.signal,
                steps: phase.steps.len(),
                first_loss: phase.steps.first().map(|step| step.loss),
                last_loss: phase.steps.last().map(|step| step.loss),
            })
            .collect(),
    });
    Document {
        schema_version: SCHEMA_VERSION,
        job: &data.job,
        name: &data.name,
        spec_digest: &data.spec_digest,
        dev: &data.dev,
        test: &data.test,
        metrics: &data.metrics,
        summary: summary::sentences(data),
        rows,
        comparisons: &data.comparisons,
        stages: &data.stages,
        training: training.collect(),
        negatives: &data.negatives,
        bad_records: &data.bad_records,
    }
}
