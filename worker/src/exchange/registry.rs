//! Which generations this worker is a member of, and who may speak to them.

use super::frame::{Part, Reader};
use super::roster::Roster;
use bytes::Bytes;
use retort_common::ids::Digest;
use retort_common::proto;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tonic::{Code, Status};

/// Metadata that says why a call was refused, for programs.
pub const REFUSAL: &str = "retort-refusal";
/// The callee has not joined the caller's generation yet.
pub const NOT_JOINED: &str = "not-joined";
/// The callee has joined a newer generation.
pub const STALE: &str = "stale";
/// The callee has left the generation.
pub const LEFT: &str = "left";

/// Calls that wait for this worker to join their generation.
const MAX_WAITING: usize = 4 * super::roster::MAX_MEMBERS;
/// Lineages that are remembered after their cohorts ended.
const MAX_LINEAGES: usize = 1024;
/// Contributions of one peer that wait for their turn; a peer can be one step ahead at most.
const QUEUE: usize = 4;
/// Chunks of finished sums that wait for a peer's stream.
pub const REPLY_QUEUE: usize = 4;

/// A contribution to an all-gather at its beginning.
pub struct GatherIn {
    pub open: proto::GatherOpen,
    pub reader: Reader,
    pub reply: oneshot::Sender<Result<(), Status>>,
}

/// Partial sums at their beginning.
pub struct ReduceIn {
    pub rank: usize,
    pub open: proto::ReduceOpen,
    pub reader: Reader,
    pub reply: mpsc::Sender<Part>,
}

/// What one peer sends.
pub struct Inbox {
    pub gather: mpsc::Receiver<GatherIn>,
    pub reduce: mpsc::Receiver<ReduceIn>,
}

struct Outbox {
    gather: mpsc::Sender<GatherIn>,
    reduce: mpsc::Sender<ReduceIn>,
}

/// How a generation ended here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was left, and why.
    Left(String),
    /// A newer one was joined.
    Superseded(u64),
}

impl Ended {
    pub fn status(&self) -> Status {
        match self {
            Self::Left(why) => refusal(Code::Aborted, LEFT, why),
            Self::Superseded(generation) => {
                let text = format!("generation {generation} has been joined");
                refusal(Code::FailedPrecondition, STALE, &text)
            }
        }
    }
}

/// A generation that this worker has joined, as the service sees it.
pub struct Hub {
    pub roster: Roster,
    digest: Digest,
    /// By rank; nothing at the own one, and nothing once the generation is over.
    peers: Mutex<Vec<Option<Outbox>>>,
    ended: watch::Sender<Option<Ended>>,
    /// Why the generation will have been left, as far as is known.
    cause: Mutex<Option<String>>,
    pub state: watch::Sender<Option<Bytes>>,
}

impl Hub {
    pub fn new(roster: Roster, digest: Digest) -> (Arc<Self>, Vec<Option<Inbox>>) {
        let mut inboxes = Vec::new();
        let mut peers = Vec::new();
        for rank in 0..roster.members.len() {
            let (gather, gather_in) = mpsc::channel(QUEUE);
            let (reduce, reduce_in) = mpsc::channel(QUEUE);
            let peer = rank != roster.rank;
            peers.push(peer.then_some(Outbox { gather, reduce }));
            inboxes.push(peer.then_some(Inbox { gather: gather_in, reduce: reduce_in }));
        }
        let (ended, state) = (watch::Sender::new(None), watch::Sender::new(None));
        let (peers, cause) = (Mutex::new(peers), Mutex::new(None));
        (Arc::new(Self { roster, digest, peers, ended, cause, state }), inboxes)
    }

    /// Ends it: open calls are answered, waiting ones of this worker see closed queues. The first end counts.
    pub fn end(&self, how: Ended) {
        self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            ended.get_or_insert(how);
            first
        });
        lock(&self.peers).iter_mut().for_each(|peer| *peer = None);
        self.state.send_replace(None);
    }

    /// Leaves it, with the cause that was noted.
    pub fn leave(&self) {
        let cause = lock(&self.cause).clone();
        self.end(Ended::Left(cause.unwrap_or_else(|| "its work there is done".to_owned())));
    }

    /// Notes why it will be left; the first cause counts.
    pub fn blame(&self, cause: &str) {
        lock(&self.cause).get_or_insert_with(|| cause.to_owned());
    }

    /// Whether and how it ended.
    pub fn has_ended(&self) -> Option<Ended> {
        self.ended.borrow().clone()
    }

    /// Waits for the end; the answer to those who watch.
    pub async fn until_ended(&self) -> Status {
        let mut ended = self.ended.subscribe();
        match ended.wait_for(Option::is_some).await {
            Ok(ended) => ended.as_ref().map_or_else(|| Status::aborted(""), Ended::status),
            Err(_) => Ended::Left("the process ends".to_owned()).status(),
        }
    }

    fn outbox<T>(
        &self,
        rank: usize,
        take: impl Fn(&Outbox) -> mpsc::Sender<T>,
    ) -> Result<mpsc::Sender<T>, Status> {
        let sender = lock(&self.peers).get(rank).and_then(Option::as_ref).map(take);
        sender.ok_or_else(|| match self.has_ended() {
            Some(ended) => ended.status(),
            None => Status::permission_denied(format!("rank {rank} is this worker itself")),
        })
    }

    /// Hands a contribution over.
    pub fn deliver_gather(&self, rank: usize, gather: GatherIn) -> Result<(), Status> {
        self.outbox(rank, |outbox| outbox.gather.clone())?.try_send(gather).map_err(|_| too_far())
    }

    /// Hands partial sums over.
    pub fn deliver_reduce(&self, rank: usize, reduce: ReduceIn) -> Result<(), Status> {
        self.outbox(rank, |outbox| outbox.reduce.clone())?.try_send(reduce).map_err(|_| too_far())
    }
}

