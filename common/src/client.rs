//! The typed client of the control plane: plain types, one error per meaning, and streams that reconnect.
//!
//! - [`Client`]: one method per call; repeats calls that did not arrive for as long as its patience lasts
//! - [`Watch`], [`Logs`], [`Steps`]: streams that go on where they were after the coordinator was away
//!
//! What the calls return is in [`crate::view`].

mod metrics;

pub use metrics::{StepView, Steps};

use crate::ids::RequestId;
use crate::net::{self, NetError, NetOptions};
use crate::proto;
use crate::proto::jobs_client::JobsClient;
use crate::spec::JobSpec;
use crate::spec::inputs::JobInputs;
use crate::view::{CheckpointView, JobView, LogLine, ViewError, WorkerView};
use std::error::Error as _;
use std::time::Duration;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

/// First pause before a call is repeated; doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause before a call is repeated.
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// How long a stream that worked goes on looking for a coordinator that went away, unless told otherwise.
pub const RECONNECT_LIMIT: Duration = Duration::from_secs(600);

/// Why a call to the coordinator gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address or the TLS files are wrong.
    #[error(transparent)]
    Net(#[from] NetError),
    /// No coordinator's address was given.
    #[error("no coordinator's address is given")]
    NoAddress,
    /// No answer from any address.
    #[error("coordinator unreachable: {0}")]
    Unreachable(String),
    /// The coordinator does not let this client do that.
    #[error("denied by the coordinator: {0}")]
    Denied(String),
    /// No such job.
    #[error("{0}")]
    NotFound(String),
    /// The coordinator understood and said no.
    #[error("refused by the coordinator: {0}")]
    Refused(String),
    /// The coordinator failed.
    #[error("error of the coordinator: {0}")]
    Internal(String),
    /// An answer that this version does not understand.
    #[error("the coordinator's answer is not understood: {0}; use the same version of retort on both sides")]
    Answer(String),
}

impl From<ViewError> for ClientError {
    fn from(error: ViewError) -> Self {
        ClientError::Answer(error.to_string())
    }
}

impl ClientError {
    /// The one place where a status gets its meaning.
    fn of(url: &str, status: &Status) -> Self {
        // A status with a source was made on this side, by a connection that broke.
        if net::is_unreachable(status) || status.source().is_some() {
            return ClientError::Unreachable(net::describe(url, status));
        }
        let message = status.message().to_owned();
        match status.code() {
            Code::PermissionDenied | Code::Unauthenticated => ClientError::Denied(message),
            Code::NotFound => ClientError::NotFound(message),
            Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::AlreadyExists
            | Code::OutOfRange
            | Code::ResourceExhausted
            | Code::Aborted => ClientError::Refused(message),
            Code::Unimplemented => ClientError::Answer(message),
            code => ClientError::Internal(format!("{message} ({code:?})")),
        }
    }

    fn is_unreachable(&self) -> bool {
        matches!(self, ClientError::Unreachable(_))
    }
}

/// A client of one cluster.
#[derive(Clone)]
pub struct Client {
    /// Every address once; the first is the one in use.
    servers: Vec<(String, JobsClient<Channel>)>,
    current: usize,
    patience: Duration,
    reconnect_limit: Duration,
}

/// Which log lines to fetch.
#[derive(Clone, Debug, Default)]
pub struct LogQuery {
    /// Go on until the job has ended.
    pub follow: bool,
    /// Only the newest lines; 0 means all that are kept.
    pub tail: u32,
    /// Only lines of this worker.
    pub worker: Option<String>,
    /// Only lines of this stage.
    pub stage: Option<String>,
}

/// An accepted job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submitted {
    /// Its id.
    pub job_id: String,
    /// False where the request id had been accepted before.
    pub created: bool,
}

