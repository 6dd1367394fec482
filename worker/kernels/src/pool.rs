//! The mean of each text's token states, and its gradient.

use super::parallel::for_each;
use super::vectorise::vectorise;

/// `out[texts, width]`: the means of the rows of `states`, which lie text after text.
///
/// # Panics
/// When a slice does not have the shape.
pub fn mean_pool(states: &[f32], lengths: &[usize], width: usize, out: &mut [f32]) {
    assert_eq!(states.len(), lengths.iter().sum::<usize>() * width, "the states of a mean");
    assert_eq!(out.len(), lengths.len() * width, "the means of texts");
    let mut rest = states;
    let mut tasks = Vec::with_capacity(lengths.len());
    for (length, out) in lengths.iter().zip(out.chunks_exact_mut(width.max(1))) {
        let (text, after) = rest.split_at(length * width);
        tasks.push((text, out));
        rest = after;
    }
    for_each(tasks, |(text, out)| {
        let share = 1.0 / (text.len() / width) as f32;
        out.fill(0.0);
        vectorise!((text: &'a [f32], out: &'a mut [f32], width: usize, share: f32) {
            for row in text.chunks_exact(width) {
                out.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
            out.iter_mut().for_each(|sum| *sum *= share);
        });
    });
}

/// The gradient by the states where `d` [texts, width] is that by the means; `out` is overwritten.
///
/// # Panics
/// When a slice does not have the shape.
pub fn mean_pool_backward(d: &[f32], lengths: &[usize], width: usize, out: &mut [f32]) {
    assert_eq!(d.len(), lengths.len() * width, "the gradient of means");
    assert_eq!(out.len(), lengths.iter().sum::<usize>() * width, "the gradient of states");
    let mut rows = out.chunks_exact_mut(width.max(1));
    for (length, d) in lengths.iter().zip(d.chunks_exact(width.max(1))) {
        let share = 1.0 / *length as f32;
        for row in rows.by_ref().take(*length) {
            row.iter_mut().zip(d).for_each(|(out, d)| *out = d * share);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_and_their_gradients() {
        let states = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 10.0, 20.0];
        let mut out = [0.0; 4];
        mean_pool(&states, &[3, 1], 2, &mut out);
        assert_eq!(out, [3.0, 4.0, 10.0, 20.0]);
        let mut d = [0.0; 8];
        mean_pool_backward(&[6.0, 3.0, 1.0, -1.0], &[3, 1], 2, &mut d);
        assert_eq!(d, [2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 1.0, -1.0]);
    }
}
