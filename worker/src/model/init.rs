//! Initial parameters by a counter-based generator: a pure function of seed and path.

use super::flat::{ParamEntry, ParamLayout};

/// Standard deviation of BERT's initial weights.
const STANDARD_DEVIATION: f64 = 0.02;

/// Initial values of every parameter. A parameter's values depend on the seed and its own path and shape only, so
/// that adding a head changes no encoder's weights.
pub(super) fn initial_params(layout: &ParamLayout, seed: u64) -> Vec<f32> {
    let mut flat = vec![0.0; layout.len()];
    for entry in layout.entries() {
        let values = &mut flat[entry.range()];
        if !entry.decay && entry.path.ends_with(".weight") {
            values.fill(1.0);
        } else if entry.decay {
            let mut normal = Normal { key: key(seed, &entry.path), counter: 0 };
            let deviation = standard_deviation(entry);
            values.iter_mut().for_each(|value| *value = (normal.next() * deviation) as f32);
        }
    }
    flat
}

/// The encoder's weights start as BERT's; a head keeps the scale of its input instead, whatever its width.
fn standard_deviation(entry: &ParamEntry) -> f64 {
    if entry.path.starts_with("head.") { 1.0 / (entry.shape[0] as f64).sqrt() } else { STANDARD_DEVIATION }
}

/// FNV-1a of the path, mixed with the seed.
fn key(seed: u64, path: &str) -> u64 {
    let hash = path.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    split_mix(hash ^ split_mix(seed))
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
fn split_mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Values close to a standard normal, cut at two deviations.
struct Normal {
    key: u64,
    counter: u64,
}

impl Normal {
    /// A sum of twelve uniforms (Irwin and Hall). It needs no logarithm or cosine, whose last bits differ between
    /// platforms, and nobody can tell it from a normal within two deviations.
    fn next(&mut self) -> f64 {
        loop {
            let mut sum = 0u64;
            for _ in 0..3 {
                let bits = split_mix(self.key ^ split_mix(self.counter));
                self.counter += 1;
                sum += (0..4).map(|part| (bits >> (16 * part)) & 0xffff).sum::<u64>();
            }
            let value = (sum as f64 + 6.0) / 65536.0 - 6.0;
            if value.abs() <= 2.0 {
                return value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_look_normal_and_depend_on_seed_and_path() {
        let draw = |seed, path| {
            let mut normal = Normal { key: key(seed, path), counter: 0 };
            (0..100_000).map(|_| normal.next()).collect::<Vec<_>>()
        };
        let values = draw(1, "a");
        assert_eq!(values, draw(1, "a"));
        assert!(values[..8] != draw(2, "a")[..8] && values[..8] != draw(1, "b")[..8]);
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let deviation = (values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / count).sqrt();
        // A normal cut at two deviations has deviation 0.8796.
        assert!(mean.abs() < 0.01 && (deviation - 0.88).abs() < 0.01, "{mean} {deviation}");
    }
}
