//! The fused operations on flex: this workspace's kernels on the tensors' own memory. They know 32-bit floats only.

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::tensor::TensorData;

use super::gradients::EncoderGradients;
use super::{EncoderOps, Precision, Texts};
use retort_kernels::attention::{Gradients, Inputs, Shape, attention, attention_backward};
use retort_kernels::elementwise::{add_column_sums, gelu_backward, gelu_in_place, gelu_into};
use retort_kernels::matmul::{Sizes, Strided, Write, on_pool};
use retort_kernels::norm::{Norm, add_norm, add_norm_in_place, norm_backward, row_statistics};
use retort_kernels::pool::{mean_pool, mean_pool_backward};

/// A tensor whose values lie one after the other.
fn whole(tensor: FlexTensor) -> FlexTensor {
    if tensor.is_contiguous() { tensor } else { tensor.to_contiguous() }
}

fn values(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().expect("the tensor was made contiguous, and encoders compute with f32")
}

fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}

/// Rows and columns of a matrix.
fn sides(tensor: &FlexTensor) -> [usize; 2] {
    let shape = tensor.layout().shape();
    [shape[0], shape[1]]
}

/// The tensor's memory to write to, if nobody else has it and it holds nothing else.
fn own_memory(tensor: &mut FlexTensor) -> Option<&mut [f32]> {
    let whole = tensor.layout().start_offset() == 0
        && tensor.layout().num_elements() * size_of::<f32>() == tensor.bytes().len();
    if whole { tensor.try_storage_mut() } else { None }
}

/// A tensor with memory of its own, copied where it is shared.
fn owned(tensor_: FlexTensor) -> FlexTensor {
    let mut found = whole(tensor_);
    if own_memory(&mut found).is_some() {
        return found;
    }
    let shape = sides(&found);
    tensor(values(&found).to_vec(), shape)
}

fn memory(tensor: &mut FlexTensor) -> &mut [f32] {
    own_memory(tensor).expect("the tensor was made to own its memory")
}

fn shape<'a>(texts: &'a Texts, heads: usize, width: usize) -> Shape<'a> {
    debug_assert!(texts.width.is_none(), "flex packs texts");
    Shape { lengths: &texts.lengths, heads, width }
}

impl EncoderOps for Flex {
    fn encoder_linear(x: FlexTensor, weight: FlexTensor, bias: FlexTensor, _: Precision) -> FlexTensor {
        let (x, weight, bias) = (whole(x), whole(weight), whole(bias));
        let ([m, k], [_, n]) = (sides(&x), sides(&weight));
        // The chain of an element's additions begins with the bias.
        let mut out = Vec::with_capacity(m * n);
        (0..m).for_each(|_| out.extend_from_slice(values(&bias)));
        let (a, b) = (Strided::rows(values(&x), k), Strided::rows(values(&weight), n));
        on_pool(Sizes { m, n, k }, a, b, &mut out, Write::Add);
        tensor(out, [m, n])
    }

    fn encoder_gelu(x: FlexTensor) -> FlexTensor {
        let mut x = whole(x);
        if let Some(memory) = own_memory(&mut x) {
            gelu_in_place(memory);
            return x;
        }
        let mut out = vec![0.0; values(&x).len()];
        gelu_into(values(&x), &mut out);
        tensor(out, sides(&x))
    }

    fn encoder_norm(
        x: FlexTensor,
        residual: FlexTensor,
        scale: FlexTensor,
        shift: FlexTensor,
        epsilon: f64,
    ) -> FlexTensor {
        let (mut x, residual, scale, shift) = (owned(x), whole(residual), whole(scale), whole(shift));
        let norm = Norm { scale: values(&scale), shift: values(&shift), epsilon: epsilon as f32 };
        add_norm_in_place(memory(&mut x), values(&residual), norm);
        x
    }

    fn encoder_attention(
        queries: FlexTensor,
        keys: FlexTensor,
        values_: FlexTensor,
        texts: Texts,
        heads: usize,
        precision: Precision,
    ) -> FlexTensor {
        Self::attention_and_kept([queries, keys, values_], &texts, heads, precision).0
    }

    fn encoder_mean(states: FlexTensor, texts: Texts) -> FlexTensor {
        let states = whole(states);
        let [_, width] = sides(&states);
        let mut out = vec![0.0; texts.count() * width];
        mean_pool(values(&states), &texts.lengths, width, &mut out);
        tensor(out, [texts.count(), width])
    }
}

