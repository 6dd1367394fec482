//! The one task that owns the state: it drains inputs, decides, appends the facts as one batch, and only then
//! releases commands and replies. Everyone else sends it messages.

use crate::journal::{Journal, JournalError};
use crate::logs::{LogLine, Logs};
use crate::scheduler::view;
use crate::scheduler::{self, Command, Decision, Fact, HelloInfo, Input, Refusal, Reply, State};
use futures::StreamExt;
use futures::future::BoxFuture;
use retort_common::ids::{JobId, WorkerId};
use retort_common::task::ArtifactId;
use retort_common::view::JobView;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{mpsc, oneshot};

/// Messages that wait for the driver; senders wait when it is full.
const INBOX: usize = 4096;
/// Commands that wait for one session; a session that takes none of them is closed.
pub const SESSION_QUEUE: usize = 256;
/// Ticks in a failure detection.
const TICKS_PER_DETECTION: u32 = 5;
/// Manifests looked for at one time.
const PROBES_IN_FLIGHT: usize = 32;
/// Tries of looking for a manifest. After them the task counts as not done; its worker looks again.
const PROBE_TRIES: u32 = 3;
/// Pause between them.
const PROBE_PAUSE: Duration = Duration::from_secs(1);
/// How old the view of a live job may be, so that elapsed time and estimate move without news.
const VIEW_AGE_MS: u64 = 1_000;
/// How old it may be after news.
const FRESH_VIEW_AGE_MS: u64 = 100;

/// Looks for an artifact's manifest: its meta and incarnation.
pub type Probe =
    Arc<dyn Fn(ArtifactId) -> BoxFuture<'static, Result<Option<(Value, u32)>, String>> + Send + Sync>;

/// The driver has ended; the process is about to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the coordinator is shutting down; try again")]
pub struct Stopped;

type Query = Box<dyn FnOnce(&mut Desk) + Send>;

enum Message {
    Input(Input, Option<oneshot::Sender<Result<Reply, Refusal>>>),
    Hello { worker: WorkerId, session: u64, info: HelloInfo, commands: mpsc::Sender<Command> },
    Query(Query),
}

/// How everyone else speaks to the driver.
#[derive(Clone)]
pub struct Handle {
    inbox: mpsc::Sender<Message>,
    sessions: Arc<AtomicU64>,
}

impl Handle {
    /// Sends an input that nobody waits for.
    pub async fn send(&self, input: Input) -> Result<(), Stopped> {
        self.inbox.send(Message::Input(input, None)).await.map_err(|_| Stopped)
    }

    /// Sends a client's input; the answer comes when the facts are in the journal.
    pub async fn request(&self, input: Input) -> Result<Result<Reply, Refusal>, Stopped> {
        let (sender, receiver) = oneshot::channel();
        self.inbox.send(Message::Input(input, Some(sender))).await.map_err(|_| Stopped)?;
        receiver.await.map_err(|_| Stopped)
    }

    /// Opens a session; its number and the commands for it, until it is closed.
    pub async fn hello(
        &self,
        worker: WorkerId,
        info: HelloInfo,
    ) -> Result<(u64, mpsc::Receiver<Command>), Stopped> {
        let session = self.sessions.fetch_add(1, Ordering::Relaxed) + 1;
        let (sender, receiver) = mpsc::channel(SESSION_QUEUE);
        let message = Message::Hello { worker, session, info, commands: sender };
        self.inbox.send(message).await.map_err(|_| Stopped)?;
        Ok((session, receiver))
    }

    /// Reads what is in the journal.
    pub async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Desk) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        let (sender, receiver) = oneshot::channel();
        let query: Query = Box::new(move |desk| drop(sender.send(question(desk))));
        self.inbox.send(Message::Query(query)).await.map_err(|_| Stopped)?;
        receiver.await.map_err(|_| Stopped)
    }
}

/// What queries may look at.
pub struct Desk {
    /// The state. Everything in it is in the journal when a query runs.
    pub state: State,
    /// The logs.
    pub logs: Logs,
    /// The cluster's uptime.
    pub now_ms: u64,
    /// Views of jobs: when they were made, and whether there was news since.
    views: BTreeMap<JobId, (u64, bool, Arc<JobView>)>,
}

impl Desk {
    /// A job by id or prefix.
    pub fn job(&mut self, text: &str) -> Result<Arc<JobView>, Refusal> {
        let id = self.state.resolve(text)?;
        self.view(&id).ok_or_else(|| Refusal::NotFound { text: text.to_owned() })
    }

    /// A job as it stands at this moment, for whoever has just changed it.
    pub fn job_now(&mut self, id: &JobId) -> Result<Arc<JobView>, Refusal> {
        self.views.remove(id);
        self.view(id).ok_or_else(|| Refusal::NotFound { text: id.to_string() })
    }

