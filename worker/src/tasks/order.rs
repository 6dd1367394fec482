//! Training rows in step order, so that training reads from start to end and holds no corpus in memory.

use super::bench::{Content, Produced, TaskError, Workbench};
use super::input::model_folder;
use super::mine::{NEGATIVES, known_positives};
use super::shard::origins;
use crate::mining::Permutation;
use crate::tables::read_negatives;
use crate::text::Tokenizer;
use crate::vectors::{Tensors, Values, write_tensors};
use retort_common::spec::PhaseData;
use retort_common::task::{OrderTokens, PhaseLength, Table, Task, TextInput};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// Rows in a part, at least one step: parts are read whole.
const ROWS_PER_PART: u64 = 16_384;
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

/// Writes the rows of a phase.
pub fn order(bench: &Workbench<'_>, task: &Task) -> Result<Produced, TaskError> {
    let Task::Order {
        data,
        queries,
        passages,
        sets,
        batch,
        length,
        span,
        tokens,
        seed,
        unlabelled,
        sentences,
        ..
    } = task
    else {
        unreachable!("called with its own task")
    };
    let positives = known_positives(bench, queries, sets)?;
    let (source, counts) = match data {
        PhaseData::Texts => (Source::texts(passages, sentences.as_ref(), &positives), json!({})),
        PhaseData::Queries => Source::questions(bench, task, positives)?,
    };
    let rows = source.len();
    if rows == 0 {
        return Err(TaskError::Input("there is nothing to train on: the training sets are empty".to_owned()));
    }
    let total = match length {
        PhaseLength::Steps(steps) => u64::from(*steps),
        PhaseLength::Epochs(epochs) => {
            let labelled = f64::from(batch.saturating_sub(*unlabelled).max(1));
            (epochs * rows as f64 / labelled).ceil().max(1.0) as u64
        }
    };
    // A part of a phase has the rows that the whole phase has at its steps.
    let (start, end) =
        span.map_or((0, total), |span| (u64::from(span.first), u64::from(span.end).min(total)));
    let steps = end.saturating_sub(start);
    let batch = u64::from(*batch);
    let width = source.width();
    let mix = Mix { batch, unlabelled: u64::from(*unlabelled) };
    let order = |position: u64| {
        let position = match mix.place(position) {
            Place::Labelled(position) => position,
            Place::Unlabelled(place) => return source.unlabelled(place, position),
        };
        let (epoch, at) = (position / rows, position % rows);
        let row = Permutation::new(rows, *seed, epoch).row(at).expect("the position lies within the epoch");
        source.row(row, epoch, position)
    };
    let store = match tokens {
        Some(tokens) => {
            // A part may begin within a pass, hence one more.
            let variety = rows.saturating_mul(source.variety().saturating_add(1));
            let positions = (steps * batch).min(variety);
            let needed = (start * batch..start * batch + positions).flat_map(|position| order(position).0);
            Some(TokenStore::build(bench, tokens, (queries, passages, sentences.as_ref()), needed.collect())?)
        }
        None => None,
    };
    let steps_per_part = (ROWS_PER_PART / (batch * width)).max(1);
    let mut parts = Vec::new();
    for first in (0..steps).step_by(steps_per_part as usize) {
        bench.go_on()?;
        let last = (first + steps_per_part).min(steps);
        let rows = ((start + first) * batch..(start + last) * batch).map(&order);
        let path = bench.scratch(&part_name(parts.len() as u64));
        write_part(&path, rows, width, store.as_ref())?;
        parts.push((part_name(parts.len() as u64), Content::File(path)));
        bench.progress.progress(last, steps, "");
    }
    let meta = json!({
        "steps": steps, "rows": rows, "batch": batch, "width": width,
        "steps_per_part": steps_per_part, "counts": counts,
    });
    Ok(Produced { parts, meta })
}

fn part_name(part: u64) -> String {
    format!("{part:06}.safetensors")
}

/// How rows without labels stand among the others: evenly, so that every microbatch has its share.
#[derive(Clone, Copy)]
struct Mix {
    batch: u64,
    unlabelled: u64,
}

/// A row's number among its own kind.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Labelled(u64),
    Unlabelled(u64),
}

impl Mix {
    fn place(self, position: u64) -> Place {
        let (step, slot) = (position / self.batch, position % self.batch);
        let before = slot * self.unlabelled / self.batch;
        match (slot + 1) * self.unlabelled / self.batch > before {
            true => Place::Unlabelled(step * self.unlabelled + before),
            false => Place::Labelled(step * (self.batch - self.unlabelled) + slot - before),
        }
    }
}

