//! Bounded reading of line-based files, plain or gzipped, with errors that tell file and line.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

use super::run::RunError;

/// No line of a run or of judgements is longer.
const MAX_LINE_BYTES: usize = 64 * 1024;
/// The first bytes of every gzip file.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Why a file of runs or judgements cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file system or the compression failed.
    #[error("cannot read or write {file}")]
    Io {
        /// Name of the file.
        file: String,
        /// What failed.
        source: io::Error,
    },
    /// A line that does not have the format.
    #[error("{file}, line {line}: {reason}")]
    Line {
        /// Name of the file.
        file: String,
        /// Number of the line, from 1.
        line: u64,
        /// What is wrong and what is expected.
        reason: String,
    },
    /// A ranked list that is none.
    #[error("{file}: {source}")]
    List {
        /// Name of the file.
        file: String,
        /// What is wrong with the list.
        source: RunError,
    },
}

impl FileError {
    pub(super) fn io(file: &str, source: io::Error) -> Self {
        Self::Io { file: file.to_owned(), source }
    }
}

/// Opens a file for [`for_each_line`]; the gzip format is known by its first bytes, not by the name.
pub(super) fn open(path: &Path) -> Result<(String, Box<dyn BufRead>), FileError> {
    let name = path.display().to_string();
    let open = || -> io::Result<Box<dyn BufRead>> {
        let mut reader = BufReader::new(File::open(path)?);
        if reader.fill_buf()?.starts_with(&GZIP_MAGIC) {
            return Ok(Box::new(BufReader::new(MultiGzDecoder::new(reader))));
        }
        Ok(Box::new(reader))
    };
    match open() {
        Ok(reader) => Ok((name, reader)),
        Err(source) => Err(FileError::io(&name, source)),
    }
}

/// Calls `each` with the number and the text of every line that is not blank; its reason becomes the error.
pub(super) fn for_each_line(
    file: &str,
    mut reader: impl BufRead,
    mut each: impl FnMut(u64, &str) -> Result<(), String>,
) -> Result<(), FileError> {
    let mut buffer = Vec::new();
    for line in 1.. {
        let refuse = |reason: String| FileError::Line { file: file.to_owned(), line, reason };
        buffer.clear();
        let limit = MAX_LINE_BYTES as u64 + 1;
        let read = reader.by_ref().take(limit).read_until(b'\n', &mut buffer);
        match read {
            Err(source) => return Err(FileError::io(file, source)),
            Ok(0) => break,
            Ok(_) if buffer.len() > MAX_LINE_BYTES => {
                return Err(refuse(format!("is longer than {MAX_LINE_BYTES} bytes")));
            }
            Ok(_) => {}
        }
        let text = std::str::from_utf8(&buffer).map_err(|_| refuse("is not UTF-8".to_owned()))?;
        if !text.trim().is_empty() {
            each(line, text.trim_end_matches(['\n', '\r'])).map_err(refuse)?;
        }
    }
    Ok(())
}

/// The whitespace-separated columns of a line, exactly `N` of them.
pub(super) fn columns<'a, const N: usize>(line: &'a str, format: &str) -> Result<[&'a str; N], String> {
    let mut columns = [""; N];
    let mut found = 0;
    for column in line.split_ascii_whitespace() {
        if found < N {
            columns[found] = column;
        }
        found += 1;
    }
    if found == N { Ok(columns) } else { Err(format!("has {found} columns where {format} has {N}")) }
}

/// A column as a number.
pub(super) fn number<T: std::str::FromStr>(column: &str, what: &str) -> Result<T, String> {
    column.parse().map_err(|_| format!("{what} \"{column}\" is not a number"))
}
