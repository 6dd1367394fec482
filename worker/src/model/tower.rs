//! The trainable tower: input vectors or an encoder over tokens, then a head.

use std::sync::Arc;

use burn::tensor::{Tensor, TensorData, activation};
use serde::{Deserialize, Serialize};

use super::Device;
use super::config::{ConfigError, EncoderConfig};
use super::encoder::{
    Parameter, Parameters, encode_tokens, encoder_specs, first_token, linear_specs, mean_pool,
};
use super::flat::{ParamKind, ParamLayout, ParamSpec};
use super::init::initial_params;
use crate::matrix::Matrix;
use crate::text::TokenBatch;

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
    /// A head cannot be set from this matrix.
    #[error("a head weight of shape {found:?} was given, the tower's head has {expected}")]
    Head {
        /// Shape of the matrix.
        found: [usize; 2],
        /// What the head needs.
        expected: String,
    },
}

/// How token states become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// Mean of the tokens' states, padding left out.
    Mean,
    /// State of the first token.
    Cls,
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
            Head::Linear { dim, .. } | Head::Mlp { dim, .. } => *dim,
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
        }
        ParamLayout::new(specs)
    }

    /// Initial parameters: a pure function of this shape and `seed`.
    pub fn initial_params(&self, seed: u64) -> Vec<f32> {
        initial_params(&self.layout(), seed)
    }

    /// Puts `weight`, of shape [dim, input] such as PCA's components, in the place of a linear head's weight; a bias
    /// is left as it is.
    pub fn set_head_weight(&self, params: &mut [f32], weight: &Matrix) -> Result<(), TowerError> {
        let found = [weight.rows(), weight.dim()];
        let Head::Linear { dim, .. } = self.head else {
            return Err(TowerError::Head { found, expected: "no linear layer".to_owned() });
        };
        let input = self.head_input();
        if found != [dim, input] {
            return Err(TowerError::Head { found, expected: format!("{:?}", [dim, input]) });
        }
        let layout = self.layout();
        if params.len() != layout.len() {
            return Err(TowerError::Params { found: params.len(), expected: layout.len() });
        }
        let entry = layout.get("head.weight").expect("a linear head has a weight");
        let target = &mut params[entry.range()];
        for (output, row) in weight.data().chunks_exact(input).enumerate() {
            for (index, value) in row.iter().enumerate() {
                target[index * dim + output] = *value;
            }
        }
        Ok(())
    }
}

/// What a tower is applied to.
#[derive(Clone, Debug, PartialEq)]
pub enum Batch {
    /// Padded token ids.
    Tokens(TokenBatch),
    /// Vectors of shape [rows, dim].
    Vectors(Matrix),
}

impl Batch {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        match self {
            Self::Tokens(tokens) => tokens.rows(),
            Self::Vectors(vectors) => vectors.rows(),
        }
    }
}

/// A tower with its parameters on a device.
#[derive(Clone, Debug)]
pub struct Tower {
    config: TowerConfig,
    layout: Arc<ParamLayout>,
    /// Leaves of the autodiff graph.
    leaves: Parameters,
}

impl Tower {
    /// A tower with the given flat parameters.
    pub fn new(config: TowerConfig, params: &[f32], device: &Device) -> Result<Self, TowerError> {
        config.validate()?;
        let layout = Arc::new(config.layout());
        let leaves = Parameters { by_path: Default::default(), device: device.0.clone().autodiff() };
        let mut tower = Self { config, layout, leaves };
        tower.set_params(params)?;
        Ok(tower)
    }

    /// A tower with initial parameters, a pure function of `config` and `seed`.
    pub fn init(config: TowerConfig, seed: u64, device: &Device) -> Result<Self, TowerError> {
        config.validate()?;
        let params = config.initial_params(seed);
        Self::new(config, &params, device)
    }

    /// Its shape.
    pub fn config(&self) -> &TowerConfig {
        &self.config
    }

    /// Where each parameter lies in the flat vector.
    pub fn layout(&self) -> &ParamLayout {
        &self.layout
    }

