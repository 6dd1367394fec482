//! A retriever as a folder that sentence-transformers loads: encoder, pooling, layers, normalisation; or a router with
//! one such chain for questions and one for passages.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::model::{
    Activation, EncoderConfig, FileDtype, Head, ParamLayout, Pooling, PretrainedError, StackLayer,
    WeightsError, save_encoder, write_safetensors,
};
use crate::text::SpecialTokens;

/// Why a folder was not written.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// A small file.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The encoder's files.
    #[error(transparent)]
    Encoder(#[from] PretrainedError),
    /// A layer's weights.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A student without the parameters that its shape names.
    #[error("the student has no layer {name:?}")]
    Layer {
        /// The layer.
        name: &'static str,
    },
}

/// One chain: an encoder with all that follows it.
pub struct Chain<'a> {
    /// The encoder's shape.
    pub encoder: &'a EncoderConfig,
    /// Its parameters.
    pub params: &'a [f32],
    /// How token states become one vector.
    pub pooling: Pooling,
    /// What follows.
    pub layers: Vec<StackLayer>,
    /// Whether vectors are scaled to unit length.
    pub normalize: bool,
    /// A `tokenizer.json`.
    pub tokenizer: &'a Path,
    /// The roles of its special tokens.
    pub special: &'a SpecialTokens,
    /// Longest text.
    pub max_tokens: usize,
}

/// A module: its folder within the export and its type.
struct Module {
    path: String,
    kind: &'static str,
}

/// Writes one chain for both sides into `folder`, with a prompt before questions and one before passages.
pub fn write_shared(folder: &Path, chain: &Chain<'_>, prompts: [&str; 2]) -> Result<(), FolderError> {
    let modules = write_chain(folder, "", chain)?;
    write_json(&folder.join("modules.json"), &module_list(&modules))?;
    write_usage(folder, prompts, chain.normalize)
}

/// Writes a chain for questions and one for passages, as a router.
pub fn write_router(
    folder: &Path,
    query: &Chain<'_>,
    passage: &Chain<'_>,
    prompts: [&str; 2],
) -> Result<(), FolderError> {
    let (query_modules, passage_modules) =
        (write_chain(folder, "query_", query)?, write_chain(folder, "document_", passage)?);
    let kind = "sentence_transformers.models.Router";
    let modules = [Module { path: String::new(), kind }];
    write_json(&folder.join("modules.json"), &module_list(&modules))?;
    let paths = |modules: &[Module]| modules.iter().map(|module| module.path.clone()).collect::<Vec<_>>();
    let all = query_modules.iter().chain(&passage_modules);
    let types: BTreeMap<_, _> = all.map(|module| (module.path.clone(), module.kind)).collect();
    let config = json!({
        "types": types,
        "structure": { "query": paths(&query_modules), "document": paths(&passage_modules) },
        "parameters": { "default_route": "document", "allow_empty_key": true },
    });
    write_json(&folder.join("router_config.json"), &config)?;
    write_usage(folder, prompts, passage.normalize)
}

fn write_usage(folder: &Path, [query, passage]: [&str; 2], normalize: bool) -> Result<(), FolderError> {
    let usage = json!({
        "model_type": "SentenceTransformer",
        "prompts": { "query": query, "document": passage },
        "default_prompt_name": null,
        "similarity_fn_name": if normalize { "cosine" } else { "dot" },
    });
    write_json(&folder.join("config_sentence_transformers.json"), &usage)
}

/// Writes a chain whose modules' folders begin with `prefix`; without one the encoder lies in `folder` itself.
fn write_chain(folder: &Path, prefix: &str, chain: &Chain<'_>) -> Result<Vec<Module>, FolderError> {
    let mut modules: Vec<Module> = Vec::new();
    let mut add = |name: &str, kind: &'static str| -> Result<PathBuf, FolderError> {
        let own = prefix.is_empty() && modules.is_empty();
        let path = if own { String::new() } else { format!("{prefix}{}_{name}", modules.len()) };
        let folder = folder.join(&path);
        std::fs::create_dir_all(&folder)
            .map_err(|source| FolderError::Io { path: folder.clone(), source })?;
        modules.push(Module { path, kind });
        Ok(folder)
    };
    let own = add("Transformer", "sentence_transformers.models.Transformer")?;
    save_encoder(&own, chain.encoder, chain.params, FileDtype::F32)?;
    let target = own.join("tokenizer.json");
    std::fs::copy(chain.tokenizer, &target).map_err(|source| FolderError::Io { path: target, source })?;
    let lengths = json!({ "max_seq_length": chain.max_tokens, "do_lower_case": false });
    write_json(&own.join("sentence_bert_config.json"), &lengths)?;
    write_json(&own.join("tokenizer_config.json"), &chain.special.config(chain.max_tokens))?;
    let own = add("Pooling", "sentence_transformers.models.Pooling")?;
    write_json(&own.join("config.json"), &pooling_config(chain.pooling, chain.encoder.hidden_size))?;
    for layer in &chain.layers {
        match layer {
            StackLayer::Linear { .. } => {
                write_layer(&add("Dense", "sentence_transformers.models.Dense")?, layer)?;
            }
            StackLayer::Norm { .. } => {
                write_layer(&add("LayerNorm", "sentence_transformers.models.LayerNorm")?, layer)?;
            }
            StackLayer::Normalize => {
                write_layer(&add("Normalize", "sentence_transformers.models.Normalize")?, layer)?;
            }
        }
    }
    if chain.normalize {
        let own = add("Normalize", "sentence_transformers.models.Normalize")?;
        write_layer(&own, &StackLayer::Normalize)?;
    }
    Ok(modules)
}

