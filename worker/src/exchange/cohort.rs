//! A generation as its member uses it.

use super::error::ExchangeError;
use super::link::Link;
use super::registry::{Ended, GatherIn, Hub, Inbox, ReduceIn, lock};
use super::roster::Roster;
use super::wire::Pool;
use super::{Inner, gather, reduce, state};
use crate::training::tree::Wire;
use bytes::Bytes;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Gradient buffers that are kept for reuse.
const MAX_SPARE: usize = 2;

/// One generation of a cohort, joined. Dropping it leaves the generation, of which the peers learn at once.
///
/// Calls may be awaited from any thread; the work is done on the exchange's. A call that fails or is dropped ends the
/// generation for this member.
pub struct Cohort {
    exchange: Arc<Inner>,
    shared: Arc<Shared>,
    watches: Vec<JoinHandle<()>>,
}

/// Where the time of a cohort's calls went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Until every peer's contribution had begun: the others were still computing.
    pub waiting: Duration,
    /// From then on.
    pub exchanging: Duration,
    /// Of that, additions and checksums of the own buckets.
    pub summing: Duration,
}

/// What the calls of a generation share.
pub struct Shared {
    pub hub: Arc<Hub>,
    /// By rank; nothing at the own one.
    pub links: Vec<Option<Arc<Link>>>,
    pub wire: Wire,
    pub gathers: tokio::sync::Mutex<Turn<(u64, u32), GatherIn>>,
    pub reduces: tokio::sync::Mutex<Turn<u64, ReduceIn>>,
    /// Buffers for sums of buckets.
    pub pool: Pool,
    spare: Mutex<Vec<Vec<f32>>>,
    spent: Mutex<Spent>,
}

/// The contributions of one kind, which come in the order of their tags.
pub struct Turn<T, I> {
    last: Option<T>,
    /// By rank; nothing at the own one.
    pub inboxes: Vec<Option<mpsc::Receiver<I>>>,
}

impl<T: PartialOrd + Copy + std::fmt::Debug, I> Turn<T, I> {
    /// Goes on to a tag.
    pub fn begin(&mut self, tag: T) -> Result<(), ExchangeError> {
        if self.last.is_some_and(|last| last >= tag) {
            return Err(ExchangeError::Misuse(format!("exchanges must follow each other: {tag:?} is over")));
        }
        self.last = Some(tag);
        Ok(())
    }
}

impl Shared {
    /// The next contribution of a peer, as soon as it begins.
    pub async fn next<I>(
        &self,
        link: &Link,
        inbox: &mut mpsc::Receiver<I>,
        what: &'static str,
    ) -> Result<I, ExchangeError> {
        let wait = async {
            tokio::select! {
                biased;
                next = inbox.recv() => next.ok_or_else(|| over(&self.hub.roster)),
                gone = link.down() => Err(gone),
            }
        };
        link.within(what, wait).await?
    }

    /// A buffer of a length, whatever is in it.
    pub fn buffer(&self, length: usize) -> Vec<f32> {
        let mut spare = lock(&self.spare);
        match spare.iter().position(|buffer| buffer.len() == length) {
            Some(at) => spare.swap_remove(at),
            None => vec![0.0; length],
        }
    }

    /// Notes where a call's time went.
    pub fn note(&self, begun: Instant, waiting: Duration, summing: Duration) {
        let mut spent = lock(&self.spent);
        spent.waiting += waiting;
        spent.exchanging += begun.elapsed().saturating_sub(waiting);
        spent.summing += summing;
    }

    /// Keeps a buffer for later.
    pub fn recycle(&self, buffer: Vec<f32>) {
        let mut spare = lock(&self.spare);
        spare.insert(0, buffer);
        spare.truncate(MAX_SPARE);
    }
}

fn over(roster: &Roster) -> ExchangeError {
    ExchangeError::Over { lineage: roster.lineage.clone(), generation: roster.generation }
}

