//! What the rows of a phase are drawn from, and how those without labels stand among the others.

use super::TextRow;
use super::scored::scored;
use crate::mining::Permutation;
use crate::tables::read_negatives;
use crate::tasks::mine::NEGATIVES;
use crate::tasks::shard::origins;
use crate::tasks::{TaskError, Workbench};
use retort_common::task::{Table, Task};
use serde_json::json;
use std::collections::BTreeMap;

/// How rows without labels stand among the others: evenly, so that every microbatch has its share.
#[derive(Clone, Copy)]
pub(super) struct Mix {
    /// Rows of a step.
    pub batch: u64,
    /// How many of them have no label.
    pub unlabelled: u64,
}

/// A row's number among its own kind.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    Labelled(u64),
    Unlabelled(u64),
}

impl Mix {
    pub fn place(self, position: u64) -> Place {
        let (step, slot) = (position / self.batch, position % self.batch);
        let before = slot * self.unlabelled / self.batch;
        match (slot + 1) * self.unlabelled / self.batch > before {
            true => Place::Unlabelled(step * self.unlabelled + before),
            false => Place::Labelled(step * (self.batch - self.unlabelled) + slot - before),
        }
    }
}

/// What the rows of a phase are drawn from.
pub(super) enum Source {
    /// Every passage, then every sentence, then every training question.
    Texts { passages: u64, sentences: u64, queries: Vec<u64> },
    /// Training questions with their positives and negatives.
    Questions { rows: Vec<Question>, negatives: usize, samples: Samples, asked: Option<Unlabelled> },
}

/// What rows without labels are drawn from.
pub(super) struct Unlabelled {
    /// The questions: sentences, or passages where there are none.
    questions: Samples,
    /// The passage of each sentence, which stands in the positive's place.
    origins: Option<Vec<u64>>,
    /// What stands for negatives, and for the positive where the question is a passage.
    candidates: Samples,
}

/// Rows drawn from a whole table: seeded permutations of it, one after the other.
pub(super) struct Samples {
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

pub(super) struct Question {
    pub row: u64,
    pub positives: Vec<u64>,
    pub negatives: Vec<u64>,
}

impl Source {
    pub fn texts(passages: u64, sentences: Option<&Table>, positives: &BTreeMap<u64, Vec<u64>>) -> Self {
        let sentences = sentences.map_or(0, |table| table.rows);
        Source::Texts { passages, sentences, queries: positives.keys().copied().collect() }
    }

    pub fn questions(
        bench: &Workbench<'_>,
        task: &Task,
        positives: BTreeMap<u64, Vec<u64>>,
    ) -> Result<(Self, serde_json::Value), TaskError> {
        let Task::Order {
            negatives,
            negatives_per_row,
            corpus_samples,
            given_scores,
            queries,
            sets,
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
        let mut counts = json!({ "questions": rows.len(), "short_of_negatives": short });
        if *given_scores {
            let scored = scored(bench, queries, sets, &rows)?;
            counts["pairs"] = scored.pairs.into();
            counts["pairs_without_score"] = scored.unscored.into();
            counts["questions_without_comparison"] = scored.idle.len().into();
        }
        // Another seed than the order's own, which permutes the questions.
        let samples = Samples { per_row: u64::from(*corpus_samples), rows: passages.rows, seed: !*seed };
        let asked = match (*unlabelled > 0, sentences) {
            (false, _) => None,
            (true, sentences) => Some(Unlabelled::new(bench, passages, sentences.as_ref(), (*seed, wanted))?),
        };
        Ok((Source::Questions { rows, negatives: wanted, samples, asked }, counts))
    }

    pub fn len(&self) -> u64 {
        match self {
            Source::Texts { passages, sentences, queries } => passages + sentences + queries.len() as u64,
            Source::Questions { rows, .. } => rows.len() as u64,
        }
    }

    /// Texts in a row.
    pub fn width(&self) -> u64 {
        match self {
            Source::Texts { .. } => 1,
            Source::Questions { negatives, samples, .. } => 2 + *negatives as u64 + samples.per_row,
        }
    }

    /// Passes over the data after which no new text can come.
    pub fn variety(&self) -> u64 {
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
    pub fn unlabelled(&self, place: u64, position: u64) -> (Vec<TextRow>, Vec<u64>) {
        match self {
            Source::Questions { samples, asked: Some(asked), .. } => {
                (asked.at(place).into_iter().chain(samples.passages(position)).collect(), Vec::new())
            }
            _ => unreachable!("only rows of questions are mixed, and those that are know what with"),
        }
    }

    /// The texts of a row in some epoch, and its known positives. Positives and negatives take turns.
    pub fn row(&self, at: u64, epoch: u64, position: u64) -> (Vec<TextRow>, Vec<u64>) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

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