fn write_layer(folder: &Path, layer: &StackLayer) -> Result<(), FolderError> {
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let path = folder.join("model.safetensors");
    match layer {
        StackLayer::Linear { weight, bias, input, activation } => {
            let output = weight.len() / (*input).max(1);
            let (shape, bias_shape) = ([output, *input], [output]);
            let mut tensors: Vec<(&str, &[usize], &[f32])> = vec![("linear.weight", &shape, weight)];
            if !bias.is_empty() {
                tensors.insert(0, ("linear.bias", &bias_shape, bias));
            }
            write_safetensors(&path, &tensors, FileDtype::F32, &metadata)?;
            let config = json!({
                "in_features": input, "out_features": output, "bias": !bias.is_empty(),
                "activation_function": activation.torch_name(),
            });
            write_json(&folder.join("config.json"), &config)
        }
        StackLayer::Norm { scale, shift, .. } => {
            let shape = [scale.len()];
            let tensors: [(&str, &[usize], &[f32]); 2] =
                [("norm.bias", &shape, shift), ("norm.weight", &shape, scale)];
            write_safetensors(&path, &tensors, FileDtype::F32, &metadata)?;
            write_json(&folder.join("config.json"), &json!({ "dimension": scale.len() }))
        }
        StackLayer::Normalize => write_json(&folder.join("config.json"), &json!({})),
    }
}

/// A student's head as layers; of one that ends in codes, the questions' side.
pub fn head_layers(
    head: &Head,
    layout: &ParamLayout,
    params: &[f32],
) -> Result<Vec<StackLayer>, FolderError> {
    let linear = |name: &'static str, output: usize, activation| {
        let find = |suffix: &str| layout.get(&format!("{name}.{suffix}")).map(|entry| &params[entry.range()]);
        let flat = find("weight").ok_or(FolderError::Layer { name })?;
        let input = flat.len() / output.max(1);
        // The flat vector holds it as [input, output].
        let weight = (0..flat.len()).map(|i| flat[(i % input) * output + i / input]).collect();
        let bias = find("bias").unwrap_or_default().to_vec();
        Ok::<_, FolderError>(StackLayer::Linear { weight, bias, input, activation })
    };
    match head {
        Head::None => Ok(Vec::new()),
        Head::Linear { dim, .. } => Ok(vec![linear("head", *dim, Activation::Identity)?]),
        Head::Mlp { hidden, dim } => Ok(vec![
            linear("head.hidden", *hidden, Activation::Gelu)?,
            linear("head.output", *dim, Activation::Identity)?,
        ]),
        // What asks its codes. Passages go through a map of their own and end in codes, which no folder of layers says.
        Head::Coded(shape) => Ok(vec![linear("head.query", shape.dim, Activation::Identity)?]),
    }
}

fn module_list(modules: &[Module]) -> Value {
    let entry = |(index, module): (usize, &Module)| json!({ "idx": index, "name": index.to_string(), "path": module.path, "type": module.kind });
    modules.iter().enumerate().map(entry).collect()
}

/// In the form that every version of sentence-transformers reads.
fn pooling_config(pooling: Pooling, dim: usize) -> Value {
    json!({
        "word_embedding_dimension": dim,
        "pooling_mode_cls_token": pooling == Pooling::Cls,
        "pooling_mode_mean_tokens": pooling == Pooling::Mean,
        "pooling_mode_max_tokens": pooling == Pooling::Max,
        "pooling_mode_mean_sqrt_len_tokens": pooling == Pooling::MeanSqrtLen,
        "pooling_mode_weightedmean_tokens": pooling == Pooling::WeightedMean,
        "pooling_mode_lasttoken": pooling == Pooling::LastToken,
        "include_prompt": true,
    })
}

fn write_json(path: &Path, value: &Value) -> Result<(), FolderError> {
    let text = serde_json::to_string_pretty(value).expect("a JSON value has a text");
    std::fs::write(path, text + "\n").map_err(|source| FolderError::Io { path: path.to_owned(), source })
}
