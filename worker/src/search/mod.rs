//! Exact top-k, BM25 and merging of ranked lists.
//!
//! - [`topk`]: bounded accumulators of hits and the one total order of hits
//! - [`dense`]: exact inner-product search of a block of passages
//! - [`codes`]: scans of quantised passages
//! - [`analyzer`]: English text to BM25 terms
//! - [`bm25`]: Lucene's BM25 over a shard with corpus-wide statistics

pub mod analyzer;
pub mod bm25;
pub mod codes;
pub mod dense;
pub mod topk;
