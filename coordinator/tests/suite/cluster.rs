//! A scheduler with simulated workers. After every step the safety rules are checked.

use crate::sample;
use retort_common::checkpoint::{Origin, Place};
use retort_common::cohort;
use retort_common::ids::{AttemptNumber, JobId, TaskId, WorkerId};
use retort_common::metrics::StepReport;
use retort_common::spec::JobSpec;
use retort_common::task::Task;
use retort_coordinator::scheduler::state::{State, TaskStatus};
use retort_coordinator::scheduler::{
    self, Command, Decision, Fact, HelloInfo, Input, Outcome, Refusal, Reply, apply,
};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// The failure detection of all tests.
pub const DETECTION_MS: u64 = 5_000;

pub type Attempt = (TaskId, AttemptNumber);

/// A coordinator, its journal, and workers that do what a test says.
pub struct Cluster {
    pub state: State,
    pub now_ms: u64,
    pub journal: Vec<Fact>,
    pub logs: Vec<String>,
    /// What each worker has in hand, as its own process knows it.
    pub hands: BTreeMap<WorkerId, BTreeMap<Attempt, Task>>,
    pub sessions: BTreeMap<WorkerId, u64>,
    pub runs: Vec<(WorkerId, Attempt)>,
    /// Where the checkpoints of trainings lie, as workers were told last.
    pub places: BTreeMap<TaskId, Place>,
    pub stops: Vec<(WorkerId, Attempt, bool)>,
    pub settled: Vec<(WorkerId, Attempt)>,
    /// Manifests in the store.
    pub store: BTreeMap<TaskId, Value>,
    /// Questions about manifests that nobody has answered.
    pub probes: Vec<TaskId>,
    pub answer_probes: bool,
    /// Whether workers can train together.
    pub exchange: bool,
    /// What workers were told to get ready for and have not said that they are.
    pub standby: BTreeSet<(WorkerId, TaskId)>,
    completed: BTreeMap<TaskId, Value>,
    ended: BTreeMap<JobId, Outcome>,
    next_session: u64,
}

pub fn worker(name: &str) -> WorkerId {
    name.parse().unwrap()
}

impl Cluster {
    pub fn new() -> Self {
        Self {
            state: State::new(DETECTION_MS),
            now_ms: 0,
            journal: Vec::new(),
            logs: Vec::new(),
            hands: BTreeMap::new(),
            sessions: BTreeMap::new(),
            runs: Vec::new(),
            places: BTreeMap::new(),
            stops: Vec::new(),
            settled: Vec::new(),
            store: BTreeMap::new(),
            probes: Vec::new(),
            answer_probes: true,
            exchange: false,
            standby: BTreeSet::new(),
            completed: BTreeMap::new(),
            ended: BTreeMap::new(),
            next_session: 0,
        }
    }

    /// A cluster with connected workers that share a fingerprint.
    pub fn with(names: &[&str]) -> Self {
        let mut cluster = Self::new();
        names.iter().for_each(|name| cluster.hello(name, "f1"));
        cluster
    }

    /// The same, with workers that can train together.
    pub fn with_exchange(names: &[&str]) -> Self {
        let mut cluster = Self { exchange: true, ..Self::new() };
        names.iter().for_each(|name| cluster.hello(name, "f1"));
        cluster
    }

    /// Feeds an input and carries out what follows; the reply.
    pub fn feed(&mut self, input: Input) -> Option<Result<Reply, Refusal>> {
        let decisions = scheduler::step(&mut self.state, self.now_ms, input);
        let mut reply = None;
        for Decision { facts, commands, reply: answer, reason: _ } in decisions {
            facts.iter().for_each(|fact| self.check_fact(fact));
            self.journal.extend(facts.into_iter().filter(Fact::is_durable));
            commands.into_iter().for_each(|command| self.carry_out(command));
            reply = reply.or(answer);
        }
        self.check();
        if self.answer_probes {
            self.answer();
        }
        reply
    }

    /// Answers all questions about manifests.
    pub fn answer(&mut self) {
        for task in std::mem::take(&mut self.probes) {
            let found = self.store.get(&task).map(|meta| (meta.clone(), 1));
            self.feed(Input::Probed { task, found });
        }
    }

