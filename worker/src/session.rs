//! A worker's side of the session with the coordinator.
//!
//! [`run`] dials for ever. Tasks outlive sessions: what runs goes on while the coordinator is away, results are
//! kept until they are settled, and every hello says what is in hand. Compute blocks, so that each task has an
//! OS thread of its own, one at a time.

use retort_common::ids::{AttemptNumber, JobId, TaskId, WorkerId};
use retort_common::net::{self, MAX_MESSAGE_BYTES, NetError, NetOptions, SESSION_PROTOCOL};
use retort_common::proto;
use retort_common::proto::session_request::Message as ToCoordinator;
use retort_common::proto::session_response::Message as FromCoordinator;
use retort_common::proto::workers_client::WorkersClient;
use retort_common::task::{Stage, Task};
use serde_json::Value;
use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Assignments that wait for the one in work; more are refused. The coordinator deals one at a time.
const QUEUE: usize = 16;
/// Progress and log records that wait for the session; more are dropped.
const NEWS: usize = 1024;
/// Messages that wait for the stream.
const STREAM_QUEUE: usize = 64;
/// Signs of life in a failure detection.
const BEATS_PER_DETECTION: u32 = 4;
/// Shortest pause between two progress records of a task.
const PROGRESS_PAUSE: Duration = Duration::from_millis(200);
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
    /// Its kernels' fingerprint; empty when it can run no float task.
    pub fingerprint: String,
    /// Compute threads.
    pub threads: u32,
    /// Version of the program.
    pub version: String,
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

/// A request to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    /// At once, without a checkpoint.
    pub force: bool,
}

/// Whatever runs tasks.
pub trait Executor: Send + Sync + 'static {
    /// Runs one task to its end, on a thread of its own.
    fn run(&self, assignment: Assignment, context: &TaskContext) -> Result<Outcome, TaskFailure>;
}

/// What a running task can say and must look at.
#[derive(Clone, Debug)]
pub struct TaskContext {
    id: TaskId,
    attempt: AttemptNumber,
    stop: Arc<AtomicU8>,
    said: Arc<Mutex<Option<Instant>>>,
    news: mpsc::Sender<ToCoordinator>,
}

const GO_ON: u8 = 0;
const STOP: u8 = 1;
const STOP_AT_ONCE: u8 = 2;

impl TaskContext {
    fn new(id: TaskId, attempt: AttemptNumber, news: mpsc::Sender<ToCoordinator>) -> Self {
        let (stop, said) = (Arc::new(AtomicU8::new(GO_ON)), Arc::new(Mutex::new(None)));
        Self { id, attempt, stop, said, news }
    }

    /// A context that nobody listens to, for running a task without a session.
    pub fn detached(id: TaskId) -> Self {
        Self::new(id, AttemptNumber(1), mpsc::channel(1).0)
    }

    /// Says how far the task has come; `total` 0 means unknown. Calls in quick succession are dropped, but not
    /// the last one.
    pub fn progress(&self, done: u64, total: u64, detail: &str) {
        let last = total > 0 && done >= total;
        let Ok(mut said) = self.said.lock() else { return };
        if !last && said.is_some_and(|at| at.elapsed() < PROGRESS_PAUSE) {
            return;
        }
        *said = Some(Instant::now());
        let attempt = Some(attempt(self.id, self.attempt));
        self.say(ToCoordinator::Progress(proto::Progress {
            attempt,
            done,
            total,
            detail: detail.to_owned(),
        }));
    }

    /// A line for the job's log; the level is INFO, WARN or ERROR.
    pub fn log(&self, level: &str, message: &str) {
        let (level, message) = (level.to_owned(), message.to_owned());
        let attempt = Some(attempt(self.id, self.attempt));
        self.say(ToCoordinator::Log(proto::Log { attempt, level, message }));
    }

