//! Bytes to blocks of whole records, with the line that each begins at.

use super::fields::csv_record_end;
use super::recognise::Framing;
use memchr::{memchr, memchr_iter, memchr2, memrchr};
use std::io::{self, Read};

/// Bytes in a block: enough to be worth handing over to another thread.
const BLOCK_BYTES: usize = 1 << 20;
/// Longest record; longer lines are refused before memory is taken for them.
pub const RECORD_BYTES: usize = 16 << 20;
/// A byte-order mark, which some editors put before UTF-8.
const BOM: &[u8] = b"\xef\xbb\xbf";

/// A record within a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: usize,
    /// Byte after the last, line end left out.
    pub end: usize,
    /// Line it begins at, from 1.
    pub line: u64,
    /// Whether it is longer than [`RECORD_BYTES`]; its bytes are gone then.
    pub too_long: bool,
}

/// Some whole records.
#[derive(Debug, Default)]
pub struct Block {
    /// Their bytes.
    pub bytes: Vec<u8>,
    /// The records in order; empty ones are left out.
    pub spans: Vec<Span>,
}

/// Why a file cannot be cut any further.
#[derive(Debug, thiserror::Error)]
pub enum CutError {
    /// Reading or decompressing failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The file is not framed as it must be.
    #[error("{0}")]
    Framing(String),
}

/// Cuts what a reader gives into blocks.
pub struct Cutter<R> {
    reader: R,
    framing: Framing,
    /// Bytes read and not yet handed on.
    pending: Vec<u8>,
    ended: bool,
    begun: bool,
    /// Line of the first pending byte.
    line: u64,
    /// Whether the pending bytes belong to a line that is too long.
    skipping: bool,
    array: Array,
}

/// Where in a JSON array the pending bytes begin.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Array {
    /// Before the bracket that opens it.
    Before,
    /// An element or the end is next.
    First,
    /// A comma or the end is next.
    After,
    /// An element is next.
    Next,
    /// Behind the bracket that closes it.
    Closed,
}

impl<R: Read> Cutter<R> {
    /// Cuts by a framing.
    pub fn new(reader: R, framing: Framing) -> Self {
        let (pending, array) = (Vec::new(), Array::Before);
        Self { reader, framing, pending, ended: false, begun: false, line: 1, skipping: false, array }
    }

    /// The line that is read now, for errors.
    pub fn line(&self) -> u64 {
        self.line
    }

    /// The reader.
    pub fn into_inner(self) -> R {
        self.reader
    }

    /// The first bytes of the file, without cutting them off.
    pub fn peek(&mut self, bytes: usize) -> Result<&[u8], CutError> {
        while self.pending.len() < bytes && !self.ended {
            self.fill()?;
        }
        Ok(&self.pending)
    }

    /// Cuts by another framing from now on; nothing may have been cut yet.
    pub fn set_framing(&mut self, framing: Framing) {
        self.framing = framing;
    }

    fn fill(&mut self) -> Result<(), CutError> {
        let before = self.pending.len();
        let read = self.reader.by_ref().take(BLOCK_BYTES as u64).read_to_end(&mut self.pending);
        match read {
            Ok(0) => self.ended = true,
            Ok(_) => {}
            Err(error) => {
                // The line of the damage is that of the last byte that could be read.
                self.line += memchr_iter(b'\n', &self.pending).count() as u64;
                return Err(error.into());
            }
        }
        if !self.begun && (self.pending.len() >= BOM.len() || self.ended) {
            self.begun = true;
            if before < BOM.len() && self.pending.starts_with(BOM) {
                self.pending.drain(..BOM.len());
            }
        }
        Ok(())
    }

    /// The next records; none at the end of the file.
    pub fn next_block(&mut self) -> Result<Option<Block>, CutError> {
        let mut scanned = 0;
        loop {
            if !self.ended && self.pending.len() < scanned + BLOCK_BYTES {
                self.fill()?;
            }
            let mut spans = Vec::new();
            let cut = match self.framing {
                Framing::Lines => self.cut_lines(&mut spans),
                Framing::Csv => self.cut_csv(&mut spans)?,
                Framing::Array => self.cut_array(&mut spans)?,
            };
            scanned = self.pending.len();
            if cut > 0 {
                let rest = self.pending.split_off(cut);
                let bytes = std::mem::replace(&mut self.pending, rest);
                if spans.is_empty() {
                    scanned = 0;
                    continue;
                }
                return Ok(Some(Block { bytes, spans }));
            }
            if self.ended {
                return self.end();
            }
            if self.pending.len() > RECORD_BYTES {
                if self.framing != Framing::Lines {
                    return Err(CutError::Framing(self.unclosed()));
                }
                if let Some(block) = self.skip_line() {
                    return Ok(Some(block));
                }
                scanned = 0;
            }
        }
    }

