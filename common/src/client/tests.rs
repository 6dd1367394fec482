//! The client against a coordinator that follows a script.

use super::*;
use crate::proto::jobs_server::{Jobs, JobsServer};
use crate::view::JobState;
use futures::stream::BoxStream;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use tonic::{Request, Response};

/// Answers of one stream: what it sends before it breaks, or ends where nothing broke it.
type Script<T> = VecDeque<Vec<Result<T, Status>>>;

/// Plays one entry of a script for each call.
#[derive(Clone, Default)]
struct Scripted {
    watch: Arc<Mutex<Script<proto::WatchResponse>>>,
    logs: Arc<Mutex<Script<proto::LogsResponse>>>,
    metrics: Arc<Mutex<Script<proto::MetricsResponse>>>,
    asked: Arc<Mutex<Vec<proto::LogsRequest>>>,
}

fn play<T: Send + 'static>(script: &Mutex<Script<T>>) -> Response<BoxStream<'static, Result<T, Status>>> {
    let items = script.lock().unwrap().pop_front().unwrap_or_default();
    Response::new(Box::pin(futures::stream::iter(items)))
}

#[tonic::async_trait]
impl Jobs for Scripted {
    type WatchStream = BoxStream<'static, Result<proto::WatchResponse, Status>>;
    type LogsStream = BoxStream<'static, Result<proto::LogsResponse, Status>>;
    type MetricsStream = BoxStream<'static, Result<proto::MetricsResponse, Status>>;

    async fn submit(
        &self,
        request: Request<proto::SubmitRequest>,
    ) -> Result<Response<proto::SubmitResponse>, Status> {
        Ok(Response::new(proto::SubmitResponse { job_id: request.into_inner().request_id, created: true }))
    }

    async fn list(&self, _: Request<proto::ListRequest>) -> Result<Response<proto::ListResponse>, Status> {
        Err(Status::permission_denied("not yours"))
    }

    async fn get(&self, _: Request<proto::GetRequest>) -> Result<Response<proto::GetResponse>, Status> {
        Ok(Response::new(proto::GetResponse { job: Some(job(proto::JobState::Succeeded, "")) }))
    }

    async fn watch(&self, _: Request<proto::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Ok(play(&self.watch))
    }

    async fn logs(&self, request: Request<proto::LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        self.asked.lock().unwrap().push(request.into_inner());
        Ok(play(&self.logs))
    }

    async fn metrics(
        &self,
        _: Request<proto::MetricsRequest>,
    ) -> Result<Response<Self::MetricsStream>, Status> {
        Ok(play(&self.metrics))
    }

    async fn cancel(
        &self,
        _: Request<proto::CancelRequest>,
    ) -> Result<Response<proto::CancelResponse>, Status> {
        Ok(Response::new(proto::CancelResponse { job: None }))
    }

    async fn pause(&self, _: Request<proto::PauseRequest>) -> Result<Response<proto::PauseResponse>, Status> {
        Ok(Response::new(proto::PauseResponse { job: None }))
    }

    async fn resume(
        &self,
        _: Request<proto::ResumeRequest>,
    ) -> Result<Response<proto::ResumeResponse>, Status> {
        Ok(Response::new(proto::ResumeResponse { job: None }))
    }

    async fn list_checkpoints(
        &self,
        _: Request<proto::ListCheckpointsRequest>,
    ) -> Result<Response<proto::ListCheckpointsResponse>, Status> {
        Ok(Response::new(proto::ListCheckpointsResponse { checkpoints: Vec::new() }))
    }

    async fn delete_checkpoint(
        &self,
        _: Request<proto::DeleteCheckpointRequest>,
    ) -> Result<Response<proto::DeleteCheckpointResponse>, Status> {
        Ok(Response::new(proto::DeleteCheckpointResponse {}))
    }

    async fn list_workers(
        &self,
        _: Request<proto::ListWorkersRequest>,
    ) -> Result<Response<proto::ListWorkersResponse>, Status> {
        Err(Status::not_found("no such thing"))
    }
}

fn job(state: proto::JobState, stage: &str) -> proto::Job {
    proto::Job { id: "j".into(), state: state.into(), stage: stage.into(), ..proto::Job::default() }
}

fn line(sequence: u64, unix_ms: u64) -> Result<proto::LogsResponse, Status> {
    let message = format!("{sequence} at {unix_ms}");
    Ok(proto::LogsResponse { sequence, unix_ms, message, ..proto::LogsResponse::default() })
}

async fn client_of(server: Scripted) -> Client {
    let listener = net::bind("127.0.0.1:0").await.unwrap();
    let address = listener.address().to_string();
    let routes = tonic::service::Routes::new(JobsServer::new(server));
    tokio::spawn(async move {
        net::serve(listener, &NetOptions::default(), routes, std::future::pending()).await
    });
    Client::new(&[address], &NetOptions::default()).unwrap()
}

