//! The sets' questions to shards, their judgements, given negatives and scores to tables.

use super::super::bench::{Content, JUDGEMENTS, Produced, TaskError, Workbench, shard_name};
use super::super::score::SCORES;
use super::gather::{Gathered, PassageKey, Place, describe};
use super::{BadRecords, for_each_record};
use crate::formats::{Question, Record, Role};
use crate::tables::{Judgement, NO_PASSAGE, NegativeRow, QueryShard, write_judgements, write_negatives};
use retort_common::spec::inputs::DataFile;
use retort_common::task::{Table, Task};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

/// The part that holds negatives that the training files bring along.
pub const GIVEN: &str = "given.parquet";

/// Questions of all sets to shards, and what the sets say of them to tables.
pub fn queries(bench: &Workbench<'_>, task: &Task) -> Result<Produced, TaskError> {
    let Task::ShardQueries { queries, sets, answers, passages, rows_per_shard, max_bad_records } = task
    else {
        unreachable!("called with its own task")
    };
    let mut bad = BadRecords::new(*max_bad_records);
    let mut gathered = Gathered::read(bench, sets, &mut bad)?;
    let mut writer = QueryWriter::new(bench, *rows_per_shard as usize, gathered.asked.len());
    for data in queries {
        for_each_record(bench, data, Role::Questions, &mut bad, |line, record, bad| {
            let Record::Question(question) = record else { return Ok(()) };
            let id = question.id.clone().unwrap_or_default();
            let Some(number) = gathered.number(&id) else { return Ok(()) };
            if writer.rows[number as usize].is_some() {
                return bad.add(data, line, &format!("id {id:?} stands in the questions twice; remove one"));
            }
            // Answers of the set come before those of the question, as sets may accept different ones.
            let own = std::mem::take(&mut gathered.asked[number as usize].answers);
            let answers = if own.is_empty() { question.answers.clone() } else { own };
            writer.add(number, Question { answers, ..question })
        })?;
    }
    for number in 0..gathered.asked.len() {
        let asked = &mut gathered.asked[number];
        if writer.rows[number].is_none() && asked.text.is_some() {
            let (id, text, answers) =
                (Some(asked.id.clone()), asked.text.take(), std::mem::take(&mut asked.answers));
            writer.add(number as u32, Question { id, text, answers })?;
        }
    }
    let with_answers = writer.with_answers;
    let (rows, answered, mut parts) = writer.finish()?;
    let shards = parts.len();
    let resolver = Resolver { bench, gathered: &gathered, queries, rows, answered };
    let tables = resolver.tables(passages, &mut bad)?;
    let mut write =
        |name: &str, write: &dyn Fn(&std::path::Path) -> Result<(), crate::tables::TableError>| {
            let path = bench.scratch(name);
            parts.push((name.to_owned(), Content::File(path.clone())));
            write(&path).map_err(TaskError::from)
        };
    write(JUDGEMENTS, &|path| write_judgements(path, &tables.judgements))?;
    write(GIVEN, &|path| write_negatives(path, &tables.given))?;
    write(SCORES, &|path| write_negatives(path, &tables.scores))?;
    let meta = json!({
        "rows": resolver.rows.iter().flatten().count(), "shards": shards, "sets": tables.sets,
        "with_answers": with_answers, "answers": answers, "negatives": tables.given.len(),
        "negatives_left_out": gathered.left_out, "scores": tables.scores.len(),
        "bad_records": bad.count, "bad_record_reasons": bad.reasons,
    });
    Ok(Produced { parts, meta })
}

/// Cuts questions into shards.
struct QueryWriter<'a> {
    bench: &'a Workbench<'a>,
    rows_per_shard: usize,
    shard: QueryShard,
    parts: Vec<(String, Content)>,
    /// The row of each question by number.
    rows: Vec<Option<u64>>,
    /// Whether it has accepted answers.
    answered: Vec<bool>,
    next_row: u64,
    with_answers: u64,
}

impl<'a> QueryWriter<'a> {
    fn new(bench: &'a Workbench<'a>, rows_per_shard: usize, questions: usize) -> Self {
        let (rows, answered) = (vec![None; questions], vec![false; questions]);
        let (shard, parts) = (QueryShard::default(), Vec::new());
        Self { bench, rows_per_shard, shard, parts, rows, answered, next_row: 0, with_answers: 0 }
    }

    fn add(&mut self, number: u32, question: Question) -> Result<(), TaskError> {
        let has_answers = !question.answers.is_empty();
        self.rows[number as usize] = Some(self.next_row);
        self.answered[number as usize] = has_answers;
        self.next_row += 1;
        self.with_answers += u64::from(has_answers);
        self.shard.ids.push(question.id.unwrap_or_default());
        self.shard.texts.push(question.text.unwrap_or_default());
        self.shard.answers.push(question.answers);
        if self.shard.ids.len() == self.rows_per_shard {
            self.bench.go_on()?;
            self.write()?;
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), TaskError> {
        let name = shard_name(self.parts.len() as u32);
        let path = self.bench.scratch(&format!("queries-{name}"));
        self.shard.write(&path)?;
        self.parts.push((name, Content::File(path)));
        self.shard = QueryShard { first_row: self.next_row, ..QueryShard::default() };
        Ok(())
    }

    #[allow(clippy::type_complexity)]
    fn finish(mut self) -> Result<(Vec<Option<u64>>, Vec<bool>, Vec<(String, Content)>), TaskError> {
        if !self.shard.ids.is_empty() {
            self.write()?;
        }
        Ok((self.rows, self.answered, self.parts))
    }
}

/// What the sets say, by rows.
struct Tables {
    judgements: Vec<Judgement>,
    given: Vec<NegativeRow>,
    scores: Vec<NegativeRow>,
    /// Questions of each set.
    sets: BTreeMap<String, usize>,
}

/// Numbers to rows.
struct Resolver<'a> {
    bench: &'a Workbench<'a>,
    gathered: &'a Gathered<'a>,
    queries: &'a [DataFile],
    rows: Vec<Option<u64>>,
    answered: Vec<bool>,
}

