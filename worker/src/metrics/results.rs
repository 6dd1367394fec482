//! A retriever's results in DPR's form: an array of questions with their answers and passages, best first.

use super::answers::{Answer, AnswerText};
use crate::formats::blocks::{CutError, Cutter};
use crate::formats::source::Source;
use crate::formats::{Framing, ReadError};
use retort_common::spec::AnswerRule;
use retort_common::store::Location;
use serde::Deserialize;
use tokio::runtime::Handle;

#[derive(Deserialize)]
struct Row {
    question: String,
    answers: Vec<String>,
    ctxs: Vec<Context>,
}

#[derive(Deserialize)]
struct Context {
    text: String,
}

/// Where the first passage with an answer stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnsweredQuestion {
    /// The question.
    pub question: String,
    /// Rank of its first passage with an answer, from 0.
    pub first: Option<usize>,
    /// Passages listed.
    pub listed: usize,
}

/// Reads results, one question at a time; answers are looked for in the bodies of the passages, not in their titles.
///
/// # Errors
/// When the file cannot be read, a record is malformed or a question has no answers.
pub fn read_results(
    location: &Location,
    rule: AnswerRule,
    runtime: &Handle,
) -> Result<Vec<AnsweredQuestion>, ReadError<String>> {
    let file = location.to_string();
    let fail = |line, reason| ReadError::Format { file: file.clone(), line, reason, found: None };
    let source = Source::open(location, runtime).map_err(|error| fail(1, error.to_string()))?;
    let source = source.ok_or_else(|| ReadError::Missing { file: file.clone() })?;
    let mut cutter = Cutter::new(source, Framing::Array);
    let mut questions = Vec::new();
    loop {
        let block = match cutter.next_block() {
            Ok(Some(block)) => block,
            Ok(None) => return Ok(questions),
            Err(CutError::Io(error)) => return Err(fail(cutter.line(), error.to_string())),
            Err(CutError::Framing(reason)) => return Err(fail(cutter.line(), reason)),
        };
        for span in &block.spans {
            let row: Row = serde_json::from_slice(&block.bytes[span.start..span.end]).map_err(|error| {
                fail(span.line, format!("question, answers and ctxs are expected: {error}"))
            })?;
            if row.answers.is_empty() {
                return Err(fail(span.line, format!("question {:?} has no answers", row.question)));
            }
            questions.push(judge(row, rule));
        }
    }
}

fn judge(row: Row, rule: AnswerRule) -> AnsweredQuestion {
    let make = if rule == AnswerRule::Regex { Answer::pattern } else { Answer::text };
    let answers: Vec<Answer> = row.answers.iter().map(|answer| make(answer)).collect();
    let first = row.ctxs.iter().position(|context| AnswerText::new(&context.text).has_any(&answers));
    AnsweredQuestion { question: row.question, first, listed: row.ctxs.len() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, rule: AnswerRule, expected: Result<&[(Option<usize>, usize)], &str>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.json");
        std::fs::write(&path, text).unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let found = read_results(&Location::of_path(&path).unwrap(), rule, runtime.handle());
        match (found, expected) {
            (Ok(found), Ok(expected)) => {
                let found: Vec<_> = found.iter().map(|row| (row.first, row.listed)).collect();
                assert_eq!(found, expected, "{text}");
            }
            (Err(error), Err(word)) => assert!(error.to_string().contains(word), "{text}: {error}"),
            (found, _) => panic!("{text}: {found:?}"),
        }
    }

    #[test]
    fn the_first_passage_with_an_answer_counts() {
        let row = |answer: &str, texts: &[&str]| {
            let ctxs: Vec<_> =
                texts.iter().map(|text| serde_json::json!({ "text": text, "title": answer })).collect();
            serde_json::json!({ "question": "q", "answers": [answer], "ctxs": ctxs })
        };
        let rows = |rows: &[serde_json::Value]| serde_json::json!(rows).to_string();
        // The title does not count, and neither do parts of words.
        let text = rows(&[row("USA", &["U.S.A.", "in the usa"]), row("a", &["ab"]), row("x", &[])]);
        check(&text, AnswerRule::Text, Ok(&[(Some(1), 2), (None, 1), (None, 0)]));
        let text = rows(&[row("New\\s?York", &["york", "NEWYORK"])]);
        check(&text, AnswerRule::Regex, Ok(&[(Some(1), 2)]));
        check("[{\"question\": \"q\"}]", AnswerRule::Text, Err("results.json:1: question, answers"));
        check("[{\"question\":\"q\",\"answers\":[],\"ctxs\":[]}]", AnswerRule::Text, Err("no answers"));
        check("[", AnswerRule::Text, Err("cut short"));
    }
}
