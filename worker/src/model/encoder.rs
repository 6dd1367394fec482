//! The BERT encoder as a function of its parameters.
//!
//! One definition serves every pass. Which kernels run is decided by the tensors it is given: plain tensors take the
//! backend's fused attention and layer norm, tensors with autodiff take the decomposed, differentiable ones.

use std::collections::BTreeMap;

use burn::tensor::module::{attention, embedding, layer_norm, linear};
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Bool, Int, Tensor, TensorData, activation};

use super::config::EncoderConfig;
use super::dropout::{Dropout, drop_states};
use super::flat::{ParamKind, ParamSpec};
use crate::text::TokenBatch;

/// A parameter on a device.
#[derive(Clone, Debug)]
pub(super) enum Parameter {
    Vector(Tensor<1>),
    Table(Tensor<2>),
}

/// The parameters of a tower by path, all of them with autodiff or all of them without.
#[derive(Clone, Debug)]
pub(super) struct Parameters {
    pub by_path: BTreeMap<String, Parameter>,
    pub device: burn::tensor::Device,
}

impl Parameters {
    pub fn vector(&self, path: &str) -> Tensor<1> {
        match &self.by_path[path] {
            Parameter::Vector(tensor) => tensor.clone(),
            Parameter::Table(_) => unreachable!("the layout gives {path} rank 1"),
        }
    }

    pub fn table(&self, path: &str) -> Tensor<2> {
        match &self.by_path[path] {
            Parameter::Table(tensor) => tensor.clone(),
            Parameter::Vector(_) => unreachable!("the layout gives {path} rank 2"),
        }
    }

    /// A linear layer with weight and bias under `prefix`.
    pub fn linear<const D: usize>(&self, prefix: &str, input: Tensor<D>) -> Tensor<D> {
        let bias = self.vector(&format!("{prefix}.bias"));
        linear(input, self.table(&format!("{prefix}.weight")), Some(bias))
    }

    fn layer_norm(&self, prefix: &str, input: Tensor<3>, epsilon: f64) -> Tensor<3> {
        let shift = self.vector(&format!("{prefix}.bias"));
        layer_norm(input, self.vector(&format!("{prefix}.weight")), Some(shift), epsilon)
    }
}

/// Specifications of a linear layer's weight and bias.
pub(super) fn linear_specs(prefix: &str, input: usize, output: usize) -> [ParamSpec; 2] {
    [
        ParamSpec::new(format!("{prefix}.weight"), &[input, output], ParamKind::Linear),
        ParamSpec::new(format!("{prefix}.bias"), &[output], ParamKind::Bias),
    ]
}

/// The parameters of a BERT encoder.
pub(super) fn encoder_specs(config: &EncoderConfig) -> Vec<ParamSpec> {
    let hidden = config.hidden_size;
    let norm = |prefix: &str| {
        [
            ParamSpec::new(format!("{prefix}.weight"), &[hidden], ParamKind::Scale),
            ParamSpec::new(format!("{prefix}.bias"), &[hidden], ParamKind::Bias),
        ]
    };
    let mut specs = Vec::new();
    for (name, rows) in [
        ("word", config.vocabulary_size),
        ("position", config.max_positions),
        ("token_type", config.token_types),
    ] {
        if rows == 0 {
            continue;
        }
        let path = format!("embeddings.{name}_embeddings.weight");
        specs.push(ParamSpec::new(path, &[rows, hidden], ParamKind::Embedding));
    }
    specs.extend(norm("embeddings.LayerNorm"));
    for layer in 0..config.layers {
        let prefix = format!("encoder.layer.{layer}");
        for name in ["query", "key", "value"] {
            specs.extend(linear_specs(&format!("{prefix}.attention.self.{name}"), hidden, hidden));
        }
        specs.extend(linear_specs(&format!("{prefix}.attention.output.dense"), hidden, hidden));
        specs.extend(norm(&format!("{prefix}.attention.output.LayerNorm")));
        specs.extend(linear_specs(&format!("{prefix}.intermediate.dense"), hidden, config.intermediate_size));
        specs.extend(linear_specs(&format!("{prefix}.output.dense"), config.intermediate_size, hidden));
        specs.extend(norm(&format!("{prefix}.output.LayerNorm")));
    }
    specs
}

