//! Exact inner-product search: every query against every passage of a block.
//!
//! Scores are computed by fixed-size blocks with one kernel. The inner product of a query with a passage
//! is the same to the bit whatever stands beside it, so neither the number of threads nor the cut of
//! the corpus into shards changes a ranked list on machines of the same kind.

use std::sync::Mutex;

use super::matmul::matmul_nt;
use super::topk::{Best, Hit, TopK, TopKError};
use crate::matrix::Matrix;

/// Queries multiplied at a time, and the unit that threads take.
const QUERY_BLOCK: usize = 128;
/// Passages multiplied at a time; with the queries it bounds a thread's score buffer to half a MiB.
const PASSAGE_BLOCK: usize = 1024;
/// Scores compared with the threshold at a time.
const LANES: usize = 16;

/// Why a block cannot be searched.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum DenseError {
    /// Vectors of different spaces.
    #[error("queries have {queries} dimensions but passages have {passages}: encode both with one model")]
    Dimensions {
        /// Dimensions of the queries.
        queries: usize,
        /// Dimensions of the passages.
        passages: usize,
    },
    /// An accumulator made for another batch.
    #[error("the accumulator holds {accumulators} queries but {queries} are searched")]
    Queries {
        /// Rows of the query matrix.
        queries: usize,
        /// Queries of the accumulator.
        accumulators: usize,
    },
    /// Row numbers that do not fit.
    #[error("{passages} passages from row {first_row} exceed the largest row number")]
    Rows {
        /// Row of the first passage.
        first_row: u64,
        /// Passages in the block.
        passages: usize,
    },
    /// A score that cannot be ordered.
    #[error(transparent)]
    Score(#[from] TopKError),
}