    /// Whether the task should stop. A task looks here at least once a second or so.
    pub fn cancelled(&self) -> Option<Stop> {
        match self.stop.load(Ordering::Relaxed) {
            GO_ON => None,
            value => Some(Stop { force: value == STOP_AT_ONCE }),
        }
    }

    fn stop(&self, force: bool) {
        self.stop.fetch_max(if force { STOP_AT_ONCE } else { STOP }, Ordering::Relaxed);
    }

    /// News must not hold up compute; a full queue means that the coordinator is away.
    fn say(&self, message: ToCoordinator) {
        let _ = self.news.try_send(message);
    }
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
        running: None,
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

type Key = (TaskId, AttemptNumber);

struct Session {
    config: Config,
    executor: Arc<dyn Executor>,
    epoch: u64,
    store_url: String,
    detection: Duration,
    running: Option<TaskContext>,
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
                Some((key, result)) = self.ended.recv() => {
                    self.hold(key, result.clone());
                    outbound.say(result).await?;
                    self.start_next();
                }
                Some(news) = self.news.recv() => outbound.say(news).await?,
                () = tokio::time::sleep_until(deadline) => return Err(SessionEnd::Silent(self.detection)),
            }
        }
    }

    fn hello(&self) -> ToCoordinator {
        let running = self.running.iter().map(|running| (running.id, running.attempt));
        let queued = self.queue.iter().map(|assignment| (assignment.id, assignment.attempt));
        let in_hand = running.chain(queued).chain(self.held.keys().copied());
        let Config { coordinators: _, worker, device, fingerprint, threads, version, net: _ } = &self.config;
        ToCoordinator::Hello(proto::Hello {
            worker_id: worker.to_string(),
            protocol: SESSION_PROTOCOL,
            version: version.clone(),
            device: device.clone(),
            fingerprint: fingerprint.clone(),
            threads: *threads,
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
            Ok(_) if self.queue.len() >= QUEUE => failure("the worker's queue is full".to_owned(), true),
            Ok(assignment) => {
                self.queue.push_back(assignment);
                self.start_next();
                return Ok(());
            }
            Err(cause) => failure(format!("the assignment is not understood: {cause}"), false),
        };
        let result = failed(key, refusal, Duration::ZERO);
        self.hold(key, result.clone());
        outbound.say(result).await
    }

    fn has(&self, key: Key) -> bool {
        self.running.as_ref().is_some_and(|running| (running.id, running.attempt) == key)
            || self.queue.iter().any(|assignment| (assignment.id, assignment.attempt) == key)
            || self.held.contains_key(&key)
    }

    /// The coordinator gives no other work until the attempt has been answered for, whatever became of it.
    async fn stop_attempt(&mut self, key: Key, force: bool, outbound: &Outbound) -> Result<(), SessionEnd> {
        if let Some(running) = self.running.as_ref().filter(|running| (running.id, running.attempt) == key) {
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
        if self.running.as_ref().is_some_and(|running| (running.id, running.attempt) == key) {
            self.running = None;
        }
    }

    /// What ended while nobody was connected.
    fn drain_ended(&mut self) {
        while let Ok((key, result)) = self.ended.try_recv() {
            self.hold(key, result);
        }
        self.start_next();
    }

    fn start_next(&mut self) {
        if self.running.is_some() {
            return;
        }
        let Some(assignment) = self.queue.pop_front() else { return };
        let key = (assignment.id, assignment.attempt);
        let context = TaskContext::new(key.0, key.1, self.news_sender.clone());
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

fn attempt(id: TaskId, number: AttemptNumber) -> proto::Attempt {
    proto::Attempt { task: id.to_string(), attempt: number.0 }
}

fn key(attempt: proto::Attempt) -> Option<Key> {
    let proto::Attempt { task, attempt } = attempt;
    Some((TaskId(task.parse().ok()?), AttemptNumber(attempt)))
}

fn decode(run: proto::Run, (id, attempt): Key, store_url: &str) -> Result<Assignment, String> {
    let proto::Run { attempt: _, job_id, stage: _, task_json, incarnation } = run;
    let job = job_id.parse().map_err(|error| format!("{error}"))?;
    let task: Task = serde_json::from_str(&task_json).map_err(|error| error.to_string())?;
    // Another version of the task's form would give its output a wrong name.
    if task.id() != id {
        return Err("the task's digest is another; use the same version of retort everywhere".to_owned());
    }
    let (stage, store_url) = (task.stage(), store_url.to_owned());
    Ok(Assignment { id, attempt, job, stage, task, incarnation, store_url })
}

fn failure(message: String, retryable: bool) -> TaskFailure {
    TaskFailure { message, retryable }
}

fn panicked(panic: &(dyn Any + Send)) -> TaskFailure {
    let text =
        panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    // A panic may be of this machine alone, so another may try.
    failure(format!("panicked: {}", text.unwrap_or("without a message")), true)
}

fn result(key: Key, outcome: Result<Outcome, TaskFailure>, elapsed: Duration) -> ToCoordinator {
    let Outcome { meta, found } = match outcome {
        Ok(outcome) => outcome,
        Err(failure) => return failed(key, failure, elapsed),
    };
    let meta_json = meta.to_string();
    if meta_json.len() > MAX_META_BYTES {
        let message =
            format!("the artifact's meta has {} bytes, more than {MAX_META_BYTES}", meta_json.len());
        return failed(key, failure(message, false), elapsed);
    }
    let (attempt, elapsed_ms) = (Some(attempt(key.0, key.1)), elapsed.as_millis() as u64);
    ToCoordinator::Finished(proto::Finished { attempt, meta_json, elapsed_ms, found })
}

fn failed(key: Key, failure: TaskFailure, elapsed: Duration) -> ToCoordinator {
    let TaskFailure { message, retryable } = failure;
    let (attempt, elapsed_ms) = (Some(attempt(key.0, key.1)), elapsed.as_millis() as u64);
    ToCoordinator::Failed(proto::Failed { attempt, message, retryable, elapsed_ms })
}

#[cfg(test)]
mod tests {
    use super::*;
    use retort_common::ids::Digest;

    #[test]
    fn pauses_double_up_to_half_the_failure_detection_with_jitter() {
        let detection = Duration::from_secs(4);
        for (tries, longest_ms) in [(1, 50), (2, 100), (5, 800), (30, 2000), (u32::MAX, 2000)] {
            let longest = Duration::from_millis(longest_ms);
            let pause = backoff(tries, detection);
            assert!(pause <= longest && pause >= longest / 2, "{tries}: {pause:?}");
        }
    }

    #[test]
    fn progress_is_throttled_but_the_end_is_told() {
        let (sender, mut receiver) = mpsc::channel(8);
        let context = TaskContext::new(TaskId(Digest::of(b"t")), AttemptNumber(1), sender);
        for done in 0..=10 {
            context.progress(done, 10, "");
        }
        let mut told = Vec::new();
        while let Ok(ToCoordinator::Progress(progress)) = receiver.try_recv() {
            told.push(progress.done);
        }
        assert_eq!(told, [0, 10]);
    }

    #[test]
    fn a_stop_can_become_forced_and_not_less() {
        let context = TaskContext::detached(TaskId(Digest::of(b"t")));
        assert_eq!(context.cancelled(), None);
        context.stop(false);
        assert_eq!(context.cancelled(), Some(Stop { force: false }));
        context.stop(true);
        context.stop(false);
        assert_eq!(context.cancelled(), Some(Stop { force: true }));
    }

    #[test]
    fn panics_are_failures_with_their_text() {
        let panic = catch_unwind(|| panic!("row {} is torn", 7)).unwrap_err();
        assert!(panicked(&*panic).message.contains("row 7 is torn"));
    }
}
