//! What burn's autodiff needs to know of the fused operations: how each is differentiated, and what it keeps for that.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend};

use super::{EncoderOps, Precision, Texts};

/// The gradients of a backend's kernels. `d` is always the gradient by the operation's result.
pub(in crate::model) trait EncoderGradients: EncoderOps {
    /// By input, weight and bias; by the input only where it is wanted.
    fn linear_gradients(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        d: FloatTensor<Self>,
        by_input: bool,
        precision: Precision,
    ) -> (Option<FloatTensor<Self>>, FloatTensor<Self>, FloatTensor<Self>);

    /// By the input.
    fn gelu_gradient(x: FloatTensor<Self>, d: FloatTensor<Self>) -> FloatTensor<Self>;

    /// The result with exactly the bits of [`EncoderOps::encoder_norm`], and the sum that was normalised.
    fn norm_and_sum(
        x: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        epsilon: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// By the sum, the scale and the shift.
    fn norm_gradients(
        sum: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        epsilon: f64,
        d: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 3];

    /// The result with exactly the bits of [`EncoderOps::encoder_attention`], and what its gradient wants of it.
    fn attention_and_kept(
        inputs: [FloatTensor<Self>; 3],
        texts: &Texts,
        heads: usize,
        precision: Precision,
    ) -> (FloatTensor<Self>, Vec<FloatTensor<Self>>);

    /// By queries, keys and values.
    fn attention_gradients(
        inputs: [FloatTensor<Self>; 3],
        kept: Vec<FloatTensor<Self>>,
        texts: &Texts,
        heads: usize,
        d: FloatTensor<Self>,
        precision: Precision,
    ) -> [FloatTensor<Self>; 3];

    /// By the states.
    fn mean_gradient(texts: &Texts, d: FloatTensor<Self>) -> FloatTensor<Self>;
}

#[derive(Debug)]
struct Linear;

impl<B: EncoderGradients> Backward<B, 3> for Linear {
    type State = (FloatTensor<B>, FloatTensor<B>, Precision);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let d = grads.consume::<B>(&ops.node);
        let ([x, weight, bias], state) = (ops.parents, ops.state);
        let (dx, dw, db) = B::linear_gradients(state.0, state.1, d, x.is_some(), state.2.of_gradients());
        if let (Some(node), Some(dx)) = (x, dx) {
            grads.register::<B>(node.id, dx);
        }
        if let Some(node) = weight {
            grads.register::<B>(node.id, dw);
        }
        if let Some(node) = bias {
            grads.register::<B>(node.id, db);
        }
    }
}

#[derive(Debug)]
struct Gelu;

impl<B: EncoderGradients> Backward<B, 1> for Gelu {
    type State = FloatTensor<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let x = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |d| B::gelu_gradient(x, d));
    }
}

#[derive(Debug)]
struct Norm;

impl<B: EncoderGradients> Backward<B, 4> for Norm {
    type State = (FloatTensor<B>, FloatTensor<B>, f64);

    fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, _: &mut Checkpointer) {
        let d = grads.consume::<B>(&ops.node);
        let ([x, residual, scale, shift], (sum, weight, epsilon)) = (ops.parents, ops.state);
        let [by_sum, by_scale, by_shift] = B::norm_gradients(sum, weight, epsilon, d);
        for node in [x, residual].into_iter().flatten() {
            grads.register::<B>(node.id, by_sum.clone());
        }
        if let Some(node) = scale {
            grads.register::<B>(node.id, by_scale);
        }
        if let Some(node) = shift {
            grads.register::<B>(node.id, by_shift);
        }
    }
}

#[derive(Debug)]
struct Attention;

/// What attention keeps for its gradient.
#[derive(Clone, Debug)]
struct AttentionState<B: Backend> {
    inputs: [FloatTensor<B>; 3],
    kept: Vec<FloatTensor<B>>,
    texts: Texts,
    heads: usize,
    precision: Precision,
}

impl<B: EncoderGradients> Backward<B, 3> for Attention {
    type State = AttentionState<B>;

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let d = grads.consume::<B>(&ops.node);
        let AttentionState { inputs, kept, texts, heads, precision } = ops.state;
        let gradients = B::attention_gradients(inputs, kept, &texts, heads, d, precision.of_gradients());
        for (node, gradient) in ops.parents.into_iter().zip(gradients) {
            if let Some(node) = node {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

#[derive(Debug)]
struct Mean;

impl<B: EncoderGradients> Backward<B, 1> for Mean {
    type State = Texts;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let texts = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |d| B::mean_gradient(&texts, d));
    }
}

impl<B: EncoderGradients, C: CheckpointStrategy> EncoderOps for Autodiff<B, C> {
    fn encoder_mean(states: FloatTensor<Self>, texts: Texts) -> FloatTensor<Self> {
        let nodes = [states.node()];
        let states = states.into_primitive();
        match Mean.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                let out = B::encoder_mean(states, texts.clone());
                prepared.finish(texts, out)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(B::encoder_mean(states, texts)),
        }
    }

    fn encoder_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), weight.node(), bias.node()];
        let (x, weight, bias) = (x.into_primitive(), weight.into_primitive(), bias.into_primitive());
        match Linear.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                let out = B::encoder_linear(x.clone(), weight.clone(), bias, precision);
                prepared.finish((x, weight, precision), out)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(B::encoder_linear(x, weight, bias, precision)),
        }
    }

    fn encoder_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let nodes = [x.node()];
        let x = x.into_primitive();
        match Gelu.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                let out = B::encoder_gelu(x.clone());
                prepared.finish(x, out)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(B::encoder_gelu(x)),
        }
    }

    fn encoder_norm(
        x: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), residual.node(), scale.node(), shift.node()];
        let (x, residual) = (x.into_primitive(), residual.into_primitive());
        let (scale, shift) = (scale.into_primitive(), shift.into_primitive());
        match Norm.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                let (out, sum) = B::norm_and_sum(x, residual, scale.clone(), shift, epsilon);
                prepared.finish((sum, scale, epsilon), out)
            }
            OpsKind::UnTracked(prepared) => {
                prepared.finish(B::encoder_norm(x, residual, scale, shift, epsilon))
            }
        }
    }

    fn encoder_attention(
        queries: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        texts: Texts,
        heads: usize,
        precision: Precision,
    ) -> FloatTensor<Self> {
        let nodes = [queries.node(), keys.node(), values.node()];
        let inputs = [queries, keys, values].map(|input| input.into_primitive());
        match Attention.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                let (out, kept) = B::attention_and_kept(inputs.clone(), &texts, heads, precision);
                prepared.finish(AttentionState { inputs, kept, texts, heads, precision }, out)
            }
            OpsKind::UnTracked(prepared) => {
                let [queries, keys, values] = inputs;
                prepared.finish(B::encoder_attention(queries, keys, values, texts, heads, precision))
            }
        }
    }
}