impl Client {
    /// A client of the coordinator at any of `addresses`. Nothing is dialled yet.
    pub fn new(addresses: &[String], options: &NetOptions) -> Result<Self, ClientError> {
        let mut servers = Vec::new();
        for url in addresses {
            let client = JobsClient::new(net::channel(url, options)?)
                .max_decoding_message_size(net::MAX_MESSAGE_BYTES)
                .max_encoding_message_size(net::MAX_MESSAGE_BYTES);
            servers.push((url.clone(), client));
        }
        if servers.is_empty() {
            return Err(ClientError::NoAddress);
        }
        Ok(Self { servers, current: 0, patience: Duration::ZERO, reconnect_limit: RECONNECT_LIMIT })
    }

    /// The same client, repeating calls that do not arrive for as long as `patience`. Every call is safe to
    /// repeat: a submit by its request id, a cancel because ending an ended job changes nothing.
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self.reconnect_limit = self.reconnect_limit.max(patience);
        self
    }

    /// Submits a job. One request id gives one job, however often it is sent.
    pub async fn submit(
        &mut self,
        request_id: &RequestId,
        spec: &JobSpec,
        inputs: &JobInputs,
    ) -> Result<Submitted, ClientError> {
        let json = |value: Result<String, serde_json::Error>| value.expect("plain data has a JSON form");
        let request = proto::SubmitRequest {
            request_id: request_id.to_string(),
            spec_json: json(serde_json::to_string(spec)),
            inputs_json: json(serde_json::to_string(inputs)),
        };
        let call = async |mut jobs: JobsClient<Channel>| jobs.submit(request.clone()).await;
        let proto::SubmitResponse { job_id, created } = self.call(call).await?;
        Ok(Submitted { job_id, created })
    }

    /// The jobs, newest first; with `all` also those that have ended.
    pub async fn list(&mut self, all: bool) -> Result<Vec<JobView>, ClientError> {
        let call = async |mut jobs: JobsClient<Channel>| jobs.list(proto::ListRequest { all }).await;
        let proto::ListResponse { jobs } = self.call(call).await?;
        jobs.into_iter().map(|job| Ok(JobView::try_from(job)?)).collect()
    }

    /// One job, by its id or an unambiguous prefix of it.
    pub async fn get(&mut self, id: &str) -> Result<JobView, ClientError> {
        let request = proto::GetRequest { job_id: id.to_owned() };
        let call = async |mut jobs: JobsClient<Channel>| jobs.get(request.clone()).await;
        let proto::GetResponse { job } = self.call(call).await?;
        Ok(job.try_into()?)
    }

    /// Ends a job; `force` does not wait for a checkpoint.
    pub async fn cancel(&mut self, id: &str, force: bool) -> Result<JobView, ClientError> {
        let request = proto::CancelRequest { job_id: id.to_owned(), force };
        let call = async |mut jobs: JobsClient<Channel>| jobs.cancel(request.clone()).await;
        let proto::CancelResponse { job } = self.call(call).await?;
        Ok(job.try_into()?)
    }

    /// Stops a job's work until it is resumed.
    pub async fn pause(&mut self, id: &str) -> Result<JobView, ClientError> {
        let request = proto::PauseRequest { job_id: id.to_owned() };
        let call = async |mut jobs: JobsClient<Channel>| jobs.pause(request.clone()).await;
        let proto::PauseResponse { job } = self.call(call).await?;
        Ok(job.try_into()?)
    }

    /// Lets a paused job go on: its trainings from where they are or, in another lineage, from a step, "latest" or
    /// "best"; by its spec, or by one that differs in keys that change no result.
    pub async fn resume(
        &mut self,
        id: &str,
        from: Option<&str>,
        spec: Option<&JobSpec>,
    ) -> Result<JobView, ClientError> {
        let json = |spec| serde_json::to_string(spec).expect("plain data has a JSON form");
        let (from, spec_json) = (from.unwrap_or_default().to_owned(), spec.map(json).unwrap_or_default());
        let request = proto::ResumeRequest { job_id: id.to_owned(), from, spec_json };
        let call = async |mut jobs: JobsClient<Channel>| jobs.resume(request.clone()).await;
        let proto::ResumeResponse { job } = self.call(call).await?;
        Ok(job.try_into()?)
    }

    /// The checkpoints of a job's trainings, by training and step.
    pub async fn checkpoints(&mut self, id: &str) -> Result<Vec<CheckpointView>, ClientError> {
        let request = proto::ListCheckpointsRequest { job_id: id.to_owned() };
        let call = async |mut jobs: JobsClient<Channel>| jobs.list_checkpoints(request.clone()).await;
        let proto::ListCheckpointsResponse { checkpoints } = self.call(call).await?;
        Ok(checkpoints.into_iter().map(CheckpointView::from).collect())
    }

    /// Deletes one checkpoint.
    pub async fn delete_checkpoint(&mut self, id: &str, lineage: &str, step: u64) -> Result<(), ClientError> {
        let (job_id, lineage) = (id.to_owned(), lineage.to_owned());
        let request = proto::DeleteCheckpointRequest { job_id, lineage, step };
        let call = async |mut jobs: JobsClient<Channel>| jobs.delete_checkpoint(request.clone()).await;
        let proto::DeleteCheckpointResponse {} = self.call(call).await?;
        Ok(())
    }

    /// The workers, sorted by id.
    pub async fn workers(&mut self) -> Result<Vec<WorkerView>, ClientError> {
        let call =
            async |mut jobs: JobsClient<Channel>| jobs.list_workers(proto::ListWorkersRequest {}).await;
        let proto::ListWorkersResponse { workers } = self.call(call).await?;
        Ok(workers.into_iter().map(WorkerView::from).collect())
    }

    /// The job now and after every change, until it has ended.
    pub fn watch(&self, id: &str) -> Watch {
        let retry = Retry::new(self.patience);
        Watch { client: self.clone(), id: id.to_owned(), stream: None, retry, last: None, failure: None }
    }

    /// A job's log lines.
    pub fn logs(&self, id: &str, query: LogQuery) -> Logs {
        let retry = Retry::new(self.patience);
        Logs { client: self.clone(), id: id.to_owned(), query, stream: None, retry, last: None, ended: false }
    }

    /// Every step of a job's trainings once; with `follow` until the job has ended.
    pub fn metrics(&self, id: &str, follow: bool) -> Steps {
        Steps::new(self, id, follow)
    }

    /// Calls until an answer comes, the other addresses first and then again for as long as patience lasts.
    async fn call<T>(
        &mut self,
        call: impl AsyncFn(JobsClient<Channel>) -> Result<tonic::Response<T>, Status>,
    ) -> Result<T, ClientError> {
        let mut retry = Retry::new(self.patience);
        loop {
            let error = match self.round(&call).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            retry.pause(error).await?;
        }
    }

    /// One try at every address, beginning with the one that answered last.
    async fn round<T>(
        &mut self,
        call: &impl AsyncFn(JobsClient<Channel>) -> Result<tonic::Response<T>, Status>,
    ) -> Result<T, ClientError> {
        let mut causes = Vec::new();
        for _ in 0..self.servers.len() {
            let (url, jobs) = &self.servers[self.current];
            match call(jobs.clone()).await {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) => match ClientError::of(url, &status) {
                    ClientError::Unreachable(cause) => causes.push(cause),
                    error => return Err(error),
                },
            }
            self.current = (self.current + 1) % self.servers.len();
        }
        Err(ClientError::Unreachable(causes.join("; ")))
    }
}

