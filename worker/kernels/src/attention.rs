//! Softmax attention (Vaswani et al., 2017) within each of several texts that lie one after the other, and its gradient.
//!
//! Texts have their own lengths, so there is neither padding nor a mask. The probabilities are not kept: the backward pass
//! computes them again by the same steps.

use super::math::exp;
use super::parallel::for_each;
use super::vectorise::vectorise;
use crate::matmul::{Sizes, Strided, Write, strided};

/// Sums and maxima run over this many interleaved lanes.
const LANES: usize = 16;

/// The shape of an attention over packed texts.
#[derive(Clone, Copy, Debug)]
pub struct Shape<'a> {
    /// Number of tokens of each text, in order.
    pub lengths: &'a [usize],
    /// Number of heads; a token's row holds theirs side by side.
    pub heads: usize,
    /// Width of a token's row: heads times the width of one.
    pub width: usize,
}

impl Shape<'_> {
    fn head(&self) -> usize {
        self.width / self.heads
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head() as f32).sqrt()
    }

    fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }
}

/// Splits rows of `width` at the ends of texts.
fn texts<'a>(mut data: &'a mut [f32], shape: &Shape<'_>) -> Vec<&'a mut [f32]> {
    let mut parts = Vec::with_capacity(shape.lengths.len());
    for length in shape.lengths {
        let (text, rest) = data.split_at_mut(length * shape.width);
        parts.push(text);
        data = rest;
    }
    parts
}

/// Where texts begin, in tokens.
fn starts(shape: &Shape<'_>) -> Vec<usize> {
    shape
        .lengths
        .iter()
        .scan(0, |start, length| {
            let here = *start;
            *start += length;
            Some(here)
        })
        .collect()
}

/// Queries, keys and values, each [tokens, width].
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// What looks.
    pub queries: &'a [f32],
    /// What is compared with.
    pub keys: &'a [f32],
    /// What is seen.
    pub values: &'a [f32],
}

impl<'a> Inputs<'a> {
    /// The parts of one text, from the column of one head on.
    fn part(&self, start: usize, length: usize, head: usize, shape: &Shape<'_>) -> Self {
        let range = start * shape.width + head * shape.head()..(start + length) * shape.width;
        let part = |data: &'a [f32]| &data[range.clone()];
        Self { queries: part(self.queries), keys: part(self.keys), values: part(self.values) }
    }
}

/// Memory of one thread's work.
#[derive(Default)]
struct Scratch {
    probabilities: Vec<f32>,
    slopes: Vec<f32>,
}

thread_local! {
    static SCRATCH: std::cell::RefCell<Scratch> = std::cell::RefCell::default();
}

/// A buffer of `length` values, whatever they are.
fn sized(buffer: &mut Vec<f32>, length: usize) -> &mut [f32] {
    if buffer.len() < length {
        buffer.resize(length, 0.0);
    }
    &mut buffer[..length]
}

/// `out[tokens, width]`: for each token and head, the values weighted by the softmax of its query's products with the keys
/// of its own text, divided by the root of a head's width.
///
/// # Panics
/// When a slice does not have the shape, or heads do not divide the width.
pub fn attention(inputs: Inputs<'_>, shape: Shape<'_>, out: &mut [f32]) {
    check(&inputs, &shape);
    assert_eq!(out.len(), shape.tokens() * shape.width, "the result of attention");
    let tasks: Vec<_> = starts(&shape).into_iter().zip(texts(out, &shape)).collect();
    for_each(tasks, |(start, out)| {
        let length = out.len() / shape.width;
        if length == 0 {
            return;
        }
        let mut scratch = SCRATCH.take();
        let probabilities = sized(&mut scratch.probabilities, length * length);
        for head in 0..shape.heads {
            let part = inputs.part(start, length, head, &shape);
            attend(part, &shape, length, probabilities);
            let left = Strided::rows(probabilities, length);
            let right = Strided::rows(part.values, shape.width);
            let column = head * shape.head();
            product(left, right, [length, shape.head(), length], &mut out[column..], shape.width);
        }
        SCRATCH.set(scratch);
    });
}

fn product(
    left: Strided<'_, f32>,
    right: Strided<'_, f32>,
    [m, n, k]: [usize; 3],
    out: &mut [f32],
    stride: usize,
) {
    strided(Sizes { m, n, k }, left, right, (out, stride), Write::Overwrite);
}