/// Token states of shape [rows, width, hidden]. Dropout is applied where BERT has its hidden dropout: to the
/// embeddings and to what each sub-layer adds; attention weights are left whole.
pub(super) fn encode_tokens(
    params: &Parameters,
    config: &EncoderConfig,
    batch: &TokenBatch,
    dropout: Option<&Dropout>,
) -> Tensor<3> {
    let (rows, width) = (batch.rows(), batch.width);
    let device = &params.device;
    let ids: Vec<i64> = batch.ids.iter().map(|id| i64::from(*id)).collect();
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [rows, width]), device);
    let first = config.first_position() as i64;
    let positions: Vec<i64> = (first..first + width as i64).collect();
    let positions = Tensor::<2, Int>::from_data(TensorData::new(positions, [1, width]), device);

    let table = |name: &str| params.table(&format!("embeddings.{name}_embeddings.weight"));
    let mut places = embedding(table("position"), positions);
    if config.token_types > 0 {
        let types = Tensor::<2, Int>::from_data(TensorData::new(vec![0i64], [1, 1]), device);
        places = places + embedding(table("token_type"), types);
    }
    let states = embedding(table("word"), ids) + places;
    let states = params.layer_norm("embeddings.LayerNorm", states, config.layer_norm_epsilon);
    let mut states = drop_states(dropout, "embeddings", states, device);
    let mask = attention_mask(batch, config.heads, device);
    for layer in 0..config.layers {
        states = encode_layer(params, config, layer, states, mask.clone(), dropout);
    }
    states
}

/// One transformer layer on states of shape [rows, width, hidden].
fn encode_layer(
    params: &Parameters,
    config: &EncoderConfig,
    layer: usize,
    states: Tensor<3>,
    mask: Option<Tensor<4, Bool>>,
    dropout: Option<&Dropout>,
) -> Tensor<3> {
    let prefix = format!("encoder.layer.{layer}");
    let epsilon = config.layer_norm_epsilon;
    let [rows, width, hidden] = states.dims();
    let project = |name: &str| {
        params
            .linear(&format!("{prefix}.attention.self.{name}"), states.clone())
            .reshape([rows, width, config.heads, hidden / config.heads])
            .swap_dims(1, 2)
    };
    let options = AttentionModuleOptions::default();
    let context = attention(project("query"), project("key"), project("value"), mask, None, options);
    let context = context.swap_dims(1, 2).reshape([rows, width, hidden]);
    let drop = |path: &str, states| drop_states(dropout, path, states, &params.device);
    let path = format!("{prefix}.attention.output.dense");
    let attended = drop(&path, params.linear(&path, context)) + states;
    let attended = params.layer_norm(&format!("{prefix}.attention.output.LayerNorm"), attended, epsilon);
    let widened = activation::gelu(params.linear(&format!("{prefix}.intermediate.dense"), attended.clone()));
    let path = format!("{prefix}.output.dense");
    let output = drop(&path, params.linear(&path, widened)) + attended;
    params.layer_norm(&format!("{prefix}.output.LayerNorm"), output, epsilon)
}

/// True where a token must not look: [rows, heads, width, width], or nothing when no row is padded.
fn attention_mask(
    batch: &TokenBatch,
    heads: usize,
    device: &burn::tensor::Device,
) -> Option<Tensor<4, Bool>> {
    if !batch.is_padded() {
        return None;
    }
    let (rows, width) = (batch.rows(), batch.width);
    let mut padding = vec![false; rows * width];
    for (row, length) in padding.chunks_exact_mut(width).zip(&batch.lengths) {
        row[*length as usize..].fill(true);
    }
    let padding = Tensor::<2, Bool>::from_data(TensorData::new(padding, [rows, width]), device);
    Some(padding.reshape([rows, 1, 1, width]).expand([rows, heads, width, width]))
}

/// The mean of the real tokens' states, [rows, hidden].
///
/// A product with constant weights (1 / length on tokens, 0 on padding): one pass, and so is its gradient.
pub(super) fn mean_pool(states: Tensor<3>, batch: &TokenBatch, device: &burn::tensor::Device) -> Tensor<2> {
    let [rows, width, hidden] = states.dims();
    let mut weights = vec![0.0f32; rows * width];
    for (row, length) in weights.chunks_exact_mut(width).zip(&batch.lengths) {
        row[..*length as usize].fill(1.0 / *length as f32);
    }
    let weights = Tensor::<3>::from_data(TensorData::new(weights, [rows, 1, width]), device);
    weights.matmul(states).reshape([rows, hidden])
}

/// The state of the first token, [rows, hidden].
pub(super) fn first_token(states: Tensor<3>) -> Tensor<2> {
    let [rows, _, hidden] = states.dims();
    states.narrow(1, 0, 1).reshape([rows, hidden])
}
