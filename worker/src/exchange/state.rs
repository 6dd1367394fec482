//! A member's whole state for those that join or catch up.

use super::cohort::Shared;
use super::error::ExchangeError;
use super::frame::{self, Outgoing, Part};
use super::gather::{chunks, collect};
use super::registry::{Hub, NOT_JOINED, refusal};
use bytes::Bytes;
use futures::stream;
use retort_common::proto;
use std::time::Duration;
use tonic::body::Body;
use tonic::{Code, Status};

/// The published state as a response; it is waited for for a while.
pub async fn body(hub: &Hub, hold: Duration) -> Result<Body, Status> {
    let mut published = hub.state.subscribe();
    let ended = || hub.has_ended().is_some();
    let wait = published.wait_for(|state| state.is_some() || ended());
    let state = match tokio::time::timeout(hold, wait).await {
        Ok(Ok(state)) => state.clone(),
        Ok(Err(_)) | Err(_) => None,
    };
    let Some(state) = state else {
        return match hub.has_ended() {
            Some(_) => Err(hub.until_ended().await),
            None => Err(refusal(Code::Unavailable, NOT_JOINED, "no state has been published yet")),
        };
    };
    let open = proto::StateOpen { bytes: state.len() as u64 };
    let open = proto::StateResponse { open: Some(open), ..Default::default() };
    let first = [Part::Frame(frame::message(&open))].into_iter();
    let last = [Part::Frame(frame::all_well())].into_iter();
    Ok(Outgoing::body(stream::iter(first.chain(chunks(&state).map(Part::Chunk)).chain(last))))
}

/// Fetches a member's state.
pub async fn fetch(shared: &Shared, from_rank: usize, limit_bytes: usize) -> Result<Bytes, ExchangeError> {
    let Some(link) = shared.links.get(from_rank).and_then(Option::as_ref) else {
        return Err(ExchangeError::Misuse(format!("rank {from_rank} is no peer to fetch a state from")));
    };
    let request = || {
        let request = proto::StateRequest { label: link.label() };
        stream::iter([Part::Frame(frame::message(&request))])
    };
    let mut reader = link.call_when_ready("State", request).await?;
    let open = match link.within("state", reader.small::<proto::StateResponse>()).await? {
        Ok(response) => response.and_then(|response| response.open),
        Err(error) => return Err(link.blame(error).await),
    };
    let peer = link.peer.clone();
    let Some(proto::StateOpen { bytes }) = open else {
        return Err(ExchangeError::Malformed {
            peer,
            what: "its state does not begin with a size".to_owned(),
        });
    };
    let limit = limit_bytes as u64;
    if bytes > limit {
        return Err(ExchangeError::Length { peer, what: "bytes of state", expected: limit, found: bytes });
    }
    collect(link, &mut reader, bytes).await
}
