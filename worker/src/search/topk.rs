//! Bounded top-k accumulators, one a query, and the total order of hits that every ranked list follows.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// A passage and its score for one query.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hit {
    /// Row number in the corpus table.
    pub row: u64,
    /// The retriever's score; higher is better.
    pub score: f32,
}

impl Hit {
    /// Best first: the higher score, then the lower row. `-0.0` equals `0.0`. A `NaN`, which no
    /// accumulator lets in, comes last.
    pub fn rank_order(&self, other: &Self) -> Ordering {
        other
            .score
            .partial_cmp(&self.score)
            .unwrap_or_else(|| self.score.is_nan().cmp(&other.score.is_nan()))
            .then(self.row.cmp(&other.row))
    }
}

/// Why a hit or a merge is refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TopKError {
    /// A score that cannot be ordered.
    #[error("score of query {query} and row {row} is not a number: check the vectors for NaN or overflow")]
    NotANumber {
        /// Index of the query in the accumulator.
        query: usize,
        /// Row of the passage.
        row: u64,
    },
    /// Accumulators of different searches.
    #[error("cannot merge top-{other_k} of {other_queries} queries into top-{k} of {queries}")]
    Shape {
        /// Queries of the receiving accumulator.
        queries: usize,
        /// Depth of the receiving accumulator.
        k: usize,
        /// Queries of the accumulator merged in.
        other_queries: usize,
        /// Depth of the accumulator merged in.
        other_k: usize,
    },
}

/// A hit ordered so that a max-heap has the worst one on top.
#[derive(Clone, Copy, Debug)]
struct WorstFirst(Hit);

impl Ord for WorstFirst {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.rank_order(&other.0)
    }
}

impl PartialOrd for WorstFirst {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for WorstFirst {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for WorstFirst {}

/// The best `k` hits of one query. Holds at most `k` hits at any time.
#[derive(Clone, Debug)]
pub(super) struct Best {
    k: usize,
    heap: BinaryHeap<WorstFirst>,
}

impl Best {
    fn new(k: usize) -> Self {
        Self { k, heap: BinaryHeap::new() }
    }

    /// The score below which no hit enters: the worst kept one, once there are `k`.
    pub(super) fn threshold(&self) -> f32 {
        match self.heap.peek() {
            Some(worst) if self.heap.len() >= self.k => worst.0.score,
            Some(_) => f32::NEG_INFINITY,
            None if self.k == 0 => f32::INFINITY,
            None => f32::NEG_INFINITY,
        }
    }

    /// Offers a hit whose score is a number.
    pub(super) fn offer(&mut self, mut hit: Hit) {
        // One zero, so that equal lists are equal in their bits too.
        hit.score += 0.0;
        if self.heap.len() < self.k {
            self.heap.push(WorstFirst(hit));
        } else if let Some(mut worst) = self.heap.peek_mut()
            && hit.rank_order(&worst.0) == Ordering::Less
        {
            *worst = WorstFirst(hit);
        }
    }

    fn into_ranked(self) -> Vec<Hit> {
        self.heap.into_sorted_vec().into_iter().map(|kept| kept.0).collect()
    }
}

/// The best `k` hits of each of a batch of queries, in at most `queries * k` hits of memory.
///
/// Every row is offered at most once to a query, over all accumulators that are merged; then the result
/// does not depend on the order of the offers nor on how they were split.
#[derive(Clone, Debug)]
pub struct TopK {
    k: usize,
    best: Vec<Best>,
}

impl TopK {
    /// Empty accumulators for `queries` queries.
    pub fn new(queries: usize, k: usize) -> Self {
        Self { k, best: vec![Best::new(k); queries] }
    }

    /// Empty accumulators of the same shape.
    pub fn like(&self) -> Self {
        Self::new(self.queries(), self.k)
    }

    /// Number of queries.
    pub fn queries(&self) -> usize {
        self.best.len()
    }

    /// Depth of the lists.
    pub fn k(&self) -> usize {
        self.k
    }

    /// The score below which a hit cannot enter the list of `query`; minus infinity until it is full.
    pub fn threshold(&self, query: usize) -> f32 {
        self.best[query].threshold()
    }

    /// Offers a hit to `query`.
    ///
    /// # Errors
    /// When the score is `NaN`.
    ///
    /// # Panics
    /// When `query` is not below [`queries`](Self::queries).
    pub fn push(&mut self, query: usize, hit: Hit) -> Result<(), TopKError> {
        if hit.score.is_nan() {
            return Err(TopKError::NotANumber { query, row: hit.row });
        }
        self.best[query].offer(hit);
        Ok(())
    }

