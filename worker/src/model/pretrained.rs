//! Encoders from and to Hugging Face directories.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::config::{ConfigError, EncoderConfig};
use super::encoder::encoder_specs;
use super::flat::ParamLayout;
use super::folder::{add_modules, checkpoint_stack, encoder_folder, is_behind};
use super::stack::Stack;
use super::storage::{TensorFiles, read_layout};
use super::weights::{FileDtype, WeightsError, write_named};

/// Why an encoder could not be loaded or stored.
#[derive(Debug, thiserror::Error)]
pub enum PretrainedError {
    /// Its `config.json`.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its weights.
    #[error(transparent)]
    Weights(#[from] WeightsError),
}

/// Loads an encoder from a directory: `config.json` and `model.safetensors` or its shards, in the directory itself or
/// where `modules.json` says. The flat parameters are in the order of a tower with this encoder and no head.
///
/// With `layers`, only those layers are kept, in the order given and renumbered from 0: how a student starts from
/// its teacher. Embeddings are kept whole.
pub fn load_encoder(
    dir: &Path,
    layers: Option<&[usize]>,
) -> Result<(EncoderConfig, Vec<f32>), PretrainedError> {
    let Loaded { config, params, .. } = load(dir, is_behind)?;
    match layers {
        Some(layers) => keep_layers(dir, config, &params, layers),
        None => Ok((config, params)),
    }
}

/// [`load_encoder`] with the layers that the directory puts behind the pooled vector: sentence-transformers' Dense and
/// LayerNorm modules, DPR's projection, ANCE's head.
pub fn load_retriever(dir: &Path) -> Result<(EncoderConfig, Vec<f32>, Stack), PretrainedError> {
    let Loaded { config, params, files, json } = load(dir, is_behind)?;
    let width = config.hidden_size;
    let mut stack = checkpoint_stack(&files, &json, width)?;
    add_modules(dir, width, &mut stack)?;
    Ok((config, params, stack))
}

/// An encoder with the files that it came from.
pub(super) struct Loaded {
    pub config: EncoderConfig,
    pub params: Vec<f32>,
    pub files: TensorFiles,
    /// Its `config.json`, which may say more.
    pub json: Value,
}

/// Loads an encoder; tensors that `aside` names are others' business.
pub(super) fn load(dir: &Path, aside: impl Fn(&str) -> bool) -> Result<Loaded, PretrainedError> {
    let dir = encoder_folder(dir)?;
    let (config, json) = EncoderConfig::read_with_json(&dir.join("config.json"))?;
    let layout = ParamLayout::new(encoder_specs(&config));
    let architecture = config.architecture;
    let rename = |name: &str| if aside(name) { None } else { architecture.layout_name(name) };
    let files = TensorFiles::open_folder(&dir)?;
    let params = read_layout(&files, &layout, rename).map_err(|error| match error {
        WeightsError::Missing { path, tensor } => {
            WeightsError::Missing { path, tensor: architecture.file_name(&tensor) }
        }
        error => error,
    })?;
    Ok(Loaded { config, params, files, json })
}

fn keep_layers(
    dir: &Path,
    config: EncoderConfig,
    params: &[f32],
    layers: &[usize],
) -> Result<(EncoderConfig, Vec<f32>), PretrainedError> {
    let source = ParamLayout::new(encoder_specs(&config));
    let last = config.layers - 1;
    if let Some(layer) = layers.iter().find(|layer| **layer > last) {
        return Err(WeightsError::Layer { path: dir.to_owned(), layer: *layer, last }.into());
    }
    let student = EncoderConfig { layers: layers.len(), ..config };
    student.validate()?;
    let target = ParamLayout::new(encoder_specs(&student));
    let mut flat = vec![0.0; target.len()];
    for entry in target.entries() {
        let path = source_path(&entry.path, layers);
        let origin = source.get(&path).expect("the source has every chosen layer");
        flat[entry.range()].copy_from_slice(&params[origin.range()]);
    }
    Ok((student, flat))
}

/// The name in the source of a parameter of the student.
fn source_path(path: &str, layers: &[usize]) -> String {
    let Some((number, rest)) = path.strip_prefix("encoder.layer.").and_then(|rest| rest.split_once('.'))
    else {
        return path.to_owned();
    };
    let layer: usize = number.parse().expect("layers are numbered");
    format!("encoder.layer.{}.{rest}", layers[layer])
}

/// Writes `config.json` and `model.safetensors` into `dir`, which must exist; transformers reads them as the model of
/// the encoder's architecture.
///
/// # Panics
/// When `params` does not have the length of the encoder's layout.
pub fn save_encoder(
    dir: &Path,
    config: &EncoderConfig,
    params: &[f32],
    dtype: FileDtype,
) -> Result<(), PretrainedError> {
    let layout = ParamLayout::new(encoder_specs(config));
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let rename = |name: &str| config.architecture.file_name(name);
    write_named(&dir.join("model.safetensors"), &layout, params, dtype, &metadata, rename)?;
    let path = dir.join("config.json");
    let text = serde_json::to_string_pretty(&config.to_json()).expect("a json value serializes");
    std::fs::write(&path, text + "\n").map_err(|source| WeightsError::Io { path, source })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::tiny_encoder;
    use super::*;
    use crate::model::{Head, Input, Pooling, TowerConfig};

    #[test]
    fn an_encoder_survives_the_round_trip_and_gives_its_layers_away() {
        let dir = tempfile::tempdir().unwrap();
        let encoder = tiny_encoder(3);
        let tower = TowerConfig {
            input: Input::Tokens { encoder: encoder.clone(), pooling: Pooling::Mean },
            head: Head::None,
        };
        let params = tower.initial_params(7);
        save_encoder(dir.path(), &encoder, &params, FileDtype::F32).unwrap();
        assert_eq!(load_encoder(dir.path(), None).unwrap(), (encoder.clone(), params.clone()));

        let (student, chosen) = load_encoder(dir.path(), Some(&[2, 0])).unwrap();
        assert_eq!(student.layers, 2);
        let (source, target) =
            (ParamLayout::new(encoder_specs(&encoder)), ParamLayout::new(encoder_specs(&student)));
        let check = |from: &str, to: &str| {
            let (from, to) = (source.get(from).unwrap(), target.get(to).unwrap());
            assert_eq!(params[from.range()], chosen[to.range()], "{} into {}", from.path, to.path);
        };
        check("embeddings.word_embeddings.weight", "embeddings.word_embeddings.weight");
        check("encoder.layer.2.output.dense.weight", "encoder.layer.0.output.dense.weight");
        check("encoder.layer.0.output.dense.weight", "encoder.layer.1.output.dense.weight");

        for layers in [&[3][..], &[]] {
            assert!(load_encoder(dir.path(), Some(layers)).is_err(), "{layers:?} must be refused");
        }
        let message = load_encoder(dir.path(), Some(&[3])).unwrap_err().to_string();
        assert!(message.contains("layer 3") && message.contains("0 to 2"), "{message}");
    }
}
