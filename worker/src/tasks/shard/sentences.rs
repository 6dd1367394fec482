//! Sentences of passages to shards. They stand as questions that need no label: a sentence is about as long as a
//! question and about one thing that its passage says, so that the teacher ranks the passage's neighbours for it as it
//! would for a question.

use super::super::bench::{Content, Produced, TaskError, Workbench, shard_name};
use crate::mining::counter::hash;
use crate::tables::QueryShard;
use crate::vectors::{Tensors, Values, write_tensors};
use retort_common::task::{ArtifactId, Table};
use serde_json::json;
use std::collections::BinaryHeap;

/// The part that holds the rows of the passages that sentences come from.
const ORIGINS: &str = "origins.safetensors";
/// Pieces shorter than this many characters are joined to a neighbour: abbreviations, numbers, exclamations.
const LEAST_CHARACTERS: usize = 20;

/// Which sentences are taken.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    /// How many; all where the corpus has fewer.
    pub count: usize,
    /// Rows in a shard.
    pub rows_per_shard: usize,
    /// Seed of the draw.
    pub seed: u64,
}

/// A sentence that was drawn. Those with the smallest hashes are kept, so that the draw depends on no order of
/// processing and holds no more than its count.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Drawn {
    hash: u64,
    passage: u64,
    number: u64,
    id: String,
    text: String,
}

/// Draws sentences from the whole corpus and writes them in the order of their passages.
pub fn sentences(bench: &Workbench<'_>, passages: &Table, draw: Draw) -> Result<Produced, TaskError> {
    let mut drawn = BinaryHeap::new();
    for shard in 0..passages.shards {
        bench.go_on()?;
        let rows = bench.passages(passages, shard)?;
        for (at, body) in rows.texts.iter().enumerate() {
            let passage = rows.first_row + at as u64;
            for (number, text) in (0u64..).zip(split(body)) {
                let hash = hash(draw.seed, &[passage, number]);
                let full = drawn.len() >= draw.count;
                if full && drawn.peek().is_none_or(|last: &Drawn| last.hash <= hash) {
                    continue;
                }
                let id = format!("{}#{number}", rows.ids[at]);
                drawn.push(Drawn { hash, passage, number, id, text: text.to_owned() });
                if drawn.len() > draw.count {
                    drawn.pop();
                }
            }
        }
        bench.progress.progress(u64::from(shard) + 1, u64::from(passages.shards), "sentences");
    }
    let mut drawn = drawn.into_vec();
    drawn.sort_unstable_by_key(|sentence| (sentence.passage, sentence.number));
    let mut parts = Vec::new();
    for rows in drawn.chunks(draw.rows_per_shard.max(1)) {
        let name = shard_name(parts.len() as u32);
        let path = bench.scratch(&name);
        let shard = QueryShard {
            first_row: (parts.len() * draw.rows_per_shard) as u64,
            ids: rows.iter().map(|sentence| sentence.id.clone()).collect(),
            texts: rows.iter().map(|sentence| sentence.text.clone()).collect(),
            answers: vec![Vec::new(); rows.len()],
        };
        shard.write(&path)?;
        parts.push((name, Content::File(path)));
    }
    let shards = parts.len();
    let origins: Vec<u64> = drawn.iter().map(|sentence| sentence.passage).collect();
    let path = bench.scratch(ORIGINS);
    write_tensors(&path, &[("passages", vec![origins.len()], Values::U64(&origins))])?;
    parts.push((ORIGINS.to_owned(), Content::File(path)));
    Ok(Produced { parts, meta: json!({ "rows": drawn.len(), "shards": shards }) })
}

/// The row of each sentence's passage.
pub fn origins(bench: &Workbench<'_>, sentences: &Table) -> Result<Vec<u64>, TaskError> {
    let artifact: &ArtifactId = &sentences.artifact;
    Ok(Tensors::read(&bench.part(artifact, ORIGINS)?)?.u64("passages")?.1)
}

/// A text's sentences: they end with a full stop, a question or exclamation mark and what closes quotes and brackets,
/// before white space (which ideographic marks need not have). Short pieces are joined to the next one, the last to
/// the one before; a text without an end is one sentence.
fn split(text: &str) -> Vec<&str> {
    let text = text.trim();
    let mut sentences = Vec::new();
    let (mut start, mut last_start, mut ended, mut wide) = (0, 0, false, false);
    for (at, character) in text.char_indices() {
        let breaks = ended && (character.is_whitespace() || wide && !closes(character));
        if breaks && text[start..at].chars().count() >= LEAST_CHARACTERS {
            sentences.push(text[start..at].trim());
            (last_start, start) = (start, at);
        }
        wide = matches!(character, '。' | '！' | '？') || wide && closes(character);
        ended = wide || matches!(character, '.' | '!' | '?' | '…') || ended && closes(character);
    }
    let rest = text[start..].trim();
    match sentences.last_mut() {
        Some(last) if rest.chars().count() < LEAST_CHARACTERS => *last = text[last_start..].trim(),
        _ if rest.is_empty() => {}
        _ => sentences.push(rest),
    }
    sentences
}

fn closes(character: char) -> bool {
    matches!(character, '"' | '\'' | ')' | ']' | '}' | '»' | '”' | '’' | '」' | '』' | '）')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[&str]) {
        assert_eq!(split(text), expected, "{text:?}");
    }

    #[test]
    fn texts_are_cut_where_sentences_end() {
        check("", &[]);
        check("  no end at all ", &["no end at all"]);
        check(
            "The first sentence ends here. Does the second one end here? \"It does end here!\" (No end",
            &[
                "The first sentence ends here.",
                "Does the second one end here?",
                "\"It does end here!\" (No end",
            ],
        );
        check(
            "Version 3.14 of www.example.org was fine then.",
            &["Version 3.14 of www.example.org was fine then."],
        );
        check(
            "Dr. No met the U.S. president in March 1962. Yes.",
            &["Dr. No met the U.S. president in March 1962. Yes."],
        );
        check(
            "この文はここで終わりますがとても長い文です。次の文もここで終わりますがやはり長いです。",
            &["この文はここで終わりますがとても長い文です。", "次の文もここで終わりますがやはり長いです。"],
        );
    }
}
