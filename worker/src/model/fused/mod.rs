//! The operations that an encoder is made of, fused where the backend has kernels for that.
//!
//! burn lets a program add operations to its backends, gradients included. These, a linear layer, GELU, layer norm of a
//! sum, attention and the mean of states, have kernels of their own on flex ([`flex`]: this workspace's) and LibTorch (`torch`: its fused ones);
//! [`gradients`] teaches burn's autodiff about them. On other backends they are put together from burn's own operations.
//!
//! Token states are [tokens, width], one row a token. How rows belong to texts is said by [`Texts`].
//!
//! With and without autodiff the same kernels run: whether a graph is kept changes no bit.

mod flex;
mod gradients;
mod relative;
#[cfg(feature = "tch")]
mod torch;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, DispatchDevice, backend_extension};
use burn::tensor::module::{attention, layer_norm, linear};
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Bool, Device, FloatDType, Int, Tensor, TensorData, activation};
use std::sync::Arc;

pub(super) use relative::{biased_attention, relative_bias};

use crate::text::TokenBatch;

/// What the products of an encoder are computed with. Weights, sums of states, layer norms and gradients stay 32-bit
/// floats, as in mixed-precision training (Micikevicius et al., 2018).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// 32-bit floats.
    #[default]
    F32,
    /// Factors rounded to bfloat16, where the device multiplies them faster.
    Bf16,
    /// Factors rounded to float16 on the way forward; the products of gradients, many of which float16 would take for
    /// zero, are of 32-bit floats, so that losses need no scaling.
    F16,
}

impl Precision {
    /// How a device's name asks for it.
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::F32 => "",
            Self::Bf16 => "+bf16",
            Self::F16 => "+f16",
        }
    }

    /// That of the products on the way back.
    fn of_gradients(self) -> Self {
        if self == Self::F16 { Self::F32 } else { self }
    }
}

/// How the rows of token states belong to texts.
#[derive(Clone, Debug)]
pub struct Texts {
    /// Tokens of each text.
    pub lengths: Arc<[usize]>,
    /// Rows of each text where all have as many, those beyond its tokens being padding; without it rows hold tokens alone,
    /// text after text.
    pub width: Option<usize>,
}

impl Texts {
    /// The texts of a batch on a device: packed where attention can do with it.
    pub fn new(batch: &TokenBatch, device: &Device) -> Self {
        let lengths: Arc<[usize]> = batch.lengths.iter().map(|length| *length as usize).collect();
        Self { lengths, width: (!packs(device)).then_some(batch.width) }
    }

    /// Number of texts.
    pub fn count(&self) -> usize {
        self.lengths.len()
    }

    /// Row of each text's first token.
    pub fn starts(&self) -> Vec<usize> {
        let mut next = 0;
        let start = |length: &usize| {
            let start = next;
            next += self.width.unwrap_or(*length);
            start
        };
        self.lengths.iter().map(start).collect()
    }

    /// Rows of each text where all have as many.
    pub fn row_width(&self) -> usize {
        self.width.unwrap_or_else(|| self.lengths.iter().copied().max().unwrap_or(0))
    }

    /// The rows that make texts equally long; the first token's stands where a text has none.
    pub fn padded_rows(&self) -> Vec<usize> {
        let width = self.row_width();
        let texts = self.starts().into_iter().zip(self.lengths.iter());
        let places = |(start, length): (usize, &usize)| {
            let length = *length;
            (0..width).map(move |place| if place < length { start + place } else { start })
        };
        texts.flat_map(places).collect()
    }

    /// Where the tokens stand among [`Texts::padded_rows`].
    fn token_places(&self) -> Vec<usize> {
        let width = self.row_width();
        let texts = self.lengths.iter().enumerate();
        texts.flat_map(|(text, length)| text * width..text * width + length).collect()
    }

