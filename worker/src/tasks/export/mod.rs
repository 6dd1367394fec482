//! Students and runs in the formats of others.
//!
//! - [`student`]: a student as a folder for sentence-transformers
//! - [`run`]: a run as TREC's files

mod run;
mod student;

pub use run::run;
pub use student::student;
