//! A training's place in its cohort: waiting for a generation, and what its members do together.
//!
//! Exchange calls are abandoned as soon as the coordinator names a generation that leaves somebody out, or says to
//! stop. A generation that only takes more workers in waits for the end of the step: members tell each other in the
//! exchange of vectors, so that all of them leave after the same step.

use super::super::bench::{Seat, TaskError};
use super::doubt::{Doubt, What};
use crate::exchange::{Cohort, ExchangeError, Member as Peer, Roster, Spent, Wire};
use crate::session::{Control, Generation, Pace};
use bytes::Bytes;
use retort_common::cohort::Member;
use retort_common::ids::{AttemptNumber, WorkerId};
use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;

/// Pause between two signs that a member waits, and between two complaints.
const SAY_AGAIN: Duration = Duration::from_secs(1);

/// What a generation does before its first step.
const BEGINNING: &str = "agreeing on a state";

/// Why a generation ended before its task.
#[derive(Debug)]
pub(super) enum Broken {
    /// The coordinator has named another, or says to stop.
    Superseded,
    /// Its members cannot go on together.
    Trouble {
        /// Whom it is about.
        peers: Vec<WorkerId>,
        /// Whether their bits differ, rather than being out of reach.
        suspect: bool,
        /// What happened.
        message: String,
    },
    /// A member has a value that is not finite, which is to be computed once more.
    Doubt(Doubt),
    /// The task failed.
    Task(TaskError),
}

impl From<TaskError> for Broken {
    fn from(error: TaskError) -> Self {
        Broken::Task(error)
    }
}

/// Where a member stands, for what it says while it waits.
#[derive(Clone, Debug, Default)]
pub(super) struct Standing {
    pub(super) done: u64,
    pub(super) total: u64,
    pub(super) detail: String,
    pub(super) microbatch_us: u64,
}

impl Standing {
    /// Says where it stands.
    pub(super) fn say(&self, seat: &Seat<'_>, waiting: bool) {
        let Self { done, total, detail, microbatch_us } = self;
        let pace = Pace { microbatch_us: *microbatch_us, waiting };
        seat.context.member_progress(*done, *total, detail, pace);
    }
}

/// One generation as this worker is in it.
pub(super) struct Membership<'a> {
    seat: Option<&'a Seat<'a>>,
    runtime: Handle,
    number: AttemptNumber,
    workers: Vec<WorkerId>,
    deals: Vec<Range<u32>>,
    rank: usize,
    cohort: Option<Cohort>,
    /// What is being done, for people, and after how many steps.
    doing: Cell<&'static str>,
    step: Cell<u64>,
}

/// Waits until there is a generation after `after` with members. Says `trouble` again and again meanwhile, since the
/// message may be lost with the session.
pub(super) fn next_generation(
    seat: &Seat<'_>,
    runtime: &Handle,
    after: Option<AttemptNumber>,
    trouble: Option<&Broken>,
) -> Result<Arc<Generation>, TaskError> {
    let mut control = seat.context.control();
    runtime.block_on(async {
        let mut again = tokio::time::interval(SAY_AGAIN);
        loop {
            if let Some(generation) = newest(&control.borrow_and_update(), after)? {
                return Ok(generation);
            }
            tokio::select! {
                changed = control.changed() => changed.map_err(|_| TaskError::Stopped)?,
                _ = again.tick() => {
                    if let (Some(Broken::Trouble { peers, suspect, message }), Some(after)) = (trouble, after) {
                        let peers = peers.iter().map(ToString::to_string).collect();
                        seat.context.trouble(after, peers, *suspect, message.clone());
                    }
                }
            }
        }
    })
}

fn newest(control: &Control, after: Option<AttemptNumber>) -> Result<Option<Arc<Generation>>, TaskError> {
    if control.stop.is_some() {
        return Err(TaskError::Stopped);
    }
    let newer = |generation: &&Arc<Generation>| {
        !generation.members.is_empty() && after.is_none_or(|after| generation.number > after)
    };
    Ok(control.generation.as_ref().filter(newer).cloned())
}

