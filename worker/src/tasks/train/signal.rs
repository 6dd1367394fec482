//! What a training learns from, and what that says of the texts of a step.

use super::super::bench::{TaskError, Workbench};
use super::super::order::TextRow;
use super::super::pairs::PairTable;
use super::trainer::CachedVectors;
use crate::losses::{Teacher, TeacherKind};
use crate::matrix::Matrix;
use retort_common::task::Signal;
use std::rc::Rc;

/// Where the signal is looked up. Every member of a cohort has all of it, since each computes the whole loss.
pub(super) enum SignalSource {
    /// Vectors of all texts.
    Vectors(Rc<CachedVectors>),
    /// Scores of some pairs.
    Scores(PairTable),
}

/// What the signal says of a step.
pub(super) enum Said {
    /// Vectors of the questions and of the passages.
    Vectors(Matrix, Matrix),
    /// A score for each listed passage, 0 where it has none, and which have one.
    Scores(Vec<f32>, Vec<bool>),
}

impl SignalSource {
    pub(super) fn open(bench: &Workbench<'_>, signal: &Signal) -> Result<Self, TaskError> {
        Ok(match signal {
            Signal::Vectors(set) => Self::Vectors(Rc::new(CachedVectors::open(bench, set)?)),
            Signal::Scores(tables) => Self::Scores(PairTable::read(bench, &tables.scores)?),
        })
    }

    /// What losses may ask of it.
    pub(super) fn kind(&self) -> TeacherKind {
        match self {
            Self::Vectors(vectors) => TeacherKind::Vectors { dim: vectors.dim() },
            Self::Scores(_) => TeacherKind::Scores,
        }
    }

    /// What it says of questions and their passages, as many for each question.
    pub(super) fn says(&self, questions: &[TextRow], passages: &[TextRow]) -> Result<Said, TaskError> {
        let table = match self {
            Self::Vectors(vectors) => {
                return Ok(Said::Vectors(vectors.gather(questions)?, vectors.gather(passages)?));
            }
            Self::Scores(table) => table,
        };
        let listed = passages.len() / questions.len().max(1);
        let own = passages.chunks(listed.max(1)).zip(questions);
        let scores = own.flat_map(|(passages, question)| passages.iter().map(|row| (*question, *row)));
        let score = |pair| match pair {
            (TextRow::Query(query), TextRow::Passage(passage)) => table.get(query, passage),
            // Passages and sentences that ask have been scored by nobody.
            _ => None,
        };
        let scores: Vec<Option<f32>> = scores.map(score).collect();
        let scored = scores.iter().map(Option::is_some).collect();
        Ok(Said::Scores(scores.into_iter().map(Option::unwrap_or_default).collect(), scored))
    }
}

impl Said {
    /// As losses read it.
    pub(super) fn teacher(&self) -> Teacher<'_, f32> {
        match self {
            Self::Vectors(queries, passages) => {
                Teacher::Vectors { dim: queries.dim(), queries: queries.data(), passages: passages.data() }
            }
            Self::Scores(listed, scored) => Teacher::Scores { listed, scored },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::NegativeRow;
    use TextRow::{Passage, Query, Sentence};

    #[test]
    fn listed_passages_have_the_scores_of_their_own_questions() {
        let pair = |query, passage, score| NegativeRow { query, passage, score };
        let pairs = vec![pair(4, 1, 2.5), pair(4, 2, -1.0), pair(9, 1, 0.0), pair(9, 3, 7.0)];
        let signal = SignalSource::Scores(PairTable::new(pairs).unwrap());
        assert_eq!(signal.kind(), TeacherKind::Scores);
        let passages = [1, 2, 3, 3, 1, 2, 1, 2, 3].map(Passage);
        let said = signal.says(&[Query(4), Query(9), Sentence(4)], &passages).unwrap();
        let Teacher::Scores { listed, scored } = said.teacher() else { panic!("they are no scores") };
        assert_eq!(listed, [2.5, -1.0, 0.0, 7.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(scored, [true, true, false, true, true, false, false, false, false]);
    }
}
