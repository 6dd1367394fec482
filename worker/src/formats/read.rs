//! A file's records in order: one thread reads and cuts, others parse, the caller gets the results.

use super::blocks::{Block, CutError, Cutter, RECORD_BYTES};
use super::parse::parse;
use super::recognise::{Framing, Layout, SAMPLE_BYTES, recognise};
use super::record::{Record, Role};
use super::source::Source;
use retort_common::ids::Digest;
use retort_common::spec::FileFormat;
use retort_common::store::Location;
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use tokio::runtime::Handle;

/// Blocks that wait between two threads.
const WAITING_BLOCKS: usize = 1;

/// What was learnt of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// What it is.
    pub layout: Layout,
    /// Its size as it lies there.
    pub bytes: u64,
    /// Its digest as it lies there.
    pub sha256: Digest,
}

/// Why a file was not read to its end. `found` is its digest where it could be read all the same: a file that is not
/// the expected one explains every other failure.
#[derive(Debug, thiserror::Error)]
pub enum ReadError<E> {
    /// There is no such file.
    #[error("{file}: does not exist; put it there or correct the path")]
    Missing {
        /// The file.
        file: String,
    },
    /// Reading or decompressing failed.
    #[error("{file}:{line}: {source}{}", if *.compressed { "; the compressed file is damaged or truncated: fetch it again" } else { "" })]
    Io {
        /// The file.
        file: String,
        /// The line reached.
        line: u64,
        /// The cause.
        source: io::Error,
        /// Whether it is decompressed.
        compressed: bool,
        /// Its digest.
        found: Option<Digest>,
    },
    /// The file as a whole is not as it must be.
    #[error("{file}:{line}: {reason}")]
    Format {
        /// The file.
        file: String,
        /// The line reached.
        line: u64,
        /// What is wrong.
        reason: String,
        /// Its digest.
        found: Option<Digest>,
    },
    /// The caller refused a record.
    #[error("{error}")]
    Refused {
        /// Its error.
        error: E,
        /// The file's digest.
        found: Option<Digest>,
    },
}

impl<E> ReadError<E> {
    /// The file's digest, where it could be read to its end.
    pub fn found(&self) -> Option<Digest> {
        match self {
            ReadError::Missing { .. } => None,
            ReadError::Io { found, .. }
            | ReadError::Format { found, .. }
            | ReadError::Refused { found, .. } => *found,
        }
    }
}

/// Calls `each` with the line and the content of every record, or with what is wrong with it, in the order of the
/// file; `threads` parse. The records do not depend on their number.
pub fn read<E>(
    location: &Location,
    format: Option<FileFormat>,
    role: Role,
    threads: usize,
    runtime: &Handle,
    each: impl FnMut(&Layout, u64, Result<Record, String>) -> Result<(), E>,
) -> Result<Summary, ReadError<E>> {
    let file = location.to_string();
    let failed =
        |source| ReadError::Io { file: file.clone(), line: 1, source, compressed: false, found: None };
    let source = Source::open(location, runtime).map_err(failed)?;
    let source = source.ok_or_else(|| ReadError::Missing { file: file.clone() })?;
    read_source(&file, source, format, role, threads, each)
}

