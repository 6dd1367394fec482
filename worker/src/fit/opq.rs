//! Optimised product quantisation without parameters (Ge et al., "Optimized product quantization", TPAMI 2014): a
//! rotation and codebooks, each fitted in turn to what the other leaves.
//!
//! The rotation starts at random, as faiss's does: from principal components, the paper's parametric solution, the
//! error of 32-byte codes stayed larger on sentence vectors (.260 after 40 rounds against .251 after 30). Each round goes on with k-means from the codebooks before, then
//! takes the rotation nearest to Ŷᵀ X in the Frobenius norm (Procrustes), X being the vectors and Ŷ what their
//! codes stand for.

use super::kmeans;
use super::pq::{ProductQuantizer, check_training};
use super::quantizer::{AffineMap, QuantizerError};
use crate::matrix::Matrix;
use crate::mining::counter;
use crate::parallel;
use retort_kernels::matmul::{self, Sizes, Write};

/// Rounds of rotation and k-means; faiss's. After 30 of them the recall of 8-byte codes of sentence vectors stays half a
/// point lower.
pub const ROUNDS: usize = 50;
/// Rounds of k-means before the first rotation, and within each round after it; faiss's.
const FIRST_KMEANS: usize = 40;
const KMEANS: usize = 4;
/// Rows whose products are summed at a time; the sums are then added in order.
const BLOCK_ROWS: usize = 4096;

/// A rotation, as a map without offset, and codebooks for vectors that went through it.
///
/// # Errors
/// As [`ProductQuantizer::train`].
pub fn train_opq(
    vectors: &Matrix,
    subquantizers: usize,
    rounds: usize,
    seed: u64,
    threads: usize,
) -> Result<(AffineMap, ProductQuantizer), QuantizerError> {
    let dim = vectors.dim();
    check_training(vectors)?;
    let mut rotation = random_rotation(dim, seed);
    let mut pq: Option<ProductQuantizer> = None;
    for round in 0..rounds {
        let rotated = rotate(&rotation, vectors, threads)?;
        let steps = if round == 0 { FIRST_KMEANS } else { KMEANS };
        let trained = ProductQuantizer::train(&rotated, subquantizers, pq.as_ref(), steps, seed, threads)?;
        let codes = trained.encode(&rotated, threads);
        let decode = |row: usize, target: &mut [f32]| trained.decode_row(codes.row(row), target);
        turn(&mut rotation, products(vectors, threads, decode), dim);
        pq = Some(trained);
    }
    let rotated = rotate(&rotation, vectors, threads)?;
    let pq = ProductQuantizer::train(&rotated, subquantizers, pq.as_ref(), kmeans::ROUNDS, seed, threads)?;
    Ok((AffineMap::new(dim, rotation, vec![0.0; dim], false)?, pq))
}

pub(super) fn random_rotation(dim: usize, seed: u64) -> Vec<f32> {
    let value = |i: usize| counter::unit(counter::hash(seed, &[i as u64])) as f32 - 0.5;
    let random: Vec<f32> = (0..dim * dim).map(value).collect();
    nearest_rotation(&random, dim).unwrap_or_else(|| identity(dim))
}

/// The rotation nearest to `target`, which is Ŷᵀ X. A little of the rotation so far decides where the vectors do not.
pub(super) fn turn(rotation: &mut Vec<f32>, mut target: Vec<f32>, dim: usize) {
    let pull = 1e-3 * target.iter().zip(&*rotation).map(|(m, r)| f64::from(m * r)).sum::<f64>() / dim as f64;
    target.iter_mut().zip(&*rotation).for_each(|(m, r)| *m += pull.max(0.0) as f32 * r);
    if let Some(nearest) = nearest_rotation(&target, dim) {
        *rotation = nearest;
    }
}

pub(super) fn rotate(rotation: &[f32], vectors: &Matrix, threads: usize) -> Result<Matrix, QuantizerError> {
    let map = AffineMap::new(vectors.dim(), rotation.to_vec(), vec![0.0; vectors.dim()], false)?;
    Ok(map.apply(vectors, threads))
}

fn identity(dim: usize) -> Vec<f32> {
    (0..dim * dim).map(|i| if i / dim == i % dim { 1.0 } else { 0.0 }).collect()
}

