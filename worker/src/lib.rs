//! What a Retort worker does: it holds a session with the coordinator, runs tasks on its device and
//! exchanges vectors and gradients with its peers.
//!
//! - [`matrix`]: the row-major `f32` matrix that vectors travel in
//! - [`model`]: encoders and heads on burn; the only module that names burn
//! - [`optimizer`]: AdamW, schedules and clipping on the flat parameter vector
//! - [`losses`]: distillation and contrastive losses as functions of vectors
//! - [`fit`]: unsupervised baselines (PCA)
//! - [`search`]: exact top-k, BM25, merging of ranked lists
//! - [`mining`]: hard negatives from ranked lists
//! - [`metrics`]: retrieval metrics, significance, DPR's answer rule
//! - [`report`]: the table, report.json and report.html
//! - [`text`]: tokenisers and token batches

pub mod fit;
pub mod losses;
pub mod matrix;
pub mod metrics;
pub mod mining;
pub mod model;
pub mod optimizer;
pub mod report;
pub mod search;
pub mod text;