/// Pauses between tries, within a limit that success renews.
struct Retry {
    limit: Duration,
    since: Option<Instant>,
    pause: Duration,
}

impl Retry {
    fn new(limit: Duration) -> Self {
        Self { limit, since: None, pause: FIRST_PAUSE }
    }

    /// Waits before the next try, or passes the error on when trying again is of no use any more.
    async fn pause(&mut self, error: ClientError) -> Result<(), ClientError> {
        let since = *self.since.get_or_insert_with(Instant::now);
        if !error.is_unreachable() || since.elapsed() >= self.limit {
            return Err(error);
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(())
    }

    /// Something arrived: from here on a lost connection is looked for again for `limit`.
    fn renew(&mut self, limit: Duration) {
        *self = Self::new(limit);
    }
}

/// A job's changes. Reconnects by itself; [`Watch::next`] may be dropped and called again at any time.
pub struct Watch {
    client: Client,
    id: String,
    stream: Option<Streaming<proto::WatchResponse>>,
    retry: Retry,
    last: Option<JobView>,
    failure: Option<ClientError>,
}

impl Watch {
    /// The next state of the job; nothing once it has ended and its last state was returned.
    pub async fn next(&mut self) -> Result<Option<JobView>, ClientError> {
        if self.last.as_ref().is_some_and(|job| job.state.has_ended()) {
            return Ok(None);
        }
        loop {
            if let Some(error) = self.failure.take() {
                self.retry.pause(error).await?;
            }
            match self.step().await {
                Ok(job) => {
                    self.retry.renew(self.client.reconnect_limit);
                    self.last = Some(job.clone());
                    return Ok(Some(job));
                }
                Err(error) => {
                    self.stream = None;
                    self.failure = Some(error);
                }
            }
        }
    }

