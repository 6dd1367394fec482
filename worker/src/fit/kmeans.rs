//! Lloyd's k-means on a few columns of many rows: what product quantisers are trained with.
//!
//! The settings are faiss's: distinct rows as first centroids, 25 rounds, an empty cluster takes half of the
//! largest. A point goes to the centroid c with the largest x·c − ½‖c‖², the first of several; the sums of a
//! cluster run over its rows in order. So the result is a function of rows and seed.

use crate::mining::counter;
use pulp::{Arch, Simd, WithSimd};
use retort_kernels::matmul::kernel::{
    REGISTERS, ROWS, Strided, Tile, multiply, pack_columns, pack_rows, width,
};

/// Centroids of one codebook: a code is one byte.
pub const CENTROIDS: usize = 256;
/// Rounds that faiss takes by default.
pub const ROUNDS: usize = 25;
/// Rows that faiss trains 256 centroids with, at most; more change little.
pub const MOST_ROWS: usize = 65_536;

/// Some columns of a row-major matrix.
#[derive(Clone, Copy, Debug)]
pub struct Columns<'a> {
    /// The matrix [rows, stride].
    pub data: &'a [f32],
    /// Columns of the matrix.
    pub stride: usize,
    /// First of the columns.
    pub first: usize,
    /// How many.
    pub count: usize,
}

impl<'a> Columns<'a> {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.data.len() / self.stride.max(1)
    }

    /// The columns of row `i`.
    pub fn row(&self, i: usize) -> &'a [f32] {
        &self.data[i * self.stride + self.first..][..self.count]
    }

    fn strided(&self) -> Strided<'a, f32> {
        // Rows of the matrix are columns of the product.
        Strided { data: &self.data[self.first.min(self.data.len())..], row: 1, column: self.stride }
    }
}

/// Centroids packed for the kernel.
struct Packed {
    dim: usize,
    groups: Vec<f32>,
    offsets: Vec<f32>,
}

impl Packed {
    fn new(centroids: &[f32], dim: usize) -> Self {
        let count = centroids.len() / dim;
        let mut groups = vec![0.0; count.div_ceil(ROWS) * ROWS * dim];
        let from = Strided { data: centroids, row: dim, column: 1 };
        for (at, group) in groups.chunks_exact_mut(ROWS * dim).enumerate() {
            let first = at * ROWS;
            pack_rows(from, (first, ROWS.min(count - first)), (0, dim), group);
        }
        // What only fills the last group up is never the largest.
        let mut offsets = vec![f32::NEG_INFINITY; count.next_multiple_of(ROWS)];
        for (offset, centroid) in offsets.iter_mut().zip(centroids.chunks_exact(dim)) {
            *offset = -0.5 * centroid.iter().fold(0.0f32, |sum, x| x.mul_add(*x, sum));
        }
        Self { dim, groups, offsets }
    }
}

/// The nearest centroid of each point of some packed panels.
struct Assign<'a> {
    centroids: &'a Packed,
    /// Panels [dim, width].
    panels: &'a [f32],
    /// One for each lane of each panel.
    nearest: &'a mut [u32],
}

impl WithSimd for Assign<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { centroids: Packed { dim, groups, offsets }, panels, nearest } = self;
        let lanes = S::F32_LANES;
        for (panel, out) in
            panels.chunks_exact(dim * REGISTERS * lanes).zip(nearest.chunks_exact_mut(REGISTERS * lanes))
        {
            let mut best = [simd.splat_f32s(f32::NEG_INFINITY); REGISTERS];
            let mut at = [simd.splat_u32s(0); REGISTERS];
            let mut number = 0;
            for (group, offset) in groups.chunks_exact(ROWS * dim).zip(offsets.as_chunks::<ROWS>().0) {
                let mut tile: Tile<f32, S> = std::array::from_fn(|i| [simd.splat_f32s(offset[i]); REGISTERS]);
                multiply::<S, f32>(simd, group, panel, &mut tile);
                for scores in &tile {
                    let this = simd.splat_u32s(number);
                    for v in 0..REGISTERS {
                        let better = simd.greater_than_f32s(scores[v], best[v]);
                        best[v] = simd.select_f32s(better, scores[v], best[v]);
                        at[v] = simd.select_u32s(better, this, at[v]);
                    }
                    number += 1;
                }
            }
            S::as_mut_simd_u32s(out).0.copy_from_slice(&at);
        }
    }
}

/// The nearest of `centroids` [count, columns] for every row: `each(row, centroid)`, rows in order.
pub fn nearest(points: Columns<'_>, centroids: &[f32], mut each: impl FnMut(usize, u32)) {
    let packed = Packed::new(centroids, points.count);
    let width = width::<f32>();
    let mut panel = vec![0.0; points.count * width];
    let mut found = vec![0; width];
    for first in (0..points.rows()).step_by(width) {
        let count = width.min(points.rows() - first);
        pack_columns(points.strided(), (first, count), (0, points.count), width, &mut panel);
        Arch::new().dispatch(Assign { centroids: &packed, panels: &panel, nearest: &mut found });
        found[..count].iter().enumerate().for_each(|(i, centroid)| each(first + i, *centroid));
    }
}

