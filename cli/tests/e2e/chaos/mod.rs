//! A training under faults that a seed chooses: its weights are those of an undisturbed one, bit for bit.
//!
//! Each fault comes a moment after a step was finished, most with all workers at work, or after half a minute without one.
//! The log names the step of every fault, and what the others were doing in it; `just chaos SEED` inflicts the long list.

mod damage;
mod recovery;
mod wire;

use crate::support::{Cluster, Process, dead_address, files, signal, until};
use crate::training::{Position, Training, end, log, submit};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use wire::Wire;

/// Workers of the disturbed cluster.
const WORKERS: usize = 3;
/// Longest wait for a step before a fault comes anyway.
const NO_STEP: Duration = Duration::from_secs(30);
/// Longest wait for all workers to be at work: two that were cut off from each other are kept apart for longer.
const NOT_ALL: Duration = Duration::from_secs(2);
/// How long the disturbed training is to last at the speed of an undisturbed one.
const LONG: Duration = Duration::from_secs(120);
/// Longer than the cluster's failure detection of 1 s: who is frozen that long is given up.
const FREEZE: Duration = Duration::from_millis(2500);
/// Longest time that a pair is cut off from each other.
const CUT: Duration = Duration::from_secs(8);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// kill -9 of one worker.
    KillWorker,
    /// SIGSTOP of one worker, and SIGCONT after it was given up.
    Freeze,
    /// kill -9 of the coordinator.
    KillCoordinator,
    /// kill -9 of whoever writes a checkpoint, between its part and its manifest.
    KillUploading,
    /// kill -9 of every worker at once.
    KillAll,
    /// Two workers do not reach each other, though everybody else reaches both.
    Partition,
}