/// The probabilities [length, length] of one head of one text.
fn attend(part: Inputs<'_>, shape: &Shape<'_>, length: usize, probabilities: &mut [f32]) {
    let (queries, keys) =
        (Strided::rows(part.queries, shape.width), Strided::transposed(part.keys, shape.width));
    product(queries, keys, [length, length, shape.head()], probabilities, length);
    let scale = shape.scale();
    vectorise!((probabilities: &'a mut [f32], length: usize, scale: f32) {
        probabilities.chunks_exact_mut(length).for_each(|row| softmax(row, scale));
    });
}

/// The softmax of `scale * row`.
#[inline(always)]
fn softmax(row: &mut [f32], scale: f32) {
    let mut highest = [f32::NEG_INFINITY; LANES];
    let (chunks, tail) = row.as_chunks::<LANES>();
    for chunk in chunks {
        highest
            .iter_mut()
            .zip(chunk)
            .for_each(|(high, value)| *high = if *value > *high { *value } else { *high });
    }
    highest
        .iter_mut()
        .zip(tail)
        .for_each(|(high, value)| *high = if *value > *high { *value } else { *high });
    let highest = highest.into_iter().fold(f32::NEG_INFINITY, f32::max);
    let mut sums = [0.0f32; LANES];
    let mut add = |values: &mut [f32]| {
        for (sum, value) in sums.iter_mut().zip(values) {
            *value = exp((*value - highest) * scale);
            *sum += *value;
        }
    };
    let (chunks, tail) = row.as_chunks_mut::<LANES>();
    chunks.iter_mut().for_each(|chunk| add(chunk));
    add(tail);
    let inverse = 1.0 / total(sums);
    row.iter_mut().for_each(|value| *value *= inverse);
}

#[inline(always)]
fn total(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// Gradients of [`attention`] by its inputs, each [tokens, width]; all of them are overwritten.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// By the queries.
    pub queries: &'a mut [f32],
    /// By the keys.
    pub keys: &'a mut [f32],
    /// By the values.
    pub values: &'a mut [f32],
}

/// The gradients by the inputs where `d` [tokens, width] is that by the result.
///
/// # Panics
/// When a slice does not have the shape.
pub fn attention_backward(inputs: Inputs<'_>, shape: Shape<'_>, d: &[f32], gradients: Gradients<'_>) {
    check(&inputs, &shape);
    assert_eq!(d.len(), shape.tokens() * shape.width, "the gradient of attention's result");
    let Gradients { queries, keys, values } = gradients;
    let tasks: Vec<_> = starts(&shape)
        .into_iter()
        .zip(texts(queries, &shape))
        .zip(texts(keys, &shape).into_iter().zip(texts(values, &shape)))
        .collect();
    for_each(tasks, |((start, queries), (keys, values))| {
        let length = queries.len() / shape.width;
        if length == 0 {
            return;
        }
        let mut scratch = SCRATCH.take();
        let Scratch { probabilities, slopes } = &mut scratch;
        let (probabilities, slopes) = (sized(probabilities, length * length), sized(slopes, length * length));
        for head in 0..shape.heads {
            let part = inputs.part(start, length, head, &shape);
            let column = head * shape.head();
            let d = &d[start * shape.width + column..(start + length) * shape.width];
            attend(part, &shape, length, probabilities);
            let (inner, outer) = ([length, shape.head(), length], [length, length, shape.head()]);
            let rows = |data| Strided::rows(data, shape.width);
            product(rows(d), Strided::transposed(part.values, shape.width), outer, slopes, length);
            let turned = Strided::transposed(probabilities, length);
            product(turned, rows(d), inner, &mut values[column..], shape.width);
            let scale = shape.scale();
            let probabilities = &*probabilities;
            let scores = &mut *slopes;
            vectorise!((scores: &'a mut [f32], probabilities: &'a [f32], length: usize, scale: f32) {
                let rows = scores.chunks_exact_mut(length).zip(probabilities.chunks_exact(length));
                rows.for_each(|(slopes, probabilities)| softmax_backward(slopes, probabilities, scale));
            });
            product(
                Strided::rows(slopes, length),
                rows(part.keys),
                inner,
                &mut queries[column..],
                shape.width,
            );
            product(
                Strided::transposed(slopes, length),
                rows(part.queries),
                inner,
                &mut keys[column..],
                shape.width,
            );
        }
        SCRATCH.set(scratch);
    });
}

