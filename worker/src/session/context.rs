//! What a running task can say and must look at.

use super::wire;
use retort_common::cohort::Member;
use retort_common::ids::{AttemptNumber, TaskId};
use retort_common::metrics::StepReport;
use retort_common::proto;
use retort_common::proto::session_request::Message as ToCoordinator;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// Shortest pause between two progress records of a task.
const PROGRESS_PAUSE: Duration = Duration::from_millis(200);

/// A request to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stop {
    /// At once, without a checkpoint.
    pub force: bool,
}

/// A membership of the cohort that computes a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// Its number, which is the attempt's.
    pub number: AttemptNumber,
    /// In the order of ranks; nobody while the worker stands by.
    pub members: Vec<Member>,
}

/// What the coordinator wants of a running task.
#[derive(Clone, Debug)]
pub struct Control {
    /// Whether it should end.
    pub stop: Option<Stop>,
    /// The newest generation; none where nobody else is about.
    pub generation: Option<Arc<Generation>>,
    /// Since when the coordinator has been away, if it is.
    pub orphaned: Option<Instant>,
    /// Number of the newest session; what was told in earlier ones may be lost.
    pub session: u64,
    attempt: AttemptNumber,
}

/// A running task's line to the coordinator.
#[derive(Clone, Debug)]
pub struct TaskContext {
    id: TaskId,
    control: Arc<watch::Sender<Control>>,
    said: Arc<Mutex<Option<(Instant, bool)>>>,
    news: mpsc::Sender<ToCoordinator>,
}

/// What a context says of its task's progress.
#[derive(Debug)]
pub struct Progressing(mpsc::Receiver<ToCoordinator>);

impl Progressing {
    /// Waits for the next word on units done; none when the task is over. Not within a runtime.
    pub fn next_step(&mut self) -> Option<u64> {
        loop {
            if let ToCoordinator::Progress(progress) = self.0.blocking_recv()? {
                return Some(progress.done);
            }
        }
    }
}

/// How a member of a cohort does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// Microseconds that it needs for a microbatch; 0 when unknown.
    pub microbatch_us: u64,
    /// Whether it waits for its peers.
    pub waiting: bool,
}

impl TaskContext {
    pub(crate) fn new(
        id: TaskId,
        attempt: AttemptNumber,
        members: Option<Vec<Member>>,
        news: mpsc::Sender<ToCoordinator>,
    ) -> Self {
        let generation = members.map(|members| Arc::new(Generation { number: attempt, members }));
        let control =
            watch::Sender::new(Control { stop: None, generation, orphaned: None, session: 0, attempt });
        Self { id, control: Arc::new(control), said: Arc::default(), news }
    }

    /// A context that nobody listens to, for running a task without a session.
    pub fn detached(id: TaskId) -> Self {
        Self::new(id, AttemptNumber(1), None, mpsc::channel(1).0)
    }

    /// A context in a cohort of fixed members that no coordinator watches, and what it says of its progress: for
    /// benchmarks.
    pub fn in_cohort(id: TaskId, members: Vec<Member>) -> (Self, Progressing) {
        let (news, said) = mpsc::channel(64);
        (Self::new(id, AttemptNumber(1), Some(members), news), Progressing(said))
    }

    /// The task's name.
    pub fn id(&self) -> TaskId {
        self.id
    }

    /// The attempt that the work counts for now.
    pub fn attempt(&self) -> AttemptNumber {
        self.control.borrow().attempt
    }

    /// Says how far the task has come; `total` 0 means unknown. Calls in quick succession are dropped, but not
    /// the last one.
    pub fn progress(&self, done: u64, total: u64, detail: &str) {
        self.member_progress(done, total, detail, Pace::default());
    }