    /// All jobs, newest first.
    pub fn jobs(&mut self, all: bool) -> Vec<Arc<JobView>> {
        let mut ids: Vec<_> = self.state.jobs.iter().filter(|(_, job)| all || job.end.is_none()).collect();
        ids.sort_by_key(|(_, job)| std::cmp::Reverse(job.order));
        let ids: Vec<_> = ids.into_iter().map(|(id, _)| id.clone()).collect();
        ids.iter().filter_map(|id| self.view(id)).collect()
    }

    /// Views are made rarely, whoever watches: they look at every task of a job.
    fn view(&mut self, id: &JobId) -> Option<Arc<JobView>> {
        let ended = self.state.jobs.get(id)?.end.is_some();
        if let Some((made_ms, news, view)) = self.views.get(id) {
            let age_ms = self.now_ms.saturating_sub(*made_ms);
            let limit_ms = if *news { FRESH_VIEW_AGE_MS } else { VIEW_AGE_MS };
            if view.state.has_ended() || (!ended && age_ms < limit_ms) {
                return Some(view.clone());
            }
        }
        let view = Arc::new(view::job(&self.state, id, self.now_ms)?);
        self.views.insert(id.clone(), (self.now_ms, false, view.clone()));
        Some(view)
    }
}

/// Something that waits for the journal.
enum Release {
    Register { worker: WorkerId, session: u64, commands: mpsc::Sender<Command> },
    Command(Command),
    Reply(oneshot::Sender<Result<Reply, Refusal>>, Result<Reply, Refusal>),
}

/// The driver before it runs.
pub struct Driver<J> {
    desk: Desk,
    journal: J,
    inbox: mpsc::Receiver<Message>,
    routes: BTreeMap<WorkerId, (u64, mpsc::Sender<Command>)>,
    probes: mpsc::UnboundedSender<Vec<ArtifactId>>,
    started: Instant,
    base_ms: u64,
    tick: Duration,
}

impl<J: Journal> Driver<J> {
    /// A driver over a journal that has been fenced; replays its facts.
    pub async fn recover(
        mut journal: J,
        failure_detection: Duration,
        stall_limit: Duration,
        probe: Probe,
    ) -> Result<(Self, Handle), JournalError> {
        let facts = journal.load().await?;
        let mut state = State::new(failure_detection.as_millis() as u64);
        facts.iter().for_each(|fact| scheduler::apply(&mut state, fact));
        state.stall_limit_ms = stall_limit.as_millis() as u64;
        let base_ms = state.clock_ms;
        state.recover(base_ms);
        tracing::info!(
            facts = facts.len(),
            jobs = state.jobs.len(),
            live = state.live.len(),
            "journal replayed"
        );
        let (sender, inbox) = mpsc::channel(INBOX);
        let handle = Handle { inbox: sender, sessions: Arc::new(AtomicU64::new(0)) };
        let (probes, wanted) = mpsc::unbounded_channel();
        tokio::spawn(look_for_manifests(wanted, probe, handle.inbox.downgrade()));
        let desk = Desk { state, logs: Logs::default(), now_ms: base_ms, views: BTreeMap::new() };
        let tick = (failure_detection / TICKS_PER_DETECTION).max(Duration::from_millis(1));
        let routes = BTreeMap::new();
        let started = Instant::now();
        Ok((Self { desk, journal, inbox, routes, probes, started, base_ms, tick }, handle))
    }

    /// Works until `stop` or until the journal fails, after which the process must end.
    pub async fn run(mut self, mut stop: oneshot::Receiver<()>) -> Result<(), JournalError> {
        let mut ticks = tokio::time::interval(self.tick);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut last_tick = Instant::now();
        loop {
            let mut batch = Vec::new();
            let mut tick_due = false;
            tokio::select! {
                _ = &mut stop => return Ok(()),
                _ = ticks.tick() => tick_due = true,
                message = self.inbox.recv() => match message {
                    Some(message) => batch.push(message),
                    None => return Ok(()),
                },
            }
            // Beats that have arrived count before anybody is called silent.
            while batch.len() < INBOX {
                let Ok(message) = self.inbox.try_recv() else { break };
                batch.push(message);
            }
            let mut late_ms = 0;
            if tick_due {
                let passed = std::mem::replace(&mut last_tick, Instant::now()).elapsed();
                if passed > 2 * self.tick {
                    late_ms = (passed - self.tick).as_millis() as u64;
                }
            }
            self.turn(batch, tick_due.then_some(late_ms)).await?;
        }
    }

