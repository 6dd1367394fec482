//! Hard-negative mining from ranked lists: pure, seeded, and audited. No shortfall is ever filled up.
//!
//! - [`spec`]: what a job asks for: [`MiningSpec`] and its check
//! - [`mine`](mod@mine): candidates of one query -> its negatives
//! - [`audit`]: what the filters did, mergeable over shards of queries
//! - [`order`]: the order of examples, a seeded bijection that needs no memory
//! - `counter`: random numbers by counter

pub mod audit;
pub(crate) mod counter;
pub mod mine;
pub mod order;
pub mod spec;
#[cfg(test)]
mod tests;

pub use audit::{Audit, FilterCounts, GapHistogram, SuspiciousCase};
pub use mine::{Candidate, Hooks, MiningError, Negative, Query, mine};
pub use order::Permutation;
pub use spec::{MiningSpec, MiningSpecError, Sampling};
