//! Matrix products on row-major slices, for `f32` and `f64`, on one thread; callers parallelise over blocks, or have
//! [`on_pool`] do it.
//!
//! Every element of a product is one chain of fused multiply-adds in the order of the summed dimension,
//! starting from zero or from what stands in the output. So it has the same bits on every machine with fused
//! multiply-add, whatever is multiplied along with it and wherever a block is cut.
//!
//! - `kernel`: the register-blocked kernel, over `pulp`'s safe view of AVX-512, AVX2 and NEON, and packing

pub mod kernel;

pub use kernel::{Element, Strided};
use kernel::{REGISTERS, ROWS, Tile, multiply, pack_columns, pack_rows};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Most of the summed dimension that is packed at a time.
const DEPTH: usize = 512;
/// Most columns that are packed at a time: with the depth, 1 MiB of f32, which a second-level cache holds.
const COLUMNS: usize = 512;

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

/// out [m, n] = a [m, k] · b [n, k]ᵀ: the inner products of the rows of `a` with the rows of `b`.
///
/// # Panics
/// When a slice's length does not fit its shape.
pub fn nt<T: Element>(sizes: Sizes, a: &[T], b: &[T], out: &mut [T], write: Write) {
    let b = Strided { data: b, row: 1, column: sizes.k };
    product(sizes, Strided { data: a, row: sizes.k, column: 1 }, b, out, write);
}

/// out [m, n] = a [m, k] · b [k, n].
///
/// # Panics
/// When a slice's length does not fit its shape.
pub fn nn<T: Element>(sizes: Sizes, a: &[T], b: &[T], out: &mut [T], write: Write) {
    let b = Strided { data: b, row: sizes.n, column: 1 };
    product(sizes, Strided { data: a, row: sizes.k, column: 1 }, b, out, write);
}

/// out [m, n] = a [k, m]ᵀ · b [k, n].
///
/// # Panics
/// When a slice's length does not fit its shape.
pub fn tn<T: Element>(sizes: Sizes, a: &[T], b: &[T], out: &mut [T], write: Write) {
    let b = Strided { data: b, row: sizes.n, column: 1 };
    product(sizes, Strided { data: a, row: 1, column: sizes.m }, b, out, write);
}

fn product<T: Element>(sizes: Sizes, a: Strided<'_, T>, b: Strided<'_, T>, out: &mut [T], write: Write) {
    let Sizes { m, n, k } = sizes;
    assert_eq!(
        (a.data.len(), b.data.len(), out.len()),
        (m * k, k * n, m * n),
        "slices of a [{m}, {k}] x [{k}, {n}] product"
    );
    strided(sizes, a, b, (out, n), write);
}

/// out [m, n] = a [m, k] · b [k, n] for operands with any steps between rows and columns; the output's rows are `stride`
/// values apart.
///
/// # Panics
/// When a slice does not hold its shape.
pub fn strided<T: Element>(
    sizes: Sizes,
    a: Strided<'_, T>,
    b: Strided<'_, T>,
    (out, stride): (&mut [T], usize),
    write: Write,
) {
    let Sizes { m, n, k } = sizes;
    if m == 0 || n == 0 {
        return;
    }
    let last = (m - 1) * stride + n;
    assert!(
        a.holds(m, k) && b.holds(k, n) && last <= out.len() && n <= stride,
        "slices of a [{m}, {k}] x [{k}, {n}] product"
    );
    if write == Write::Overwrite {
        out.chunks_mut(stride).take(m).for_each(|row| row[..n].fill(T::default()));
    }
    if k > 0 {
        Arch::new().dispatch(Product { sizes, a, b, out, stride });
    }
}

/// [`strided`] with rows one after the other, on the threads of rayon's pool; they change no bit.
///
/// # Panics
/// When a slice does not hold its shape.
pub fn on_pool(sizes: Sizes, a: Strided<'_, f32>, b: Strided<'_, f32>, out: &mut [f32], write: Write) {
    /// Multiplications that are worth a thread of their own.
    const LEAST_WORK: usize = 1 << 21;
    let Sizes { m, n, k } = sizes;
    assert_eq!(out.len(), m * n, "the output of a [{m}, {k}] x [{k}, {n}] product");
    let threads = rayon::current_num_threads().min(m * n * k / LEAST_WORK).max(1);
    // Each packs the right side for itself: as few parts as there are threads.
    let rows = m.div_ceil(threads).next_multiple_of(ROWS);
    if threads == 1 || m <= rows || n == 0 {
        return strided(sizes, a, b, (out, n), write);
    }
    out.par_chunks_mut(rows * n).enumerate().for_each(|(part, out)| {
        let a = Strided { data: &a.data[(part * rows * a.row).min(a.data.len())..], ..a };
        strided(Sizes { m: out.len() / n, n, k }, a, b, (out, n), write);
    });
}

/// out += a · b, for the machine's vector registers.
struct Product<'a, T> {
    sizes: Sizes,
    a: Strided<'a, T>,
    b: Strided<'a, T>,
    out: &'a mut [T],
    stride: usize,
}