    /// 1 / length on tokens and 0 on padding, [texts, width].
    fn mean_weights(&self, width: usize) -> Vec<f32> {
        let mut weights = vec![0.0; self.count() * width];
        for (row, length) in weights.chunks_exact_mut(width).zip(self.lengths.iter()) {
            row[..*length].fill(1.0 / *length as f32);
        }
        weights
    }

    /// The values of a batch's rows, of `per_row` values each: all of them, or those of tokens alone.
    pub fn pick<T: Copy>(&self, padded: &[T], width: usize, per_row: usize) -> Vec<T> {
        if self.width.is_some() {
            return padded.to_vec();
        }
        let texts = padded.chunks_exact((width * per_row).max(1)).zip(self.lengths.iter());
        texts.flat_map(|(text, length)| text[..length * per_row].iter().copied()).collect()
    }
}

/// Whether padding is left out on a device.
pub fn packs(device: &Device) -> bool {
    matches!(bare(device), DispatchDevice::Flex(_))
}

/// Whether the backend of a device has kernels for these operations.
fn has_kernels(device: &Device) -> bool {
    match bare(device) {
        DispatchDevice::Flex(_) => true,
        #[cfg(feature = "tch")]
        DispatchDevice::LibTorch(_) => true,
        #[allow(unreachable_patterns, reason = "which others there are depends on features")]
        _ => false,
    }
}

/// The device under autodiff.
fn bare(device: &Device) -> DispatchDevice {
    device.clone().inner().as_dispatch().clone()
}

/// An encoder's operations on a backend. Names begin with `encoder` so that they hide none of burn's.
#[backend_extension(Flex, LibTorch: cfg(feature = "tch"), Autodiff)]
pub(super) trait EncoderOps: Backend {
    /// x [rows, in] · weight [in, out] + bias [out].
    fn encoder_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self>;

    /// The exact GELU.
    fn encoder_gelu(x: FloatTensor<Self>) -> FloatTensor<Self>;

