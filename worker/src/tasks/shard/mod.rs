//! Input files to numbered tables.
//!
//! - `corpus`: passages
//! - `queries`: questions, judgements, given negatives and scores
//! - `sentences`: sentences of passages, which stand as questions

mod corpus;
mod gather;
mod queries;
mod sentences;

pub use corpus::corpus;
pub use queries::{GIVEN, queries};
pub use sentences::{Draw, origins, sentences};

use super::bench::{TaskError, Workbench};
use super::input::changed;
use crate::formats::source::store_error;
use crate::formats::{ReadError, Record, Role};
use retort_common::spec::inputs::DataFile;
use retort_common::store::Location;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Bad records whose reasons are kept for the report.
const REASONS_KEPT: usize = 20;

/// Malformed records: refused, or counted up to the number that the spec allows.
struct BadRecords {
    allowed: u64,
    count: u64,
    reasons: Vec<String>,
}

impl BadRecords {
    fn new(allowed: u64) -> Self {
        Self { allowed, count: 0, reasons: Vec::new() }
    }

    /// Whether the reason of the next one is shown to somebody.
    fn is_next_told(&self) -> bool {
        self.count >= self.allowed || self.reasons.len() < REASONS_KEPT
    }

    fn add(&mut self, file: &DataFile, line: u64, reason: &str) -> Result<(), TaskError> {
        self.count += 1;
        let text = format!("{}:{line}: {reason}", file.file.url);
        if self.count > self.allowed {
            let hint = if self.allowed == 0 {
                "correct the line, or allow some with corpus.max_bad_records".to_owned()
            } else {
                format!("more than corpus.max_bad_records = {} such lines", self.allowed)
            };
            return Err(TaskError::Input(format!("{text}; {hint}")));
        }
        if self.reasons.len() < REASONS_KEPT {
            self.reasons.push(text);
        }
        Ok(())
    }
}

/// Calls `each` with every record of a file and verifies the file against the digest recorded at submit. Records that
/// cannot be read are bad ones.
fn for_each_record(
    bench: &Workbench<'_>,
    data: &DataFile,
    role: Role,
    bad: &mut BadRecords,
    mut each: impl FnMut(u64, Record, &mut BadRecords) -> Result<(), TaskError>,
) -> Result<(), TaskError> {
    let location = Location::parse(&data.file.url)?;
    let outcome = crate::formats::read(
        &location,
        data.format,
        role,
        bench.threads,
        &bench.runtime,
        |_, line, record| match record {
            Ok(record) => each(line, record, bad),
            Err(reason) => bad.add(data, line, &reason),
        },
    );
    let found = match &outcome {
        Ok(summary) => Some(summary.sha256),
        Err(error) => error.found(),
    };
    // A file that changed explains a bad line better than the line itself.
    if found.is_some_and(|found| found != data.file.sha256) {
        return Err(changed(&data.file));
    }
    match outcome {
        Ok(_) => Ok(()),
        Err(ReadError::Refused { error, .. }) => Err(error),
        // Whether a store's error may pass is for the store to say.
        Err(ReadError::Io { source, .. }) if store_error(&source).is_some() => {
            let error = source.into_inner().and_then(|error| error.downcast().ok());
            Err(TaskError::Store(*error.expect("it was seen above")))
        }
        Err(error) => Err(TaskError::input(error)),
    }
}

/// 64 bits of an id: they keep the memory of a large corpus bounded, and two of twenty million agree by chance once in
/// a hundred thousand corpora.
fn hash_of(id: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    hasher.finish()
}
