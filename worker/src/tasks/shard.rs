//! Input files to numbered tables.

use super::bench::{Content, JUDGEMENTS, Produced, TaskError, Workbench, shard_name};
use super::input::for_each_line;
use crate::tables::{Judgement, PassageShard, QueryShard, write_judgements};
use retort_common::spec::inputs::InputFile;
use retort_common::task::{Table, Task};
use serde::Deserialize;
use serde_json::json;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

/// Bad records whose reasons are kept for the report.
const REASONS_KEPT: usize = 20;
/// Longest id: it goes into runs, where it must not hold white space either.
const ID_BYTES: usize = 512;

#[derive(Deserialize)]
struct BeirPassage {
    _id: String,
    #[serde(default)]
    title: Option<String>,
    text: String,
}

#[derive(Deserialize)]
struct BeirQuery {
    _id: String,
    text: String,
    #[serde(default)]
    metadata: Option<BeirMetadata>,
}

#[derive(Default, Deserialize)]
struct BeirMetadata {
    #[serde(default)]
    answers: Option<Vec<String>>,
}

/// Malformed records: refused, or counted up to the number that the spec allows.
struct BadRecords<'a> {
    file: &'a InputFile,
    allowed: u64,
    count: u64,
    reasons: Vec<String>,
}

impl<'a> BadRecords<'a> {
    fn new(file: &'a InputFile, allowed: u64) -> Self {
        Self { file, allowed, count: 0, reasons: Vec::new() }
    }

    fn add(&mut self, line: u64, reason: &str) -> Result<(), TaskError> {
        self.count += 1;
        let text = format!("{}:{line}: {reason}", self.file.url);
        if self.count > self.allowed {
            let hint = "correct the line, or allow some with corpus.max_bad_records";
            return Err(TaskError::Input(format!("{text}; {hint}")));
        }
        if self.reasons.len() < REASONS_KEPT {
            self.reasons.push(text);
        }
        Ok(())
    }
}

fn check_id(id: &str) -> Result<(), String> {
    if id.is_empty() || id.len() > ID_BYTES || id.chars().any(char::is_whitespace) {
        return Err(format!("_id {id:?} must have 1 to {ID_BYTES} bytes and no white space"));
    }
    Ok(())
}

/// What is wrong with a record. Each is parsed alone, so that the parser's own line number would only mislead.
fn json_reason(error: &serde_json::Error) -> String {
    error.to_string().replace(" at line 1 column ", " at column ")
}

fn hash_of(id: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    hasher.finish()
}

/// Passages to shards.
pub fn corpus(bench: &Workbench<'_>, task: &Task) -> Result<Produced, TaskError> {
    let Task::ShardCorpus { corpus, rows_per_shard, max_bad_records } = task else {
        unreachable!("called with its own task")
    };
    let mut bad = BadRecords::new(corpus, *max_bad_records);
    let (mut shard, mut parts, mut rows) = (PassageShard::default(), Vec::new(), 0u64);
    // Eight bytes an id keep the memory of a large corpus bounded.
    let mut seen = HashSet::new();
    for_each_line(bench, corpus, |line, bytes| {
        let record = match serde_json::from_slice::<BeirPassage>(bytes) {
            Ok(record) => record,
            Err(error) => return bad.add(line, &json_reason(&error)),
        };
        if let Err(reason) = check_id(&record._id) {
            return bad.add(line, &reason);
        }
        if !seen.insert(hash_of(&record._id)) {
            return bad.add(line, &format!("_id {:?} stands in the file twice", record._id));
        }
        shard.ids.push(record._id);
        shard.titles.push(record.title.unwrap_or_default());
        shard.texts.push(record.text);
        rows += 1;
        if shard.ids.len() == *rows_per_shard as usize {
            bench.go_on()?;
            bench.progress.progress(rows, 0, &format!("{rows} passages"));
            finish_passages(bench, &mut shard, &mut parts)?;
        }
        Ok(())
    })?;
    if !shard.ids.is_empty() {
        finish_passages(bench, &mut shard, &mut parts)?;
    }
    if rows == 0 {
        return Err(TaskError::Input(format!("{}: holds no passages; put the corpus there", corpus.url)));
    }
    let meta = json!({
        "rows": rows, "shards": parts.len(), "bad_records": bad.count, "bad_record_reasons": bad.reasons,
    });
    Ok(Produced { parts, meta })
}

