//! Quantisers that look at one dimension at a time: a signed byte or a bit for each.

use super::quantizer::{Codes, QuantizerError, check_finite};
use crate::matrix::Matrix;

/// One signed byte for each dimension: the value is `offset + scale · code`.
#[derive(Clone, Debug, PartialEq)]
pub struct Int8Quantizer {
    /// Middle of each dimension's range [dim].
    pub offset: Vec<f32>,
    /// Width of a step [dim].
    pub scale: Vec<f32>,
}

impl Int8Quantizer {
    /// Ranges of `vectors`, dimension by dimension.
    ///
    /// # Errors
    /// When there is no vector or one is not finite.
    pub fn train(vectors: &Matrix) -> Result<Self, QuantizerError> {
        check_finite(vectors)?;
        if vectors.rows() == 0 {
            return Err(QuantizerError::TooFewVectors { got: 0, needed: 1 });
        }
        let (mut low, mut high) = (vectors.row(0).to_vec(), vectors.row(0).to_vec());
        for i in 1..vectors.rows() {
            for ((low, high), x) in low.iter_mut().zip(&mut high).zip(vectors.row(i)) {
                *low = low.min(*x);
                *high = high.max(*x);
            }
        }
        let offset = low.iter().zip(&high).map(|(low, high)| 0.5 * low + 0.5 * high).collect();
        // 254 steps from -127 to 127; a dimension without any width has none.
        let scale = low.iter().zip(&high).map(|(low, high)| (high - low) / 254.0).collect();
        Ok(Self { offset, scale })
    }

    /// A code: values beyond the trained range get its end.
    pub(super) fn encode_row(&self, vector: &[f32], code: &mut [u8]) {
        for (((code, x), offset), scale) in code.iter_mut().zip(vector).zip(&self.offset).zip(&self.scale) {
            let step = if *scale > 0.0 { ((x - offset) / scale).round().clamp(-127.0, 127.0) } else { 0.0 };
            *code = (step as i8) as u8;
        }
    }

    pub(super) fn decode_row(&self, code: &[u8], vector: &mut [f32]) {
        for (((x, code), offset), scale) in vector.iter_mut().zip(code).zip(&self.offset).zip(&self.scale) {
            *x = f32::from(*code as i8).mul_add(*scale, *offset);
        }
    }
}

/// One bit for each dimension: whether the value is above its threshold. Eight dimensions share a byte, the first
/// in its lowest bit.
#[derive(Clone, Debug, PartialEq)]
pub struct BinaryQuantizer {
    /// What a set bit is above of [dim].
    pub threshold: Vec<f32>,
    /// A set bit stands for threshold + scale, a cleared one for threshold − scale [dim].
    pub scale: Vec<f32>,
}

impl BinaryQuantizer {
    /// Thresholds at the mean of each dimension; scales at the mean distance from it, which makes the decoded
    /// vectors the nearest for those bits.
    ///
    /// # Errors
    /// When there is no vector or one is not finite.
    pub fn train(vectors: &Matrix) -> Result<Self, QuantizerError> {
        check_finite(vectors)?;
        if vectors.rows() == 0 {
            return Err(QuantizerError::TooFewVectors { got: 0, needed: 1 });
        }
        let mean_of = |value: &dyn Fn(usize, f32) -> f64| -> Vec<f32> {
            let mut sums = vec![0.0f64; vectors.dim()];
            for i in 0..vectors.rows() {
                for (at, (sum, x)) in sums.iter_mut().zip(vectors.row(i)).enumerate() {
                    *sum += value(at, *x);
                }
            }
            sums.iter().map(|sum| (sum / vectors.rows() as f64) as f32).collect()
        };
        let threshold = mean_of(&|_, x| f64::from(x));
        let scale = mean_of(&|at, x| f64::from(x - threshold[at]).abs());
        Ok(Self { threshold, scale })
    }

    /// The sign of each dimension, worth ±`worth`; without one, as much as makes a vector of unit length.
    pub fn signs(dim: usize, worth: Option<f32>) -> Self {
        let worth = worth.unwrap_or_else(|| (dim as f64).sqrt().recip() as f32);
        Self { threshold: vec![0.0; dim], scale: vec![worth; dim] }
    }

    /// What each byte stands for, [bytes, 256, 8]: the codebooks of the product quantiser that it is. None where a byte has
    /// bits without a dimension.
    pub fn codebooks(&self) -> Option<Vec<f32>> {
        let (thresholds, scales) = (self.threshold.as_chunks::<8>(), self.scale.as_chunks::<8>());
        if !thresholds.1.is_empty() {
            return None;
        }
        let mut codebooks = Vec::with_capacity(256 * self.threshold.len());
        for (threshold, scale) in thresholds.0.iter().zip(scales.0) {
            for byte in 0..256usize {
                let sides = threshold.iter().zip(scale).enumerate();
                codebooks.extend(sides.map(|(bit, (threshold, scale))| {
                    if byte >> bit & 1 == 1 { threshold + scale } else { threshold - scale }
                }));
            }
        }
        Some(codebooks)
    }

    pub(super) fn encode_row(&self, vector: &[f32], code: &mut [u8]) {
        for ((code, xs), thresholds) in code.iter_mut().zip(vector.chunks(8)).zip(self.threshold.chunks(8)) {
            let bits = xs.iter().zip(thresholds).enumerate();
            *code = bits.fold(0, |byte, (bit, (x, threshold))| byte | (u8::from(x > threshold) << bit));
        }
    }