/// [`CENTROIDS`] centroids [256, columns] of at least as many rows. `start` are centroids to go on from.
///
/// # Panics
/// When there are fewer rows than centroids: callers say what to do about it.
pub fn train(points: Columns<'_>, start: Option<&[f32]>, rounds: usize, seed: u64) -> Vec<f32> {
    let (rows, dim, width) = (points.rows(), points.count, width::<f32>());
    assert!(rows >= CENTROIDS && dim > 0, "{rows} rows for {CENTROIDS} centroids of {dim} columns");
    let mut centroids = match start {
        Some(start) => start.to_vec(),
        None => draw(rows, CENTROIDS, seed).into_iter().flat_map(|i| points.row(i)).copied().collect(),
    };
    let mut panels = vec![0.0; rows.div_ceil(width) * width * dim];
    for (at, panel) in panels.chunks_exact_mut(width * dim).enumerate() {
        let first = at * width;
        pack_columns(points.strided(), (first, width.min(rows - first)), (0, dim), width, panel);
    }
    let mut found = vec![0; rows.next_multiple_of(width)];
    let mut before = Vec::new();
    for _ in 0..rounds {
        let packed = Packed::new(&centroids, dim);
        Arch::new().dispatch(Assign { centroids: &packed, panels: &panels, nearest: &mut found });
        if before == found {
            break;
        }
        before.clone_from(&found);
        move_to_means(points, &found[..rows], &mut centroids);
    }
    centroids
}

fn move_to_means(points: Columns<'_>, nearest: &[u32], centroids: &mut [f32]) {
    let dim = points.count;
    let mut sums = vec![0.0f64; centroids.len()];
    let mut counts = vec![0u32; centroids.len() / dim];
    for (i, centroid) in nearest.iter().enumerate() {
        let centroid = *centroid as usize;
        counts[centroid] += 1;
        let sum = &mut sums[centroid * dim..][..dim];
        sum.iter_mut().zip(points.row(i)).for_each(|(sum, x)| *sum += f64::from(*x));
    }
    for ((centroid, sum), count) in
        centroids.chunks_exact_mut(dim).zip(sums.chunks_exact(dim)).zip(&counts).filter(|(_, n)| **n > 0)
    {
        centroid.iter_mut().zip(sum).for_each(|(c, sum)| *c = (sum / f64::from(*count)) as f32);
    }
    for empty in 0..counts.len() {
        if counts[empty] > 0 {
            continue;
        }
        // The first of the largest; both halves move apart by a little, each coordinate the other way.
        let largest = (0..counts.len()).rev().max_by_key(|i| counts[*i]).unwrap_or(0);
        for j in 0..dim {
            let value = centroids[largest * dim + j];
            let step = if j % 2 == 0 { 1.0 / 1024.0 } else { -1.0 / 1024.0 };
            centroids[empty * dim + j] = value * (1.0 + step);
            centroids[largest * dim + j] = value * (1.0 - step);
        }
        counts[empty] = counts[largest] / 2;
        counts[largest] -= counts[empty];
    }
}

/// `count` different numbers below `from`, in the order of the drawing.
///
/// # Panics
/// When there are fewer.
pub fn draw(from: usize, count: usize, seed: u64) -> Vec<usize> {
    assert!(count <= from, "{count} numbers of {from}");
    let mut numbers: Vec<usize> = (0..from).collect();
    for i in 0..count {
        let left = (from - i) as u64;
        let at = i + (counter::hash(seed, &[i as u64]) % left) as usize;
        numbers.swap(i, at);
    }
    numbers.truncate(count);
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(length: usize, seed: u64) -> Vec<f32> {
        (0..length as u64).map(|i| counter::unit(counter::hash(seed, &[i])) as f32 - 0.5).collect()
    }

    fn distance(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
    }

    #[test]
    fn every_point_finds_its_nearest_centroid() {
        for (rows, stride, first, count, centroids) in
            [(1, 1, 0, 1, 1), (70, 9, 2, 5, 256), (33, 40, 8, 32, 13)]
        {
            let (data, centroids) = (random(rows * stride, 1), random(centroids * count, 2));
            let points = Columns { data: &data, stride, first, count };
            let mut seen = 0;
            nearest(points, &centroids, |row, found| {
                assert_eq!(row, seen);
                seen += 1;
                let own = distance(points.row(row), &centroids[found as usize * count..][..count]);
                let best = centroids.chunks_exact(count).map(|c| distance(points.row(row), c));
                assert!(own <= best.fold(f64::INFINITY, f64::min) + 1e-6);
            });
            assert_eq!(seen, rows);
        }
    }

    #[test]
    fn clusters_are_found_and_none_stays_empty() {
        // 256 well separated places with four points each, one column beside them.
        let place = |i: usize| [(i % 16) as f32, (i / 16) as f32];
        let data: Vec<f32> = (0..1024)
            .flat_map(|i| {
                let [x, y] = place(i % 256);
                [9.0, x + (i / 256) as f32 * 0.01, y]
            })
            .collect();
        let points = Columns { data: &data, stride: 3, first: 1, count: 2 };
        let error = |centroids: &[f32]| {
            let mut sum = 0.0;
            nearest(points, centroids, |row, c| {
                sum += distance(points.row(row), &centroids[c as usize * 2..][..2]);
            });
            sum
        };
        let (one, many) = (train(points, None, 1, 7), train(points, None, 50, 7));
        assert!(error(&many) < error(&one), "{} {}", error(&many), error(&one));
        assert_eq!(train(points, None, 50, 7), many);
        // Only two different points: every cluster but two is empty, and nothing breaks.
        let same: Vec<f32> = (0..600).map(|i| (i % 2) as f32).collect();
        let points = Columns { data: &same, stride: 1, first: 0, count: 1 };
        let centroids = train(points, None, 25, 1);
        nearest(points, &centroids, |row, c| {
            assert!((centroids[c as usize] - same[row]).abs() < 1e-2);
        });
    }

    #[test]
    fn draws_are_different_numbers() {
        let mut drawn = draw(300, 256, 3);
        assert_ne!(drawn, draw(300, 256, 4));
        drawn.sort_unstable();
        drawn.dedup();
        assert_eq!(drawn.len(), 256);
    }
}