    /// Layer norm over the rows of x + residual [rows, width].
    fn encoder_norm(
        x: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self>;

    /// Softmax attention among the tokens of each text; queries, keys and values are [rows, heads times head width]. What
    /// stands in rows of padding is not said.
    fn encoder_attention(
        queries: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        texts: Texts,
        heads: usize,
        precision: Precision,
    ) -> FloatTensor<Self>;

    /// The mean of each text's token states, [texts, width].
    fn encoder_mean(states: FloatTensor<Self>, texts: Texts) -> FloatTensor<Self>;
}

/// A linear layer on token states.
pub(super) fn fused_linear(
    x: Tensor<2>,
    weight: Tensor<2>,
    bias: Tensor<1>,
    precision: Precision,
) -> Tensor<2> {
    if !has_kernels(&x.device()) {
        return plain_linear(x, weight, bias, precision);
    }
    let (x, weight, bias) = (x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch());
    Tensor::from_dispatch(Dispatch::encoder_linear(x, weight, bias, precision))
}

/// GELU on token states.
pub(super) fn fused_gelu(x: Tensor<2>) -> Tensor<2> {
    if !has_kernels(&x.device()) {
        return activation::gelu(x);
    }
    Tensor::from_dispatch(Dispatch::encoder_gelu(x.into_dispatch()))
}

/// Layer norm of a sum.
pub(super) fn fused_norm(
    x: Tensor<2>,
    residual: Tensor<2>,
    scale: Tensor<1>,
    shift: Tensor<1>,
    epsilon: f64,
) -> Tensor<2> {
    if !has_kernels(&x.device()) {
        return layer_norm(x + residual, scale, Some(shift), epsilon);
    }
    let (x, residual) = (x.into_dispatch(), residual.into_dispatch());
    let (scale, shift) = (scale.into_dispatch(), shift.into_dispatch());
    Tensor::from_dispatch(Dispatch::encoder_norm(x, residual, scale, shift, epsilon))
}

/// Attention among the tokens of each text.
pub(super) fn fused_attention(
    inputs: [Tensor<2>; 3],
    texts: &Texts,
    heads: usize,
    precision: Precision,
) -> Tensor<2> {
    let device = inputs[0].device();
    if has_kernels(&device) {
        let [queries, keys, values] = inputs.map(Tensor::into_dispatch);
        let context = Dispatch::encoder_attention(queries, keys, values, texts.clone(), heads, precision);
        return Tensor::from_dispatch(context);
    }
    plain_attention(inputs, texts, heads, precision)
}

/// A linear layer of burn's own operations.
fn plain_linear(x: Tensor<2>, weight: Tensor<2>, bias: Tensor<1>, precision: Precision) -> Tensor<2> {
    if precision == Precision::F32 {
        return linear(x, weight, Some(bias));
    }
    factor(x, precision).matmul(factor(weight, precision)).cast(FloatDType::F32) + bias.unsqueeze()
}

/// Attention of burn's own operations, on padded texts.
fn plain_attention(inputs: [Tensor<2>; 3], texts: &Texts, heads: usize, precision: Precision) -> Tensor<2> {
    let (count, width) = (texts.count(), texts.width.expect("only fused attention takes packed texts"));
    let [rows, hidden] = inputs[0].dims();
    let mask = padding_mask(texts, width, heads, &inputs[0].device());
    let [queries, keys, values] = inputs
        .map(|input| factor(input, precision).reshape([count, width, heads, hidden / heads]).swap_dims(1, 2));
    let context = attention(queries, keys, values, mask, None, AttentionModuleOptions::default());
    context.swap_dims(1, 2).reshape([rows, hidden]).cast(FloatDType::F32)
}

/// A factor of a product of burn's own operations.
fn factor(tensor: Tensor<2>, precision: Precision) -> Tensor<2> {
    match precision {
        Precision::F32 => tensor,
        Precision::Bf16 => tensor.cast(FloatDType::BF16),
        Precision::F16 => tensor.cast(FloatDType::F16),
    }
}

/// The mean of each text's token states, [texts, hidden].
pub(super) fn fused_mean(states: Tensor<2>, texts: &Texts) -> Tensor<2> {
    let device = states.device();
    if has_kernels(&device) {
        return Tensor::from_dispatch(Dispatch::encoder_mean(states.into_dispatch(), texts.clone()));
    }
    // A product with constant weights, 1 / length on tokens and 0 on padding: one pass, and so is its gradient.
    let [_, hidden] = states.dims();
    let (count, width) = (texts.count(), texts.width.expect("only fused means take packed texts"));
    let weights = TensorData::new(texts.mean_weights(width), [count, 1, width]);
    let states = states.reshape([count, width, hidden]);
    Tensor::<3>::from_data(weights, &device).matmul(states).reshape([count, hidden])
}

/// Some rows of token states.
pub(super) fn select_rows(states: Tensor<2>, rows: Vec<usize>, device: &Device) -> Tensor<2> {
    let rows: Vec<i64> = rows.into_iter().map(|row| row as i64).collect();
    let count = rows.len();
    states.select(0, Tensor::<1, Int>::from_data(TensorData::new(rows, [count]), device))
}

/// True where a token must not look: [texts, heads, width, width], or nothing when no text is padded.
fn padding_mask(texts: &Texts, width: usize, heads: usize, device: &Device) -> Option<Tensor<4, Bool>> {
    if texts.lengths.iter().all(|length| *length == width) {
        return None;
    }
    let count = texts.count();
    let mut padding = vec![false; count * width];
    for (row, length) in padding.chunks_exact_mut(width).zip(texts.lengths.iter()) {
        row[*length..].fill(true);
    }
    let padding = Tensor::<2, Bool>::from_data(TensorData::new(padding, [count, width]), device);
    Some(padding.reshape([count, 1, 1, width]).expand([count, heads, width, width]))
}

#[cfg(test)]
mod tests;
