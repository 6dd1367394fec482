//! Workers' sessions: one bidirectional stream each.

use super::{CallError, status};
use crate::driver::Handle;
use crate::scheduler::{Command, HelloInfo, Input};
use retort_common::checkpoint::{Lineage, Origin, Place};
use retort_common::cohort::Member;
use retort_common::ids::{AttemptNumber, TaskId, WorkerId};
use retort_common::metrics::StepReport;
use retort_common::net::SESSION_PROTOCOL;
use retort_common::proto;
use retort_common::proto::session_request::Message as FromWorker;
use retort_common::proto::session_response::Message as ToWorker;
use retort_common::proto::workers_server::Workers;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Attempts that a worker may have in hand.
const MAX_IN_HAND: usize = 1024;
/// Peers that a member of a cohort may complain of.
const MAX_PEERS: usize = 1024;
/// Steps that a worker may speak of in one message.
const MAX_STEPS: usize = 1000;
/// Longest name of a training's history.
const MAX_LINEAGE_BYTES: usize = 256;
/// Largest meta of an artifact, as JSON.
const MAX_META_BYTES: usize = 64 << 10;
/// Longest message for people; the rest is cut off.
const MAX_TEXT_BYTES: usize = 8 << 10;
/// Messages that wait for the stream.
const STREAM_QUEUE: usize = 16;
/// Signs of life in a failure detection.
const PULSES_PER_DETECTION: u32 = 4;

/// The Workers service.
pub struct WorkersService {
    handle: Handle,
    welcome: proto::Welcome,
}

impl WorkersService {
    /// A service over the driver of the leader with this epoch.
    pub fn new(handle: Handle, epoch: u64, failure_detection: Duration, store_url: String) -> Self {
        let failure_detection_ms = failure_detection.as_millis() as u64;
        Self { handle, welcome: proto::Welcome { epoch, failure_detection_ms, store_url } }
    }
}

type Outbound = mpsc::Sender<Result<proto::SessionResponse, Status>>;

#[tonic::async_trait]
impl Workers for WorkersService {
    type SessionStream = ReceiverStream<Result<proto::SessionResponse, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<proto::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut inbound = request.into_inner();
        let detection = Duration::from_millis(self.welcome.failure_detection_ms);
        let first = tokio::time::timeout(detection, inbound.message());
        let first = first.await.map_err(|_| status(CallError::NoHello))??;
        let Some(FromWorker::Hello(hello)) = first.and_then(|request| request.message) else {
            return Err(status(CallError::NoHello));
        };
        let (worker, info) = decode_hello(hello).map_err(status)?;
        let (session, commands) = self.handle.hello(worker.clone(), info).await.map_err(status)?;
        let (sender, receiver) = mpsc::channel(STREAM_QUEUE);
        let welcome = response(ToWorker::Welcome(self.welcome.clone()));
        // The channel is new and has room.
        let _ = sender.try_send(Ok(welcome));
        let (ended, end) = oneshot::channel();
        tokio::spawn(send(commands, sender, detection / PULSES_PER_DETECTION, ended));
        tokio::spawn(receive(inbound, self.handle.clone(), worker, session, end));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Passes commands on until the driver closes the session or the worker hangs up.
async fn send(
    mut commands: mpsc::Receiver<Command>,
    sender: Outbound,
    pause: Duration,
    _ended: oneshot::Sender<()>,
) {
    let mut pulse = tokio::time::interval(pause);
    pulse.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let message = tokio::select! {
            command = commands.recv() => match command {
                Some(command) => encode(command),
                None => return,
            },
            _ = pulse.tick() => Some(ToWorker::Pulse(proto::Pulse {})),
            () = sender.closed() => return,
        };
        let Some(message) = message else { continue };
        if sender.send(Ok(response(message))).await.is_err() {
            return;
        }
    }
}

