//! Cross-encoders: one model reads question and passage together and gives one score (Nogueira and Cho, 2019).
//! `BertForSequenceClassification` and its RoBERTa kin with one label, as transformers and sentence-transformers store
//! them.

use std::path::Path;

use retort_common::model::cross::objection;

use super::encoder::encoder_specs;
use super::flat::ParamLayout;
use super::folder::{encoder_folder, linear};
use super::names::Architecture;
use super::pretrained::{Loaded, PretrainedError, load};
use super::shape::{Head, Input, TowerConfig, TowerError};
use super::stack::{Activation, Stack};
use super::weights::WeightsError;
use super::{Batch, Device, Pooling, Tower};
use crate::parallel;
use crate::text::{TextError, TokenBatch, Tokenizer, plan_batches};

/// Why a cross-encoder could not be loaded or applied.
#[derive(Debug, thiserror::Error)]
pub enum CrossError {
    /// Its files.
    #[error(transparent)]
    Model(#[from] PretrainedError),
    /// Its tokenizer, or a text.
    #[error(transparent)]
    Text(#[from] TextError),
    /// Its encoder.
    #[error(transparent)]
    Tower(#[from] TowerError),
    /// A model that gives several scores, or of an architecture without a classifier that is known.
    #[error("{path}: {message}")]
    Kind {
        /// Its folder.
        path: String,
        /// What it is, and what is supported.
        message: String,
    },
}

impl From<WeightsError> for CrossError {
    fn from(error: WeightsError) -> Self {
        Self::Model(error.into())
    }
}

/// A cross-encoder ready to score.
///
/// Tokens of the second text have another type embedding in BERT. They get rows of their own in the word embedding,
/// moved by the difference of the types, so that the encoder needs to know of one type only.
#[derive(Debug)]
pub struct CrossEncoder {
    tower: Tower,
    classifier: Stack,
    tokenizer: Tokenizer,
    pad_token_id: u32,
    /// Added to the token ids of the second text; 0 where there is one type.
    second: u32,
    max_tokens: usize,
}

impl CrossEncoder {
    /// Loads a folder with `config.json`, weights and tokenizer.
    pub fn load(folder: &Path, device: &Device) -> Result<Self, CrossError> {
        let behind = |name: &str| {
            ["classifier.", "pooler.", "bert.pooler."].iter().any(|prefix| name.starts_with(prefix))
        };
        let Loaded { config: mut encoder, mut params, files, json } = load(folder, behind)?;
        let kind = |message: String| CrossError::Kind { path: folder.display().to_string(), message };
        if let Some(objection) = objection(&json) {
            return Err(kind(objection));
        }
        if !files.names().any(|tensor| tensor.starts_with("classifier.")) {
            let path = files.path().display();
            return Err(kind(format!(
                "no tensor of a classifier in {path}; name a cross-encoder with one label"
            )));
        }
        let width = encoder.hidden_size;
        let layers = match encoder.architecture {
            Architecture::Bert => {
                let has = |name: &str| files.names().any(|tensor| tensor == name);
                let pooler =
                    if has("bert.pooler.dense.weight") { "bert.pooler.dense" } else { "pooler.dense" };
                vec![
                    linear(&files, pooler, [width, width], true, Activation::Tanh)?,
                    linear(&files, "classifier", [1, width], true, Activation::Identity)?,
                ]
            }
            Architecture::Roberta | Architecture::XlmRoberta => vec![
                linear(&files, "classifier.dense", [width, width], true, Activation::Tanh)?,
                linear(&files, "classifier.out_proj", [1, width], true, Activation::Identity)?,
            ],
            other => {
                return Err(kind(format!(
                    "cross-encoders of {other:?} are not supported; use bert, roberta or xlm-roberta"
                )));
            }
        };
        let tokenizer = Tokenizer::open(&encoder_folder(folder)?, encoder.vocabulary_size)?;
        let (pad_token_id, max_tokens) = (encoder.pad_token_id, encoder.max_tokens());
        let second = if encoder.token_types > 1 { encoder.vocabulary_size as u32 } else { 0 };
        if second > 0 {
            let layout = ParamLayout::new(encoder_specs(&encoder));
            params = with_second_rows(&layout, &params, width);
            encoder.vocabulary_size *= 2;
        }
        let input = Input::Tokens { encoder, pooling: Pooling::Cls };
        let tower = Tower::new(TowerConfig { input, head: Head::None }, &params, device)?;
        Ok(Self { tower, classifier: Stack { layers }, tokenizer, pad_token_id, second, max_tokens })
    }

    /// The longest pair in tokens.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// A score for each pair (question, passage): the classifier's logit, without a sigmoid. Pairs of more than
    /// `max_tokens` are cut, the longer text first; `batch_tokens` bounds a batch, padding included, and `threads` those
    /// that tokenise. A pair's score may depend in its last bits on the others, never on threads. `go_on` is told the
    /// number of pairs done after each batch and may stop with an error.
    pub fn score<E: From<CrossError>>(
        &self,
        pairs: &[(&str, &str)],
        max_tokens: usize,
        batch_tokens: usize,
        threads: usize,
        mut go_on: impl FnMut(usize) -> Result<(), E>,
    ) -> Result<Vec<f32>, E> {
        let tokens = parallel::map(threads, pairs.len(), |at| self.tokens(pairs[at], max_tokens));
        let rows = tokens.into_iter().collect::<Result<Vec<_>, _>>().map_err(CrossError::from)?;
        let lengths: Vec<u32> = rows.iter().map(|row| row.len() as u32).collect();
        let (mut scores, mut done) = (vec![0.0; pairs.len()], 0);
        for batch in plan_batches(&lengths, batch_tokens) {
            let ids: Vec<&[u32]> = batch.iter().map(|row| rows[*row].as_slice()).collect();
            let padded = Batch::Tokens(TokenBatch::new(&ids, self.pad_token_id));
            let logits = self.classifier.apply(self.tower.encode(&padded).map_err(CrossError::from)?);
            batch.iter().enumerate().for_each(|(at, row)| scores[*row] = logits.row(at)[0]);
            done += batch.len();
            go_on(done)?;
        }
        Ok(scores)
    }

    fn tokens(&self, (first, second): (&str, &str), max_tokens: usize) -> Result<Vec<u32>, TextError> {
        let (mut ids, types) = self.tokenizer.encode_pair(first, second, max_tokens)?;
        ids.iter_mut().zip(types).for_each(|(id, kind)| *id += self.second * kind.min(1));
        Ok(ids)
    }
}

/// The parameters with every row of the word embedding once more, moved from type 0 to type 1.
fn with_second_rows(layout: &ParamLayout, params: &[f32], width: usize) -> Vec<f32> {
    let entry = |path: &str| layout.get(path).expect("an encoder with types has both tables");
    let words = entry("embeddings.word_embeddings.weight");
    let types = &params[entry("embeddings.token_type_embeddings.weight").range()];
    let (first, second) = types[..2 * width].split_at(width);
    let end = words.range().end;
    let mut all = Vec::with_capacity(params.len() + words.len());
    all.extend_from_slice(&params[..end]);
    for row in params[words.range()].chunks_exact(width) {
        all.extend(
            row.iter().zip(first.iter().zip(second)).map(|(word, (first, second))| word + (second - first)),
        );
    }
    all.extend_from_slice(&params[end..]);
    all
}
