//! Product quantisation (Jégou et al., "Product quantization for nearest neighbor search", TPAMI 2011): a vector
//! is cut into `m` parts, and of each the number of its nearest centroid is kept, a byte.

use super::kmeans::{CENTROIDS, Columns, nearest, train};
use super::quantizer::{Codes, QuantizerError};
use crate::matrix::Matrix;
use crate::parallel;

/// Codebooks of a product quantiser.
#[derive(Clone, Debug, PartialEq)]
pub struct ProductQuantizer {
    dim: usize,
    subquantizers: usize,
    /// [subquantizers, 256, dim / subquantizers].
    codebooks: Vec<f32>,
}

/// Rows that a thread encodes at a time.
const BLOCK_ROWS: usize = 1024;

impl ProductQuantizer {
    /// Codebooks [subquantizers, 256, dim / subquantizers] as they were trained elsewhere.
    ///
    /// # Errors
    /// When the sizes do not fit or a value is not finite.
    pub fn new(dim: usize, subquantizers: usize, codebooks: Vec<f32>) -> Result<Self, QuantizerError> {
        check_division(dim, subquantizers)?;
        if codebooks.len() != CENTROIDS * dim {
            return Err(QuantizerError::Codebooks { values: codebooks.len(), dim });
        }
        if codebooks.iter().any(|value| !value.is_finite()) {
            return Err(QuantizerError::NonFiniteCodebooks);
        }
        Ok(Self { dim, subquantizers, codebooks })
    }

    /// Trains codebooks on vectors by k-means, `rounds` rounds each; `start` gives codebooks to go on from.
    /// The result does not depend on `threads`.
    ///
    /// # Errors
    /// When `subquantizers` does not divide the dimensions, there are fewer than 256 vectors, or one is not finite.
    pub fn train(
        vectors: &Matrix,
        subquantizers: usize,
        start: Option<&Self>,
        rounds: usize,
        seed: u64,
        threads: usize,
    ) -> Result<Self, QuantizerError> {
        let dim = vectors.dim();
        check_division(dim, subquantizers)?;
        check_training(vectors)?;
        let part = dim / subquantizers;
        let codebooks = parallel::map(threads, subquantizers, |i| {
            let points = Columns { data: vectors.data(), stride: dim, first: i * part, count: part };
            let seed = crate::mining::counter::hash(seed, &[i as u64]);
            train(points, start.map(|start| start.codebook(i)), rounds, seed)
        });
        Ok(Self { dim, subquantizers, codebooks: codebooks.concat() })
    }

    /// Dimensions of the vectors.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Number of parts, and bytes of a code.
    pub fn subquantizers(&self) -> usize {
        self.subquantizers
    }

    /// All codebooks [subquantizers, 256, dim / subquantizers].
    pub fn codebooks(&self) -> &[f32] {
        &self.codebooks
    }

    /// The codebook [256, dim / subquantizers] of part `i`.
    pub fn codebook(&self, i: usize) -> &[f32] {
        let size = CENTROIDS * self.dim / self.subquantizers;
        &self.codebooks[i * size..][..size]
    }

    /// Codes of vectors [rows, dim]; vectors must be finite.
    pub fn encode(&self, vectors: &Matrix, threads: usize) -> Codes {
        let (m, part) = (self.subquantizers, self.dim / self.subquantizers);
        let mut codes = Codes::zeros(vectors.rows(), m);
        parallel::for_each_chunk(threads, codes.data_mut(), BLOCK_ROWS * m, |at, chunk| {
            let first = at * BLOCK_ROWS * self.dim;
            let block = &vectors.data()[first..first + chunk.len() / m * self.dim];
            for i in 0..m {
                let points = Columns { data: block, stride: self.dim, first: i * part, count: part };
                // 256 centroids: the number fits a byte.
                nearest(points, self.codebook(i), |row, centroid| chunk[row * m + i] = centroid as u8);
            }
        });
        codes
    }

    /// The vectors [rows, dim] that codes stand for.
    pub fn decode(&self, codes: &Codes) -> Matrix {
        let mut vectors = Matrix::zeros(codes.rows(), self.dim);
        for row in 0..codes.rows() {
            self.decode_row(codes.row(row), vectors.row_mut(row));
        }
        vectors
    }

