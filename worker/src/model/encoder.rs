//! BERT's encoder, and those of its family, as a function of its parameters.
//!
//! One definition serves every pass and every backend. Token states are [rows, hidden], one row a token, with or without rows
//! for padding as [`Texts`] says.

use std::collections::BTreeMap;

use burn::tensor::{Int, Tensor, TensorData};

use super::config::{EncoderConfig, RELATIVE_BUCKETS};
use super::dropout::{Dropout, drop_states};
use super::flat::{ParamKind, ParamLayout, ParamSpec};
use super::fused::{
    Precision, Texts, biased_attention, fused_attention, fused_gelu, fused_linear, fused_norm, relative_bias,
};
use super::names::Architecture;
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
    /// Of an encoder's products; those of heads are exact.
    pub precision: Precision,
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
    pub fn linear(&self, prefix: &str, input: Tensor<2>) -> Tensor<2> {
        self.linear_in(Precision::F32, prefix, input)
    }

    fn linear_in(&self, precision: Precision, prefix: &str, input: Tensor<2>) -> Tensor<2> {
        let bias = self.vector(&format!("{prefix}.bias"));
        fused_linear(input, self.table(&format!("{prefix}.weight")), bias, precision)
    }

    /// The layer norm under `prefix` of a sum of token states.
    fn norm(&self, prefix: &str, input: Tensor<2>, residual: Tensor<2>, epsilon: f64) -> Tensor<2> {
        let shift = self.vector(&format!("{prefix}.bias"));
        fused_norm(input, residual, self.vector(&format!("{prefix}.weight")), shift, epsilon)
    }
}

/// Specifications of a linear layer's weight and bias.
pub(super) fn linear_specs(prefix: &str, input: usize, output: usize) -> [ParamSpec; 2] {
    [
        ParamSpec::new(format!("{prefix}.weight"), &[input, output], ParamKind::Linear),
        ParamSpec::new(format!("{prefix}.bias"), &[output], ParamKind::Bias),
    ]
}

/// MPNet's table of biases by relative position, [buckets, heads].
const RELATIVE_BIAS: &str = "encoder.relative_attention_bias.weight";

/// The parameters of an encoder.
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
    if config.architecture == Architecture::Mpnet {
        let shape = [RELATIVE_BUCKETS, config.heads];
        specs.push(ParamSpec::new(RELATIVE_BIAS, &shape, ParamKind::Embedding));
    }
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

/// What the rows of token states are looked up by.
#[derive(Clone, Debug)]
pub(super) struct TokenRows {
    /// Token ids.
    ids: Vec<u32>,
    /// Rows of the table of positions.
    positions: Vec<u32>,
}

impl TokenRows {
    pub fn new(config: &EncoderConfig, batch: &TokenBatch, texts: &Texts) -> Self {
        let first = config.first_position() as u32;
        let places = first..first + batch.width as u32;
        let places: Vec<u32> = (0..batch.rows()).flat_map(|_| places.clone()).collect();
        let ids = texts.pick(&batch.ids, batch.width, 1);
        Self { ids, positions: texts.pick(&places, batch.width, 1) }
    }

    /// Adds the gradient of what [`embed_tokens`] looked up, [rows, hidden], to the flat gradient. burn's own gradient of a
    /// look-up is as large as the whole vocabulary; this touches the rows that a batch names.
    pub fn add_gradient(&self, d: &[f32], layout: &ParamLayout, flat: &mut [f32]) {
        let tables = [("word", Some(&self.ids)), ("position", Some(&self.positions)), ("token_type", None)];
        for (name, rows) in tables {
            let Some(entry) = layout.get(&format!("embeddings.{name}_embeddings.weight")) else { continue };
            let width = entry.shape[1];
            let table = &mut flat[entry.range()];
            for (at, d) in d.chunks_exact(width).enumerate() {
                let row = rows.map_or(0, |rows| rows[at] as usize);
                table[row * width..][..width].iter_mut().zip(d).for_each(|(sum, value)| *sum += value);
            }
        }
    }
}

/// The embeddings of tokens and of their places, each [rows, hidden]; `params` have no autodiff. Their gradients are equal,
/// and [`TokenRows::add_gradient`] takes them on.
pub(super) fn embed_tokens(params: &Parameters, config: &EncoderConfig, rows: &TokenRows) -> [Tensor<2>; 2] {
    let select = |name: &str, rows: &[u32]| {
        let rows: Vec<i64> = rows.iter().map(|row| i64::from(*row)).collect();
        let count = rows.len();
        let rows = Tensor::<1, Int>::from_data(TensorData::new(rows, [count]), &params.device);
        params.table(&format!("embeddings.{name}_embeddings.weight")).select(0, rows)
    };
    let mut places = select("position", &rows.positions);
    if config.token_types > 0 {
        places = places + select("token_type", &[0]);
    }
    [select("word", &rows.ids), places]
}

/// Token states [rows, hidden] from the embeddings of tokens and places. Dropout is applied where BERT has its hidden
/// dropout: to the embeddings and to what each sub-layer adds; attention weights are left whole.
pub(super) fn encode_tokens(
    params: &Parameters,
    config: &EncoderConfig,
    [words, places]: [Tensor<2>; 2],
    texts: &Texts,
    dropout: Option<&Dropout>,
) -> Tensor<2> {
    let states = params.norm("embeddings.LayerNorm", words, places, config.layer_norm_epsilon);
    let mut states = drop_states(dropout, "embeddings", states, texts, &params.device);
    let relative = config.architecture == Architecture::Mpnet;
    let bias = relative.then(|| relative_bias(params.table(RELATIVE_BIAS), texts));
    for layer in 0..config.layers {
        states = encode_layer(params, config, layer, states, texts, bias.clone(), dropout);
    }
    states
}

/// One transformer layer on states [rows, hidden].
fn encode_layer(
    params: &Parameters,
    config: &EncoderConfig,
    layer: usize,
    states: Tensor<2>,
    texts: &Texts,
    bias: Option<Tensor<3>>,
    dropout: Option<&Dropout>,
) -> Tensor<2> {
    let prefix = format!("encoder.layer.{layer}");
    let epsilon = config.layer_norm_epsilon;
    let linear = |path: &str, input| params.linear_in(params.precision, path, input);
    let inputs = ["query", "key", "value"]
        .map(|name| linear(&format!("{prefix}.attention.self.{name}"), states.clone()));
    let context = match bias {
        Some(bias) => biased_attention(inputs, texts, config.heads, bias),
        None => fused_attention(inputs, texts, config.heads, params.precision),
    };
    let drop = |path: &str, states| drop_states(dropout, path, states, texts, &params.device);
    let path = format!("{prefix}.attention.output.dense");
    let attended = drop(&path, linear(&path, context));
    let attended = params.norm(&format!("{prefix}.attention.output.LayerNorm"), attended, states, epsilon);
    let widened = fused_gelu(linear(&format!("{prefix}.intermediate.dense"), attended.clone()));
    let path = format!("{prefix}.output.dense");
    let output = drop(&path, linear(&path, widened));
    params.norm(&format!("{prefix}.output.LayerNorm"), output, attended, epsilon)
}
