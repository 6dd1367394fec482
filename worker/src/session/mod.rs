//! A worker's side of the session with the coordinator.
//!
//! [`run`] dials for ever. Tasks outlive sessions: what runs goes on while the coordinator is away, results are
//! kept until they are settled, and every hello says what is in hand. Compute blocks, so that each task has an
//! OS thread of its own, one at a time. A task for a cohort is told of its next generations while it runs.
//!
//! - [`TaskContext`]: what a running task can say and must look at
//! - `wire`: messages from and to plain types

mod context;
mod wire;

pub use context::{Control, Generation, Pace, Progressing, Stop, TaskContext};

use retort_common::checkpoint::Place;
use retort_common::cohort::Member;
use retort_common::ids::{AttemptNumber, JobId, TaskId, WorkerId};
use retort_common::net::{self, MAX_MESSAGE_BYTES, NetError, NetOptions, SESSION_PROTOCOL};
use retort_common::proto;
use retort_common::proto::session_request::Message as ToCoordinator;
use retort_common::proto::session_response::Message as FromCoordinator;
use retort_common::proto::workers_client::WorkersClient;
use retort_common::task::{Stage, Task};
use serde_json::Value;
use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use wire::{Key, attempt, decode, failed, failure, key, panicked, renumbered, result};

/// Assignments that wait for the one in work; more are refused. The coordinator deals one at a time.
const QUEUE: usize = 16;
/// Progress and log records that wait for the session; more are dropped.
const NEWS: usize = 1024;
/// Messages that wait for the stream.
const STREAM_QUEUE: usize = 64;
/// Signs of life in a failure detection.
const BEATS_PER_DETECTION: u32 = 4;
/// First pause before dialling again; doubles each time, with jitter.
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
/// Largest meta of an artifact, as JSON.
const MAX_META_BYTES: usize = 64 << 10;

/// What a worker is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Addresses of coordinators; tried in turn.
    pub coordinators: Vec<String>,
    /// The worker's name, stable while the process lives.
    pub worker: WorkerId,
    /// Its device, e.g. "flex".
    pub device: String,
    /// What the device computes with, e.g. "LibTorch 2.9.1, AVX-512".
    pub kernels: String,
    /// The device's memory; 0 when unknown.
    pub memory_bytes: u64,
    /// Its kernels' fingerprint; empty when it can run no float task.
    pub fingerprint: String,
    /// Compute threads.
    pub threads: u32,
    /// Version of the program.
    pub version: String,
    /// Where peers reach its exchange, host:port; empty where it can join no cohort.
    pub exchange_address: String,
    /// TLS and time-outs. After the welcome the coordinator's failure detection counts.
    pub net: NetOptions,
}

/// A task to run.
#[derive(Clone, Debug, PartialEq)]
pub struct Assignment {
    /// The task's name.
    pub id: TaskId,
    /// The try.
    pub attempt: AttemptNumber,
    /// The job on whose behalf it runs.
    pub job: JobId,
    /// Its stage.
    pub stage: Stage,
    /// What to do.
    pub task: Task,
    /// Under which number to write the manifest.
    pub incarnation: u32,
    /// The cluster's object store.
    pub store_url: String,
    /// Its cohort; nobody where it is for one worker alone, or to stand by.
    pub cohort: Vec<Member>,
    /// Where a training's checkpoints lie.
    pub checkpoints: Place,
}

/// A task's success.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The manifest's meta.
    pub meta: Value,
    /// Whether the artifact was there already.
    pub found: bool,
}

/// A task's failure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TaskFailure {
    /// The cause: input, place in it, and what to do.
    pub message: String,
    /// Whether another try can help.
    pub retryable: bool,
}

/// Whatever runs tasks.
pub trait Executor: Send + Sync + 'static {
    /// Runs one task to its end, on a thread of its own.
    fn run(&self, assignment: Assignment, context: &TaskContext) -> Result<Outcome, TaskFailure>;
}

