//! Matrix products on row-major slices, single-threaded and deterministic.
//!
//! They go through nalgebra's strided views, whose product is the `matrixmultiply` crate: a safe call
//! over packed SIMD kernels. This file is the only place to change for another library. The kernels
//! are picked from the CPU's features, so bits belong to a numerics fingerprint.

use nalgebra::{DMatrixView, DMatrixViewMut, Dyn, RealField};

/// What a product does with the former content of its output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// out = product.
    Overwrite,
    /// out += product.
    Add,
}

/// The sizes of a product: [m, k] by [k, n] gives [m, n].
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Rows of the output.
    pub m: usize,
    /// Columns of the output.
    pub n: usize,
    /// The dimension summed over.
    pub k: usize,
}

/// out [m, n] = a [m, k] · b [n, k]ᵀ.
pub fn nt<T: RealField + Copy>(sizes: Sizes, a: &[T], b: &[T], out: &mut [T], write: Write) {
    product(sizes, (a, sizes.k, 1), (b, 1, sizes.k), out, write);
}

/// out [m, n] = a [m, k] · b [k, n].
pub fn nn<T: RealField + Copy>(sizes: Sizes, a: &[T], b: &[T], out: &mut [T], write: Write) {
    product(sizes, (a, sizes.k, 1), (b, sizes.n, 1), out, write);
}

/// out [m, n] = a [k, m]ᵀ · b [k, n].
pub fn tn<T: RealField + Copy>(sizes: Sizes, a: &[T], b: &[T], out: &mut [T], write: Write) {
    product(sizes, (a, 1, sizes.m), (b, sizes.n, 1), out, write);
}

/// Up to this size nalgebra leaves `matrixmultiply` for loops that, in 0.35.0, form slices too short for
/// a row stride above one: a debug build aborts in them. Such products are made here instead.
const SMALL: usize = 5;

/// The product of two (slice, row stride, column stride) views into a row-major output.
fn product<T: RealField + Copy>(
    Sizes { m, n, k }: Sizes,
    (a, a_row, a_col): (&[T], usize, usize),
    (b, b_row, b_col): (&[T], usize, usize),
    out: &mut [T],
    write: Write,
) {
    assert_eq!(
        (a.len(), b.len(), out.len()),
        (m * k, k * n, m * n),
        "slices of a [{m}, {k}] x [{k}, {n}] product"
    );
    if out.is_empty() {
        return;
    }
    if k == 0 {
        if write == Write::Overwrite {
            out.fill(T::zero());
        }
        return;
    }
    if m.min(n).min(k) <= SMALL {
        if write == Write::Overwrite {
            out.fill(T::zero());
        }
        for (at, value) in out.iter_mut().enumerate() {
            let (i, j) = (at / n, at % n);
            *value +=
                (0..k).fold(T::zero(), |sum, l| sum + a[i * a_row + l * a_col] * b[l * b_row + j * b_col]);
        }
        return;
    }
    let a = DMatrixView::<T, Dyn, Dyn>::from_slice_with_strides(a, m, k, a_row, a_col);
    let b = DMatrixView::<T, Dyn, Dyn>::from_slice_with_strides(b, k, n, b_row, b_col);
    let mut out = DMatrixViewMut::<T, Dyn, Dyn>::from_slice_with_strides_mut(out, m, n, n, 1);
    let beta = if write == Write::Add { T::one() } else { T::zero() };
    out.gemm(T::one(), &a, &b, beta);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive(
        Sizes { m, n, k }: Sizes,
        a: impl Fn(usize, usize) -> f64,
        b: impl Fn(usize, usize) -> f64,
    ) -> Vec<f64> {
        (0..m * n).map(|at| (0..k).map(|l| a(at / n, l) * b(l, at % n)).sum()).collect()
    }

    proptest! {
        #[test]
        fn products_agree_with_the_definition(m in 1usize..20, n in 1usize..20, k in 1usize..20, add: bool) {
            let sizes = Sizes { m, n, k };
            let fill = |len: usize, seed: usize| (0..len).map(|i| (((i * 37 + seed) % 23) as f64 - 11.0) / 7.0).collect::<Vec<_>>();
            let (a, b) = (fill(m * k, 3), fill(n * k, 5));
            let write = if add { Write::Add } else { Write::Overwrite };
            let base = if add { 2.0 } else { 0.0 };
            let check = |got: Vec<f64>, want: Vec<f64>| got.iter().zip(&want).all(|(g, w)| (g - w - base).abs() < 1e-12);
            let mut out = vec![2.0; m * n];
            nt(sizes, &a, &b, &mut out, write);
            prop_assert!(check(out, naive(sizes, |i, l| a[i * k + l], |l, j| b[j * k + l])));
            let mut out = vec![2.0; m * n];
            nn(sizes, &a, &b, &mut out, write);
            prop_assert!(check(out, naive(sizes, |i, l| a[i * k + l], |l, j| b[l * n + j])));
            let mut out = vec![2.0; m * n];
            tn(sizes, &a, &b, &mut out, write);
            prop_assert!(check(out, naive(sizes, |i, l| a[l * m + i], |l, j| b[l * n + j])));
        }
    }
}
