//! Exact top-k, BM25 and merging of ranked lists.
//!
//! - [`topk`]: bounded accumulators of hits and the one total order of hits
//! - [`dense`]: exact inner-product search of a block of passages
//! - [`matmul`]: matrix products on row-major slices
//! - [`analyzer`]: English text to BM25 terms
//! - [`bm25`]: Lucene's BM25 over a shard with corpus-wide statistics

pub mod analyzer;
pub mod bm25;
pub mod dense;
pub mod matmul;
pub mod topk;
