//! Encoders and heads on burn; the only module that names burn.
//!
//! - [`tower`]: [`Tower`], what training and embedding use: forward, backward, flat parameters
//! - [`shape`]: [`TowerConfig`], what a tower is made of
//! - [`encoder`]: BERT as a function of its parameters
//! - [`dropout`]: masks that are a function of where they stand
//! - [`config`]: the shape of an encoder, from and to `config.json`; `names`: architectures and their tensors' names
//! - [`flat`]: where each parameter lies in the flat vector
//! - [`init`]: initial parameters
//! - [`weights`]: safetensors files; `storage`: single tensors of one file or of shards
//! - [`pretrained`]: encoders from and to Hugging Face directories; `folder`: what else lies in them
//! - [`stack`]: layers of a checkpoint behind its encoder
//! - [`cross`]: cross-encoders, which score pairs of texts
//! - [`probe`]: the numerics fingerprint

mod coded;
mod config;
mod cross;
mod dropout;
mod encoder;
mod flat;
mod folder;
mod init;
mod names;
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
pub use dropout::Dropout;
pub use flat::{ParamEntry, ParamLayout};
pub use folder::encoder_folder;
pub use names::Architecture;
pub use pretrained::{PretrainedError, load_encoder, load_retriever, save_encoder};
pub use probe::probe;
pub use shape::{Head, Input, Pooling, TowerConfig, TowerError};
pub use stack::{Activation, Stack, StackLayer};
pub use tower::{Batch, Forward, Tower};
pub use weights::{FileDtype, WeightsError, read_parameters, write_parameters, write_safetensors};

/// A device name that this build does not know.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// A LibTorch device.
    #[error(
        "device {name:?} needs LibTorch, and this binary was built without the tch feature; use \"flex\""
    )]
    WithoutTch {
        /// What was asked for.
        name: String,
    },
    /// Anything else.
    #[error("unknown device {name:?}; use \"auto\" or \"flex\"")]
    Unknown {
        /// What was asked for.
        name: String,
    },
}

/// Where tensors live and what computes with them. Always passed explicitly: burn's default device depends on what
/// the binary was built with.
#[derive(Clone, Debug)]
pub struct Device(burn::tensor::Device);

impl Device {
    /// The pure-Rust CPU backend.
    pub fn flex() -> Self {
        Self(burn::tensor::Device::flex())
    }

    /// The device of a name: "flex", or "auto" for the best that is built in.
    pub fn parse(name: &str) -> Result<Self, DeviceError> {
        match name {
            "auto" | "flex" => Ok(Self::flex()),
            "tch" | "tch-cuda" | "cuda" => Err(DeviceError::WithoutTch { name: name.to_owned() }),
            _ => Err(DeviceError::Unknown { name: name.to_owned() }),
        }
    }

    /// The backend's name, part of the numerics fingerprint.
    pub fn name(&self) -> &'static str {
        "flex"
    }
}

#[cfg(test)]
mod parity;
#[cfg(test)]
mod tests;