/// Serves coordinators until `shutdown`. Only a wrong address or wrong TLS files end it earlier.
pub async fn run(
    config: Config,
    executor: Arc<dyn Executor>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), NetError> {
    tokio::pin!(shutdown);
    for url in &config.coordinators {
        net::channel(url, &config.net)?;
    }
    let (news_sender, news) = mpsc::channel(NEWS);
    let (ended_sender, ended) = mpsc::unbounded_channel();
    let detection = config.net.failure_detection;
    let mut session = Session {
        config,
        executor,
        epoch: 0,
        store_url: String::new(),
        detection,
        sessions: 0,
        running: None,
        orphaned: None,
        queue: VecDeque::new(),
        held: BTreeMap::new(),
        news_sender,
        news,
        ended_sender,
        ended,
    };
    let mut tries = 0u32;
    loop {
        let which = tries as usize % session.config.coordinators.len().max(1);
        let Some(url) = session.config.coordinators.get(which).cloned() else { return Ok(()) };
        let dialled = Instant::now();
        let cause = tokio::select! {
            () = &mut shutdown => {
                session.stop();
                return Ok(());
            }
            cause = session.serve(&url) => cause,
        };
        session.orphaned(true);
        // A session that held for a while begins the pauses anew.
        tries = if dialled.elapsed() > session.detection { 1 } else { tries.saturating_add(1) };
        let pause = backoff(tries, session.detection);
        tracing::warn!(
            coordinator = url,
            "session ended: {cause}; dialling again in {} ms",
            pause.as_millis()
        );
        tokio::select! {
            () = &mut shutdown => {
                session.stop();
                return Ok(());
            }
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Between a half and all of a pause that doubles up to half the failure detection, so that workers do not all
/// dial at one moment and a restarted coordinator hears of what they run in time.
fn backoff(tries: u32, detection: Duration) -> Duration {
    let longest = (detection / 2).max(FIRST_BACKOFF);
    let pause = FIRST_BACKOFF.saturating_mul(1 << tries.saturating_sub(1).min(16)).min(longest);
    let share = RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64;
    pause.mul_f64(0.5 + share / 2.0)
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum SessionEnd {
    #[error(transparent)]
    Net(#[from] NetError),
    #[error("{0}")]
    Call(String),
    #[error("the coordinator did not answer for {0:?}")]
    Silent(Duration),
    #[error("the coordinator closed it")]
    Closed,
    #[error("its epoch {theirs} is lower than {seen}, which was seen before: it is not the leader any more")]
    OldEpoch { theirs: u64, seen: u64 },
    #[error("it began with something else than a welcome")]
    NoWelcome,
}

struct Session {
    config: Config,
    executor: Arc<dyn Executor>,
    epoch: u64,
    store_url: String,
    detection: Duration,
    /// Sessions that were welcomed.
    sessions: u64,
    running: Option<TaskContext>,
    /// Since when no coordinator has been there.
    orphaned: Option<Instant>,
    queue: VecDeque<Assignment>,
    /// Results that are not settled.
    held: BTreeMap<Key, ToCoordinator>,
    news_sender: mpsc::Sender<ToCoordinator>,
    news: mpsc::Receiver<ToCoordinator>,
    ended_sender: mpsc::UnboundedSender<(Key, ToCoordinator)>,
    ended: mpsc::UnboundedReceiver<(Key, ToCoordinator)>,
}

/// The stream to the coordinator.
struct Outbound {
    sender: mpsc::Sender<proto::SessionRequest>,
    patience: Duration,
}

impl Outbound {
    async fn say(&self, message: ToCoordinator) -> Result<(), SessionEnd> {
        let request = proto::SessionRequest { message: Some(message) };
        match tokio::time::timeout(self.patience, self.sender.send(request)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(SessionEnd::Closed),
            Err(_) => Err(SessionEnd::Silent(self.patience)),
        }
    }
}

impl Session {
    fn orphaned(&mut self, orphaned: bool) {
        self.orphaned = orphaned.then(|| self.orphaned.unwrap_or_else(Instant::now));
        if let Some(running) = &self.running {
            running.orphaned(self.orphaned);
        }
    }

    fn stop(&mut self) {
        if let Some(running) = &self.running {
            running.stop(true);
        }
    }

    /// One session from dialling to its end.
    async fn serve(&mut self, url: &str) -> SessionEnd {
        match self.try_serve(url).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn try_serve(&mut self, url: &str) -> Result<std::convert::Infallible, SessionEnd> {
        let call = |status: tonic::Status| SessionEnd::Call(net::describe(url, &status));
        let channel = net::channel(url, &self.config.net)?;
        let mut client = WorkersClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let (sender, receiver) = mpsc::channel(STREAM_QUEUE);
        let outbound = Outbound { sender, patience: self.detection };
        self.drain_ended();
        outbound.say(self.hello()).await?;
        let silent = SessionEnd::Silent(self.detection);
        let opened = tokio::time::timeout(2 * self.detection, client.session(ReceiverStream::new(receiver)));
        let mut inbound = opened.await.map_err(|_| silent)?.map_err(call)?.into_inner();
        let first = tokio::time::timeout(self.detection, inbound.message());
        let first = first.await.map_err(|_| SessionEnd::Silent(self.detection))?.map_err(call)?;
        let Some(FromCoordinator::Welcome(welcome)) = first.and_then(|response| response.message) else {
            return Err(SessionEnd::NoWelcome);
        };
        self.welcome(welcome)?;
        self.sessions += 1;
        if let Some(running) = &self.running {
            running.connected(self.sessions);
        }
        self.orphaned(false);
        tracing::info!(coordinator = url, epoch = self.epoch, "session is up");
        for message in self.held.values().cloned().collect::<Vec<_>>() {
            outbound.say(message).await?;
        }
        let mut beats = tokio::time::interval(self.detection / BEATS_PER_DETECTION);
        beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut deadline = tokio::time::Instant::now() + self.detection;
        loop {
            tokio::select! {
                response = inbound.message() => {
                    deadline = tokio::time::Instant::now() + self.detection;
                    let response = response.map_err(call)?.ok_or(SessionEnd::Closed)?;
                    if let Some(message) = response.message {
                        self.handle(message, &outbound).await?;
                    }
                }
                _ = beats.tick() => outbound.say(ToCoordinator::Beat(proto::Beat {})).await?,
                Some(((id, _), result)) = self.ended.recv() => {
                    let result = self.hold_ended(id, result);
                    outbound.say(result).await?;
                    self.start_next();
                }
                Some(news) = self.news.recv() => outbound.say(news).await?,
                () = tokio::time::sleep_until(deadline) => return Err(SessionEnd::Silent(self.detection)),
            }
        }
    }

    fn hello(&self) -> ToCoordinator {
        let running = self.running.iter().map(|running| (running.id(), running.attempt()));
        let queued = self.queue.iter().map(|assignment| (assignment.id, assignment.attempt));
        let in_hand = running.chain(queued).chain(self.held.keys().copied());
        let Config {
            coordinators: _,
            worker,
            device,
            kernels,
            memory_bytes,
            fingerprint,
            threads,
            version,
            exchange_address,
            net: _,
        } = &self.config;
        ToCoordinator::Hello(proto::Hello {
            worker_id: worker.to_string(),
            protocol: SESSION_PROTOCOL,
            version: version.clone(),
            device: device.clone(),
            kernels: kernels.clone(),
            memory_bytes: *memory_bytes,
            fingerprint: fingerprint.clone(),
            threads: *threads,
            exchange_address: exchange_address.clone(),
            in_hand: in_hand.map(|(id, number)| attempt(id, number)).collect(),
        })
    }

    fn welcome(&mut self, welcome: proto::Welcome) -> Result<(), SessionEnd> {
        let proto::Welcome { epoch, failure_detection_ms, store_url } = welcome;
        if epoch < self.epoch {
            return Err(SessionEnd::OldEpoch { theirs: epoch, seen: self.epoch });
        }
        self.epoch = epoch;
        self.store_url = store_url;
        if failure_detection_ms > 0 {
            self.detection = Duration::from_millis(failure_detection_ms);
        }
        Ok(())
    }

    async fn handle(&mut self, message: FromCoordinator, outbound: &Outbound) -> Result<(), SessionEnd> {
        match message {
            FromCoordinator::Welcome(_) | FromCoordinator::Pulse(proto::Pulse {}) => Ok(()),
            FromCoordinator::Run(run) => self.accept(run, outbound).await,
            FromCoordinator::Stop(proto::Stop { attempt, force }) => match attempt.and_then(key) {
                Some(key) => self.stop_attempt(key, force, outbound).await,
                None => Ok(()),
            },
            FromCoordinator::Settled(proto::Settled { attempt }) => {
                if let Some(key) = attempt.and_then(key) {
                    self.held.remove(&key);
                }
                Ok(())
            }
        }
    }

    async fn accept(&mut self, run: proto::Run, outbound: &Outbound) -> Result<(), SessionEnd> {
        let Some(key) = run.attempt.clone().and_then(key) else { return Ok(()) };
        if self.has(key) {
            return Ok(());
        }
        let refusal = match decode(run, key, &self.store_url) {
            Ok(assignment) if self.is_next_generation(&assignment) => {
                return self.regroup(assignment, outbound).await;
            }
            Ok(_) if self.queue.len() >= QUEUE => failure("the worker's queue is full".to_owned(), true),
            Ok(assignment) => {
                self.queue.push_back(assignment);
                self.start_next();
                return Ok(());
            }
            // Another worker, of another version, may understand it.
            Err(cause) => failure(format!("the assignment is not understood: {cause}"), true),
        };
        let result = failed(key, refusal, Duration::ZERO);
        self.hold(key, result.clone());
        outbound.say(result).await
    }

    /// Whether it is about a task that is in hand under a lower number.
    fn is_next_generation(&self, assignment: &Assignment) -> bool {
        let (id, number) = (assignment.id, assignment.attempt);
        let is_older = |known: TaskId, attempt: AttemptNumber| known == id && attempt < number;
        self.running.as_ref().is_some_and(|running| is_older(running.id(), running.attempt()))
            || self.queue.iter().any(|queued| is_older(queued.id, queued.attempt))
            || self.finished_before(id, number).is_some()
    }

    fn finished_before(&self, id: TaskId, number: AttemptNumber) -> Option<Key> {
        let mut held = self.held.range((id, AttemptNumber(0))..(id, number));
        held.find(|(_, result)| matches!(result, ToCoordinator::Finished(_))).map(|(key, _)| *key)
    }

    /// Passes a task's next generation on. Where the task is done already, that is the answer.
    async fn regroup(&mut self, assignment: Assignment, outbound: &Outbound) -> Result<(), SessionEnd> {
        let key = (assignment.id, assignment.attempt);
        if let Some(running) = self.running.as_ref().filter(|running| running.id() == key.0) {
            running.regroup(key.1, assignment.cohort);
            return Ok(());
        }
        if let Some(before) = self.finished_before(key.0, key.1)
            && let Some(result) = self.held.remove(&before)
        {
            let result = renumbered(result, key);
            self.held.insert(key, result.clone());
            return outbound.say(result).await;
        }
        if let Some(queued) = self.queue.iter_mut().find(|queued| queued.id == key.0) {
            *queued = assignment;
        }
        Ok(())
    }

    fn has(&self, key: Key) -> bool {
        self.runs(key)
            || self.queue.iter().any(|assignment| (assignment.id, assignment.attempt) == key)
            || self.held.contains_key(&key)
    }

    fn runs(&self, key: Key) -> bool {
        self.running.as_ref().is_some_and(|running| (running.id(), running.attempt()) == key)
    }

    /// The coordinator gives no other work until the attempt has been answered for, whatever became of it.
    async fn stop_attempt(&mut self, key: Key, force: bool, outbound: &Outbound) -> Result<(), SessionEnd> {
        if let Some(running) = self.running.as_ref().filter(|_| self.runs(key)) {
            running.stop(force);
            return Ok(());
        }
        if let Some(result) = self.held.get(&key).cloned() {
            return outbound.say(result).await;
        }
        self.queue.retain(|assignment| (assignment.id, assignment.attempt) != key);
        let result = failed(key, failure("stopped before it began".to_owned(), true), Duration::ZERO);
        outbound.say(result).await
    }

    fn hold(&mut self, key: Key, result: ToCoordinator) {
        self.held.insert(key, result);
        if self.runs(key) {
            self.running = None;
        }
    }

    /// Holds what a task's thread ended with, under the number that counts now; a next generation may have been
    /// named after the thread had looked.
    fn hold_ended(&mut self, id: TaskId, result: ToCoordinator) -> ToCoordinator {
        let Some(running) = self.running.as_ref().filter(|running| running.id() == id) else { return result };
        let key = (id, running.attempt());
        let result = renumbered(result, key);
        self.hold(key, result.clone());
        result
    }

    /// What ended while nobody was connected.
    fn drain_ended(&mut self) {
        while let Ok(((id, _), result)) = self.ended.try_recv() {
            self.hold_ended(id, result);
        }
        self.start_next();
    }

    fn start_next(&mut self) {
        if self.running.is_some() {
            return;
        }
        let Some(assignment) = self.queue.pop_front() else { return };
        let key = (assignment.id, assignment.attempt);
        let cohort = retort_common::cohort::limit(&assignment.task).map(|_| assignment.cohort.clone());
        let context = TaskContext::new(key.0, key.1, cohort, self.news_sender.clone());
        context.connected(self.sessions);
        self.running = Some(context.clone());
        let (executor, ended) = (self.executor.clone(), self.ended_sender.clone());
        let work = move || {
            let started = Instant::now();
            let outcome = catch_unwind(AssertUnwindSafe(|| executor.run(assignment, &context)));
            let outcome = outcome.unwrap_or_else(|panic| Err(panicked(&*panic)));
            let _ = ended.send((key, result(key, outcome, started.elapsed())));
        };
        let name = format!("task-{:?}", key.0);
        if let Err(error) = std::thread::Builder::new().name(name).spawn(work) {
            let refusal = failure(format!("no thread for the task: {error}"), true);
            let _ = self.ended_sender.send((key, failed(key, refusal, Duration::ZERO)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_half_the_failure_detection_with_jitter() {
        let detection = Duration::from_secs(4);
        for (tries, longest_ms) in [(1, 50), (2, 100), (5, 800), (30, 2000), (u32::MAX, 2000)] {
            let longest = Duration::from_millis(longest_ms);
            let pause = backoff(tries, detection);
            assert!(pause <= longest && pause >= longest / 2, "{tries}: {pause:?}");
        }
    }
}
