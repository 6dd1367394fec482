//! AdamW, schedules and clipping on the flat parameter vector.