    async fn step(&mut self) -> Result<JobView, ClientError> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let request = proto::WatchRequest { job_id: self.id.clone() };
                let call = async |mut jobs: JobsClient<Channel>| jobs.watch(request.clone()).await;
                self.stream.insert(self.client.round(&call).await?)
            }
        };
        let url = &self.client.servers[self.client.current].0;
        match stream.message().await {
            Ok(Some(proto::WatchResponse { job })) => Ok(job.try_into()?),
            // Only a coordinator that is shutting down ends the stream of a job that goes on.
            Ok(None) => Err(ClientError::Unreachable(format!("{url}: the coordinator ended the stream"))),
            Err(status) => Err(ClientError::of(url, &status)),
        }
    }
}

/// A job's log lines. With follow it reconnects by itself and goes on after the last line it returned;
/// [`Logs::next`] may be dropped and called again at any time.
pub struct Logs {
    client: Client,
    id: String,
    query: LogQuery,
    stream: Option<Streaming<proto::LogsResponse>>,
    retry: Retry,
    last: Option<LogLine>,
    ended: bool,
}

impl Logs {
    /// The next line; nothing at the end.
    pub async fn next(&mut self) -> Result<Option<LogLine>, ClientError> {
        loop {
            if self.ended {
                return Ok(None);
            }
            match self.step().await {
                Ok(Some(line)) if self.was_returned(&line) => {}
                Ok(Some(line)) => {
                    self.retry.renew(self.client.reconnect_limit);
                    self.last = Some(line.clone());
                    return Ok(Some(line));
                }
                Ok(None) => self.ended = true,
                Err(error) => {
                    self.stream = None;
                    self.retry.pause(error).await?;
                }
            }
        }
    }

    /// A restarted coordinator may count from 1 again, so an old number with a later time is a new line.
    fn was_returned(&self, line: &LogLine) -> bool {
        self.last.as_ref().is_some_and(|last| line.sequence <= last.sequence && line.unix_ms <= last.unix_ms)
    }

    async fn step(&mut self) -> Result<Option<LogLine>, ClientError> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let request = self.request();
                let call = async |mut jobs: JobsClient<Channel>| jobs.logs(request.clone()).await;
                self.stream.insert(self.client.round(&call).await?)
            }
        };
        let message = stream.message().await;
        let url = self.client.servers[self.client.current].0.clone();
        match message {
            Ok(Some(line)) => Ok(Some(line.into())),
            Ok(None) if !self.query.follow => Ok(None),
            Ok(None) if self.client.get(&self.id).await?.state.has_ended() => Ok(None),
            Ok(None) => Err(ClientError::Unreachable(format!("{url}: the coordinator ended the stream"))),
            Err(status) => Err(ClientError::of(&url, &status)),
        }
    }

    fn request(&self) -> proto::LogsRequest {
        let LogQuery { follow, tail, worker, stage } = self.query.clone();
        proto::LogsRequest {
            job_id: self.id.clone(),
            follow,
            // Lines said while the connection was away may be more than the tail asked for.
            tail: if self.last.is_some() { 0 } else { tail },
            worker: worker.unwrap_or_default(),
            stage: stage.unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests;
