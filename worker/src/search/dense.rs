//! Exact inner-product search: every query against every passage of a block.
//!
//! A score is one chain of fused multiply-adds in the order of the dimensions, whatever stands beside it in the
//! block, so neither the number of threads nor the cut of the corpus into shards changes a bit of a ranked list.
//! The best hits are kept while tiles of scores are still in registers; scores never go to memory.

use std::sync::Mutex;

use pulp::{Arch, Simd, WithSimd};

use super::topk::{Best, Hit, TopK, TopKError};
use crate::matrix::Matrix;
use retort_kernels::matmul::kernel::{
    REGISTERS, ROWS, Strided, Tile, multiply, pack_columns, pack_rows, width,
};

/// Passages that a thread takes at a time; packed they lie in the second-level cache.
const PASSAGE_BLOCK: usize = 20 * ROWS;
/// Lanes of the widest tile.
const MOST_LANES: usize = 64;

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

/// Passages that can be read one at a time as f32, however they are kept.
pub trait Passages: Sync {
    /// How many there are.
    fn rows(&self) -> usize;
    /// Their dimensions.
    fn dim(&self) -> usize;
    /// Passage `row` into `vector` [dim].
    fn read(&self, row: usize, vector: &mut [f32]);
}

impl Passages for Matrix {
    fn rows(&self) -> usize {
        self.rows()
    }

    fn dim(&self) -> usize {
        self.dim()
    }

    fn read(&self, row: usize, vector: &mut [f32]) {
        vector.copy_from_slice(self.row(row));
    }
}

/// Queries packed for the kernel, to be held against block after block.
pub struct Queries {
    rows: usize,
    dim: usize,
    width: usize,
    panels: Vec<f32>,
}

impl Queries {
    /// Packs queries [queries, dim].
    pub fn new(queries: &Matrix) -> Self {
        let (rows, dim, width) = (queries.rows(), queries.dim(), width::<f32>());
        let mut panels = vec![0.0; rows.div_ceil(width) * width * dim];
        let from = Strided { data: queries.data(), row: 1, column: dim };
        for (at, panel) in panels.chunks_exact_mut((width * dim).max(1)).enumerate() {
            let first = at * width;
            pack_columns(from, (first, width.min(rows - first)), (0, dim), width, panel);
        }
        Self { rows, dim, width, panels }
    }

    /// Offers to `top` the inner products with `passages`, whose rows are numbered from `first_row`, on at most
    /// `threads` threads (0 counts as 1).
    ///
    /// # Errors
    /// When the shapes do not fit or a score is `NaN`. `top` may then hold a part of the block and is of no
    /// further use.
    pub fn search(
        &self,
        passages: &impl Passages,
        first_row: u64,
        threads: usize,
        top: &mut TopK,
    ) -> Result<(), DenseError> {
        if self.dim != passages.dim() {
            return Err(DenseError::Dimensions { queries: self.dim, passages: passages.dim() });
        }
        if self.rows != top.queries() {
            return Err(DenseError::Queries { queries: self.rows, accumulators: top.queries() });
        }
        if first_row.checked_add(passages.rows() as u64).is_none() {
            return Err(DenseError::Rows { first_row, passages: passages.rows() });
        }
        if self.rows == 0 || passages.rows() == 0 || top.k() == 0 {
            return Ok(());
        }
        // What lies below the hits so far cannot enter, whoever finds it.
        let floors: Vec<f32> = (0..self.rows).map(|query| top.threshold(query)).collect();
        let starts = Mutex::new((0..passages.rows()).step_by(PASSAGE_BLOCK));
        let failure = Mutex::new(None::<TopKError>);
        let scan = |best: &mut [Best]| {
            let mut block = Block::new(self, best, &floors);
            loop {
                let Some(start) = lock(&starts).next() else { break };
                let count = PASSAGE_BLOCK.min(passages.rows() - start);
                block.pack(passages, start, count);
                let first_row = first_row + start as u64;
                if let Err(error) = Arch::new().dispatch(Scan { block: &mut block, first_row, count }) {
                    keep_first(&failure, error);
                }
            }
        };
        let threads = threads.clamp(1, passages.rows().div_ceil(PASSAGE_BLOCK));
        let mut others: Vec<TopK> = (1..threads).map(|_| top.like()).collect();
        std::thread::scope(|scope| {
            for other in &mut others {
                scope.spawn(|| scan(other.best_mut()));
            }
            scan(top.best_mut());
        });
        for other in others {
            top.merge(other)?;
        }
        let failure = lock(&failure).take();
        failure.map_or(Ok(()), |error| Err(error.into()))
    }
}

/// Offers to `top` the inner products of `queries` [queries, dim] with `passages` [passages, dim]; for several
/// blocks, pack the queries once as [`Queries`].
///
/// # Errors
/// As [`Queries::search`].
pub fn search_block(
    queries: &Matrix,
    passages: &Matrix,
    first_row: u64,
    threads: usize,
    top: &mut TopK,
) -> Result<(), DenseError> {
    Queries::new(queries).search(passages, first_row, threads, top)
}

