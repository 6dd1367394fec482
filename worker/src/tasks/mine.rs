//! Ranked lists to hard negatives.

use super::bench::{Content, Produced, TaskError, Workbench};
use super::search::load_ranking;
use super::shard::GIVEN;
use crate::metrics::answers::{Answer, AnswerText};
use crate::mining::{Audit, Candidate, Hooks, MiningSpec, Negative, Query, Sampling, SuspiciousCase};
use crate::report::SuspiciousNegative;
use crate::search::topk::Hit;
use crate::tables::{NegativeRow, read_negatives, write_negatives};
use crate::vectors::VectorRows;
use retort_common::ids::Digest;
use retort_common::spec::{AnswerRule, MiningSampling};
use retort_common::task::{Table, Task};
use serde_json::json;
use std::collections::{BTreeMap, HashMap, HashSet};

/// The part that holds the negatives.
pub const NEGATIVES: &str = "negatives.parquet";
/// The part that holds the audit.
pub const AUDIT: &str = "audit.json";
/// The part that holds the audit's most suspicious cases with their texts.
pub const CASES: &str = "cases.json";
/// Characters of a text that are kept in a case.
const CASE_CHARACTERS: usize = 2000;
/// Cases the audit lists.
pub(super) const SUSPICIOUS_CASES: usize = 50;

/// Hard negatives for every training question.
pub fn mine(bench: &Workbench<'_>, task: &Task) -> Result<Produced, TaskError> {
    let Task::Mine { runs, given, queries, passages, sets, teacher, mining, seed } = task else {
        unreachable!("called with its own task")
    };
    let mut lists = runs.iter().map(|run| load_ranking(bench, run)).collect::<Result<Vec<_>, _>>()?;
    if *given {
        lists.insert(0, given_lists(bench, queries)?);
    }
    let positives = known_positives(bench, queries, sets)?;
    let spec = MiningSpec {
        rank_from: mining.from_rank as usize - 1,
        rank_to: mining.depth as usize,
        per_query: mining.per_query as usize,
        sampling: match mining.sampling {
            MiningSampling::Best => Sampling::Top,
            MiningSampling::Random => Sampling::Random,
        },
        seed: *seed,
        margin: (mining.margin > 0.0).then_some(mining.margin),
        ratio: (mining.ratio > 0.0).then_some(mining.ratio),
        ceiling: mining.ceiling,
        drop_duplicate_texts: true,
        drop_answers: mining.drop_answers,
        below: None,
        suspicious_cases: SUSPICIOUS_CASES,
    };
    spec.check(lists.len()).map_err(TaskError::input)?;
    let texts = CorpusFacts::collect(bench, queries, passages, &lists, &positives, mining.drop_answers)?;
    let teacher_queries = bench.vector_rows(&teacher.queries)?;
    let teacher_passages = bench.vector_rows(&teacher.passages)?;
    let (mut audit, mut rows) = (Audit::new(SUSPICIOUS_CASES), Vec::new());
    let digest = |row: u64| texts.digests[&row];
    let has_answer = |query: u64, row: u64| texts.answers.contains(&(query, row));
    let hooks = Hooks { digest: Some(&digest), has_answer: Some(&has_answer), relevance: None };
    for (done, (query, known)) in positives.iter().enumerate() {
        let scored: Vec<Vec<Candidate>> = lists
            .iter()
            .map(|list| score(&teacher_queries, &teacher_passages, *query, list.get(query)))
            .collect::<Result<_, _>>()?;
        let lists: Vec<&[Candidate]> = scored.iter().map(Vec::as_slice).collect();
        let positive = score_rows(&teacher_queries, &teacher_passages, *query, &known[..1])?[0];
        let query = Query { row: *query, positive, known_positives: known, lists: &lists };
        let negatives = crate::mining::mine(&spec, &query, &hooks, &mut audit).map_err(TaskError::input)?;
        rows.extend(negatives.iter().map(|negative| as_row(query.row, negative)));
        if done % 1024 == 0 {
            bench.go_on()?;
            bench.progress.progress(done as u64, positives.len() as u64, "");
        }
    }
    finish(bench, &rows, &audit, (queries, passages), (&teacher_queries, &teacher_passages))
}

/// A chosen negative as it is stored.
pub(super) fn as_row(query: u64, negative: &Negative) -> NegativeRow {
    NegativeRow { query, passage: negative.row, score: negative.score.unwrap_or(f64::NAN) }
}