    /// The parameters as one flat vector.
    pub fn params(&self) -> Vec<f32> {
        let mut flat = vec![0.0; self.layout.len()];
        for entry in self.layout.entries() {
            let values = match &self.leaves.by_path[&entry.path] {
                Parameter::Vector(tensor) => host_values(tensor.clone().inner()),
                Parameter::Table(tensor) => host_values(tensor.clone().inner()),
            };
            flat[entry.range()].copy_from_slice(&values);
        }
        flat
    }

    /// Replaces the parameters.
    pub fn set_params(&mut self, params: &[f32]) -> Result<(), TowerError> {
        if params.len() != self.layout.len() {
            return Err(TowerError::Params { found: params.len(), expected: self.layout.len() });
        }
        let device = self.leaves.device.clone().inner();
        let place = |entry: &super::flat::ParamEntry| {
            let data = TensorData::new(params[entry.range()].to_vec(), entry.shape.clone());
            let parameter = match entry.shape.len() {
                1 => Parameter::Vector(Tensor::<1>::from_data(data, &device).autodiff().require_grad()),
                _ => Parameter::Table(Tensor::<2>::from_data(data, &device).autodiff().require_grad()),
            };
            (entry.path.clone(), parameter)
        };
        self.leaves.by_path = self.layout.entries().iter().map(place).collect();
        Ok(())
    }

    /// Output vectors of shape [rows, dim], not normalised, by the fastest kernels: for embedding and evaluation.
    pub fn encode(&self, batch: &Batch) -> Result<Matrix, TowerError> {
        self.check(batch)?;
        Ok(self.matrix(self.output(&self.without_gradients(false), batch)))
    }

    /// Output vectors with exactly the bits of [`Tower::forward`], keeping no graph.
    pub fn encode_training(&self, batch: &Batch) -> Result<Matrix, TowerError> {
        self.check(batch)?;
        Ok(self.matrix(self.output(&self.without_gradients(true), batch).inner()))
    }

    /// Output vectors and the graph that leads to them.
    pub fn forward(&self, batch: &Batch) -> Result<Forward, TowerError> {
        self.check(batch)?;
        let output = self.output(&self.leaves, batch);
        let vectors = self.matrix(output.clone().inner());
        Ok(Forward { vectors, output, layout: self.layout.clone(), leaves: self.leaves.clone() })
    }

    /// The parameters as constants. With `autodiff` they still go through burn's autodiff decorator, which picks the
    /// same kernels for a constant as for a leaf: that is why `encode_training` has the bits of `forward`.
    fn without_gradients(&self, autodiff: bool) -> Parameters {
        let constant = |parameter: &Parameter| match parameter {
            Parameter::Vector(tensor) => {
                let tensor = tensor.clone().inner();
                Parameter::Vector(if autodiff { tensor.autodiff() } else { tensor })
            }
            Parameter::Table(tensor) => {
                let tensor = tensor.clone().inner();
                Parameter::Table(if autodiff { tensor.autodiff() } else { tensor })
            }
        };
        let by_path = self.leaves.by_path.iter().map(|(path, leaf)| (path.clone(), constant(leaf))).collect();
        let device = self.leaves.device.clone();
        Parameters { by_path, device: if autodiff { device } else { device.inner() } }
    }

    fn output(&self, params: &Parameters, batch: &Batch) -> Tensor<2> {
        let pooled = match (&self.config.input, batch) {
            (Input::Vectors { dim }, Batch::Vectors(vectors)) => {
                let data = TensorData::new(vectors.data().to_vec(), [vectors.rows(), *dim]);
                Tensor::<2>::from_data(data, &params.device)
            }
            (Input::Tokens { encoder, pooling }, Batch::Tokens(tokens)) => {
                let states = encode_tokens(params, encoder, tokens);
                match pooling {
                    Pooling::Mean => mean_pool(states, tokens, &params.device),
                    Pooling::Cls => first_token(states),
                }
            }
            _ => unreachable!("check compares the batch with the input"),
        };
        match &self.config.head {
            Head::None => pooled,
            Head::Linear { bias: true, .. } => params.linear("head", pooled),
            Head::Linear { bias: false, .. } => {
                burn::tensor::module::linear(pooled, params.table("head.weight"), None)
            }
            Head::Mlp { .. } => {
                params.linear("head.output", activation::gelu(params.linear("head.hidden", pooled)))
            }
        }
    }