/// [`read`] of a file that is open.
pub fn read_source<E>(
    file: &str,
    source: Source,
    format: Option<FileFormat>,
    role: Role,
    threads: usize,
    mut each: impl FnMut(&Layout, u64, Result<Record, String>) -> Result<(), E>,
) -> Result<Summary, ReadError<E>> {
    let compressed = source.is_compressed();
    let mut cutter = Cutter::new(source, Framing::Lines);
    let begun = match cutter.peek(SAMPLE_BYTES) {
        Ok(sample) => recognise(sample, format, role).map_err(CutError::Framing),
        Err(error) => Err(error),
    };
    let layout = match begun {
        Ok(layout) => layout,
        Err(error) => return Err(failure(file, compressed, cutter.line(), error, finish(cutter))),
    };
    cutter.set_framing(layout.framing);
    let threads = threads.max(1);
    let (refused, cut, end) = std::thread::scope(|scope| {
        let (mut senders, mut receivers) = (Vec::new(), Vec::new());
        for _ in 0..threads {
            let (blocks, taken) = sync_channel(WAITING_BLOCKS);
            let (parsed, results) = sync_channel(WAITING_BLOCKS);
            let layout = &layout;
            scope.spawn(move || parse_blocks(layout, role, &taken, &parsed));
            senders.push(blocks);
            receivers.push(results);
        }
        let reader = scope.spawn(move || cut_blocks(cutter, senders));
        let refused = take_in_turn(&receivers, |line, record| each(&layout, line, record));
        // A reader that waits for a taker sees that there is none any more.
        drop(receivers);
        let (cut, end) = reader.join().expect("the reader does not panic");
        (refused, cut, end)
    });
    let found = end.as_ref().ok().map(|(_, digest)| *digest);
    if let Err(error) = refused {
        return Err(ReadError::Refused { error, found });
    }
    if let Some((line, error)) = cut {
        return Err(failure(file, compressed, line, error, found));
    }
    let (bytes, sha256) = end.map_err(|source| ReadError::Io {
        file: file.to_owned(),
        line: 1,
        source,
        compressed,
        found: None,
    })?;
    Ok(Summary { layout, bytes, sha256 })
}

fn failure<E>(
    file: &str,
    compressed: bool,
    line: u64,
    error: CutError,
    found: Option<Digest>,
) -> ReadError<E> {
    let file = file.to_owned();
    match error {
        CutError::Io(source) => ReadError::Io { file, line, source, compressed, found },
        CutError::Framing(reason) => ReadError::Format { file, line, reason, found },
    }
}

fn finish(cutter: Cutter<Source>) -> Option<Digest> {
    cutter.into_inner().finish().ok().map(|(_, digest)| digest)
}

type Cut = (Option<(u64, CutError)>, io::Result<(u64, Digest)>);

/// Deals blocks to the parsers in turn until the file ends or nobody takes them; the rest is only hashed.
fn cut_blocks(mut cutter: Cutter<Source>, parsers: Vec<SyncSender<Block>>) -> Cut {
    let mut turns = parsers.iter().cycle();
    let failed = loop {
        match cutter.next_block() {
            Ok(Some(block)) => {
                let parser = turns.next().expect("there is at least one parser");
                if parser.send(block).is_err() {
                    break None;
                }
            }
            Ok(None) => break None,
            Err(error) => break Some((cutter.line(), error)),
        }
    };
    // What was cut must arrive before the rest is hashed.
    drop(parsers);
    (failed, cutter.into_inner().finish())
}

type Parsed = Vec<(u64, Result<Record, String>)>;

fn parse_blocks(layout: &Layout, role: Role, blocks: &Receiver<Block>, parsed: &SyncSender<Parsed>) {
    for block in blocks {
        let mut records = Vec::with_capacity(block.spans.len());
        for span in &block.spans {
            let record = if span.too_long {
                Err(format!("the line is longer than {} MiB", RECORD_BYTES >> 20))
            } else {
                match parse(layout, role, span.line, &block.bytes[span.start..span.end]) {
                    Ok(None) => continue,
                    Ok(Some(record)) => Ok(record),
                    Err(reason) => Err(reason),
                }
            };
            records.push((span.line, record));
        }
        if parsed.send(records).is_err() {
            return;
        }
    }
}

/// Blocks were dealt in turn, so taking in turn keeps their order; the first that has none is behind the last.
fn take_in_turn<E>(
    parsers: &[Receiver<Parsed>],
    mut each: impl FnMut(u64, Result<Record, String>) -> Result<(), E>,
) -> Result<(), E> {
    for parser in parsers.iter().cycle() {
        let Ok(records) = parser.recv() else { break };
        for (line, record) in records {
            each(line, record)?;
        }
    }
    Ok(())
}