/// The faults of a seed in their order.
fn faults(seed: u64, counts: &[(Fault, usize)]) -> (Vec<Fault>, Random) {
    let mut faults: Vec<Fault> =
        counts.iter().flat_map(|(fault, count)| std::iter::repeat_n(*fault, *count)).collect();
    let mut random = Random(seed.wrapping_mul(2).wrapping_add(1));
    for last in (1..faults.len()).rev() {
        faults.swap(last, random.below(last + 1));
    }
    (faults, random)
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

/// Checkpoints whose manifest is not there: being written, or left behind by a kill.
fn incomplete(store: &Path) -> BTreeSet<PathBuf> {
    let all = files(&store.join("jobs"));
    let folders = all.iter().filter(|path| path.components().any(|part| part.as_os_str() == "checkpoints"));
    let folders: BTreeSet<_> = folders.filter_map(|path| Some(path.parent()?.to_owned())).collect();
    folders.into_iter().filter(|folder| !all.contains(&folder.join("manifest.json"))).collect()
}

/// A cluster whose workers reach each other through wires.
struct Wired {
    cluster: Cluster,
    wires: Vec<Wire>,
}

impl Wired {
    fn start(training: &Training, workers: usize) -> Self {
        let wires = (0..workers).map(|_| Wire::new()).collect();
        let mut wired = Self { cluster: Cluster::start_in(training.home()), wires };
        (0..workers).for_each(|worker| wired.start_worker(worker));
        wired
    }

    /// Starts a worker, or starts it again, as a service manager would.
    fn start_worker(&mut self, worker: usize) {
        let (listen, wire) = (dead_address(), &self.wires[worker]);
        wire.lead_to(&listen);
        let flags = format!("--exchange-listen {listen} --exchange-advertise {}", wire.address);
        self.cluster.add_worker_with(&format!("w{worker}"), &flags);
        if self.cluster.workers.len() > worker + 1 {
            self.cluster.workers.swap_remove(worker);
        }
        let processes: Vec<u32> = self.cluster.workers.iter().map(Process::id).collect();
        self.wires.iter().for_each(|wire| wire.know(&processes));
    }

    fn process(&self, worker: usize) -> u32 {
        self.cluster.workers[worker].id()
    }

    fn kill(&mut self, worker: usize) {
        self.cluster.workers[worker].kill();
    }
}

struct Chaos {
    wired: Wired,
    store: PathBuf,
    id: String,
    random: Random,
    seen: Position,
}

impl Chaos {
    fn position(&self) -> Option<Position> {
        Position::of(&self.wired.cluster, &self.id)
    }

    /// Waits for a step with everybody at work; false once the job has ended.
    fn next_step(&mut self) -> bool {
        let begun = Instant::now();
        loop {
            if let Some(at) = self.position() {
                if at.has_ended() {
                    return false;
                }
                let goes_on = (at.done, at.step) > (self.seen.done, self.seen.step);
                let all = at.workers == WORKERS || begun.elapsed() > NOT_ALL;
                if goes_on && all || begun.elapsed() > NO_STEP {
                    self.seen = at;
                    return true;
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What happened, and to whom.
    fn inflict(&mut self, fault: Fault) -> String {
        std::thread::sleep(Duration::from_millis(self.random.below(500) as u64));
        let victim = self.member();
        match fault {
            Fault::KillWorker => {
                self.wired.kill(victim);
                self.wired.start_worker(victim);
                format!("kill -9 of w{victim}")
            }
            Fault::Freeze => {
                let process = self.wired.process(victim);
                assert!(signal("-STOP", process));
                std::thread::sleep(FREEZE);
                assert!(signal("-CONT", process));
                format!("w{victim} frozen for {FREEZE:?}")
            }
            Fault::KillCoordinator => {
                self.wired.cluster.restart();
                "kill -9 of the coordinator".to_owned()
            }
            Fault::KillUploading => {
                let (victim, folder) = self.kill_uploading();
                format!("kill -9 of w{victim}, which was writing {}", folder.display())
            }
            Fault::KillAll => {
                (0..WORKERS).for_each(|worker| self.wired.kill(worker));
                std::thread::sleep(FREEZE);
                (0..WORKERS).for_each(|worker| self.wired.start_worker(worker));
                "kill -9 of all workers".to_owned()
            }
            Fault::Partition => self.part(victim, (victim + 1) % WORKERS),
        }
    }

    /// Somebody who is at work on the training.
    fn member(&mut self) -> usize {
        let listed = self.wired.cluster.retort("worker list -o json").stdout;
        let listed: Value = serde_json::from_str(&listed).unwrap_or_default();
        let trains = |worker: &usize| {
            let known = listed["workers"].as_array().into_iter().flatten();
            let task = known
                .filter(|known| known["id"] == format!("w{worker}"))
                .find_map(|known| known["task"].as_str());
            task.is_some_and(|task| {
                task.contains("/train ") && !task.contains("standing by") && !task.contains("stopping")
            })
        };
        let members: Vec<usize> = (0..WORKERS).filter(trains).collect();
        let among = self.random.below(WORKERS.max(1));
        members.get(among % members.len().max(1)).copied().unwrap_or(among)
    }

    /// The workers are stopped for a look as soon as a new checkpoint without manifest appears; if it is one still,
    /// whoever was writing it dies.
    fn kill_uploading(&mut self) -> (usize, PathBuf) {
        let known = incomplete(&self.store);
        until("a checkpoint that is being written", || {
            let new = |store: &Path| incomplete(store).difference(&known).next().cloned();
            new(&self.store)?;
            let processes: Vec<u32> = (0..WORKERS).map(|worker| self.wired.process(worker)).collect();
            for process in &processes {
                signal("-STOP", *process);
            }
            let (found, lead) = (new(&self.store), self.lead());
            let hit = found.zip(lead);
            if let Some((_, lead)) = &hit {
                self.wired.kill(*lead);
            }
            for process in &processes {
                signal("-CONT", *process);
            }
            let (folder, lead) = hit?;
            self.wired.start_worker(lead);
            Some((lead, folder))
        })
    }

    /// Who writes checkpoints: the first member of the newest generation.
    fn lead(&self) -> Option<usize> {
        let log = log(&self.wired.cluster, &self.id);
        log.lines().rev().find_map(|line| line.split_once(" with w")?.1.get(..1)?.parse().ok())
    }

    /// Cuts one pair until somebody is named as cut off, or for as long as it may take.
    fn part(&mut self, one: usize, other: usize) -> String {
        let before = log(&self.wired.cluster, &self.id).matches("is cut off").count();
        let (a, b) = (self.wired.process(one), self.wired.process(other));
        self.wired.wires[one].cut(&[b]);
        self.wired.wires[other].cut(&[a]);
        let begun = Instant::now();
        while begun.elapsed() < CUT
            && log(&self.wired.cluster, &self.id).matches("is cut off").count() <= before
        {
            std::thread::sleep(Duration::from_millis(100));
        }
        let lasted = begun.elapsed();
        self.wired.wires[one].cut(&[]);
        self.wired.wires[other].cut(&[]);
        format!("w{one} and w{other} did not reach each other for {lasted:.1?}")
    }
}

/// Every step of a job's metrics once, with its loss; where each training's steps begin and end.
fn check_metrics(cluster: &Cluster, id: &str, steps: u32) -> Vec<(u64, String)> {
    let lines = cluster.retort(&format!("metrics {id} -o jsonl")).expect(0, &[]).stdout;
    let points: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let found: Vec<u64> = points.iter().map(|point| point["step"].as_u64().unwrap()).collect();
    assert_eq!(found, (1..=u64::from(steps)).collect::<Vec<_>>(), "every step once");
    points.iter().map(|point| (point["step"].as_u64().unwrap(), point["loss"].to_string())).collect()
}

/// Prints what the members said about the last fault, after so many lines of the log; how many there are now.
fn say_more(follower: &Process, heard: usize) -> usize {
    let log = follower.said();
    for line in log.lines().skip(heard).filter(|line| line.contains(" ended in step ")) {
        let (line, _) = line.split_at(line.floor_char_boundary(200));
        eprintln!("    {line}");
    }
    log.lines().count()
}

/// The training of the short tests.
const SHORT: Training = Training { seed: 1, steps: 320, dropout: 0.1, batch: 32 };

/// What a training gives that nobody disturbs: the digest of its weights, and its losses.
type Outcome = (String, Vec<(u64, String)>);

fn undisturbed() -> &'static Outcome {
    static UNDISTURBED: OnceLock<Outcome> = OnceLock::new();
    UNDISTURBED.get_or_init(|| peaceful(SHORT))
}

fn peaceful(training: Training) -> Outcome {
    let mut cluster = Cluster::start_in(training.home());
    ["w1", "w2"].iter().for_each(|worker| cluster.add_worker(worker));
    let id = submit(&cluster, 2);
    (end(&cluster, &id), check_metrics(&cluster, &id, training.steps))
}

/// How long a step takes on two workers of this machine: the middle one.
fn step_seconds(training: Training) -> f64 {
    let mut cluster = Cluster::start_in(training.home());
    ["w1", "w2"].iter().for_each(|worker| cluster.add_worker(worker));
    let id = submit(&cluster, 2);
    end(&cluster, &id);
    let lines = cluster.retort(&format!("metrics {id} -o jsonl")).expect(0, &[]).stdout;
    let seconds = |line: &str| {
        let step: Value = serde_json::from_str(line).unwrap();
        let workers = step["workers"].as_array().unwrap().iter();
        workers.filter_map(|worker| worker["seconds"].as_f64()).fold(0.0, f64::max)
    };
    let mut all: Vec<f64> = lines.lines().map(seconds).collect();
    all.sort_by(f64::total_cmp);
    all[all.len() / 2].max(1e-3)
}

/// Faults by kind, and how many must have been before the training may end.
type Faults<'a> = (&'a [(Fault, usize)], usize);

fn chaos(seed: u64, training: Training, (counts, least): Faults<'_>, (expected, curve): &Outcome) {
    let wired = Wired::start(&training, WORKERS);
    let id = submit(&wired.cluster, WORKERS);
    let (faults, random) = faults(seed, counts);
    let store = wired.cluster.home.path().join("store");
    // The coordinator's own log begins anew with each of its processes; this one is whole.
    let follower = wired.cluster.home.start(&format!("logs {id} -f --coordinator {}", wired.cluster.address));
    let mut chaos = Chaos { wired, store, id, random, seen: Position::default() };
    let (begun, mut heard) = (Instant::now(), 0);
    for (number, fault) in faults.iter().enumerate() {
        let (number, of) = (number + 1, faults.len());
        if !chaos.next_step() {
            assert!(number > least, "the job ended before fault {number} of {of}: give it more steps");
            break;
        }
        heard = say_more(&follower, heard);
        let at = chaos.seen.clone();
        let what = chaos.inflict(*fault);
        let seconds = begun.elapsed().as_secs();
        eprintln!(
            "seed {seed}, {seconds} s, fault {number} of {of}: {what}; training, part {}, {}",
            at.done + 1,
            at.detail
        );
    }
    let Chaos { wired, id, .. } = &chaos;
    let found = end(&wired.cluster, id);
    say_more(&follower, heard);
    let log = follower.end().stdout;
    assert_eq!(&found, expected, "seed {seed}: the weights are those of an undisturbed training\n{log}");
    assert_eq!(&check_metrics(&wired.cluster, id, training.steps), curve, "seed {seed}: the same metrics");
    eprintln!("seed {seed}: the end after {:?}, weights {found}", begun.elapsed());
}

#[test]
fn a_few_faults_change_nothing() {
    let counts = [(Fault::KillWorker, 2), (Fault::Freeze, 1), (Fault::KillCoordinator, 1)];
    // A fast machine may be done before the last one.
    chaos(1, SHORT, (&counts, 2), undisturbed());
}

/// `just chaos SEED`.
#[test]
#[ignore = "takes minutes"]
fn many_faults_change_nothing() {
    let seed = std::env::var("RETORT_CHAOS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let counts = [
        (Fault::KillWorker, 16),
        (Fault::Freeze, 4),
        (Fault::KillCoordinator, 5),
        (Fault::KillUploading, 3),
        (Fault::KillAll, 1),
        (Fault::Partition, 1),
    ];
    let training = Training { seed: 1, steps: 40, dropout: 0.1, batch: 64 };
    let steps = (LONG.as_secs_f64() / step_seconds(training)) as u32;
    let training = Training { steps: steps.clamp(800, 20_000).next_multiple_of(Training::PARTS), ..training };
    let all = counts.iter().map(|(_, count)| count).sum();
    chaos(seed, training, (&counts, all), &peaceful(training));
}
