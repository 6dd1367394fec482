//! What lies in a model's folder beside the encoder's own files.

use std::path::{Path, PathBuf};

use retort_common::model::modules::{self, ModuleKind};
use serde_json::Value;

use super::weights::WeightsError;

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
