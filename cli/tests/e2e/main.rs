//! The `retort` program as users and scripts meet it: real processes, real sockets, a real store.
//!
//! - [`command`]: the command line alone: exit codes, what goes to which stream
//! - [`control`]: a coordinator without workers, and what its clients are told
//! - [`data`]: other layouts than BEIR's, `dataset check` and `eval`
//! - [`job`]: whole jobs, by `retort run` and on a cluster started by hand
//! - [`asking`]: students that encode questions alone
//! - [`signs`]: students whose passages are a bit for each dimension
//! - [`denoise`]: negatives that a cross-encoder has looked at
//! - [`scores`]: students that learn from scores of pairs
//! - [`kill`]: whole jobs while processes are killed
//! - [`cohort`]: one training by several workers, killed, frozen and joined: always the same weights
//! - [`checkpoints`]: described, kept and deleted
//! - [`decisions`]: what measurements decide, other lineages, figures that differ or are none
//! - [`full_store`]: a store without room
//! - [`any_cluster`]: the same weights from one worker to four, with even deals and uneven ones
//! - [`chaos`]: a training under faults that a seed chooses, and how soon it goes on
//! - [`training`]: the training that they look at
//! - [`bad_input`]: every kind of damaged input, and that nothing of it stays behind
//! - [`fixture`]: a corpus, a teacher and a spec small enough for seconds
//! - [`support`]: processes that end with their test, and what lies in a store

#[cfg(target_os = "linux")]
mod any_cluster;
mod asking;
mod bad_input;
#[cfg(target_os = "linux")]
mod chaos;
#[cfg(target_os = "linux")]
mod checkpoints;
#[cfg(target_os = "linux")]
mod cohort;
mod command;
mod control;
mod data;
#[cfg(target_os = "linux")]
mod decisions;
mod denoise;
mod fixture;
#[cfg(target_os = "linux")]
mod full_store;
mod job;
#[cfg(target_os = "linux")]
mod kill;
mod scores;
mod signs;
mod support;
#[cfg(target_os = "linux")]
mod training;
