//! The register-blocked kernel under every product and scan: [`ROWS`] rows on one side, broadcast one value at
//! a time, against two vector registers of columns on the other.
//!
//! Each element of the result is one chain of fused multiply-adds in the order of the summed dimension. It
//! depends on its row, its column and what it starts from, on nothing else: not on block sizes, threads or the
//! width of the machine's registers.

use pulp::Simd;

/// Rows of a tile. With two registers each they fill the 32 registers of AVX-512 and NEON; AVX2, which has 16,
/// computes a tile in two halves.
pub const ROWS: usize = 12;
/// Vector registers across the columns of a tile.
pub const REGISTERS: usize = 2;

/// A tile of results in registers.
pub type Tile<T, S> = [[<T as Element>::Lanes<S>; REGISTERS]; ROWS];

/// f32 or f64, as the kernels see them.
pub trait Element: Copy + Default + Send + Sync + 'static {
    /// A vector register of them.
    type Lanes<S: Simd>: Copy;
    /// How many a register holds.
    fn lanes<S: Simd>() -> usize;
    /// The same value in every lane.
    fn splat<S: Simd>(simd: S, value: Self) -> Self::Lanes<S>;
    /// a · b + c, rounded once.
    fn mul_add<S: Simd>(simd: S, a: Self::Lanes<S>, b: Self::Lanes<S>, c: Self::Lanes<S>) -> Self::Lanes<S>;
    /// A slice as registers; what does not fill one is left out.
    fn as_lanes<S: Simd>(slice: &[Self]) -> &[Self::Lanes<S>];
    /// The same, mutable.
    fn as_lanes_mut<S: Simd>(slice: &mut [Self]) -> &mut [Self::Lanes<S>];
}

macro_rules! element {
    ($type:ty, $lanes:ident, $count:ident, $splat:ident, $mul_add:ident, $view:ident, $view_mut:ident) => {
        impl Element for $type {
            type Lanes<S: Simd> = S::$lanes;

            #[inline(always)]
            fn lanes<S: Simd>() -> usize {
                S::$count
            }

            #[inline(always)]
            fn splat<S: Simd>(simd: S, value: Self) -> S::$lanes {
                simd.$splat(value)
            }

            #[inline(always)]
            fn mul_add<S: Simd>(simd: S, a: S::$lanes, b: S::$lanes, c: S::$lanes) -> S::$lanes {
                simd.$mul_add(a, b, c)
            }

            #[inline(always)]
            fn as_lanes<S: Simd>(slice: &[Self]) -> &[S::$lanes] {
                S::$view(slice).0
            }

            #[inline(always)]
            fn as_lanes_mut<S: Simd>(slice: &mut [Self]) -> &mut [S::$lanes] {
                S::$view_mut(slice).0
            }
        }
    };
}

element!(f32, f32s, F32_LANES, splat_f32s, mul_add_f32s, as_simd_f32s, as_mut_simd_f32s);
element!(f64, f64s, F64_LANES, splat_f64s, mul_add_f64s, as_simd_f64s, as_mut_simd_f64s);

/// Columns of a tile on this machine.
pub fn width<T: Element>() -> usize {
    struct Width<T>(std::marker::PhantomData<T>);
    impl<T: Element> pulp::WithSimd for Width<T> {
        type Output = usize;
        fn with_simd<S: Simd>(self, _: S) -> usize {
            REGISTERS * T::lanes::<S>()
        }
    }
    pulp::Arch::new().dispatch(Width::<T>(std::marker::PhantomData))
}

/// tile += rows [k, ROWS]ᵀ · columns [k, width], both packed.
#[inline(always)]
pub fn multiply<S: Simd, T: Element>(simd: S, rows: &[T], columns: &[T], tile: &mut Tile<T, S>) {
    if S::REGISTER_COUNT >= 32 {
        part::<S, T, 0, ROWS>(simd, rows, columns, tile);
    } else {
        part::<S, T, 0, 6>(simd, rows, columns, tile);
        part::<S, T, 6, 6>(simd, rows, columns, tile);
    }
}

