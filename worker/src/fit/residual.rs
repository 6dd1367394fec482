//! Residual quantisation (Chen, Guan and Wang, "Approximate nearest neighbor search by residual vector quantization",
//! Sensors 2010): a vector is a sum of whole vectors, one from each of `m` codebooks, whose numbers are kept.
//!
//! Codes are found by a beam search over the codebooks in turn. After a greedy start (k-means of what the codebooks
//! before leave), each round encodes again and moves every centroid to the mean of what the other codebooks leave to
//! it, so that later codebooks mend what earlier ones do (Babenko and Lempitsky, "Additive quantization", CVPR 2014).
//! For few bytes this keeps more of a vector than a product quantiser does.

use super::kmeans::{self, CENTROIDS, Columns};
use super::pq::check_training;
use super::quantizer::{Codes, QuantizerError};
use crate::matrix::Matrix;
use crate::parallel;
use retort_kernels::matmul::{self, Sizes, Write};

/// Rounds of k-means of one codebook.
const KMEANS: usize = 12;
/// How far from the mean clusters start, as a share of the drawn row's way. What the first codebooks leave has hardly any
/// direction: rows are about as far from each other as from the mean, or farther. A cluster that starts on a row keeps that row
/// alone, and most rows go to the few that lie nearest to the mean; starting near it they share the rows from the first round.
/// The first codebook, whose rows have directions, comes out about as good either way.
const START: f32 = 0.25;
/// Rounds of encoding and moving all codebooks.
const ROUNDS: usize = 3;
/// Partial codes that training keeps of a vector.
const TRAINING_BEAM: usize = 4;
/// Partial codes that encoding keeps of a vector.
const BEAM: usize = 16;
/// Rows that a thread encodes at a time.
const BLOCK_ROWS: usize = 256;

/// Codebooks whose entries add up to vectors.
#[derive(Clone, Debug, PartialEq)]
pub struct ResidualQuantizer {
    dim: usize,
    /// [bytes, 256, dim].
    codebooks: Vec<f32>,
}

impl ResidualQuantizer {
    /// Codebooks [bytes, 256, dim] as they were trained elsewhere.
    ///
    /// # Errors
    /// When the sizes do not fit or a value is not finite.
    pub fn new(dim: usize, codebooks: Vec<f32>) -> Result<Self, QuantizerError> {
        if dim == 0 || codebooks.is_empty() || !codebooks.len().is_multiple_of(CENTROIDS * dim) {
            return Err(QuantizerError::Codebooks { values: codebooks.len(), dim });
        }
        if codebooks.iter().any(|value| !value.is_finite()) {
            return Err(QuantizerError::NonFiniteCodebooks);
        }
        Ok(Self { dim, codebooks })
    }

    /// Trains `bytes` codebooks on vectors. The result does not depend on `threads`.
    ///
    /// # Errors
    /// When `bytes` is zero, there are fewer than 256 vectors, or one is not finite.
    pub fn train(vectors: &Matrix, bytes: usize, seed: u64, threads: usize) -> Result<Self, QuantizerError> {
        check_training(vectors)?;
        let dim = vectors.dim();
        if bytes == 0 || dim == 0 {
            return Err(QuantizerError::Division { dim, subquantizers: bytes });
        }
        let mut residual = vectors.data().to_vec();
        let mut codebooks = Vec::with_capacity(bytes * CENTROIDS * dim);
        for number in 0..bytes {
            let seed = crate::mining::counter::hash(seed, &[number as u64]);
            let points = Columns { data: &residual, stride: dim, first: 0, count: dim };
            let codebook = kmeans::train(points, Some(&near_mean(points, seed)), KMEANS, seed);
            let mut nearest = Vec::with_capacity(vectors.rows());
            kmeans::nearest(points, &codebook, |_, centroid| nearest.push(centroid as usize));
            for (row, centroid) in residual.chunks_exact_mut(dim).zip(nearest) {
                subtract(row, &codebook[centroid * dim..][..dim]);
            }
            codebooks.extend(codebook);
        }
        let mut quantizer = Self { dim, codebooks };
        for _ in 0..ROUNDS {
            let codes = quantizer.encode_with(vectors, TRAINING_BEAM, threads);
            quantizer.move_codebooks(vectors, &codes);
        }
        Ok(quantizer)
    }

    /// Dimensions of the vectors.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Number of codebooks, and bytes of a code.
    pub fn bytes(&self) -> usize {
        self.codebooks.len() / (CENTROIDS * self.dim)
    }

    /// All codebooks [bytes, 256, dim].
    pub fn codebooks(&self) -> &[f32] {
        &self.codebooks
    }

    fn codebook(&self, number: usize) -> &[f32] {
        let size = CENTROIDS * self.dim;
        &self.codebooks[number * size..][..size]
    }

    fn centroid(&self, number: usize, code: u8) -> &[f32] {
        &self.codebook(number)[usize::from(code) * self.dim..][..self.dim]
    }

