//! Principal component analysis in one pass over the vectors: sums of x and xxᵀ in f64, then one
//! eigendecomposition. Memory is [dim, dim] however many vectors there are.

use nalgebra::{DMatrix, SymmetricEigen};

use super::quantizer::AffineMap;
use crate::matrix::Matrix;
use retort_kernels::matmul::{self, Sizes, Write};

/// Rows that are widened to f64 at a time.
const BLOCK_ROWS: usize = 512;

/// Sums over the vectors seen so far; accumulators of disjoint parts merge.
///
/// Sums depend in their last bits on how rows were cut into calls, so cut them alike for the same bits.
#[derive(Clone, Debug, PartialEq)]
pub struct PcaAccumulator {
    dim: usize,
    count: u64,
    sum: Vec<f64>,
    /// Σ xxᵀ [dim, dim].
    products: Vec<f64>,
    block: Vec<f64>,
}

/// Principal components of some vectors.
#[derive(Clone, Debug, PartialEq)]
pub struct Pca {
    /// Components of a vector.
    pub dim: usize,
    /// Vectors it was fitted to.
    pub count: u64,
    /// Mean vector [dim].
    pub mean: Vec<f64>,
    /// Unit directions as rows [dim, dim], by falling eigenvalue. The entry of largest magnitude in each
    /// is positive (the first, if several are), since an eigenvector's sign is arbitrary.
    pub components: Vec<f64>,
    /// Variances along them [dim], never negative, of the sample (divided by count − 1).
    pub eigenvalues: Vec<f64>,
}

/// Vectors that cannot be fitted or projected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PcaError {
    #[error("pca was fitted to {got} vectors, {needed} are needed: give it more")]
    TooFewVectors { got: u64, needed: u64 },
    #[error("pca has {pca} dimensions and the vectors {vectors}: give it vectors of the same model")]
    DimMismatch { pca: usize, vectors: usize },
    #[error("vector {row} of the block holds a value that is not finite: check the model that made it")]
    NonFinite { row: usize },
    #[error("pca to {dims} dimensions of {dim}: ask for 1 to {dim}")]
    Dims { dims: usize, dim: usize },
    #[error("pca did not converge: check the vectors for values out of range")]
    NoConvergence,
}

impl PcaAccumulator {
    /// Sums of no vectors of `dim` components.
    pub fn new(dim: usize) -> Self {
        Self { dim, count: 0, sum: vec![0.0; dim], products: vec![0.0; dim * dim], block: Vec::new() }
    }

    /// Vectors seen so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Adds the rows of `vectors` [n, dim]. On an error nothing is added.
    pub fn add(&mut self, vectors: &Matrix) -> Result<(), PcaError> {
        let dim = self.dim;
        if vectors.dim() != dim {
            return Err(PcaError::DimMismatch { pca: dim, vectors: vectors.dim() });
        }
        if dim == 0 {
            return Ok(());
        }
        if let Some(at) = vectors.data().iter().position(|x| !x.is_finite()) {
            return Err(PcaError::NonFinite { row: at / dim });
        }
        for rows in vectors.data().chunks(BLOCK_ROWS * dim) {
            self.block.clear();
            self.block.extend(rows.iter().map(|x| f64::from(*x)));
            for row in self.block.chunks_exact(dim) {
                self.sum.iter_mut().zip(row).for_each(|(s, x)| *s += x);
            }
            let k = self.block.len() / dim;
            matmul::tn(Sizes { m: dim, n: dim, k }, &self.block, &self.block, &mut self.products, Write::Add);
        }
        self.count += vectors.rows() as u64;
        Ok(())
    }

    /// Adds the sums of another part.
    pub fn merge(&mut self, other: &PcaAccumulator) -> Result<(), PcaError> {
        if other.dim != self.dim {
            return Err(PcaError::DimMismatch { pca: self.dim, vectors: other.dim });
        }
        self.count += other.count;
        self.sum.iter_mut().zip(&other.sum).for_each(|(a, b)| *a += b);
        self.products.iter_mut().zip(&other.products).for_each(|(a, b)| *a += b);
        Ok(())
    }

    /// The principal components of all vectors added; at least two are needed.
    pub fn finish(&self) -> Result<Pca, PcaError> {
        if self.count < 2 {
            return Err(PcaError::TooFewVectors { got: self.count, needed: 2 });
        }
        let (dim, n) = (self.dim, self.count as f64);
        let mean: Vec<f64> = self.sum.iter().map(|s| s / n).collect();
        // The upper triangle stands for both: rounding must not make the matrix asymmetric.
        let covariance = DMatrix::from_fn(dim, dim, |i, j| {
            let (i, j) = (i.min(j), i.max(j));
            (self.products[i * dim + j] - n * mean[i] * mean[j]) / (n - 1.0)
        });
        let eigen = SymmetricEigen::try_new(covariance, f64::EPSILON, 200 * dim.max(1))
            .ok_or(PcaError::NoConvergence)?;
        let mut order: Vec<usize> = (0..dim).collect();
        order.sort_by(|a, b| eigen.eigenvalues[*b].total_cmp(&eigen.eigenvalues[*a]).then(a.cmp(b)));
        let mut components = Vec::with_capacity(dim * dim);
        for &at in &order {
            let direction = eigen.eigenvectors.column(at);
            let largest = direction.iter().fold(0.0f64, |top, x| if x.abs() > top.abs() { *x } else { top });
            components.extend(direction.iter().map(|x| if largest < 0.0 { -x } else { *x }));
        }
        // A variance that should be zero may come out a rounding below it.
        let eigenvalues = order.iter().map(|at| eigen.eigenvalues[*at].max(0.0)).collect();
        Ok(Pca { dim, count: self.count, mean, components, eigenvalues })
    }
}