    fn carry_out(&mut self, command: Command) {
        match command {
            Command::Probe(artifacts) => self.probes.extend(artifacts.iter().map(|artifact| artifact.task)),
            Command::Run { worker, attempt, task, id, cohort: members, checkpoints, .. } => {
                self.runs.push((worker.clone(), (id, attempt)));
                assert_eq!(checkpoints.is_some(), cohort::limit(&task).is_some());
                checkpoints.into_iter().for_each(|place| drop(self.places.insert(id, place)));
                if !self.sessions.contains_key(&worker) {
                    return;
                }
                let hand = self.hands.entry(worker.clone()).or_default();
                match cohort::limit(&task) {
                    Some(microbatches) if !members.is_empty() => {
                        cohort::check(&members, microbatches).unwrap();
                        // What goes on counts for the newest generation.
                        hand.retain(|(known, _), _| *known != id);
                        self.standby.remove(&(worker, id));
                    }
                    Some(_) => drop(self.standby.insert((worker, id))),
                    None => assert!(members.is_empty()),
                }
                hand.insert((id, attempt), *task);
            }
            Command::Stop { worker, task, attempt, force } => {
                self.standby.remove(&(worker.clone(), task));
                self.stops.push((worker, (task, attempt), force))
            }
            Command::Settle { worker, task, attempt } => {
                self.settled.push((worker.clone(), (task, attempt)));
                self.hands.entry(worker).or_default().remove(&(task, attempt));
            }
            Command::Close { worker } => drop(self.sessions.remove(&worker)),
            Command::Log { message, .. } => self.logs.push(message),
            Command::JobChanged(_) => {}
        }
    }

    pub fn submit(&mut self, name: &str, spec: JobSpec) -> JobId {
        let request = format!("request-{name}");
        match self.try_submit(name, &request, spec) {
            Ok(Reply::Submitted { job, .. }) => job,
            other => panic!("{other:?}"),
        }
    }

    pub fn try_submit(&mut self, name: &str, request: &str, spec: JobSpec) -> Result<Reply, Refusal> {
        let inputs = Box::new(sample::inputs("a"));
        let (job, request) = (name.parse().unwrap(), request.parse().unwrap());
        self.feed(Input::Submit { job, request, spec: Box::new(spec), inputs, unix_ms: 1 }).unwrap()
    }

    pub fn cancel(&mut self, job: &JobId, force: bool) {
        self.feed(Input::Cancel { job: job.clone(), force }).unwrap().unwrap();
    }

    /// A paused job goes on, trainings from other states, by another spec.
    pub fn resume(
        &mut self,
        job: &JobId,
        branches: &[(TaskId, Option<Origin>)],
        spec: Option<JobSpec>,
    ) -> Result<Reply, Refusal> {
        let (job, branches, spec) = (job.clone(), branches.to_vec(), spec.map(Box::new));
        self.feed(Input::Resume { job, branches, spec }).unwrap()
    }

    /// A worker dials and says what it has in hand.
    pub fn hello(&mut self, name: &str, fingerprint: &str) {
        self.next_session += 1;
        let (worker, session) = (worker(name), self.next_session);
        let in_hand = self.hands.get(&worker).into_iter().flat_map(BTreeMap::keys).copied().collect();
        self.sessions.insert(worker.clone(), session);
        let fingerprint = fingerprint.to_owned();
        let address = if self.exchange { format!("{name}:1") } else { String::new() };
        let info = HelloInfo { fingerprint, in_hand, address, ..HelloInfo::default() };
        self.feed(Input::WorkerHello { worker, session, info });
    }

    /// A worker's stream ends; it goes on with what it has.
    pub fn gone(&mut self, name: &str) {
        if let Some(session) = self.sessions.remove(&worker(name)) {
            self.feed(Input::WorkerGone { worker: worker(name), session });
        }
    }

    /// A worker's process dies.
    pub fn kill(&mut self, name: &str) {
        self.hands.remove(&worker(name));
        self.standby.retain(|(standby, _)| *standby != worker(name));
        self.gone(name);
    }

    /// What a worker has in hand first.
    pub fn first(&self, name: &str) -> Option<Attempt> {
        self.hands.get(&worker(name))?.keys().next().copied()
    }

    /// A worker reports that an attempt is done.
    pub fn finish(&mut self, name: &str, attempt: Attempt) {
        self.finish_with(name, attempt, None);
    }

    /// The same with something else than usual in the manifest.
    pub fn finish_with(&mut self, name: &str, attempt: Attempt, meta: Option<Value>) {
        let Some(task) = self.hands.get(&worker(name)).and_then(|hand| hand.get(&attempt)).cloned() else {
            return;
        };
        let meta = meta.unwrap_or_else(|| sample::meta(&task));
        self.store.insert(attempt.0, meta.clone());
        let Some(session) = self.sessions.get(&worker(name)).copied() else { return };
        let (task, attempt, worker) = (attempt.0, attempt.1, worker(name));
        let (elapsed_ms, found) = (1_000, false);
        self.feed(Input::Finished { worker, session, task, attempt, meta, elapsed_ms, found });
    }

