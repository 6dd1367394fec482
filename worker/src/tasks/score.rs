//! Pairs of question and passage to a cross-encoder's scores.

use super::bench::{Content, Produced, TaskError, Workbench};
use super::input::model_folder;
use super::mine::{NEGATIVES, known_positives};
use crate::model::{CrossEncoder, CrossError};
use crate::tables::{NegativeRow, read_negatives, write_negatives};
use retort_common::ids::Digest;
use retort_common::spec::inputs::ModelFiles;
use retort_common::task::{ScoredPairs, Table, Task};
use serde_json::json;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// The part that holds scores of pairs, here and beside questions whose sets bring some.
pub const SCORES: &str = "scores.parquet";

impl From<CrossError> for TaskError {
    fn from(error: CrossError) -> Self {
        Self::input(error)
    }
}

/// Scores of the pairs of one shard's passages, or of a share of these: a task reads a shard of the corpus and not all of
/// it, and which pairs are computed together is the task's own.
pub fn score(bench: &Workbench<'_>, task: &Task) -> Result<Produced, TaskError> {
    let Task::Score {
        model,
        candidates,
        queries,
        passages,
        shard,
        share,
        shares,
        max_tokens,
        batch_tokens,
        ..
    } = task
    else {
        unreachable!("called with its own task")
    };
    let texts = bench.passages(passages, *shard)?;
    let inside = texts.first_row..texts.first_row + texts.ids.len() as u64;
    let mut listed = pairs(bench, candidates, queries)?;
    listed.retain(|pair| inside.contains(&pair.passage));
    let cut = |share: u32| (listed.len() as u64 * u64::from(share) / u64::from((*shares).max(1))) as usize;
    let mut listed = listed[cut(*share)..cut(share + 1)].to_vec();
    let questions = questions(bench, queries, &listed)?;
    let at = |passage: u64| (passage - inside.start) as usize;
    let passages: Vec<String> = listed.iter().map(|pair| texts.model_text(at(pair.passage))).collect();
    let question = |row: u64| {
        let missing = || TaskError::Input(format!("question row {row} is in no shard"));
        questions.get(&row).ok_or_else(missing)
    };
    let pairs = listed.iter().zip(&passages);
    let pairs = pairs.map(|(pair, passage)| Ok((question(pair.query)?.1.as_str(), passage.as_str())));
    let pairs = pairs.collect::<Result<Vec<_>, TaskError>>()?;
    // Few candidates may leave none to some of many shards.
    let scores = match pairs.is_empty() {
        true => Vec::new(),
        false => {
            let cross = load(bench, model, *max_tokens)?;
            let (longest, batch) = (*max_tokens as usize, *batch_tokens as usize);
            cross.score(&pairs, longest, batch, bench.threads, |done| {
                bench.progress.progress(done as u64, pairs.len() as u64, "");
                bench.go_on()
            })?
        }
    };
    for (pair, score) in listed.iter_mut().zip(scores) {
        if !score.is_finite() {
            let (question, passage) = (&question(pair.query)?.0, &texts.ids[at(pair.passage)]);
            return Err(TaskError::Input(format!(
                "{} gives {score} for question {question:?} and passage {passage:?}: its weights are damaged or overflow; \
                 name another model in cross_encoder",
                model.place()
            )));
        }
        pair.score = f64::from(score);
    }
    let path = bench.scratch(SCORES);
    write_negatives(&path, &listed)?;
    let parts = vec![(SCORES.to_owned(), Content::File(path))];
    Ok(Produced { parts, meta: json!({ "pairs": listed.len() }) })
}

/// The pairs that are asked for, in the order of questions; none has a score yet.
fn pairs(
    bench: &Workbench<'_>,
    wanted: &ScoredPairs,
    queries: &Table,
) -> Result<Vec<NegativeRow>, TaskError> {
    let sets = match wanted {
        ScoredPairs::Mined(candidates) => return Ok(read_negatives(&bench.part(candidates, NEGATIVES)?)?),
        ScoredPairs::Positives(sets) => sets,
    };
    let pair = |query, passage| NegativeRow { query, passage, score: f64::NAN };
    let of_question = |(query, known): (u64, Vec<u64>)| known.into_iter().map(move |row| pair(query, row));
    Ok(known_positives(bench, queries, sets)?.into_iter().flat_map(of_question).collect())
}

fn load(bench: &Workbench<'_>, model: &ModelFiles, max_tokens: u32) -> Result<Arc<CrossEncoder>, TaskError> {
    let key = Digest::of_json(&json!({ "cross_encoder": model }));
    let open = || Ok(CrossEncoder::load(&model_folder(bench, model)?, &bench.device)?);
    let cross = bench.encoders.get(key, open)?;
    let most = cross.max_tokens();
    if most < max_tokens as usize {
        return Err(TaskError::Input(format!(
            "cross_encoder.max_tokens is {max_tokens}, {} reads {most} tokens; lower it",
            model.place()
        )));
    }
    Ok(cross)
}

/// Ids and texts of the questions of some pairs.
fn questions(
    bench: &Workbench<'_>,
    queries: &Table,
    pairs: &[NegativeRow],
) -> Result<HashMap<u64, (String, String)>, TaskError> {
    let asked: HashSet<u64> = pairs.iter().map(|pair| pair.query).collect();
    let mut questions = HashMap::with_capacity(asked.len());
    for shard in (0..queries.shards).take_while(|_| !asked.is_empty()) {
        let shard = bench.queries(queries, shard)?;
        let rows = (shard.first_row..).zip(shard.ids.into_iter().zip(shard.texts));
        questions.extend(rows.filter(|(row, _)| asked.contains(row)));
    }
    Ok(questions)
}
