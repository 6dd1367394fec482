//! What every part of Retort shares.
//!
//! - [`ids`]: newtypes for every id, and digests
//! - [`spec`]: the job spec and its input files
//! - [`model`]: the files of models and what their folders say; [`hub`]: models on the Hugging Face hub
//! - [`task`]: tasks and the artifacts they make
//! - [`checkpoint`]: checkpoints of trainings in the store
//! - [`cohort`]: the workers that compute one training together
//! - [`metrics`]: what a training says of its steps
//! - [`store`]: object storage
//! - [`artifact`]: artifacts and their manifests in the store, verified on read
//! - [`net`]: the one seam through which every connection goes
//! - [`client`]: the typed client of the control plane
//! - [`view`]: jobs and workers as people see them
//! - [`telemetry`]: logging set-up
//! - [`proto`]: the generated protocol

pub mod artifact;
pub mod checkpoint;
pub mod client;
pub mod cohort;
pub mod hub;
pub mod ids;
pub mod metrics;
pub mod model;
pub mod net;
pub mod proto;
pub mod spec;
pub mod store;
pub mod task;
pub mod telemetry;
pub mod view;
