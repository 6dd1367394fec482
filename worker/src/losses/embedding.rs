//! Losses between student and teacher vectors, with or without a learnt projection between them.

use super::Scalar;
use super::scalar::dot;
use retort_kernels::matmul::{self, Sizes, Write};

/// How a student's vector is held against the teacher's.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Distance {
    /// Mean of squared differences of components.
    Mse,
    /// One minus the cosine.
    Cosine,
}

/// Vectors of one tower, with the teacher's of the same texts.
pub(super) struct Pairs<'a, T> {
    /// Student vectors [n, dim].
    pub student: &'a [T],
    pub dim: usize,
    /// Teacher vectors [n, teacher_dim].
    pub teacher: &'a [T],
    pub teacher_dim: usize,
}

/// A projection [teacher_dim, dim] and its gradient, which is added to.
pub(super) struct Projection<'a, T> {
    pub theta: &'a [T],
    pub gradient: &'a mut [T],
}

/// The mean distance over all vectors. Adds `weight` times the gradient by the student's vectors to
/// `gradient` [n, dim], and that by the projection to its own; `block` rows are held at a time.
pub(super) fn compare<T: Scalar>(
    distance: Distance,
    pairs: &Pairs<T>,
    mut projection: Option<Projection<T>>,
    weight: f64,
    block: usize,
    gradient: &mut [T],
) -> f64 {
    let Pairs { student, dim, teacher, teacher_dim } = *pairs;
    let count = student.len() / dim;
    let mut value = 0.0;
    let mut projected = vec![T::zero(); block.min(count) * teacher_dim];
    for start in (0..count).step_by(block) {
        let m = block.min(count - start);
        let x = &student[start * dim..(start + m) * dim];
        let target = &teacher[start * teacher_dim..(start + m) * teacher_dim];
        let dx = &mut gradient[start * dim..(start + m) * dim];
        let y = &mut projected[..m * teacher_dim];
        match &projection {
            Some(p) => matmul::nt(Sizes { m, n: teacher_dim, k: dim }, x, p.theta, y, Write::Overwrite),
            None => y.copy_from_slice(x),
        }
        for (y, z) in y.chunks_exact_mut(teacher_dim).zip(target.chunks_exact(teacher_dim)) {
            value += turn_into_gradient(distance, y, z, weight / count as f64);
        }
        match &mut projection {
            Some(p) => {
                matmul::nn(Sizes { m, n: dim, k: teacher_dim }, y, p.theta, dx, Write::Add);
                matmul::tn(Sizes { m: teacher_dim, n: dim, k: m }, y, x, p.gradient, Write::Add);
            }
            None => dx.iter_mut().zip(&*y).for_each(|(g, dy)| *g += *dy),
        }
    }
    value / count as f64
}

/// The distance of `y` from `z`; `y` becomes `factor` times its gradient.
fn turn_into_gradient<T: Scalar>(distance: Distance, y: &mut [T], z: &[T], factor: f64) -> f64 {
    match distance {
        Distance::Mse => {
            let dims = y.len() as f64;
            let mut value = 0.0;
            for (y, z) in y.iter_mut().zip(z) {
                let difference = y.as_f64() - z.as_f64();
                value += difference * difference;
                *y = T::of(factor * 2.0 * difference / dims);
            }
            value / dims
        }
        Distance::Cosine => {
            let (yy, zz) = (dot(y, y).sqrt(), dot(z, z).sqrt());
            if yy == 0.0 || zz == 0.0 {
                y.fill(T::zero());
                return 1.0;
            }
            let cosine = dot(y, z) / (yy * zz);
            for (y, z) in y.iter_mut().zip(z) {
                let slope = z.as_f64() / zz - cosine * y.as_f64() / yy;
                *y = T::of(-factor * slope / yy);
            }
            1.0 - cosine
        }
    }
}