    /// Takes in the hits of another part of the corpus for the same queries.
    ///
    /// # Errors
    /// When the two differ in queries or in `k`.
    pub fn merge(&mut self, other: Self) -> Result<(), TopKError> {
        if (self.queries(), self.k) != (other.queries(), other.k) {
            return Err(TopKError::Shape {
                queries: self.queries(),
                k: self.k,
                other_queries: other.queries(),
                other_k: other.k,
            });
        }
        for (mine, theirs) in self.best.iter_mut().zip(other.best) {
            theirs.heap.into_iter().for_each(|kept| mine.offer(kept.0));
        }
        Ok(())
    }

    /// The ranked list of every query, best first, each of at most `k` hits.
    pub fn into_ranked(self) -> Vec<Vec<Hit>> {
        self.best.into_iter().map(Best::into_ranked).collect()
    }

    /// The accumulators themselves, so that a scan can share them out between threads.
    pub(super) fn best_mut(&mut self) -> &mut [Best] {
        &mut self.best
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn collect(hits: &[Hit], k: usize) -> TopK {
        let mut top = TopK::new(1, k);
        hits.iter().for_each(|hit| top.push(0, *hit).unwrap());
        top
    }

    fn check(scores: &[f32], k: usize, expected_rows: &[u64]) {
        let hits: Vec<_> =
            scores.iter().enumerate().map(|(row, score)| Hit { row: row as u64, score: *score }).collect();
        let forward: Vec<_> = collect(&hits, k).into_ranked()[0].iter().map(|hit| hit.row).collect();
        assert_eq!(forward, expected_rows, "{scores:?} in order");
        let reversed: Vec<_> = hits.into_iter().rev().collect();
        let backward: Vec<_> = collect(&reversed, k).into_ranked()[0].iter().map(|hit| hit.row).collect();
        assert_eq!(backward, expected_rows, "{scores:?} in reverse");
    }

    #[test]
    fn hits_rank_by_score_then_row() {
        check(&[], 3, &[]);
        check(&[1.0, 3.0, 2.0], 0, &[]);
        check(&[1.0, 3.0, 2.0], 2, &[1, 2]);
        check(&[1.0, 1.0, 1.0], 2, &[0, 1]);
        check(&[-0.0, 0.0, -0.0], 3, &[0, 1, 2]);
        check(&[0.0, -0.0, 1.0], 2, &[2, 0]);
        check(&[f32::NEG_INFINITY, f32::INFINITY, 0.0], 5, &[1, 2, 0]);
    }

    #[test]
    fn not_a_number_and_foreign_shapes_are_refused() {
        let mut top = TopK::new(2, 1);
        let refused = top.push(1, Hit { row: 7, score: f32::NAN });
        assert_eq!(refused, Err(TopKError::NotANumber { query: 1, row: 7 }));
        assert!(top.merge(TopK::new(2, 2)).is_err());
        assert!(top.merge(TopK::new(3, 1)).is_err());
        assert_eq!(top.into_ranked(), vec![vec![], vec![]]);
    }

    #[test]
    fn the_threshold_opens_until_the_list_is_full() {
        let mut top = TopK::new(1, 2);
        assert_eq!(top.threshold(0), f32::NEG_INFINITY);
        top.push(0, Hit { row: 0, score: 2.0 }).unwrap();
        assert_eq!(top.threshold(0), f32::NEG_INFINITY);
        top.push(0, Hit { row: 1, score: 1.0 }).unwrap();
        assert_eq!(top.threshold(0), 1.0);
        assert_eq!(TopK::new(1, 0).threshold(0), f32::INFINITY);
    }

    proptest! {
        /// Few distinct scores, so that ties decide most places.
        #[test]
        fn equals_a_full_sort_however_the_hits_are_split(
            offers in prop::collection::vec((-3i8..3, 0usize..4), 0..80),
            k in 0usize..12,
        ) {
            let hits: Vec<_> = offers
                .iter()
                .enumerate()
                .map(|(row, (score, _))| Hit { row: row as u64, score: f32::from(*score) / 2.0 })
                .collect();
            let mut sorted = hits.clone();
            sorted.sort_by(Hit::rank_order);
            sorted.truncate(k);
            prop_assert_eq!(&collect(&hits, k).into_ranked()[0], &sorted);

            let mut merged = TopK::new(1, k);
            for part in 0..4 {
                let share: Vec<_> = hits.iter().zip(&offers).filter(|(_, o)| o.1 == part).map(|(h, _)| *h).collect();
                merged.merge(collect(&share, k)).unwrap();
            }
            prop_assert_eq!(&merged.into_ranked()[0], &sorted);
        }
    }
}
