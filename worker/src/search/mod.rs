//! Exact top-k, BM25 and merging of ranked lists.
