//! The way to one peer: a channel, and a watch that tells when the peer is gone.

use super::error::ExchangeError;
use super::frame::{self, Outgoing, Part, ReadError, Reader};
use super::registry::{LEFT, NOT_JOINED, REFUSAL, STALE};
use super::service;
use futures::{Stream, stream};
use http::{Method, Request, Uri};
use retort_common::ids::WorkerId;
use retort_common::net;
use retort_common::proto;
use std::error::Error;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tonic::body::Body;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tower::{Service, ServiceExt};

/// Pause between two tries to reach a peer that has not been reached yet.
const DIAL_PAUSE: Duration = Duration::from_millis(50);

/// The way to one peer within a generation.
pub struct Link {
    pub peer: WorkerId,
    address: String,
    channel: Channel,
    label: proto::Label,
    standing: watch::Sender<Standing>,
    /// Silence after which the peer counts as lost.
    detection: Duration,
    /// Longest wait for a peer that lives.
    pub patience: Duration,
}

#[derive(Clone, Debug)]
enum Standing {
    Dialling,
    Up,
    Down(Down),
}

/// Why a peer is gone.
#[derive(Clone, Debug)]
enum Down {
    Unreachable(String),
    Late,
    Refused(String),
    Stale(String),
    Left(String),
}

impl Link {
    pub fn new(
        peer: WorkerId,
        address: String,
        channel: Channel,
        label: proto::Label,
        (detection, patience): (Duration, Duration),
    ) -> Self {
        let standing = watch::Sender::new(Standing::Dialling);
        Self { peer, address, channel, label, standing, detection, patience }
    }

    /// Who this worker is to the peer.
    pub fn label(&self) -> Option<proto::Label> {
        Some(self.label.clone())
    }

    /// Watches the peer until it is gone.
    pub async fn keep(&self) {
        let down = self.watch().await;
        tracing::debug!(peer = %self.peer, ?down, "the peer is gone");
        self.standing.send_replace(Standing::Down(down));
    }

    async fn watch(&self) -> Down {
        let begun = Instant::now();
        loop {
            let request = frame::message(&proto::AttendRequest { label: self.label() });
            let body = Outgoing::body(stream::iter([Part::Frame(request)]));
            // The peer holds a call for a detection before it says that it has not joined.
            let opened = tokio::time::timeout(4 * self.detection, self.open("Attend", body)).await;
            let status = match opened {
                Ok(Ok(mut reader)) => {
                    self.standing.send_replace(Standing::Up);
                    return match reader.small::<proto::AttendResponse>().await {
                        Ok(_) => Down::Left("it closed the watch".to_owned()),
                        Err(error) => self.down_of(&error.into()),
                    };
                }
                Ok(Err(status)) => status,
                Err(_) => return Down::Unreachable(format!("no answer for {:?}", 4 * self.detection)),
            };
            if word(&status) == Some(NOT_JOINED) {
                if begun.elapsed() > self.patience {
                    return Down::Late;
                }
            } else if is_transport(&status) && begun.elapsed() < self.detection {
                tokio::time::sleep(DIAL_PAUSE).await;
            } else {
                return self.down_of(&status);
            }
        }
    }

    fn down_of(&self, status: &Status) -> Down {
        let text = status.message().to_owned();
        match word(status) {
            Some(STALE) => Down::Stale(text),
            Some(LEFT) => Down::Left(text),
            _ if is_transport(status) => Down::Unreachable(net::describe(&self.address, status)),
            _ => Down::Refused(text),
        }
    }

    /// Waits until the peer has joined the generation.
    async fn up(&self) -> Result<(), ExchangeError> {
        let mut standing = self.standing.subscribe();
        let settled = standing.wait_for(|standing| !matches!(standing, Standing::Dialling)).await;
        match settled.as_deref() {
            Ok(Standing::Down(down)) => Err(self.error(down)),
            _ => Ok(()),
        }
    }

    /// Waits until the peer is gone.
    pub async fn down(&self) -> ExchangeError {
        let mut standing = self.standing.subscribe();
        let gone = standing.wait_for(|standing| matches!(standing, Standing::Down(_))).await;
        match gone.as_deref() {
            Ok(Standing::Down(down)) => self.error(down),
            _ => self.error(&Down::Left("the watch has ended".to_owned())),
        }
    }

