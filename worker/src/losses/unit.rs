//! Normalisation inside the loss, and the way of its gradient back to unnormalised vectors.

use std::borrow::Cow;

use super::scalar::{Scalar, dot};
use super::spec::Similarity;

/// Vectors as a similarity compares them.
pub(super) struct Compared<'a, T: Scalar> {
    /// [n, dim]: the vectors themselves for a dot product, unit vectors for a cosine.
    pub vectors: Cow<'a, [T]>,
    dim: usize,
    /// [n] lengths of the vectors, empty for a dot product.
    norms: Vec<f64>,
}

impl<'a, T: Scalar> Compared<'a, T> {
    pub fn new(similarity: Similarity, vectors: &'a [T], dim: usize) -> Self {
        if similarity == Similarity::Dot || dim == 0 {
            return Self { vectors: Cow::Borrowed(vectors), dim, norms: Vec::new() };
        }
        let norms: Vec<f64> = vectors.chunks_exact(dim).map(|x| dot(x, x).sqrt()).collect();
        let mut unit = vectors.to_vec();
        for (row, norm) in unit.chunks_exact_mut(dim).zip(&norms) {
            // Only an exact zero is left alone: a NaN has to stay visible.
            if *norm != 0.0 {
                row.iter_mut().for_each(|x| *x = T::of(x.as_f64() / norm));
            }
        }
        Self { vectors: Cow::Owned(unit), dim, norms }
    }

    /// Vector `i`.
    pub fn row(&self, i: usize) -> &[T] {
        &self.vectors[i * self.dim..(i + 1) * self.dim]
    }

    /// Turns the gradient by compared vectors [n, dim] into that by the vectors given, in place:
    /// dx = (du − u (u · du)) / |x|, and zero for a zero vector, which has no direction to move in.
    pub fn backward(&self, gradient: &mut [T]) {
        for (i, norm) in self.norms.iter().enumerate() {
            let unit = self.row(i);
            let du = &mut gradient[i * self.dim..(i + 1) * self.dim];
            if *norm == 0.0 {
                du.fill(T::zero());
                continue;
            }
            let along = dot(unit, du);
            for (g, u) in du.iter_mut().zip(unit) {
                *g = T::of((g.as_f64() - u.as_f64() * along) / norm);
            }
        }
    }
}
