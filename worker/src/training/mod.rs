//! The parts of training that know nothing of models: the canonical tree and checkpoints.

pub mod checkpoint;
pub mod tree;
