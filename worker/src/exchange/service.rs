//! What peers call: requests are admitted and handed to the cohort that they are for.

use super::frame::{self, Outgoing, Part, Reader};
use super::registry::{Ended, GatherIn, REPLY_QUEUE, ReduceIn, Registry};
use super::state;
use futures::stream;
use http::{Request, Response};
use retort_common::proto;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::body::Body;

/// The service's name; calls are /NAME/METHOD.
pub const NAME: &str = "retort.v1.Exchange";

/// Serves the generations of a registry.
#[derive(Clone)]
pub struct Service {
    registry: Arc<Registry>,
}

impl Service {
    pub fn new(registry: Arc<Registry>) -> Self {
        Self { registry }
    }

    async fn answer(self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let (head, body) = request.into_parts();
        let reader = Reader::request(body);
        match head.uri.path().rsplit('/').next() {
            Some("Attend") => self.watch(reader).await,
            Some("Gather") => self.gather(reader).await,
            Some("Reduce") => self.reduce(reader).await,
            Some("State") => self.state(reader).await,
            _ => Err(Status::unimplemented("the exchange has no such method")),
        }
    }

    async fn watch(self, mut reader: Reader) -> Result<Response<Body>, Status> {
        let request: proto::AttendRequest = first(&mut reader).await?;
        let (hub, _) = self.registry.admit(request.label).await?;
        let end = async move { Part::Frame(frame::status_frame(hub.until_ended().await)) };
        Ok(response(Outgoing::body(stream::once(Box::pin(end)))))
    }

    async fn gather(self, mut reader: Reader) -> Result<Response<Body>, Status> {
        let request: proto::GatherRequest = first(&mut reader).await?;
        let mut open = request.open.ok_or_else(no_open)?;
        let (hub, rank) = self.registry.admit(open.label.take()).await?;
        let (reply, replied) = oneshot::channel();
        hub.deliver_gather(rank, GatherIn { open, reader, reply })?;
        match replied.await {
            Ok(outcome) => outcome?,
            Err(_) => return Err(gone(hub.has_ended())),
        }
        let parts = [Part::Frame(frame::message(&proto::GatherResponse {})), Part::Frame(frame::all_well())];
        Ok(response(Outgoing::body(stream::iter(parts))))
    }

    async fn reduce(self, mut reader: Reader) -> Result<Response<Body>, Status> {
        let request: proto::ReduceRequest = first(&mut reader).await?;
        let mut open = request.open.ok_or_else(no_open)?;
        let (hub, rank) = self.registry.admit(open.label.take()).await?;
        let (reply, parts) = mpsc::channel(REPLY_QUEUE);
        hub.deliver_reduce(rank, ReduceIn { rank, open, reader, reply })?;
        // Where the sums end without trailers, their sender gave up; after trailers nothing more is read.
        let end = async move { Part::Frame(frame::status_frame(gone(hub.has_ended()))) };
        let end = stream::once(Box::pin(end));
        Ok(response(Outgoing::body(ReceiverStream::new(parts).chain(end))))
    }

    async fn state(self, mut reader: Reader) -> Result<Response<Body>, Status> {
        let request: proto::StateRequest = first(&mut reader).await?;
        let (hub, _) = self.registry.admit(request.label).await?;
        Ok(response(state::body(&hub, self.registry.hold()).await?))
    }
}

/// The first message, which opens a call.
async fn first<M: prost::Message + Default>(reader: &mut Reader) -> Result<M, Status> {
    reader.small().await?.ok_or_else(|| Status::invalid_argument("the call has no message"))
}

fn no_open() -> Status {
    Status::invalid_argument("the first message does not open anything")
}

fn gone(ended: Option<Ended>) -> Status {
    ended.unwrap_or_else(|| Ended::Left("it gave up this exchange".to_owned())).status()
}

fn response(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let kind = http::HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}

impl tonic::server::NamedService for Service {
    const NAME: &'static str = NAME;
}

impl tower::Service<Request<Body>> for Service {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let answer = self.clone().answer(request);
        Box::pin(async move { Ok(answer.await.unwrap_or_else(Status::into_http)) })
    }
}
