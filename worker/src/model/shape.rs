//! The shape of a tower: what it reads, what it ends with, and the parameters that follow from that.

use serde::{Deserialize, Serialize};

use super::coded::CodedShape;
use super::config::{ConfigError, EncoderConfig};
use super::encoder::{encoder_specs, linear_specs};
use super::flat::{ParamKind, ParamLayout, ParamSpec};
use super::init::initial_params;
use crate::fit::QuantizerError;
use crate::matrix::Matrix;
use retort_common::spec::Pooling;

/// The largest width of a head.
const MAX_WIDTH: usize = 64 << 10;

/// Why a tower could not be built or applied.
#[derive(Debug, thiserror::Error)]
pub enum TowerError {
    /// The encoder's sizes are refused.
    #[error(transparent)]
    Encoder(#[from] ConfigError),
    /// A width is zero or beyond any use.
    #[error("{what} has width {width}, expected 1 to {MAX_WIDTH}")]
    Width {
        /// Which width.
        what: &'static str,
        /// Its value.
        width: usize,
    },
    /// A flat vector of another length.
    #[error("{found} parameters were given, the tower has {expected}")]
    Params {
        /// Length of the vector.
        found: usize,
        /// Length of the layout.
        expected: usize,
    },
    /// Vectors of another width than the tower's input, or tokens for a tower on vectors, or the reverse.
    #[error("the tower takes {expected}, the batch holds {found}")]
    Input {
        /// What the tower takes.
        expected: String,
        /// What it was given.
        found: String,
    },
    /// A text longer than the encoder's positions.
    #[error(
        "a text of {width} tokens is longer than the encoder's {positions} positions; lower the max length"
    )]
    Length {
        /// Width of the batch.
        width: usize,
        /// Rows of the position embedding.
        positions: usize,
    },
    /// A token id without an embedding.
    #[error(
        "token id {id} is not below the vocabulary's {vocabulary_size}; the tokenizer belongs to another model"
    )]
    Token {
        /// The id.
        id: u32,
        /// Rows of the word embedding.
        vocabulary_size: usize,
    },
    /// Codes of a size that cannot be.
    #[error(
        "codes of {bytes} bytes cannot stand for {dim} dimensions: take 1 to 1024 bytes that divide them, fewer residual \
         ones, or for signs one for each eight dimensions"
    )]
    Codes {
        /// Dimensions of the vectors.
        dim: usize,
        /// Bytes of a code.
        bytes: usize,
    },
    /// Codebooks, or vectors for them, that are refused.
    #[error(transparent)]
    Codebooks(QuantizerError),
    /// A head cannot be set from this matrix.
    #[error("a head weight of shape {found:?} was given, the tower's head has {expected}")]
    Head {
        /// Shape of the matrix.
        found: [usize; 2],
        /// What the head needs.
        expected: String,
    },
}

/// What a tower reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Input {
    /// Vectors that were computed before.
    Vectors {
        /// Their width.
        dim: usize,
    },
    /// Token ids.
    Tokens {
        /// The encoder over them.
        encoder: EncoderConfig,
        /// What follows it.
        pooling: Pooling,
    },
}

/// What a tower ends with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Head {
    /// Nothing.
    None,
    /// One linear layer.
    Linear {
        /// Width of the output.
        dim: usize,
        /// Whether it has a bias.
        bias: bool,
    },
    /// Linear, GELU, linear, both with bias.
    Mlp {
        /// Width between the layers.
        hidden: usize,
        /// Width of the output.
        dim: usize,
    },
    /// A linear layer for each side, then codes of a few bytes for passages.
    Coded(CodedShape),
}

/// The shape of a tower.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TowerConfig {
    /// What it reads.
    pub input: Input,
    /// What it ends with.
    pub head: Head,
}

impl TowerConfig {
    /// Refuses sizes that make no sense.
    pub fn validate(&self) -> Result<(), TowerError> {
        let width = |what, width| match (1..=MAX_WIDTH).contains(&width) {
            true => Ok(()),
            false => Err(TowerError::Width { what, width }),
        };
        match &self.input {
            Input::Vectors { dim } => width("the input", *dim)?,
            Input::Tokens { encoder, .. } => encoder.validate()?,
        }
        match &self.head {
            Head::None => Ok(()),
            Head::Linear { dim, .. } => width("the head", *dim),
            Head::Mlp { hidden, dim } => {
                width("the head's hidden layer", *hidden)?;
                width("the head", *dim)
            }
            Head::Coded(shape) => {
                // Its maps read vectors that are there already.
                if let Input::Tokens { .. } = self.input {
                    let (expected, found) = ("vectors".to_owned(), "tokens".to_owned());
                    return Err(TowerError::Input { expected, found });
                }
                width("the head", shape.dim)?;
                shape.validate()
            }
        }
    }

