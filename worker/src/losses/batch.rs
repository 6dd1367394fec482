//! The gathered global batch that a loss is a function of, and the check of its shapes.

use super::{Scalar, TeacherKind};

/// A global batch in microbatch order: B queries and M = B·c passages, c candidates per query.
///
/// Query i's own candidates are passages i·c .. (i+1)·c, the first of them its positive.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a, T> {
    /// Components of a student vector, d.
    pub dim: usize,
    /// Queries in a microbatch; it divides B.
    pub microbatch: usize,
    /// Query vectors [B, d], unnormalised.
    pub queries: &'a [T],
    /// Passage vectors [M, d], unnormalised.
    pub passages: &'a [T],
    /// The queries' rows in the data [B]; they name queries in errors.
    pub query_rows: &'a [u64],
    /// The passages' rows in the corpus [M]; equal rows are duplicates.
    pub passage_rows: &'a [u64],
    /// Per query, the rows of all passages known to be relevant, ascending.
    pub known_positives: &'a [Vec<u64>],
    /// What the teacher says.
    pub teacher: Teacher<'a, T>,
}

/// The teacher's view of a batch.
#[derive(Clone, Copy, Debug)]
pub enum Teacher<'a, T> {
    /// No teacher.
    None,
    /// Vectors of everything: any pair has a score.
    Vectors {
        /// Components of a teacher vector, t.
        dim: usize,
        /// Query vectors [B, t].
        queries: &'a [T],
        /// Passage vectors [M, t].
        passages: &'a [T],
    },
    /// Scores of listed candidates.
    Scores {
        /// Score of each query's candidates [B·c].
        listed: &'a [T],
        /// Which of them were scored [B·c]; the others are left out of the loss. A mask instead of NaN,
        /// so that a NaN is still seen as the fault it is.
        scored: &'a [bool],
    },
}

/// A batch whose parts do not fit together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    #[error("batch has no queries: give at least one")]
    Empty,
    #[error("batch {part} hold {got} values, {want} are needed: check how the batch was gathered")]
    Length { part: &'static str, got: usize, want: usize },
    #[error("batch of {queries} queries has {passages} passages: give every query as many candidates")]
    UnevenCandidates { queries: usize, passages: usize },
    #[error("batch of {queries} queries is not cut into microbatches of {microbatch}: make them of one size")]
    UnevenMicrobatches { queries: usize, microbatch: usize },
    #[error("known positives of query row {query} are not ascending: sort them")]
    UnsortedPositives { query: u64 },
}

impl<T: Scalar> Batch<'_, T> {
    /// Number of queries, B.
    pub fn len(&self) -> usize {
        self.query_rows.len()
    }

    /// Whether there are no queries; such a batch has no loss.
    pub fn is_empty(&self) -> bool {
        self.query_rows.is_empty()
    }

    /// Candidates per query, c.
    pub fn listed(&self) -> usize {
        self.passage_rows.len() / self.len().max(1)
    }

    /// Checks that all parts have the lengths they must have.
    pub fn check(&self) -> Result<(), BatchError> {
        let (b, m) = (self.len(), self.passage_rows.len());
        if b == 0 || self.dim == 0 {
            return Err(BatchError::Empty);
        }
        if m == 0 || m % b != 0 {
            return Err(BatchError::UnevenCandidates { queries: b, passages: m });
        }
        if self.microbatch == 0 || b % self.microbatch != 0 {
            return Err(BatchError::UnevenMicrobatches { queries: b, microbatch: self.microbatch });
        }
        expect_len("query vectors", self.queries.len(), b * self.dim)?;
        expect_len("passage vectors", self.passages.len(), m * self.dim)?;
        expect_len("known positives", self.known_positives.len(), b)?;
        for (query, known) in self.query_rows.iter().zip(self.known_positives) {
            if !known.is_sorted() {
                return Err(BatchError::UnsortedPositives { query: *query });
            }
        }
        match self.teacher {
            Teacher::None => Ok(()),
            Teacher::Vectors { dim, queries, passages } => {
                expect_len("teacher query vectors", queries.len(), b * dim)?;
                expect_len("teacher passage vectors", passages.len(), m * dim)
            }
            Teacher::Scores { listed, scored } => {
                expect_len("teacher scores", listed.len(), m)?;
                expect_len("teacher score masks", scored.len(), m)
            }
        }
    }
}

impl<T> Teacher<'_, T> {
    /// What this teacher can give.
    pub fn kind(&self) -> TeacherKind {
        match self {
            Teacher::None => TeacherKind::None,
            Teacher::Vectors { dim, .. } => TeacherKind::Vectors { dim: *dim },
            Teacher::Scores { .. } => TeacherKind::Scores,
        }
    }
}

fn expect_len(part: &'static str, got: usize, want: usize) -> Result<(), BatchError> {
    if got == want { Ok(()) } else { Err(BatchError::Length { part, got, want }) }
}