impl EncoderGradients for Flex {
    fn linear_gradients(
        x: FlexTensor,
        weight: FlexTensor,
        d: FlexTensor,
        by_input: bool,
        _: Precision,
    ) -> (Option<FlexTensor>, FlexTensor, FlexTensor) {
        let (x, weight, d) = (whole(x), whole(weight), whole(d));
        let ([m, k], [_, n]) = (sides(&x), sides(&weight));
        let d_rows = Strided::rows(values(&d), n);
        let dx = by_input.then(|| {
            let mut dx = vec![0.0; m * k];
            let turned = Strided::transposed(values(&weight), n);
            on_pool(Sizes { m, n: k, k: n }, d_rows, turned, &mut dx, Write::Add);
            tensor(dx, [m, k])
        });
        let mut dw = vec![0.0; k * n];
        let turned = Strided::transposed(values(&x), k);
        on_pool(Sizes { m: k, n, k: m }, turned, d_rows, &mut dw, Write::Add);
        let mut db = vec![0.0; n];
        add_column_sums(values(&d), &mut db);
        (dx, tensor(dw, [k, n]), tensor(db, [n]))
    }

    fn gelu_gradient(x: FlexTensor, d: FlexTensor) -> FlexTensor {
        let (x, mut d) = (whole(x), owned(d));
        gelu_backward(values(&x), memory(&mut d));
        d
    }

    fn norm_and_sum(
        x: FlexTensor,
        residual: FlexTensor,
        scale: FlexTensor,
        shift: FlexTensor,
        epsilon: f64,
    ) -> (FlexTensor, FlexTensor) {
        let (mut x, residual, scale, shift) = (owned(x), whole(residual), whole(scale), whole(shift));
        let norm = Norm { scale: values(&scale), shift: values(&shift), epsilon: epsilon as f32 };
        let shape = sides(&x);
        let mut out = vec![0.0; shape[0] * shape[1]];
        add_norm(memory(&mut x), values(&residual), norm, &mut out);
        (tensor(out, shape), x)
    }

    fn norm_gradients(sum: FlexTensor, scale: FlexTensor, epsilon: f64, d: FlexTensor) -> [FlexTensor; 3] {
        let (sum, scale, mut d) = (whole(sum), whole(scale), owned(d));
        let width = values(&scale).len();
        let moments = row_statistics(values(&sum), width, epsilon as f32);
        let (mut d_scale, mut d_shift) = (vec![0.0; width], vec![0.0; width]);
        let memory = memory(&mut d);
        norm_backward(values(&sum), &moments, values(&scale), memory, &mut d_scale, &mut d_shift);
        [d, tensor(d_scale, [width]), tensor(d_shift, [width])]
    }

    fn attention_and_kept(
        inputs: [FlexTensor; 3],
        texts: &Texts,
        heads: usize,
        _: Precision,
    ) -> (FlexTensor, Vec<FlexTensor>) {
        let inputs = inputs.map(whole);
        let [rows, width] = sides(&inputs[0]);
        let [queries, keys, values] = [&inputs[0], &inputs[1], &inputs[2]].map(values);
        let mut out = vec![0.0; rows * width];
        attention(Inputs { queries, keys, values }, shape(texts, heads, width), &mut out);
        // The probabilities are computed again: they would be larger than all else.
        (tensor(out, [rows, width]), Vec::new())
    }

    fn attention_gradients(
        inputs: [FlexTensor; 3],
        _: Vec<FlexTensor>,
        texts: &Texts,
        heads: usize,
        d: FlexTensor,
        _: Precision,
    ) -> [FlexTensor; 3] {
        let (inputs, d) = (inputs.map(whole), whole(d));
        let [rows, width] = sides(&d);
        let [queries, keys, values_] = [&inputs[0], &inputs[1], &inputs[2]].map(values);
        let mut gradients = [(); 3].map(|()| vec![0.0; rows * width]);
        let [dq, dk, dv] = &mut gradients;
        attention_backward(
            Inputs { queries, keys, values: values_ },
            shape(texts, heads, width),
            values(&d),
            Gradients { queries: dq, keys: dk, values: dv },
        );
        gradients.map(|gradient| tensor(gradient, [rows, width]))
    }

    fn mean_gradient(texts: &Texts, d: FlexTensor) -> FlexTensor {
        let d = whole(d);
        let [_, width] = sides(&d);
        let rows: usize = texts.lengths.iter().sum();
        let mut out = vec![0.0; rows * width];
        mean_pool_backward(values(&d), &texts.lengths, width, &mut out);
        tensor(out, [rows, width])
    }
}
