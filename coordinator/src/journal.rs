//! The create-only log of durable facts.
//!
//! One object a record, `journal/{seq:020}`, created and never replaced. Whoever creates a number owns it, so
//! that of two leaders only one goes on:
//! - one append is in flight, and the same bytes are tried until it is settled;
//! - on a conflict or an unclear answer the key is read: the own nonce means committed, a higher epoch means
//!   that a successor has fenced this leader, nothing means try again, anything else is corruption;
//! - a new leader writes a fence with a higher epoch at the next number and lists again: a record beyond its
//!   fence means that it lost.
//!
//! Fence records are never deleted. Snapshots and truncation are not there yet.

use crate::scheduler::Fact;
use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use retort_common::store::{Put, Store, StoreError};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Tries of one append or read before the leader gives up. With pauses that double up to
/// [`LONGEST_PAUSE`] a store may be away for about two minutes.
const TRIES: u32 = 30;
/// First pause between tries; doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause between tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Longest wait for one answer of the store.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Records read at one time while loading.
const READS_IN_FLIGHT: usize = 32;
/// Fences that a candidate tries when others keep taking its number.
const FENCE_TRIES: u32 = 16;

/// What a record is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordKind {
    /// A leader begins.
    Fence,
    /// Facts of the leader of this epoch.
    Facts,
}

/// One object of the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The leader's number.
    pub epoch: u64,
    /// Unique to one append.
    pub nonce: String,
    /// What it is for.
    pub kind: RecordKind,
    /// What has happened.
    pub facts: Vec<Fact>,
}

/// Why the journal cannot go on. Each ends the process: recovery is the only start-up path.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another leader has begun.
    #[error("fenced at {path}: a coordinator with epoch {epoch} has taken over; this one ends")]
    Fenced {
        /// Where its record stands.
        path: String,
        /// Its epoch.
        epoch: u64,
    },
    /// A record that cannot be.
    #[error("{path}: corrupt: {cause}; keep the journal as it is and look at this object")]
    Corrupt {
        /// Where.
        path: String,
        /// What is wrong.
        cause: String,
    },
    /// The store did not answer, or refused.
    #[error("journal: {source}; start the coordinator again when the store is well")]
    Store {
        /// The cause.
        source: StoreError,
    },
    /// The store did not take a record, or did not answer, for too long.
    #[error(
        "{path}: {tries} tries came to nothing: {cause}; start the coordinator again when the store is well"
    )]
    Timeout {
        /// Where.
        path: String,
        /// How often it was tried.
        tries: u32,
        /// What the last try came to.
        cause: String,
    },
}

/// A log that only its newest leader can append to.
#[async_trait]
pub trait Journal: Send {
    /// Makes this process the leader: everything before is final, and earlier leaders can append no more.
    async fn fence(&mut self) -> Result<u64, JournalError>;
    /// All facts so far, in order. Only after [`Journal::fence`].
    async fn load(&mut self) -> Result<Vec<Fact>, JournalError>;
    /// Appends facts as one record; they are committed when this returns.
    async fn append(&mut self, facts: Vec<Fact>) -> Result<(), JournalError>;
}

/// What a journal needs of a store, so that tests can put faults under it.
#[async_trait]
pub trait Objects: Send + Sync {
    /// Creates an object unless one is there; one try.
    async fn create(&self, path: &str, bytes: Bytes) -> Result<Put, StoreError>;
    /// An object, if it is there.
    async fn read(&self, path: &str) -> Result<Option<Bytes>, StoreError>;
    /// Paths under a prefix, sorted.
    async fn list(&self, prefix: &str) -> Result<Vec<String>, StoreError>;
}

#[async_trait]
impl Objects for Store {
    async fn create(&self, path: &str, bytes: Bytes) -> Result<Put, StoreError> {
        self.try_create(path, bytes).await
    }