/// Turns the gradient by a row of probabilities into that by the scores before scaling.
#[inline(always)]
fn softmax_backward(slopes: &mut [f32], probabilities: &[f32], scale: f32) {
    let mut sums = [0.0f32; LANES];
    for (slopes, probabilities) in slopes.chunks(LANES).zip(probabilities.chunks(LANES)) {
        for ((sum, slope), probability) in sums.iter_mut().zip(slopes).zip(probabilities) {
            *sum = slope.mul_add(*probability, *sum);
        }
    }
    let mean = total(sums);
    for (slope, probability) in slopes.iter_mut().zip(probabilities) {
        *slope = (*slope - mean) * probability * scale;
    }
}

fn check(inputs: &Inputs<'_>, shape: &Shape<'_>) {
    assert!(shape.heads > 0 && shape.width.is_multiple_of(shape.heads), "heads divide the width");
    let values = shape.tokens() * shape.width;
    for side in [inputs.queries, inputs.keys, inputs.values] {
        assert_eq!(side.len(), values, "an input of attention");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(i: usize) -> f32 {
        ((i * 7919 + 11) % 1013) as f32 / 500.0 - 1.0
    }

    /// The definition, in f64.
    fn reference(inputs: [&[f32]; 3], shape: Shape<'_>) -> Vec<f64> {
        let [queries, keys, values] = inputs;
        let (width, head) = (shape.width, shape.head());
        let mut out = vec![0.0; queries.len()];
        for (start, length) in starts(&shape).into_iter().zip(shape.lengths) {
            let at =
                |data: &[f32], token: usize, column: usize| f64::from(data[(start + token) * width + column]);
            for (h, i) in (0..shape.heads).flat_map(|h| (0..*length).map(move |i| (h, i))) {
                let columns = h * head..(h + 1) * head;
                let score =
                    |j: usize| -> f64 { columns.clone().map(|c| at(queries, i, c) * at(keys, j, c)).sum() };
                let weights: Vec<f64> =
                    (0..*length).map(|j| (score(j) / (head as f64).sqrt()).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for c in columns.clone() {
                    let mixed: f64 = weights.iter().enumerate().map(|(j, w)| w * at(values, j, c)).sum();
                    out[(start + i) * width + c] = mixed / sum;
                }
            }
        }
        out
    }

    #[test]
    fn attention_and_its_gradient_follow_the_definition() {
        for (lengths, heads, width) in [(&[3usize, 1, 0, 20][..], 2, 10), (&[33, 7], 3, 96), (&[1], 1, 1)] {
            let shape = Shape { lengths, heads, width };
            let len = shape.tokens() * width;
            let make = |salt: usize| (0..len).map(|i| value(i * 3 + salt)).collect::<Vec<_>>();
            let (queries, keys, values, d) = (make(1), make(2), make(3), make(4));
            let inputs = Inputs { queries: &queries, keys: &keys, values: &values };
            let mut out = vec![f32::NAN; len];
            attention(inputs, shape, &mut out);
            for (found, wanted) in out.iter().zip(reference([&queries, &keys, &values], shape)) {
                assert!((f64::from(*found) - wanted).abs() < 1e-6);
            }
            let mut found = [vec![f32::NAN; len], vec![f32::NAN; len], vec![f32::NAN; len]];
            let [dq, dk, dv] = &mut found;
            attention_backward(inputs, shape, &d, Gradients { queries: dq, keys: dk, values: dv });
            let loss = |sides: [&[f32]; 3]| -> f64 {
                reference(sides, shape).iter().zip(&d).map(|(a, b)| a * f64::from(*b)).sum()
            };
            for side in 0..3 {
                for at in (0..len).step_by(len / 40 + 1) {
                    let by = |by: f32| {
                        let mut changed = [queries.clone(), keys.clone(), values.clone()];
                        changed[side][at] += by;
                        loss([&changed[0], &changed[1], &changed[2]])
                    };
                    let wanted = (by(0.01) - by(-0.01)) / 0.02;
                    let found = f64::from(found[side][at]);
                    assert!((found - wanted).abs() < 1e-3, "side {side} at {at}: {found} is not {wanted}");
                }
            }
        }
    }
}
