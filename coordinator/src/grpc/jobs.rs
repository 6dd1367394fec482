//! What clients ask.

use super::checkpoints::Which;
use super::{CallError, checkpoints, lineages, metrics, status};
use crate::driver::{self, Handle};
use crate::logs::{LogFilter, LogLine};
use crate::scheduler::view::OpenTraining;
use crate::scheduler::{Input, Reply, view};
use retort_common::checkpoint::Place;
use retort_common::ids::{JobId, RequestId, TaskId};
use retort_common::proto;
use retort_common::proto::jobs_server::Jobs;
use retort_common::spec::JobSpec;
use retort_common::spec::inputs::JobInputs;
use retort_common::store::Store;
use retort_common::view::{JobState, JobView};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// How often a watched job is looked at.
const WATCH_PAUSE: Duration = Duration::from_millis(200);
/// How often only its elapsed time is sent.
const WATCH_CLOCK_PAUSE: Duration = Duration::from_secs(1);
/// Messages that wait for a slow client.
const STREAM_QUEUE: usize = 64;

/// The Jobs service.
pub struct JobsService {
    handle: Handle,
    store: Store,
}

impl JobsService {
    /// A service over a driver; the store tells where reports lie.
    pub fn new(handle: Handle, store: Store) -> Self {
        Self { handle, store }
    }

    async fn job(&self, text: String) -> Result<Arc<JobView>, Status> {
        self.handle.ask(move |desk| desk.job(&text)).await.map_err(status)?.map_err(status)
    }

    /// A job after a request that changes it.
    async fn changed(&self, job: JobId, input: Input) -> Result<proto::Job, Status> {
        self.handle.request(input).await.map_err(status)?.map_err(status)?;
        let now = self.handle.ask(move |desk| desk.job_now(&job)).await.map_err(status)?.map_err(status)?;
        Ok(encode_job(&now, &self.store))
    }

    async fn open_trainings(&self, job: &JobId) -> Result<Vec<OpenTraining>, Status> {
        let id = job.clone();
        self.handle.ask(move |desk| view::open_trainings(&desk.state, &id)).await.map_err(status)
    }

    async fn places(&self, job: &JobId) -> Result<BTreeMap<TaskId, Place>, Status> {
        let id = job.clone();
        self.handle.ask(move |desk| view::places(&desk.state, &id)).await.map_err(status)
    }

    async fn resolve(&self, text: String) -> Result<JobId, Status> {
        self.handle.ask(move |desk| desk.state.resolve(&text)).await.map_err(status)?.map_err(status)
    }
}

#[tonic::async_trait]
impl Jobs for JobsService {
    type WatchStream = ReceiverStream<Result<proto::WatchResponse, Status>>;
    type LogsStream = ReceiverStream<Result<proto::LogsResponse, Status>>;
    type MetricsStream = ReceiverStream<Result<proto::MetricsResponse, Status>>;

    async fn submit(
        &self,
        request: Request<proto::SubmitRequest>,
    ) -> Result<Response<proto::SubmitResponse>, Status> {
        let input = submit_input(request.into_inner()).map_err(status)?;
        match self.handle.request(input).await.map_err(status)?.map_err(status)? {
            Reply::Submitted { job, created } => {
                Ok(Response::new(proto::SubmitResponse { job_id: job.to_string(), created }))
            }
            Reply::Cancelled { .. } | Reply::Paused { .. } => {
                Err(Status::internal("a submit was answered like a cancel"))
            }
        }
    }

    async fn list(
        &self,
        request: Request<proto::ListRequest>,
    ) -> Result<Response<proto::ListResponse>, Status> {
        let proto::ListRequest { all } = request.into_inner();
        let jobs = self.handle.ask(move |desk| desk.jobs(all)).await.map_err(status)?;
        let jobs = jobs.iter().map(|job| encode_job(job, &self.store)).collect();
        Ok(Response::new(proto::ListResponse { jobs }))
    }

    async fn get(&self, request: Request<proto::GetRequest>) -> Result<Response<proto::GetResponse>, Status> {
        let proto::GetRequest { job_id } = request.into_inner();
        let job = self.job(job_id).await?;
        Ok(Response::new(proto::GetResponse { job: Some(encode_job(&job, &self.store)) }))
    }