/// What the rows of a phase are drawn from.
enum Source {
    /// Every passage, then every sentence, then every training question.
    Texts { passages: u64, sentences: u64, queries: Vec<u64> },
    /// Training questions with their positives and negatives.
    Questions { rows: Vec<Question>, negatives: usize, samples: Samples, asked: Option<Unlabelled> },
}

/// What rows without labels are drawn from.
struct Unlabelled {
    /// The questions: sentences, or passages where there are none.
    questions: Samples,
    /// The passage of each sentence, which stands in the positive's place.
    origins: Option<Vec<u64>>,
    /// What stands for negatives, and for the positive where the question is a passage.
    candidates: Samples,
}

/// Rows drawn from a whole table: seeded permutations of it, one after the other.
struct Samples {
    per_row: u64,
    rows: u64,
    seed: u64,
}

impl Samples {
    /// Those of the row at a position of the order.
    fn at(&self, position: u64) -> impl Iterator<Item = u64> {
        let places = position * self.per_row..(position + 1) * self.per_row;
        places.map(|place| {
            let (round, at) = (place / self.rows, place % self.rows);
            let row = Permutation::new(self.rows, self.seed, round).row(at);
            row.expect("the place lies within the round")
        })
    }

    /// As passages.
    fn passages(&self, position: u64) -> impl Iterator<Item = TextRow> {
        self.at(position).map(TextRow::Passage)
    }
}

impl Unlabelled {
    fn new(
        bench: &Workbench<'_>,
        passages: &Table,
        sentences: Option<&Table>,
        (seed, negatives): (u64, usize),
    ) -> Result<Self, TaskError> {
        let (rows, negatives) = (passages.rows, negatives as u64);
        let seed = seed.rotate_left(32);
        let Some(table) = sentences else {
            // One permutation gives question, positive and negatives, so that no row has a passage twice.
            let questions = Samples { per_row: 2 + negatives, rows, seed };
            return Ok(Self { questions, origins: None, candidates: Samples { per_row: 0, rows, seed } });
        };
        let origins = origins(bench, table)?;
        if origins.len() as u64 != table.rows || origins.iter().any(|row| *row >= rows) {
            let artifact = &table.artifact;
            return Err(TaskError::Input(format!("{artifact}: its sentences are not those of the corpus")));
        }
        let questions = Samples { per_row: 1, rows: table.rows, seed };
        let candidates = Samples { per_row: negatives, rows, seed: !seed };
        Ok(Self { questions, origins: Some(origins), candidates })
    }

    /// A question and what stands for its positive and its negatives.
    fn at(&self, place: u64) -> Vec<TextRow> {
        let mut texts: Vec<_> = self.questions.passages(place).collect();
        if let Some(origins) = &self.origins
            && let Some(question) = texts.pop()
        {
            texts.push(TextRow::Sentence(question.row()));
            texts.push(TextRow::Passage(origins[question.row() as usize]));
        }
        texts.extend(self.candidates.passages(place));
        texts
    }
}

struct Question {
    row: u64,
    positives: Vec<u64>,
    negatives: Vec<u64>,
}

impl Source {
    fn texts(passages: &Table, sentences: Option<&Table>, positives: &BTreeMap<u64, Vec<u64>>) -> Self {
        let sentences = sentences.map_or(0, |table| table.rows);
        Source::Texts { passages: passages.rows, sentences, queries: positives.keys().copied().collect() }
    }

    fn questions(
        bench: &Workbench<'_>,
        task: &Task,
        positives: BTreeMap<u64, Vec<u64>>,
    ) -> Result<(Self, serde_json::Value), TaskError> {
        let Task::Order {
            negatives,
            negatives_per_row,
            corpus_samples,
            passages,
            seed,
            unlabelled,
            sentences,
            ..
        } = task
        else {
            unreachable!("called with its own task")
        };
        let mut mined = BTreeMap::<u64, Vec<u64>>::new();
        if let Some(artifact) = negatives {
            for row in read_negatives(&bench.part(artifact, NEGATIVES)?)? {
                mined.entry(row.query).or_default().push(row.passage);
            }
        }
        let wanted = *negatives_per_row as usize;
        let mut short = 0u64;
        let rows: Vec<_> = positives
            .into_iter()
            .map(|(row, positives)| {
                let negatives = mined.remove(&row).unwrap_or_default();
                short += u64::from(negatives.len() < wanted);
                Question { row, positives, negatives }
            })
            .collect();
        // A question with fewer negatives than wanted repeats what it has: repeats are masked in the loss,
        // so nothing is made up. How many do is in the numbers.
        let counts = json!({ "questions": rows.len(), "short_of_negatives": short });
        // Another seed than the order's own, which permutes the questions.
        let samples = Samples { per_row: u64::from(*corpus_samples), rows: passages.rows, seed: !*seed };
        let asked = match (*unlabelled > 0, sentences) {
            (false, _) => None,
            (true, sentences) => Some(Unlabelled::new(bench, passages, sentences.as_ref(), (*seed, wanted))?),
        };
        Ok((Source::Questions { rows, negatives: wanted, samples, asked }, counts))
    }

