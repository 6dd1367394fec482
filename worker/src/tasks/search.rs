//! Questions against the corpus: exact top-k over some shards, and the merging of such lists.

use super::baseline::{self, reduction_map};
use super::bench::{Content, Produced, RANKING, TaskError, VECTORS, Workbench};
use super::fit::{bm25_texts, load_statistics};
use crate::fit::AffineMap;
use crate::matrix::Matrix;
use crate::search::bm25::{Bm25, Questions, ShardIndex};
use crate::search::codes::{CodeQueries, rerank};
use crate::search::dense::Queries;
use crate::search::topk::{Hit, TopK};
use crate::tables::{read_rankings, write_rankings};
use crate::vectors::read_vectors;
use retort_common::task::{ArtifactId, PcaReduction, Retriever, Table, Task};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

/// A retriever over some shards to ranked lists.
pub fn search(bench: &Workbench<'_>, task: &Task) -> Result<Produced, TaskError> {
    let Task::Search { retriever, queries, sets, depth, .. } = task else {
        unreachable!("called with its own task")
    };
    let wanted: BTreeSet<u64> =
        bench.judgements(queries, sets)?.iter().map(|judgement| judgement.query).collect();
    let rows: Vec<u64> = wanted.into_iter().collect();
    let mut top = TopK::new(rows.len(), *depth as usize);
    match retriever {
        Retriever::Dense { queries, passages, reduce } => {
            dense(bench, &rows, queries, passages, reduce.as_ref(), &mut top)?;
        }
        Retriever::Codes { .. } => codes(bench, &rows, retriever, &mut top)?,
        Retriever::Bm25 { .. } => bm25(bench, &rows, queries, retriever, &mut top)?,
    }
    finish(bench, &rows.into_iter().zip(top.into_ranked()).collect::<Vec<_>>())
}

/// Applies a reduction; none leaves vectors as they are.
fn reduced(vectors: Matrix, reduce: Option<&AffineMap>, threads: usize) -> Matrix {
    match reduce {
        Some(map) => map.apply(&vectors, threads),
        None => vectors,
    }
}

fn dense(
    bench: &Workbench<'_>,
    rows: &[u64],
    queries: &[ArtifactId],
    passages: &[ArtifactId],
    reduce: Option<&PcaReduction>,
    top: &mut TopK,
) -> Result<(), TaskError> {
    let reduce = reduce.map(|reduction| reduction_map(bench, reduction)).transpose()?;
    let queries = reduced(bench.vector_rows(queries)?.gather(rows)?, reduce.as_ref(), bench.threads);
    let queries = Queries::new(&queries);
    for (at, shard) in passages.iter().enumerate() {
        bench.go_on()?;
        let first_row = bench.manifest(shard)?.meta["first_row"].as_u64().unwrap_or(0);
        let vectors = read_vectors(&bench.part(shard, VECTORS)?)?;
        let vectors = reduced(vectors, reduce.as_ref(), bench.threads);
        queries.search(&vectors, first_row, bench.threads, top).map_err(TaskError::input)?;
        bench.progress.progress(at as u64 + 1, passages.len() as u64, "");
    }
    Ok(())
}

fn codes(
    bench: &Workbench<'_>,
    rows: &[u64],
    retriever: &Retriever,
    top: &mut TopK,
) -> Result<(), TaskError> {
    let Retriever::Codes { queries, quantizer, codes, hamming, rerank: second } = retriever else {
        unreachable!("called with its own retriever")
    };
    let quantizer = baseline::load(bench, quantizer)?;
    let queries = bench.vector_rows(queries)?.gather(rows)?;
    let prepare = if *hamming { CodeQueries::hamming } else { CodeQueries::new };
    let prepared = prepare(&quantizer, &queries, bench.threads).map_err(TaskError::input)?;
    let k = top.k();
    let depth = second.as_ref().map_or(k, |second| k.max(second.depth as usize));
    let mut first = TopK::new(rows.len(), depth);
    for (at, shard) in codes.iter().enumerate() {
        bench.go_on()?;
        let (first_row, shard) = baseline::load_codes(bench, shard)?;
        prepared.search(&shard, first_row, bench.threads, &mut first).map_err(TaskError::input)?;
        bench.progress.progress(at as u64 + 1, codes.len() as u64, "");
    }
    let Some(second) = second else {
        *top = first;
        return Ok(());
    };
    let passages = bench.vector_rows(&second.passages)?;
    let exact = |rows: &[u64]| passages.gather(rows).map_err(|error| error.to_string());
    let lists = rerank(&queries, &first.into_ranked(), k, exact).map_err(TaskError::Input)?;
    for (query, hits) in lists.into_iter().enumerate() {
        for hit in hits {
            top.push(query, hit).map_err(TaskError::input)?;
        }
    }
    Ok(())
}