#[tokio::test]
async fn a_watch_goes_on_over_lost_connections_until_the_job_has_ended() {
    let sent = |state, stage| Ok(proto::WatchResponse { job: Some(job(state, stage)) });
    let server = Scripted::default();
    *server.watch.lock().unwrap() = VecDeque::from([
        vec![sent(proto::JobState::Pending, "shard"), Err(Status::unavailable("going down"))],
        vec![sent(proto::JobState::Running, "embed")],
        vec![sent(proto::JobState::Succeeded, "")],
    ]);
    let mut watch = client_of(server).await.watch("j");
    let mut states = Vec::new();
    while let Some(job) = watch.next().await.unwrap() {
        states.push(job.state);
    }
    assert_eq!(states, [JobState::Pending, JobState::Running, JobState::Succeeded]);
}

#[tokio::test]
async fn followed_logs_go_on_after_the_last_line_even_where_counting_began_anew() {
    let server = Scripted::default();
    *server.logs.lock().unwrap() = VecDeque::from([
        vec![line(4, 10), line(5, 11), Err(Status::unavailable("going down"))],
        vec![line(4, 10), line(5, 11), line(6, 12), Err(Status::unavailable("going down"))],
        vec![line(1, 20)],
    ]);
    let asked = server.asked.clone();
    let mut logs =
        client_of(server).await.logs("j", LogQuery { follow: true, tail: 2, ..LogQuery::default() });
    let mut said = Vec::new();
    while let Some(line) = logs.next().await.unwrap() {
        said.push(line.message);
    }
    assert_eq!(said, ["4 at 10", "5 at 11", "6 at 12", "1 at 20"]);
    let tails: Vec<_> = asked.lock().unwrap().iter().map(|request| request.tail).collect();
    assert_eq!(tails, [2, 0, 0]);
}

#[tokio::test]
async fn followed_metrics_give_every_step_once_over_lost_connections() {
    let step = |task: &str, step| {
        let point = Some(proto::StepPoint { loss: 0.5, ..proto::StepPoint::default() });
        Ok(proto::MetricsResponse { task: task.into(), step, point, ..proto::MetricsResponse::default() })
    };
    let lost = || Err(Status::unavailable("going down"));
    let server = Scripted::default();
    *server.metrics.lock().unwrap() = VecDeque::from([
        vec![step("a", 1), step("a", 2), lost()],
        vec![step("a", 1), step("a", 2), step("a", 3), step("b", 1), lost()],
        vec![step("a", 1), step("a", 2), step("a", 3), step("b", 1), step("b", 2)],
    ]);
    let mut steps = client_of(server).await.metrics("j", true);
    let mut said = Vec::new();
    while let Some(step) = steps.next().await.unwrap() {
        said.push(format!("{}{}", step.task, step.point.step));
    }
    assert_eq!(said, ["a1", "a2", "a3", "b1", "b2"]);
}

#[tokio::test]
async fn answers_have_their_meanings() {
    let mut client = client_of(Scripted::default()).await;
    assert!(matches!(client.list(true).await, Err(ClientError::Denied(text)) if text == "not yours"));
    assert!(matches!(client.workers().await, Err(ClientError::NotFound(text)) if text == "no such thing"));
    assert!(matches!(client.cancel("j", false).await, Err(ClientError::Answer(_))));
    assert_eq!(client.get("j").await.unwrap().state, JobState::Succeeded);
}

#[tokio::test]
async fn a_dead_address_is_passed_over() {
    let dead = net::bind("127.0.0.1:0").await.unwrap().address().to_string();
    let live = client_of(Scripted::default()).await.servers[0].0.clone();
    let mut client = Client::new(&[dead, live], &NetOptions::default()).unwrap();
    assert!(client.get("j").await.is_ok());
    assert_eq!(client.current, 1);
}

#[test]
fn every_status_has_its_meaning() {
    type Meaning = fn(&ClientError) -> bool;
    let table: [(Code, Meaning); 8] = [
        (Code::Unavailable, |error| matches!(error, ClientError::Unreachable(_))),
        (Code::PermissionDenied, |error| matches!(error, ClientError::Denied(_))),
        (Code::Unauthenticated, |error| matches!(error, ClientError::Denied(_))),
        (Code::NotFound, |error| matches!(error, ClientError::NotFound(_))),
        (Code::InvalidArgument, |error| matches!(error, ClientError::Refused(_))),
        (Code::AlreadyExists, |error| matches!(error, ClientError::Refused(_))),
        (Code::Unimplemented, |error| matches!(error, ClientError::Answer(_))),
        (Code::Internal, |error| matches!(error, ClientError::Internal(_))),
    ];
    for (code, meaning) in table {
        let error = ClientError::of("http://c:1", &Status::new(code, "why"));
        assert!(meaning(&error), "{code:?}: {error:?}");
    }
}

#[tokio::test]
async fn without_a_coordinator_a_call_fails_at_once_and_a_patient_one_tries_again() {
    let address = net::bind("127.0.0.1:0").await.unwrap().address().to_string();
    let mut client = Client::new(&[address], &NetOptions::default()).unwrap();
    assert!(client.get("x").await.unwrap_err().is_unreachable());
    let begun = Instant::now();
    let mut patient = client.with_patience(FIRST_PAUSE * 2);
    assert!(patient.get("x").await.unwrap_err().is_unreachable());
    assert!(begun.elapsed() >= FIRST_PAUSE * 2);
}
