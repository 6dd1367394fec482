//! Retrieval metrics, the files they are computed from, DPR's answer rule and significance.
//!
//! - [`metric`]: the metrics, their names and their values for one query
//! - [`evaluation`]: metrics of a run, by query and as means
//! - [`run`]: TREC and MS MARCO run files
//! - [`qrels`]: TREC and BEIR judgement files
//! - [`results`]: DPR's results, which carry answers and passages
//! - [`lines`]: bounded reading of line-based files
//! - [`answers`]: whether a passage holds an answer, by DPR's rule
//! - [`significance`]: paired randomisation test and bootstrap interval

pub mod answers;
pub mod evaluation;
mod lines;
pub mod metric;
pub mod qrels;
pub mod results;
pub mod run;
pub mod significance;

pub use lines::FileError;
