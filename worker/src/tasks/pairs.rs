//! Scores of single pairs of question and passage, by row.

use super::bench::{TaskError, Workbench};
use super::score::SCORES;
use crate::tables::{NegativeRow, read_negatives};
use retort_common::task::ArtifactId;

/// Scores by question and passage. It takes 12 bytes a pair and 16 a question; while it is made, the rows of the tables and
/// their sorting take some 50 more a pair.
#[derive(Debug, Default)]
pub struct PairTable {
    /// The questions' rows, rising.
    queries: Vec<u64>,
    /// Where the pairs of each question end.
    ends: Vec<usize>,
    /// The passages' rows, rising within a question.
    passages: Vec<u64>,
    scores: Vec<f32>,
}

impl PairTable {
    /// Reads the tables of some artifacts. Of a pair that stands in several places the first score counts.
    pub fn read(bench: &Workbench<'_>, artifacts: &[ArtifactId]) -> Result<Self, TaskError> {
        let mut pairs = Vec::new();
        for artifact in artifacts {
            bench.go_on()?;
            pairs.extend(read_negatives(&bench.part(artifact, SCORES)?)?);
        }
        Self::new(pairs)
    }

    /// The same of pairs in memory. A score that is not finite in 32 bits is an error that names its rows.
    pub fn new(mut pairs: Vec<NegativeRow>) -> Result<Self, TaskError> {
        if let Some(NegativeRow { query, passage, score }) =
            pairs.iter().find(|pair| !(pair.score as f32).is_finite())
        {
            return Err(TaskError::Input(format!(
                "the score of question row {query} and passage row {passage} is {score}, which is not finite; correct or \
                 leave out the pair"
            )));
        }
        // The sort is stable: of equal pairs the first one stays.
        pairs.sort_by_key(|pair| (pair.query, pair.passage));
        pairs.dedup_by_key(|pair| (pair.query, pair.passage));
        let mut table = Self::default();
        for NegativeRow { query, passage, score } in pairs {
            if table.queries.last() != Some(&query) {
                table.queries.push(query);
                table.ends.push(table.passages.len());
            }
            table.passages.push(passage);
            table.scores.push(score as f32);
            *table.ends.last_mut().expect("its question was added") += 1;
        }
        Ok(table)
    }

    /// The score of a pair, where it has one.
    pub fn get(&self, query: u64, passage: u64) -> Option<f32> {
        let at = self.queries.binary_search(&query).ok()?;
        let first = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        let own = first..self.ends[at];
        let at = self.passages[own.clone()].binary_search(&passage).ok()?;
        Some(self.scores[own][at])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(pairs: &[(u64, u64, f64)]) -> Result<PairTable, TaskError> {
        let row = |(query, passage, score): &(u64, u64, f64)| NegativeRow {
            query: *query,
            passage: *passage,
            score: *score,
        };
        PairTable::new(pairs.iter().map(row).collect())
    }

    #[test]
    fn pairs_have_their_first_score_and_others_none() {
        let table = table(&[(7, 2, 0.5), (3, 9, -1.0), (7, 1, 4.0), (7, 2, 8.0), (3, 0, 0.0)]).unwrap();
        for (query, passage, expected) in [
            (7, 2, Some(0.5)),
            (7, 1, Some(4.0)),
            (3, 9, Some(-1.0)),
            (3, 0, Some(0.0)),
            (3, 1, None),
            (7, 9, None),
            (5, 2, None),
        ] {
            assert_eq!(table.get(query, passage), expected, "{query} {passage}");
        }
        assert_eq!(PairTable::default().get(0, 0), None);
    }

    #[test]
    fn a_score_that_is_no_number_is_named() {
        for score in [f64::NAN, f64::INFINITY, 1e300] {
            let message = table(&[(1, 2, 0.5), (3, 4, score)]).unwrap_err().to_string();
            assert!(message.contains("question row 3 and passage row 4"), "{message}");
        }
    }
}
