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
    /// Vectors [n, dim] as `similarity` has them.
    pub fn new(similarity: Similarity, vectors: Cow<'a, [T]>, dim: usize) -> Self {
        if similarity == Similarity::Dot || dim == 0 {
            return Self { vectors, dim, norms: Vec::new() };
        }
        let norms: Vec<f64> = vectors.chunks_exact(dim).map(|x| dot(x, x).sqrt()).collect();
        let mut unit = vectors.into_owned();
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

/// The leading `dim` components of vectors [n, whole].
pub(super) fn leading<T: Scalar>(vectors: &[T], whole: usize, dim: usize) -> Cow<'_, [T]> {
    if dim == whole {
        return Cow::Borrowed(vectors);
    }
    Cow::Owned(vectors.chunks_exact(whole).flat_map(|row| &row[..dim]).copied().collect())
}

/// Adds vectors [n, dim] to the leading components of `target` [n, whole].
pub(super) fn add_leading<T: Scalar>(target: &mut [T], whole: usize, vectors: &[T], dim: usize) {
    for (target, row) in target.chunks_exact_mut(whole).zip(vectors.chunks_exact(dim)) {
        target.iter_mut().zip(row).for_each(|(t, v)| *t += *v);
    }
}
