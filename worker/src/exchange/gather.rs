//! All-gather: every member gives its bytes to every other.

use super::cohort::Shared;
use super::error::ExchangeError;
use super::frame::{self, Chunk, Part};
use super::link::Link;
use super::registry::GatherIn;
use bytes::{Bytes, BytesMut};
use futures::future::{try_join, try_join_all};
use futures::stream;
use retort_common::proto;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tonic::Status;

/// Most bytes that one member may give.
pub const MAX_BYTES: u64 = 1 << 30;
/// Bytes of a chunk.
pub const CHUNK_BYTES: usize = 256 << 10;
/// Memory that is taken for a contribution before any of it has come.
const MAX_AHEAD_BYTES: usize = 4 << 20;

type Tag = (u64, u32);

/// One all-gather.
pub async fn run(shared: &Shared, tag: Tag, mine: Bytes) -> Result<Vec<Bytes>, ExchangeError> {
    let mut turn = shared.gathers.lock().await;
    turn.begin(tag)?;
    if mine.len() as u64 > MAX_BYTES {
        let text = format!("{} bytes are more than a member may give, {MAX_BYTES}", mine.len());
        return Err(ExchangeError::Misuse(text));
    }
    let begun = Instant::now();
    let chunks: Vec<Chunk> = chunks(&mine).collect();
    let sends = shared.links.iter().flatten().map(|link| send(link, tag, &mine, &chunks));
    let receives = turn.inboxes.iter_mut().zip(&shared.links).map(|(inbox, link)| {
        let mine = mine.clone();
        async move {
            match (inbox, link) {
                (Some(inbox), Some(link)) => receive(shared, link, inbox, tag).await,
                _ => Ok((mine, begun)),
            }
        }
    });
    let (_, gathered) = try_join(try_join_all(sends), try_join_all(receives)).await?;
    let last = gathered.iter().map(|(_, came)| *came).max().unwrap_or(begun);
    shared.note(begun, last - begun, Duration::ZERO);
    Ok(gathered.into_iter().map(|(bytes, _)| bytes).collect())
}

/// Bytes as chunks that refer to them.
pub fn chunks(bytes: &Bytes) -> impl Iterator<Item = Chunk> + Send + use<> {
    let bytes = bytes.clone();
    let starts = (0..bytes.len()).step_by(CHUNK_BYTES);
    starts.map(move |start| {
        let data = bytes.slice(start..bytes.len().min(start + CHUNK_BYTES));
        Chunk::new(start as u64, 0, data)
    })
}

async fn send(link: &Link, (step, round): Tag, mine: &Bytes, chunks: &[Chunk]) -> Result<(), ExchangeError> {
    let open = proto::GatherOpen { label: link.label(), step, round, bytes: mine.len() as u64 };
    let open = proto::GatherRequest { open: Some(open), ..Default::default() };
    let parts = chunks.iter().cloned().map(Part::Chunk).collect::<Vec<_>>();
    let mut reader = link
        .call("Gather", stream::iter([Part::Frame(frame::message(&open))].into_iter().chain(parts)))
        .await?;
    match link.within("receipt", reader.small::<proto::GatherResponse>()).await? {
        Ok(_) => Ok(()),
        Err(error) => Err(link.blame(error).await),
    }
}

async fn receive(
    shared: &Shared,
    link: &Link,
    inbox: &mut mpsc::Receiver<GatherIn>,
    tag: Tag,
) -> Result<(Bytes, Instant), ExchangeError> {
    let mut gather = shared.next(link, inbox, "contribution").await?;
    let came = Instant::now();
    let taken = take(link, &mut gather, tag).await;
    let answer = match &taken {
        Ok(_) => Ok(()),
        Err(error) => Err(Status::invalid_argument(error.to_string())),
    };
    // A peer that does not wait for the answer has gone, which the next exchange finds.
    let _ = gather.reply.send(answer);
    taken.map(|bytes| (bytes, came))
}

async fn take(link: &Link, gather: &mut GatherIn, tag: Tag) -> Result<Bytes, ExchangeError> {
    let peer = || link.peer.clone();
    let found = (gather.open.step, gather.open.round);
    if found != tag {
        let name = |(step, round): Tag| format!("step {step}, gather {round}");
        return Err(ExchangeError::OutOfStep { peer: peer(), expected: name(tag), found: name(found) });
    }
    let expected = gather.open.bytes;
    if expected > MAX_BYTES {
        return Err(ExchangeError::Length {
            peer: peer(),
            what: "bytes at once",
            expected: MAX_BYTES,
            found: expected,
        });
    }
    collect(link, &mut gather.reader, expected).await
}

/// Chunks that follow each other, as announced.
pub async fn collect(link: &Link, reader: &mut frame::Reader, expected: u64) -> Result<Bytes, ExchangeError> {
    let mut bytes = BytesMut::with_capacity(MAX_AHEAD_BYTES.min(expected as usize));
    loop {
        let chunk = match link.within("bytes", reader.chunk()).await? {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break,
            Err(error) => return Err(link.blame(error).await),
        };
        let (peer, offset) = (link.peer.clone(), chunk.offset);
        if offset != bytes.len() as u64 || chunk.data.is_empty() {
            let what = format!("bytes at {offset} where those at {} are due", bytes.len());
            return Err(ExchangeError::Malformed { peer, what });
        }
        let found = offset + chunk.data.len() as u64;
        if found > expected {
            return Err(ExchangeError::Length { peer, what: "bytes", expected, found });
        }
        if !chunk.is_intact() {
            return Err(ExchangeError::Checksum { peer, what: "bytes", offset });
        }
        bytes.extend_from_slice(&chunk.data);
    }
    let found = bytes.len() as u64;
    if found < expected {
        return Err(ExchangeError::Length { peer: link.peer.clone(), what: "bytes", expected, found });
    }
    Ok(bytes.freeze())
}
