//! Whole jobs while processes are killed: the figures are those of an undisturbed job, and what was finished is not
//! done again.

use crate::fixture;
use crate::support::{Cluster, Home, Process, files, finished, report, signal, until};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

/// Steps of the last phase: enough that its training can be met between two checkpoints.
const STEPS: u32 = 40;

/// What an undisturbed job gives.
struct Undisturbed {
    rows: Value,
    tasks: BTreeSet<PathBuf>,
}

fn undisturbed() -> &'static Undisturbed {
    static UNDISTURBED: OnceLock<Undisturbed> = OnceLock::new();
    UNDISTURBED.get_or_init(|| {
        let home = prepared();
        home.retort("run spec.toml --store store --workers 2").expect(0, &[]);
        let store = home.path().join("store");
        Undisturbed { rows: report(&store).1["rows"].clone(), tasks: tasks(&store) }
    })
}

fn prepared() -> Home {
    let home = Home::new();
    fixture::write(home.path());
    std::fs::write(home.path().join("spec.toml"), fixture::spec(STEPS)).unwrap();
    home
}

/// The finished tasks but for the report, whose name holds the job's.
fn tasks(store: &Path) -> BTreeSet<PathBuf> {
    finished(store).into_keys().filter(|task| !task.starts_with("report")).collect()
}

/// Checks what a disturbed job left.
fn check_result(store: &Path) {
    let expected = undisturbed();
    assert_eq!(report(store).1["rows"], expected.rows, "the figures are those of an undisturbed job");
    assert_eq!(tasks(store), expected.tasks);
}

/// What was finished at one moment, to be compared with the end.
type Finished = Vec<(PathBuf, (Vec<u8>, BTreeSet<PathBuf>))>;

fn note(store: &Path, noted: &mut Finished) {
    noted.extend(finished(store));
}

/// No task was tried once more after it had been finished.
fn check_not_repeated(store: &Path, noted: &Finished) {
    let end = finished(store);
    for (task, made) in noted {
        assert_eq!(end.get(task), Some(made), "{} was done again", task.display());
    }
}

/// Children of a process whose command line holds a word.
fn children(parent: u32, word: &str) -> Vec<u32> {
    let of = |entry: std::fs::DirEntry| {
        let id: u32 = entry.file_name().to_str()?.parse().ok()?;
        let line = std::fs::read_to_string(entry.path().join("cmdline")).ok()?;
        (stat(id)?.1 == parent && line.split('\0').nth(1) == Some(word)).then_some(id)
    };
    std::fs::read_dir("/proc").unwrap().flatten().filter_map(of).collect()
}

/// State and parent of a process.
fn stat(id: u32) -> Option<(String, u32)> {
    let text = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
}

/// Waits until processes have ended; one that nobody has fetched yet counts as ended.
fn wait_for_end(processes: &[u32]) {
    let alive = |id: &&u32| stat(**id).is_some_and(|(state, _)| state != "Z");
    until("the end of all children", || (processes.iter().find(alive).is_none()).then_some(()));
}

fn all_children(run: &Process) -> Vec<u32> {
    [children(run.id(), "coordinator"), children(run.id(), "worker")].concat()
}

/// Milliseconds below `bound` that differ from run to run.
fn some_milliseconds(bound: u32) -> Duration {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    Duration::from_millis(u64::from(now.subsec_micros() % bound))
}

/// Kills children of a run again and again, with pauses, until it has ended or `times` are over.
fn harass(run: &mut Process, word: &str, times: usize, store: &Path, noted: &mut Finished) -> usize {
    let mut killed = 0;
    while killed < times && !run.has_ended() {
        std::thread::sleep(some_milliseconds(if killed == 0 { 200 } else { 1000 }));
        let found = children(run.id(), word);
        if let Some(victim) = found.get(killed % found.len().max(1)) {
            killed += usize::from(signal("-9", *victim));
            note(store, noted);
        }
    }
    killed
}

#[test]
fn killed_workers_cost_nothing_but_time() {
    let home = prepared();
    let (store, mut noted) = (home.path().join("store"), Vec::new());
    let mut run = home.start("run spec.toml --store store --workers 2");
    until("workers", || (children(run.id(), "worker").len() == 2).then_some(()));
    assert!(
        harass(&mut run, "worker", 4, &store, &mut noted) > 0,
        "the job was over before anything was killed"
    );
    run.end().expect(0, &["head-8"]);
    check_not_repeated(&store, &noted);
    check_result(&store);
}

#[test]
fn a_killed_coordinator_costs_nothing_but_time() {
    let home = prepared();
    let (store, mut noted) = (home.path().join("store"), Vec::new());
    let mut run = home.start("run spec.toml --store store --workers 2");
    until("workers", || (children(run.id(), "worker").len() == 2).then_some(()));
    assert!(
        harass(&mut run, "coordinator", 3, &store, &mut noted) > 0,
        "the job was over before anything was killed"
    );
    run.end().expect(0, &["head-8"]);
    check_not_repeated(&store, &noted);
    check_result(&store);
}

#[test]
fn a_run_that_is_killed_or_interrupted_leaves_no_children_and_resumes() {
    let home = prepared();
    let (store, mut noted) = (home.path().join("store"), Vec::new());
    for (how, code) in [("-9", None), ("-INT", Some(130)), ("-TERM", None)] {
        let mut run = home.start("run spec.toml --store store --workers 2");
        until("workers or the end", || {
            (children(run.id(), "worker").len() == 2 || run.has_ended()).then_some(())
        });
        std::thread::sleep(some_milliseconds(200));
        let children = all_children(&run);
        if run.has_ended() {
            // A fast machine has nothing left to interrupt after the first time.
            assert_ne!(how, "-9", "the job was over before anything was killed");
            break;
        }
        assert_eq!(children.len(), 3);
        assert!(signal(how, run.id()));
        assert_eq!(run.end().code, code);
        let begun = Instant::now();
        wait_for_end(&children);
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "children outlived their parent by {:?}",
            begun.elapsed()
        );
        note(&store, &mut noted);
    }
    home.retort("run spec.toml --store store --workers 2").expect(0, &["head-8"]);
    check_not_repeated(&store, &noted);
    check_result(&store);
}

/// The same by hand, where the user restarts what died: a kill between two checkpoints of a training.
#[test]
fn a_training_goes_on_from_its_checkpoint() {
    let mut cluster = Cluster::start_in(prepared());
    let (store, mut noted) = (cluster.home.path().join("store"), Vec::new());
    cluster.add_worker("w1");
    let id = cluster.retort("submit spec.toml --id-only").expect(0, &[]).stdout.trim().to_owned();
    // Of the last training: it has more steps than the others.
    let far = |path: &PathBuf| {
        let step: Option<u32> = path.iter().rev().nth(1).and_then(|step| step.to_str()?.parse().ok());
        path.ends_with("manifest.json") && step.is_some_and(|step| step > 6)
    };
    let jobs = store.join("jobs");
    until("a checkpoint of the last training", || files(&jobs).iter().find(|path| far(path)).map(drop));
    cluster.workers.clear();
    note(&store, &mut noted);
    assert!(
        noted.iter().filter(|(task, _)| task.starts_with("student")).count() < 3,
        "killed in its training"
    );
    cluster.restart();
    cluster.add_worker("w1");
    cluster.retort(&format!("wait {id} --timeout 2m")).expect(0, &["SUCCEEDED"]);
    cluster.check(&format!("logs {id}"), 0, &["resumed from the checkpoint of step"]);
    check_not_repeated(&store, &noted);
    check_result(&store);
}
