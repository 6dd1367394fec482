//! A finished student, or another model in a sentence-transformers folder, ready to embed texts.

use crate::matrix::Matrix;
use crate::model::{
    Batch, Device, Head, Input, Pooling, Stack, Tower, TowerConfig, encoder_folder, load_retriever,
};
use crate::text::{TokenBatch, Tokenizer, plan_batches};
use retort_common::model::modules;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Most tokens in a batch, padding included.
const BATCH_TOKENS: usize = 4096;
/// Longest text where the folder does not say, in tokens.
const MAX_TOKENS: usize = 256;

/// A folder that is no model this reads.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {cause}")]
pub struct FolderError {
    path: PathBuf,
    cause: String,
}

/// Which side of a pair texts are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Questions.
    Query,
    /// Passages.
    Passage,
}

/// An encoder with its tokenizer, prompts and normalisation.
pub struct FolderEncoder {
    tower: Tower,
    /// The layers behind it.
    stack: Stack,
    tokenizer: Tokenizer,
    pad_token_id: u32,
    max_tokens: usize,
    prompts: [String; 2],
    normalize: bool,
}

impl FolderEncoder {
    /// Loads a folder as `retort` exports it: a transformer, pooling, Dense, LayerNorm and Normalize modules.
    ///
    /// # Errors
    /// When a file is missing, broken, or asks for a layer that this does not know.
    pub fn load(folder: &Path, device: &Device) -> Result<Self, FolderError> {
        let fail = |cause: String| FolderError { path: folder.to_owned(), cause };
        let (encoder, params, stack) = load_retriever(folder).map_err(|error| fail(error.to_string()))?;
        let own = encoder_folder(folder).map_err(|error| fail(error.to_string()))?;
        let tokenizer =
            Tokenizer::open(&own, encoder.vocabulary_size).map_err(|error| fail(error.to_string()))?;
        let pad_token_id = encoder.pad_token_id;
        let longest = encoder.max_tokens();
        let (pooling, normalize) = usage(folder)?;
        let config = TowerConfig { input: Input::Tokens { encoder, pooling }, head: Head::None };
        let tower = Tower::new(config, &params, device).map_err(|error| fail(error.to_string()))?;
        let sizes = read_json(&folder.join("sentence_bert_config.json"))?;
        let asked = sizes.as_ref().and_then(|sizes| sizes["max_seq_length"].as_u64());
        let max_tokens = asked.map_or(MAX_TOKENS, |tokens| tokens as usize).clamp(3, longest);
        let texts = read_json(&folder.join("config_sentence_transformers.json"))?.unwrap_or_default();
        let prompt = |name: &str| texts["prompts"][name].as_str().unwrap_or_default().to_owned();
        let prompts = [prompt("query"), prompt("document")];
        Ok(Self { tower, stack, tokenizer, pad_token_id, max_tokens, prompts, normalize })
    }

    /// Dimensions of its vectors.
    pub fn dim(&self) -> usize {
        self.stack.dim(self.tower.config().dim())
    }

    /// The vectors [texts, dim] of texts.
    ///
    /// # Errors
    /// When a text cannot be tokenised or a vector is not finite.
    pub fn encode(&self, texts: &[String], side: Side, threads: usize) -> Result<Matrix, FolderError> {
        let fail = |cause: String| FolderError { path: "texts".into(), cause };
        let prompt = &self.prompts[usize::from(side == Side::Passage)];
        let texts: Vec<String> = texts.iter().map(|text| format!("{prompt}{text}")).collect();
        let tokens = self
            .tokenizer
            .encode_all(&texts, self.max_tokens, threads)
            .map_err(|error| fail(error.to_string()))?;
        let lengths: Vec<u32> = tokens.iter().map(|ids| ids.len() as u32).collect();
        let mut vectors = Matrix::zeros(texts.len(), self.dim());
        for batch in plan_batches(&lengths, BATCH_TOKENS.max(self.max_tokens)) {
            let rows: Vec<&[u32]> = batch.iter().map(|row| tokens[*row].as_slice()).collect();
            let padded = Batch::Tokens(TokenBatch::new(&rows, self.pad_token_id));
            let output = self.tower.encode(&padded).map_err(|error| fail(error.to_string()))?;
            let output = self.stack.apply(output);
            for (at, row) in batch.iter().enumerate() {
                vectors.row_mut(*row).copy_from_slice(output.row(at));
            }
        }
        crate::fit::quantizer::check_finite(&vectors).map_err(|error| fail(error.to_string()))?;
        if self.normalize {
            vectors.normalize_rows();
        }
        Ok(vectors)
    }
}

/// A JSON file, or none where there is no such file.
fn read_json(path: &Path) -> Result<Option<Value>, FolderError> {
    if !path.exists() {
        return Ok(None);
    }
    let fail = |cause: String| FolderError { path: path.to_owned(), cause };
    let bytes = std::fs::read(path).map_err(|error| fail(error.to_string()))?;
    serde_json::from_slice(&bytes).map(Some).map_err(|error| fail(error.to_string()))
}

/// Pooling, and whether vectors get unit length at the end. A folder without modules.json is a plain encoder.
fn usage(folder: &Path) -> Result<(Pooling, bool), FolderError> {
    let list = folder.join("modules.json");
    let fail = |cause: String| FolderError { path: list.clone(), cause };
    let (mut pooling, mut normalize) = (Pooling::Mean, false);
    let Some(json) = read_json(&list)? else { return Ok((pooling, true)) };
    for module in json.as_array().map(Vec::as_slice).unwrap_or_default() {
        let kind = module["type"].as_str().and_then(|kind| kind.rsplit('.').next()).unwrap_or_default();
        let path = module["path"].as_str().unwrap_or_default();
        let inside = Path::new(path).components().all(|part| matches!(part, std::path::Component::Normal(_)));
        if !inside {
            return Err(fail(format!("{path:?} lies outside the folder")));
        }
        let place = folder.join(path);
        // Unit length before other layers is among those.
        normalize = kind == "Normalize";
        match kind {
            "Transformer" | "Dense" | "LayerNorm" | "Normalize" => {}
            "Pooling" => {
                let config = read_json(&place.join("config.json"))?.unwrap_or_default();
                let name = place.join("config.json").display().to_string();
                pooling = modules::pooling(&name, &config).map_err(|error| fail(error.to_string()))?;
            }
            _ => return Err(fail(format!("module {kind:?} at {path:?} is not known"))),
        }
    }
    Ok((pooling, normalize))
}
