//! The table, report.json and report.html, and with them everything a job leaves for people.

use super::bench::{Content, Produced, TaskError, Workbench};
use super::evaluate::{EVALUATION, Figures};
use super::mine::{AUDIT, CASES};
use super::student::curve;
use crate::export::catalog::{CATALOG, Catalog, CatalogRow};
use crate::metrics::significance::randomization_test;
use crate::mining::{Audit, GapHistogram};
use crate::report::{
    BadRecords, Comparison, FilterCount, Histogram, Kind, NegativesAudit, Phase, ReportData, Row, Shortfall,
    StageTime, Training, event_file, model_card, render_html, render_json, render_table,
};
use retort_common::task::{ArtifactId, ReportRow, Task};
use serde_json::json;

/// Permutations of the paired randomisation test.
const PERMUTATIONS: u32 = 10_000;
/// Its seed: reports of the same figures are the same.
const SEED: u64 = 1;

/// Writes `jobs/{job}/report`; the artifact of the task, written last, says that it is complete.
pub fn report(bench: &Workbench<'_>, task: &Task) -> Result<Produced, TaskError> {
    let Task::Report { job, rows, .. } = task else { unreachable!("called with its own task") };
    let (data, chosen) = gather(bench, task)?;
    let rendered = [
        ("table.txt", render_table(&data)),
        ("report.html", render_html(&data)),
        ("report.json", render_json(&data).map_err(TaskError::input)?),
    ];
    let folder = format!("jobs/{job}/report");
    let store = bench.artifacts.store();
    for (row, variant) in rows.iter().zip(&chosen) {
        copy(bench, &row.variants[*variant].run, &folder, "")?;
        if let Some(export) = &row.export {
            copy(bench, export, &folder, &format!("models/{}/", row.name))?;
        }
        bench.progress.progress(0, 0, &row.name);
    }
    for Training { student, phases } in &data.training {
        for (number, phase) in phases.iter().enumerate() {
            let name = format!("tensorboard/{student}/phase-{}/events.out.tfevents.0.retort", number + 1);
            bench.wait(store.put(&format!("{folder}/{name}"), event_file(&phase.steps).into()))?;
        }
    }
    let catalog = catalog(task, &data, &chosen)?;
    for (student, card) in &catalog.cards {
        let path = format!("{folder}/models/{student}/README.md");
        bench.wait(store.put(&path, card.clone().into_bytes().into()))?;
    }
    let text = serde_json::to_string_pretty(&catalog).map_err(TaskError::input)? + "\n";
    bench.wait(store.put(&format!("{folder}/{CATALOG}"), text.into_bytes().into()))?;
    let mut parts = Vec::new();
    for (name, text) in rendered {
        bench.wait(store.put(&format!("{folder}/{name}"), text.clone().into_bytes().into()))?;
        parts.push((name.to_owned(), Content::Bytes(text.into_bytes().into())));
    }
    Ok(Produced { parts, meta: json!({ "rows": data.rows.len() }) })
}

/// Where everything lies, for exports.
fn catalog(task: &Task, data: &ReportData, chosen: &[usize]) -> Result<Catalog, TaskError> {
    let Task::Report { job, name, spec_digest, rows, negatives, sources, dev, test, .. } = task else {
        unreachable!("called with its own task")
    };
    let row = |(row, variant): (&ReportRow, &usize)| {
        let variant = &row.variants[*variant];
        let dense = variant.dense.clone();
        CatalogRow {
            name: row.name.clone(),
            kind: row.kind.clone(),
            variant: variant.name.clone(),
            export: row.export.clone(),
            run: variant.run.clone(),
            ranking: variant.ranking.clone(),
            reduce: dense.as_ref().and_then(|dense| dense.reduce.clone()),
            codes: dense.as_ref().and_then(|dense| dense.codes.clone()),
            vectors: dense.map(|dense| dense.vectors),
        }
    };
    let exported = data.rows.iter().zip(rows).filter(|(_, planned)| planned.export.is_some());
    let students = exported.map(|(row, _)| row).filter(|row| row.kind.is_student());
    Ok(Catalog {
        schema_version: 1,
        job: job.to_string(),
        name: name.clone(),
        spec_digest: spec_digest.to_string(),
        fingerprint: sources.fingerprint.clone(),
        passages: sources.passages.clone(),
        queries: sources.queries.clone(),
        train: sources.train.clone(),
        judged: dev.iter().chain(test).cloned().collect(),
        negatives: negatives.first().map(|(_, artifact)| artifact.clone()),
        rows: rows.iter().zip(chosen).map(row).collect(),
        cards: students.map(|row| (row.name.clone(), model_card(data, &row.name))).collect(),
    })
}