/// The artifact of some negatives and their audit; the vectors are the teacher's.
pub(super) fn finish(
    bench: &Workbench<'_>,
    rows: &[NegativeRow],
    audit: &Audit,
    (queries, passages): (&Table, &Table),
    vectors: (&VectorRows, &VectorRows),
) -> Result<Produced, TaskError> {
    let path = bench.scratch(NEGATIVES);
    write_negatives(&path, rows)?;
    let report = serde_json::to_vec_pretty(audit).map_err(TaskError::input)?;
    let cases = cases(bench, &audit.suspicious, queries, passages, vectors)?;
    let cases = serde_json::to_vec_pretty(&cases).map_err(TaskError::input)?;
    let parts = vec![
        (NEGATIVES.to_owned(), Content::File(path)),
        (AUDIT.to_owned(), Content::Bytes(report.into())),
        (CASES.to_owned(), Content::Bytes(cases.into())),
    ];
    let meta = json!({
        "queries": audit.queries, "negatives": audit.chosen,
        "short_queries": audit.short_queries, "missing": audit.missing,
    });
    Ok(Produced { parts, meta })
}

/// Negatives that the training files bring along, in their order, as a ranked list.
fn given_lists(bench: &Workbench<'_>, queries: &Table) -> Result<BTreeMap<u64, Vec<Hit>>, TaskError> {
    let mut lists = BTreeMap::<u64, Vec<Hit>>::new();
    for row in read_negatives(&bench.part(&queries.artifact, GIVEN)?)? {
        lists.entry(row.query).or_default().push(Hit { row: row.passage, score: row.score as f32 });
    }
    if lists.is_empty() {
        let message = "mining.from names \"given\", and the training sets bring no negatives; leave it out";
        return Err(TaskError::Input(message.to_owned()));
    }
    Ok(lists)
}

/// Relevant passages of every question of some sets, in rising order of rows.
pub fn known_positives(
    bench: &Workbench<'_>,
    queries: &Table,
    sets: &[String],
) -> Result<BTreeMap<u64, Vec<u64>>, TaskError> {
    let mut positives = BTreeMap::<u64, Vec<u64>>::new();
    for judgement in bench.judgements(queries, sets)?.iter().filter(|judgement| judgement.grade > 0) {
        positives.entry(judgement.query).or_default().push(judgement.passage);
    }
    for rows in positives.values_mut() {
        rows.sort_unstable();
        rows.dedup();
    }
    Ok(positives)
}

fn score(
    queries: &VectorRows,
    passages: &VectorRows,
    query: u64,
    hits: Option<&Vec<Hit>>,
) -> Result<Vec<Candidate>, TaskError> {
    let rows: Vec<_> = hits.into_iter().flatten().map(|hit| hit.row).collect();
    score_rows(queries, passages, query, &rows)
}

/// The teacher's scores of some passages for a question.
pub(super) fn score_rows(
    queries: &VectorRows,
    passages: &VectorRows,
    query: u64,
    rows: &[u64],
) -> Result<Vec<Candidate>, TaskError> {
    let query = queries.gather(&[query])?;
    let passages = passages.gather(rows)?;
    let dot = |i: usize| {
        let pairs = query.row(0).iter().zip(passages.row(i));
        pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
    };
    Ok(rows.iter().enumerate().map(|(i, row)| Candidate { row: *row, score: Some(dot(i)) }).collect())
}

