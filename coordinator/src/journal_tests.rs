//! The journal under faults of the store and among rivals.

use super::*;
use retort_common::ids::JobId;
use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

/// What a store may do wrong when an object is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// An error, and nothing is stored.
    ErrorBefore,
    /// An error, although the object is stored.
    ErrorAfter,
    /// "Exists", although nothing is.
    FalseExists,
}

const FAULTS: [Fault; 4] = [Fault::None, Fault::ErrorBefore, Fault::ErrorAfter, Fault::FalseExists];

#[derive(Clone, Default)]
struct Memory {
    objects: Arc<Mutex<BTreeMap<String, Bytes>>>,
    faults: Arc<Mutex<VecDeque<Fault>>>,
    /// Whether every operation stands still once before it is done, so that a test can let others pass.
    pauses: bool,
}

struct Pause(bool);

impl Future for Pause {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.0, false) {
            // Collections of futures poll only those that have called.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(())
    }
}

fn away(path: &str) -> StoreError {
    let source = object_store::Error::Generic { store: "memory", source: "away".into() };
    StoreError::Backend { path: path.to_owned(), source }
}

#[async_trait]
impl Objects for Memory {
    async fn create(&self, path: &str, bytes: Bytes) -> Result<Put, StoreError> {
        Pause(self.pauses).await;
        let fault = self.faults.lock().unwrap().pop_front().unwrap_or(Fault::None);
        let mut objects = self.objects.lock().unwrap();
        match fault {
            Fault::ErrorBefore => return Err(away(path)),
            Fault::FalseExists => return Ok(Put::Exists),
            Fault::None | Fault::ErrorAfter => {}
        }
        let put = if objects.contains_key(path) { Put::Exists } else { Put::Created };
        if put == Put::Created {
            objects.insert(path.to_owned(), bytes);
        }
        if fault == Fault::ErrorAfter { Err(away(path)) } else { Ok(put) }
    }

    async fn read(&self, path: &str) -> Result<Option<Bytes>, StoreError> {
        Pause(self.pauses).await;
        Ok(self.objects.lock().unwrap().get(path).cloned())
    }

    async fn list(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        Pause(self.pauses).await;
        let objects = self.objects.lock().unwrap();
        Ok(objects.keys().filter(|path| path.starts_with(prefix)).cloned().collect())
    }
}

fn journal(memory: &Memory, name: &str) -> ObjectJournal<Memory> {
    let (name, count) = (name.to_owned(), AtomicU64::new(0));
    let nonce = move || format!("{name}-{}", count.fetch_add(1, Ordering::Relaxed));
    let mut journal = ObjectJournal::new(memory.clone(), nonce);
    journal.first_pause = Duration::ZERO;
    journal
}

fn fact(text: &str) -> Fact {
    Fact::Pinned { job: "j".parse::<JobId>().unwrap(), fingerprint: text.to_owned() }
}

fn texts(facts: &[Fact]) -> Vec<String> {
    let text = |fact: &Fact| match fact {
        Fact::Pinned { fingerprint, .. } => fingerprint.clone(),
        other => panic!("{other:?}"),
    };
    facts.iter().map(text).collect()
}

/// What a new leader finds.
async fn replay(memory: &Memory) -> Vec<String> {
    let memory = Memory { pauses: false, faults: Arc::default(), ..memory.clone() };
    let mut reader = journal(&memory, "reader");
    reader.fence().await.unwrap();
    texts(&reader.load().await.unwrap())
}

#[tokio::test]
async fn facts_come_back_in_order_and_epochs_rise() {
    let memory = Memory::default();
    let mut one = journal(&memory, "one");
    assert_eq!(one.fence().await.unwrap(), 1);
    assert_eq!(one.load().await.unwrap(), []);
    one.append(vec![fact("a"), fact("b")]).await.unwrap();
    one.append(vec![fact("c")]).await.unwrap();
    let mut two = journal(&memory, "two");
    assert_eq!(two.fence().await.unwrap(), 2);
    assert_eq!(texts(&two.load().await.unwrap()), ["a", "b", "c"]);
    two.append(vec![fact("d")]).await.unwrap();
    let error = one.append(vec![fact("x")]).await.unwrap_err();
    assert!(matches!(error, JournalError::Fenced { epoch: 2, .. }), "{error}");
    assert_eq!(replay(&memory).await, ["a", "b", "c", "d"]);
}

#[tokio::test]
async fn every_short_run_of_faults_commits_once() {
    // Faults of the fence, then of two appends.
    for first in FAULTS {
        for second in FAULTS {
            for third in FAULTS {
                for fourth in FAULTS {
                    let memory = Memory::default();
                    *memory.faults.lock().unwrap() = VecDeque::from([first, second, third, fourth]);
                    let mut journal = journal(&memory, "one");
                    journal.fence().await.unwrap();
                    journal.append(vec![fact("a")]).await.unwrap();
                    journal.append(vec![fact("b")]).await.unwrap();
                    let faults = [first, second, third, fourth];
                    assert_eq!(replay(&memory).await, ["a", "b"], "{faults:?}");
                }
            }
        }
    }
}

