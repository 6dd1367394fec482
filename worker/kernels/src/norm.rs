//! Layer normalisation (Ba, Kiros and Hinton, 2016) of a sum, and its gradient.

use super::parallel::{for_each, for_rows, sum_blocks};
use super::vectorise::vectorise;

/// Sums run over this many interleaved lanes: a fixed order that vectorises on every machine.
const LANES: usize = 16;
/// Rows that a task normalises.
const TASK_ROWS: usize = 64;

#[inline(always)]
fn lane_sum(values: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (chunks, tail) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += term(*value);
        }
    }
    for (lane, value) in lanes.iter_mut().zip(tail) {
        *lane += term(*value);
    }
    fold(lanes)
}

#[inline(always)]
fn fold(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// Scale and shift of a normalisation, both as wide as a row.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// What normalised values are multiplied with.
    pub scale: &'a [f32],
    /// What is added then.
    pub shift: &'a [f32],
    /// What is added to the variance.
    pub epsilon: f32,
}

/// `sum += residual`, and `out` is the normalised sum.
pub fn add_norm(sum: &mut [f32], residual: &[f32], norm: Norm<'_>, out: &mut [f32]) {
    let width = norm.scale.len();
    let block = TASK_ROWS * width;
    let tasks: Vec<_> = sum.chunks_mut(block).zip(out.chunks_mut(block)).enumerate().collect();
    for_each(tasks, |(at, (sum, out))| {
        let residual = &residual[at * block..][..sum.len()];
        vectorise!((sum: &'a mut [f32], out: &'a mut [f32], residual: &'a [f32], norm: Norm<'a>, width: usize) {
            sum.iter_mut().zip(residual).for_each(|(sum, value)| *sum += value);
            for (row, out) in sum.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
                normalise(row, row_moments(row, norm.epsilon), norm, out);
            }
        });
    });
}

/// Mean and 1 / deviation of each row.
pub fn row_statistics(rows: &[f32], width: usize, epsilon: f32) -> Vec<[f32; 2]> {
    let mut moments = vec![[0.0; 2]; rows.len() / width.max(1)];
    let tasks: Vec<_> = moments.chunks_mut(TASK_ROWS).zip(rows.chunks(TASK_ROWS * width.max(1))).collect();
    for_each(tasks, |(moments, rows)| {
        vectorise!((moments: &'a mut [[f32; 2]], rows: &'a [f32], width: usize, epsilon: f32) {
            for (moments, row) in moments.iter_mut().zip(rows.chunks_exact(width)) {
                *moments = row_moments(row, epsilon);
            }
        });
    });
    moments
}

/// [`add_norm`] whose result replaces the sum, for passes that keep nothing.
pub fn add_norm_in_place(sum: &mut [f32], residual: &[f32], norm: Norm<'_>) {
    let width = norm.scale.len();
    for_rows(sum, width, |first, sum| {
        let residual = &residual[first * width..][..sum.len()];
        vectorise!((sum: &'a mut [f32], residual: &'a [f32], norm: Norm<'a>, width: usize) {
            sum.iter_mut().zip(residual).for_each(|(sum, value)| *sum += value);
            for row in sum.chunks_exact_mut(width) {
                let [mean, inverse] = row_moments(row, norm.epsilon);
                for ((value, scale), shift) in row.iter_mut().zip(norm.scale).zip(norm.shift) {
                    *value = ((*value - mean) * inverse).mul_add(*scale, *shift);
                }
            }
        });
    });
}

#[inline(always)]
fn row_moments(row: &[f32], epsilon: f32) -> [f32; 2] {
    let count = row.len() as f32;
    let mean = lane_sum(row, |value| value) / count;
    let variance = lane_sum(row, |value| (value - mean) * (value - mean)) / count;
    [mean, 1.0 / (variance + epsilon).sqrt()]
}

#[inline(always)]
fn normalise(row: &[f32], [mean, inverse]: [f32; 2], norm: Norm<'_>, out: &mut [f32]) {
    for (((out, value), scale), shift) in out.iter_mut().zip(row).zip(norm.scale).zip(norm.shift) {
        *out = ((value - mean) * inverse).mul_add(*scale, *shift);
    }
}

