//! Model folders as they lie on disk, in an object store or on the Hugging Face hub.
//!
//! - [`cross`]: what a model's configuration says of its use as a cross-encoder
//! - [`files`]: which files of a folder a model is made of, found and hashed at submit
//! - [`modules`]: what the files of a sentence-transformers folder say about pooling, layers and prompts

pub mod cross;
pub mod files;
pub mod modules;

pub use files::{ModelDefaults, ModelFiles, ModelInputs};
pub use modules::{Module, ModuleKind, ModulesError};
