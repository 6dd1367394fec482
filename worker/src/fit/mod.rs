//! Compression without a label: what students are measured against, and the codes that quantised students train.
//!
//! - [`pca`]: principal components, the direct rival of a distilled head
//! - [`quantizer`]: an affine map and a code as one thing, with its file and the codes of passages
//! - [`pq`], [`opq`]: product quantisation, and a rotation learnt for it
//! - [`residual`]: sums of whole vectors, which keep more in few bytes
//! - [`scalar`]: a signed byte or a bit for each dimension
//! - [`kmeans`]: the clustering under both

pub mod kmeans;
pub mod opq;
pub mod pca;
pub mod pq;
pub mod quantizer;
pub mod residual;
pub mod scalar;

pub use opq::train_opq;
pub use pca::{Pca, PcaAccumulator, PcaError};
pub use pq::ProductQuantizer;
pub use quantizer::{AffineMap, Code, Codes, Quantizer, QuantizerError};
pub use residual::ResidualQuantizer;
pub use scalar::{BinaryQuantizer, Int8Quantizer};

#[cfg(test)]
mod tests {
    use crate::matrix::Matrix;
    use crate::mining::counter;

    /// Values in [-0.5, 0.5).
    pub(super) fn random(rows: usize, dim: usize, seed: u64) -> Matrix {
        let value = |i: usize| counter::unit(counter::hash(seed, &[i as u64])) as f32 - 0.5;
        Matrix::new(rows, dim, (0..rows * dim).map(value).collect())
    }

    /// Σ (a − b)².
    pub(super) fn error(a: &Matrix, b: &Matrix) -> f64 {
        a.data().iter().zip(b.data()).map(|(a, b)| f64::from(a - b).powi(2)).sum()
    }
}
