//! GELU and column sums.

use super::math::{gelu, gelu_slope};
use super::parallel::{for_rows, sum_blocks};
use super::vectorise::vectorise;

/// `rows = gelu(rows)`.
pub fn gelu_in_place(rows: &mut [f32]) {
    for_rows(rows, 1, |_, rows| {
        vectorise!((rows: &'a mut [f32]) {
            rows.iter_mut().for_each(|value| *value = gelu(*value));
        });
    });
}

/// `out = gelu(x)`.
pub fn gelu_into(x: &[f32], out: &mut [f32]) {
    for_rows(out, 1, |first, out| {
        let x = &x[first..first + out.len()];
        vectorise!((x: &'a [f32], out: &'a mut [f32]) {
            out.iter_mut().zip(x).for_each(|(out, x)| *out = gelu(*x));
        });
    });
}

/// `d *= gelu'(x)`: the gradient by `x` where `d` is that by `gelu(x)`.
pub fn gelu_backward(x: &[f32], d: &mut [f32]) {
    for_rows(d, 1, |first, d| {
        let x = &x[first..first + d.len()];
        vectorise!((x: &'a [f32], d: &'a mut [f32]) {
            d.iter_mut().zip(x).for_each(|(d, x)| *d *= gelu_slope(*x));
        });
    });
}

/// `sums += ` the sum of the rows of `data`, each as wide as `sums`.
pub fn add_column_sums(data: &[f32], sums: &mut [f32]) {
    let width = sums.len();
    if width == 0 {
        return;
    }
    sum_blocks(data.len() / width, sums, |rows, sums| {
        let data = &data[rows.start * width..rows.end * width];
        vectorise!((data: &'a [f32], sums: &'a mut [f32]) {
            for row in data.chunks_exact(sums.len()) {
                sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_slopes() {
        let width = 5;
        let data: Vec<f32> = (0..width * 700).map(|i| (i % 13) as f32 - 6.0).collect();
        let mut sums = vec![1.0; width];
        add_column_sums(&data, &mut sums);
        for (column, sum) in sums.iter().enumerate() {
            let wanted: f32 = 1.0 + data.iter().skip(column).step_by(width).sum::<f32>();
            assert_eq!(*sum, wanted);
        }
        let x: Vec<f32> = (-20..20).map(|i| i as f32 / 5.0).collect();
        let (mut out, mut d) = (vec![0.0; x.len()], vec![2.0; x.len()]);
        gelu_into(&x, &mut out);
        gelu_backward(&x, &mut d);
        let mut again = x.clone();
        gelu_in_place(&mut again);
        assert_eq!(again, out);
        for (i, x) in x.iter().enumerate() {
            let slope = (f64::from(gelu(x + 1e-2)) - f64::from(gelu(x - 1e-2))) / 2e-2;
            assert!((f64::from(d[i]) - 2.0 * slope).abs() < 2e-3, "at {x}");
        }
    }
}
