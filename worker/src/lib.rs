//! What a Retort worker does: it holds a session with the coordinator, runs tasks on its device and
//! exchanges vectors and gradients with its peers.
//!
//! - [`session`]: the worker's side of the session
//! - [`executor`]: runs an assignment to its artifact
//! - [`tasks`]: the tasks themselves
//! - [`training`]: the canonical gradient tree and checkpoints
//! - [`exchange`]: tensors between the workers of a cohort
//! - [`model`]: encoders and heads on burn; the only module that names burn
//! - [`optimizer`]: AdamW, schedules and clipping on the flat parameter vector
//! - [`losses`]: distillation and contrastive losses as functions of vectors
//! - [`formats`]: readers of other people's files
//! - [`fit`]: PCA and quantisers, fitted without a label
//! - [`search`]: exact top-k, BM25, merging of ranked lists
//! - [`index`]: passages in a folder, searched without a cluster
//! - [`mining`]: hard negatives from ranked lists
//! - [`metrics`]: retrieval metrics, significance, DPR's answer rule
//! - [`report`]: a job's report as table, JSON and page
//! - [`export`]: results in the formats of other programs
//! - [`text`]: tokenisers and token batches
//! - [`parallel`]: threads that change no bit
//! - [`embedding`]: texts through an encoder
//! - [`matrix`], [`tables`], [`vectors`]: data in memory, in Parquet and in safetensors

pub mod embedding;
pub mod exchange;
pub mod executor;
pub mod export;
pub mod fit;
pub mod formats;
pub mod index;
pub mod losses;
pub mod matrix;
pub mod metrics;
pub mod mining;
pub mod model;
pub mod optimizer;
pub mod parallel;
pub mod report;
pub mod search;
pub mod session;
pub mod tables;
pub mod tasks;
pub mod text;
pub mod training;
pub mod vectors;