    async fn read(&self, path: &str) -> Result<Option<Bytes>, StoreError> {
        match self.get(path).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(StoreError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn list(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        Store::list(self, prefix).await
    }
}

/// The journal in object storage.
pub struct ObjectJournal<O> {
    objects: O,
    /// Gives the next nonce.
    nonce: Box<dyn Fn() -> String + Send + Sync>,
    epoch: u64,
    next: u64,
    first_pause: Duration,
}

/// What an append found at its number.
enum Found {
    Own,
    Nothing,
    Other(Box<Record>),
}

impl<O: Objects> ObjectJournal<O> {
    /// A journal that is not fenced yet.
    pub fn new(objects: O, nonce: impl Fn() -> String + Send + Sync + 'static) -> Self {
        Self { objects, nonce: Box::new(nonce), epoch: 0, next: 0, first_pause: FIRST_PAUSE }
    }

    /// Creates the record at `sequence`; another's record there, if it lost.
    async fn settle(&mut self, sequence: u64, record: &Record) -> Result<Option<Record>, JournalError> {
        let path = path_of(sequence);
        let text = serde_json::to_vec_pretty(record).expect("facts have a JSON form");
        let bytes = Bytes::from(text);
        let mut pause = self.first_pause;
        let mut cause = "the store did not answer".to_owned();
        for _ in 0..TRIES {
            let answer =
                tokio::time::timeout(ANSWER_TIMEOUT, self.objects.create(&path, bytes.clone())).await;
            // A store that is full says so to whoever waits.
            if let Ok(Err(error)) = &answer {
                cause = error.to_string();
                tracing::warn!("the journal cannot be written, trying again: {cause}");
            }
            match answer {
                Ok(Ok(Put::Created)) => return Ok(None),
                Ok(Err(error)) if !error.is_transient() => return Err(JournalError::Store { source: error }),
                // "Exists" may be about the own earlier try, and some stores say it when nothing is there.
                Ok(Ok(Put::Exists)) | Ok(Err(_)) | Err(_) => match self.look(&path, &record.nonce).await {
                    Ok(Found::Own) => return Ok(None),
                    Ok(Found::Other(other)) => return Ok(Some(*other)),
                    Ok(Found::Nothing) => {}
                    Err(error @ JournalError::Store { .. }) => tracing::warn!("{error}"),
                    Err(JournalError::Timeout { .. }) => {}
                    Err(error) => return Err(error),
                },
            }
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        Err(JournalError::Timeout { path, tries: TRIES, cause })
    }

    async fn look(&self, path: &str, nonce: &str) -> Result<Found, JournalError> {
        let cause = || "the store did not answer".to_owned();
        let timeout = || JournalError::Timeout { path: path.to_owned(), tries: 1, cause: cause() };
        let answer =
            tokio::time::timeout(ANSWER_TIMEOUT, self.objects.read(path)).await.map_err(|_| timeout())?;
        let Some(bytes) = answer.map_err(store)? else { return Ok(Found::Nothing) };
        let record = parse(path, &bytes)?;
        Ok(if record.nonce == nonce { Found::Own } else { Found::Other(Box::new(record)) })
    }

    async fn list(&self) -> Result<Vec<u64>, JournalError> {
        let paths = self.objects.list("journal").await.map_err(store)?;
        let sequences = paths.iter().map(|path| sequence_of(path));
        sequences.collect::<Result<Vec<_>, _>>()
    }

    async fn read(&self, sequence: u64) -> Result<Record, JournalError> {
        let path = path_of(sequence);
        let missing =
            || JournalError::Corrupt { path: path.clone(), cause: "missing in the middle".to_owned() };
        let bytes = self.objects.read(&path).await.map_err(store)?.ok_or_else(missing)?;
        parse(&path, &bytes)
    }

    /// The next free number and the highest epoch before it.
    async fn end(&self) -> Result<(u64, u64), JournalError> {
        match self.list().await?.last() {
            None => Ok((0, 0)),
            // Epochs never fall along the log, which `load` checks.
            Some(last) => Ok((last + 1, self.read(*last).await?.epoch)),
        }
    }
}

#[async_trait]
impl<O: Objects> Journal for ObjectJournal<O> {
    async fn fence(&mut self) -> Result<u64, JournalError> {
        let mut beyond = None;
        for _ in 0..FENCE_TRIES {
            let (next, highest) = self.end().await?;
            let record = Record {
                epoch: highest + 1,
                nonce: (self.nonce)(),
                kind: RecordKind::Fence,
                facts: Vec::new(),
            };
            if let Some(other) = self.settle(next, &record).await? {
                // The old leader was quicker with an append; the fence goes after it.
                beyond = Some((next, other.epoch));
                continue;
            }
            // Whoever fenced after this fence leads; this candidate must not even answer.
            if let Some(last) = self.list().await?.last().filter(|last| **last > next) {
                let epoch = self.read(*last).await?.epoch;
                return Err(JournalError::Fenced { path: path_of(*last), epoch });
            }
            (self.epoch, self.next) = (record.epoch, next + 1);
            return Ok(self.epoch);
        }
        let (sequence, epoch) = beyond.unwrap_or_default();
        Err(JournalError::Fenced { path: path_of(sequence), epoch })
    }

    async fn load(&mut self) -> Result<Vec<Fact>, JournalError> {
        let listed = self.list().await?;
        if let Some(gap) = (0..self.next).zip(&listed).find(|(expected, found)| expected != *found) {
            let cause = "missing in the middle".to_owned();
            return Err(JournalError::Corrupt { path: path_of(gap.0), cause });
        }
        let this = &*self;
        let mut records = futures::stream::iter(0..this.next)
            .map(|sequence| async move { Ok::<_, JournalError>((sequence, this.read(sequence).await?)) })
            .buffered(READS_IN_FLIGHT);
        let (mut facts, mut epoch) = (Vec::new(), 0);
        while let Some((sequence, record)) = records.try_next().await? {
            check_order(sequence, &record, epoch)?;
            epoch = record.epoch;
            facts.extend(record.facts);
        }
        Ok(facts)
    }

    async fn append(&mut self, facts: Vec<Fact>) -> Result<(), JournalError> {
        let record = Record { epoch: self.epoch, nonce: (self.nonce)(), kind: RecordKind::Facts, facts };
        match self.settle(self.next, &record).await? {
            None => {
                self.next += 1;
                Ok(())
            }
            Some(other) if other.epoch > self.epoch => {
                Err(JournalError::Fenced { path: path_of(self.next), epoch: other.epoch })
            }
            Some(other) => {
                let cause = format!("epoch {} wrote where epoch {} leads", other.epoch, self.epoch);
                Err(JournalError::Corrupt { path: path_of(self.next), cause })
            }
        }
    }
}

fn store(source: StoreError) -> JournalError {
    JournalError::Store { source }
}

fn path_of(sequence: u64) -> String {
    format!("journal/{sequence:020}")
}

fn sequence_of(path: &str) -> Result<u64, JournalError> {
    let name = path.strip_prefix("journal/").unwrap_or(path);
    let valid = name.len() == 20 && name.bytes().all(|byte| byte.is_ascii_digit());
    let number = name.parse().ok().filter(|_| valid);
    let cause = || "not a number of 20 digits".to_owned();
    number.ok_or_else(|| JournalError::Corrupt { path: path.to_owned(), cause: cause() })
}

fn parse(path: &str, bytes: &[u8]) -> Result<Record, JournalError> {
    serde_json::from_slice(bytes)
        .map_err(|error| JournalError::Corrupt { path: path.to_owned(), cause: error.to_string() })
}

/// A fence raises the epoch; facts are of the leader that fenced last.
fn check_order(sequence: u64, record: &Record, epoch: u64) -> Result<(), JournalError> {
    let valid = match record.kind {
        RecordKind::Fence => record.epoch > epoch && record.facts.is_empty(),
        RecordKind::Facts => record.epoch == epoch && sequence > 0,
    };
    let cause = || format!("{:?} of epoch {} after epoch {epoch}", record.kind, record.epoch);
    if valid { Ok(()) } else { Err(JournalError::Corrupt { path: path_of(sequence), cause: cause() }) }
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