fn finish_passages(
    bench: &Workbench<'_>,
    shard: &mut PassageShard,
    parts: &mut Vec<(String, Content)>,
) -> Result<(), TaskError> {
    let name = shard_name(parts.len() as u32);
    let path = bench.scratch(&name);
    shard.write(&path)?;
    parts.push((name, Content::File(path)));
    *shard = PassageShard { first_row: shard.first_row + shard.ids.len() as u64, ..PassageShard::default() };
    Ok(())
}

/// Judged questions to shards, and judgements to one table.
pub fn queries(bench: &Workbench<'_>, task: &Task) -> Result<Produced, TaskError> {
    let Task::ShardQueries { queries, qrels, passages, rows_per_shard, max_bad_records } = task else {
        unreachable!("called with its own task")
    };
    let mut judged = BTreeMap::new();
    for (set, file) in qrels {
        judged.insert(set.clone(), read_qrels(bench, set, file)?);
    }
    let wanted: HashSet<&str> = judged.values().flatten().map(|judgement| judgement.query.as_str()).collect();
    let mut bad = BadRecords::new(queries, *max_bad_records);
    let mut rows = HashMap::new();
    let (mut shard, mut parts) = (QueryShard::default(), Vec::new());
    let mut with_answers = 0u64;
    for_each_line(bench, queries, |line, bytes| {
        let record = match serde_json::from_slice::<BeirQuery>(bytes) {
            Ok(record) => record,
            Err(error) => return bad.add(line, &json_reason(&error)),
        };
        if let Err(reason) = check_id(&record._id) {
            return bad.add(line, &reason);
        }
        if !wanted.contains(record._id.as_str()) {
            return Ok(());
        }
        if rows.insert(record._id.clone(), rows.len() as u64).is_some() {
            let reason =
                format!("{}:{line}: _id {:?} stands in the file twice; remove one", queries.url, record._id);
            return Err(TaskError::Input(reason));
        }
        let answers = record.metadata.and_then(|metadata| metadata.answers).unwrap_or_default();
        with_answers += u64::from(!answers.is_empty());
        shard.ids.push(record._id);
        shard.texts.push(record.text);
        shard.answers.push(answers);
        if shard.ids.len() == *rows_per_shard as usize {
            bench.go_on()?;
            finish_queries(bench, &mut shard, &mut parts)?;
        }
        Ok(())
    })?;
    if !shard.ids.is_empty() {
        finish_queries(bench, &mut shard, &mut parts)?;
    }
    let shards = parts.len();
    let passage_rows = find_passages(bench, passages, &judged)?;
    let (judgements, sets) = resolve(queries, qrels, &judged, &rows, &passage_rows)?;
    let path = bench.scratch(JUDGEMENTS);
    write_judgements(&path, &judgements)?;
    parts.push((JUDGEMENTS.to_owned(), Content::File(path)));
    let meta = json!({
        "rows": rows.len(), "shards": shards, "sets": sets, "with_answers": with_answers,
        "bad_records": bad.count, "bad_record_reasons": bad.reasons,
    });
    Ok(Produced { parts, meta })
}

fn finish_queries(
    bench: &Workbench<'_>,
    shard: &mut QueryShard,
    parts: &mut Vec<(String, Content)>,
) -> Result<(), TaskError> {
    let name = shard_name(parts.len() as u32);
    let path = bench.scratch(&format!("queries-{name}"));
    shard.write(&path)?;
    parts.push((name, Content::File(path)));
    *shard = QueryShard { first_row: shard.first_row + shard.ids.len() as u64, ..QueryShard::default() };
    Ok(())
}

/// A line of a qrels file.
struct RawJudgement {
    line: u64,
    query: String,
    passage: String,
    grade: i64,
}