impl Resolver<'_> {
    fn tables(&self, passages: &Table, bad: &mut BadRecords) -> Result<Tables, TaskError> {
        self.check_questions(bad)?;
        let found = self.find_passages(passages)?;
        let (mut judgements, mut given, mut scores) = (Vec::new(), Vec::new(), Vec::new());
        let mut best = BTreeMap::<(u32, u32), (i64, Place)>::new();
        for ((set, question, passage), judged) in &self.gathered.judged {
            let Some(query_row) = self.rows[*question as usize] else { continue };
            let Some(passage_row) = found[*passage as usize] else {
                self.unknown_passage(judged.place, *passage, bad)?;
                continue;
            };
            let (most, _) = best.entry((*set, *question)).or_insert((judged.grade, judged.place));
            *most = (*most).max(judged.grade);
            let name = self.gathered.sets[*set as usize].to_owned();
            judgements.push(Judgement {
                set: name,
                query: query_row,
                passage: passage_row,
                grade: judged.grade,
            });
            scores.extend(judged.score.map(|score| NegativeRow {
                query: query_row,
                passage: passage_row,
                score,
            }));
        }
        let mut sets = BTreeMap::<String, usize>::new();
        for (set, question) in &self.gathered.members {
            let Some(query_row) = self.rows[*question as usize] else { continue };
            let name = self.gathered.sets[*set as usize];
            match best.get(&(*set, *question)) {
                Some((grade, place)) if *grade <= 0 => {
                    let url = &self.gathered.files[place.file as usize].file.url;
                    let id = &self.gathered.asked[*question as usize].id;
                    return Err(TaskError::Input(format!(
                        "{url}: question {id:?} has no passage with a score above 0; remove it or judge one"
                    )));
                }
                Some(_) => {}
                None if self.answered[*question as usize] => {
                    let (set, query) = (name.to_owned(), query_row);
                    judgements.push(Judgement { set, query, passage: NO_PASSAGE, grade: 0 });
                }
                // All its passages were bad records.
                None => continue,
            }
            *sets.entry(name.to_owned()).or_default() += 1;
        }
        for (question, negatives) in &self.gathered.given {
            let Some(query) = self.rows[*question as usize] else { continue };
            for negative in negatives {
                let Some(passage) = found[negative.passage as usize] else {
                    self.unknown_passage(negative.place, negative.passage, bad)?;
                    continue;
                };
                let row = NegativeRow { query, passage, score: negative.score.unwrap_or(f64::NAN) };
                given.push(row);
                scores.extend(negative.score.map(|_| row));
            }
        }
        judgements.sort_by(|a, b| (&a.set, a.query, a.passage).cmp(&(&b.set, b.query, b.passage)));
        // The order of a question's negatives is that of the files; sorting by question keeps it.
        given.sort_by_key(|row| row.query);
        scores.sort_by_key(|row| (row.query, row.passage));
        scores.dedup_by_key(|row| (row.query, row.passage));
        Ok(Tables { judgements, given, scores, sets })
    }

    /// Every question must have a text.
    fn check_questions(&self, bad: &mut BadRecords) -> Result<(), TaskError> {
        for (asked, _) in self.gathered.asked.iter().zip(&self.rows).filter(|(_, row)| row.is_none()) {
            let urls: BTreeSet<_> = self.queries.iter().map(|data| data.file.url.as_str()).collect();
            let place = match urls.is_empty() {
                true => "any file of questions".to_owned(),
                false => urls.into_iter().collect::<Vec<_>>().join(", "),
            };
            let data = self.gathered.files[asked.place.file as usize];
            let reason =
                format!("question {:?} does not stand in {place}; remove the line or add it", asked.id);
            bad.add(data, asked.place.line, &reason)?;
        }
        Ok(())
    }

    fn unknown_passage(&self, place: Place, passage: u32, bad: &mut BadRecords) -> Result<(), TaskError> {
        let data = self.gathered.files[place.file as usize];
        if !bad.is_next_told() {
            return bad.add(data, place.line, "");
        }
        let key = self.gathered.passages.iter().find(|(_, number)| **number == passage);
        let key = *key.expect("every number has a key").0;
        let what = describe(self.bench, data, place.line, key);
        let reason = format!("passage {what:?} does not stand in the corpus; remove the line or add it");
        bad.add(data, place.line, &reason)
    }

    /// The row of each passage by number: one pass over the corpus, memory for those asked for only.
    fn find_passages(&self, passages: &Table) -> Result<Vec<Option<u64>>, TaskError> {
        let wanted = &self.gathered.passages;
        let mut rows = vec![None; wanted.len()];
        for shard in 0..passages.shards {
            self.bench.go_on()?;
            let shard = self.bench.passages(passages, shard)?;
            for (at, id) in shard.ids.iter().enumerate() {
                let row = shard.first_row + at as u64;
                if let Some(number) = wanted.get(&PassageKey::of_id(id)) {
                    rows[*number as usize] = Some(row);
                }
                if self.gathered.by_text {
                    // Of passages with the same text the first one counts.
                    if let Some(number) = wanted.get(&PassageKey::of_text(&shard.model_text(at))) {
                        rows[*number as usize].get_or_insert(row);
                    }
                }
            }
        }
        Ok(rows)
    }
}