    /// A worker reports that an attempt failed.
    pub fn fail(&mut self, name: &str, (task, attempt): Attempt, message: &str, retryable: bool) {
        let Some(session) = self.sessions.get(&worker(name)).copied() else { return };
        let (worker, message) = (worker(name), message.to_owned());
        self.feed(Input::Failed { worker, session, task, attempt, message, retryable });
    }

    /// Time passes; connected workers beat unless they are named here.
    pub fn pass(&mut self, ms: u64, silent: &[&str]) {
        let end = self.now_ms + ms;
        while self.now_ms < end {
            self.now_ms = (self.now_ms + DETECTION_MS / 5).min(end);
            for (worker, session) in self.sessions.clone() {
                if !silent.contains(&worker.as_str()) {
                    self.feed(Input::Beat { worker, session });
                }
            }
            self.feed(Input::Tick { late_ms: 0 });
        }
    }

    /// The coordinator dies and another replays its journal. Workers keep what they have.
    pub fn restart(&mut self) {
        let mut state = State::new(DETECTION_MS);
        self.journal.iter().for_each(|fact| apply(&mut state, fact));
        self.now_ms = state.clock_ms;
        state.recover(self.now_ms);
        self.state = state;
        self.sessions.clear();
        self.probes.clear();
    }

    /// Workers end what they were told to stop.
    pub fn end_stopped(&mut self) {
        let stale = |known: &scheduler::state::WorkerRecord| known.stale.clone();
        let stale: Vec<_> = self.state.workers.iter().map(|(id, known)| (id.clone(), stale(known))).collect();
        for (name, attempts) in stale {
            for attempt in attempts {
                self.fail(name.as_str(), attempt, "stopped on request", true);
            }
        }
    }

    /// Workers that were told to get ready say that they are.
    pub fn get_ready(&mut self) {
        self.end_stopped();
        for (worker, task) in std::mem::take(&mut self.standby) {
            if let Some(session) = self.sessions.get(&worker).copied() {
                self.feed(Input::Ready { worker, session, task });
            }
        }
    }

    /// How a member of a cohort says that it does.
    pub fn measure(
        &mut self,
        name: &str,
        (task, attempt): Attempt,
        done: u64,
        microbatch_us: u64,
        waiting: bool,
    ) {
        let Some(session) = self.sessions.get(&worker(name)).copied() else { return };
        let (worker, total, detail) = (worker(name), 1_000, String::new());
        self.feed(Input::Progress {
            worker,
            session,
            task,
            attempt,
            done,
            total,
            detail,
            microbatch_us,
            waiting,
        });
    }

    /// A member of a cohort speaks of its steps.
    pub fn tell(&mut self, name: &str, (task, _): Attempt, lineage: &str, steps: Vec<StepReport>) {
        let (worker, lineage) = (worker(name), lineage.to_owned());
        let session = self.sessions[&worker];
        self.feed(Input::Metrics { worker, session, task, lineage, steps });
    }

    /// A member of a cohort complains of peers.
    pub fn trouble(&mut self, name: &str, (task, attempt): Attempt, peers: &[&str], suspect: bool) {
        let Some(session) = self.sessions.get(&worker(name)).copied() else { return };
        let peers = peers.iter().map(|peer| worker(peer)).collect();
        let (worker, message) = (worker(name), "trouble".to_owned());
        self.feed(Input::Trouble { worker, session, task, attempt, peers, suspect, message });
    }

    /// The cohort that is at work: its task with the generation, its members and their numbers of microbatches.
    pub fn cohort(&self) -> Option<(Attempt, Vec<(String, u32)>)> {
        self.state.tasks.iter().find_map(|(id, record)| {
            let (generation, members) = record.cohort()?;
            let of = |member: &cohort::Member| (member.worker.to_string(), member.microbatches.len() as u32);
            Some(((*id, generation), members.iter().map(of).collect()))
        })
    }

    /// Works until nothing but a training is left to do.
    pub fn work_until_training(&mut self) {
        for _ in 0..20_000 {
            self.end_stopped();
            let connected = self.hands.iter().filter(|(worker, _)| self.sessions.contains_key(worker));
            let all = connected.flat_map(|(worker, hand)| hand.iter().map(move |work| (worker, work)));
            let mut other = all.filter(|(_, (_, task))| cohort::limit(task).is_none());
            let Some((name, attempt)) = other.next().map(|(worker, (at, _))| (worker.to_string(), *at))
            else {
                return assert!(self.cohort().is_some(), "there is no training");
            };
            self.finish(&name, attempt);
        }
        panic!("no training ever begins");
    }

    /// Every worker does all its work until nothing is left to do.
    pub fn work(&mut self) {
        for _ in 0..20_000 {
            self.get_ready();
            let Some((name, attempt)) = self.any_work() else { return };
            self.finish(&name, attempt);
        }
        panic!("the work never ends");
    }