/// Copies an artifact's parts under their own names into the report's folder.
fn copy(bench: &Workbench<'_>, artifact: &ArtifactId, folder: &str, prefix: &str) -> Result<(), TaskError> {
    for part in bench.manifest(artifact)?.parts {
        let target = format!("{folder}/{prefix}{}", part.name);
        bench.wait(bench.artifacts.store().copy(&part.path, &target))?;
    }
    Ok(())
}

/// Everything the report says, and which variant of each row it reports.
fn gather(bench: &Workbench<'_>, task: &Task) -> Result<(ReportData, Vec<usize>), TaskError> {
    let Task::Report {
        job,
        name,
        spec_digest,
        rows,
        training,
        negatives,
        stages,
        sources,
        dev,
        test,
        metrics,
    } = task
    else {
        unreachable!("called with its own task")
    };
    let deciding = metrics.first().cloned().unwrap_or_default();
    let (mut figures, mut chosen) = (Vec::new(), Vec::new());
    for row in rows {
        let variants = row
            .variants
            .iter()
            .map(|variant| bench.json::<Figures>(&variant.evaluation, EVALUATION))
            .collect::<Result<Vec<_>, _>>()?;
        let best = best_on_dev(&variants, dev, &deciding);
        chosen.push(best);
        figures.extend(variants.into_iter().nth(best));
    }
    let report_rows = rows
        .iter()
        .zip(figures.iter().zip(&chosen))
        .map(|(row, (figures, variant))| report_row(row, figures, *variant))
        .collect::<Result<Vec<_>, _>>()?;
    let data = ReportData {
        job: job.to_string(),
        name: name.clone(),
        spec_digest: spec_digest.to_string(),
        dev: dev.clone(),
        test: test.clone(),
        metrics: metrics.clone(),
        comparisons: comparisons(&report_rows, &figures, (dev.as_slice(), test.as_slice()), &deciding)?,
        rows: report_rows,
        stages: stages
            .iter()
            .map(|stage| StageTime {
                name: stage.name.to_string(),
                tasks: u64::from(stage.tasks),
                cached: u64::from(stage.cached),
                seconds: stage.seconds,
            })
            .collect(),
        training: training
            .iter()
            .map(|(student, phases)| training_curves(bench, student, phases))
            .collect::<Result<_, _>>()?,
        negatives: negatives
            .iter()
            .map(|(source, artifact)| negatives_audit(bench, source, artifact))
            .collect::<Result<_, _>>()?,
        bad_records: bad_records(bench, [&sources.passages.artifact, &sources.queries.artifact])?,
    };
    Ok((data, chosen))
}

/// The variant with the best mean of the deciding metric over the dev sets; the first where there are none.
fn best_on_dev(variants: &[Figures], dev: &[String], deciding: &str) -> usize {
    let mean = |figures: &Figures| {
        let of_set = |set: &String| figures.sets.get(set)?.means.get(deciding).copied();
        dev.iter().filter_map(of_set).sum::<f64>()
    };
    (0..variants.len()).rev().max_by(|a, b| mean(&variants[*a]).total_cmp(&mean(&variants[*b]))).unwrap_or(0)
}

fn report_row(row: &ReportRow, figures: &Figures, variant: usize) -> Result<Row, TaskError> {
    let kind = Kind::ALL.into_iter().find(|kind| kind.name() == row.kind);
    let variant = &row.variants[variant].name;
    Ok(Row {
        name: row.name.clone(),
        kind: kind.ok_or_else(|| {
            TaskError::Input(format!("row {:?} is of unknown kind {:?}", row.name, row.kind))
        })?,
        dim: row.dim,
        bytes_per_passage: row.bytes_per_passage,
        variant: (!variant.is_empty()).then(|| variant.clone()),
        metrics: figures.sets.iter().map(|(set, figures)| (set.clone(), figures.means.clone())).collect(),
        queries: figures
            .sets
            .iter()
            .map(|(set, figures)| (set.clone(), figures.queries.len() as u64))
            .collect(),
    })
}

