//! A finished student, or another model in a sentence-transformers folder, ready to embed texts.

use crate::matrix::Matrix;
use crate::model::{
    Batch, Device, Head, Input, ParamLayout, Pooling, Tower, TowerConfig, encoder_folder, load_encoder,
};
use crate::text::{TokenBatch, Tokenizer, plan_batches};
use crate::vectors::Tensors;
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
    tokenizer: Tokenizer,
    pad_token_id: u32,
    max_tokens: usize,
    prompts: [String; 2],
    normalize: bool,
}

/// A linear layer of the folder.
struct Dense {
    input: usize,
    output: usize,
    weight: Vec<f32>,
    bias: Vec<f32>,
    gelu: bool,
}

impl FolderEncoder {
    /// Loads a folder as `retort` exports it: a transformer, pooling, at most one linear layer or two with GELU
    /// between them, and normalisation.
    ///
    /// # Errors
    /// When a file is missing, broken, or asks for a layer that this does not know.
    pub fn load(folder: &Path, device: &Device) -> Result<Self, FolderError> {
        let fail = |cause: String| FolderError { path: folder.to_owned(), cause };
        let (encoder, encoder_params) =
            load_encoder(folder, None).map_err(|error| fail(error.to_string()))?;
        let vocabulary =
            encoder_folder(folder).map_err(|error| fail(error.to_string()))?.join("tokenizer.json");
        let tokenizer =
            Tokenizer::load(&vocabulary, encoder.vocabulary_size).map_err(|error| fail(error.to_string()))?;
        let pad_token_id = encoder.pad_token_id;
        let longest = encoder.max_tokens();
        let (pooling, layers, normalize) = modules(folder)?;
        let head = head(folder, &layers)?;
        let config = TowerConfig { input: Input::Tokens { encoder, pooling }, head };
        config.validate().map_err(|error| fail(error.to_string()))?;
        let layout = config.layout();
        let mut params = vec![0.0; layout.len()];
        params[..encoder_params.len()].copy_from_slice(&encoder_params);
        let names: &[&str] = if layers.len() == 2 { &["head.hidden", "head.output"] } else { &["head"] };
        for (name, layer) in names.iter().zip(&layers) {
            place(&layout, &mut params, name, layer).ok_or_else(|| fail(format!("{name} does not fit")))?;
        }
        let tower = Tower::new(config, &params, device).map_err(|error| fail(error.to_string()))?;
        let sizes = read_json(&folder.join("sentence_bert_config.json"))?;
        let asked = sizes.as_ref().and_then(|sizes| sizes["max_seq_length"].as_u64());
        let max_tokens = asked.map_or(MAX_TOKENS, |tokens| tokens as usize).clamp(3, longest);
        let texts = read_json(&folder.join("config_sentence_transformers.json"))?.unwrap_or_default();
        let prompt = |name: &str| texts["prompts"][name].as_str().unwrap_or_default().to_owned();
        let prompts = [prompt("query"), prompt("document")];
        Ok(Self { tower, tokenizer, pad_token_id, max_tokens, prompts, normalize })
    }

    /// Dimensions of its vectors.
    pub fn dim(&self) -> usize {
        self.tower.config().dim()
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

/// Pooling, linear layers and whether vectors get unit length. A folder without modules.json is a plain encoder.
fn modules(folder: &Path) -> Result<(Pooling, Vec<Dense>, bool), FolderError> {
    let list = folder.join("modules.json");
    let fail = |cause: String| FolderError { path: list.clone(), cause };
    let (mut pooling, mut layers, mut normalize) = (Pooling::Mean, Vec::new(), false);
    let Some(json) = read_json(&list)? else { return Ok((pooling, layers, true)) };
    for module in json.as_array().map(Vec::as_slice).unwrap_or_default() {
        let kind = module["type"].as_str().and_then(|kind| kind.rsplit('.').next()).unwrap_or_default();
        let path = module["path"].as_str().unwrap_or_default();
        let inside = Path::new(path).components().all(|part| matches!(part, std::path::Component::Normal(_)));
        if !inside {
            return Err(fail(format!("{path:?} lies outside the folder")));
        }
        let place = folder.join(path);
        match kind {
            "Transformer" => {}
            "Pooling" => {
                let config = read_json(&place.join("config.json"))?.unwrap_or_default();
                let set = |key: &str| config[key] == Value::Bool(true);
                pooling = match (set("pooling_mode_cls_token"), set("pooling_mode_mean_tokens")) {
                    (true, false) => Pooling::Cls,
                    (false, true) => Pooling::Mean,
                    _ => return Err(fail("only pooling by mean or by the first token is known".to_owned())),
                };
            }
            "Dense" => layers.push(dense(&place)?),
            "Normalize" => normalize = true,
            _ => return Err(fail(format!("module {kind:?} at {path:?} is not known"))),
        }
    }
    Ok((pooling, layers, normalize))
}

fn dense(folder: &Path) -> Result<Dense, FolderError> {
    let fail = |cause: String| FolderError { path: folder.to_owned(), cause };
    let config = read_json(&folder.join("config.json"))?.unwrap_or_default();
    let activation = config["activation_function"].as_str().and_then(|name| name.rsplit('.').next());
    let gelu = match activation {
        Some("Identity") => false,
        Some("GELU") => true,
        other => return Err(fail(format!("activation {other:?} is not known"))),
    };
    let tensors =
        Tensors::read(&folder.join("model.safetensors")).map_err(|error| fail(error.to_string()))?;
    let (shape, weight) = tensors.f32("linear.weight").map_err(|error| fail(error.to_string()))?;
    let [output, input] = shape[..] else { return Err(fail(format!("a weight of shape {shape:?}"))) };
    let bias = if tensors.has("linear.bias") {
        tensors.f32("linear.bias").map_err(|error| fail(error.to_string()))?.1
    } else {
        vec![0.0; output]
    };
    Ok(Dense { input, output, weight, bias, gelu })
}

fn head(folder: &Path, layers: &[Dense]) -> Result<Head, FolderError> {
    match layers {
        [] => Ok(Head::None),
        [only] if !only.gelu => Ok(Head::Linear { dim: only.output, bias: true }),
        [first, second] if first.gelu && !second.gelu && first.output == second.input => {
            Ok(Head::Mlp { hidden: first.output, dim: second.output })
        }
        _ => Err(FolderError {
            path: folder.to_owned(),
            cause: "its linear layers are neither one nor two with GELU between them".to_owned(),
        }),
    }
}

/// Puts a layer where the layout wants it; none when it does not fit.
fn place(layout: &ParamLayout, params: &mut [f32], name: &str, layer: &Dense) -> Option<()> {
    let weight = layout.get(&format!("{name}.weight"))?;
    let bias = layout.get(&format!("{name}.bias"))?;
    if weight.len() != layer.weight.len() || bias.len() != layer.bias.len() {
        return None;
    }
    for (at, value) in layer.weight.iter().enumerate() {
        let (row, column) = (at / layer.input, at % layer.input);
        let to = if weight.transposed { column * layer.output + row } else { at };
        params[weight.range().start + to] = *value;
    }
    params[bias.range()].copy_from_slice(&layer.bias);
    Some(())
}