    pub(super) fn decode_row(&self, code: &[u8], vector: &mut [f32]) {
        for (at, x) in vector.iter_mut().enumerate() {
            let set = code[at / 8] >> (at % 8) & 1 == 1;
            let scale = if set { self.scale[at] } else { -self.scale[at] };
            *x = self.threshold[at] + scale;
        }
    }

    /// As [`ProductQuantizer::tables`](super::pq::ProductQuantizer::tables): a byte is a part of eight dimensions.
    pub(super) fn tables(&self, query: &[f32]) -> Vec<f32> {
        let mut tables = Vec::with_capacity(query.len().div_ceil(8) * 256);
        for (at, part) in query.chunks(8).enumerate() {
            let value = |bit: usize, set: bool| {
                let at = at * 8 + bit;
                self.threshold[at] + if set { self.scale[at] } else { -self.scale[at] }
            };
            for byte in 0..256usize {
                let sum =
                    |sum: f32, (bit, q): (usize, &f32)| q.mul_add(value(bit, byte >> bit & 1 == 1), sum);
                tables.push(part.iter().enumerate().fold(0.0, sum));
            }
        }
        tables
    }
}

/// Number of bits in which two codes differ.
pub fn hamming(a: &[u8], b: &[u8]) -> u32 {
    let (a_words, a_rest) = a.as_chunks::<8>();
    let (b_words, b_rest) = b.as_chunks::<8>();
    let words = a_words.iter().zip(b_words);
    let words = words.map(|(a, b)| (u64::from_le_bytes(*a) ^ u64::from_le_bytes(*b)).count_ones());
    words.sum::<u32>() + a_rest.iter().zip(b_rest).map(|(a, b)| (a ^ b).count_ones()).sum::<u32>()
}

/// Codes of all rows by a function for one.
pub(super) fn encode_rows(vectors: &Matrix, bytes: usize, encode: impl Fn(&[f32], &mut [u8])) -> Codes {
    let mut codes = Codes::zeros(vectors.rows(), bytes);
    for (i, code) in codes.data_mut().chunks_exact_mut(bytes.max(1)).enumerate() {
        encode(vectors.row(i), code);
    }
    codes
}

#[cfg(test)]
mod tests {
    use super::super::ProductQuantizer;
    use super::super::tests::random;
    use super::*;

    #[test]
    fn a_byte_keeps_a_value_to_half_a_step() {
        let vectors = random(50, 9, 4);
        let int8 = Int8Quantizer::train(&vectors).unwrap();
        let codes = encode_rows(&vectors, 9, |x, code| int8.encode_row(x, code));
        let mut decoded = vec![0.0; 9];
        for i in 0..50 {
            int8.decode_row(codes.row(i), &mut decoded);
            for (j, x) in vectors.row(i).iter().enumerate() {
                assert!((x - decoded[j]).abs() <= 0.501 * int8.scale[j], "{x} {}", decoded[j]);
            }
        }
        let flat = Int8Quantizer::train(&Matrix::new(2, 1, vec![3.0, 3.0])).unwrap();
        let mut code = [7];
        flat.encode_row(&[99.0], &mut code);
        flat.decode_row(&code, &mut decoded[..1]);
        assert_eq!(decoded[0], 3.0);
        assert!(Int8Quantizer::train(&Matrix::zeros(0, 3)).is_err());
    }

    #[test]
    fn a_bit_is_a_side_of_the_mean() {
        let vectors = random(40, 11, 5);
        let binary = BinaryQuantizer::train(&vectors).unwrap();
        let codes = encode_rows(&vectors, 2, |x, code| binary.encode_row(x, code));
        let mut decoded = vec![0.0; 11];
        let query = vectors.row(3);
        let tables = binary.tables(query);
        for i in 0..40 {
            let code = codes.row(i);
            binary.decode_row(code, &mut decoded);
            for (j, x) in vectors.row(i).iter().enumerate() {
                assert_eq!(*x > binary.threshold[j], decoded[j] > binary.threshold[j]);
            }
            let product: f32 = query.iter().zip(&decoded).map(|(q, x)| q * x).sum();
            let sum = tables[usize::from(code[0])] + tables[256 + usize::from(code[1])];
            assert!((product - sum).abs() < 1e-5);
        }
        assert_eq!(hamming(&[0xff; 9], &[0x0f; 9]), 36);
        assert_eq!(BinaryQuantizer::signs(4, None).scale, [0.5; 4]);
        assert_eq!(BinaryQuantizer::signs(2, Some(3.0)).scale, [3.0; 2]);
    }

    #[test]
    fn bits_are_codes_of_a_product_quantiser() {
        let vectors = random(40, 24, 5);
        let binary = BinaryQuantizer::train(&vectors).unwrap();
        let codes = encode_rows(&vectors, 3, |x, code| binary.encode_row(x, code));
        let product = ProductQuantizer::new(24, 3, binary.codebooks().unwrap()).unwrap();
        let mut decoded = [vec![0.0; 24], vec![0.0; 24]];
        for row in 0..40 {
            binary.decode_row(codes.row(row), &mut decoded[0]);
            product.decode_row(codes.row(row), &mut decoded[1]);
            assert_eq!(decoded[0], decoded[1]);
        }
        assert_eq!(BinaryQuantizer::signs(11, None).codebooks(), None);
    }
}
