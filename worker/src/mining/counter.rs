//! Random numbers by counter: a value is a hash of what it is for, not of how many were drawn before it,
//! so that it does not depend on the order of processing.

/// A hash of `seed` and `words` with the finaliser of SplitMix64 (Steele 2014), which passes BigCrush.
pub(crate) fn hash(seed: u64, words: &[u64]) -> u64 {
    words.iter().fold(mix(seed ^ 0x5265_746f_7274), |state, word| mix(state ^ mix(*word)))
}

/// A hash as a number in [0, 1).
pub(crate) fn unit(hash: u64) -> f64 {
    (hash >> 11) as f64 / (1u64 << 53) as f64
}

fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
