//! Ranked lists of a row: TREC and MS MARCO runs, and DPR's retrieval results with texts and answers.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write;

use serde_json::json;

use super::catalog::{Catalog, CatalogRow};
use super::{Output, write_error};
use crate::metrics::answers::{Answer, AnswerText};
use crate::search::topk::Hit;
use crate::tables::Judgement;
use crate::tasks::search::load_ranking;
use crate::tasks::{TaskError, Workbench};

/// TREC runs and judgements as the job made them, and beside each run the same in MS MARCO's form (question, passage,
/// rank).
pub(super) fn runs(bench: &Workbench<'_>, row: &CatalogRow, output: &mut Output) -> Result<(), TaskError> {
    let manifest = bench.manifest(&row.run)?;
    for part in &manifest.parts {
        let path = bench.wait(bench.artifacts.part(&manifest, &part.name))?;
        let text = std::fs::read_to_string(&path).map_err(Workbench::scratch_error(&path))?;
        output.file(&part.name, |out| out.write_all(text.as_bytes()).map_err(write_error))?;
        let Some(name) = part.name.strip_suffix(".trec") else { continue };
        output.file(&format!("{name}.msmarco.tsv"), |out| {
            for (number, line) in text.lines().enumerate() {
                let fields: Vec<_> = line.split_whitespace().collect();
                let [query, _, passage, rank, ..] = fields.as_slice() else {
                    let message = format!("{} of {}: line {} is no run", part.name, row.run, number + 1);
                    return Err(TaskError::Input(message));
                };
                writeln!(out, "{query}\t{passage}\t{rank}").map_err(write_error)?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// A question as DPR's results show it.
struct Question {
    id: String,
    text: String,
    answers: Vec<String>,
}

/// DPR's JSON for each judged set: questions with answers and ranked passages with texts, scores and whether they hold
/// an answer.
pub(super) fn dpr(
    bench: &Workbench<'_>,
    catalog: &Catalog,
    row: &CatalogRow,
    output: &mut Output,
) -> Result<(), TaskError> {
    let ranking = row
        .ranking
        .as_ref()
        .ok_or_else(|| TaskError::Input(format!("{:?} has no ranked lists", row.name)))?;
    let lists = load_ranking(bench, ranking)?;
    let judgements = bench.judgements(&catalog.queries, &catalog.judged)?;
    let questions = questions(bench, catalog, &judgements.iter().map(|judgement| judgement.query).collect())?;
    let wanted: BTreeSet<u64> = lists.values().flatten().map(|hit| hit.row).collect();
    let passages = passages(bench, catalog, &wanted)?;
    for set in &catalog.judged {
        let own = |judgement: &&Judgement| judgement.set == *set;
        let asked: BTreeSet<u64> = judgements.iter().filter(own).map(|judgement| judgement.query).collect();
        output.file(&format!("{set}.json"), |out| write_set(out, &asked, &questions, &lists, &passages))?;
    }
    Ok(())
}

fn write_set(
    out: &mut impl Write,
    asked: &BTreeSet<u64>,
    questions: &HashMap<u64, Question>,
    lists: &BTreeMap<u64, Vec<Hit>>,
    passages: &HashMap<u64, Passage>,
) -> Result<(), TaskError> {
    write!(out, "[").map_err(write_error)?;
    for (at, query) in asked.iter().enumerate() {
        let question = &questions[query];
        let answers: Vec<Answer> = question.answers.iter().map(|answer| Answer::text(answer)).collect();
        let hits = lists.get(query).map(Vec::as_slice).unwrap_or_default();
        let contexts: Vec<_> = hits
            .iter()
            .map(|hit| {
                let passage = &passages[&hit.row];
                // DPR writes scores as text.
                json!({
                    "id": passage.id, "title": passage.title, "text": passage.text, "score": hit.score.to_string(),
                    "has_answer": !answers.is_empty() && AnswerText::new(&passage.text).has_any(&answers),
                })
            })
            .collect();
        let entry = json!({
            "id": question.id, "question": question.text, "answers": question.answers, "ctxs": contexts,
        });
        write!(out, "{}\n{entry}", if at == 0 { "" } else { "," }).map_err(write_error)?;
    }
    writeln!(out, "\n]").map_err(write_error)
}

/// A passage with what others need of it.
pub(super) struct Passage {
    pub id: String,
    pub title: String,
    pub text: String,
}

impl Passage {
    /// "title text", as models read it.
    pub fn whole(&self) -> String {
        if self.title.is_empty() { self.text.clone() } else { format!("{} {}", self.title, self.text) }
    }
}

/// Some passages by row, read in one pass over the corpus.
pub(super) fn passages(
    bench: &Workbench<'_>,
    catalog: &Catalog,
    wanted: &BTreeSet<u64>,
) -> Result<HashMap<u64, Passage>, TaskError> {
    let mut found = HashMap::with_capacity(wanted.len());
    for shard in 0..catalog.passages.shards {
        bench.go_on()?;
        let shard = bench.passages(&catalog.passages, shard)?;
        let texts = shard.ids.into_iter().zip(shard.titles).zip(shard.texts);
        for (row, ((id, title), text)) in (shard.first_row..).zip(texts) {
            if wanted.contains(&row) {
                found.insert(row, Passage { id, title, text });
            }
        }
    }
    complete(found, wanted.len())
}

fn questions(
    bench: &Workbench<'_>,
    catalog: &Catalog,
    wanted: &BTreeSet<u64>,
) -> Result<HashMap<u64, Question>, TaskError> {
    let mut found = HashMap::with_capacity(wanted.len());
    for shard in 0..catalog.queries.shards {
        let shard = bench.queries(&catalog.queries, shard)?;
        let texts = shard.ids.into_iter().zip(shard.texts).zip(shard.answers);
        for (row, ((id, text), answers)) in (shard.first_row..).zip(texts) {
            if wanted.contains(&row) {
                found.insert(row, Question { id, text, answers });
            }
        }
    }
    complete(found, wanted.len())
}

/// Ids and texts of some questions by row.
pub(super) fn query_texts(
    bench: &Workbench<'_>,
    catalog: &Catalog,
    wanted: &BTreeSet<u64>,
) -> Result<HashMap<u64, (String, String)>, TaskError> {
    let found = questions(bench, catalog, wanted)?;
    Ok(found.into_iter().map(|(row, question)| (row, (question.id, question.text))).collect())
}

fn complete<T>(found: HashMap<u64, T>, wanted: usize) -> Result<HashMap<u64, T>, TaskError> {
    if found.len() == wanted {
        return Ok(found);
    }
    Err(TaskError::Input("a list names a row that its table lacks".to_owned()))
}
