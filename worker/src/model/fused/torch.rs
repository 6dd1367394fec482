//! The fused operations on LibTorch: its own fused kernels, forward and backward. With 16-bit floats factors are rounded
//! right before a product and its result is widened right behind it, as PyTorch's autocast does.

use burn::backend::libtorch::{LibTorch, TchTensor};
use tch::{Kind, Tensor};

use super::gradients::EncoderGradients;
use super::{EncoderOps, Precision, Texts};

fn wrap(tensor: Tensor) -> TchTensor {
    TchTensor::new(tensor)
}

/// A factor of a product.
fn factor(tensor: &Tensor, precision: Precision) -> Tensor {
    match precision {
        Precision::F32 => tensor.shallow_clone(),
        Precision::Bf16 => tensor.to_kind(Kind::BFloat16),
        Precision::F16 => tensor.to_kind(Kind::Half),
    }
}

/// The result of a product.
fn wide(product: Tensor) -> Tensor {
    product.to_kind(Kind::Float)
}

/// [rows, hidden] as [texts, heads, width, head].
fn split(input: &Tensor, texts: &Texts, heads: usize) -> Tensor {
    let width = texts.width.expect("LibTorch computes padding");
    let (count, width, heads) = (texts.count() as i64, width as i64, heads as i64);
    input.reshape([count, width, heads, -1]).transpose(1, 2)
}

/// The inverse of [`split`].
fn join(output: &Tensor, rows: i64) -> Tensor {
    output.transpose(1, 2).contiguous().reshape([rows, -1])
}

/// What is added to scores, [texts, 1, 1, width]: nothing for tokens, minus infinity for padding.
fn padding(texts: &Texts, like: &Tensor) -> Option<Tensor> {
    let width = texts.width.expect("LibTorch computes padding");
    if texts.lengths.iter().all(|length| *length == width) {
        return None;
    }
    let mut values = vec![0.0f32; texts.count() * width];
    for (row, length) in values.chunks_exact_mut(width).zip(texts.lengths.iter()) {
        row[*length..].fill(f32::NEG_INFINITY);
    }
    let mask = Tensor::from_slice(&values).reshape([texts.count() as i64, 1, 1, width as i64]);
    Some(mask.to_device(like.device()).to_kind(like.kind()))
}

/// Attention put together from products, as on a GPU: the probabilities, [texts, heads, width, width].
fn probabilities(queries: &Tensor, keys: &Tensor, mask: Option<&Tensor>, scale: f64) -> Tensor {
    // Scaled before the product, which float16 could not hold otherwise.
    let scores = (queries * scale).matmul(&keys.transpose(2, 3));
    let scores = mask.map_or_else(|| scores.shallow_clone(), |mask| &scores + mask);
    scores.softmax(-1, None::<Kind>)
}

/// What a mean multiplies states with, and texts and width.
fn mean_weights(texts: &Texts, like: &Tensor) -> (Tensor, [i64; 2]) {
    let width = texts.width.expect("LibTorch computes padding");
    let weights = Tensor::from_slice(&texts.mean_weights(width));
    (weights.to_device(like.device()).to_kind(like.kind()), [texts.count() as i64, width as i64])
}

fn scale_of(split: &Tensor) -> f64 {
    1.0 / (split.size()[3] as f64).sqrt()
}

impl EncoderOps for LibTorch {
    fn encoder_linear(x: TchTensor, weight: TchTensor, bias: TchTensor, precision: Precision) -> TchTensor {
        match precision {
            Precision::F32 => wrap(bias.tensor.addmm(&x.tensor, &weight.tensor)),
            Precision::Bf16 | Precision::F16 => {
                let product = factor(&x.tensor, precision).mm(&factor(&weight.tensor, precision));
                wrap(wide(product) + &bias.tensor)
            }
        }
    }

    fn encoder_gelu(x: TchTensor) -> TchTensor {
        wrap(x.tensor.gelu("none"))
    }

    fn encoder_norm(
        x: TchTensor,
        residual: TchTensor,
        scale: TchTensor,
        shift: TchTensor,
        epsilon: f64,
    ) -> TchTensor {
        Self::norm_and_sum(x, residual, scale, shift, epsilon).0
    }

    fn encoder_attention(
        queries: TchTensor,
        keys: TchTensor,
        values: TchTensor,
        texts: Texts,
        heads: usize,
        precision: Precision,
    ) -> TchTensor {
        Self::attention_and_kept([queries, keys, values], &texts, heads, precision).0
    }

    fn encoder_mean(states: TchTensor, texts: Texts) -> TchTensor {
        let (weights, [count, width]) = mean_weights(&texts, &states.tensor);
        let states = states.tensor.reshape([count, width, -1]);
        wrap(weights.reshape([count, 1, width]).matmul(&states).squeeze_dim(1))
    }
}

