//! Unsupervised baselines.