    /// What has been in work for longest, so that no worker holds up the others.
    fn any_work(&self) -> Option<(String, Attempt)> {
        let connected = self.hands.iter().filter(|(worker, _)| self.sessions.contains_key(worker));
        let all = connected.flat_map(|(worker, hand)| hand.keys().map(move |attempt| (worker, *attempt)));
        let begun = |work: &(&WorkerId, Attempt)| {
            self.runs.iter().rposition(|(worker, attempt)| (worker, *attempt) == *work)
        };
        all.min_by_key(begun).map(|(worker, attempt)| (worker.to_string(), attempt))
    }

    pub fn outcome(&self, job: &JobId) -> Option<Outcome> {
        self.state.jobs[job].end.as_ref().map(|end| end.outcome)
    }

    pub fn reason(&self, job: &JobId) -> String {
        scheduler::view::job(&self.state, job, self.now_ms).unwrap().reason
    }

    /// Rules about single facts, in the order in which they happen.
    fn check_fact(&mut self, fact: &Fact) {
        match fact {
            Fact::Completed { task, meta, .. } => {
                let before = self.completed.insert(*task, meta.clone());
                assert_eq!(before, None, "{task:?} completed twice");
            }
            Fact::Cached { task, .. } => {
                assert!(!self.completed.contains_key(task), "{task:?} found after it was done")
            }
            Fact::Started { task, .. } => {
                assert!(!self.completed.contains_key(task), "{task:?} was done already")
            }
            Fact::Ended { job, outcome, .. } => {
                let before = self.ended.entry(job.clone()).or_insert(*outcome);
                assert_eq!(before, outcome, "{job} ended twice");
            }
            _ => {}
        }
    }

    /// Rules about the state as a whole.
    pub fn check(&self) {
        let mut numbers: BTreeMap<TaskId, u32> = BTreeMap::new();
        for fact in &self.journal {
            if let Fact::Started { task, attempt, .. } = fact {
                let before = numbers.insert(*task, attempt.0);
                assert!(
                    before.is_none_or(|before| attempt.0 > before),
                    "attempt numbers of {task:?} do not rise"
                );
            }
        }
        let mut busy = BTreeSet::new();
        for (id, record) in &self.state.tasks {
            let undone = record.needs.iter().filter(|need| !self.state.tasks[*need].is_done()).count();
            assert_eq!(record.blocked, undone, "{id:?}");
            let TaskStatus::Running { worker: lead, attempt, cohort: members, .. } = &record.status else {
                assert!(record.live.standby.is_empty(), "{id:?} has standbys but does not run");
                continue;
            };
            assert_eq!(undone, 0, "{id:?} runs before its inputs");
            assert_eq!(attempt.0, record.attempts);
            assert!(!record.jobs.is_empty(), "{id:?} runs for nobody");
            assert_eq!(record.members().next(), Some(lead));
            let standby = record.live.standby.iter().map(|(worker, (attempt, _))| (worker, *attempt));
            for (worker, attempt) in record.members().map(|worker| (worker, *attempt)).chain(standby) {
                assert!(busy.insert(worker.clone()), "{worker} has two tasks");
                assert!(self.state.running[worker].contains(&(*id, attempt)));
            }
            if let Some(microbatches) = record.cohort_limit() {
                cohort::check(members, microbatches).unwrap();
            }
            let bound = record.task.fingerprint();
            for known in record.members().filter_map(|worker| self.state.workers.get(worker)) {
                assert!(bound.is_none_or(|bound| bound == known.fingerprint), "{id:?}: a foreign member");
            }
        }
        assert_eq!(busy.len(), self.state.running.len());
        for (id, job) in &self.state.jobs {
            let open: BTreeSet<_> =
                job.tasks.iter().filter(|task| !self.state.tasks[task].is_done()).copied().collect();
            // What an ended job left open may be done on behalf of others.
            assert!(job.open == open || job.end.is_some(), "{id}: {:?}, {open:?}", job.open);
            assert_eq!(job.end.is_none(), self.state.live.get(&job.order) == Some(id), "{id}");
            if let Some(end) = &job.end {
                assert_eq!(self.ended.get(id), Some(&end.outcome), "{id} left its end");
                if end.outcome == Outcome::Succeeded {
                    assert!(job.open.is_empty(), "{id} succeeded with open tasks");
                }
            }
        }
    }

    /// The journal, through its JSON form, gives the state back.
    pub fn check_replay(&self) {
        let mut state = State::new(DETECTION_MS);
        for fact in &self.journal {
            let text = serde_json::to_string(fact).unwrap();
            let fact: Fact = serde_json::from_str(&text).unwrap();
            apply(&mut state, &fact);
        }
        assert_eq!(state.durable(), self.state.durable());
    }
}