impl EncoderGradients for LibTorch {
    fn linear_gradients(
        x: TchTensor,
        weight: TchTensor,
        d: TchTensor,
        by_input: bool,
        precision: Precision,
    ) -> (Option<TchTensor>, TchTensor, TchTensor) {
        let [x, weight, narrow] = [&x, &weight, &d].map(|tensor| factor(&tensor.tensor, precision));
        let dx = by_input.then(|| wrap(wide(narrow.mm(&weight.tr()))));
        let dw = wrap(wide(x.tr().mm(&narrow)));
        (dx, dw, wrap(d.tensor.sum_dim_intlist([0i64].as_slice(), false, None::<Kind>)))
    }

    fn gelu_gradient(x: TchTensor, d: TchTensor) -> TchTensor {
        wrap(x.tensor.gelu_backward(&d.tensor, "none"))
    }

    fn norm_and_sum(
        x: TchTensor,
        residual: TchTensor,
        scale: TchTensor,
        shift: TchTensor,
        epsilon: f64,
    ) -> (TchTensor, TchTensor) {
        let sum = &x.tensor + &residual.tensor;
        let width = sum.size()[1];
        let out = sum.layer_norm([width], Some(&scale.tensor), Some(&shift.tensor), epsilon, true);
        (wrap(out), wrap(sum))
    }

    fn norm_gradients(sum: TchTensor, scale: TchTensor, epsilon: f64, d: TchTensor) -> [TchTensor; 3] {
        let (sum, d) = (sum.tensor, d.tensor);
        let width = sum.size()[1];
        let (unit, _, inverse) = sum.native_layer_norm([width], None::<&Tensor>, None::<&Tensor>, epsilon);
        let rows = [0i64];
        let by_shift = d.sum_dim_intlist(rows.as_slice(), false, None::<Kind>);
        let by_scale = (&d * &unit).sum_dim_intlist(rows.as_slice(), false, None::<Kind>);
        let d = d * &scale.tensor;
        let columns = [1i64];
        let mean = d.mean_dim(columns.as_slice(), true, None::<Kind>);
        let product = (&d * &unit).mean_dim(columns.as_slice(), true, None::<Kind>);
        let by_sum = (d - mean - unit * product) * inverse;
        [by_sum, by_scale, by_shift].map(wrap)
    }

    fn attention_and_kept(
        inputs: [TchTensor; 3],
        texts: &Texts,
        heads: usize,
        precision: Precision,
    ) -> (TchTensor, Vec<TchTensor>) {
        let rows = inputs[0].tensor.size()[0];
        let [queries, keys, values] =
            inputs.map(|input| split(&factor(&input.tensor, precision), texts, heads));
        let mask = padding(texts, &queries);
        // The kernel for processors keeps 16-bit sums of float16, which gradients of 32-bit floats cannot read.
        if queries.device().is_cuda() || precision == Precision::F16 {
            let weights = probabilities(&queries, &keys, mask.as_ref(), scale_of(&queries));
            let out = join(&weights.matmul(&values), rows);
            return (wrap(wide(out)), vec![wrap(weights)]);
        }
        let (out, sums) = Tensor::internal_scaled_dot_product_flash_attention_for_cpu(
            &queries,
            &keys,
            &values,
            0.0,
            false,
            mask,
            None::<f64>,
        );
        (wrap(wide(join(&out, rows))), vec![wrap(out), wrap(sums)])
    }

    fn attention_gradients(
        inputs: [TchTensor; 3],
        kept: Vec<TchTensor>,
        texts: &Texts,
        heads: usize,
        d: TchTensor,
        precision: Precision,
    ) -> [TchTensor; 3] {
        let rows = inputs[0].tensor.size()[0];
        let narrow = |input: &TchTensor| split(&factor(&input.tensor, precision), texts, heads);
        let [queries, keys, values] = inputs.each_ref().map(narrow);
        let d = narrow(&d);
        let gradients = if let [weights] = kept.as_slice() {
            // They are float16 where the way forward was, and the way back is not.
            let (weights, scale) = (weights.tensor.to_kind(queries.kind()), scale_of(&queries));
            let by_values = weights.transpose(2, 3).matmul(&d);
            let by_weights = d.matmul(&values.transpose(2, 3));
            let sums = (&by_weights * &weights).sum_dim_intlist([3i64].as_slice(), true, None::<Kind>);
            let by_scores = (by_weights - sums) * &weights * scale;
            [by_scores.matmul(&keys), by_scores.transpose(2, 3).matmul(&queries), by_values]
        } else {
            let mask = padding(texts, &queries);
            let (dq, dk, dv) = Tensor::internal_scaled_dot_product_flash_attention_for_cpu_backward(
                &d,
                &queries,
                &keys,
                &values,
                &kept[0].tensor,
                &kept[1].tensor,
                0.0,
                false,
                mask,
                None::<f64>,
            );
            [dq, dk, dv]
        };
        gradients.map(|gradient| wrap(wide(join(&gradient, rows))))
    }

    fn mean_gradient(texts: &Texts, d: TchTensor) -> TchTensor {
        let (weights, [count, width]) = mean_weights(texts, &d.tensor);
        let d = d.tensor.reshape([count, 1, -1]);
        wrap((weights.reshape([count, width, 1]) * d).reshape([count * width, -1]))
    }
}
