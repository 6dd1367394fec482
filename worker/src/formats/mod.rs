//! Readers of other people's files: MS MARCO, DPR, BEIR, Tevatron, FlagEmbedding, sentence-transformers.
//!
//! A file is read once from start to end in bounded memory: one thread reads, hashes, decompresses and cuts it into
//! blocks of whole records; others parse blocks; the caller gets the records in the order of the file.
//!
//! - [`source`]: bytes of a file anywhere, plain, .gz or .zst, hashed while they are read
//! - [`blocks`]: bytes to blocks of whole records, with the line that each begins at
//! - [`fields`]: columns of TSV and CSV, Python's lists of strings
//! - [`recognise`](recognise()): what a file is, by its content
//! - [`parse`](parse()): a record's bytes to a [`Record`]
//! - [`read`](read()): all of it together
//! - [`check`]: what a data set holds and what is wrong with it

pub mod blocks;
pub mod check;
pub mod fields;
mod json;
mod parse;
mod read;
mod recognise;
mod record;
pub mod source;
#[cfg(test)]
mod tests;

pub use parse::parse;
pub use read::{ReadError, Summary, read, read_source};
pub use recognise::{Framing, Layout, recognise, role_of};
pub use record::{Candidate, Example, Passage, Question, Record, Role, check_id, passage_id, question_id};
