//! How many of the pairs that a phase learns from have a score that the training sets bring.

use super::source::Question;
use crate::tasks::pairs::PairTable;
use crate::tasks::{TaskError, Workbench};
use retort_common::task::Table;
use std::collections::HashSet;

/// Pairs of training questions with their positives and negatives, and what cannot be learnt from.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Scored {
    /// All pairs.
    pub pairs: u64,
    /// Those without a score, which losses leave out.
    pub unscored: u64,
    /// Questions without a scored positive or without a scored negative: there is nothing to compare.
    pub idle: HashSet<u64>,
}

impl Scored {
    fn count(table: &PairTable, rows: &[Question]) -> Self {
        let mut counted = Self::default();
        for question in rows {
            let scored =
                |list: &[u64]| list.iter().filter(|row| table.get(question.row, **row).is_some()).count();
            let (positives, negatives) = (scored(&question.positives), scored(&question.negatives));
            let pairs = question.positives.len() + question.negatives.len();
            counted.pairs += pairs as u64;
            counted.unscored += (pairs - positives - negatives) as u64;
            if positives == 0 || negatives == 0 {
                counted.idle.insert(question.row);
            }
        }
        counted
    }
}

/// Counts the scored pairs of the training questions. A set that has nothing to compare is an error: students would
/// not learn from it, and nothing would say so.
pub(super) fn scored(
    bench: &Workbench<'_>,
    queries: &Table,
    sets: &[String],
    rows: &[Question],
) -> Result<Scored, TaskError> {
    let table = PairTable::read(bench, std::slice::from_ref(&queries.artifact))?;
    let counted = Scored::count(&table, rows);
    let judgements = bench.judgements(queries, sets)?;
    for set in sets {
        let mut asked = judgements.iter().filter(|judged| judged.set == *set && judged.grade > 0).peekable();
        if asked.peek().is_some() && asked.all(|judged| counted.idle.contains(&judged.query)) {
            return Err(TaskError::Input(format!(
                "signal = \"given\": no question of set {set:?} has a score of a positive and one of a negative to compare: \
                 take the negatives that the files bring (mining.from = [\"given\"], or the phase's negatives_from), or signal = \"cross-encoder\""
            )));
        }
    }
    if counted.unscored > 0 {
        bench.progress.log(&format!(
            "signal = \"given\": {} of {} pairs have no score and are left out; {} of {} questions have nothing to compare",
            counted.unscored,
            counted.pairs,
            counted.idle.len(),
            rows.len()
        ));
    }
    Ok(counted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::NegativeRow;

    #[test]
    fn questions_need_two_scores_and_pairs_without_one_are_counted() {
        let pair = |query, passage| NegativeRow { query, passage, score: 1.0 };
        let pairs = vec![pair(1, 10), pair(1, 11), pair(2, 20), pair(9, 30), pair(4, 40), pair(4, 41)];
        let table = PairTable::new(pairs).unwrap();
        let question = |row, positives: &[u64], negatives: &[u64]| Question {
            row,
            positives: positives.to_vec(),
            negatives: negatives.to_vec(),
        };
        let rows = [
            question(1, &[10], &[11, 12]),
            question(2, &[20], &[21]),
            question(3, &[30], &[]),
            question(4, &[40, 41], &[42]),
        ];
        let expected = Scored { pairs: 9, unscored: 4, idle: HashSet::from([2, 3, 4]) };
        assert_eq!(Scored::count(&table, &rows), expected);
    }
}
