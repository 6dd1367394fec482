//! One training by several workers: whoever computes, dies, freezes or joins, the weights are the same.

use crate::fixture;
use crate::support::{Cluster, Home, finished, signal, until};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Steps of the encoder's last phase: enough to meet it at work.
const STEPS: u32 = 400;

/// The fixture's spec with several microbatches in every phase.
fn spec(seed: u32) -> String {
    let spec = fixture::spec(STEPS).replace("seed = 1", &format!("seed = {seed}"));
    let spec = spec.replace("microbatches = 2\n", "");
    spec.replace("batch = 8\n", "batch = 8\nmicrobatches = 4\n")
}

/// A cluster with a submitted job.
fn submitted(seed: u32, workers: &[&str]) -> (Cluster, String) {
    with_job(&spec(seed), workers)
}

/// A cluster with a job of this spec.
pub fn with_job(spec: &str, workers: &[&str]) -> (Cluster, String) {
    let home = Home::new();
    fixture::write(home.path());
    std::fs::write(home.path().join("spec.toml"), spec).unwrap();
    let mut cluster = Cluster::start_in(home);
    workers.iter().for_each(|id| cluster.add_worker(id));
    until("workers", || {
        let listed = cluster.retort("worker list -o json").json();
        let up = listed["workers"].as_array()?.iter().filter(|worker| worker["connected"] == true).count();
        (up == workers.len()).then_some(())
    });
    let id = cluster.retort("submit spec.toml --id-only").expect(0, &[]).stdout.trim().to_owned();
    (cluster, id)
}

/// Digests of the students' weights.
fn weights(store: &Path) -> BTreeSet<String> {
    let digest = |manifest: &[u8]| {
        let manifest: Value = serde_json::from_slice(manifest).unwrap();
        manifest["meta"]["weights_sha256"].as_str().map(str::to_owned)
    };
    finished(store).values().filter_map(|(manifest, _)| digest(manifest)).collect()
}

/// Waits for the job's end; the digests of its weights.
fn end(cluster: &Cluster, id: &str) -> BTreeSet<String> {
    cluster.retort(&format!("wait {id} --timeout 3m")).expect(0, &["SUCCEEDED"]);
    weights(&cluster.home.path().join("store"))
}

fn alone() -> &'static BTreeSet<String> {
    static ALONE: OnceLock<BTreeSet<String>> = OnceLock::new();
    ALONE.get_or_init(|| {
        let (cluster, id) = submitted(1, &["w1"]);
        let weights = end(&cluster, &id);
        assert_eq!(weights.len(), 3, "one for each phase");
        weights
    })
}

fn log(cluster: &Cluster, id: &str) -> String {
    cluster.retort(&format!("logs {id}")).stdout
}

/// Waits until the last phase is at work on so many workers; which step it is at.
fn at_work(cluster: &Cluster, id: &str, workers: usize) -> u32 {
    let members = format!("{workers} workers");
    until(&format!("the last phase on {members}"), || {
        let job = cluster.retort(&format!("get {id} -o json")).json();
        let stage = job["stages"].as_array()?.iter().find(|stage| stage["name"] == "train")?.clone();
        let detail = stage["detail"].as_str()?.to_owned();
        let (step, rest) = detail.strip_prefix("step ")?.split_once('/')?;
        let last = rest.starts_with(&format!("{STEPS},")) && rest.contains(&members);
        if last { step.parse().ok() } else { None }
    })
}

#[test]
fn any_number_of_workers_gives_the_same_weights() {
    for workers in [&["w1", "w2"][..], &["w1", "w2", "w3"]] {
        let (cluster, id) = submitted(1, workers);
        let found = end(&cluster, &id);
        assert_eq!(&found, alone(), "{workers:?}");
        let log = log(&cluster, &id);
        assert!(log.contains("joined"), "nobody joined in\n{log}");
    }
    let (cluster, id) = submitted(2, &["w1", "w2"]);
    assert!(end(&cluster, &id).is_disjoint(alone()), "another seed gives other weights");
}

#[test]
fn gradients_in_bf16_give_one_result_whoever_computes() {
    let spec = fixture::spec(40).replace("microbatches = 2\n", "");
    let of = |wire: &str| spec.replace("batch = 8\n", &format!("batch = 8\nmicrobatches = 4\n{wire}"));
    let weights = |spec: &str, workers: &[&str]| {
        let (cluster, id) = with_job(spec, workers);
        end(&cluster, &id)
    };
    let half = of("wire = \"bf16\"\n");
    let alone = weights(&half, &["w1"]);
    for workers in [&["w1", "w2"][..], &["w1", "w2", "w3"]] {
        assert_eq!(weights(&half, workers), alone, "{workers:?}");
    }
    // Two blocks of two microbatches: a third worker has nothing to do.
    let blocks = of("wire = \"bf16\"\nwire_level = 1\n");
    let in_blocks = weights(&blocks, &["w1"]);
    assert_eq!(weights(&blocks, &["w1", "w2", "w3"]), in_blocks);
    assert!(alone.is_disjoint(&in_blocks) && alone.is_disjoint(&weights(&of(""), &["w1"])));
}