fn bm25(
    bench: &Workbench<'_>,
    rows: &[u64],
    queries: &Table,
    retriever: &Retriever,
    top: &mut TopK,
) -> Result<(), TaskError> {
    let Retriever::Bm25 { passages, first_shard, shards, statistics, k1, b } = retriever else {
        unreachable!("called with its own retriever")
    };
    let statistics = load_statistics(bench, statistics)?;
    let questions = Questions::new(&query_texts(bench, queries, rows)?);
    let parameters = Bm25 { k1: *k1, b: *b };
    for at in 0..*shards {
        let shard = bench.passages(passages, first_shard + at)?;
        let texts = bm25_texts(&shard);
        let index = ShardIndex::build(shard.first_row, &texts, bench.threads).map_err(TaskError::input)?;
        index.search(&statistics, parameters, &questions, bench.threads, top).map_err(TaskError::input)?;
        bench.go_on()?;
        bench.progress.progress(u64::from(at) + 1, u64::from(*shards), "");
    }
    Ok(())
}

/// The texts of some questions, in the order of `rows`, which must rise.
pub fn query_texts(bench: &Workbench<'_>, queries: &Table, rows: &[u64]) -> Result<Vec<String>, TaskError> {
    let mut texts = Vec::with_capacity(rows.len());
    let mut wanted = rows.iter().peekable();
    for shard in 0..queries.shards {
        let shard = bench.queries(queries, shard)?;
        for (row, text) in (shard.first_row..).zip(shard.texts) {
            if wanted.next_if_eq(&&row).is_some() {
                texts.push(text);
            }
        }
    }
    if texts.len() != rows.len() {
        return Err(TaskError::Input(format!("{}: lacks questions that are judged", queries.artifact)));
    }
    Ok(texts)
}

fn finish(bench: &Workbench<'_>, lists: &[(u64, Vec<Hit>)]) -> Result<Produced, TaskError> {
    let path = bench.scratch(RANKING);
    write_rankings(&path, lists)?;
    let meta = json!({ "queries": lists.len() });
    Ok(Produced { parts: vec![(RANKING.to_owned(), Content::File(path))], meta })
}

/// The ranked lists of an artifact by question, best first.
pub fn load_ranking(
    bench: &Workbench<'_>,
    artifact: &ArtifactId,
) -> Result<BTreeMap<u64, Vec<Hit>>, TaskError> {
    Ok(read_rankings(&bench.part(artifact, RANKING)?)?)
}

/// Lists over disjoint shards to one list.
pub fn merge(bench: &Workbench<'_>, rankings: &[ArtifactId], depth: u32) -> Result<Produced, TaskError> {
    let mut best = BTreeMap::<u64, TopK>::new();
    for ranking in rankings {
        for (query, hits) in load_ranking(bench, ranking)? {
            let top = best.entry(query).or_insert_with(|| TopK::new(1, depth as usize));
            for hit in hits {
                top.push(0, hit).map_err(TaskError::input)?;
            }
        }
    }
    let lists: Vec<_> =
        best.into_iter().map(|(query, top)| (query, top.into_ranked().pop().unwrap_or_default())).collect();
    finish(bench, &lists)
}