impl Pca {
    /// The first `dims` components as a map that takes the mean off first. `whiten` divides each by its standard
    /// deviation (Su et al., "Whitening sentence representations", 2021), `renormalise` scales to unit length.
    pub fn map(&self, dims: usize, whiten: bool, renormalise: bool) -> Result<AffineMap, PcaError> {
        let dim = self.dim;
        if dims == 0 || dims > dim {
            return Err(PcaError::Dims { dims, dim });
        }
        if self.count <= dims as u64 {
            return Err(PcaError::TooFewVectors { got: self.count, needed: dims as u64 + 1 });
        }
        // A direction without variance would blow rounding up; it keeps its size.
        let least = self.eigenvalues[0] * 1e-12;
        let scale = |at: usize| match self.eigenvalues[at] {
            variance if whiten && variance > least => 1.0 / variance.sqrt(),
            _ => 1.0,
        };
        let rows = self.components.chunks_exact(dim).take(dims).enumerate();
        let weight = rows.flat_map(|(at, row)| row.iter().map(move |x| (x * scale(at)) as f32)).collect();
        let offset = self.mean.iter().map(|x| *x as f32).collect();
        Ok(AffineMap::new(dims, weight, offset, renormalise).expect("as many weights as components"))
    }

    /// `vectors` [n, dim] along the first `dims` components: [n, dims]. `centre` takes the mean off first
    /// (leave it on for Euclidean distance; products of uncentred vectors keep the ranking by dot
    /// product), `renormalise` scales the result to unit length for cosine.
    pub fn project(
        &self,
        vectors: &Matrix,
        dims: usize,
        centre: bool,
        renormalise: bool,
    ) -> Result<Matrix, PcaError> {
        let dim = self.dim;
        if vectors.dim() != dim {
            return Err(PcaError::DimMismatch { pca: dim, vectors: vectors.dim() });
        }
        if dims == 0 || dims > dim {
            return Err(PcaError::Dims { dims, dim });
        }
        // n centred vectors span n − 1 directions; further components would be noise of rounding.
        if self.count <= dims as u64 {
            return Err(PcaError::TooFewVectors { got: self.count, needed: dims as u64 + 1 });
        }
        let mut projected = Vec::with_capacity(vectors.rows() * dims);
        let mut block = Vec::new();
        let mut out = Vec::new();
        for rows in vectors.data().chunks(BLOCK_ROWS * dim) {
            block.clear();
            block.extend(rows.iter().map(|x| f64::from(*x)));
            if centre {
                block
                    .chunks_exact_mut(dim)
                    .for_each(|x| x.iter_mut().zip(&self.mean).for_each(|(x, m)| *x -= m));
            }
            let m = block.len() / dim;
            out.resize(m * dims, 0.0);
            let directions = &self.components[..dims * dim];
            matmul::nt(Sizes { m, n: dims, k: dim }, &block, directions, &mut out, Write::Overwrite);
            projected.extend(out.iter().map(|x| *x as f32));
        }
        let mut projected = Matrix::new(vectors.rows(), dims, projected);
        if renormalise {
            projected.normalize_rows();
        }
        Ok(projected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mining::counter;

    fn random(rows: usize, dim: usize, seed: u64) -> Matrix {
        let value = |i: usize| counter::unit(counter::hash(seed, &[i as u64])) as f32 - 0.5;
        Matrix::new(rows, dim, (0..rows * dim).map(value).collect())
    }

    fn fit(vectors: &Matrix) -> Pca {
        let mut sums = PcaAccumulator::new(vectors.dim());
        sums.add(vectors).unwrap();
        sums.finish().unwrap()
    }

    #[test]
    fn known_directions_are_found() {
        // Four points on a cross: variance 2·9/3 along (3, 4)/5 scaled, 2·1/3 across, mean (10, 20).
        let vectors = Matrix::new(4, 2, vec![11.8, 22.4, 8.2, 17.6, 9.2, 20.6, 10.8, 19.4]);
        let pca = fit(&vectors);
        let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5);
        assert!(close(&pca.mean, &[10.0, 20.0]), "{pca:?}");
        assert!(close(&pca.eigenvalues, &[6.0, 2.0 / 3.0]), "{pca:?}");
        assert!(close(&pca.components, &[0.6, 0.8, 0.8, -0.6]), "{pca:?}");
        let one = pca.project(&vectors, 1, true, false).unwrap();
        assert!(one.data().iter().zip([3.0, -3.0, 0.0, 0.0]).all(|(a, b)| (a - b).abs() < 1e-5));
    }

    #[test]
    fn components_are_orthonormal_and_rebuild_the_vectors() {
        let (vectors, dim) = (random(1100, 24, 1), 24);
        let pca = fit(&vectors);
        let mut gram = vec![0.0; dim * dim];
        matmul::nt(
            Sizes { m: dim, n: dim, k: dim },
            &pca.components,
            &pca.components,
            &mut gram,
            Write::Overwrite,
        );
        for (at, x) in gram.iter().enumerate() {
            let want = if at / dim == at % dim { 1.0 } else { 0.0 };
            assert!((x - want).abs() < 1e-10);
        }
        assert!(pca.eigenvalues.is_sorted_by(|a, b| a >= b));
        let coordinates = pca.project(&vectors, dim, true, false).unwrap();
        for i in 0..vectors.rows() {
            for j in 0..dim {
                let along = |c: usize| f64::from(coordinates.row(i)[c]) * pca.components[c * dim + j];
                let rebuilt = pca.mean[j] + (0..dim).map(along).sum::<f64>();
                assert!((rebuilt - f64::from(vectors.row(i)[j])).abs() < 1e-5);
            }
        }
        let short = pca.project(&vectors, 5, false, true).unwrap();
        assert!(
            (0..vectors.rows()).all(|i| (short.row(i).iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5)
        );
    }

    #[test]
    fn parts_merge_into_the_whole() {
        let vectors = random(600, 8, 2);
        let part = |rows: std::ops::Range<usize>| {
            let data = vectors.data()[rows.start * 8..rows.end * 8].to_vec();
            let mut sums = PcaAccumulator::new(8);
            sums.add(&Matrix::new(rows.len(), 8, data)).unwrap();
            sums
        };
        let mut sums = part(0..250);
        sums.merge(&part(250..600)).unwrap();
        let (merged, whole) = (sums.finish().unwrap(), fit(&vectors));
        assert_eq!(merged.count, 600);
        let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-9);
        assert!(
            close(&merged.eigenvalues, &whole.eigenvalues) && close(&merged.components, &whole.components)
        );
    }

    #[test]
    fn wrong_input_is_refused() {
        let mut sums = PcaAccumulator::new(2);
        assert_eq!(sums.finish(), Err(PcaError::TooFewVectors { got: 0, needed: 2 }));
        assert_eq!(sums.add(&Matrix::zeros(1, 3)), Err(PcaError::DimMismatch { pca: 2, vectors: 3 }));
        let nan = Matrix::new(2, 2, vec![0.0, 1.0, f32::NAN, 2.0]);
        assert_eq!(sums.add(&nan), Err(PcaError::NonFinite { row: 1 }));
        assert_eq!(sums.count(), 0);
        sums.add(&Matrix::new(2, 2, vec![0.0, 1.0, 2.0, 2.0])).unwrap();
        let pca = sums.finish().unwrap();
        let project = |dims| pca.project(&Matrix::zeros(1, 2), dims, true, false).map(|_| ());
        assert_eq!(project(3), Err(PcaError::Dims { dims: 3, dim: 2 }));
        assert_eq!(project(2), Err(PcaError::TooFewVectors { got: 2, needed: 3 }));
        assert_eq!(project(1), Ok(()));
        assert!(pca.map(3, false, false).is_err() && pca.map(2, false, false).is_err());
    }

    #[test]
    fn a_map_projects_and_whitening_makes_variances_equal() {
        let vectors = random(500, 6, 9);
        let pca = fit(&vectors);
        let (mapped, projected) = (
            pca.map(3, false, true).unwrap().apply(&vectors, 2),
            pca.project(&vectors, 3, true, true).unwrap(),
        );
        assert!(mapped.data().iter().zip(projected.data()).all(|(a, b)| (a - b).abs() < 1e-5));
        let white = fit(&pca.map(4, true, false).unwrap().apply(&vectors, 1));
        assert!(white.eigenvalues.iter().all(|variance| (variance - 1.0).abs() < 1e-3), "{white:?}");
    }

    /// Prints what a fit costs: `cargo test --release fit -- --ignored --nocapture`.
    #[test]
    #[ignore = "a measurement"]
    fn cost_of_a_fit() {
        let vectors = random(20_000, 384, 3);
        let mut sums = PcaAccumulator::new(384);
        let start = std::time::Instant::now();
        sums.add(&vectors).unwrap();
        let added = start.elapsed();
        let pca = sums.finish().unwrap();
        eprintln!(
            "20000 x 384: sums {added:?}, eigen {:?}, first {}",
            start.elapsed() - added,
            pca.eigenvalues[0]
        );
    }
}