    /// The same of a member of a cohort. The first call after it began or ended to wait is not dropped.
    pub fn member_progress(&self, done: u64, total: u64, detail: &str, pace: Pace) {
        let last = total > 0 && done >= total;
        let Ok(mut said) = self.said.lock() else { return };
        let recently =
            |(at, waiting): (Instant, bool)| waiting == pace.waiting && at.elapsed() < PROGRESS_PAUSE;
        if !last && said.is_some_and(recently) {
            return;
        }
        *said = Some((Instant::now(), pace.waiting));
        let Pace { microbatch_us, waiting } = pace;
        let (attempt, detail) = (Some(self.wire_attempt()), detail.to_owned());
        self.say(ToCoordinator::Progress(proto::Progress {
            attempt,
            done,
            total,
            detail,
            microbatch_us,
            waiting,
        }));
    }

    /// A line for the job's log; the level is INFO, WARN or ERROR.
    pub fn log(&self, level: &str, message: &str) {
        let (level, message) = (level.to_owned(), message.to_owned());
        let attempt = Some(self.wire_attempt());
        self.say(ToCoordinator::Log(proto::Log { attempt, level, message }));
    }

    /// Says that the task could join its cohort.
    pub fn ready(&self) {
        self.say(ToCoordinator::Ready(proto::Ready { attempt: Some(self.wire_attempt()) }));
    }

    /// Says that a generation cannot go on: `suspect` where bits of these peers differ, otherwise they are out
    /// of reach.
    pub fn trouble(&self, generation: AttemptNumber, peers: Vec<String>, suspect: bool, message: String) {
        let attempt = Some(wire::attempt(self.id, generation));
        self.say(ToCoordinator::Trouble(proto::Trouble { attempt, peers, suspect, message }));
    }

    /// What a training has to say of its steps; false where it has to be said again later.
    pub fn metrics(&self, lineage: &str, steps: Vec<StepReport>) -> bool {
        let (attempt, lineage) = (Some(self.wire_attempt()), lineage.to_owned());
        let steps = steps.into_iter().map(Into::into).collect();
        self.news.try_send(ToCoordinator::Metrics(proto::Metrics { attempt, lineage, steps })).is_ok()
    }

    /// Whether the task should stop. A task looks here at least once a second or so.
    pub fn cancelled(&self) -> Option<Stop> {
        self.control.borrow().stop
    }

    /// What the coordinator wants, to be looked at and waited for.
    pub fn control(&self) -> watch::Receiver<Control> {
        self.control.subscribe()
    }

    pub(crate) fn stop(&self, force: bool) {
        self.control.send_modify(|control| control.stop = control.stop.max(Some(Stop { force })));
    }

    pub(crate) fn regroup(&self, attempt: AttemptNumber, members: Vec<Member>) {
        self.control.send_modify(|control| {
            control.attempt = attempt;
            control.generation = Some(Arc::new(Generation { number: attempt, members }));
        });
    }

    pub(super) fn connected(&self, session: u64) {
        self.control.send_modify(|control| control.session = session);
    }

    pub(super) fn orphaned(&self, since: Option<Instant>) {
        self.control.send_modify(|control| control.orphaned = since);
    }

    fn wire_attempt(&self) -> proto::Attempt {
        wire::attempt(self.id, self.attempt())
    }

    /// News must not hold up compute; a full queue means that the coordinator is away.
    fn say(&self, message: ToCoordinator) {
        let _ = self.news.try_send(message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use retort_common::ids::Digest;

    #[test]
    fn progress_is_throttled_but_the_end_and_a_change_are_told() {
        let (sender, mut receiver) = mpsc::channel(8);
        let context = TaskContext::new(TaskId(Digest::of(b"t")), AttemptNumber(1), None, sender);
        for done in 0..=10 {
            let waiting = (5..7).contains(&done);
            context.member_progress(done, 10, "", Pace { microbatch_us: 0, waiting });
        }
        let mut told = Vec::new();
        while let Ok(ToCoordinator::Progress(progress)) = receiver.try_recv() {
            told.push(progress.done);
        }
        assert_eq!(told, [0, 5, 7, 10]);
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
}