/// Turns `d`, the gradient by the normalised rows, into that by the sum, whose rows have these moments.
/// Adds the gradients of scale and shift to `d_scale` and `d_shift`.
pub fn norm_backward(
    sum: &[f32],
    moments: &[[f32; 2]],
    scale: &[f32],
    d: &mut [f32],
    d_scale: &mut [f32],
    d_shift: &mut [f32],
) {
    let width = scale.len();
    let mut sums = vec![0.0; 2 * width];
    let given = &*d;
    sum_blocks(moments.len(), &mut sums, |rows, sums| {
        let (d_scale, d_shift) = sums.split_at_mut(width);
        vectorise!((rows: std::ops::Range<usize>, sum: &'a [f32], given: &'a [f32], moments: &'a [[f32; 2]],
            d_scale: &'a mut [f32], d_shift: &'a mut [f32], width: usize) {
            for row in rows {
                let (values, d) = (&sum[row * width..][..width], &given[row * width..][..width]);
                let [mean, inverse] = moments[row];
                for ((d_scale, value), d) in d_scale.iter_mut().zip(values).zip(d) {
                    *d_scale = ((value - mean) * inverse).mul_add(*d, *d_scale);
                }
                d_shift.iter_mut().zip(d).for_each(|(d_shift, d)| *d_shift += d);
            }
        });
    });
    d_scale.iter_mut().zip(&sums[..width]).for_each(|(total, value)| *total += value);
    d_shift.iter_mut().zip(&sums[width..]).for_each(|(total, value)| *total += value);
    for_rows(d, width, |first, d| {
        vectorise!((first: usize, sum: &'a [f32], moments: &'a [[f32; 2]], scale: &'a [f32], d: &'a mut [f32],
            width: usize) {
            for (at, d) in d.chunks_exact_mut(width).enumerate() {
                let row = first + at;
                row_backward(&sum[row * width..][..width], moments[row], scale, d);
            }
        });
    });
}

#[inline(always)]
fn row_backward(values: &[f32], [mean, inverse]: [f32; 2], scale: &[f32], d: &mut [f32]) {
    d.iter_mut().zip(scale).for_each(|(d, scale)| *d *= scale);
    let count = d.len() as f32;
    let mean_d = lane_sum(d, |value| value) / count;
    let mut lanes = [0.0f32; LANES];
    for (d, values) in d.chunks(LANES).zip(values.chunks(LANES)) {
        for ((lane, d), value) in lanes.iter_mut().zip(d).zip(values) {
            *lane = ((value - mean) * inverse).mul_add(*d, *lane);
        }
    }
    let mean_product = fold(lanes) / count;
    for (d, value) in d.iter_mut().zip(values) {
        let normalised = (value - mean) * inverse;
        *d = inverse * (*d - mean_d - normalised * mean_product);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(i: usize) -> f32 {
        ((i * 7919 + 11) % 1013) as f32 / 500.0 - 1.0
    }

    #[test]
    fn rows_are_normalised_and_both_forms_agree_to_the_bit() {
        let (rows, width) = (70, 37);
        let mut sum: Vec<f32> = (0..rows * width).map(value).collect();
        let residual: Vec<f32> = (0..rows * width).map(|i| value(i + 5)).collect();
        let (scale, shift) = (vec![2.0; width], vec![0.5; width]);
        let norm = Norm { scale: &scale, shift: &shift, epsilon: 1e-12 };
        let mut in_place = sum.clone();
        add_norm_in_place(&mut in_place, &residual, norm);
        let mut out = vec![0.0; rows * width];
        add_norm(&mut sum, &residual, norm, &mut out);
        assert_eq!(in_place, out);
        for row in out.chunks_exact(width) {
            let mean = row.iter().sum::<f32>() / width as f32;
            let variance = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / width as f32;
            assert!((mean - 0.5).abs() < 1e-5 && (variance - 4.0).abs() < 1e-4, "{mean} {variance}");
        }
    }

    #[test]
    fn the_gradient_is_that_of_differences() {
        let (rows, width) = (3, 21);
        let x: Vec<f32> = (0..rows * width).map(value).collect();
        let weights: Vec<f32> = (0..rows * width).map(|i| value(i * 3 + 1)).collect();
        let scale: Vec<f32> = (0..width).map(|i| 1.0 + value(i) / 3.0).collect();
        let shift: Vec<f32> = (0..width).map(value).collect();
        let loss = |x: &[f32], scale: &[f32], shift: &[f32]| -> f64 {
            let mut out = x.to_vec();
            add_norm_in_place(&mut out, &vec![0.0; x.len()], Norm { scale, shift, epsilon: 1e-5 });
            out.iter().zip(&weights).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        let moments = row_statistics(&x, width, 1e-5);
        let mut d = weights.clone();
        let (mut d_scale, mut d_shift) = (vec![0.0; width], vec![0.0; width]);
        norm_backward(&x, &moments, &scale, &mut d, &mut d_scale, &mut d_shift);
        let nudged = |values: &[f32], at: usize, by: f32| {
            let mut values = values.to_vec();
            values[at] += by;
            values
        };
        let check = |name: &str, found: f32, high: f64, low: f64| {
            let wanted = (high - low) / 0.02;
            assert!((f64::from(found) - wanted).abs() < 5e-3, "{name}: {found} is not {wanted}");
        };
        for (at, d) in d.iter().enumerate() {
            let by = |by| loss(&nudged(&x, at, by), &scale, &shift);
            check("x", *d, by(0.01), by(-0.01));
        }
        for at in 0..width {
            let by = |by| loss(&x, &nudged(&scale, at, by), &shift);
            check("scale", d_scale[at], by(0.01), by(-0.01));
            let by = |by| loss(&x, &scale, &nudged(&shift, at, by));
            check("shift", d_shift[at], by(0.01), by(-0.01));
        }
    }
}
