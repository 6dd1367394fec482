//! A record's bytes to a [`Record`].

use super::fields::{csv_fields, python_list, tsv_columns, wrong_columns};
use super::json;
use super::recognise::Layout;
use super::record::{Candidate, Example, Passage, Question, Record, Role, check_id};
use retort_common::spec::FileFormat;
use std::borrow::Cow;

/// The record that `bytes` hold, none for a header. `line` tells where it begins: headers stand in the first.
pub fn parse(layout: &Layout, role: Role, line: u64, bytes: &[u8]) -> Result<Option<Record>, String> {
    let text = || {
        std::str::from_utf8(bytes)
            .map_err(|error| format!("is not UTF-8 from byte {} on", error.valid_up_to() + 1))
    };
    let record = match layout.format {
        FileFormat::Tsv => tsv(text()?, role)?,
        FileFormat::Psgs => match psgs(layout, text()?, line)? {
            Some(passage) => Record::Passage(passage),
            None => return Ok(None),
        },
        FileFormat::Qas => qas(text()?)?,
        FileFormat::Qrels => match qrels(text()?, line)? {
            Some(judgement) => judgement,
            None => return Ok(None),
        },
        FileFormat::IdTriples => id_triple(text()?)?,
        FileFormat::TextTriples => text_triple(text()?)?,
        FileFormat::ScoredTriples => scored_triple(text()?)?,
        FileFormat::Jsonl => json::object(bytes, role)?,
        FileFormat::Dpr => json::dpr(bytes)?,
        FileFormat::Tevatron => json::tevatron(bytes)?,
        FileFormat::FlagEmbedding => json::flag_embedding(bytes)?,
        FileFormat::Triplets => json::triplet(bytes)?,
        FileFormat::ScoredLists => json::scored_list(bytes)?,
    };
    check(&record)?;
    Ok(Some(record))
}

/// What must hold in every format: ids that runs can hold, texts that are there, scores that are numbers.
fn check(record: &Record) -> Result<(), String> {
    match record {
        Record::Passage(passage) => {
            check_id("the passage's id", &passage.id)?;
            filled("the passage has", &[&passage.title, &passage.text])
        }
        Record::Question(question) => check_question(question),
        Record::Judgement { query, passage, .. } => {
            check_id("the question's id", query)?;
            check_id("the passage's id", passage)
        }
        Record::Example(example) => {
            check_question(&example.question)?;
            for candidate in example.positives.iter().chain(&example.negatives) {
                if let Some(id) = &candidate.id {
                    check_id("a passage's id", id)?;
                }
                if let Some(text) = &candidate.text {
                    filled("a passage has", &[&candidate.title, text])?;
                }
                if candidate.score.is_some_and(|score| !(score as f32).is_finite()) {
                    return Err("a score is not a finite number of 32 bits".to_owned());
                }
            }
            Ok(())
        }
    }
}

fn check_question(question: &Question) -> Result<(), String> {
    if let Some(id) = &question.id {
        check_id("the question's id", id)?;
    }
    match &question.text {
        Some(text) => filled("the question has", &[text]),
        None => Ok(()),
    }
}

fn filled(what: &str, texts: &[&str]) -> Result<(), String> {
    if texts.iter().all(|text| text.trim().is_empty()) {
        return Err(format!("{what} no text"));
    }
    Ok(())
}

fn tsv(line: &str, role: Role) -> Result<Record, String> {
    let [id, text] = tsv_columns(line, "id and text")?;
    Ok(match role {
        Role::Questions => Record::Question(Question {
            id: Some(id.to_owned()),
            text: Some(text.trim().to_owned()),
            answers: Vec::new(),
        }),
        _ => Record::Passage(Passage { id: id.to_owned(), title: String::new(), text: text.to_owned() }),
    })
}

fn psgs(layout: &Layout, record: &str, line: u64) -> Result<Option<Passage>, String> {
    let fields = csv_fields(record, b'\t')?;
    let found = fields.len();
    let mut fields: [Cow<'_, str>; 3] =
        fields.try_into().map_err(|_| wrong_columns(found, 3, "id, text and title"))?;
    if line == 1 && fields.iter().any(|field| field == "id") && fields.iter().any(|field| field == "text") {
        return Ok(None);
    }
    let mut take = |at: usize| std::mem::take(&mut fields[at]).into_owned();
    let [id, text, title] = layout.columns;
    Ok(Some(Passage { id: take(id), text: take(text), title: take(title) }))
}

fn qas(record: &str) -> Result<Record, String> {
    let fields = csv_fields(record, b'\t')?;
    let [question, answers] = &fields[..] else {
        return Err(wrong_columns(fields.len(), 2, "question and list of answers"));
    };
    let answers = python_list(answers)?;
    Ok(Record::Question(Question { id: None, text: Some(question.trim().to_owned()), answers }))
}

fn qrels(line: &str, number: u64) -> Result<Option<Record>, String> {
    let columns: Vec<&str> = if line.contains('\t') {
        line.split('\t').collect()
    } else {
        line.split_ascii_whitespace().collect()
    };
    let (query, passage, grade) = match columns[..] {
        [query, passage, grade] if line.contains('\t') => (query, passage, grade),
        [query, _, passage, grade] => (query, passage, grade),
        [_, _, _] => {
            return Err(
                "3 columns without tabs; question id, passage id and grade have tabs between".to_owned()
            );
        }
        _ => {
            let names = "question id, passage id and grade, or with an unused column behind the first,";
            return Err(wrong_columns(columns.len(), 3, names));
        }
    };
    let (query, passage, grade) = (query.trim(), passage.trim(), grade.trim());
    match grade.parse() {
        Ok(grade) => {
            Ok(Some(Record::Judgement { query: query.to_owned(), passage: passage.to_owned(), grade }))
        }
        // A header names its columns.
        Err(_) if number == 1 && query.parse::<i64>().is_err() => Ok(None),
        Err(_) => Err(format!("grade {grade:?} is no whole number")),
    }
}

fn of_ids(query: &str, positive: &str, negative: &str, scores: Option<(f64, f64)>) -> Record {
    let candidate = |id: &str, score| Candidate { id: Some(id.to_owned()), score, ..Candidate::default() };
    Record::Example(Box::new(Example {
        question: Question { id: Some(query.to_owned()), ..Question::default() },
        merges: true,
        positives: vec![candidate(positive, scores.map(|scores| scores.0))],
        negatives: vec![candidate(negative, scores.map(|scores| scores.1))],
    }))
}

fn id_triple(line: &str) -> Result<Record, String> {
    let [query, positive, negative] = tsv_columns(line, "question id, positive id and negative id")?;
    Ok(of_ids(query, positive, negative, None))
}

fn scored_triple(line: &str) -> Result<Record, String> {
    let names = "the positive's score, the negative's, question id, positive id and negative id";
    let [positive_score, negative_score, query, positive, negative] = tsv_columns(line, names)?;
    let score = |text: &str| text.trim().parse::<f64>().map_err(|_| format!("score {text:?} is no number"));
    Ok(of_ids(query, positive, negative, Some((score(positive_score)?, score(negative_score)?))))
}

fn text_triple(line: &str) -> Result<Record, String> {
    let [query, positive, negative] = tsv_columns(line, "question, positive and negative")?;
    let candidate = |text: &str| Candidate { text: Some(text.to_owned()), ..Candidate::default() };
    Ok(Record::Example(Box::new(Example {
        question: Question { text: Some(query.trim().to_owned()), ..Question::default() },
        merges: true,
        positives: vec![candidate(positive)],
        negatives: vec![candidate(negative)],
    })))
}