/// Passes messages on until the stream ends.
async fn receive(
    mut inbound: Streaming<proto::SessionRequest>,
    handle: Handle,
    worker: WorkerId,
    session: u64,
    mut end: oneshot::Receiver<()>,
) {
    loop {
        let message = tokio::select! {
            message = inbound.message() => message,
            _ = &mut end => break,
        };
        let Ok(Some(request)) = message else { break };
        let Some(message) = request.message else { continue };
        let input = match decode(&worker, session, message) {
            Ok(input) => input,
            Err(error) => {
                tracing::warn!(%worker, "closing the session: {error}");
                break;
            }
        };
        if handle.send(input).await.is_err() {
            return;
        }
    }
    let _ = handle.send(Input::WorkerGone { worker, session }).await;
}

fn response(message: ToWorker) -> proto::SessionResponse {
    proto::SessionResponse { message: Some(message) }
}

fn decode_hello(hello: proto::Hello) -> Result<(WorkerId, HelloInfo), CallError> {
    let proto::Hello {
        worker_id,
        protocol,
        version,
        device,
        fingerprint,
        threads,
        in_hand,
        exchange_address,
        kernels,
        memory_bytes,
    } = hello;
    if protocol != SESSION_PROTOCOL {
        return Err(CallError::Protocol { theirs: protocol, ours: SESSION_PROTOCOL });
    }
    let worker = worker_id.parse().map_err(|error| CallError::invalid("worker_id", error))?;
    if in_hand.len() > MAX_IN_HAND {
        return Err(CallError::invalid("in_hand", format!("more than {MAX_IN_HAND} attempts")));
    }
    let in_hand =
        in_hand.into_iter().map(|attempt| decode_attempt(Some(attempt))).collect::<Result<_, _>>()?;
    let (version, device, fingerprint) = (cut(version), cut(device), cut(fingerprint));
    let (address, kernels) = (cut(exchange_address), cut(kernels));
    Ok((worker, HelloInfo { device, kernels, memory_bytes, fingerprint, version, threads, address, in_hand }))
}

fn decode_attempt(attempt: Option<proto::Attempt>) -> Result<(TaskId, AttemptNumber), CallError> {
    let proto::Attempt { task, attempt } = attempt.ok_or_else(|| CallError::invalid("attempt", "missing"))?;
    let task = task.parse().map_err(|error| CallError::invalid("attempt.task", error))?;
    Ok((TaskId(task), AttemptNumber(attempt)))
}

fn decode(worker: &WorkerId, session: u64, message: FromWorker) -> Result<Input, CallError> {
    let worker = worker.clone();
    Ok(match message {
        FromWorker::Hello(_) => return Err(CallError::invalid("message", "a second hello")),
        FromWorker::Beat(proto::Beat {}) => Input::Beat { worker, session },
        FromWorker::Progress(proto::Progress { attempt, done, total, detail, microbatch_us, waiting }) => {
            let ((task, attempt), detail) = (decode_attempt(attempt)?, cut(detail));
            Input::Progress { worker, session, task, attempt, done, total, detail, microbatch_us, waiting }
        }
        FromWorker::Ready(proto::Ready { attempt }) => {
            let (task, _) = decode_attempt(attempt)?;
            Input::Ready { worker, session, task }
        }
        FromWorker::Trouble(proto::Trouble { attempt, peers, suspect, message }) => {
            let ((task, attempt), message) = (decode_attempt(attempt)?, cut(message));
            if peers.len() > MAX_PEERS {
                return Err(CallError::invalid("peers", format!("more than {MAX_PEERS}")));
            }
            let peers = peers.into_iter().map(|peer| peer.parse());
            let peers =
                peers.collect::<Result<_, _>>().map_err(|error| CallError::invalid("peers", error))?;
            Input::Trouble { worker, session, task, attempt, peers, suspect, message }
        }
        FromWorker::Finished(proto::Finished { attempt, meta_json, elapsed_ms, found }) => {
            let (task, attempt) = decode_attempt(attempt)?;
            if meta_json.len() > MAX_META_BYTES {
                return Err(CallError::invalid("meta_json", format!("longer than {MAX_META_BYTES} bytes")));
            }
            let meta =
                serde_json::from_str(&meta_json).map_err(|error| CallError::invalid("meta_json", error))?;
            Input::Finished { worker, session, task, attempt, meta, elapsed_ms, found }
        }
        FromWorker::Failed(proto::Failed { attempt, message, retryable, elapsed_ms: _ }) => {
            let (task, attempt) = decode_attempt(attempt)?;
            Input::Failed { worker, session, task, attempt, message: cut(message), retryable }
        }
        FromWorker::Metrics(proto::Metrics { attempt, lineage, steps }) => {
            let (task, _) = decode_attempt(attempt)?;
            if lineage.len() > MAX_LINEAGE_BYTES || steps.len() > MAX_STEPS {
                let text = format!(
                    "a lineage of more than {MAX_LINEAGE_BYTES} bytes, or more than {MAX_STEPS} steps"
                );
                return Err(CallError::invalid("metrics", text));
            }
            let steps = steps.into_iter().map(StepReport::try_from).collect::<Result<_, _>>();
            let steps = steps.map_err(|error| CallError::invalid("metrics.steps", error))?;
            Input::Metrics { worker, session, task, lineage, steps }
        }
        FromWorker::Log(proto::Log { attempt, level, message }) => {
            let (task, _) = decode_attempt(attempt)?;
            let known = ["INFO", "WARN", "ERROR"].contains(&level.as_str());
            let level = if known { level } else { "INFO".to_owned() };
            Input::Log { worker, session, task, level, message: cut(message) }
        }
    })
}

