//! What every target does with its bytes.

use retort_common::spec::FileFormat;
use retort_worker::formats::source::Source;
use retort_worker::formats::{Role, read_source};
use std::io::Cursor;

/// Reads the bytes as a file of this format for every role; without a format it is recognised.
pub fn read(format: Option<FileFormat>, bytes: &[u8]) {
    for role in [Role::Passages, Role::Questions, Role::Set] {
        let Ok(source) = Source::over(Box::new(Cursor::new(bytes.to_vec()))) else { continue };
        let _ = read_source("fuzz", source, format, role, 1, |_, _, _| Ok::<(), String>(()));
    }
}