    async fn turn(&mut self, batch: Vec<Message>, tick: Option<u64>) -> Result<(), JournalError> {
        let now_ms = self.base_ms + self.started.elapsed().as_millis() as u64;
        self.desk.now_ms = now_ms;
        let (mut facts, mut releases, mut queries) = (Vec::new(), Vec::new(), Vec::new());
        for message in batch {
            match message {
                Message::Query(query) => queries.push(query),
                Message::Input(input, reply) => self.decide(input, reply, &mut facts, &mut releases),
                Message::Hello { worker, session, info, commands } => {
                    releases.push(Release::Register { worker: worker.clone(), session, commands });
                    let input = Input::WorkerHello { worker, session, info };
                    self.decide(input, None, &mut facts, &mut releases);
                }
            }
        }
        if let Some(late_ms) = tick {
            self.decide(Input::Tick { late_ms }, None, &mut facts, &mut releases);
        }
        if !facts.is_empty() {
            self.journal.append(facts).await?;
        }
        releases.into_iter().for_each(|release| self.release(release));
        queries.into_iter().for_each(|query| query(&mut self.desk));
        Ok(())
    }

    /// Facts are applied before they are appended: if the append fails, the process ends and nobody has seen
    /// what followed from them.
    fn decide(
        &mut self,
        input: Input,
        mut reply: Option<oneshot::Sender<Result<Reply, Refusal>>>,
        facts: &mut Vec<Fact>,
        releases: &mut Vec<Release>,
    ) {
        for decision in scheduler::step(&mut self.desk.state, self.desk.now_ms, input) {
            let Decision { facts: decided, commands, reply: answer, reason } = decision;
            if !reason.is_empty() {
                tracing::debug!("{reason}");
            }
            facts.extend(decided.into_iter().filter(Fact::is_durable));
            releases.extend(commands.into_iter().map(Release::Command));
            if let Some((sender, answer)) = answer.and_then(|answer| Some((reply.take()?, answer))) {
                releases.push(Release::Reply(sender, answer));
            }
        }
    }

    fn release(&mut self, release: Release) {
        match release {
            Release::Register { worker, session, commands } => {
                if self.desk.state.workers.get(&worker).is_some_and(|known| known.session == session) {
                    tracing::info!(%worker, session, "worker connected");
                    self.routes.insert(worker, (session, commands));
                }
            }
            // A client that has gone away needs no answer.
            Release::Reply(sender, answer) => drop(sender.send(answer)),
            Release::Command(command) => self.carry_out(command),
        }
    }

    fn carry_out(&mut self, command: Command) {
        match command {
            Command::Probe(artifacts) => drop(self.probes.send(artifacts)),
            Command::JobChanged(job) => {
                if let Some((_, news, _)) = self.desk.views.get_mut(&job) {
                    *news = true;
                }
            }
            Command::Log { job, worker, stage, level, message } => {
                let line = LogLine { sequence: 0, unix_ms: unix_ms(), level, worker, stage, message };
                if line.worker.is_none() {
                    tracing::info!(%job, level = line.level, "{}", line.message);
                }
                self.desk.logs.push(job, line);
            }
            Command::Close { worker } => drop(self.routes.remove(&worker)),
            Command::Run { ref worker, .. }
            | Command::Stop { ref worker, .. }
            | Command::Settle { ref worker, .. } => {
                let worker = worker.clone();
                let Some((_, route)) = self.routes.get(&worker) else { return };
                // What is lost with the session is dealt again when the worker says what it has in hand.
                if route.try_send(command).is_err() {
                    tracing::warn!(%worker, "session takes no more commands; closing it");
                    self.routes.remove(&worker);
                }
            }
        }
    }
}

/// The wall clock, for display only.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

async fn look_for_manifests(
    mut wanted: mpsc::UnboundedReceiver<Vec<ArtifactId>>,
    probe: Probe,
    inbox: mpsc::WeakSender<Message>,
) {
    let mut running = futures::stream::FuturesUnordered::new();
    let mut waiting: std::collections::VecDeque<ArtifactId> = Default::default();
    loop {
        while running.len() < PROBES_IN_FLIGHT {
            let Some(artifact) = waiting.pop_front() else { break };
            running.push(look_for_manifest(artifact, probe.clone()));
        }
        tokio::select! {
            more = wanted.recv() => match more {
                Some(artifacts) => waiting.extend(artifacts),
                None => return,
            },
            Some(input) = running.next() => {
                let Some(inbox) = inbox.upgrade() else { return };
                if inbox.send(Message::Input(input, None)).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn look_for_manifest(artifact: ArtifactId, probe: Probe) -> Input {
    let task = artifact.task;
    for _ in 0..PROBE_TRIES {
        match probe(artifact.clone()).await {
            Ok(found) => return Input::Probed { task, found },
            Err(error) => tracing::warn!(%artifact, "cannot look for the manifest: {error}"),
        }
        tokio::time::sleep(PROBE_PAUSE).await;
    }
    Input::Probed { task, found: None }
}