/// Text of bounded length and on one line.
fn cut(mut text: String) -> String {
    if text.len() > MAX_TEXT_BYTES {
        let end = (0..=MAX_TEXT_BYTES).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    if text.contains(['\n', '\r']) { text.replace(['\n', '\r'], " ") } else { text }
}

fn encode(command: Command) -> Option<ToWorker> {
    let attempt = |task: TaskId, attempt: AttemptNumber| {
        Some(proto::Attempt { task: task.to_string(), attempt: attempt.0 })
    };
    Some(match command {
        Command::Run {
            worker: _,
            attempt: number,
            job,
            task,
            id,
            stage,
            incarnation,
            cohort,
            checkpoints,
        } => ToWorker::Run(proto::Run {
            cohort: cohort.into_iter().map(encode_member).collect(),
            attempt: attempt(id, number),
            job_id: job.to_string(),
            stage: stage.name().to_owned(),
            task_json: serde_json::to_string(&task).expect("a task has a JSON form"),
            incarnation,
            checkpoints: checkpoints.map(encode_place),
        }),
        Command::Stop { worker: _, task, attempt: number, force } => {
            ToWorker::Stop(proto::Stop { attempt: attempt(task, number), force })
        }
        Command::Settle { worker: _, task, attempt: number } => {
            ToWorker::Settled(proto::Settled { attempt: attempt(task, number) })
        }
        // These are not for workers and never reach a session.
        Command::Probe(_) | Command::Close { .. } | Command::JobChanged(_) | Command::Log { .. } => {
            return None;
        }
    })
}

fn encode_place(place: Place) -> proto::CheckpointPlace {
    let Place { job, lineage: Lineage { number: lineage, origin } } = place;
    let (origin_lineage, origin_step) = origin.map_or((0, 0), |Origin { number, step }| (number, step));
    proto::CheckpointPlace { job_id: job.to_string(), lineage, origin_lineage, origin_step }
}

fn encode_member(member: Member) -> proto::CohortMember {
    let Member { worker, address, microbatches } = member;
    proto::CohortMember {
        worker_id: worker.to_string(),
        address,
        first_microbatch: microbatches.start,
        microbatches: microbatches.end - microbatches.start,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_at_a_character_and_kept_on_one_line() {
        let text = cut("ä".repeat(MAX_TEXT_BYTES));
        assert!(text.len() <= MAX_TEXT_BYTES + 3 && text.ends_with('…'));
        assert_eq!(cut("a\nb\r\nc".into()), "a b  c");
    }

    #[test]
    fn a_worker_of_another_protocol_is_refused() {
        let hello =
            proto::Hello { worker_id: "w".into(), protocol: SESSION_PROTOCOL + 1, ..Default::default() };
        assert!(matches!(decode_hello(hello), Err(CallError::Protocol { .. })));
        let hello =
            proto::Hello { worker_id: "../w".into(), protocol: SESSION_PROTOCOL, ..Default::default() };
        assert!(matches!(decode_hello(hello), Err(CallError::Invalid { field: "worker_id", .. })));
    }
}
