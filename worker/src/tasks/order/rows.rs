//! Rows as they lie in the files of an order.

use super::tokens::TokenStore;
use crate::tasks::{TaskError, Workbench};
use crate::vectors::{Tensors, Values, write_tensors};
use retort_common::task::ArtifactId;
use std::path::Path;

/// Marks the row of a question where passages and questions stand together.
const QUERY_BIT: u64 = 1 << 63;
/// Marks the row of a sentence there.
const SENTENCE_BIT: u64 = 1 << 62;

/// Where the text of a training row stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TextRow {
    /// A question.
    Query(u64),
    /// A passage.
    Passage(u64),
    /// A sentence that stands as a question.
    Sentence(u64),
}

impl TextRow {
    /// The row in its own table.
    pub fn row(&self) -> u64 {
        match self {
            TextRow::Query(row) | TextRow::Passage(row) | TextRow::Sentence(row) => *row,
        }
    }

    fn encode(self) -> u64 {
        match self {
            TextRow::Query(row) => row | QUERY_BIT,
            TextRow::Passage(row) => row,
            TextRow::Sentence(row) => row | SENTENCE_BIT,
        }
    }

    fn decode(value: u64) -> Self {
        match value {
            _ if value & QUERY_BIT != 0 => TextRow::Query(value ^ QUERY_BIT),
            _ if value & SENTENCE_BIT != 0 => TextRow::Sentence(value ^ SENTENCE_BIT),
            _ => TextRow::Passage(value),
        }
    }
}

/// The rows of one step.
#[derive(Clone, Debug, Default)]
pub struct StepRows {
    /// The texts: [batch, width], each row a single text, or a question followed by its candidates.
    pub texts: Vec<TextRow>,
    /// Their token ids, where the student reads text.
    pub tokens: Vec<Vec<u32>>,
    /// Relevant passages of each row's question, in rising order.
    pub known_positives: Vec<Vec<u64>>,
}

/// The file of a part.
pub(super) fn part_name(part: u64) -> String {
    format!("{part:06}.safetensors")
}

/// Writes rows of one width, with their tokens where there are some; of the first text alone for `only_questions`.
pub(super) fn write_part(
    path: &Path,
    rows: impl Iterator<Item = (Vec<TextRow>, Vec<u64>)>,
    width: u64,
    store: Option<&TokenStore>,
    only_questions: bool,
) -> Result<(), TaskError> {
    let (mut texts, mut known, mut known_ends) = (Vec::new(), Vec::new(), Vec::new());
    let (mut ids, mut ends) = (Vec::new(), Vec::new());
    for (row, positives) in rows {
        for (at, text) in row.into_iter().enumerate() {
            texts.push(text.encode());
            if let Some(store) = store {
                if at == 0 || !only_questions {
                    ids.extend(store.get(text)?);
                }
                ends.push(ids.len() as u64);
            }
        }
        known.extend(positives);
        known_ends.push(known.len() as u64);
    }
    let rows = known_ends.len();
    let mut tensors = vec![
        ("known_positives", vec![known.len()], Values::U64(&known)),
        ("known_positives_ends", vec![rows], Values::U64(&known_ends)),
        ("texts", vec![rows, width as usize], Values::U64(&texts)),
    ];
    if store.is_some() {
        tensors.push(("token_ends", vec![ends.len()], Values::U64(&ends)));
        tensors.push(("tokens", vec![ids.len()], Values::U32(&ids)));
    }
    Ok(write_tensors(path, &tensors)?)
}

/// Reads the rows of a phase step by step, holding one part at a time.
pub struct OrderReader<'a> {
    bench: &'a Workbench<'a>,
    artifact: &'a ArtifactId,
    /// Steps of the phase.
    pub steps: u64,
    /// Rows in a step.
    pub batch: usize,
    /// Texts in a row.
    pub width: usize,
    steps_per_part: u64,
    part: Option<(u64, Part)>,
}

struct Part {
    texts: Vec<u64>,
    known: Vec<u64>,
    known_ends: Vec<u64>,
    tokens: Option<(Vec<u32>, Vec<u64>)>,
}

impl<'a> OrderReader<'a> {
    /// Opens an order.
    pub fn open(bench: &'a Workbench<'a>, artifact: &'a ArtifactId) -> Result<Self, TaskError> {
        let meta = bench.manifest(artifact)?.meta;
        let number = |name: &str| {
            let value = meta[name].as_u64().filter(|value| *value > 0);
            value.ok_or_else(|| TaskError::Input(format!("{artifact}: its manifest lacks {name}")))
        };
        Ok(Self {
            bench,
            artifact,
            steps: number("steps")?,
            batch: number("batch")? as usize,
            width: number("width")? as usize,
            steps_per_part: number("steps_per_part")?,
            part: None,
        })
    }

    /// The rows of a step.
    pub fn step(&mut self, step: u64) -> Result<StepRows, TaskError> {
        let number = step / self.steps_per_part;
        if self.part.as_ref().is_none_or(|(held, _)| *held != number) {
            self.part = None;
            let file = Tensors::read(&self.bench.part(self.artifact, &part_name(number))?)?;
            let tokens = match file.u32("tokens") {
                Ok((_, ids)) => Some((ids, file.u64("token_ends")?.1)),
                Err(_) => None,
            };
            let part = Part {
                texts: file.u64("texts")?.1,
                known: file.u64("known_positives")?.1,
                known_ends: file.u64("known_positives_ends")?.1,
                tokens,
            };
            self.part = Some((number, part));
        }
        let (_, part) = self.part.as_ref().expect("it was read above");
        let first = (step % self.steps_per_part) as usize * self.batch;
        let rows = first..first + self.batch;
        let cells = rows.start * self.width..rows.end * self.width;
        let range = |ends: &[u64], at: usize| {
            let start = if at == 0 { 0 } else { ends[at - 1] };
            start as usize..ends[at] as usize
        };
        Ok(StepRows {
            texts: part.texts[cells.clone()].iter().map(|value| TextRow::decode(*value)).collect(),
            tokens: part
                .tokens
                .as_ref()
                .map_or_else(Vec::new, |(ids, ends)| cells.map(|at| ids[range(ends, at)].to_vec()).collect()),
            known_positives: rows.map(|at| part.known[range(&part.known_ends, at)].to_vec()).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_texts_survive_their_coding() {
        for row in [TextRow::Query(7), TextRow::Passage(7), TextRow::Sentence(7), TextRow::Passage(0)] {
            assert_eq!(TextRow::decode(row.encode()), row);
        }
    }
}
