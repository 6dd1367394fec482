//! gRPC messages straight in HTTP/2 frames, so that a payload is neither copied into a message nor out of one.
//!
//! A message is a 5-byte head (compressed or not, length) and protobuf. A chunk's fields stand in the order offset,
//! node, check, data; the head and the first fields go out as one small frame, the payload as a frame of its own that
//! refers to the sender's buffer. On the way in, a payload that arrived in one frame is a slice of that frame.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::Stream;
use http::HeaderMap;
use http_body::{Body as _, Frame};
use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::{Code, Status};

/// Largest message that is not a chunk.
pub const MAX_SMALL_BYTES: usize = 64 << 10;
/// Most bytes of a chunk's payload.
pub const MAX_CHUNK_BYTES: usize = 1 << 20;

const HEAD_BYTES: usize = 5;
/// Head, three fixed fields with their tags, the payload's tag and length.
const PREFIX_BYTES: usize = HEAD_BYTES + 9 + 5 + 5 + 1 + 5;
const OFFSET_TAG: u8 = 2 << 3 | 1;
const NODE_TAG: u8 = 3 << 3 | 5;
const CHECK_TAG: u8 = 4 << 3 | 5;
const DATA_TAG: u8 = 5 << 3 | 2;

/// A piece of a tensor or of bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Place of the first value or byte.
    pub offset: u64,
    /// Which of the sender's nodes.
    pub node: u32,
    /// CRC-32 of the data.
    pub check: u32,
    /// The payload.
    pub data: Bytes,
}

impl Chunk {
    /// A chunk with its checksum.
    pub fn new(offset: u64, node: u32, data: Bytes) -> Self {
        Self { offset, node, check: super::wire::checksum(&data), data }
    }

    /// Whether the payload is what was sent.
    pub fn is_intact(&self) -> bool {
        super::wire::checksum(&self.data) == self.check
    }

    /// What goes out: the prefix, and the payload untouched.
    pub fn frames(self) -> [Frame<Bytes>; 2] {
        let mut fields = BytesMut::with_capacity(PREFIX_BYTES);
        fields.put_bytes(0, HEAD_BYTES);
        fields.put_u8(OFFSET_TAG);
        fields.put_u64_le(self.offset);
        fields.put_u8(NODE_TAG);
        fields.put_u32_le(self.node);
        fields.put_u8(CHECK_TAG);
        fields.put_u32_le(self.check);
        fields.put_u8(DATA_TAG);
        prost::encoding::encode_varint(self.data.len() as u64, &mut fields);
        let length = fields.len() - HEAD_BYTES + self.data.len();
        fields[1..HEAD_BYTES].copy_from_slice(&(length as u32).to_be_bytes());
        [Frame::data(fields.freeze()), Frame::data(self.data)]
    }
}

/// A small message as a frame.
pub fn message(message: &impl prost::Message) -> Frame<Bytes> {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(HEAD_BYTES + length);
    bytes.put_u8(0);
    bytes.put_u32(length as u32);
    message.encode(&mut bytes).expect("there is room for the message");
    Frame::data(bytes.freeze())
}

/// What ends a response that went well.
pub fn all_well() -> Frame<Bytes> {
    status_frame(Status::new(Code::Ok, ""))
}

/// What ends a response.
pub fn status_frame(status: Status) -> Frame<Bytes> {
    let mut trailers = HeaderMap::new();
    // A status whose text cannot be a header still has its code.
    if status.add_header(&mut trailers).is_err() {
        trailers.insert("grpc-status", http::HeaderValue::from_static("13"));
    }
    Frame::trailers(trailers)
}

/// A body of frames from a stream; chunks become two frames each.
pub struct Outgoing<S> {
    stream: S,
    ready: VecDeque<Frame<Bytes>>,
}

impl<S: Stream<Item = Part> + Unpin + Send + 'static> Outgoing<S> {
    /// A body; nothing of the stream is made before it is asked for.
    pub fn body(stream: S) -> Body {
        Body::new(Self { stream, ready: VecDeque::with_capacity(2) })
    }
}

/// What a body is made of.
pub enum Part {
    /// A payload.
    Chunk(Chunk),
    /// A small message or the trailers.
    Frame(Frame<Bytes>),
    /// The sender gives up; the other side sees a reset.
    Broken(Status),
}

impl<S: Stream<Item = Part> + Unpin> http_body::Body for Outgoing<S> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(frame) = self.ready.pop_front() {
            return Poll::Ready(Some(Ok(frame)));
        }
        Pin::new(&mut self.stream).poll_next(cx).map(|part| {
            part.map(|part| match part {
                Part::Frame(frame) => Ok(frame),
                Part::Broken(status) => Err(status),
                Part::Chunk(chunk) => {
                    let [prefix, payload] = chunk.frames();
                    self.ready.push_back(payload);
                    Ok(prefix)
                }
            })
        })
    }
}

/// Why a message could not be read.
#[derive(Debug)]
pub enum ReadError {
    /// The call failed on its way, or the other side ended it with this.
    Status(Status),
    /// Bytes that are no such message.
    Malformed(&'static str),
}

impl From<ReadError> for Status {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Status(status) => status,
            ReadError::Malformed(what) => Status::invalid_argument(what),
        }
    }
}

