//! Compression without a label: what students are measured against, and the codes that quantised students train.
//!
//! - [`pca`]: principal components, the direct rival of a distilled head
//! - [`quantizer`]: an affine map and a code as one thing, with its file and the codes of passages
//! - [`pq`], [`opq`]: product quantisation, and a rotation learnt for it
//! - [`itq`]: signs after a rotation learnt for them
//! - [`residual`]: sums of whole vectors, which keep more in few bytes
//! - [`scalar`]: a signed byte or a bit for each dimension
//! - [`kmeans`]: the clustering under both

pub mod itq;
pub mod kmeans;
pub mod opq;
pub mod pca;
pub mod pq;
pub mod quantizer;
pub mod residual;
pub mod scalar;

pub use itq::train_itq;
pub use opq::train_opq;
pub use pca::{Pca, PcaAccumulator, PcaError};
pub use pq::ProductQuantizer;
pub use quantizer::{AffineMap, Code, Codes, Quantizer, QuantizerError};
pub use residual::ResidualQuantizer;
pub use scalar::{BinaryQuantizer, Int8Quantizer};

#[cfg(test)]
mod tests {
    use super::{
        BinaryQuantizer, Code, Int8Quantizer, PcaAccumulator, ProductQuantizer, Quantizer, ResidualQuantizer,
        opq, train_opq,
    };
    use crate::matrix::Matrix;
    use crate::mining::counter;
    use crate::search::codes::CodeQueries;
    use crate::search::dense::search_block;
    use crate::search::topk::TopK;

    /// Values in [-0.5, 0.5).
    pub(super) fn random(rows: usize, dim: usize, seed: u64) -> Matrix {
        let value = |i: usize| counter::unit(counter::hash(seed, &[i as u64])) as f32 - 0.5;
        Matrix::new(rows, dim, (0..rows * dim).map(value).collect())
    }

    /// Σ (a − b)².
    pub(super) fn error(a: &Matrix, b: &Matrix) -> f64 {
        a.data().iter().zip(b.data()).map(|(a, b)| f64::from(a - b).powi(2)).sum()
    }

    /// Vectors of zeros and vectors that are all the same teach nothing: every quantiser gives them back, finite, and every
    /// search ranks by row.
    #[test]
    fn zero_and_equal_vectors_are_defined() {
        for value in [0.0f32, 0.25] {
            let vectors = Matrix::new(300, 8, vec![value; 300 * 8]);
            let product = ProductQuantizer::train(&vectors, 4, None, 3, 1, 1).unwrap();
            let (rotation, rotated) = train_opq(&vectors, 4, 3, 1, 1).unwrap();
            let plain = |code| Quantizer { map: None, code };
            let mut quantizers = vec![
                plain(Code::Product(product)),
                Quantizer { map: Some(rotation), code: Code::Product(rotated) },
                plain(Code::Residual(ResidualQuantizer::train(&vectors, 2, 1, 1).unwrap())),
                plain(Code::Int8(Int8Quantizer::train(&vectors).unwrap())),
                plain(Code::Binary(BinaryQuantizer::train(&vectors).unwrap())),
            ];
            let mut sums = PcaAccumulator::new(8);
            sums.add(&vectors).unwrap();
            for (whiten, renormalise) in [(false, false), (true, false), (true, true)] {
                let map = sums.finish().unwrap().map(4, whiten, renormalise).unwrap();
                let mapped = map.apply(&vectors, 1);
                assert!(mapped.data().iter().all(|x| x.is_finite() && x.abs() <= 1.0));
                let code = Code::Int8(Int8Quantizer::train(&mapped).unwrap());
                quantizers.push(Quantizer { map: Some(map), code });
            }
            for (at, quantizer) in quantizers.iter().enumerate() {
                let codes = quantizer.encode(&vectors, 2).unwrap();
                let decoded = quantizer.decode(&codes).unwrap();
                let mapped = quantizer.mapped(&vectors, 1).unwrap();
                let off = error(&decoded, &mapped) / 300.0;
                assert!(off < 1e-3, "quantiser {at} is off by {off}");
                let queries = Matrix::new(2, 8, vec![value; 16]);
                let mut top = TopK::new(2, 1000);
                CodeQueries::new(quantizer, &queries, 1).unwrap().search(&codes, 0, 2, &mut top).unwrap();
                for hits in top.into_ranked() {
                    assert_eq!(hits.len(), 300, "more than there are gives all");
                    assert!(hits.iter().map(|hit| hit.row).eq(0..300), "equal scores go by row");
                }
            }
            let mut top = TopK::new(300, 1000);
            search_block(&vectors, &vectors, 0, 2, &mut top).unwrap();
            assert!(top.into_ranked().iter().all(|hits| hits.iter().map(|hit| hit.row).eq(0..300)));
        }
    }

    #[test]
    fn too_few_odd_and_not_finite_vectors_are_refused_by_every_fit() {
        let check = |vectors: &Matrix, bytes: usize, expected: &str| {
            let product = ProductQuantizer::train(vectors, bytes, None, 1, 1, 1).map(|_| ());
            let rotated = train_opq(vectors, bytes, opq::ROUNDS, 1, 1).map(|_| ());
            for outcome in [product, rotated] {
                let told = outcome.unwrap_err().to_string();
                assert!(told.contains(expected), "{told}");
            }
        };
        check(&random(300, 10, 1), 4, "4 sub-quantisers do not divide 10 dimensions");
        check(&random(255, 8, 1), 4, "needs at least 256 vectors");
        for bad in [f32::NAN, f32::INFINITY] {
            let mut vectors = random(300, 8, 1);
            vectors.row_mut(9)[1] = bad;
            check(&vectors, 4, "vector 9 holds a value that is not finite");
            assert!(ResidualQuantizer::train(&vectors, 2, 1, 1).is_err());
            assert!(Int8Quantizer::train(&vectors).is_err() && BinaryQuantizer::train(&vectors).is_err());
            assert!(PcaAccumulator::new(8).add(&vectors).is_err());
        }
    }
}