/// Every student against PCA at its own dimensions and against the best baseline of the same or fewer bytes, by paired
/// randomisation on every test set. The best is chosen on dev, where there is such a set.
fn comparisons(
    rows: &[Row],
    figures: &[Figures],
    (dev, test): (&[String], &[String]),
    metric: &str,
) -> Result<Vec<Comparison>, TaskError> {
    let mut comparisons = Vec::new();
    for (student, own) in rows.iter().zip(figures).filter(|(row, _)| row.kind.is_student()) {
        let sets = if dev.is_empty() { test } else { dev };
        let mean = |row: &Row| sets.iter().filter_map(|set| row.metric(set, metric)).sum::<f64>();
        let no_larger =
            |row: &&Row| row.kind.is_baseline() && row.bytes_per_passage <= student.bytes_per_passage;
        let best = rows.iter().filter(no_larger).max_by(|a, b| mean(a).total_cmp(&mean(b)));
        let is_best = |row: &Row| best.is_some_and(|best| best.name == row.name);
        let same = |row: &Row| (row.kind == Kind::Pca && row.dim == student.dim) || is_best(row);
        for (baseline, theirs) in rows.iter().zip(figures).filter(|(row, _)| same(row)) {
            for set in test {
                let values = |figures: &Figures| figures.sets.get(set)?.values.get(metric).cloned();
                let (Some(a), Some(b)) = (values(own), values(theirs)) else { continue };
                let outcome = randomization_test(&a, &b, PERMUTATIONS, SEED).map_err(TaskError::input)?;
                comparisons.push(Comparison {
                    row: student.name.clone(),
                    baseline: baseline.name.clone(),
                    set: set.clone(),
                    metric: metric.to_owned(),
                    difference: outcome.mean_difference,
                    p_value: outcome.p_value,
                    queries: a.len() as u64,
                });
            }
        }
    }
    Ok(comparisons)
}

/// What the tables' manifests say of records that were left out.
fn bad_records(bench: &Workbench<'_>, tables: [&ArtifactId; 2]) -> Result<BadRecords, TaskError> {
    let mut bad = BadRecords::default();
    for table in tables {
        let meta = bench.manifest(table)?.meta;
        bad.count += meta["bad_records"].as_u64().unwrap_or(0);
        let reasons = meta["bad_record_reasons"].as_array().into_iter().flatten();
        bad.reasons.extend(reasons.filter_map(|reason| reason.as_str().map(str::to_owned)));
    }
    Ok(bad)
}

fn training_curves(
    bench: &Workbench<'_>,
    student: &str,
    phases: &[ArtifactId],
) -> Result<Training, TaskError> {
    let phase = |(number, artifact): (usize, &ArtifactId)| {
        let steps = curve(bench, artifact)?;
        Ok(Phase { name: format!("phase {}", number + 1), signal: String::new(), steps })
    };
    let phases = phases.iter().enumerate().map(phase).collect::<Result<_, TaskError>>()?;
    Ok(Training { student: student.to_owned(), phases })
}

fn negatives_audit(
    bench: &Workbench<'_>,
    source: &str,
    artifact: &ArtifactId,
) -> Result<NegativesAudit, TaskError> {
    let audit: Audit = bench.json(artifact, AUDIT)?;
    let filters = &audit.filters;
    let counted = [
        ("repeated", filters.repeated),
        ("known positive", filters.known_positive),
        ("duplicate text", filters.duplicate_text),
        ("no teacher score", filters.unscored),
        ("ceiling", filters.ceiling),
        ("margin", filters.margin),
        ("ratio", filters.ratio),
        ("holds an answer", filters.answer),
        ("cross-encoder", filters.cross_encoder),
    ];
    let edges = GapHistogram::edges();
    Ok(NegativesAudit {
        source: source.to_owned(),
        questions: audit.queries,
        candidates: filters.considered,
        kept: audit.chosen,
        filters: counted
            .into_iter()
            .filter(|(_, removed)| *removed > 0)
            .map(|(filter, removed)| FilterCount { filter: filter.to_owned(), removed })
            .collect(),
        shortfall: Shortfall { questions: audit.short_queries, negatives: audit.missing },
        // The open bins at both ends have no width to draw and are empty for cosines.
        gaps: Histogram {
            counts: audit.gaps.counts.get(1..edges.len()).map(<[u64]>::to_vec).unwrap_or_default(),
            edges,
        },
        suspicious: bench.json(artifact, CASES)?,
    })
}
