//! A fast digest of the state of a training, by which the members of a cohort compare theirs after every step.

/// Independent lanes, so that multiplications overlap.
const LANES: usize = 8;
/// An odd number with about as many ones as zeros (2^64 divided by the golden ratio).
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// A 64-bit digest of the bits of some vectors. It finds errors; it is no protection against an adversary.
pub fn digest(vectors: &[&[f32]]) -> u64 {
    let mut total = vectors.len() as u64;
    for vector in vectors {
        let mut lanes = [MULTIPLIER; LANES];
        let (chunks, tail) = vector.as_chunks::<LANES>();
        for chunk in chunks {
            for (lane, value) in lanes.iter_mut().zip(chunk) {
                *lane = mix(*lane, u64::from(value.to_bits()));
            }
        }
        for (lane, value) in lanes.iter_mut().zip(tail) {
            *lane = mix(*lane, u64::from(value.to_bits()));
        }
        total = mix(total, vector.len() as u64);
        total = lanes.into_iter().fold(total, mix);
    }
    total
}

fn mix(lane: u64, value: u64) -> u64 {
    let product = (lane ^ value).wrapping_mul(MULTIPLIER);
    product ^ (product >> 29)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn one_bit_makes_another_digest(
            mut values in proptest::collection::vec(any::<f32>(), 1..40), at: usize, bit in 0u32..32,
        ) {
            let before = digest(&[&values]);
            let at = at % values.len();
            values[at] = f32::from_bits(values[at].to_bits() ^ (1 << bit));
            prop_assert_ne!(before, digest(&[&values]));
        }
    }

    #[test]
    fn where_vectors_end_counts() {
        assert_ne!(digest(&[&[1.0, 2.0], &[3.0]]), digest(&[&[1.0], &[2.0, 3.0]]));
        assert_ne!(digest(&[&[0.0]]), digest(&[&[-0.0]]));
        assert_ne!(digest(&[&[]]), digest(&[]));
    }
}
