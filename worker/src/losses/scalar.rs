//! The two number types losses are computed in: f32 in training, f64 when gradients are checked.

/// f32 or f64. Reductions over a row are always made in f64, whichever this is.
pub trait Scalar: nalgebra::RealField + retort_kernels::matmul::Element {
    /// The nearest value to `x`.
    fn of(x: f64) -> Self;
    /// The value in f64, exactly.
    fn as_f64(self) -> f64;
}

impl Scalar for f32 {
    fn of(x: f64) -> Self {
        x as f32
    }

    fn as_f64(self) -> f64 {
        f64::from(self)
    }
}

impl Scalar for f64 {
    fn of(x: f64) -> Self {
        x
    }

    fn as_f64(self) -> f64 {
        self
    }
}

/// Σ a·b in f64, from left to right.
pub(crate) fn dot<T: Scalar>(a: &[T], b: &[T]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x.as_f64() * y.as_f64()).sum()
}

/// target += factor · source.
pub(crate) fn add_scaled<T: Scalar>(target: &mut [T], factor: f64, source: &[T]) {
    let factor = T::of(factor);
    target.iter_mut().zip(source).for_each(|(t, s)| *t += factor * *s);
}
