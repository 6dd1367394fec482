//! Which candidates count for which query: each passage once, and no known positive as a negative.

use super::{Batch, Scalar, Scope};
use std::ops::Range;

/// Columns of a batch that repeat an earlier one.
pub(super) struct Columns<'a> {
    rows: &'a [u64],
    /// Columns of a query, of a microbatch, of the batch.
    widths: [usize; 3],
    /// For each of these spans [M]: an earlier column of the same span is the same passage.
    repeated: [Vec<bool>; 3],
}

impl<'a> Columns<'a> {
    pub fn of<T: Scalar>(batch: &Batch<'a, T>) -> Self {
        let (rows, listed) = (batch.passage_rows, batch.listed());
        let widths = [listed, listed * batch.microbatch, rows.len()];
        let repeated = widths.map(|width| rows.chunks(width).flat_map(repeats).collect());
        Self { rows, widths, repeated }
    }

    /// The columns that `scope` gives a query.
    pub fn span(&self, query: usize, scope: Scope) -> Range<usize> {
        let width = self.widths[scope as usize];
        let start = query * self.widths[0] / width * width;
        start..start + width
    }

    /// Candidates of `query` that count once: a passage's first column, or the own positive's column. `keep`
    /// covers the columns of [`Self::span`].
    pub fn distinct(&self, query: usize, scope: Scope, keep: &mut Vec<bool>) {
        let first = query * self.widths[0];
        let own = self.rows[first];
        let repeated = &self.repeated[scope as usize];
        keep.clear();
        keep.extend(self.span(query, scope).map(|j| j == first || (!repeated[j] && self.rows[j] != own)));
    }

    /// As `distinct`, without the other passages known to be relevant. Returns how many were left out.
    pub fn negatives(&self, query: usize, known: &[u64], scope: Scope, keep: &mut Vec<bool>) -> u64 {
        self.distinct(query, scope, keep);
        let first = query * self.widths[0];
        for (j, kept) in self.span(query, scope).zip(keep.iter_mut()) {
            *kept = *kept && (j == first || known.binary_search(&self.rows[j]).is_err());
        }
        keep.iter().filter(|kept| !**kept).count() as u64
    }
}

/// For each row, whether an earlier position holds the same one.
fn repeats(rows: &[u64]) -> Vec<bool> {
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_key(|&j| (rows[j], j));
    let mut repeated = vec![false; rows.len()];
    order.windows(2).for_each(|pair| repeated[pair[1]] = rows[pair[0]] == rows[pair[1]]);
    repeated
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::losses::Teacher;

    #[test]
    fn known_positives_and_duplicates_do_not_count() {
        // Four queries of two candidates; passage 7 is the positive of queries 0 and 2 and listed for 1.
        let rows = [7, 3, 5, 7, 7, 3, 9, 9];
        let known = [vec![5, 7], vec![5], vec![7], vec![9]];
        let batch = Batch::<f32> {
            dim: 1,
            microbatch: 2,
            queries: &[0.0; 4],
            passages: &[0.0; 8],
            query_rows: &[0, 1, 2, 3],
            passage_rows: &rows,
            known_positives: &known,
            teacher: Teacher::None,
        };
        let columns = Columns::of(&batch);
        let check = |query: usize, scope, span: Range<usize>, want: &[u8]| {
            let mut keep = Vec::new();
            let masked = columns.negatives(query, &known[query], scope, &mut keep);
            assert_eq!(columns.span(query, scope), span);
            assert_eq!(keep.iter().map(|k| u8::from(*k)).collect::<Vec<_>>(), want, "query {query}");
            assert_eq!(masked as usize, want.iter().filter(|k| **k == 0).count());
        };
        check(0, Scope::Batch, 0..8, &[1, 1, 0, 0, 0, 0, 1, 0]);
        check(1, Scope::Batch, 0..8, &[1, 1, 1, 0, 0, 0, 1, 0]);
        check(2, Scope::Batch, 0..8, &[0, 1, 1, 0, 1, 0, 1, 0]);
        check(2, Scope::Microbatch, 4..8, &[1, 1, 1, 0]);
        check(1, Scope::Microbatch, 0..4, &[1, 1, 1, 0]);
        check(1, Scope::Listed, 2..4, &[1, 1]);
        check(3, Scope::Listed, 6..8, &[1, 0]);
        let mut keep = Vec::new();
        columns.distinct(0, Scope::Batch, &mut keep);
        assert_eq!(keep, [true, true, true, false, false, false, true, false]);
    }
}