#[test]
fn a_worker_killed_inside_a_step_changes_no_bit() {
    let (mut cluster, id) = submitted(1, &["w1", "w2", "w3"]);
    let before = at_work(&cluster, &id, 3);
    cluster.workers[1].kill();
    let begun = Instant::now();
    at_work(&cluster, &id, 2);
    eprintln!("two workers go on {:?} after the third was killed at step {before}", begun.elapsed());
    cluster.add_worker("w4");
    let found = end(&cluster, &id);
    assert_eq!(&found, alone());
    assert!(log(&cluster, &id).contains("w2 left"), "{}", log(&cluster, &id));
}

#[test]
fn a_frozen_worker_is_left_out_and_changes_no_bit() {
    let (cluster, id) = submitted(1, &["w1", "w2", "w3"]);
    at_work(&cluster, &id, 3);
    let frozen = cluster.workers[0].id();
    assert!(signal("-STOP", frozen));
    let begun = Instant::now();
    at_work(&cluster, &id, 2);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert!(signal("-CONT", frozen));
    assert_eq!(&end(&cluster, &id), alone());
}

#[test]
fn a_killed_coordinator_finds_the_cohort_at_work() {
    let (mut cluster, id) = submitted(1, &["w1", "w2"]);
    at_work(&cluster, &id, 2);
    cluster.restart();
    assert_eq!(&end(&cluster, &id), alone());
}

#[test]
fn all_workers_killed_at_once_go_on_from_a_checkpoint() {
    let (mut cluster, id) = submitted(1, &["w1", "w2"]);
    until("some steps", || (at_work(&cluster, &id, 2) > 8).then_some(()));
    cluster.workers.clear();
    cluster.add_worker("w3");
    assert_eq!(&end(&cluster, &id), alone());
    assert!(log(&cluster, &id).contains("resumed from the checkpoint of step"), "{}", log(&cluster, &id));
}

#[test]
fn a_paused_job_goes_on_with_other_workers_and_the_same_weights() {
    let (mut cluster, id) = submitted(1, &["w1", "w2"]);
    at_work(&cluster, &id, 2);
    cluster.check(&format!("pause {id}"), 0, &["PAUSED"]);
    until("idle workers", || {
        let listed = cluster.retort("worker list -o json").json();
        listed["workers"].as_array()?.iter().all(|worker| worker["task"] == "").then_some(())
    });
    let listed = cluster.retort(&format!("checkpoint list {id} -o json")).json();
    let open = listed["checkpoints"].as_array().unwrap().iter().rfind(|one| one["final"] == false).unwrap();
    let (step, lineage) = (open["step"].as_u64().unwrap(), open["lineage"].as_str().unwrap());
    cluster.check(&format!("checkpoint verify {id}"), 0, &["ok"]);
    let download = format!("checkpoint download {id} --step {step} --lineage {lineage} --out state");
    cluster.check(&download, 0, &["state"]);
    assert!(cluster.home.path().join("state").is_file());
    cluster.workers.clear();
    cluster.add_worker("w3");
    cluster.check(&format!("resume {id}"), 0, &["RUNNING"]);
    assert_eq!(&end(&cluster, &id), alone());
    let listed = cluster.retort(&format!("checkpoint list {id} -o json")).json();
    let finals = listed["checkpoints"].as_array().unwrap().iter().filter(|one| one["final"] == true);
    let finals: BTreeSet<_> = finals.map(|one| one["weights_sha256"].as_str().unwrap().to_owned()).collect();
    assert_eq!(&finals, alone());
    cluster.check(&format!("resume {id}"), 1, &["has ended"]);
}

#[test]
fn a_training_that_two_students_share_is_told_of_under_both() {
    // head-8 once more, with another phase behind the one that both have.
    let spec = spec(1);
    let heads = spec.split("[[student]]").nth(1).unwrap();
    let (settings, phase) = heads.split_once("[[student.phase]]").unwrap();
    let twin =
        format!("{settings}[[student.phase]]{phase}[[student.phase]]{phase}").replace("head-8", "twin-8");
    let (cluster, id) = with_job(&format!("{spec}\n[[student]]{twin}"), &["w1", "w2"]);
    let points = |flags: &str| -> BTreeMap<(String, u64), Vec<Value>> {
        let lines = cluster.retort(&format!("metrics {id} -o jsonl{flags}")).expect(0, &[]).stdout;
        let mut points: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for line in lines.lines() {
            let point: Value = serde_json::from_str(line).unwrap();
            let key = (point["student"].as_str().unwrap().to_owned(), point["phase"].as_u64().unwrap());
            points.entry(key).or_default().push(json!([point["task"], point["step"], point["loss"]]));
        }
        points
    };
    // While it goes on, to its end, and from the beginning once it has ended.
    for flags in [" --follow", ""] {
        let points = points(flags);
        let of = |student: &str, phase| match points.get(&(student.to_owned(), phase)) {
            Some(points) => points,
            None => panic!("nothing of {student}, phase {phase}, of {:?}", points.keys()),
        };
        assert_eq!(of("head-8", 1), of("twin-8", 1));
        assert_eq!((of("twin-8", 1).len(), of("twin-8", 2).len()), (6, 6));
        assert_ne!(of("twin-8", 1)[0][0], of("twin-8", 2)[0][0]);
    }
}