    fn matrix(&self, output: Tensor<2>) -> Matrix {
        let [rows, dim] = output.dims();
        Matrix::new(rows, dim, host_values(output))
    }

    /// Whether the batch fits the input; the kernels below would panic or read elsewhere.
    fn check(&self, batch: &Batch) -> Result<(), TowerError> {
        let mismatch = |expected: String, found: String| -> Result<(), TowerError> {
            Err(TowerError::Input { expected, found })
        };
        match (&self.config.input, batch) {
            (Input::Vectors { dim }, Batch::Vectors(vectors)) => {
                if vectors.dim() != *dim || vectors.rows() == 0 {
                    let found = format!("{} vectors of width {}", vectors.rows(), vectors.dim());
                    return mismatch(format!("vectors of width {dim}"), found);
                }
            }
            (Input::Tokens { encoder, .. }, Batch::Tokens(tokens)) => {
                let (width, positions) = (tokens.width, encoder.max_positions);
                if width > positions {
                    return Err(TowerError::Length { width, positions });
                }
                let vocabulary_size = encoder.vocabulary_size;
                if let Some(id) = tokens.ids.iter().find(|id| **id as usize >= vocabulary_size) {
                    return Err(TowerError::Token { id: *id, vocabulary_size });
                }
                let fits = |length: &u32| (1..=width).contains(&(*length as usize));
                if tokens.rows() == 0
                    || tokens.ids.len() != tokens.rows() * width
                    || !tokens.lengths.iter().all(fits)
                {
                    let found = format!("{} ids for {} texts, some empty", tokens.ids.len(), tokens.rows());
                    return mismatch("texts of one token or more".to_owned(), found);
                }
            }
            (Input::Vectors { .. }, Batch::Tokens(_)) => {
                return mismatch("vectors".to_owned(), "tokens".to_owned());
            }
            (Input::Tokens { .. }, Batch::Vectors(_)) => {
                return mismatch("tokens".to_owned(), "vectors".to_owned());
            }
        }
        Ok(())
    }
}

/// A forward pass that can be differentiated once.
#[derive(Debug)]
pub struct Forward {
    /// Output vectors of shape [rows, dim], not normalised.
    pub vectors: Matrix,
    output: Tensor<2>,
    layout: Arc<ParamLayout>,
    leaves: Parameters,
}

impl Forward {
    /// The flat gradient of a loss whose gradient by the output vectors is `d_vectors`, [rows, dim].
    ///
    /// This is the second half of GradCache (Gao et al., 2021): the loss couples all microbatches through their
    /// vectors, and each microbatch is then differentiated alone.
    ///
    /// # Panics
    /// When `d_vectors` does not have the shape of [`Forward::vectors`].
    pub fn backward(self, d_vectors: &Matrix) -> Vec<f32> {
        let shape = [self.vectors.rows(), self.vectors.dim()];
        assert_eq!(
            [d_vectors.rows(), d_vectors.dim()],
            shape,
            "the gradient must have the shape of the vectors"
        );
        let mut flat = vec![0.0; self.layout.len()];
        if flat.is_empty() {
            return flat;
        }
        let constant = TensorData::new(d_vectors.data().to_vec(), shape);
        let constant = Tensor::<2>::from_data(constant, &self.leaves.device);
        let mut gradients = (self.output * constant).sum().backward();
        for entry in self.layout.entries() {
            let values = match &self.leaves.by_path[&entry.path] {
                Parameter::Vector(leaf) => leaf.grad_remove(&mut gradients).map(host_values),
                Parameter::Table(leaf) => leaf.grad_remove(&mut gradients).map(host_values),
            };
            // A parameter that took no part, such as a pooled-away one, has gradient zero.
            if let Some(values) = values {
                flat[entry.range()].copy_from_slice(&values);
            }
        }
        flat
    }
}

/// The values of a tensor in row-major order.
fn host_values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec::<f32>().expect("the tensors of a tower are f32")
}