    /// Codes of vectors [rows, dim]; vectors must be finite.
    pub fn encode(&self, vectors: &Matrix, threads: usize) -> Codes {
        self.encode_with(vectors, BEAM, threads)
    }

    fn encode_with(&self, vectors: &Matrix, beam: usize, threads: usize) -> Codes {
        let bytes = self.bytes();
        let mut codes = Codes::zeros(vectors.rows(), bytes);
        let norms: Vec<f32> = self.codebooks.chunks_exact(self.dim).map(square).collect();
        parallel::for_each_chunk(threads, codes.data_mut(), BLOCK_ROWS * bytes, |at, chunk| {
            let rows = chunk.len() / bytes;
            let block = &vectors.data()[at * BLOCK_ROWS * self.dim..][..rows * self.dim];
            self.encode_block(block, beam, &norms, chunk);
        });
        codes
    }

    /// Beam search of a block: of all rows' partial codes together, so that each codebook is one matrix product.
    fn encode_block(&self, block: &[f32], beam: usize, norms: &[f32], codes: &mut [u8]) {
        let (dim, bytes) = (self.dim, self.bytes());
        let rows = block.len() / dim;
        // Per partial code: what it leaves, its squared error less the row's own square, and its bytes so far.
        let (mut residual, mut cost) = (block.to_vec(), vec![0.0f32; rows]);
        let mut found: Vec<u8> = Vec::new();
        let mut width = 1;
        let mut best: Vec<(f32, u32)> = Vec::new();
        for number in 0..bytes {
            let mut products = vec![0.0; rows * width * CENTROIDS];
            let sizes = Sizes { m: rows * width, n: CENTROIDS, k: dim };
            matmul::nt(sizes, &residual, self.codebook(number), &mut products, Write::Overwrite);
            let norms = &norms[number * CENTROIDS..][..CENTROIDS];
            let kept = if number + 1 == bytes { 1 } else { beam.min(width * CENTROIDS) };
            let (mut next, mut next_cost) = (vec![0.0; rows * kept * dim], vec![0.0; rows * kept]);
            let mut next_found = vec![0; rows * kept * (number + 1)];
            for row in 0..rows {
                best.clear();
                for partial in row * width..(row + 1) * width {
                    let first = ((partial - row * width) * CENTROIDS) as u32;
                    let products = &products[partial * CENTROIDS..][..CENTROIDS];
                    best.extend(
                        products.iter().zip(norms).zip(first..).map(|((product, norm), at)| {
                            (2.0f32.mul_add(-*product, cost[partial] + norm), at)
                        }),
                    );
                }
                // Equal costs are ordered by number, so that the code is one and the same everywhere.
                let order = |a: &(f32, u32), b: &(f32, u32)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
                if kept < best.len() {
                    best.select_nth_unstable_by(kept - 1, order);
                    best.truncate(kept);
                }
                best.sort_unstable_by(order);
                for (slot, (value, at)) in best.iter().enumerate() {
                    let (from, code) = (row * width + *at as usize / CENTROIDS, *at as usize % CENTROIDS);
                    let to = row * kept + slot;
                    next_cost[to] = *value;
                    let target = &mut next[to * dim..][..dim];
                    target.copy_from_slice(&residual[from * dim..][..dim]);
                    subtract(target, &self.codebook(number)[code * dim..][..dim]);
                    let target = &mut next_found[to * (number + 1)..][..number + 1];
                    target[..number].copy_from_slice(&found[from * number..][..number]);
                    target[number] = code as u8;
                }
            }
            (residual, cost, found, width) = (next, next_cost, next_found, kept);
        }
        codes.copy_from_slice(&found);
    }

    /// Moves the centroids of one codebook after the other to the means of what all others leave to them.
    fn move_codebooks(&mut self, vectors: &Matrix, codes: &Codes) {
        let dim = self.dim;
        let mut residual = vectors.clone();
        for row in 0..residual.rows() {
            for (number, code) in codes.row(row).iter().enumerate() {
                subtract(residual.row_mut(row), self.centroid(number, *code));
            }
        }
        for number in 0..self.bytes() {
            let mut sums = vec![0.0f64; CENTROIDS * dim];
            let mut counts = [0u32; CENTROIDS];
            for row in 0..residual.rows() {
                let code = usize::from(codes.row(row)[number]);
                counts[code] += 1;
                let sum = &mut sums[code * dim..][..dim];
                sum.iter_mut().zip(residual.row(row)).for_each(|(sum, x)| *sum += f64::from(*x));
            }
            let size = CENTROIDS * dim;
            let codebook = &mut self.codebooks[number * size..][..size];
            let mut steps = vec![0.0f32; size];
            for (code, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
                for at in code * dim..(code + 1) * dim {
                    steps[at] = (sums[at] / f64::from(*count)) as f32;
                    codebook[at] += steps[at];
                }
            }
            for row in 0..residual.rows() {
                let code = usize::from(codes.row(row)[number]);
                subtract(residual.row_mut(row), &steps[code * dim..][..dim]);
            }
        }
    }