fn too_far() -> Status {
    Status::resource_exhausted("more contributions wait than a peer can be ahead")
}

/// A status that programs can read.
pub fn refusal(code: Code, word: &'static str, text: &str) -> Status {
    let mut status = Status::new(code, text);
    status.metadata_mut().insert(REFUSAL, tonic::metadata::MetadataValue::from_static(word));
    status
}

/// Locks; a panic elsewhere cannot leave these values half changed.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Known {
    generation: u64,
    hub: Arc<Hub>,
    /// Order of joining.
    joined: u64,
}

/// The newest generation of each lineage that this worker has joined.
pub struct Registry {
    lineages: Mutex<BTreeMap<String, Known>>,
    /// Counts joins, so that those who wait look again.
    joins: watch::Sender<u64>,
    waiting: AtomicUsize,
    /// How long a call from a newer generation waits for this worker to join it.
    hold: Duration,
}

impl Registry {
    pub fn new(hold: Duration) -> Self {
        let (lineages, joins) = (Mutex::new(BTreeMap::new()), watch::Sender::new(0));
        Self { lineages, joins, waiting: AtomicUsize::new(0), hold }
    }

    /// How long calls are held that come too early.
    pub fn hold(&self) -> Duration {
        self.hold
    }

    /// Joins a generation and ends the older one of its lineage; the known generation if that is not older.
    pub fn join(&self, hub: &Arc<Hub>) -> Result<(), u64> {
        let mut lineages = lock(&self.lineages);
        let Roster { lineage, generation, .. } = &hub.roster;
        if let Some(known) = lineages.get(lineage) {
            if known.generation >= *generation {
                return Err(known.generation);
            }
            known.hub.end(Ended::Superseded(*generation));
        }
        let joined = *self.joins.borrow() + 1;
        lineages.insert(lineage.clone(), Known { generation: *generation, hub: hub.clone(), joined });
        while lineages.len() > MAX_LINEAGES {
            let over = lineages.iter().filter(|(_, known)| known.hub.has_ended().is_some());
            let Some(oldest) = over.min_by_key(|(_, known)| known.joined).map(|(name, _)| name.clone())
            else {
                break;
            };
            lineages.remove(&oldest);
        }
        drop(lineages);
        self.joins.send_replace(joined);
        Ok(())
    }

    /// Leaves whatever generation of a lineage was joined.
    pub fn leave(&self, lineage: &str) {
        let hub = lock(&self.lineages).get(lineage).map(|known| known.hub.clone());
        if let Some(hub) = hub {
            hub.leave();
        }
    }

    /// The generation that a label names, once this worker has joined it, and the rank that speaks.
    pub async fn admit(&self, label: Option<proto::Label>) -> Result<(Arc<Hub>, usize), Status> {
        let label = label.ok_or_else(|| Status::invalid_argument("a label is missing"))?;
        if label.lineage.len() > super::roster::MAX_LINEAGE_BYTES {
            return Err(Status::invalid_argument("the lineage's name is too long"));
        }
        let hub = self.joined(&label.lineage, label.generation).await?;
        let rank = label.rank as usize;
        let member = hub.roster.members.get(rank).filter(|member| member.worker.as_str() == label.worker);
        if member.is_none() || rank == hub.roster.rank {
            let text = format!("{:?} is not the member at rank {rank}", label.worker);
            return Err(Status::permission_denied(text));
        }
        if label.roster != hub.digest.as_bytes() {
            let generation = label.generation;
            let text =
                format!("its roster, deal or wire format of generation {generation} differs from mine");
            return Err(Status::failed_precondition(text));
        }
        Ok((hub, rank))
    }

    async fn joined(&self, lineage: &str, generation: u64) -> Result<Arc<Hub>, Status> {
        let mut joins = self.joins.subscribe();
        let _waits = Waits::new(&self.waiting)?;
        let find = async {
            loop {
                let found =
                    lock(&self.lineages).get(lineage).map(|known| (known.generation, known.hub.clone()));
                match found {
                    Some((known, _)) if known > generation => {
                        return Err(Ended::Superseded(known).status());
                    }
                    Some((known, hub)) if known == generation => return Ok(hub),
                    _ => {}
                }
                if joins.changed().await.is_err() {
                    return Err(Status::unavailable("the process ends"));
                }
            }
        };
        match tokio::time::timeout(self.hold, find).await {
            Ok(found) => found,
            Err(_) => {
                let text = format!("generation {generation} has not been joined yet");
                Err(refusal(Code::Unavailable, NOT_JOINED, &text))
            }
        }
    }
}

/// Counts a call that may wait.
struct Waits<'a>(&'a AtomicUsize);

impl<'a> Waits<'a> {
    fn new(waiting: &'a AtomicUsize) -> Result<Self, Status> {
        let waits = Self(waiting);
        if waiting.fetch_add(1, Ordering::Relaxed) >= MAX_WAITING {
            return Err(Status::resource_exhausted("too many calls wait for a roster"));
        }
        Ok(waits)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
