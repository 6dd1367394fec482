//! Tests of the coordinator.
//!
//! - [`cluster`]: a scheduler with simulated workers, and the safety rules checked after every step
//! - [`cohort`]: who trains together
//! - [`scheduler`]: rules by table; [`random`]: random inputs, restarts and faults
//! - [`plan`]: the tasks of a job; [`decisions`]: those that hang on measurements; [`scores`]: a cross-encoder's
//! - [`process`]: the real coordinator and sessions on loopback, killed and started again
//! - [`tidy`]: purity of the scheduler

mod cluster;
mod cohort;
mod decisions;
mod plan;
mod process;
mod random;
mod sample;
mod scheduler;
mod scores;
mod tidy;

// The worker's session is compiled in here, since depending on the worker would bring in its numerics.
#[allow(dead_code, unused_imports)]
#[path = "../../../worker/src/session/mod.rs"]
mod session;