    fn error(&self, down: &Down) -> ExchangeError {
        let peer = self.peer.clone();
        match down.clone() {
            Down::Unreachable(cause) => ExchangeError::Unreachable { peer, cause },
            Down::Late => {
                ExchangeError::TimedOut { peer, what: "sign of the generation", after: self.patience }
            }
            Down::Refused(reason) => ExchangeError::Refused { peer, reason },
            Down::Stale(reason) => ExchangeError::Stale { peer, reason },
            Down::Left(reason) => ExchangeError::Left { peer, reason },
        }
    }

    /// What a failed call or stream means. A stream that breaks says little by itself: the watch knows whether the peer
    /// died or went, and hears of it at about the same time.
    pub async fn blame(&self, error: ReadError) -> ExchangeError {
        let status = match error {
            ReadError::Malformed(what) => {
                return ExchangeError::Malformed { peer: self.peer.clone(), what: what.to_owned() };
            }
            ReadError::Status(status) => status,
        };
        if is_transport(&status)
            && let Ok(gone) = tokio::time::timeout(self.detection, self.down()).await
        {
            return gone;
        }
        self.error(&self.down_of(&status))
    }

    /// Calls a method once the peer is there.
    pub async fn call<S>(&self, method: &'static str, parts: S) -> Result<Reader, ExchangeError>
    where
        S: Stream<Item = Part> + Unpin + Send + 'static,
    {
        self.up().await?;
        match self.within("answer", self.open(method, Outgoing::body(parts))).await? {
            Ok(reader) => Ok(reader),
            Err(status) => Err(self.blame(ReadError::Status(status)).await),
        }
    }

    /// Calls a method that the peer may not be ready for; again and again until it is.
    pub async fn call_when_ready<S>(
        &self,
        method: &'static str,
        parts: impl Fn() -> S,
    ) -> Result<Reader, ExchangeError>
    where
        S: Stream<Item = Part> + Unpin + Send + 'static,
    {
        self.up().await?;
        let begun = Instant::now();
        loop {
            match self.within("answer", self.open(method, Outgoing::body(parts()))).await? {
                Ok(reader) => return Ok(reader),
                Err(status) if word(&status) == Some(NOT_JOINED) && begun.elapsed() < self.patience => {}
                Err(status) => return Err(self.blame(ReadError::Status(status)).await),
            }
        }
    }

    /// Waits for a peer that lives, but not for ever.
    pub async fn within<T>(
        &self,
        what: &'static str,
        wait: impl Future<Output = T>,
    ) -> Result<T, ExchangeError> {
        let peer = || self.peer.clone();
        let late = |_| ExchangeError::TimedOut { peer: peer(), what, after: self.patience };
        tokio::time::timeout(self.patience, wait).await.map_err(late)
    }

    async fn open(&self, method: &'static str, body: Body) -> Result<Reader, Status> {
        let path = format!("/{}/{method}", service::NAME);
        let uri: Uri = path.parse().map_err(|_| Status::internal("the method has no path"))?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(uri)
            .header(http::header::TE, "trailers")
            .header(http::header::CONTENT_TYPE, "application/grpc")
            .body(body)
            .map_err(|error| Status::internal(error.to_string()))?;
        let mut channel = self.channel.clone();
        let transport = |error: tonic::transport::Error| Status::from_error(Box::new(error));
        let response = channel.ready().await.map_err(transport)?.call(request).await.map_err(transport)?;
        if let Some(status) = Status::from_header_map(response.headers())
            && status.code() != Code::Ok
        {
            return Err(status);
        }
        if response.status() != http::StatusCode::OK {
            return Err(Status::unknown(format!("the peer answers with HTTP status {}", response.status())));
        }
        Ok(Reader::response(response.into_body()))
    }
}

/// The refusal for programs.
fn word(status: &Status) -> Option<&'static str> {
    let word = status.metadata().get(REFUSAL)?;
    [NOT_JOINED, STALE, LEFT].into_iter().find(|known| word.as_bytes() == known.as_bytes())
}

/// Whether a call failed on its way; what a peer says has no cause behind it.
fn is_transport(status: &Status) -> bool {
    status.source().is_some()
}