impl<T: Element> WithSimd for Product<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { sizes: Sizes { m, n, k }, a, b, out, stride } = self;
        let width = REGISTERS * T::lanes::<S>();
        let depth = DEPTH.min(k);
        let mut rows = vec![T::default(); depth * ROWS];
        let mut columns = vec![T::default(); depth * COLUMNS.min(n).next_multiple_of(width)];
        let mut edge = vec![T::default(); ROWS * width];
        for first_column in (0..n).step_by(COLUMNS) {
            let last_column = n.min(first_column + COLUMNS);
            for start in (0..k).step_by(DEPTH) {
                let end = k.min(start + DEPTH);
                let panel = (end - start) * width;
                for (at, column) in (first_column..last_column).step_by(width).enumerate() {
                    let count = width.min(last_column - column);
                    let target = &mut columns[at * panel..(at + 1) * panel];
                    pack_columns(b, (column, count), (start, end), width, target);
                }
                for row in (0..m).step_by(ROWS) {
                    let count = ROWS.min(m - row);
                    pack_rows(a, (row, count), (start, end), &mut rows);
                    let rows = &rows[..(end - start) * ROWS];
                    for (at, column) in (first_column..last_column).step_by(width).enumerate() {
                        let columns = &columns[at * panel..(at + 1) * panel];
                        let wide = width.min(last_column - column);
                        let place = Place { out, row, column, stride };
                        if count == ROWS && wide == width {
                            whole(simd, rows, columns, place);
                        } else {
                            partial(simd, rows, columns, place, (count, wide), &mut edge);
                        }
                    }
                }
            }
        }
    }
}

/// Where a tile lies in the output.
struct Place<'a, T> {
    out: &'a mut [T],
    row: usize,
    column: usize,
    stride: usize,
}

#[inline(always)]
fn whole<S: Simd, T: Element>(simd: S, rows: &[T], columns: &[T], place: Place<'_, T>) {
    let Place { out, row, column, stride } = place;
    let width = REGISTERS * T::lanes::<S>();
    let mut tile: Tile<T, S> = [[T::splat(simd, T::default()); REGISTERS]; ROWS];
    for (i, sums) in tile.iter_mut().enumerate() {
        sums.copy_from_slice(T::as_lanes::<S>(&out[(row + i) * stride + column..][..width]));
    }
    multiply(simd, rows, columns, &mut tile);
    for (i, sums) in tile.iter().enumerate() {
        T::as_lanes_mut::<S>(&mut out[(row + i) * stride + column..][..width]).copy_from_slice(sums);
    }
}

/// A tile that reaches over the output's edge goes through a buffer.
#[inline(always)]
fn partial<S: Simd, T: Element>(
    simd: S,
    rows: &[T],
    columns: &[T],
    place: Place<'_, T>,
    (count, wide): (usize, usize),
    edge: &mut [T],
) {
    let Place { out, row, column, stride } = place;
    let width = REGISTERS * T::lanes::<S>();
    edge.fill(T::default());
    for i in 0..count {
        edge[i * width..][..wide].copy_from_slice(&out[(row + i) * stride + column..][..wide]);
    }
    whole(simd, rows, columns, Place { out: edge, row: 0, column: 0, stride: width });
    for i in 0..count {
        out[(row + i) * stride + column..][..wide].copy_from_slice(&edge[i * width..][..wide]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fill(length: usize, seed: usize) -> Vec<f64> {
        (0..length).map(|i| (((i * 37 + seed) % 23) as f64 - 11.0) / 7.0).collect()
    }

    /// One chain of fused multiply-adds for each element, as the kernel promises.
    fn chain(
        Sizes { m, n, k }: Sizes,
        start: f64,
        a: impl Fn(usize, usize) -> f64,
        b: impl Fn(usize, usize) -> f64,
    ) -> Vec<f64> {
        (0..m * n).map(|at| (0..k).fold(start, |sum, l| a(at / n, l).mul_add(b(l, at % n), sum))).collect()
    }

    fn check(sizes: Sizes, write: Write) {
        let Sizes { m, n, k } = sizes;
        let (a, b) = (fill(m * k, 3), fill(n * k, 5));
        let start = if write == Write::Add { 2.0 } else { 0.0 };
        let product = |kind: fn(Sizes, &[f64], &[f64], &mut [f64], Write)| {
            let mut out = vec![2.0; m * n];
            kind(sizes, &a, &b, &mut out, write);
            out
        };
        assert_eq!(
            product(nt),
            chain(sizes, start, |i, l| a[i * k + l], |l, j| b[j * k + l]),
            "nt {sizes:?}"
        );
        assert_eq!(
            product(nn),
            chain(sizes, start, |i, l| a[i * k + l], |l, j| b[l * n + j]),
            "nn {sizes:?}"
        );
        assert_eq!(
            product(tn),
            chain(sizes, start, |i, l| a[l * m + i], |l, j| b[l * n + j]),
            "tn {sizes:?}"
        );
        let narrow = |values: &[f64]| values.iter().map(|x| *x as f32).collect::<Vec<_>>();
        let (a, b) = (narrow(&a), narrow(&b));
        let mut out = vec![2.0f32; m * n];
        nt(sizes, &a, &b, &mut out, write);
        for (at, value) in out.iter().enumerate() {
            let start = if write == Write::Add { 2.0f32 } else { 0.0 };
            let want = (0..k).fold(start, |sum, l| a[at / n * k + l].mul_add(b[at % n * k + l], sum));
            assert_eq!(value.to_bits(), want.to_bits(), "f32 {sizes:?}");
        }
    }

    #[test]
    fn blocks_and_edges_do_not_change_a_bit() {
        for (m, n, k) in [
            (0, 3, 2),
            (3, 0, 2),
            (2, 3, 0),
            (1, 1, 1),
            (12, 32, 8),
            (13, 33, 9),
            (25, 70, 1100),
            (5, 600, 30),
        ] {
            check(Sizes { m, n, k }, Write::Overwrite);
            check(Sizes { m, n, k }, Write::Add);
        }
    }

    proptest! {
        #[test]
        fn products_agree_with_the_definition(m in 1usize..40, n in 1usize..80, k in 1usize..20, add: bool) {
            check(Sizes { m, n, k }, if add { Write::Add } else { Write::Overwrite });
        }
    }
}
