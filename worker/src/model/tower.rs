//! The trainable tower: input vectors or an encoder over tokens, then a head.

use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};

use super::Device;
use super::coded::{CodedGraph, CodedHead, TwoSided};
use super::dropout::{Dropout, drop_vectors};
use super::encoder::{Parameter, Parameters, TokenRows, embed_tokens, encode_tokens};
use super::flat::{ParamEntry, ParamLayout};
use super::fused::{Texts, fused_gelu, packs};
use super::pooling::pool;
use super::shape::{Head, Input, TowerConfig, TowerError};
use crate::matrix::Matrix;
use crate::text::TokenBatch;

/// What a tower is applied to.
#[derive(Clone, Debug, PartialEq)]
pub enum Batch {
    /// Padded token ids.
    Tokens(TokenBatch),
    /// Vectors of shape [rows, dim]; a head that ends in codes takes them for questions.
    Vectors(Matrix),
    /// Vectors of questions and passages, for a head that ends in codes.
    TwoSided(TwoSided),
}

impl Batch {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        match self {
            Self::Tokens(tokens) => tokens.rows(),
            Self::Vectors(vectors) => vectors.rows(),
            Self::TwoSided(both) => both.vectors.rows(),
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
    /// A head that ends in codes, which no tensor library differentiates.
    coded: Option<Arc<CodedHead>>,
}

impl Tower {
    /// A tower with the given flat parameters.
    pub fn new(config: TowerConfig, params: &[f32], device: &Device) -> Result<Self, TowerError> {
        config.validate()?;
        let layout = Arc::new(config.layout());
        let (inner, precision) = (device.inner.clone().autodiff(), device.precision);
        let leaves = Parameters { by_path: Default::default(), device: inner, precision };
        let mut tower = Self { config, layout, leaves, coded: None };
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
        if let Head::Coded(shape) = self.config.head {
            self.coded = Some(Arc::new(CodedHead::new(shape, &self.layout, params)?));
        }
        let device = self.leaves.device.clone().inner();
        let place = |entry: &ParamEntry| {
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

    /// The head that ends in codes, if this tower has one.
    pub fn coded(&self) -> Option<&CodedHead> {
        self.coded.as_deref()
    }

    /// Output vectors of shape [rows, dim], not normalised, by the fastest kernels: for embedding and evaluation.
    pub fn encode(&self, batch: &Batch) -> Result<Matrix, TowerError> {
        self.check(batch)?;
        if let Some(vectors) = self.output_coded(batch)? {
            return Ok(vectors);
        }
        let params = self.without_gradients(false);
        let embedded = self.embed(&params, batch).map(|embedded| embedded.tensors);
        Ok(self.matrix(self.output(&params, batch, embedded, None)))
    }

    /// Output vectors with exactly the bits of [`Tower::forward`], keeping no graph.
    pub fn encode_training(&self, batch: &Batch) -> Result<Matrix, TowerError> {
        self.encode_dropping(batch, None)
    }

    /// Output vectors and the graph that leads to them.
    pub fn forward(&self, batch: &Batch) -> Result<Forward, TowerError> {
        self.forward_dropping(batch, None)
    }

    /// As [`Tower::encode_training`], with dropout. Without it, not a bit differs.
    pub fn encode_dropping(&self, batch: &Batch, dropout: Option<&Dropout>) -> Result<Matrix, TowerError> {
        self.check(batch)?;
        if let Some(vectors) = self.output_coded(batch)? {
            return Ok(vectors);
        }
        let embedded = self.embed(&self.without_gradients(false), batch);
        let embedded = embedded.map(|embedded| embedded.tensors.map(Tensor::autodiff));
        Ok(self.matrix(self.output(&self.without_gradients(true), batch, embedded, dropout).inner()))
    }

    /// As [`Tower::forward`], with dropout. Without it, not a bit differs.
    pub fn forward_dropping(&self, batch: &Batch, dropout: Option<&Dropout>) -> Result<Forward, TowerError> {
        self.check(batch)?;
        let layout = self.layout.clone();
        if let (Some(head), Batch::TwoSided(both)) = (&self.coded, batch) {
            let (vectors, graph) = head.forward(both)?;
            return Ok(Forward { vectors, graph: Graph::Coded(graph), layout });
        }
        let embedded = self.embed(&self.without_gradients(false), batch).map(|embedded| {
            let [words, places] = embedded.tensors;
            // Both have the same gradient.
            Embedded { tensors: [words.autodiff().require_grad(), places.autodiff()], ..embedded }
        });
        let tensors = embedded.as_ref().map(|embedded| embedded.tensors.clone());
        let output = self.output(&self.leaves, batch, tensors, dropout);
        let vectors = self.matrix(output.clone().inner());
        let graph = Graph::Tensors(Box::new(Tensors { output, leaves: self.leaves.clone(), embedded }));
        Ok(Forward { vectors, graph, layout })
    }

    /// What a head that ends in codes gives; nothing where there is none.
    fn output_coded(&self, batch: &Batch) -> Result<Option<Matrix>, TowerError> {
        let Some(head) = &self.coded else { return Ok(None) };
        match batch {
            Batch::TwoSided(both) => Ok(Some(head.forward(both)?.0)),
            Batch::Vectors(vectors) => Ok(Some(head.questions(vectors))),
            Batch::Tokens(_) => unreachable!("check compares the batch with the input"),
        }
    }

    /// Whether texts cost as much as the longest of those that they are computed with.
    pub fn computes_padding(&self) -> bool {
        !packs(&self.leaves.device)
    }

    /// What a batch's tokens and their places are looked up as, for a tower that reads tokens.
    fn embed(&self, params: &Parameters, batch: &Batch) -> Option<Embedded> {
        let (Input::Tokens { encoder, .. }, Batch::Tokens(tokens)) = (&self.config.input, batch) else {
            return None;
        };
        let texts = Texts::new(tokens, &params.device);
        let rows = TokenRows::new(encoder, tokens, &texts);
        Some(Embedded { tensors: embed_tokens(params, encoder, &rows), rows })
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
        let device = if autodiff { device } else { device.inner() };
        Parameters { by_path, device, precision: self.leaves.precision }
    }

    fn output(
        &self,
        params: &Parameters,
        batch: &Batch,
        embedded: Option<[Tensor<2>; 2]>,
        dropout: Option<&Dropout>,
    ) -> Tensor<2> {
        let pooled = match (&self.config.input, batch) {
            (Input::Vectors { dim }, Batch::Vectors(vectors)) => {
                let data = TensorData::new(vectors.data().to_vec(), [vectors.rows(), *dim]);
                Tensor::<2>::from_data(data, &params.device)
            }
            (Input::Tokens { encoder, pooling }, Batch::Tokens(tokens)) => {
                let embedded = embedded.expect("a tower that reads tokens embeds them");
                let texts = Texts::new(tokens, &params.device);
                let states = encode_tokens(params, encoder, embedded, &texts, dropout);
                pool(*pooling, states, &texts, &params.device)
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
                let hidden = fused_gelu(params.linear("head.hidden", pooled));
                params.linear("head.output", drop_vectors(dropout, "head.hidden", hidden, &params.device))
            }
            Head::Coded(_) => unreachable!("codes are computed without tensors"),
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
            (_, Batch::TwoSided(both)) => {
                let (rows, width) = (both.vectors.rows(), both.vectors.dim());
                let fits = rows > 0 && width == self.config.head_input() && both.passages.len() == rows;
                if self.coded.is_none() || !fits {
                    let expected = match self.coded {
                        Some(_) => format!("vectors of width {} of both sides", self.config.head_input()),
                        None => "texts or vectors of one side".to_owned(),
                    };
                    return mismatch(expected, format!("{rows} vectors of width {width} of both sides"));
                }
            }
            (Input::Vectors { dim }, Batch::Vectors(vectors)) => {
                if vectors.dim() != *dim || vectors.rows() == 0 {
                    let found = format!("{} vectors of width {}", vectors.rows(), vectors.dim());
                    return mismatch(format!("vectors of width {dim}"), found);
                }
            }
            (Input::Tokens { encoder, .. }, Batch::Tokens(tokens)) => {
                let (width, positions) = (tokens.width, encoder.max_tokens());
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

/// What a batch of tokens was looked up as.
#[derive(Debug)]
struct Embedded {
    /// Of tokens and of their places.
    tensors: [Tensor<2>; 2],
    rows: TokenRows,
}

/// A forward pass that can be differentiated once.
#[derive(Debug)]
pub struct Forward {
    /// Output vectors of shape [rows, dim], not normalised.
    pub vectors: Matrix,
    graph: Graph,
    layout: Arc<ParamLayout>,
}

/// What leads from parameters to output vectors.
#[derive(Debug)]
enum Graph {
    Tensors(Box<Tensors>),
    Coded(CodedGraph),
}

/// A graph of tensors.
#[derive(Debug)]
struct Tensors {
    output: Tensor<2>,
    leaves: Parameters,
    /// The look-up of tokens, a leaf of its own.
    embedded: Option<Embedded>,
}

impl Forward {
    /// [`Forward::backward_into`] zeros.
    pub fn backward(self, d_vectors: &Matrix) -> Vec<f32> {
        let mut flat = vec![0.0; self.layout.len()];
        self.backward_into(d_vectors, &mut flat);
        flat
    }

    /// Adds the flat gradient of a loss whose gradient by the output vectors is `d_vectors`, [rows, dim].
    ///
    /// This is the second half of GradCache (Gao et al., 2021): the loss couples all microbatches through their
    /// vectors, and each microbatch is then differentiated alone.
    ///
    /// # Panics
    /// When `d_vectors` does not have the shape of [`Forward::vectors`], or `flat` the length of the parameters.
    pub fn backward_into(self, d_vectors: &Matrix, flat: &mut [f32]) {
        let shape = [self.vectors.rows(), self.vectors.dim()];
        assert_eq!(
            [d_vectors.rows(), d_vectors.dim()],
            shape,
            "the gradient must have the shape of the vectors"
        );
        assert_eq!(flat.len(), self.layout.len(), "the gradient has a value for each parameter");
        let Tensors { output, leaves, embedded } = match self.graph {
            Graph::Coded(graph) => return graph.backward_into(d_vectors, &self.layout, flat),
            Graph::Tensors(tensors) => *tensors,
        };
        if flat.is_empty() {
            return;
        }
        let constant = TensorData::new(d_vectors.data().to_vec(), shape);
        let constant = Tensor::<2>::from_data(constant, &leaves.device);
        let mut gradients = (output * constant).sum().backward();
        for entry in self.layout.entries() {
            let values = match &leaves.by_path[&entry.path] {
                Parameter::Vector(leaf) => leaf.grad_remove(&mut gradients).map(host_values),
                Parameter::Table(leaf) => leaf.grad_remove(&mut gradients).map(host_values),
            };
            // A parameter that took no part, such as a pooled-away one, has gradient zero.
            if let Some(values) = values {
                flat[entry.range()].iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
            }
        }
        if let Some(Embedded { tensors: [words, _], rows }) = embedded
            && let Some(gradient) = words.grad_remove(&mut gradients)
        {
            rows.add_gradient(&host_values(gradient), &self.layout, flat);
        }
    }
}

/// The values of a tensor in row-major order.
fn host_values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec::<f32>().expect("the tensors of a tower are f32")
}