    async fn watch(
        &self,
        request: Request<proto::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let proto::WatchRequest { job_id } = request.into_inner();
        let job = self.resolve(job_id).await?;
        let (sender, receiver) = mpsc::channel(STREAM_QUEUE);
        tokio::spawn(watch(self.handle.clone(), self.store.clone(), job, sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn logs(&self, request: Request<proto::LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        let proto::LogsRequest { job_id, follow, tail, worker, stage } = request.into_inner();
        let job = self.resolve(job_id).await?;
        let (sender, receiver) = mpsc::channel(STREAM_QUEUE);
        let filter = LogFilter { after: 0, tail: tail as usize, worker, stage };
        tokio::spawn(logs(self.handle.clone(), job, filter, follow, sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn metrics(
        &self,
        request: Request<proto::MetricsRequest>,
    ) -> Result<Response<Self::MetricsStream>, Status> {
        let proto::MetricsRequest { job_id, follow } = request.into_inner();
        let job = self.resolve(job_id).await?;
        let (sender, receiver) = mpsc::channel(STREAM_QUEUE);
        tokio::spawn(metrics::send(self.handle.clone(), self.store.clone(), job, follow, sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn cancel(
        &self,
        request: Request<proto::CancelRequest>,
    ) -> Result<Response<proto::CancelResponse>, Status> {
        let proto::CancelRequest { job_id, force } = request.into_inner();
        let job = self.resolve(job_id).await?;
        self.handle
            .request(Input::Cancel { job: job.clone(), force })
            .await
            .map_err(status)?
            .map_err(status)?;
        let job = self.job(job.to_string()).await?;
        Ok(Response::new(proto::CancelResponse { job: Some(encode_job(&job, &self.store)) }))
    }

    async fn pause(
        &self,
        request: Request<proto::PauseRequest>,
    ) -> Result<Response<proto::PauseResponse>, Status> {
        let proto::PauseRequest { job_id } = request.into_inner();
        let job = self.resolve(job_id).await?;
        let job = Some(self.changed(job.clone(), Input::Pause { job }).await?);
        Ok(Response::new(proto::PauseResponse { job }))
    }

    async fn resume(
        &self,
        request: Request<proto::ResumeRequest>,
    ) -> Result<Response<proto::ResumeResponse>, Status> {
        let proto::ResumeRequest { job_id, from, spec_json } = request.into_inner();
        let job = self.resolve(job_id).await?;
        let spec = if spec_json.is_empty() { None } else { Some(decode_spec(&spec_json).map_err(status)?) };
        let branches = if from.is_empty() {
            Vec::new()
        } else {
            let from = from.parse().map_err(status)?;
            let open = self.open_trainings(&job).await?;
            lineages::branches(&self.store, &job, from, &open).await.map_err(status)?
        };
        let input = Input::Resume { job: job.clone(), branches, spec };
        let job = Some(self.changed(job, input).await?);
        Ok(Response::new(proto::ResumeResponse { job }))
    }

    async fn list_checkpoints(
        &self,
        request: Request<proto::ListCheckpointsRequest>,
    ) -> Result<Response<proto::ListCheckpointsResponse>, Status> {
        let proto::ListCheckpointsRequest { job_id } = request.into_inner();
        let job = self.resolve(job_id).await?;
        let id = job.clone();
        let finished =
            self.handle.ask(move |desk| view::trainings(&desk.state, &id)).await.map_err(status)?;
        let places = self.places(&job).await?;
        let checkpoints = checkpoints::list(&self.store, &job, &places, finished).await.map_err(status)?;
        Ok(Response::new(proto::ListCheckpointsResponse { checkpoints }))
    }

    async fn delete_checkpoint(
        &self,
        request: Request<proto::DeleteCheckpointRequest>,
    ) -> Result<Response<proto::DeleteCheckpointResponse>, Status> {
        let proto::DeleteCheckpointRequest { job_id, lineage, step } = request.into_inner();
        let job = self.resolve(job_id).await?;
        let (places, open) = (self.places(&job).await?, self.open_trainings(&job).await?);
        let which = Which { job: &job, lineage: &lineage, step };
        checkpoints::delete(&self.store, which, &places, &open).await.map_err(status)?;
        Ok(Response::new(proto::DeleteCheckpointResponse {}))
    }

    async fn list_workers(
        &self,
        request: Request<proto::ListWorkersRequest>,
    ) -> Result<Response<proto::ListWorkersResponse>, Status> {
        let proto::ListWorkersRequest {} = request.into_inner();
        let workers = self.handle.ask(|desk| view::workers(&desk.state)).await.map_err(status)?;
        let workers = workers.into_iter().map(proto::Worker::from).collect();
        Ok(Response::new(proto::ListWorkersResponse { workers }))
    }
}

fn submit_input(request: proto::SubmitRequest) -> Result<Input, CallError> {
    let proto::SubmitRequest { request_id, spec_json, inputs_json } = request;
    let request: RequestId = request_id.parse().map_err(|error| CallError::invalid("request_id", error))?;
    let spec = decode_spec(&spec_json)?;
    let inputs: JobInputs =
        serde_json::from_str(&inputs_json).map_err(|error| CallError::invalid("inputs_json", error))?;
    let unique = uuid::Uuid::new_v4().simple().to_string();
    let job = format!("{}-{}", spec.name, &unique[..8]);
    let job = job.parse().map_err(|error| CallError::invalid("name", error))?;
    let inputs = Box::new(inputs);
    Ok(Input::Submit { job, request, spec, inputs, unix_ms: driver::unix_ms() })
}

/// Another client may check less than ours.
fn decode_spec(json: &str) -> Result<Box<JobSpec>, CallError> {
    let spec: JobSpec = serde_json::from_str(json).map_err(|error| CallError::invalid("spec_json", error))?;
    retort_common::spec::check(&spec).map_err(|error| CallError::invalid("spec_json", error))?;
    Ok(Box::new(spec))
}

/// Sends a job whenever it looks different, until it has ended or nobody listens.
async fn watch(
    handle: Handle,
    store: Store,
    job: JobId,
    sender: mpsc::Sender<Result<proto::WatchResponse, Status>>,
) {
    let mut sent: Option<(JobView, Instant)> = None;
    loop {
        let id = job.clone();
        let view = match handle.ask(move |desk| desk.job(id.as_str())).await {
            Ok(Ok(view)) => view,
            Ok(Err(refusal)) => return drop(sender.send(Err(status(refusal))).await),
            Err(stopped) => return drop(sender.send(Err(status(stopped))).await),
        };
        let ended = view.state.has_ended();
        let timeless = without_clocks(&view);
        let old =
            sent.as_ref().is_none_or(|(before, at)| *before != timeless || at.elapsed() > WATCH_CLOCK_PAUSE);
        if old || ended {
            let message = proto::WatchResponse { job: Some(encode_job(&view, &store)) };
            if sender.send(Ok(message)).await.is_err() || ended {
                return;
            }
            sent = Some((timeless, Instant::now()));
        }
        tokio::select! {
            () = tokio::time::sleep(WATCH_PAUSE) => {}
            () = sender.closed() => return,
        }
    }
}

fn without_clocks(view: &JobView) -> JobView {
    let mut view = view.clone();
    view.elapsed = Duration::ZERO;
    view.stages.iter_mut().for_each(|stage| stage.eta_seconds = None);
    view
}

async fn logs(
    handle: Handle,
    job: JobId,
    mut filter: LogFilter,
    follow: bool,
    sender: mpsc::Sender<Result<proto::LogsResponse, Status>>,
) {
    loop {
        let (id, wanted) = (job.clone(), filter.clone());
        let answer = handle.ask(move |desk| {
            let ended = desk.state.jobs.get(&id).is_none_or(|job| job.end.is_some());
            (desk.logs.read(&id, &wanted), ended)
        });
        let ((lines, last), ended) = match answer.await {
            Ok(answer) => answer,
            Err(stopped) => return drop(sender.send(Err(status(stopped))).await),
        };
        for line in lines {
            if sender.send(Ok(encode_line(line))).await.is_err() {
                return;
            }
        }
        if ended || !follow {
            return;
        }
        (filter.after, filter.tail) = (last, 0);
        tokio::select! {
            () = tokio::time::sleep(WATCH_PAUSE) => {}
            () = sender.closed() => return,
        }
    }
}

fn encode_line(line: LogLine) -> proto::LogsResponse {
    let LogLine { sequence, unix_ms, level, worker, stage, message } = line;
    let worker = worker.map(|id| id.to_string()).unwrap_or_default();
    let stage = stage.map(|stage| stage.name().to_owned()).unwrap_or_default();
    proto::LogsResponse { sequence, unix_ms, level, worker, stage, message }
}

fn encode_job(job: &JobView, store: &Store) -> proto::Job {
    let mut job = job.clone();
    if job.state == JobState::Succeeded {
        job.report_url = store.url_of(&format!("jobs/{}/report", job.id));
    }
    job.into()
}
