//! Values as bytes and back, sums over bytes where they lie, and checks.

use super::registry::lock;
use crate::training::tree::{Wire, to_bf16};
use bytes::Bytes;
use std::sync::{Arc, Mutex};

// Values travel as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"), "tensors travel little-endian");

/// Bits of an f32 that are all set in NaN and infinity alone.
const EXPONENT: u32 = 0x7f80_0000;

/// Values of one node and bucket, wherever they lie.
#[derive(Clone, Copy, Debug)]
pub enum Operand<'a> {
    /// This worker's own.
    Values(&'a [f32]),
    /// Little-endian f32, at any alignment.
    F32(&'a [u8]),
    /// Little-endian bf16, at any alignment.
    Bf16(&'a [u8]),
}

fn f32_at(bytes: &[u8]) -> f32 {
    f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn bf16_at(bytes: &[u8]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << 16)
}

impl<'a> Operand<'a> {
    /// Bytes that came over the wire.
    pub fn of(wire: Wire, bytes: &'a [u8]) -> Self {
        match wire {
            Wire::F32 => Self::F32(bytes),
            Wire::Bf16 { .. } => Self::Bf16(bytes),
        }
    }

    /// A copy.
    pub fn to_vec(self) -> Vec<f32> {
        let mut values = Vec::new();
        self.extend(&mut values);
        values
    }

    /// Appends a copy.
    pub fn extend(self, to: &mut Vec<f32>) {
        match self {
            Self::Values(values) => to.extend_from_slice(values),
            Self::F32(bytes) => to.extend(bytes.chunks_exact(4).map(f32_at)),
            Self::Bf16(bytes) => to.extend(bytes.chunks_exact(2).map(bf16_at)),
        }
    }

    /// Copies to `out`, which is as long; false if any value is NaN or infinite.
    pub fn copy_finite(self, out: &mut [f32]) -> bool {
        fn copy(out: &mut [f32], values: impl Iterator<Item = f32>) -> bool {
            let mut strange = 0;
            for (out, value) in out.iter_mut().zip(values) {
                *out = value;
                strange |= not_finite(value);
            }
            strange == 0
        }
        match self {
            Self::Values(values) => copy(out, values.iter().copied()),
            Self::F32(bytes) => copy(out, bytes.chunks_exact(4).map(f32_at)),
            Self::Bf16(bytes) => copy(out, bytes.chunks_exact(2).map(bf16_at)),
        }
    }

    /// Place of the first NaN or infinity.
    pub fn first_not_finite(self) -> Option<usize> {
        self.to_vec().iter().position(|value| !value.is_finite())
    }
}

/// All ones for NaN and infinity, else 0; without a branch, so that loops run on vectors.
fn not_finite(value: f32) -> u32 {
    if value.to_bits() & EXPONENT == EXPONENT { u32::MAX } else { 0 }
}

/// Whether no value is NaN or infinite.
pub fn all_finite(values: &[f32]) -> bool {
    values.iter().fold(0, |strange, value| strange | not_finite(*value)) == 0
}

/// The sum of two operands of one length, in memory that was used before.
pub fn sum_of(left: Operand<'_>, right: Operand<'_>, mut sum: Vec<f32>) -> Vec<f32> {
    sum.clear();
    match (left, right) {
        (Operand::F32(a), Operand::F32(b)) => {
            sum.extend(a.chunks_exact(4).zip(b.chunks_exact(4)).map(|(a, b)| f32_at(a) + f32_at(b)));
        }
        (Operand::Values(a), Operand::F32(b)) | (Operand::F32(b), Operand::Values(a)) => {
            sum.extend(a.iter().zip(b.chunks_exact(4)).map(|(a, b)| a + f32_at(b)));
        }
        (left, right) => {
            left.extend(&mut sum);
            add_into(&mut sum, right);
        }
    }
    sum
}

/// Adds an operand of the same length.
pub fn add_into(sum: &mut [f32], other: Operand<'_>) {
    match other {
        Operand::Values(values) => sum.iter_mut().zip(values).for_each(|(a, b)| *a += b),
        Operand::F32(bytes) => sum.iter_mut().zip(bytes.chunks_exact(4)).for_each(|(a, b)| *a += f32_at(b)),
        Operand::Bf16(bytes) => sum.iter_mut().zip(bytes.chunks_exact(2)).for_each(|(a, b)| *a += bf16_at(b)),
    }
}

/// CRC-32 (IEEE): it finds every burst of up to 32 bits, runs at memory's speed, and is in the build already.
pub fn checksum(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// A vector whose parts can be sent without copying it, and which can be had back afterwards.
#[derive(Clone, Debug)]
pub struct Shared(Arc<Vec<f32>>);

struct SharedBytes(Arc<Vec<f32>>);

impl AsRef<[u8]> for SharedBytes {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

impl Shared {
    /// Shares a vector.
    pub fn new(values: Vec<f32>) -> Self {
        Self(Arc::new(values))
    }

    /// Its values.
    pub fn values(&self) -> &[f32] {
        &self.0
    }

    /// Its bytes, f32; slices of them share the vector too.
    pub fn bytes(&self) -> Bytes {
        Bytes::from_owner(SharedBytes(self.0.clone()))
    }

    /// The vector, where nobody holds parts of it any more.
    pub fn into_inner(self) -> Option<Vec<f32>> {
        Arc::try_unwrap(self.0).ok()
    }
}

/// Buffers of a bucket's size that are used again and again: fresh memory would fault in page by page.
#[derive(Clone, Debug, Default)]
pub struct Pool(Arc<Mutex<Vec<Vec<f32>>>>);

/// Buffers that a pool keeps.
const MAX_POOLED: usize = 64;

impl Pool {
    /// A buffer, whatever is in it.
    pub fn take(&self) -> Vec<f32> {
        lock(&self.0).pop().unwrap_or_default()
    }

    /// Keeps a buffer for later.
    pub fn put(&self, buffer: Vec<f32>) {
        let mut buffers = lock(&self.0);
        if buffers.len() < MAX_POOLED {
            buffers.push(buffer);
        }
    }

    /// Values as they go over the wire; those of bf16 were rounded before, so that nothing is lost here. The buffer
    /// comes back when nobody refers to the bytes any more.
    pub fn encode(&self, wire: Wire, values: Vec<f32>) -> Bytes {
        match wire {
            Wire::F32 => Bytes::from_owner(Pooled { values, pool: self.clone() }),
            Wire::Bf16 { .. } => {
                let bytes = encode_bf16(&values);
                self.put(values);
                bytes
            }
        }
    }
}

/// Values on their way, which go back to their pool.
struct Pooled {
    values: Vec<f32>,
    pool: Pool,
}

impl AsRef<[u8]> for Pooled {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.values)
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        self.pool.put(std::mem::take(&mut self.values));
    }
}

/// Halves on their way.
struct Halves(Vec<u16>);

impl AsRef<[u8]> for Halves {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

/// Values as bf16.
pub fn encode_bf16(values: &[f32]) -> Bytes {
    Bytes::from_owner(Halves(values.iter().map(|value| to_bf16(*value)).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(wire: Wire, values: Vec<f32>) -> Bytes {
        Pool::default().encode(wire, values)
    }

    #[test]
    fn buffers_come_back_when_their_bytes_are_gone() {
        let pool = Pool::default();
        let bytes = pool.encode(Wire::F32, vec![1.0, 2.0]);
        let slice = bytes.slice(4..);
        drop(bytes);
        assert!(pool.take().is_empty());
        drop(slice);
        assert_eq!(pool.take(), [1.0, 2.0]);
    }

    proptest! {
        #[test]
        fn values_come_back_as_they_were(values in proptest::collection::vec(any::<f32>(), 0..50)) {
            let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            let bytes = encode(Wire::F32, values.clone());
            // At an odd address as well.
            let shifted = [&[0u8][..], &bytes].concat();
            prop_assert_eq!(bits(&Operand::F32(&shifted[1..]).to_vec()), bits(&values));
            let mut copy = vec![0.0; values.len()];
            let finite = Operand::F32(&bytes).copy_finite(&mut copy);
            prop_assert_eq!(bits(&copy), bits(&values));
            prop_assert_eq!(finite, values.iter().all(|value| value.is_finite()));
            prop_assert_eq!(all_finite(&values), finite);
            prop_assert_eq!(Operand::Values(&values).first_not_finite().is_none(), finite);
        }

        #[test]
        fn rounded_values_lose_nothing_as_bf16(halves in proptest::collection::vec(any::<u16>(), 0..50)) {
            let values: Vec<f32> = halves.iter().map(|half| f32::from_bits(u32::from(*half) << 16)).collect();
            prop_assume!(values.iter().all(|value| value.is_finite()));
            let bytes = encode(Wire::Bf16 { level: 0 }, values.clone());
            prop_assert_eq!(Operand::Bf16(&bytes).to_vec(), values);
        }

        #[test]
        fn sums_are_the_same_wherever_the_values_lie(
            pairs in proptest::collection::vec((-1e30f32..1e30, -1e30f32..1e30), 0..50)
        ) {
            let (a, b): (Vec<f32>, Vec<f32>) = pairs.iter().copied().unzip();
            let (a_bytes, b_bytes) = (encode(Wire::F32, a.clone()), encode(Wire::F32, b.clone()));
            let expected: Vec<f32> = pairs.iter().map(|(a, b)| a + b).collect();
            for left in [Operand::Values(&a), Operand::F32(&a_bytes)] {
                for right in [Operand::Values(&b), Operand::F32(&b_bytes)] {
                    prop_assert_eq!(&sum_of(left, right, vec![1.0]), &expected);
                }
            }
        }
    }
}
