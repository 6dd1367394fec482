//! Candidates to hard negatives, by a cross-encoder's word.

use super::bench::{Produced, TaskError, Workbench};
use super::mine::{AUDIT, NEGATIVES, SUSPICIOUS_CASES, as_row, finish, known_positives, score_rows};
use super::score::SCORES;
use crate::mining::{Audit, Candidate, Hooks, MiningSpec, Query, Sampling, mine};
use crate::tables::read_negatives;
use retort_common::task::Task;
use std::collections::{BTreeMap, HashMap};

/// Hard negatives for every training question: the first of its candidates that the cross-encoder is confident are no
/// answers. The audit is that of the filters before, with what was dropped here and what is short now.
pub fn denoise(bench: &Workbench<'_>, task: &Task) -> Result<Produced, TaskError> {
    let Task::Denoise { candidates, scores, queries, passages, sets, teacher, per_query, below } = task
    else {
        unreachable!("called with its own task")
    };
    let mut listed = BTreeMap::<u64, Vec<Candidate>>::new();
    for row in read_negatives(&bench.part(candidates, NEGATIVES)?)? {
        let score = Some(row.score).filter(|score| !score.is_nan());
        listed.entry(row.query).or_default().push(Candidate { row: row.passage, score });
    }
    let mut probabilities = HashMap::new();
    for artifact in scores {
        let scored = read_negatives(&bench.part(artifact, SCORES)?)?;
        probabilities.extend(scored.iter().map(|pair| ((pair.query, pair.passage), sigmoid(pair.score))));
    }
    let relevance = |query: u64, row: u64| probabilities.get(&(query, row)).copied().unwrap_or(f64::NAN);
    let hooks = Hooks { relevance: Some(&relevance), ..Hooks::default() };
    let spec = denoising(*per_query as usize, *below);
    spec.check(1).map_err(TaskError::input)?;
    let teacher_queries = bench.vector_rows(&teacher.queries)?;
    let teacher_passages = bench.vector_rows(&teacher.passages)?;
    let positives = known_positives(bench, queries, sets)?;
    let (mut audit, mut rows) = (Audit::new(SUSPICIOUS_CASES), Vec::new());
    for (done, (row, known)) in positives.iter().enumerate() {
        let list = listed.get(row).map_or(&[][..], Vec::as_slice);
        let positive = score_rows(&teacher_queries, &teacher_passages, *row, &known[..1])?[0];
        let query = Query { row: *row, positive, known_positives: known, lists: &[list] };
        let negatives = mine(&spec, &query, &hooks, &mut audit).map_err(TaskError::input)?;
        rows.extend(negatives.iter().map(|negative| as_row(*row, negative)));
        if done % 1024 == 0 {
            bench.go_on()?;
            bench.progress.progress(done as u64, positives.len() as u64, "");
        }
    }
    let audit = bench.json::<Audit>(candidates, AUDIT)?.then(audit);
    finish(bench, &rows, &audit, (queries, passages), (&teacher_queries, &teacher_passages))
}

/// What is asked of the candidates, which stand in the order of their choice and have passed all other filters.
fn denoising(per_query: usize, below: f64) -> MiningSpec {
    MiningSpec {
        rank_from: 0,
        rank_to: usize::MAX,
        per_query,
        sampling: Sampling::Top,
        seed: 0,
        margin: None,
        ratio: None,
        ceiling: None,
        drop_duplicate_texts: false,
        drop_answers: false,
        below: Some(below),
        suspicious_cases: SUSPICIOUS_CASES,
    }
}

/// The probability that a logit stands for.
fn sigmoid(logit: f64) -> f64 {
    1.0 / (1.0 + (-logit).exp())
}
