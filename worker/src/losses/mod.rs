//! Distillation and contrastive losses as pure functions of vectors; they know nothing of encoders.
//!
//! `evaluate(objective, batch, θ) -> value, dQ, dP, dθ` takes the gathered global batch with vectors as the
//! towers give them and is computed identically on every worker, in query blocks of fixed size, so that
//! no [batch, passages] matrix is ever held. The 1/B stands in the loss: gradients of microbatches are
//! summed (GradCache, Gao 2021, arXiv 2101.06983).
//!
//! - [`spec`]: what a job asks for: [`Objective`], [`LossSpec`], and their check before training
//! - [`theta`]: the loss's own parameters (distillation projections) as one flat slice with a layout
//! - [`batch`]: [`Batch`] and [`Teacher`], with the check of their shapes
//! - [`evaluate()`]: the loss and its gradients
//! - `rows`: InfoNCE, KL and margin-MSE on one query's scores
//! - `embedding`: losses between student and teacher vectors
//! - `masks`: which candidates count for which query
//! - `unit`: normalisation inside the loss and its gradient
//! - [`scalar`]: f32 or f64

pub mod batch;
mod embedding;
pub mod evaluate;
mod masks;
mod rows;
pub mod scalar;
pub mod spec;
#[cfg(test)]
mod tests;
pub mod theta;
mod unit;

pub use batch::{Batch, BatchError, Teacher};
pub use evaluate::{LossError, Outcome, evaluate};
pub use scalar::Scalar;
pub use spec::{Dims, Direction, LossSpec, Objective, Scope, Side, Similarity, SpecError, TeacherKind};
pub use theta::{ThetaEntry, ThetaLayout};
