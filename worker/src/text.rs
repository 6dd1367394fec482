//! Tokenisers and token batches.
