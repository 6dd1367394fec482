//! Runs with the corpus' own ids.

use super::super::bench::{Content, Produced, TaskError, Workbench};
use super::super::search::load_ranking;
use crate::metrics::run::{RankedDocument, Run};
use crate::tables::{Judgement, NO_PASSAGE};
use retort_common::task::Task;
use serde_json::json;
use std::collections::{BTreeSet, HashMap};

/// A run and its judgements with the corpus' own ids, a file for each set.
pub fn run(bench: &Workbench<'_>, task: &Task) -> Result<Produced, TaskError> {
    let Task::ExportRun { run, name, queries, passages, sets } = task else {
        unreachable!("called with its own task")
    };
    let lists = load_ranking(bench, run)?;
    let judgements = bench.judgements(queries, sets)?;
    let is_judged = |judgement: &&Judgement| judgement.passage != NO_PASSAGE;
    let asked = judgements.iter().map(|judgement| judgement.query).collect();
    let query_ids = ids(bench, queries.shards, &asked, |shard| {
        let shard = bench.queries(queries, shard)?;
        Ok((shard.first_row, shard.ids))
    })?;
    let found = lists.values().flatten().map(|hit| hit.row);
    let judged = judgements.iter().filter(is_judged).map(|judgement| judgement.passage);
    let found = found.chain(judged).collect();
    let passage_ids = ids(bench, passages.shards, &found, |shard| {
        let shard = bench.passages(passages, shard)?;
        Ok((shard.first_row, shard.ids))
    })?;
    let mut parts = Vec::new();
    for set in sets {
        let own: Vec<&Judgement> = judgements.iter().filter(|judgement| judgement.set == *set).collect();
        let asked: BTreeSet<u64> = own.iter().map(|judgement| judgement.query).collect();
        let mut exported = Run::default();
        for query in &asked {
            let hits = lists.get(query).map(Vec::as_slice).unwrap_or_default();
            let documents =
                hits.iter().map(|hit| RankedDocument { id: passage_ids[&hit.row].clone(), score: hit.score });
            exported.insert(&query_ids[query], documents.collect()).map_err(TaskError::input)?;
        }
        let mut bytes = Vec::new();
        exported.write_trec(&format!("{name}.{set}.trec"), name, &mut bytes).map_err(TaskError::input)?;
        parts.push((format!("runs/{name}.{set}.trec"), Content::Bytes(bytes.into())));
        let lines = own.iter().copied().filter(is_judged).map(|judgement| {
            let (query, passage) = (&query_ids[&judgement.query], &passage_ids[&judgement.passage]);
            format!("{query} 0 {passage} {}\n", judgement.grade)
        });
        parts.push((
            format!("qrels/{set}.qrels"),
            Content::Bytes(lines.collect::<String>().into_bytes().into()),
        ));
    }
    let meta = json!({ "files": parts.len() });
    Ok(Produced { parts, meta })
}

/// The ids of some rows: reads shard after shard and keeps only those asked for.
fn ids(
    bench: &Workbench<'_>,
    shards: u32,
    wanted: &BTreeSet<u64>,
    read: impl Fn(u32) -> Result<(u64, Vec<String>), TaskError>,
) -> Result<HashMap<u64, String>, TaskError> {
    let mut found = HashMap::with_capacity(wanted.len());
    for shard in 0..shards {
        bench.go_on()?;
        let (first_row, ids) = read(shard)?;
        found.extend((first_row..).zip(ids).filter(|(row, _)| wanted.contains(row)));
    }
    if found.len() == wanted.len() {
        return Ok(found);
    }
    Err(TaskError::Input("a run or a judgement names a row that its table lacks".to_owned()))
}
