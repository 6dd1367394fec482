//! Encoders and heads on burn; the only module that names burn.
//!
//! - [`tower`]: [`Tower`], what training and embedding use: forward, backward, flat parameters
//! - [`device`]: [`Device`], what computes; named by `--device`
//! - [`shape`]: [`TowerConfig`], what a tower is made of
//! - [`encoder`]: BERT as a function of its parameters; [`fused`]: what it is made of, with kernels for each backend
//! - `pooling`: how token states become one vector
//! - [`dropout`]: masks that are a function of where they stand
//! - [`config`]: the shape of an encoder, from and to `config.json`; `names`: architectures and their tensors' names
//! - [`flat`]: where each parameter lies in the flat vector
//! - [`init`]: initial parameters
//! - [`weights`]: safetensors files; `storage`: single tensors of one file or of shards
//! - [`pretrained`]: encoders from and to Hugging Face directories; `folder`: what else lies in them
//! - [`stack`]: layers of a checkpoint behind its encoder
//! - [`cross`]: cross-encoders, which score pairs of texts
//! - [`probe`]: the numerics fingerprint

// burn announces the end of its LibTorch backend in a later version; this one is pinned.
#![cfg_attr(feature = "tch", allow(deprecated))]

mod coded;
mod config;
mod cross;
mod device;
mod dropout;
mod encoder;
mod flat;
mod folder;
mod fused;
mod init;
mod names;
mod pooling;
mod pretrained;
mod probe;
mod shape;
mod stack;
mod storage;
mod tower;
mod weights;

pub use coded::{CodedHead, CodedShape, TwoSided};
pub use config::{ConfigError, EncoderConfig};
pub use cross::{CrossEncoder, CrossError};
pub use device::{Device, DeviceError};
pub use dropout::Dropout;
pub use flat::{ParamEntry, ParamLayout};
pub use folder::encoder_folder;
pub use names::Architecture;
pub use pretrained::{PretrainedError, load_encoder, load_retriever, save_encoder};
pub use probe::probe;
pub use retort_common::spec::Pooling;
pub use shape::{Head, Input, TowerConfig, TowerError};
pub use stack::{Activation, Stack, StackLayer};
pub use tower::{Batch, Forward, Tower};
pub use weights::{FileDtype, WeightsError, read_parameters, write_parameters, write_safetensors};

#[cfg(test)]
mod parity;
#[cfg(test)]
mod tests;