    fn len(&self) -> u64 {
        match self {
            Source::Texts { passages, sentences, queries } => passages + sentences + queries.len() as u64,
            Source::Questions { rows, .. } => rows.len() as u64,
        }
    }

    /// Texts in a row.
    fn width(&self) -> u64 {
        match self {
            Source::Texts { .. } => 1,
            Source::Questions { negatives, samples, .. } => 2 + *negatives as u64 + samples.per_row,
        }
    }

    /// Passes over the data after which no new text can come.
    fn variety(&self) -> u64 {
        match self {
            Source::Texts { .. } => 1,
            Source::Questions { samples, asked, .. } if asked.is_some() || samples.per_row > 0 => u64::MAX,
            Source::Questions { rows, negatives, .. } => {
                let longest = rows.iter().map(|row| row.negatives.len().max(row.positives.len())).max();
                longest.unwrap_or(1).max(1) as u64 * (*negatives).max(1) as u64
            }
        }
    }

    /// A row whose question is a passage or a sentence.
    fn unlabelled(&self, place: u64, position: u64) -> (Vec<TextRow>, Vec<u64>) {
        match self {
            Source::Questions { samples, asked: Some(asked), .. } => {
                (asked.at(place).into_iter().chain(samples.passages(position)).collect(), Vec::new())
            }
            _ => unreachable!("only rows of questions are mixed, and those that are know what with"),
        }
    }

    /// The texts of a row in some epoch, and its known positives. Positives and negatives take turns.
    fn row(&self, at: u64, epoch: u64, position: u64) -> (Vec<TextRow>, Vec<u64>) {
        match self {
            Source::Texts { passages, .. } if at < *passages => (vec![TextRow::Passage(at)], Vec::new()),
            Source::Texts { passages, sentences, .. } if at < passages + sentences => {
                (vec![TextRow::Sentence(at - passages)], Vec::new())
            }
            Source::Texts { passages, sentences, queries } => {
                (vec![TextRow::Query(queries[(at - passages - sentences) as usize])], Vec::new())
            }
            Source::Questions { rows, negatives, samples, .. } => {
                let question = &rows[at as usize];
                let turn = |list: &[u64], n: u64| list[(n % list.len() as u64) as usize];
                let positive = turn(&question.positives, epoch);
                let mut texts = vec![TextRow::Query(question.row), TextRow::Passage(positive)];
                for slot in 0..*negatives as u64 {
                    let place = epoch * *negatives as u64 + slot;
                    let row = if question.negatives.is_empty() {
                        positive
                    } else {
                        turn(&question.negatives, place)
                    };
                    texts.push(TextRow::Passage(row));
                }
                texts.extend(samples.passages(position));
                (texts, question.positives.clone())
            }
        }
    }
}

/// Token ids of the texts that are needed, in a scratch file.
struct TokenStore {
    file: File,
    path: PathBuf,
    places: BTreeMap<TextRow, (u64, u32)>,
}

impl TokenStore {
    fn build(
        bench: &Workbench<'_>,
        tokens: &OrderTokens,
        (queries, passages, sentences): (&Table, &Table, Option<&Table>),
        needed: BTreeSet<TextRow>,
    ) -> Result<Self, TaskError> {
        let folder = model_folder(bench, &tokens.tokenizer)?;
        let tokenizer = Tokenizer::open(&folder, usize::MAX).map_err(TaskError::input)?;
        let path = bench.scratch("tokens");
        let file = File::options().create(true).truncate(true).read(true).write(true).open(&path);
        let file = file.map_err(Workbench::scratch_error(&path))?;
        let mut writer = BufWriter::new(file);
        let (mut places, mut offset) = (BTreeMap::new(), 0u64);
        let total = u64::from(passages.shards + queries.shards);
        let mut add = |rows: Vec<(TextRow, String)>, input: &TextInput| -> Result<(), TaskError> {
            let rows: Vec<_> = rows.into_iter().filter(|(row, _)| needed.contains(row)).collect();
            let texts: Vec<_> = rows.iter().map(|(_, text)| format!("{}{text}", input.prefix)).collect();
            let ids = tokenizer.encode_all(&texts, input.max_tokens as usize, bench.threads);
            for ((row, _), ids) in rows.iter().zip(ids.map_err(TaskError::input)?) {
                let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
                writer.write_all(&bytes).map_err(Workbench::scratch_error(&path))?;
                places.insert(*row, (offset, ids.len() as u32));
                offset += bytes.len() as u64;
            }
            Ok(())
        };
        for shard in 0..passages.shards {
            bench.go_on()?;
            let rows = bench.passages(passages, shard)?;
            let texts = (rows.first_row..).zip(0..rows.ids.len());
            add(
                texts.map(|(row, i)| (TextRow::Passage(row), rows.model_text(i))).collect(),
                &tokens.passage,
            )?;
            bench.progress.progress(u64::from(shard) + 1, total, "tokens");
        }
        let asked = [(Some(queries), TextRow::Query as fn(u64) -> TextRow), (sentences, TextRow::Sentence)];
        for (table, kind) in asked.into_iter().filter_map(|(table, kind)| Some((table?, kind))) {
            for shard in 0..table.shards {
                bench.go_on()?;
                let rows = bench.queries(table, shard)?;
                let texts = (rows.first_row..).zip(rows.texts);
                add(texts.map(|(row, text)| (kind(row), text)).collect(), &tokens.query)?;
            }
        }
        let file = writer
            .into_inner()
            .map_err(|error| error.into_error())
            .map_err(Workbench::scratch_error(&path))?;
        Ok(Self { file, path, places })
    }