impl<'a> Membership<'a> {
    /// A task that runs without peers, over so many microbatches.
    pub(super) fn alone(runtime: Handle, microbatches: u32) -> Self {
        let (seat, number, workers, cohort) = (None, AttemptNumber(1), Vec::new(), None);
        let deals = std::iter::once(0..microbatches).collect();
        let (doing, step) = (Cell::new(BEGINNING), Cell::new(0));
        Self { seat, runtime, number, workers, deals, rank: 0, cohort, doing, step }
    }

    /// Takes this worker's place in a generation.
    pub(super) fn join(
        seat: &'a Seat<'a>,
        runtime: Handle,
        lineage: &str,
        wire: Wire,
        generation: &Generation,
    ) -> Result<Self, TaskError> {
        let Generation { number, members } = generation;
        let place = members.iter().position(|member| member.worker == seat.worker);
        let no_place =
            || TaskError::Cohort(format!("generation {} has no place for worker {}", number.0, seat.worker));
        let rank = place.ok_or_else(no_place)?;
        let cohort = match (&seat.exchange, members.len()) {
            (_, 1) => None,
            (None, _) => return Err(TaskError::Cohort("this worker has no exchange".to_owned())),
            (Some(exchange), _) => {
                let members = members.iter().map(peer).collect();
                let (lineage, generation) = (lineage.to_owned(), u64::from(number.0));
                let joined = exchange.join(Roster { lineage, generation, members, rank }, wire);
                Some(joined.map_err(|error| TaskError::Cohort(error.to_string()))?)
            }
        };
        let workers = members.iter().map(|member| member.worker.clone()).collect();
        let deals = members.iter().map(|member| member.microbatches.clone()).collect();
        let (doing, step) = (Cell::new(BEGINNING), Cell::new(0));
        Ok(Self { seat: Some(seat), runtime, number: *number, workers, deals, rank, cohort, doing, step })
    }

    /// Its number.
    pub(super) fn number(&self) -> AttemptNumber {
        self.number
    }

    /// Whether this worker speaks for the cohort and writes what it makes.
    pub(super) fn is_lead(&self) -> bool {
        self.rank == 0
    }

    /// This worker's place.
    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    /// Notes that a step begins.
    pub(super) fn begin_step(&self, step: u64) {
        self.step.set(step);
        self.begin("encoding");
    }

    /// Notes what is done from here on.
    pub(super) fn begin(&self, doing: &'static str) {
        self.doing.set(doing);
    }

