//! The worker's integration tests.

mod metrics;
mod readers;
