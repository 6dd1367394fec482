//! Encoders and heads on burn; the only module that names burn.