fn read_qrels(bench: &Workbench<'_>, set: &str, file: &InputFile) -> Result<Vec<RawJudgement>, TaskError> {
    let mut judgements = Vec::new();
    let mut seen = HashSet::new();
    for_each_line(bench, file, |line, bytes| {
        let fail = |reason: String| TaskError::Input(format!("{}:{line}: {reason}", file.url));
        let text = std::str::from_utf8(bytes).map_err(|error| fail(error.to_string()))?;
        let columns: Vec<_> = text.split('\t').collect();
        let [query, passage, grade] = columns[..] else {
            let found = columns.len();
            return Err(fail(format!(
                "{found} columns; query-id, corpus-id and score are expected, with tabs"
            )));
        };
        if line == 1 && grade.parse::<i64>().is_err() {
            return Ok(());
        }
        let grade = grade.parse().map_err(|_| fail(format!("score {grade:?} is no whole number")))?;
        if !seen.insert((query.to_owned(), passage.to_owned())) {
            return Err(fail(format!("question {query:?} judges passage {passage:?} twice")));
        }
        judgements.push(RawJudgement { line, query: query.to_owned(), passage: passage.to_owned(), grade });
        Ok(())
    })?;
    if judgements.is_empty() {
        return Err(TaskError::Input(format!("{}: set {set:?} holds no judgements", file.url)));
    }
    Ok(judgements)
}

/// The rows of all judged passages: one pass over the corpus, memory for the judged ids only.
fn find_passages(
    bench: &Workbench<'_>,
    passages: &Table,
    judged: &BTreeMap<String, Vec<RawJudgement>>,
) -> Result<HashMap<String, u64>, TaskError> {
    let wanted: HashSet<&str> =
        judged.values().flatten().map(|judgement| judgement.passage.as_str()).collect();
    let mut rows = HashMap::new();
    for shard in 0..passages.shards {
        bench.go_on()?;
        let shard = bench.passages(passages, shard)?;
        for (row, id) in (shard.first_row..).zip(shard.ids) {
            if wanted.contains(id.as_str()) {
                rows.insert(id, row);
            }
        }
    }
    Ok(rows)
}

/// Judgements by row, and the number of questions of each set.
fn resolve(
    queries: &InputFile,
    qrels: &BTreeMap<String, InputFile>,
    judged: &BTreeMap<String, Vec<RawJudgement>>,
    query_rows: &HashMap<String, u64>,
    passage_rows: &HashMap<String, u64>,
) -> Result<(Vec<Judgement>, BTreeMap<String, usize>), TaskError> {
    let (mut judgements, mut sets) = (Vec::new(), BTreeMap::new());
    for (set, raw) in judged {
        let url = &qrels[set].url;
        let mut best = BTreeMap::<u64, i64>::new();
        for RawJudgement { line, query, passage, grade } in raw {
            let unknown = |what: &str, id: &str, place: &str| {
                TaskError::Input(format!(
                    "{url}:{line}: {what} {id:?} does not stand in {place}; remove the line or add it"
                ))
            };
            let query_row = *query_rows.get(query).ok_or_else(|| unknown("question", query, &queries.url))?;
            let passage_row =
                *passage_rows.get(passage).ok_or_else(|| unknown("passage", passage, "the corpus"))?;
            let most = best.entry(query_row).or_insert(*grade);
            *most = (*most).max(*grade);
            judgements.push(Judgement {
                set: set.clone(),
                query: query_row,
                passage: passage_row,
                grade: *grade,
            });
        }
        if let Some((row, _)) = best.iter().find(|(_, grade)| **grade <= 0) {
            let id = query_rows.iter().find(|(_, other)| *other == row).map_or("?", |(id, _)| id);
            return Err(TaskError::Input(format!(
                "{url}: question {id:?} has no passage with a score above 0; remove it or judge one"
            )));
        }
        sets.insert(set.clone(), best.len());
    }
    judgements.sort_by(|a, b| (&a.set, a.query, a.passage).cmp(&(&b.set, b.query, b.passage)));
    Ok((judgements, sets))
}