/// The failure of the lowest row, then query, is told, so that the message too is the same for any threads.
fn keep_first(failure: &Mutex<Option<TopKError>>, error: TopKError) {
    let place = |error: &TopKError| match error {
        TopKError::NotANumber { query, row } => (*row, *query),
        TopKError::Shape { .. } => (0, 0),
    };
    let mut first = lock(failure);
    if first.as_ref().is_none_or(|kept| place(&error) < place(kept)) {
        *first = Some(error);
    }
}

/// A poisoned lock only says that another thread panicked, and that panic is about to be raised again.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// What one thread works with.
struct Block<'a> {
    queries: &'a Queries,
    best: &'a mut [Best],
    /// For each lane of each panel, the score below which nothing enters.
    thresholds: Vec<f32>,
    /// For each query, a score that its threshold never lies below.
    floors: &'a [f32],
    /// Passages as read, ROWS of them.
    read: Vec<f32>,
    /// Passages packed by ROWS.
    packed: Vec<f32>,
}

impl<'a> Block<'a> {
    fn new(queries: &'a Queries, best: &'a mut [Best], floors: &'a [f32]) -> Self {
        // Lanes beyond the last query let nothing in.
        let mut thresholds = vec![f32::INFINITY; queries.rows.next_multiple_of(queries.width)];
        thresholds[..floors.len()].copy_from_slice(floors);
        let (read, packed) = (vec![0.0; ROWS * queries.dim], vec![0.0; PASSAGE_BLOCK * queries.dim]);
        Self { queries, best, thresholds, floors, read, packed }
    }

    fn pack(&mut self, passages: &impl Passages, start: usize, count: usize) {
        let dim = self.queries.dim;
        for (at, packed) in self.packed.chunks_exact_mut((ROWS * dim).max(1)).enumerate() {
            let first = at * ROWS;
            if first >= count {
                break;
            }
            let rows = ROWS.min(count - first);
            for (i, vector) in self.read.chunks_exact_mut(dim).take(rows).enumerate() {
                passages.read(start + first + i, vector);
            }
            let from = Strided { data: &self.read, row: dim, column: 1 };
            pack_rows(from, (0, rows), (0, dim), packed);
        }
    }
}

/// Scores one block of packed passages against all queries.
struct Scan<'b, 'a> {
    block: &'b mut Block<'a>,
    first_row: u64,
    count: usize,
}

impl WithSimd for Scan<'_, '_> {
    type Output = Result<(), TopKError>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Result<(), TopKError> {
        let Self { block: Block { queries, best, thresholds, floors, packed, .. }, first_row, count } = self;
        let (dim, width) = (queries.dim, REGISTERS * S::F32_LANES);
        for (panel, thresholds) in thresholds.chunks_exact_mut(width).enumerate() {
            let columns = &queries.panels[panel * width * dim..][..width * dim];
            for first in (0..count).step_by(ROWS) {
                let rows = &packed[first * dim..][..ROWS * dim];
                let mut tile: Tile<f32, S> = [[simd.splat_f32s(0.0); REGISTERS]; ROWS];
                multiply::<S, f32>(simd, rows, columns, &mut tile);
                let limits = S::as_simd_f32s(thresholds).0;
                let limits: [S::f32s; REGISTERS] = std::array::from_fn(|v| limits[v]);
                let mut below = simd.less_than_f32s(tile[0][0], limits[0]);
                for scores in &tile {
                    for v in 0..REGISTERS {
                        below = simd.and_m32s(below, simd.less_than_f32s(scores[v], limits[v]));
                    }
                }
                // Most tiles hold nothing that enters. What is not below is above or not a number.
                if simd.first_true_m32s(simd.not_m32s(below)) < S::F32_LANES {
                    let rows = ROWS.min(count - first);
                    let place = Place { query: panel * width, row: first_row + first as u64, rows };
                    offer(simd, &tile, place, (best, floors), thresholds)?;
                }
            }
        }
        Ok(())
    }
}

/// Which queries and passages a tile is of.
struct Place {
    query: usize,
    row: u64,
    rows: usize,
}

#[inline(always)]
fn offer<S: Simd>(
    simd: S,
    tile: &Tile<f32, S>,
    place: Place,
    (best, floors): (&mut [Best], &[f32]),
    thresholds: &mut [f32],
) -> Result<(), TopKError> {
    let lanes = S::F32_LANES;
    let mut buffer = [0.0f32; MOST_LANES];
    for (i, scores) in tile.iter().enumerate().take(place.rows) {
        for (v, scores) in scores.iter().enumerate() {
            let limits = &mut thresholds[v * lanes..][..lanes];
            let below = simd.less_than_f32s(*scores, S::as_simd_f32s(limits).0[0]);
            if simd.first_true_m32s(simd.not_m32s(below)) == lanes {
                continue;
            }
            S::as_mut_simd_f32s(&mut buffer[..lanes]).0[0] = *scores;
            for (lane, limit) in limits.iter_mut().enumerate() {
                let (score, query, row) =
                    (buffer[lane], place.query + v * lanes + lane, place.row + i as u64);
                if score < *limit || query >= best.len() {
                    continue;
                }
                if score.is_nan() {
                    return Err(TopKError::NotANumber { query, row });
                }
                best[query].offer(Hit { row, score });
                *limit = best[query].threshold().max(floors[query]);
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