    /// The vector that one code stands for, into `vector` [dim].
    pub fn decode_row(&self, code: &[u8], vector: &mut [f32]) {
        let part = self.dim / self.subquantizers;
        for (i, (target, code)) in vector.chunks_exact_mut(part).zip(code).enumerate() {
            target.copy_from_slice(&self.codebook(i)[usize::from(*code) * part..][..part]);
        }
    }

    /// Tables for asymmetric distances: the inner product of each part of `query` [dim] with each of its centroids,
    /// [subquantizers, 256]. A passage's score is the sum of the entries that its code names, in the order of parts.
    pub fn tables(&self, query: &[f32]) -> Vec<f32> {
        let part = self.dim / self.subquantizers;
        let dot = |q: &[f32], c: &[f32]| q.iter().zip(c).fold(0.0f32, |sum, (q, c)| q.mul_add(*c, sum));
        let mut tables = Vec::with_capacity(self.subquantizers * CENTROIDS);
        for (i, q) in query.chunks_exact(part).enumerate() {
            tables.extend(self.codebook(i).chunks_exact(part).map(|c| dot(q, c)));
        }
        tables
    }
}

fn check_division(dim: usize, subquantizers: usize) -> Result<(), QuantizerError> {
    if dim == 0 || subquantizers == 0 || !dim.is_multiple_of(subquantizers) {
        return Err(QuantizerError::Division { dim, subquantizers });
    }
    Ok(())
}

/// Training vectors must be enough and finite.
pub(super) fn check_training(vectors: &Matrix) -> Result<(), QuantizerError> {
    super::quantizer::check_finite(vectors)?;
    if vectors.rows() < CENTROIDS {
        return Err(QuantizerError::TooFewVectors { got: vectors.rows(), needed: CENTROIDS });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{error, random};
    use super::*;

    #[test]
    fn codes_stand_for_near_vectors_whatever_the_threads() {
        let vectors = random(700, 12, 1);
        let train = |threads| ProductQuantizer::train(&vectors, 4, None, 10, 5, threads).unwrap();
        let pq = train(1);
        assert_eq!(pq, train(3));
        let codes = pq.encode(&vectors, 1);
        assert_eq!(codes, pq.encode(&vectors, 4));
        assert_eq!((codes.rows(), codes.bytes()), (700, 4));
        let decoded = pq.decode(&codes);
        assert!(error(&vectors, &decoded) < 0.3 * error(&vectors, &Matrix::zeros(700, 12)));
        // What codes stand for has that code itself.
        assert_eq!(pq.encode(&decoded, 2), codes);
        let finer = ProductQuantizer::train(&vectors, 6, None, 10, 5, 1).unwrap();
        assert!(error(&vectors, &finer.decode(&finer.encode(&vectors, 1))) < error(&vectors, &decoded));
    }

    #[test]
    fn tables_hold_the_products_with_the_decoded_vector() {
        let vectors = random(300, 8, 2);
        let pq = ProductQuantizer::train(&vectors, 2, None, 3, 1, 1).unwrap();
        let codes = pq.encode(&vectors, 1);
        let decoded = pq.decode(&codes);
        let (query, tables) = (vectors.row(7), pq.tables(vectors.row(7)));
        for row in 0..300 {
            let code = codes.row(row);
            let sum = tables[usize::from(code[0])] + tables[256 + usize::from(code[1])];
            let product: f32 = query.iter().zip(decoded.row(row)).map(|(q, x)| q * x).sum();
            assert!((sum - product).abs() < 1e-5);
        }
    }

    #[test]
    fn what_cannot_be_trained_is_refused() {
        let train = |rows, dim, m| {
            ProductQuantizer::train(&random(rows, dim, 3), m, None, 1, 1, 1).unwrap_err().to_string()
        };
        assert!(train(300, 10, 4).contains("4 sub-quantisers do not divide 10 dimensions"));
        assert!(train(300, 10, 0).contains("0 sub-quantisers"));
        assert!(train(255, 8, 4).contains("255 vectors"));
        let mut bad = random(300, 8, 3);
        bad.row_mut(17)[3] = f32::NAN;
        let error = ProductQuantizer::train(&bad, 4, None, 1, 1, 1).unwrap_err();
        assert_eq!(error, QuantizerError::NonFinite { row: 17 });
        assert!(ProductQuantizer::new(8, 4, vec![0.0; 9]).is_err());
        assert!(ProductQuantizer::new(8, 4, vec![f32::INFINITY; 256 * 8]).is_err());
    }
}