/// Offers to `top` the inner products of `queries` [queries, dim] with `passages` [passages, dim], whose
/// rows are numbered from `first_row`, on at most `threads` threads (0 counts as 1).
///
/// # Errors
/// When the shapes do not fit or a score is `NaN`. `top` may then hold a part of the block and is of no
/// further use.
pub fn search_block(
    queries: &Matrix,
    passages: &Matrix,
    first_row: u64,
    threads: usize,
    top: &mut TopK,
) -> Result<(), DenseError> {
    if queries.dim() != passages.dim() {
        return Err(DenseError::Dimensions { queries: queries.dim(), passages: passages.dim() });
    }
    if queries.rows() != top.queries() {
        return Err(DenseError::Queries { queries: queries.rows(), accumulators: top.queries() });
    }
    if first_row.checked_add(passages.rows() as u64).is_none() {
        return Err(DenseError::Rows { first_row, passages: passages.rows() });
    }

    let blocks = queries.rows().div_ceil(QUERY_BLOCK);
    let work = Mutex::new(top.best_mut().chunks_mut(QUERY_BLOCK).enumerate());
    let failure = Mutex::new(None::<(usize, TopKError)>);
    let run = || {
        let mut scores = vec![0.0; QUERY_BLOCK * PASSAGE_BLOCK];
        loop {
            let Some((block, best)) = lock(&work).next() else { break };
            if let Err(error) = scan(queries, passages, first_row, block * QUERY_BLOCK, best, &mut scores) {
                // The lowest block's failure is told, so that the message too is the same for any threads.
                let mut first = lock(&failure);
                if first.as_ref().is_none_or(|(at, _)| block < *at) {
                    *first = Some((block, error));
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.clamp(1, blocks.max(1)) {
            scope.spawn(run);
        }
        run();
    });
    let failure = lock(&failure).take();
    failure.map_or(Ok(()), |(_, error)| Err(error.into()))
}

/// A poisoned lock only says that another thread panicked, and that panic is about to be raised again.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Scores one block of queries against all passages.
fn scan<'a>(
    queries: &'a Matrix,
    passages: &'a Matrix,
    first_row: u64,
    first_query: usize,
    best: &mut [Best],
    scores: &mut [f32],
) -> Result<(), TopKError> {
    let dim = queries.dim();
    let rows =
        |matrix: &'a Matrix, start: usize, count: usize| &matrix.data()[start * dim..(start + count) * dim];
    let left = rows(queries, first_query, best.len());
    for start in (0..passages.rows()).step_by(PASSAGE_BLOCK) {
        let count = PASSAGE_BLOCK.min(passages.rows() - start);
        let scores = &mut scores[..best.len() * count];
        matmul_nt(left, rows(passages, start, count), best.len(), count, dim, scores);
        for (at, (best, row)) in best.iter_mut().zip(scores.chunks_exact(count)).enumerate() {
            offer(best, row, first_row + start as u64)
                .map_err(|row| TopKError::NotANumber { query: first_query + at, row })?;
        }
    }
    Ok(())
}

/// Offers the scores of consecutive rows; fails with the row whose score is `NaN`.
fn offer(best: &mut Best, scores: &[f32], first_row: u64) -> Result<(), u64> {
    let mut threshold = best.threshold();
    for (lane, scores) in scores.chunks(LANES).enumerate() {
        // Most lanes hold nothing that enters; NaN is looked at too, to be refused.
        if !scores.iter().fold(false, |any, score| any | (*score >= threshold) | score.is_nan()) {
            continue;
        }
        for (at, score) in scores.iter().enumerate() {
            let row = first_row + (lane * LANES + at) as u64;
            if score.is_nan() {
                return Err(row);
            }
            if *score >= threshold {
                best.offer(Hit { row, score: *score });
                threshold = best.threshold();
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Values with full mantissas, so that a change in the order of additions shows.
    fn random(rows: usize, dim: usize, seed: u64) -> Matrix {
        let value = |at: u64| {
            let mixed = (at ^ seed.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            (mixed >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        Matrix::new(rows, dim, (0..(rows * dim) as u64).map(value).collect())
    }

    fn slice(matrix: &Matrix, start: usize, end: usize) -> Matrix {
        let dim = matrix.dim();
        Matrix::new(end - start, dim, matrix.data()[start * dim..end * dim].to_vec())
    }

    fn search(queries: &Matrix, passages: &Matrix, first_row: u64, threads: usize, k: usize) -> TopK {
        let mut top = TopK::new(queries.rows(), k);
        search_block(queries, passages, first_row, threads, &mut top).unwrap();
        top
    }

    #[test]
    fn finds_what_a_full_sort_of_the_products_finds() {
        for (queries, passages, dim) in
            [(1, 1, 1), (3, 40, 2), (130, 1100, 24), (2, 5, 768), (0, 3, 4), (3, 0, 4), (2, 9, 0)]
        {
            let (q, p) = (random(queries, dim, 1), random(passages, dim, 2));
            let found = search(&q, &p, 10, 2, 7).into_ranked();
            for (query, found) in found.iter().enumerate() {
                let product = |row: usize| -> f64 {
                    q.row(query).iter().zip(p.row(row)).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
                };
                let mut expected: Vec<f64> = (0..passages).map(product).collect();
                expected.sort_by(|a, b| b.total_cmp(a));
                assert_eq!(found.len(), passages.min(7));
                for (hit, expected) in found.iter().zip(expected) {
                    assert!((f64::from(hit.score) - expected).abs() < 1e-4);
                    assert!((product((hit.row - 10) as usize) - expected).abs() < 1e-4);
                }
            }
        }
    }

    #[test]
    fn misfits_and_not_a_number_are_refused() {
        let check = |q: Matrix, p: Matrix, first_row, accumulators, expected: &str| {
            let error = search_block(&q, &p, first_row, 2, &mut TopK::new(accumulators, 2)).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        };
        check(random(1, 3, 0), random(1, 4, 0), 0, 1, "queries have 3 dimensions but passages have 4");
        check(random(2, 3, 0), random(1, 3, 0), 0, 1, "holds 1 queries but 2");
        check(random(1, 3, 0), random(2, 3, 0), u64::MAX, 1, "largest row number");
        let mut bad = random(2000, 16, 0);
        bad.row_mut(1500)[3] = f32::NAN;
        check(random(300, 16, 1), bad, 7, 300, "query 0 and row 1507");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn threads_shards_and_neighbours_do_not_change_a_bit(
            queries in 1usize..300, passages in 1usize..1500, dim in prop::sample::select(vec![1usize, 5, 8, 31, 64, 257, 600]),
            cut in 0.0f64..1.0, threads in 1usize..4, seed in 0u64..1000,
        ) {
            let (q, p) = (random(queries, dim, seed), random(passages, dim, seed + 1));
            let whole = search(&q, &p, 0, 1, 9).into_ranked();
            let cut_at = (cut * passages as f64) as usize;
            let mut parts = search(&q, &slice(&p, cut_at, passages), cut_at as u64, threads, 9);
            parts.merge(search(&q, &slice(&p, 0, cut_at), 0, threads, 9)).unwrap();
            prop_assert_eq!(&parts.into_ranked(), &whole);
            let last = search(&slice(&q, queries - 1, queries), &p, 0, threads, 9).into_ranked();
            prop_assert_eq!(&last[0], &whole[queries - 1]);
        }
    }
}
