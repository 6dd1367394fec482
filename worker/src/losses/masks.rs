//! Which candidates count for which query: each passage once, and no known positive as a negative.

use super::{Batch, Scalar};

/// Columns of a batch that repeat an earlier one.
pub(super) struct Columns<'a> {
    rows: &'a [u64],
    listed: usize,
    /// [M] an earlier column of the batch is the same passage.
    repeated: Vec<bool>,
    /// [M] an earlier column of the same query's list is the same passage.
    repeated_in_list: Vec<bool>,
}

impl<'a> Columns<'a> {
    pub fn of<T: Scalar>(batch: &Batch<'a, T>) -> Self {
        let listed = batch.listed();
        let lists = batch.passage_rows.chunks(listed);
        Self {
            rows: batch.passage_rows,
            listed,
            repeated: repeats(batch.passage_rows),
            repeated_in_list: lists.flat_map(repeats).collect(),
        }
    }

    /// Candidates of `query` that count once: a passage's first column, or the own positive's column.
    pub fn distinct(&self, query: usize, whole_batch: bool, keep: &mut Vec<bool>) {
        let first = query * self.listed;
        let own = self.rows[first];
        let (from, to) = if whole_batch { (0, self.rows.len()) } else { (first, first + self.listed) };
        let repeated = if whole_batch { &self.repeated } else { &self.repeated_in_list };
        keep.clear();
        keep.extend((from..to).map(|j| j == first || (!repeated[j] && self.rows[j] != own)));
    }

    /// As `distinct`, without the other passages known to be relevant. Returns how many were left out.
    pub fn negatives(&self, query: usize, known: &[u64], whole_batch: bool, keep: &mut Vec<bool>) -> u64 {
        self.distinct(query, whole_batch, keep);
        let first = query * self.listed;
        let from = if whole_batch { 0 } else { first };
        for (at, kept) in keep.iter_mut().enumerate() {
            let j = from + at;
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
        // Three queries of two candidates; passage 7 is the positive of queries 0 and 2 and listed for 1.
        let rows = [7, 3, 5, 7, 7, 3];
        let known = [vec![5, 7], vec![5], vec![7]];
        let batch = Batch::<f32> {
            dim: 1,
            queries: &[0.0; 3],
            passages: &[0.0; 6],
            query_rows: &[0, 1, 2],
            passage_rows: &rows,
            known_positives: &known,
            teacher: Teacher::None,
        };
        let columns = Columns::of(&batch);
        let check = |query: usize, whole: bool, want: &[u8]| {
            let mut keep = Vec::new();
            let masked = columns.negatives(query, &known[query], whole, &mut keep);
            assert_eq!(keep.iter().map(|k| u8::from(*k)).collect::<Vec<_>>(), want, "query {query}");
            assert_eq!(masked as usize, want.iter().filter(|k| **k == 0).count());
        };
        check(0, true, &[1, 1, 0, 0, 0, 0]);
        check(1, true, &[1, 1, 1, 0, 0, 0]);
        check(2, true, &[0, 1, 1, 0, 1, 0]);
        check(1, false, &[1, 1]);
        let mut keep = Vec::new();
        columns.distinct(0, true, &mut keep);
        assert_eq!(keep, [true, true, true, false, false, false]);
    }
}
