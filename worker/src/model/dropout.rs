//! Dropout without a generator's history: whether an activation is dropped is a hash of where it stands.
//!
//! The mask is a function of (seed, step, microbatch, path, row of the microbatch, token, channel). So both passes of
//! GradCache drop the same, and so does whoever computes the microbatch, however its rows are put together.

use burn::tensor::{Device, Tensor, TensorData};

use super::fused::Texts;
use crate::mining::counter;

/// Hashes are cut into this many numbers.
const PARTS: usize = 4;
/// Values of each of them.
const RANGE: f64 = 65536.0;

/// What is dropped from the rows of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Dropout {
    key: u64,
    /// Numbers below it are dropped.
    threshold: u64,
    /// What is kept is multiplied by it, so that expectations stay.
    scale: f32,
    /// The batch's rows by their numbers in the microbatch.
    rows: Vec<u64>,
}

impl Dropout {
    /// Drops a share of about `rate`, to the nearest of 65,536 steps; none where that is no step at all.
    pub fn new(rate: f64, seed: u64, step: u64, microbatch: u64, rows: Vec<u64>) -> Option<Self> {
        let threshold = (rate * RANGE).round().clamp(0.0, RANGE - 1.0);
        let scale = (RANGE / (RANGE - threshold)) as f32;
        let key = counter::hash(seed, &[step, microbatch]);
        (threshold > 0.0).then_some(Self { key, threshold: threshold as u64, scale, rows })
    }

    /// The factors of activations [rows, width, channels]: 0, or the reciprocal of the share that is kept.
    fn factors(&self, path: &str, width: usize, channels: usize) -> Vec<f32> {
        let path =
            path.bytes().fold(0u64, |hash, byte| hash.wrapping_mul(0x0100_0193).wrapping_add(byte.into()));
        let mut factors = Vec::with_capacity(self.rows.len() * width * channels);
        for row in &self.rows {
            for token in 0..width as u64 {
                let key = counter::hash(self.key, &[path, *row, token]);
                for first in (0..channels).step_by(PARTS) {
                    let bits = counter::hash(key, &[first as u64]);
                    factors.extend((0..PARTS.min(channels - first)).map(|part| {
                        let number = (bits >> (16 * part)) & 0xffff;
                        if number < self.threshold { 0.0 } else { self.scale }
                    }));
                }
            }
        }
        factors
    }
}

/// Token states [rows, channels] with dropout, or as they are.
pub(super) fn drop_states(
    dropout: Option<&Dropout>,
    path: &str,
    states: Tensor<2>,
    texts: &Texts,
    device: &Device,
) -> Tensor<2> {
    let Some(dropout) = dropout else { return states };
    let [rows, channels] = states.dims();
    debug_assert_eq!(texts.count(), dropout.rows.len(), "dropout knows each text of the batch");
    let width = texts.row_width();
    let factors = texts.pick(&dropout.factors(path, width, channels), width, channels);
    states * Tensor::<2>::from_data(TensorData::new(factors, [rows, channels]), device)
}

/// Activations [rows, channels] with dropout, or as they are.
pub(super) fn drop_vectors(
    dropout: Option<&Dropout>,
    path: &str,
    vectors: Tensor<2>,
    device: &Device,
) -> Tensor<2> {
    let Some(dropout) = dropout else { return vectors };
    let [rows, channels] = vectors.dims();
    debug_assert_eq!(rows, dropout.rows.len(), "dropout knows each row of the batch");
    let factors = TensorData::new(dropout.factors(path, 1, channels), [rows, channels]);
    vectors * Tensor::<2>::from_data(factors, device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_the_rate_and_expectations_stay() {
        let dropout = Dropout::new(0.1, 3, 7, 1, (0..8).collect()).unwrap();
        let factors = dropout.factors("a", 16, 64);
        let dropped = factors.iter().filter(|factor| **factor == 0.0).count() as f64 / factors.len() as f64;
        let mean = factors.iter().map(|factor| f64::from(*factor)).sum::<f64>() / factors.len() as f64;
        // Three standard deviations of 8,192 draws.
        assert!((dropped - 0.1).abs() < 0.01 && (mean - 1.0).abs() < 0.011, "{dropped} {mean}");
    }

    #[test]
    fn a_row_drops_the_same_wherever_it_stands() {
        let whole = Dropout::new(0.3, 1, 2, 3, vec![0, 1, 2]).unwrap().factors("a", 5, 6);
        let alone = Dropout::new(0.3, 1, 2, 3, vec![2]).unwrap();
        assert_eq!(alone.factors("a", 5, 6), whole[60..]);
        // Padding changes nothing, either.
        assert_eq!(alone.factors("a", 9, 6)[..30], whole[60..]);
        let other = |seed, step, microbatch| Dropout::new(0.3, seed, step, microbatch, vec![2]).unwrap();
        for changed in [other(9, 2, 3), other(1, 9, 3), other(1, 2, 9)] {
            assert_ne!(changed.factors("a", 5, 6), whole[60..]);
        }
        assert_ne!(alone.factors("b", 5, 6), whole[60..]);
    }

    #[test]
    fn no_rate_is_no_dropout() {
        assert_eq!(Dropout::new(0.0, 1, 1, 1, vec![0]), None);
        assert_eq!(Dropout::new(1e-9, 1, 1, 1, vec![0]), None);
    }
}
