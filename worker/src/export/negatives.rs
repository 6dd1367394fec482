//! Mined negatives with the teacher's scores, for three trainers.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use serde_json::{Value, json};

use super::catalog::Catalog;
use super::lists::{passages, query_texts};
use super::{Output, write_error};
use crate::tables::{NegativeRow, read_negatives};
use crate::tasks::mine::{NEGATIVES, known_positives};
use crate::tasks::{TaskError, Workbench};

/// Writes `beir.jsonl` (ids and scores), `tevatron.jsonl` with `tevatron-corpus.jsonl` (ids and the passages that they
/// name), and `sentence-transformers.jsonl` (texts: anchor, positive, negative_1, …, with scores).
pub(super) fn write(bench: &Workbench<'_>, catalog: &Catalog, output: &mut Output) -> Result<(), TaskError> {
    let artifact = catalog.negatives.as_ref().ok_or_else(|| {
        TaskError::Input(format!("job {} mined no negatives: none of its phases asks for them", catalog.job))
    })?;
    let mut by_query = BTreeMap::<u64, Vec<NegativeRow>>::new();
    for negative in read_negatives(&bench.part(artifact, NEGATIVES)?)? {
        by_query.entry(negative.query).or_default().push(negative);
    }
    let positives = known_positives(bench, &catalog.queries, &catalog.train)?;
    let asked: BTreeSet<u64> = positives.keys().copied().collect();
    let rows = positives.values().flatten().copied();
    let rows: BTreeSet<u64> =
        rows.chain(by_query.values().flatten().map(|negative| negative.passage)).collect();
    let questions = query_texts(bench, catalog, &asked)?;
    let passages = passages(bench, catalog, &rows)?;
    let scores = positive_scores(bench, catalog, &positives)?;
    let none = Vec::new();
    let line = |out: &mut dyn Write, value: &Value| writeln!(out, "{value}").map_err(write_error);

    output.file("beir.jsonl", |out| {
        positives.iter().try_for_each(|(query, known)| {
            let negatives = by_query.get(query).unwrap_or(&none);
            let positives: Vec<_> = known
                .iter()
                .map(|row| json!({ "corpus-id": passages[row].id, "score": scores.get(&(*query, *row)) }))
                .collect();
            let negatives: Vec<_> = negatives
                .iter()
                .map(|negative| json!({ "corpus-id": passages[&negative.passage].id, "score": finite(negative.score) }))
                .collect();
            line(out, &json!({ "query-id": questions[query].0, "positives": positives, "negatives": negatives }))
        })
    })?;
    output.file("tevatron.jsonl", |out| {
        positives.iter().try_for_each(|(query, known)| {
            let (id, text) = &questions[query];
            let negatives = by_query.get(query).unwrap_or(&none);
            let scores: Vec<_> = negatives.iter().map(|negative| finite(negative.score)).collect();
            let negatives: Vec<_> =
                negatives.iter().map(|negative| &passages[&negative.passage].id).collect();
            let positives: Vec<_> = known.iter().map(|row| &passages[row].id).collect();
            line(
                out,
                &json!({
                    "query_id": id, "query_text": text, "positive_document_ids": positives,
                    "negative_document_ids": negatives, "negative_document_scores": scores,
                }),
            )
        })
    })?;
    output.file("tevatron-corpus.jsonl", |out| {
        rows.iter().try_for_each(|row| {
            let passage = &passages[row];
            line(out, &json!({ "docid": passage.id, "document_text": passage.whole() }))
        })
    })?;
    output.file("sentence-transformers.jsonl", |out| {
        positives.iter().try_for_each(|(query, known)| {
            let negatives = by_query.get(query).unwrap_or(&none);
            known.iter().try_for_each(|row| {
                let mut entry = json!({ "anchor": questions[query].1, "positive": passages[row].whole() });
                let mut all = vec![json!(scores.get(&(*query, *row)))];
                for (number, negative) in negatives.iter().enumerate() {
                    entry[format!("negative_{}", number + 1)] = json!(passages[&negative.passage].whole());
                    all.push(finite(negative.score));
                }
                entry["scores"] = Value::Array(all);
                line(out, &entry)
            })
        })
    })
}

/// A score, or null where there is none.
fn finite(score: f64) -> Value {
    if score.is_finite() { json!(score) } else { Value::Null }
}

/// The teacher's scores of the known positives.
fn positive_scores(
    bench: &Workbench<'_>,
    catalog: &Catalog,
    positives: &BTreeMap<u64, Vec<u64>>,
) -> Result<BTreeMap<(u64, u64), f64>, TaskError> {
    let teacher = catalog.rows.iter().find(|row| row.kind == "teacher").and_then(|row| row.vectors.as_ref());
    let Some(teacher) = teacher else { return Ok(BTreeMap::new()) };
    let (queries, passages) = (bench.vector_rows(&teacher.queries)?, bench.vector_rows(&teacher.passages)?);
    let mut scores = BTreeMap::new();
    for (query, known) in positives {
        let vector = queries.gather(&[*query])?;
        let vectors = passages.gather(known)?;
        for (at, row) in known.iter().enumerate() {
            let pairs = vector.row(0).iter().zip(vectors.row(at));
            scores.insert((*query, *row), pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum());
        }
    }
    Ok(scores)
}