    /// The vector that one code stands for, into `vector` [dim].
    pub fn decode_row(&self, code: &[u8], vector: &mut [f32]) {
        vector.fill(0.0);
        for (number, code) in code.iter().enumerate() {
            vector.iter_mut().zip(self.centroid(number, *code)).for_each(|(x, c)| *x += c);
        }
    }

    /// Tables [bytes, 256] of `query` [dim] with all centroids, whose entries add up to inner products.
    pub fn tables(&self, query: &[f32]) -> Vec<f32> {
        let dot = |c: &[f32]| query.iter().zip(c).fold(0.0f32, |sum, (q, c)| q.mul_add(*c, sum));
        self.codebooks.chunks_exact(self.dim).map(dot).collect()
    }
}

/// First centroids [256, columns]: drawn rows, moved towards the mean of all.
fn near_mean(points: Columns<'_>, seed: u64) -> Vec<f32> {
    let mut mean = vec![0.0f64; points.count];
    for row in 0..points.rows() {
        mean.iter_mut().zip(points.row(row)).for_each(|(sum, x)| *sum += f64::from(*x));
    }
    let mean: Vec<f32> = mean.iter().map(|sum| (sum / points.rows() as f64) as f32).collect();
    let drawn = kmeans::draw(points.rows(), CENTROIDS, seed).into_iter();
    let near = |row: usize| points.row(row).iter().zip(&mean).map(|(x, mean)| START.mul_add(x - mean, *mean));
    drawn.flat_map(near).collect()
}

fn subtract(from: &mut [f32], what: &[f32]) {
    from.iter_mut().zip(what).for_each(|(x, y)| *x -= y);
}

fn square(vector: &[f32]) -> f32 {
    vector.iter().fold(0.0f32, |sum, x| x.mul_add(*x, sum))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{error, random};
    use super::*;
    use crate::fit::{Code, ProductQuantizer, Quantizer};

    fn decoded(code: Code, vectors: &Matrix) -> Matrix {
        let quantizer = Quantizer { map: None, code };
        quantizer.decode(&quantizer.encode(vectors, 1).unwrap()).unwrap()
    }

    #[test]
    fn codes_keep_more_than_those_of_a_product_quantizer_whatever_the_threads() {
        let vectors = random(900, 16, 1);
        let train = |threads| ResidualQuantizer::train(&vectors, 2, 5, threads).unwrap();
        let residual = train(1);
        assert_eq!(residual, train(3));
        assert_eq!(residual.encode(&vectors, 1), residual.encode(&vectors, 4));
        let product = ProductQuantizer::train(&vectors, 2, None, 25, 5, 1).unwrap();
        let (ours, theirs) = (
            error(&vectors, &decoded(Code::Residual(residual.clone()), &vectors)),
            error(&vectors, &decoded(Code::Product(product), &vectors)),
        );
        assert!(ours < theirs, "{ours} {theirs}");
        // A wider beam finds codes at least about as near.
        let beam = |beam| {
            let codes = residual.encode_with(&vectors, beam, 1);
            let quantizer = Quantizer { map: None, code: Code::Residual(residual.clone()) };
            error(&vectors, &quantizer.decode(&codes).unwrap())
        };
        assert!(beam(16) <= beam(1));
    }

    #[test]
    fn clusters_share_rows_that_lie_in_no_direction() {
        let noise = random(4096, 64, 3);
        let points = Columns { data: noise.data(), stride: 64, first: 0, count: 64 };
        let smallest = |start: Option<&[f32]>| {
            let mut counts = [0; CENTROIDS];
            let codebook = kmeans::train(points, start, KMEANS, 1);
            kmeans::nearest(points, &codebook, |_, centroid| counts[centroid as usize] += 1);
            counts.into_iter().min().unwrap()
        };
        let (near, far) = (smallest(Some(&near_mean(points, 1))), smallest(None));
        assert!(near > 2 && near > far, "{near} {far}");
    }

    #[test]
    fn tables_add_up_to_products_and_bad_parts_are_refused() {
        let vectors = random(300, 6, 2);
        let residual = ResidualQuantizer::train(&vectors, 3, 1, 1).unwrap();
        let (codes, tables) = (residual.encode(&vectors, 1), residual.tables(vectors.row(7)));
        let mut vector = vec![0.0; 6];
        for row in 0..vectors.rows() {
            residual.decode_row(codes.row(row), &mut vector);
            let product: f32 = vectors.row(7).iter().zip(&vector).map(|(q, x)| q * x).sum();
            let entries =
                codes.row(row).iter().enumerate().map(|(i, code)| tables[i * 256 + usize::from(*code)]);
            assert!((entries.sum::<f32>() - product).abs() < 1e-4);
        }
        assert!(ResidualQuantizer::new(6, vec![0.0; 7]).is_err());
        assert!(ResidualQuantizer::new(1, vec![f32::NAN; 256]).is_err());
        assert!(ResidualQuantizer::train(&random(255, 6, 1), 3, 1, 1).is_err());
        assert!(ResidualQuantizer::train(&vectors, 0, 1, 1).is_err());
    }
}