/// Reads messages from a request's or a response's body.
pub struct Reader {
    body: Body,
    pending: Bytes,
    /// A response ends with a status; a request just ends.
    response: bool,
}

impl Reader {
    /// Reads a request.
    pub fn request(body: Body) -> Self {
        Self { body, pending: Bytes::new(), response: false }
    }

    /// Reads a response.
    pub fn response(body: Body) -> Self {
        Self { body, pending: Bytes::new(), response: true }
    }

    /// Waits for bytes; false at the end.
    async fn fill(&mut self) -> Result<bool, ReadError> {
        while self.pending.is_empty() {
            let frame = std::future::poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx)).await;
            let Some(frame) = frame else {
                let cut = ReadError::Status(Status::unavailable("the stream ended without a status"));
                return if self.response { Err(cut) } else { Ok(false) };
            };
            match frame.map_err(ReadError::Status)?.into_data() {
                Ok(data) => self.pending = data,
                Err(frame) => {
                    let status = frame.trailers_ref().and_then(Status::from_header_map);
                    return match status {
                        Some(status) if status.code() != Code::Ok => Err(ReadError::Status(status)),
                        _ => Ok(false),
                    };
                }
            }
        }
        Ok(true)
    }

    async fn more(&mut self) -> Result<(), ReadError> {
        if self.fill().await? { Ok(()) } else { Err(ReadError::Malformed("a message is cut off")) }
    }

    async fn array<const N: usize>(&mut self) -> Result<[u8; N], ReadError> {
        let mut array = [0; N];
        let mut filled = 0;
        while filled < N {
            self.more().await?;
            let take = self.pending.len().min(N - filled);
            self.pending.copy_to_slice(&mut array[filled..filled + take]);
            filled += take;
        }
        Ok(array)
    }

    async fn bytes(&mut self, length: usize) -> Result<Bytes, ReadError> {
        if self.pending.is_empty() && length > 0 {
            self.more().await?;
        }
        if self.pending.len() >= length {
            return Ok(self.pending.split_to(length));
        }
        let mut bytes = BytesMut::with_capacity(length);
        while bytes.len() < length {
            self.more().await?;
            let take = self.pending.len().min(length - bytes.len());
            bytes.put_slice(&self.pending.split_to(take));
        }
        Ok(bytes.freeze())
    }

    /// The head of the next message: its length. Nothing at the end.
    async fn head(&mut self) -> Result<Option<usize>, ReadError> {
        if !self.fill().await? {
            return Ok(None);
        }
        let [compressed, length @ ..] = self.array::<HEAD_BYTES>().await?;
        if compressed != 0 {
            return Err(ReadError::Malformed("messages must not be compressed"));
        }
        Ok(Some(u32::from_be_bytes(length) as usize))
    }

    /// The next message, which is a small one. Nothing at the end.
    pub async fn small<M: prost::Message + Default>(&mut self) -> Result<Option<M>, ReadError> {
        let Some(length) = self.head().await? else { return Ok(None) };
        if length > MAX_SMALL_BYTES {
            return Err(ReadError::Malformed("a message is too long"));
        }
        let bytes = self.bytes(length).await?;
        M::decode(bytes).map(Some).map_err(|_| ReadError::Malformed("a message is not what it must be"))
    }

    /// The next message, which is a chunk. Nothing at the end.
    pub async fn chunk(&mut self) -> Result<Option<Chunk>, ReadError> {
        let Some(mut left) = self.head().await? else { return Ok(None) };
        if left > MAX_CHUNK_BYTES + PREFIX_BYTES {
            return Err(ReadError::Malformed("a chunk is too long"));
        }
        let mut chunk = Chunk { offset: 0, node: 0, check: 0, data: Bytes::new() };
        let mut spend = |bytes: usize| {
            left = left.checked_sub(bytes).ok_or(ReadError::Malformed("a chunk's fields exceed it"))?;
            Ok::<usize, ReadError>(left)
        };
        // Zeros may be left out, as protobuf does.
        loop {
            spend(1)?;
            match self.array::<1>().await?[0] {
                OFFSET_TAG => {
                    spend(8)?;
                    chunk.offset = u64::from_le_bytes(self.array().await?);
                }
                NODE_TAG => {
                    spend(4)?;
                    chunk.node = u32::from_le_bytes(self.array().await?);
                }
                CHECK_TAG => {
                    spend(4)?;
                    chunk.check = u32::from_le_bytes(self.array().await?);
                }
                DATA_TAG => break,
                _ => return Err(ReadError::Malformed("a chunk has an unknown field")),
            }
        }
        let mut length = 0usize;
        for shift in 0..4 {
            let rest = spend(1)?;
            let [byte] = self.array::<1>().await?;
            length |= usize::from(byte & 0x7f) << (7 * shift);
            if byte < 0x80 {
                if length != rest {
                    return Err(ReadError::Malformed("a chunk's data must be its last field"));
                }
                chunk.data = self.bytes(length).await?;
                return Ok(Some(chunk));
            }
        }
        Err(ReadError::Malformed("a chunk's length is no number"))
    }
}
