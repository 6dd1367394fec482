//! What lies in a model's folder beside the encoder's own files: sentence-transformers' modules, DPR's projection and
//! ANCE's head.

use std::path::{Path, PathBuf};

use retort_common::model::modules::{self, ModuleKind};
use serde_json::Value;

use super::stack::{Activation, Stack, StackLayer};
use super::storage::TensorFiles;
use super::weights::WeightsError;

/// PyTorch's epsilon where a layer norm's file names none.
const NORM_EPSILON: f64 = 1e-5;
/// Largest width of a layer.
const MAX_WIDTH: usize = 64 << 10;
/// Largest configuration file that is read.
const CONFIG_BYTES: u64 = 16 << 20;

/// The folder of the encoder within a model's folder, which may be the same.
pub fn encoder_folder(folder: &Path) -> Result<PathBuf, WeightsError> {
    let modules = modules(folder)?;
    let first = modules.first().filter(|module| module.kind == ModuleKind::Transformer);
    Ok(first.map_or_else(|| folder.to_owned(), |module| folder.join(&module.path)))
}

fn modules(folder: &Path) -> Result<Vec<modules::Module>, WeightsError> {
    let path = folder.join("modules.json");
    if !path.exists() {
        return Ok(Vec::new());
    }
    let json = read_json(&path)?;
    modules::modules(&path.display().to_string(), &json)
        .map_err(|error| WeightsError::Layers { path: folder.to_owned(), message: error.to_string() })
}

fn read_json(path: &Path) -> Result<Value, WeightsError> {
    let io = |source| WeightsError::Io { path: path.to_owned(), source };
    let bytes = std::fs::metadata(path).map_err(io)?.len();
    let refuse = |message: String| WeightsError::Layers { path: path.to_owned(), message };
    if bytes > CONFIG_BYTES {
        return Err(refuse(format!("{bytes} bytes are too many for a configuration")));
    }
    let bytes = std::fs::read(path).map_err(io)?;
    serde_json::from_slice(&bytes).map_err(|error| refuse(format!("not valid json: {error}")))
}

/// Adds the layers of a sentence-transformers folder to those behind an encoder of `width` dimensions.
pub(super) fn add_modules(folder: &Path, width: usize, stack: &mut Stack) -> Result<(), WeightsError> {
    let modules = modules(folder)?;
    for (index, module) in modules.iter().enumerate() {
        let folder = folder.join(&module.path);
        let path = folder.join("config.json");
        let width = stack.dim(width);
        let refuse = |message: String| WeightsError::Layers { path: path.clone(), message };
        let number = |json: &Value, field: &str, expected: Option<usize>| {
            let value = json[field].as_u64().and_then(|value| usize::try_from(value).ok());
            let fits = value.filter(|value| expected.is_none_or(|expected| *value == expected));
            fits.filter(|value| (1..=MAX_WIDTH).contains(value)).ok_or_else(|| {
                let expected = expected.map_or(format!("1 to {MAX_WIDTH}"), |expected| expected.to_string());
                refuse(format!("{field} is {}, expected {expected}", json[field]))
            })
        };
        match module.kind {
            ModuleKind::Dense => {
                let json = read_json(&path)?;
                number(&json, "in_features", Some(width))?;
                let dim = number(&json, "out_features", None)?;
                let bias = json["bias"].as_bool().unwrap_or(true);
                let activation = activation(&json["activation_function"]).map_err(refuse)?;
                if json["use_residual"] == Value::Bool(true) {
                    return Err(refuse("use_residual is not supported".to_owned()));
                }
                let files = TensorFiles::open_folder(&folder)?;
                stack.layers.push(linear(&files, "linear", [dim, width], bias, activation)?);
            }
            ModuleKind::LayerNorm => {
                number(&read_json(&path)?, "dimension", Some(width))?;
                stack.layers.push(norm(&TensorFiles::open_folder(&folder)?, "norm", width)?);
            }
            // At the end it is the job's own step; before other layers it belongs to the model.
            ModuleKind::Normalize if index + 1 < modules.len() => stack.layers.push(StackLayer::Normalize),
            _ => {}
        }
    }
    Ok(())
}

/// The name of an activation in a Dense module's configuration; tanh where there is none.
fn activation(name: &Value) -> Result<Activation, String> {
    let known =
        [Activation::Identity, Activation::Tanh, Activation::Gelu, Activation::Relu, Activation::Sigmoid];
    match name.as_str() {
        None if name.is_null() => Ok(Activation::Tanh),
        text => known.into_iter().find(|activation| Some(activation.torch_name()) == text).ok_or_else(|| {
            format!("activation_function {name} is not Identity, Tanh, GELU, ReLU or Sigmoid of torch")
        }),
    }
}

/// The layers that an encoder's own file holds behind it: DPR's projection, or ANCE's linear layer and layer norm.
pub(super) fn checkpoint_stack(
    files: &TensorFiles,
    config: &Value,
    width: usize,
) -> Result<Stack, WeightsError> {
    let mut stack = Stack::default();
    let has = |name: &str| files.names().any(|tensor| tensor == name);
    if config["model_type"] == "dpr" {
        let dim = config["projection_dim"].as_u64().unwrap_or(0) as usize;
        if dim > MAX_WIDTH {
            let message = format!("projection_dim is {dim}, expected at most {MAX_WIDTH}");
            return Err(WeightsError::Layers { path: files.path().to_owned(), message });
        }
        if dim > 0 {
            let prefixes = ["question_encoder.encode_proj", "ctx_encoder.encode_proj", "encode_proj"];
            let prefix = prefixes.into_iter().find(|prefix| has(&format!("{prefix}.weight")));
            let prefix = prefix.unwrap_or(prefixes[2]);
            stack.layers.push(linear(files, prefix, [dim, width], true, Activation::Identity)?);
        }
    } else if has("embeddingHead.weight") {
        stack.layers.push(linear(files, "embeddingHead", [width, width], true, Activation::Identity)?);
        stack.layers.push(norm(files, "norm", width)?);
    }
    Ok(stack)
}

/// Whether a tensor belongs to [`checkpoint_stack`].
pub(super) fn is_behind(name: &str) -> bool {
    let name =
        name.strip_prefix("question_encoder.").or_else(|| name.strip_prefix("ctx_encoder.")).unwrap_or(name);
    ["encode_proj.", "embeddingHead.", "norm."].iter().any(|prefix| name.starts_with(prefix))
}

/// A linear layer of shape [output, input] under a prefix.
pub(super) fn linear(
    files: &TensorFiles,
    prefix: &str,
    [output, input]: [usize; 2],
    bias: bool,
    activation: Activation,
) -> Result<StackLayer, WeightsError> {
    let weight = files.read(&format!("{prefix}.weight"), &[output, input])?;
    let bias = if bias { files.read(&format!("{prefix}.bias"), &[output])? } else { Vec::new() };
    Ok(StackLayer::Linear { weight, bias, input, activation })
}

fn norm(files: &TensorFiles, prefix: &str, width: usize) -> Result<StackLayer, WeightsError> {
    let scale = files.read(&format!("{prefix}.weight"), &[width])?;
    let shift = files.read(&format!("{prefix}.bias"), &[width])?;
    Ok(StackLayer::Norm { scale, shift, epsilon: NORM_EPSILON })
}