    fn get(&self, row: TextRow) -> Result<Vec<u32>, TaskError> {
        let (offset, length) = self.places.get(&row).expect("every text of the order was gathered");
        let mut bytes = vec![0; *length as usize * 4];
        self.file.read_exact_at(&mut bytes, *offset).map_err(Workbench::scratch_error(&self.path))?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|chunk| u32::from_le_bytes(*chunk)).collect())
    }
}

fn write_part(
    path: &std::path::Path,
    rows: impl Iterator<Item = (Vec<TextRow>, Vec<u64>)>,
    width: u64,
    store: Option<&TokenStore>,
) -> Result<(), TaskError> {
    let (mut texts, mut known, mut known_ends) = (Vec::new(), Vec::new(), Vec::new());
    let (mut ids, mut ends) = (Vec::new(), Vec::new());
    for (row, positives) in rows {
        for text in row {
            texts.push(text.encode());
            if let Some(store) = store {
                ids.extend(store.get(text)?);
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
    artifact: &'a retort_common::task::ArtifactId,
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
    pub fn open(
        bench: &'a Workbench<'a>,
        artifact: &'a retort_common::task::ArtifactId,
    ) -> Result<Self, TaskError> {
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

    #[test]
    fn a_sentence_asks_for_its_own_passage_and_each_comes_once_a_round() {
        let origins = vec![4, 4, 9, 2];
        let candidates = Samples { per_row: 2, rows: 10, seed: 3 };
        let questions = Samples { per_row: 1, rows: 4, seed: 5 };
        let asked = Unlabelled { questions, origins: Some(origins.clone()), candidates };
        let mut seen: Vec<_> = (0..4)
            .map(|place| {
                let texts = asked.at(place);
                let TextRow::Sentence(sentence) = texts[0] else { panic!("no sentence: {texts:?}") };
                assert_eq!(texts[1], TextRow::Passage(origins[sentence as usize]));
                assert!(texts[2..].iter().all(|text| matches!(text, TextRow::Passage(_))));
                assert_eq!(texts.len(), 4);
                sentence
            })
            .collect();
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2, 3]);
    }

    #[test]
    fn a_passage_that_asks_has_as_many_candidates_as_a_question() {
        let (rows, seed) = (10, 3);
        let questions = Samples { per_row: 5, rows, seed };
        let asked = Unlabelled { questions, origins: None, candidates: Samples { per_row: 0, rows, seed } };
        let texts: BTreeSet<_> = asked.at(0).into_iter().chain(asked.at(1)).collect();
        assert_eq!(texts, (0..rows).map(TextRow::Passage).collect());
    }

    #[test]
    fn rows_without_labels_are_spread_evenly_and_none_is_left_out() {
        for (batch, unlabelled) in [(8, 0), (8, 4), (8, 3), (7, 6), (256, 100)] {
            let mix = Mix { batch, unlabelled };
            let places: Vec<_> = (0..3 * batch).map(|position| mix.place(position)).collect();
            let numbers =
                |wanted: fn(&Place) -> Option<u64>| places.iter().filter_map(wanted).collect::<Vec<_>>();
            let labelled = numbers(|place| if let Place::Labelled(at) = place { Some(*at) } else { None });
            let others = numbers(|place| if let Place::Unlabelled(at) = place { Some(*at) } else { None });
            assert_eq!(labelled, (0..3 * (batch - unlabelled)).collect::<Vec<_>>());
            assert_eq!(others, (0..3 * unlabelled).collect::<Vec<_>>());
            let half =
                places[..batch as usize / 2].iter().filter(|place| matches!(place, Place::Unlabelled(_)));
            assert!(half.count().abs_diff(unlabelled as usize / 2) <= 1);
        }
    }
}
