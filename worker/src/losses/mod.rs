//! Distillation and contrastive losses as functions of vectors.
