//! The bytes of a file anywhere, plain, gzipped or zstd-compressed, hashed while they are read.

use bytes::{Buf, Bytes};
use flate2::bufread::MultiGzDecoder;
use futures::StreamExt;
use retort_common::ids::{Digest, Hasher};
use retort_common::store::{ByteStream, Location, StoreError};
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::runtime::Handle;

/// How every gzip file begins.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
/// How every zstd frame begins.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Bytes read at once.
const BUFFER_BYTES: usize = 1 << 20;

/// A file that is being read.
pub struct Source {
    /// The uncompressed bytes.
    reader: Box<dyn Read + Send>,
    raw: Arc<Mutex<Raw>>,
    compressed: bool,
}

/// The file itself, shared so that what a decompressor leaves unread can be hashed too.
struct Raw {
    reader: Box<dyn Read + Send>,
    hasher: Hasher,
    bytes: u64,
}

impl Raw {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        self.bytes += read as u64;
        Ok(read)
    }
}

struct Shared(Arc<Mutex<Raw>>);

impl Read for Shared {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).read(buffer)
    }
}

impl Source {
    /// Opens a file; none where there is none.
    pub fn open(location: &Location, runtime: &Handle) -> io::Result<Option<Self>> {
        let raw: Box<dyn Read + Send> = match location.local_path() {
            Some(path) => match File::open(path) {
                Ok(file) => Box::new(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            },
            None => match runtime.block_on(location.stream()).map_err(io::Error::other)? {
                Some(stream) => Box::new(Remote { stream, runtime: runtime.clone(), chunk: Bytes::new() }),
                None => return Ok(None),
            },
        };
        Self::over(raw).map(Some)
    }

    /// Reads what another reader gives.
    pub fn over(raw: Box<dyn Read + Send>) -> io::Result<Self> {
        let raw = Arc::new(Mutex::new(Raw { reader: raw, hasher: Hasher::default(), bytes: 0 }));
        let mut buffered = BufReader::with_capacity(BUFFER_BYTES, Shared(Arc::clone(&raw)));
        let start = buffered.fill_buf()?;
        let (gzipped, zstd) = (start.starts_with(&GZIP_MAGIC), start.starts_with(&ZSTD_MAGIC));
        let reader: Box<dyn Read + Send> = if gzipped {
            Box::new(MultiGzDecoder::new(buffered))
        } else if zstd {
            Box::new(Zstd { source: Some(buffered), frame: None })
        } else {
            Box::new(buffered)
        };
        Ok(Self { reader, raw, compressed: gzipped || zstd })
    }

    /// Whether the bytes are decompressed on the way.
    pub fn is_compressed(&self) -> bool {
        self.compressed
    }

    /// Reads the rest of the file without looking at it; its size and digest.
    pub fn finish(self) -> io::Result<(u64, Digest)> {
        drop(self.reader);
        let mut raw = self.raw.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = vec![0; BUFFER_BYTES];
        while raw.read(&mut buffer)? > 0 {}
        Ok((raw.bytes, raw.hasher.clone().finish()))
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buffer)
    }
}

/// An object of a store. Its errors keep their cause, which tells whether trying again may help.
struct Remote {
    stream: ByteStream,
    runtime: Handle,
    chunk: Bytes,
}

impl Read for Remote {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.runtime.block_on(self.stream.next()) {
                Some(chunk) => self.chunk = chunk.map_err(io::Error::other)?,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.chunk.len());
        self.chunk.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

/// The store's error behind an error of reading.
pub fn store_error(error: &io::Error) -> Option<&StoreError> {
    error.get_ref()?.downcast_ref()
}

/// Zstd frames one after the other, as `zstd -T0` and concatenation make them.
struct Zstd<R: BufRead> {
    source: Option<R>,
    frame: Option<StreamingDecoder<R, FrameDecoder>>,
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if let Some(frame) = &mut self.frame {
                let read = frame.read(buffer)?;
                if read > 0 {
                    return Ok(read);
                }
                self.source = self.frame.take().map(StreamingDecoder::into_inner);
            }
            let Some(mut source) = self.source.take() else { return Ok(0) };
            if source.fill_buf()?.is_empty() {
                return Ok(0);
            }
            self.frame = Some(StreamingDecoder::new(source).map_err(io::Error::other)?);
        }
    }
}