/// Ŷᵀ X [dim, dim], Ŷ being what the codes stand for, row by row.
pub(super) fn products(
    vectors: &Matrix,
    threads: usize,
    decode: impl Fn(usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    let dim = vectors.dim();
    let blocks = parallel::map(threads, vectors.rows().div_ceil(BLOCK_ROWS), |at| {
        let rows = at * BLOCK_ROWS..vectors.rows().min((at + 1) * BLOCK_ROWS);
        let k = rows.len();
        let mut decoded = vec![0.0; k * dim];
        for (row, target) in rows.clone().zip(decoded.chunks_exact_mut(dim)) {
            decode(row, target);
        }
        let block = &vectors.data()[rows.start * dim..rows.end * dim];
        let mut sum = vec![0.0; dim * dim];
        matmul::tn(Sizes { m: dim, n: dim, k }, &decoded, block, &mut sum, Write::Overwrite);
        sum
    });
    let mut total = vec![0.0; dim * dim];
    for block in blocks {
        total.iter_mut().zip(block).for_each(|(total, x)| *total += x);
    }
    total
}

/// The orthogonal matrix nearest to `matrix` [dim, dim], the U Vᵀ of its singular value decomposition; none for a
/// matrix of zeros.
///
/// Newton-Schulz iterations, that is products only: first a polynomial of degree five that lifts small singular
/// values fast (Jordan et al., "Muon", 2024), then the cubic one that converges quadratically to 1, at the end in
/// f64. What it cannot lift is about 10⁻⁶ of the largest, which the caller's pull keeps away from.
fn nearest_rotation(matrix: &[f32], dim: usize) -> Option<Vec<f32>> {
    let norm = matrix.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    if norm == 0.0 || !norm.is_finite() {
        return None;
    }
    let mut x: Vec<f32> = matrix.iter().map(|x| (f64::from(*x) / norm) as f32).collect();
    let sizes = Sizes { m: dim, n: dim, k: dim };
    let (mut gram, mut square) = (vec![0.0f32; dim * dim], vec![0.0f32; dim * dim]);
    for _ in 0..12 {
        let (a, b, c) = (3.4445f32, -4.775f32, 2.0315f32);
        matmul::tn(sizes, &x, &x, &mut gram, Write::Overwrite);
        matmul::nn(sizes, &gram, &gram, &mut square, Write::Overwrite);
        gram.iter_mut().zip(&square).for_each(|(g, s)| *g = b * *g + c * s);
        let mut next: Vec<f32> = x.iter().map(|x| a * x).collect();
        matmul::nn(sizes, &x, &gram, &mut next, Write::Add);
        x = next;
    }
    let mut x: Vec<f64> = x.into_iter().map(f64::from).collect();
    let mut gram = vec![0.0f64; dim * dim];
    for _ in 0..7 {
        matmul::tn(sizes, &x, &x, &mut gram, Write::Overwrite);
        gram.iter_mut().for_each(|g| *g *= -0.5);
        let mut next: Vec<f64> = x.iter().map(|x| 1.5 * x).collect();
        matmul::nn(sizes, &x, &gram, &mut next, Write::Add);
        x = next;
    }
    let rotation: Vec<f32> = x.into_iter().map(|x| x as f32).collect();
    rotation.iter().all(|x| x.is_finite()).then_some(rotation)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{error, random};
    use super::*;

    fn orthogonality(rotation: &[f32], dim: usize) -> f32 {
        let mut gram = vec![0.0; dim * dim];
        matmul::nt(Sizes { m: dim, n: dim, k: dim }, rotation, rotation, &mut gram, Write::Overwrite);
        let off = |(i, x): (usize, &f32)| (x - if i / dim == i % dim { 1.0 } else { 0.0 }).abs();
        gram.iter().enumerate().map(off).fold(0.0, f32::max)
    }

    #[test]
    fn the_nearest_rotation_is_that_of_the_singular_value_decomposition() {
        for dim in [1, 2, 7, 24] {
            let matrix = random(dim, dim, 11).into_data();
            let found = nearest_rotation(&matrix, dim).unwrap();
            assert!(orthogonality(&found, dim) < 1e-5);
            let svd = nalgebra::DMatrix::from_row_slice(dim, dim, &matrix).cast::<f64>().svd(true, true);
            let best = svd.u.unwrap() * svd.v_t.unwrap();
            for (at, x) in found.iter().enumerate() {
                assert!((f64::from(*x) - best[(at / dim, at % dim)]).abs() < 1e-3, "{dim}");
            }
        }
        assert_eq!(nearest_rotation(&[0.0; 4], 2), None);
    }

    #[test]
    fn a_rotation_helps_where_parts_differ() {
        // One of four parts holds nearly everything, so that plain parts leave three codebooks idle.
        let (rows, dim) = (1500, 8);
        let mut vectors = random(rows, dim, 1);
        for i in 0..rows {
            vectors.row_mut(i)[2..].iter_mut().for_each(|x| *x *= 0.01);
        }
        let (map, pq) = train_opq(&vectors, 4, 4, 3, 1).unwrap();
        assert_eq!((map.clone(), pq.clone()), train_opq(&vectors, 4, 4, 3, 3).unwrap());
        assert!(orthogonality(map.weight(), dim) < 1e-5);
        let rotated = map.apply(&vectors, 1);
        let with = error(&rotated, &pq.decode(&pq.encode(&rotated, 1)));
        let plain = ProductQuantizer::train(&vectors, 4, None, 25, 3, 1).unwrap();
        let without = error(&vectors, &plain.decode(&plain.encode(&vectors, 1)));
        assert!(with < 0.9 * without, "{with} {without}");
        assert!(train_opq(&vectors, 3, 1, 1, 1).is_err());
        // Vectors of rank one leave most of the rotation open.
        let flat = Matrix::new(300, 2, (0..600).map(|i| (i / 2) as f32).collect());
        let (map, _) = train_opq(&flat, 2, 3, 1, 1).unwrap();
        assert!(orthogonality(map.weight(), 2) < 1e-4);
    }
}
