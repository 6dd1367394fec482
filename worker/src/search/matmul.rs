//! Matrix products on row-major slices, for `f32` and `f64`.
//!
//! They run on one thread through nalgebra's safe views over the `matrixmultiply` kernels (AVX2 with fused
//! multiply-add where the machine has it), which measured as fast as the `gemm` crate at our shapes and
//! need no unsafe code here. Callers parallelise over blocks.
//!
//! Every product takes the same kernel whatever its size, so an element depends to the bit only on its row
//! and its column, not on what else is multiplied along with them.

use nalgebra::{DMatrixView, DMatrixViewMut, Dyn, U1};

/// The element types that have a fast kernel.
pub trait Real: nalgebra::RealField + Copy {}

impl Real for f32 {}
impl Real for f64 {}

/// `out[m, n] = a[m, k] · b[k, n]`.
///
/// # Panics
/// When a slice's length does not fit its shape.
pub fn matmul_nn<T: Real>(a: &[T], b: &[T], m: usize, n: usize, k: usize, out: &mut [T]) {
    product(Operand { data: a, row: k, column: 1 }, Operand { data: b, row: n, column: 1 }, m, n, k, out);
}

/// `out[m, n] = a[m, k] · b[n, k]ᵀ`: the inner products of the rows of `a` with the rows of `b`.
///
/// # Panics
/// When a slice's length does not fit its shape.
pub fn matmul_nt<T: Real>(a: &[T], b: &[T], m: usize, n: usize, k: usize, out: &mut [T]) {
    product(Operand { data: a, row: k, column: 1 }, Operand { data: b, row: 1, column: k }, m, n, k, out);
}

/// `out[m, n] = a[k, m]ᵀ · b[k, n]`.
///
/// # Panics
/// When a slice's length does not fit its shape.
pub fn matmul_tn<T: Real>(a: &[T], b: &[T], m: usize, n: usize, k: usize, out: &mut [T]) {
    product(Operand { data: a, row: 1, column: m }, Operand { data: b, row: n, column: 1 }, m, n, k, out);
}

/// No side of a product that reaches nalgebra is shorter. Up to 5 nalgebra leaves the kernel for loops that
/// round otherwise and that read out of bounds on strided views (0.35.0), so smaller operands are padded
/// with zeros; the test at exactly this size fails if nalgebra raises its limit.
const MIN_SIDE: usize = 8;

/// A slice with the steps between its rows and between its columns, as the product sees them.
struct Operand<'a, T> {
    data: &'a [T],
    row: usize,
    column: usize,
}

impl<T: Real> Operand<'_, T> {
    /// A row-major copy of the [rows, columns] operand with zeros up to the shape `to`.
    fn padded(&self, (rows, columns): (usize, usize), to: (usize, usize)) -> Vec<T> {
        let mut padded = vec![T::zero(); to.0 * to.1];
        for (i, row) in padded.chunks_exact_mut(to.1).take(rows).enumerate() {
            for (j, value) in row.iter_mut().take(columns).enumerate() {
                *value = self.data[i * self.row + j * self.column];
            }
        }
        padded
    }
}

fn product<T: Real>(a: Operand<T>, b: Operand<T>, m: usize, n: usize, k: usize, out: &mut [T]) {
    assert_eq!(a.data.len(), m * k, "the left side of a [{m}, {k}] x [{k}, {n}] product");
    assert_eq!(b.data.len(), k * n, "the right side of a [{m}, {k}] x [{k}, {n}] product");
    assert_eq!(out.len(), m * n, "the result of a [{m}, {k}] x [{k}, {n}] product");
    if m == 0 || n == 0 {
        return;
    }
    let (pm, pn, pk) = (m.max(MIN_SIDE), n.max(MIN_SIDE), k.max(MIN_SIDE));
    let (a_copy, b_copy);
    let a = if (pm, pk) == (m, k) {
        a
    } else {
        a_copy = a.padded((m, k), (pm, pk));
        Operand { data: &a_copy, row: pk, column: 1 }
    };
    let b = if (pk, pn) == (k, n) {
        b
    } else {
        b_copy = b.padded((k, n), (pk, pn));
        Operand { data: &b_copy, row: pn, column: 1 }
    };
    if (pm, pn) == (m, n) {
        kernel(a, b, m, n, pk, out);
        return;
    }
    let mut padded = vec![T::zero(); pm * pn];
    kernel(a, b, pm, pn, pk, &mut padded);
    for (row, padded) in out.chunks_exact_mut(n).zip(padded.chunks_exact(pn)) {
        row.copy_from_slice(&padded[..n]);
    }
}

/// A row-major [m, n] slice is a column-major [n, m] one, and nalgebra is column-major, so the product is
/// written as outᵀ = bᵀ · aᵀ and every transposition is only an exchange of steps.
fn kernel<T: Real>(a: Operand<T>, b: Operand<T>, m: usize, n: usize, k: usize, out: &mut [T]) {
    let left =
        DMatrixView::from_slice_with_strides_generic(b.data, Dyn(n), Dyn(k), Dyn(b.column), Dyn(b.row));
    let right =
        DMatrixView::from_slice_with_strides_generic(a.data, Dyn(k), Dyn(m), Dyn(a.column), Dyn(a.row));
    let mut target = DMatrixViewMut::<T, U1, Dyn>::from_slice_generic(out, Dyn(n), Dyn(m));
    target.gemm(T::one(), &left, &right, T::zero());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares the three products with the definition; small integers make every sum exact.
    fn check<T: Real + From<i8>>(m: usize, n: usize, k: usize) {
        let value = |i: usize, j: usize, salt: usize| T::from(((i * 7 + j * 13 + salt) % 17) as i8 - 8);
        let fill = |rows: usize, columns: usize, salt: usize, transposed: bool| -> Vec<T> {
            (0..rows * columns)
                .map(|at| (at / columns, at % columns))
                .map(|(i, j)| if transposed { value(j, i, salt) } else { value(i, j, salt) })
                .collect()
        };
        let mut expected = vec![T::zero(); m * n];
        for i in 0..m {
            for j in 0..n {
                for l in 0..k {
                    expected[i * n + j] += value(i, l, 1) * value(l, j, 5);
                }
            }
        }
        let (a, at) = (fill(m, k, 1, false), fill(k, m, 1, true));
        let (b, bt) = (fill(k, n, 5, false), fill(n, k, 5, true));
        let stale = vec![T::from(99); m * n];
        let mut out = stale.clone();
        matmul_nn(&a, &b, m, n, k, &mut out);
        assert_eq!(out, expected, "nn {m} {n} {k}");
        out.clone_from(&stale);
        matmul_nt(&a, &bt, m, n, k, &mut out);
        assert_eq!(out, expected, "nt {m} {n} {k}");
        out.clone_from(&stale);
        matmul_tn(&at, &b, m, n, k, &mut out);
        assert_eq!(out, expected, "tn {m} {n} {k}");
    }

    const SHAPES: [(usize, usize, usize); 12] = [
        (1, 1, 1),
        (3, 4, 5),
        (0, 3, 2),
        (3, 0, 2),
        (2, 3, 0),
        (6, 7, 8),
        (8, 8, 8),
        (9, 2, 20),
        (2, 9, 20),
        (20, 9, 2),
        (1, 40, 64),
        (33, 70, 300),
    ];

    #[test]
    fn products_equal_the_definition_at_small_and_kernel_sizes() {
        for (m, n, k) in SHAPES {
            check::<f32>(m, n, k);
            check::<f64>(m, n, k);
        }
    }
}
