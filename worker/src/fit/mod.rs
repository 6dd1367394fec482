//! Unsupervised baselines, fitted to vectors without a label.
//!
//! - [`pca`]: principal components, the direct rival of a distilled head

pub mod pca;

pub use pca::{Pca, PcaAccumulator, PcaError};