/// The `COUNT` rows from `FIRST` of a tile.
#[inline(always)]
fn part<S: Simd, T: Element, const FIRST: usize, const COUNT: usize>(
    simd: S,
    rows: &[T],
    columns: &[T],
    tile: &mut Tile<T, S>,
) {
    let (rows, _) = rows.as_chunks::<ROWS>();
    let (columns, _) = T::as_lanes::<S>(columns).as_chunks::<REGISTERS>();
    let mut sums: [[T::Lanes<S>; REGISTERS]; COUNT] = std::array::from_fn(|i| tile[FIRST + i]);
    for (row, column) in rows.iter().zip(columns) {
        for i in 0..COUNT {
            let value = T::splat(simd, row[FIRST + i]);
            sums[i][0] = T::mul_add(simd, value, column[0], sums[i][0]);
            sums[i][1] = T::mul_add(simd, value, column[1], sums[i][1]);
        }
    }
    tile[FIRST..FIRST + COUNT].copy_from_slice(&sums);
}

/// A matrix in a slice, with the steps from row to row and from column to column.
#[derive(Clone, Copy, Debug)]
pub struct Strided<'a, T> {
    /// The slice.
    pub data: &'a [T],
    /// Values from a row to the next.
    pub row: usize,
    /// Values from a column to the next.
    pub column: usize,
}

impl<'a, T> Strided<'a, T> {
    /// Rows of `width` values one after the other.
    pub fn rows(data: &'a [T], width: usize) -> Self {
        Self { data, row: width, column: 1 }
    }

    /// The transpose of [`Strided::rows`].
    pub fn transposed(data: &'a [T], width: usize) -> Self {
        Self { data, row: 1, column: width }
    }

    /// Whether a matrix of so many rows and columns lies within the slice.
    pub fn holds(&self, rows: usize, columns: usize) -> bool {
        rows == 0 || columns == 0 || (rows - 1) * self.row + (columns - 1) * self.column < self.data.len()
    }
}

/// Rows `first..` of a [_, k] operand, at most ROWS of them, over the columns from `start` to `end`: packed as
/// [end - start, ROWS] with zeros where there is no row.
#[inline(always)]
pub fn pack_rows<T: Element>(
    from: Strided<'_, T>,
    (first, count): (usize, usize),
    (start, end): (usize, usize),
    packed: &mut [T],
) {
    pack::<T, ROWS>(
        from.data,
        first * from.row + start * from.column,
        from.row,
        from.column,
        count,
        end - start,
        packed,
    );
}

/// Columns `first..` of a [k, _] operand, at most `width` of them, over its rows from `start` to `end`: packed as
/// [end - start, width] with zeros where there is no column.
#[inline(always)]
pub fn pack_columns<T: Element>(
    from: Strided<'_, T>,
    (first, count): (usize, usize),
    (start, end): (usize, usize),
    width: usize,
    packed: &mut [T],
) {
    let offset = first * from.column + start * from.row;
    match width {
        32 => pack::<T, 32>(from.data, offset, from.column, from.row, count, end - start, packed),
        16 => pack::<T, 16>(from.data, offset, from.column, from.row, count, end - start, packed),
        8 => pack::<T, 8>(from.data, offset, from.column, from.row, count, end - start, packed),
        4 => pack::<T, 4>(from.data, offset, from.column, from.row, count, end - start, packed),
        _ => pack::<T, 2>(from.data, offset, from.column, from.row, count, end - start, packed),
    }
}

/// packed[l, i] = data[offset + i · step + l · along] for the first `count` of `W`, zero for the others.
#[inline(always)]
fn pack<T: Element, const W: usize>(
    data: &[T],
    offset: usize,
    step: usize,
    along: usize,
    count: usize,
    length: usize,
    packed: &mut [T],
) {
    let (packed, _) = packed.as_chunks_mut::<W>();
    let packed = &mut packed[..length];
    if count < W {
        packed.as_flattened_mut().fill(T::default());
    }
    if step == 1 {
        for (l, target) in packed.iter_mut().enumerate() {
            target[..count].copy_from_slice(&data[offset + l * along..][..count]);
        }
    } else if along == 1 {
        for i in 0..count {
            let source = &data[offset + i * step..][..length];
            for (target, value) in packed.iter_mut().zip(source) {
                target[i] = *value;
            }
        }
    } else {
        for (l, target) in packed.iter_mut().enumerate() {
            for i in 0..count {
                target[i] = data[offset + i * step + l * along];
            }
        }
    }
}