#[tokio::test]
async fn damage_is_named_and_never_skipped() {
    let good = || async {
        let memory = Memory::default();
        let mut journal = journal(&memory, "one");
        journal.fence().await.unwrap();
        for text in ["a", "b"] {
            journal.append(vec![fact(text)]).await.unwrap();
        }
        memory
    };
    let put = |memory: &Memory, sequence: u64, text: &str| {
        memory.objects.lock().unwrap().insert(path_of(sequence), Bytes::copy_from_slice(text.as_bytes()));
    };
    let outcome = |memory: Memory| async move {
        let mut reader = journal(&memory, "reader");
        reader.fence().await?;
        reader.load().await
    };
    let torn = good().await;
    put(&torn, 1, "{");
    let gap = good().await;
    gap.objects.lock().unwrap().remove(&path_of(1));
    let stranger = good().await;
    stranger.objects.lock().unwrap().insert("journal/notes.txt".to_owned(), Bytes::new());
    let newer = good().await;
    put(&newer, 1, r#"{"epoch":1,"nonce":"n","kind":"facts","facts":[],"later":1}"#);
    let usurper = good().await;
    put(&usurper, 1, r#"{"epoch":7,"nonce":"n","kind":"facts","facts":[]}"#);
    for (what, memory) in
        [("torn", torn), ("gap", gap), ("stranger", stranger), ("newer", newer), ("usurper", usurper)]
    {
        let error = outcome(memory).await.unwrap_err();
        assert!(matches!(error, JournalError::Corrupt { .. }), "{what}: {error}");
    }
}

#[tokio::test]
async fn a_writer_of_the_same_epoch_is_corruption() {
    let memory = Memory::default();
    let mut one = journal(&memory, "one");
    one.fence().await.unwrap();
    let record = Record { epoch: 1, nonce: "other".into(), kind: RecordKind::Facts, facts: vec![] };
    let bytes = Bytes::from(serde_json::to_vec(&record).unwrap());
    memory.objects.lock().unwrap().insert(path_of(1), bytes);
    let error = one.append(vec![fact("a")]).await.unwrap_err();
    assert!(matches!(error, JournalError::Corrupt { .. }), "{error}");
}

/// Texts whose append was acknowledged, and whether the writer was fenced.
type Told = Arc<Mutex<(Vec<String>, Vec<String>)>>;

async fn write(memory: Memory, name: &'static str, told: Told) {
    let mut journal = journal(&memory, name);
    if journal.fence().await.is_err() {
        return;
    }
    if journal.load().await.is_err() {
        panic!("{name} read a broken journal");
    }
    for number in 0..2 {
        let text = format!("{name}{number}");
        match journal.append(vec![fact(&text)]).await {
            Ok(()) => told.lock().unwrap().0.push(text),
            Err(JournalError::Fenced { .. }) => return told.lock().unwrap().1.push(text),
            Err(error) => panic!("{name}: {error}"),
        }
    }
}

/// Lets writers take turns as `choose` says, which gets the number of writers that are not done.
fn interleave(names: &[&'static str], faults: &[Fault], mut choose: impl FnMut(usize) -> usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let memory = Memory { pauses: true, ..Memory::default() };
    *memory.faults.lock().unwrap() = faults.iter().copied().collect();
    let told: Told = Arc::default();
    let mut writers: Vec<Pin<Box<dyn Future<Output = ()>>>> = Vec::new();
    for name in names {
        writers.push(Box::pin(write(memory.clone(), name, told.clone())));
    }
    {
        let _context = runtime.enter();
        let mut context = Context::from_waker(Waker::noop());
        let mut turns = 0;
        while !writers.is_empty() {
            turns += 1;
            assert!(turns < 10_000, "the writers wait for ever");
            let next = choose(writers.len());
            if writers[next].as_mut().poll(&mut context).is_ready() {
                drop(writers.remove(next));
            }
        }
    }
    let found = runtime.block_on(replay(&memory));
    let (acknowledged, fenced) = told.lock().unwrap().clone();
    for text in &acknowledged {
        assert_eq!(
            found.iter().filter(|other| *other == text).count(),
            1,
            "{text} was acknowledged: {found:?}"
        );
    }
    for text in &fenced {
        assert!(!found.contains(text), "{text} was refused: {found:?}");
    }
    // Each writer's own come back in its order. Between writers the order of acknowledgements says nothing: one whose
    // append was unclear may learn late that it stands, after its successor's first.
    for name in names {
        let own = acknowledged.iter().filter(|text| text.starts_with(name));
        let places: Vec<_> = own.map(|text| found.iter().position(|other| other == text)).collect();
        assert!(places.is_sorted(), "{acknowledged:?} came back as {found:?}");
    }
}

#[test]
fn two_leaders_in_every_interleaving() {
    // Depth first over all choices: the path is counted up like a number.
    let mut path: Vec<(usize, usize)> = Vec::new();
    let mut explored = 0;
    loop {
        let mut depth = 0;
        interleave(&["a", "b"], &[], |writers| {
            if depth == path.len() {
                path.push((0, writers));
            }
            depth += 1;
            path[depth - 1].0
        });
        explored += 1;
        path.truncate(depth);
        while path.last().is_some_and(|(choice, writers)| choice + 1 == *writers) {
            path.pop();
        }
        match path.last_mut() {
            Some((choice, _)) => *choice += 1,
            None => break,
        }
        assert!(explored < 1_000_000, "too many to explore");
    }
    assert!(explored > 1_000, "{explored}");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig {
        cases: 400, failure_persistence: None, ..Default::default()
    })]

    #[test]
    fn three_leaders_with_faults_in_random_interleavings(
        choices in proptest::collection::vec(0usize..6, 1..80),
        faults in proptest::collection::vec(proptest::sample::select(FAULTS.to_vec()), 0..6),
    ) {
        let mut choices = choices.into_iter().cycle();
        interleave(&["a", "b", "c"], &faults, |writers| choices.next().unwrap() % writers);
    }
}