/// Ends a task whose result nobody waits for any more.
struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Cohort {
    pub(super) fn new(
        exchange: Arc<Inner>,
        hub: Arc<Hub>,
        links: Vec<Option<Arc<Link>>>,
        inboxes: Vec<Option<Inbox>>,
        wire: Wire,
    ) -> Self {
        let split = |inbox: Option<Inbox>| {
            inbox.map_or((None, None), |inbox| (Some(inbox.gather), Some(inbox.reduce)))
        };
        let (gathers, reduces) = inboxes.into_iter().map(split).unzip();
        let watch = |link: &Arc<Link>| {
            let link = link.clone();
            exchange.runtime.spawn(async move { link.keep().await })
        };
        let watches = links.iter().flatten().map(watch).collect();
        let shared = Shared {
            hub,
            links,
            wire,
            gathers: tokio::sync::Mutex::new(Turn { last: None, inboxes: gathers }),
            reduces: tokio::sync::Mutex::new(Turn { last: None, inboxes: reduces }),
            pool: Pool::default(),
            spare: Mutex::new(Vec::new()),
            spent: Mutex::new(Spent::default()),
        };
        Self { exchange, shared: Arc::new(shared), watches }
    }

    /// The generation's roster.
    pub fn roster(&self) -> &Roster {
        &self.shared.hub.roster
    }

    /// Gives `mine` to every member and returns everyone's in rank order. The tag is (step, round); tags rise. What
    /// members give may differ in size, up to [`gather::MAX_BYTES`] each.
    pub async fn all_gather(&self, tag: (u64, u32), mine: Bytes) -> Result<Vec<Bytes>, ExchangeError> {
        self.run(move |shared| async move { gather::run(&shared, tag, mine).await }).await
    }

    /// The sum over all microbatches in the canonical tree: the same bits whatever the roster.
    ///
    /// The partial sums are those of [`subtrees`](crate::training::tree::subtrees) of the own deal, in that order, as
    /// [`TreeSum::of`](crate::training::tree::TreeSum::of) gives them, all of one length. Steps rise.
    pub async fn reduce(
        &self,
        step: u64,
        partials: Vec<(Range<u32>, Vec<f32>)>,
    ) -> Result<Vec<f32>, ExchangeError> {
        self.run(move |shared| async move { reduce::run(&shared, step, partials).await }).await
    }

    /// Gives back a vector of the gradient's length, so that the next sum need not fault in fresh memory.
    pub fn recycle(&self, buffer: Vec<f32>) {
        self.shared.recycle(buffer);
    }

    /// Where the time of the calls since the last question went.
    pub fn take_spent(&self) -> Spent {
        std::mem::take(&mut lock(&self.shared.spent))
    }

    /// Serves a state to the members of this generation until it is over.
    pub fn publish_state(&self, state: Bytes) {
        self.shared.hub.state.send_replace(Some(state));
    }

    /// The state that a member has published, or will; at most `limit_bytes` of it are taken in. Its content must be
    /// verified by the caller against what was reported.
    pub async fn fetch_state(&self, from_rank: usize, limit_bytes: usize) -> Result<Bytes, ExchangeError> {
        self.run(move |shared| async move { state::fetch(&shared, from_rank, limit_bytes).await }).await
    }

    /// Runs a call on the exchange's thread. Where it fails, the generation is left and the peers are told why.
    async fn run<T, F, Fut>(&self, call: F) -> Result<T, ExchangeError>
    where
        T: Send + 'static,
        F: FnOnce(Arc<Shared>) -> Fut,
        Fut: Future<Output = Result<T, ExchangeError>> + Send + 'static,
    {
        let call = call(self.shared.clone());
        let hub = self.shared.hub.clone();
        let mut task = AbortOnDrop(self.exchange.runtime.spawn(async move {
            let outcome = call.await;
            let Err(error) = outcome else { return outcome };
            // Whatever went wrong, it did because this worker has gone on.
            if let Some(Ended::Superseded(_)) = hub.has_ended() {
                return Err(over(&hub.roster));
            }
            hub.blame(&error.to_string());
            hub.leave();
            Err(error)
        }));
        match (&mut task.0).await {
            Ok(outcome) => outcome,
            Err(error) => Err(ExchangeError::Stopped(error.to_string())),
        }
    }
}

impl Drop for Cohort {
    fn drop(&mut self) {
        self.shared.hub.leave();
        self.watches.iter().for_each(JoinHandle::abort);
    }
}