/// The texts of suspicious cases, read shard by shard: a person has to judge them.
fn cases(
    bench: &Workbench<'_>,
    found: &[SuspiciousCase],
    queries: &Table,
    passages: &Table,
    (query_vectors, passage_vectors): (&VectorRows, &VectorRows),
) -> Result<Vec<SuspiciousNegative>, TaskError> {
    let cut = |text: String| text.chars().take(CASE_CHARACTERS).collect::<String>();
    let wanted: HashSet<u64> = found.iter().flat_map(|case| [case.positive, case.negative]).collect();
    let mut texts = HashMap::new();
    for shard in (0..passages.shards).take_while(|_| !wanted.is_empty()) {
        bench.go_on()?;
        let shard = bench.passages(passages, shard)?;
        for (at, row) in (0..shard.ids.len()).zip(shard.first_row..).filter(|(_, row)| wanted.contains(row)) {
            texts.insert(row, (shard.ids[at].clone(), cut(shard.model_text(at))));
        }
    }
    let asked: HashSet<u64> = found.iter().map(|case| case.query).collect();
    let mut questions = HashMap::new();
    for shard in (0..queries.shards).take_while(|_| !asked.is_empty()) {
        let shard = bench.queries(queries, shard)?;
        for (at, row) in (0..shard.ids.len()).zip(shard.first_row..).filter(|(_, row)| asked.contains(row)) {
            questions.insert(row, (shard.ids[at].clone(), cut(shard.texts[at].clone())));
        }
    }
    let missing = |what: &str, row: u64| TaskError::Input(format!("{what} row {row} is in no shard"));
    let case = |case: &SuspiciousCase| {
        let passage = |row: u64| texts.get(&row).cloned().ok_or_else(|| missing("passage", row));
        let question = questions.get(&case.query).cloned().ok_or_else(|| missing("question", case.query));
        let (query_id, query) = question?;
        let (_, positive) = passage(case.positive)?;
        let (negative_id, negative) = passage(case.negative)?;
        let scores = score_rows(query_vectors, passage_vectors, case.query, &[case.positive, case.negative])?;
        let score = |at: usize| scores[at].score.unwrap_or(f64::NAN);
        let (positive_score, negative_score) = (score(0), score(1));
        Ok(SuspiciousNegative {
            query_id,
            query,
            positive,
            positive_score,
            negative_id,
            negative,
            negative_score,
        })
    };
    found.iter().map(case).collect()
}

/// What mining must know of texts, gathered in one pass over the corpus.
struct CorpusFacts {
    /// A digest of the text of every candidate and every positive; of no other passage, so that memory grows with
    /// the questions and not with the corpus.
    digests: HashMap<u64, u128>,
    /// Pairs (question, passage) of which the passage holds an answer.
    answers: HashSet<(u64, u64)>,
}

impl CorpusFacts {
    fn collect(
        bench: &Workbench<'_>,
        queries: &Table,
        passages: &Table,
        lists: &[BTreeMap<u64, Vec<Hit>>],
        positives: &BTreeMap<u64, Vec<u64>>,
        with_answers: bool,
    ) -> Result<Self, TaskError> {
        let hits = lists.iter().flat_map(BTreeMap::values).flatten().map(|hit| hit.row);
        let wanted: HashSet<u64> = hits.chain(positives.values().flatten().copied()).collect();
        let mut asked = HashMap::<u64, Vec<u64>>::new();
        let mut accepted = HashMap::<u64, Vec<Answer>>::new();
        if with_answers {
            accepted = answers(bench, queries)?;
            for (query, hits) in lists.iter().flatten().filter(|(query, _)| accepted.contains_key(query)) {
                for hit in hits {
                    asked.entry(hit.row).or_default().push(*query);
                }
            }
        }
        let mut facts = Self { digests: HashMap::with_capacity(wanted.len()), answers: HashSet::new() };
        for shard in 0..passages.shards {
            bench.go_on()?;
            let shard = bench.passages(passages, shard)?;
            let rows = (shard.first_row..).zip(&shard.texts);
            for (row, text) in rows.filter(|(row, _)| wanted.contains(row)) {
                facts.digests.insert(row, text_digest(text));
                let Some(queries) = asked.get(&row) else { continue };
                let text = AnswerText::new(text);
                let holds = |query: &&u64| text.has_any(&accepted[query]);
                facts.answers.extend(queries.iter().filter(holds).map(|query| (*query, row)));
            }
        }
        Ok(facts)
    }
}

/// Texts that differ in white space or case only count as one.
fn text_digest(text: &str) -> u128 {
    let plain = text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
    let hex = Digest::of(plain.as_bytes()).to_string();
    u128::from_str_radix(&hex[..32], 16).expect("a digest is hexadecimal")
}

/// The accepted answers of every question that has some.
pub fn answers(bench: &Workbench<'_>, queries: &Table) -> Result<HashMap<u64, Vec<Answer>>, TaskError> {
    let mut accepted = HashMap::new();
    let rule = bench.manifest(&queries.artifact)?.meta["answers"].clone();
    let make = if rule == json!(AnswerRule::Regex) { Answer::pattern } else { Answer::text };
    for shard in 0..queries.shards {
        let shard = bench.queries(queries, shard)?;
        for (row, answers) in (shard.first_row..).zip(shard.answers) {
            if !answers.is_empty() {
                accepted.insert(row, answers.iter().map(|answer| make(answer)).collect());
            }
        }
    }
    Ok(accepted)
}
