//! The parts of training that know nothing of models: the canonical tree, checkpoints and the digest of a state.

pub mod checkpoint;
pub mod digest;
pub mod tree;