    fn unclosed(&self) -> String {
        let what = match self.framing {
            Framing::Csv => "a quote of this record is never closed",
            _ => "this element is never closed",
        };
        format!("the record is longer than {} MiB, or {what}", RECORD_BYTES >> 20)
    }

    /// Forgets the bytes of a line that is too long; reports the line once.
    fn skip_line(&mut self) -> Option<Block> {
        self.pending.clear();
        let first = !std::mem::replace(&mut self.skipping, true);
        let span = Span { start: 0, end: 0, line: self.line, too_long: true };
        first.then(|| Block { bytes: Vec::new(), spans: vec![span] })
    }

    /// What must hold where nothing is left to read.
    fn end(&mut self) -> Result<Option<Block>, CutError> {
        let blank = self.pending.iter().all(u8::is_ascii_whitespace);
        match self.framing {
            Framing::Array if self.array == Array::Before && blank => Ok(None),
            Framing::Array if self.array != Array::Closed => Err(CutError::Framing(
                "the JSON array ends before it is closed; the file is cut short".to_owned(),
            )),
            Framing::Csv if !blank => Err(CutError::Framing(
                "a column begins with a quote that nothing closes; close it, or double quotes within columns"
                    .to_owned(),
            )),
            _ => Ok(None),
        }
    }

    /// Up to the last line feed, or to the end of the file.
    fn cut_lines(&mut self, spans: &mut Vec<Span>) -> usize {
        let cut = match memrchr(b'\n', &self.pending) {
            _ if self.ended => self.pending.len(),
            Some(last) => last + 1,
            None => 0,
        };
        let mut start = 0;
        while start < cut {
            let end = memchr(b'\n', &self.pending[start..cut]).map_or(cut, |offset| start + offset);
            if self.skipping {
                self.skipping = false;
            } else if end - start > RECORD_BYTES {
                spans.push(Span { start: 0, end: 0, line: self.line, too_long: true });
            } else {
                spans.extend(span(&self.pending, start, end, self.line));
            }
            self.line += 1;
            start = end + 1;
        }
        cut
    }

    fn cut_csv(&mut self, spans: &mut Vec<Span>) -> Result<usize, CutError> {
        let mut start = 0;
        while start < self.pending.len() {
            let Some(length) = csv_record_end(&self.pending[start..], b'\t', self.ended) else { break };
            if length > RECORD_BYTES {
                return Err(CutError::Framing(self.unclosed()));
            }
            let end = start + length;
            spans.extend(span(&self.pending, start, end, self.line));
            self.line += 1 + memchr_iter(b'\n', &self.pending[start..end]).count() as u64;
            start = (end + 1).min(self.pending.len());
        }
        Ok(start)
    }

    fn cut_array(&mut self, spans: &mut Vec<Span>) -> Result<usize, CutError> {
        let mut at = 0;
        while let Some(byte) = self.pending.get(at).copied() {
            if byte.is_ascii_whitespace() {
                self.line += u64::from(byte == b'\n');
                at += 1;
                continue;
            }
            let next = match (self.array, byte) {
                (Array::Before, b'[') => Array::First,
                (Array::First | Array::After, b']') => Array::Closed,
                (Array::After, b',') => Array::Next,
                (Array::First | Array::Next, b'{') => {
                    let Some(length) = element_end(&self.pending[at..]) else { return Ok(at) };
                    spans.push(Span { start: at, end: at + length, line: self.line, too_long: false });
                    self.line += memchr_iter(b'\n', &self.pending[at..at + length]).count() as u64;
                    at += length;
                    self.array = Array::After;
                    continue;
                }
                _ => {
                    let wanted = match self.array {
                        Array::Before => "the [ of an array",
                        Array::First => "an object or ]",
                        Array::After => "a comma or ]",
                        Array::Next => "an object",
                        Array::Closed => "nothing more",
                    };
                    let found = char::from(byte);
                    return Err(CutError::Framing(format!("{found:?} stands where {wanted} is expected")));
                }
            };
            self.array = next;
            at += 1;
        }
        Ok(at)
    }
}

/// A line without its end, if anything is left of it.
fn span(bytes: &[u8], start: usize, mut end: usize, line: u64) -> Option<Span> {
    while end > start && bytes[end - 1] == b'\r' {
        end -= 1;
    }
    (end > start).then_some(Span { start, end, line, too_long: false })
}