    /// Width of what the head reads.
    pub fn head_input(&self) -> usize {
        match &self.input {
            Input::Vectors { dim } => *dim,
            Input::Tokens { encoder, .. } => encoder.hidden_size,
        }
    }

    /// Width of the output vectors.
    pub fn dim(&self) -> usize {
        match &self.head {
            Head::None => self.head_input(),
            Head::Linear { dim, .. } | Head::Mlp { dim, .. } | Head::Coded(CodedShape { dim, .. }) => *dim,
        }
    }

    /// Where each parameter lies in the flat vector.
    pub fn layout(&self) -> ParamLayout {
        let mut specs = match &self.input {
            Input::Vectors { .. } => Vec::new(),
            Input::Tokens { encoder, .. } => encoder_specs(encoder),
        };
        let input = self.head_input();
        match &self.head {
            Head::None => {}
            Head::Linear { dim, bias: true } => specs.extend(linear_specs("head", input, *dim)),
            Head::Linear { dim, bias: false } => {
                specs.push(ParamSpec::new("head.weight", &[input, *dim], ParamKind::Linear))
            }
            Head::Mlp { hidden, dim } => {
                specs.extend(linear_specs("head.hidden", input, *hidden));
                specs.extend(linear_specs("head.output", *hidden, *dim));
            }
            Head::Coded(shape) => specs.extend(shape.specs(input)),
        }
        ParamLayout::new(specs)
    }

    /// Initial parameters: a pure function of this shape and `seed`.
    pub fn initial_params(&self, seed: u64) -> Vec<f32> {
        initial_params(&self.layout(), seed)
    }

    /// Puts `weight`, of shape [dim, input] such as PCA's components, and `bias`, empty for a head without one, in the
    /// place of a linear head's. An MLP whose hidden layer has room for it starts as the same map, see
    /// [`TowerConfig::set_mlp`].
    pub fn set_head(&self, params: &mut [f32], weight: &Matrix, bias: &[f32]) -> Result<(), TowerError> {
        let found = [weight.rows(), weight.dim()];
        let (dim, has_bias) = match self.head {
            Head::Linear { dim, bias } => (dim, bias),
            Head::Mlp { dim, .. } => (dim, true),
            Head::None | Head::Coded(_) => {
                return Err(TowerError::Head { found, expected: "no linear layer".to_owned() });
            }
        };
        let input = self.head_input();
        if found != [dim, input] || bias.len() != if has_bias { dim } else { 0 } {
            return Err(TowerError::Head { found, expected: format!("{:?}", [dim, input]) });
        }
        let layout = self.layout();
        if params.len() != layout.len() {
            return Err(TowerError::Params { found: params.len(), expected: layout.len() });
        }
        if let Head::Mlp { hidden, .. } = self.head {
            return self.set_mlp(&layout, params, (weight, bias), hidden);
        }
        let entry = layout.get("head.weight").expect("a linear head has a weight");
        let target = &mut params[entry.range()];
        for (output, row) in weight.data().chunks_exact(input).enumerate() {
            for (index, value) in row.iter().enumerate() {
                target[index * dim + output] = *value;
            }
        }
        if let Some(entry) = layout.get("head.bias") {
            params[entry.range()].copy_from_slice(bias);
        }
        Ok(())
    }

    /// An MLP that is exactly the linear map: gelu(y) - gelu(-y) = y, so that a hidden unit for each component and one
    /// for its opposite give it back. The other units keep their random input weights, scaled so that they leave the
    /// straight part of the GELU for vectors of unit length, and begin with output weights of zero.
    fn set_mlp(
        &self,
        layout: &ParamLayout,
        params: &mut [f32],
        (weight, bias): (&Matrix, &[f32]),
        hidden: usize,
    ) -> Result<(), TowerError> {
        let (dim, input) = (weight.rows(), weight.dim());
        if hidden < 2 * dim {
            let expected = format!("a hidden layer of {hidden}, fewer than two for each of {dim} components");
            return Err(TowerError::Head { found: [dim, input], expected });
        }
        let range = |path: &str| layout.get(path).expect("an MLP has these parameters").range();
        let inner = &mut params[range("head.hidden.weight")];
        let scale = (input as f32).sqrt();
        for (index, units) in inner.chunks_exact_mut(hidden).enumerate() {
            units[2 * dim..].iter_mut().for_each(|value| *value *= scale);
            for component in 0..dim {
                units[component] = weight.row(component)[index];
                units[dim + component] = -weight.row(component)[index];
            }
        }
        let inner = &mut params[range("head.hidden.bias")];
        inner.fill(0.0);
        for (component, value) in bias.iter().enumerate() {
            (inner[component], inner[dim + component]) = (*value, -*value);
        }
        let outer = &mut params[range("head.output.weight")];
        outer.fill(0.0);
        for component in 0..dim {
            outer[component * dim + component] = 1.0;
            outer[(dim + component) * dim + component] = -1.0;
        }
        params[range("head.output.bias")].fill(0.0);
        Ok(())
    }
}
