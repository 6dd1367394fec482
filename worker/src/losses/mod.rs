//! Distillation and contrastive losses as pure functions of vectors; they know nothing of encoders.
//!
//! `evaluate(objective, batch, θ) -> value, dQ, dP, dθ` takes the gathered global batch with vectors as the
//! towers give them and is computed identically on every worker, in query blocks of fixed size, so that
//! no [batch, passages] matrix is ever held. The 1/B stands in the loss: gradients of microbatches are
//! summed (GradCache, Gao 2021, arXiv 2101.06983).
//!
//! - [`spec`]: what a job asks for: [`Objective`], [`Term`], [`Loss`], and their check before training
//! - [`theta`]: the loss's own parameters (projections, learnt temperatures) as one flat slice with a layout
//! - [`batch`]: [`Batch`] and [`Teacher`], with the check of their shapes
//! - [`evaluate()`]: the loss and its gradients
//! - `scores`: the terms on scores, in blocks of query rows
//! - `rows`: InfoNCE, KL and margin-MSE on one query's scores
//! - `embedding`: losses between student and teacher vectors
//! - `masks`: which candidates count for which query
//! - `unit`: cutting and normalisation inside the loss, and their gradients
//! - [`scalar`]: f32 or f64

pub mod batch;
#[cfg(test)]
mod distributed;
mod embedding;
pub mod evaluate;
mod masks;
#[cfg(test)]
mod reference;
mod rows;
pub mod scalar;
mod scores;
pub mod spec;
#[cfg(test)]
mod tests;
pub mod theta;
mod unit;

pub use batch::{Batch, BatchError, Teacher};
pub use evaluate::{LossError, Outcome, block_rows, evaluate};
pub use scalar::Scalar;
pub use spec::{
    Dims, Direction, Guide, Loss, Objective, Ramp, Scope, Side, Similarity, SpecError, TeacherKind,
    Temperature, Term,
};
pub use theta::{ThetaEntry, ThetaLayout, ThetaRole};
