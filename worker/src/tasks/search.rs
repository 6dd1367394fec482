//! Questions against the corpus: exact top-k over some shards, and the merging of such lists.

use super::bench::{Content, Produced, RUN, TaskError, VECTORS, Workbench};
use super::fit::{bm25_texts, load_pca, load_statistics};
use crate::fit::pca::Pca;
use crate::matrix::Matrix;
use crate::metrics::run::{RankedDocument, Run};
use crate::search::bm25::{Bm25, ShardIndex};
use crate::search::dense::search_block;
use crate::search::topk::{Hit, TopK};
use crate::vectors::read_vectors;
use retort_common::task::{ArtifactId, PcaReduction, Retriever, Table, Task};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

/// A retriever over some shards to a run.
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
        Retriever::Bm25 { .. } => bm25(bench, &rows, queries, retriever, &mut top)?,
    }
    finish(bench, rows.into_iter().zip(top.into_ranked()))
}

/// Applies a reduction; none leaves vectors as they are.
fn reduced(vectors: Matrix, reduce: Option<(&Pca, &PcaReduction)>) -> Result<Matrix, TaskError> {
    let Some((pca, reduction)) = reduce else { return Ok(vectors) };
    pca.project(&vectors, reduction.dim as usize, true, reduction.renormalize).map_err(TaskError::input)
}

fn dense(
    bench: &Workbench<'_>,
    rows: &[u64],
    queries: &[ArtifactId],
    passages: &[ArtifactId],
    reduce: Option<&PcaReduction>,
    top: &mut TopK,
) -> Result<(), TaskError> {
    let pca = reduce.map(|reduction| load_pca(bench, &reduction.pca)).transpose()?;
    let reduce = pca.as_ref().zip(reduce);
    let queries = reduced(bench.vector_rows(queries)?.gather(rows)?, reduce)?;
    for (at, shard) in passages.iter().enumerate() {
        bench.go_on()?;
        let first_row = bench.manifest(shard)?.meta["first_row"].as_u64().unwrap_or(0);
        let vectors = reduced(read_vectors(&bench.part(shard, VECTORS)?)?, reduce)?;
        search_block(&queries, &vectors, first_row, bench.threads, top).map_err(TaskError::input)?;
        bench.progress.progress(at as u64 + 1, passages.len() as u64, "");
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
    let texts = query_texts(bench, queries, rows)?;
    for at in 0..*shards {
        let shard = bench.passages(passages, first_shard + at)?;
        let index = ShardIndex::build(shard.first_row, bm25_texts(&shard)).map_err(TaskError::input)?;
        let mut searcher = index.searcher(&statistics, Bm25 { k1: *k1, b: *b }).map_err(TaskError::input)?;
        for (query, text) in texts.iter().enumerate() {
            searcher.search_into(text, query, top).map_err(TaskError::input)?;
        }
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

fn finish(
    bench: &Workbench<'_>,
    ranked: impl Iterator<Item = (u64, Vec<Hit>)>,
) -> Result<Produced, TaskError> {
    let mut run = Run::default();
    let mut queries = 0u64;
    for (query, hits) in ranked {
        let documents = hits.into_iter().map(|hit| RankedDocument { id: hit.row.to_string(), score: hit.score });
        run.insert(&query.to_string(), documents.collect()).map_err(TaskError::input)?;
        queries += 1;
    }
    let path = bench.scratch(RUN);
    let file = std::fs::File::create(&path).map_err(Workbench::scratch_error(&path))?;
    run.write_trec(RUN, "retort", std::io::BufWriter::new(file)).map_err(TaskError::input)?;
    let meta = json!({ "queries": queries });
    Ok(Produced { parts: vec![(RUN.to_owned(), Content::File(path))], meta })
}

/// The ranked lists of a run whose ids are row numbers, best first.
pub fn load_run(bench: &Workbench<'_>, artifact: &ArtifactId) -> Result<BTreeMap<u64, Vec<Hit>>, TaskError> {
    let path = bench.part(artifact, RUN)?;
    let run = Run::open_trec(&path).map_err(TaskError::input)?;
    let number = |id: &str| id.parse::<u64>().map_err(|_| TaskError::Input(format!("{artifact}: {id:?} is no row")));
    let mut lists = BTreeMap::new();
    for (query, documents) in run.iter() {
        let hits = documents
            .iter()
            .map(|document| Ok(Hit { row: number(&document.id)?, score: document.score }))
            .collect::<Result<Vec<_>, TaskError>>()?;
        lists.insert(number(query)?, hits);
    }
    Ok(lists)
}

/// Lists over disjoint shards to one list.
pub fn merge(bench: &Workbench<'_>, runs: &[ArtifactId], depth: u32) -> Result<Produced, TaskError> {
    let mut rows: BTreeMap<u64, usize> = BTreeMap::new();
    let mut top: Option<TopK> = None;
    for run in runs {
        let lists = load_run(bench, run)?;
        let top = top.get_or_insert_with(|| {
            rows = lists.keys().copied().zip(0..).collect();
            TopK::new(rows.len(), depth as usize)
        });
        for (query, hits) in lists {
            let at = *rows.get(&query).ok_or_else(|| {
                TaskError::Input(format!("{run}: ranks question {query}, which the other runs lack"))
            })?;
            for hit in hits {
                top.push(at, hit).map_err(TaskError::input)?;
            }
        }
    }
    let ranked = top.map(TopK::into_ranked).unwrap_or_default();
    finish(bench, rows.into_keys().zip(ranked))
}
