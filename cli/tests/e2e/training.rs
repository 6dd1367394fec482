//! One encoder's training with negatives that are mined anew, and what can be asked about it from outside.

use crate::fixture;
use crate::support::{Cluster, Home, until};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// What a training's test may choose.
#[derive(Clone, Copy, Debug)]
pub struct Training {
    pub seed: u32,
    pub steps: u32,
    pub dropout: f32,
    pub batch: u32,
}

impl Training {
    /// Parts of the phase: each but the first two has negatives of its own.
    pub const PARTS: u32 = 4;
    /// Every microbatch may have a worker of its own.
    pub const MICROBATCHES: u32 = 8;

    /// The spec: no student but the encoder, so that all work before it is short.
    pub fn spec(&self) -> String {
        let Self { seed, steps, dropout, batch } = self;
        let (refresh, microbatches) = (steps / Self::PARTS, Self::MICROBATCHES);
        let base = fixture::spec(1).replace("seed = 1", &format!("seed = {seed}"));
        let (base, _) = base.split_once("[[student]]").unwrap();
        format!(
            r#"{base}
[[student]]
name = "encoder-8"
kind = "encoder"
layers = [0]
dim = 8
init = "random"

[[student.phase]]
data = "queries"
steps = {steps}
refresh_every = {refresh}
batch = {batch}
microbatches = {microbatches}
negatives = 2
learning_rate = 1e-3
dropout = {dropout}
checkpoint_every = 4
loss = [{{ kind = "margin_mse" }}, {{ kind = "info_nce" }}]
"#
        )
    }

    /// A home with the corpus, the teacher and the spec.
    pub fn home(&self) -> Home {
        let home = Home::new();
        fixture::write(home.path());
        std::fs::write(home.path().join("spec.toml"), self.spec()).unwrap();
        home
    }
}

/// Submits the spec to a cluster once so many workers are there.
pub fn submit(cluster: &Cluster, workers: usize) -> String {
    until("workers", || {
        let listed = cluster.retort("worker list -o json").json();
        let up = listed["workers"].as_array()?.iter().filter(|worker| worker["connected"] == true).count();
        (up == workers).then_some(())
    });
    cluster.retort("submit spec.toml --id-only").expect(0, &[]).stdout.trim().to_owned()
}

/// Digests of the weights of trainings that are done, by training: one for each part.
pub fn final_weights(cluster: &Cluster, id: &str) -> BTreeMap<String, (u64, String)> {
    let listed = cluster.retort(&format!("checkpoint list {id} -o json")).expect(0, &[]).json();
    let all = listed["checkpoints"].as_array().unwrap().iter().filter(|one| one["final"] == true);
    let text = |one: &Value, key: &str| one[key].as_str().unwrap().to_owned();
    all.map(|one| (text(one, "task"), (one["step"].as_u64().unwrap(), text(one, "weights_sha256")))).collect()
}

/// Waits for the job's success; the SHA-256 of its final weights.
pub fn end(cluster: &Cluster, id: &str) -> String {
    // A coordinator that was killed a moment ago recovers first, and verbs do not wait for one to listen.
    until("the coordinator", || Position::of(cluster, id));
    let ended = cluster.retort(&format!("wait {id} --timeout 10m"));
    if ended.code != Some(0) {
        panic!("{}{}", ended.stderr, log(cluster, id));
    }
    let weights = final_weights(cluster, id);
    assert_eq!(weights.len(), Training::PARTS as usize, "{weights:?}");
    weights.into_values().max().unwrap().1
}

pub fn log(cluster: &Cluster, id: &str) -> String {
    cluster.retort(&format!("logs {id}")).stdout
}

/// Where a training is, as its users see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position {
    pub state: String,
    /// Trainings that are done.
    pub done: u64,
    pub step: u64,
    /// Workers at work on it.
    pub workers: usize,
    pub detail: String,
}

impl Position {
    /// Nothing while the coordinator is away.
    pub fn of(cluster: &Cluster, id: &str) -> Option<Self> {
        let job: Value = serde_json::from_str(&cluster.retort(&format!("get {id} -o json")).stdout).ok()?;
        let state = job["state"].as_str()?.to_owned();
        let stage = job["stages"].as_array()?.iter().find(|stage| stage["name"] == "train");
        let detail = stage.and_then(|stage| stage["detail"].as_str()).unwrap_or_default().to_owned();
        let done = stage.and_then(|stage| stage["done"].as_u64()).unwrap_or_default();
        let step = detail.strip_prefix("step ").and_then(|rest| rest.split_once('/')?.0.parse().ok());
        let workers = detail.rsplit(", ").find_map(|part| part.strip_suffix(" workers")?.parse().ok());
        let (step, workers) = (step.unwrap_or(0), workers.unwrap_or(1));
        Some(Self { state, done, step, workers, detail })
    }

    pub fn has_ended(&self) -> bool {
        !["PENDING", "RUNNING"].contains(&self.state.as_str())
    }
}

/// Stops a process and lets it go on, again and again, so that it computes this many times slower.
pub struct Slowed(std::sync::mpsc::SyncSender<()>, Option<std::thread::JoinHandle<()>>);

impl Slowed {
    /// How long it computes at a time: shorter than a step, far shorter than the failure detection.
    const AT_WORK: Duration = Duration::from_millis(10);

    pub fn new(process: u32, times: u32) -> Self {
        let (stop, stopped) = std::sync::mpsc::sync_channel(1);
        let pulse = move || {
            use std::sync::mpsc::RecvTimeoutError;
            while stopped.recv_timeout(Self::AT_WORK) == Err(RecvTimeoutError::Timeout) {
                crate::support::signal("-STOP", process);
                std::thread::sleep(Self::AT_WORK * (times - 1));
                crate::support::signal("-CONT", process);
            }
        };
        Self(stop, Some(std::thread::spawn(pulse)))
    }
}

impl Drop for Slowed {
    fn drop(&mut self) {
        let _ = self.0.send(());
        if let Some(pulse) = self.1.take() {
            let _ = pulse.join();
        }
    }
}