/// The length of the JSON object that the bytes begin with, if it ends in them. Its inside is the parser's business.
fn element_end(bytes: &[u8]) -> Option<usize> {
    let (mut depth, mut at) = (0usize, 0);
    while at < bytes.len() {
        match bytes[at] {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            b'"' => {
                at += 1;
                loop {
                    at += memchr2(b'"', b'\\', bytes.get(at..)?)?;
                    if bytes[at] == b'"' {
                        break;
                    }
                    at += 2;
                }
            }
            _ => {}
        }
        at += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Gives at most `step` bytes at a time.
    struct Slow<'a>(&'a [u8], usize);

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(buffer.len()).min(self.0.len());
            buffer[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    fn cut(bytes: &[u8], framing: Framing) -> Result<Vec<(u64, Vec<u8>)>, String> {
        let mut cutter = Cutter::new(Slow(bytes, 3), framing);
        let mut records = Vec::new();
        while let Some(block) = cutter.next_block().map_err(|error| format!("{}: {error}", cutter.line()))? {
            for span in &block.spans {
                records.push((span.line, block.bytes[span.start..span.end].to_vec()));
            }
        }
        Ok(records)
    }

    #[test]
    fn records_are_cut_with_their_lines() {
        let check = |text: &str, framing, expected: Result<&[(u64, &str)], &str>| {
            let found = cut(text.as_bytes(), framing);
            match (&found, expected) {
                (Ok(found), Ok(expected)) => {
                    let found: Vec<_> = found
                        .iter()
                        .map(|(line, bytes)| (*line, std::str::from_utf8(bytes).unwrap()))
                        .collect();
                    assert_eq!(found, expected, "{text:?}");
                }
                (Err(found), Err(expected)) => assert!(found.contains(expected), "{text:?}: {found}"),
                _ => panic!("{text:?}: {found:?} instead of {expected:?}"),
            }
        };
        check("", Framing::Lines, Ok(&[]));
        check("a\nb\r\n\n\r\nc", Framing::Lines, Ok(&[(1, "a"), (2, "b"), (5, "c")]));
        check("\u{feff}a\n\u{feff}b", Framing::Lines, Ok(&[(1, "a"), (2, "\u{feff}b")]));
        check("1\t\"a\nb\"\tt\r\n2\tc\td\n", Framing::Csv, Ok(&[(1, "1\t\"a\nb\"\tt"), (3, "2\tc\td")]));
        check("1\ta\n2\t\"b\n", Framing::Csv, Err("2: a column begins with a quote"));
        check("[]", Framing::Array, Ok(&[]));
        check(
            " \n[ {\"a\": \"}\\\"]\"},\n{\"b\":\n[{}]} ]\n",
            Framing::Array,
            Ok(&[(2, "{\"a\": \"}\\\"]\"}"), (3, "{\"b\":\n[{}]}")]),
        );
        check("[{},\n]", Framing::Array, Err("2: ']' stands where an object is expected"));
        check("[{}{}]", Framing::Array, Err("'{' stands where a comma or ]"));
        check("[{}]\nx", Framing::Array, Err("2: 'x' stands where nothing more"));
        check("[{},\n{\"a\": 1", Framing::Array, Err("2: the JSON array ends before it is closed"));
        check("[1]", Framing::Array, Err("'1' stands where an object or ]"));
    }

    #[test]
    fn lines_beyond_the_limit_are_reported_and_skipped() {
        let mut text = vec![b'x'; RECORD_BYTES * 2 + 5];
        text.splice(0..0, *b"a\n");
        text.extend(b"\nb\n");
        let mut cutter = Cutter::new(text.as_slice(), Framing::Lines);
        let mut spans = Vec::new();
        while let Some(block) = cutter.next_block().unwrap() {
            assert!(block.bytes.len() < RECORD_BYTES + 2 * BLOCK_BYTES);
            spans.extend(block.spans.iter().map(|span| (span.line, span.too_long)));
        }
        assert_eq!(spans, [(1, false), (2, true), (3, false)]);
        let open = [b"1\t\"".as_slice(), &vec![b'x'; RECORD_BYTES * 2]].concat();
        let error = Cutter::new(open.as_slice(), Framing::Csv).next_block().unwrap_err().to_string();
        assert!(error.contains("never closed"), "{error}");
    }

    proptest! {
        #[test]
        fn whatever_the_bytes_nothing_is_lost_between_lines(bytes: Vec<u8>) {
            let text: Vec<u8> = bytes.into_iter().map(|byte| if byte % 7 == 0 { b'\n' } else { byte }).collect();
            let content = text.strip_prefix(BOM).unwrap_or(&text);
            let trim = |line: &[u8]| {
                let end = line.iter().rposition(|byte| *byte != b'\r').map_or(0, |last| last + 1);
                line[..end].to_vec()
            };
            let lines: Vec<_> = content
                .split(|byte| *byte == b'\n')
                .zip(1..)
                .map(|(line, number)| (number, trim(line)))
                .filter(|(_, line)| !line.is_empty())
                .collect();
            prop_assert_eq!(cut(&text, Framing::Lines).unwrap(), lines);
        }
    }
}