    /// What is being done, for people.
    pub(super) fn doing(&self) -> &'static str {
        self.doing.get()
    }

    /// Where the time of exchanges since the last question went.
    pub(super) fn take_spent(&self) -> Spent {
        self.cohort.as_ref().map(Cohort::take_spent).unwrap_or_default()
    }

    /// Who computes which microbatches, in the order of ranks.
    pub(super) fn deals(&self) -> &[Range<u32>] {
        &self.deals
    }

    /// This worker's microbatches.
    pub(super) fn deal(&self) -> Range<u32> {
        self.deals[self.rank].clone()
    }

    /// The members in the order of ranks; in a cohort of more than one.
    pub(super) fn workers(&self) -> &[WorkerId] {
        &self.workers
    }

    /// A value that this worker has, from these microbatches, and that is not finite.
    pub(super) fn doubt(&self, worker: WorkerId, microbatches: Range<u32>, what: What) -> Broken {
        Broken::Doubt(Doubt { step: self.step.get(), worker, microbatches, what })
    }

    /// The worker of a rank; in a cohort of more than one.
    pub(super) fn worker(&self, rank: usize) -> WorkerId {
        self.workers[rank].clone()
    }

    /// Fails where the task should stop, or where the coordinator has named a generation that leaves out one of
    /// these members. True where it has named one that leaves out nobody.
    pub(super) fn look(&self) -> Result<bool, Broken> {
        let Some(seat) = self.seat else { return Ok(false) };
        match self.outlook(&seat.context.control().borrow()) {
            Outlook::Good => Ok(false),
            Outlook::Grows => Ok(true),
            Outlook::Over => Err(Broken::Superseded),
        }
    }

    fn outlook(&self, control: &Control) -> Outlook {
        if control.stop.is_some() {
            return Outlook::Over;
        }
        let newer = control.generation.as_ref().filter(|generation| generation.number > self.number);
        let Some(newer) = newer else { return Outlook::Good };
        let stays = |worker: &WorkerId| newer.members.iter().any(|member| member.worker == *worker);
        if self.workers.iter().all(stays) { Outlook::Grows } else { Outlook::Over }
    }

    /// Tells every member some bytes: one entry for each rank. Nothing is sent where there are no peers.
    pub(super) fn all_gather(
        &self,
        at: (u64, u32),
        mine: Vec<u8>,
        standing: &Standing,
    ) -> Result<Vec<Bytes>, Broken> {
        match &self.cohort {
            None => Ok(vec![mine.into()]),
            Some(cohort) => self.wait(cohort.all_gather(at, mine.into()), standing),
        }
    }

    /// The sum over all microbatches in the canonical tree, from the subtrees that each member owns.
    pub(super) fn reduce(
        &self,
        step: u64,
        mut partials: Vec<(Range<u32>, Vec<f32>)>,
        standing: &Standing,
    ) -> Result<Vec<f32>, Broken> {
        match &self.cohort {
            None => {
                let (_, sum) = partials.pop().expect("one worker owns the whole tree");
                Ok(sum)
            }
            Some(cohort) => self.wait(cohort.reduce(step, partials), standing),
        }
    }

    /// Gives back a gradient's memory.
    pub(super) fn recycle(&self, gradient: Vec<f32>) {
        if let Some(cohort) = &self.cohort {
            cohort.recycle(gradient);
        }
    }

    /// Lets members of this generation fetch a state from this worker.
    pub(super) fn publish_state(&self, state: Vec<u8>) {
        if let Some(cohort) = &self.cohort {
            cohort.publish_state(state.into());
        }
    }

    /// The state that a peer has published.
    pub(super) fn fetch_state(
        &self,
        rank: usize,
        limit_bytes: usize,
        standing: &Standing,
    ) -> Result<Bytes, Broken> {
        match &self.cohort {
            None => Err(Broken::Task(TaskError::Cohort("there is no peer to fetch a state from".to_owned()))),
            Some(cohort) => self.wait(cohort.fetch_state(rank, limit_bytes), standing),
        }
    }

    /// Waits for a call, and gives it up when the generation is over. Where that takes a while, the coordinator hears
    /// that this member waits and is not the one that holds up the others.
    fn wait<T>(
        &self,
        call: impl Future<Output = Result<T, ExchangeError>>,
        standing: &Standing,
    ) -> Result<T, Broken> {
        let Some(seat) = self.seat else { return Err(Broken::Superseded) };
        let mut control = seat.context.control();
        self.runtime.block_on(async {
            tokio::pin!(call);
            let mut waits = tokio::time::interval_at(tokio::time::Instant::now() + SAY_AGAIN, SAY_AGAIN);
            loop {
                if matches!(self.outlook(&control.borrow_and_update()), Outlook::Over) {
                    return Err(Broken::Superseded);
                }
                tokio::select! {
                    outcome = &mut call => return outcome.map_err(|error| self.broken(&error)),
                    changed = control.changed() => changed.map_err(|_| Broken::Superseded)?,
                    _ = waits.tick() => standing.say(seat, true),
                }
            }
        })
    }

    fn broken(&self, error: &ExchangeError) -> Broken {
        match error {
            ExchangeError::NonFinite { worker, microbatches, .. } => {
                return self.doubt(worker.clone(), microbatches.clone(), What::Gradient);
            }
            ExchangeError::Overflow { .. } => {
                let all = 0..self.deals.last().map_or(0, |deal| deal.end);
                return self.doubt(self.worker(self.rank), all, What::Sum);
            }
            _ => {}
        }
        let message = format!("generation {}: {error}", self.number.0);
        Broken::Trouble { peers: error.peers(), suspect: false, message }
    }
}

fn peer(member: &Member) -> Peer {
    let Member { worker, address, microbatches } = member.clone();
    Peer { worker, address, microbatches }
}

enum Outlook {
    Good,
    Grows,
    Over,
}
