//! Checkpoints as users handle them.

use crate::cohort::with_job;
use crate::fixture;
use crate::support::{Cluster, until};
use serde_json::Value;
use std::collections::BTreeSet;

/// Steps of the last phase; it is paused long before.
const STEPS: u32 = 4000;

#[test]
fn a_student_starts_from_the_checkpoint_of_another_job() {
    let (cluster, id) = with_job(&fixture::spec(4), &["w1"]);
    cluster.retort(&format!("wait {id} --timeout 3m")).expect(0, &["SUCCEEDED"]);
    let listed = cluster.retort(&format!("checkpoint list {id} -o json")).json();
    let all = listed["checkpoints"].as_array().unwrap();
    // The head alone takes six steps.
    let head = &all.iter().find(|one| one["final"] == true && one["step"] == 6).unwrap()["task"];
    let of_head = |one: &&Value| one["final"] == false && one["task"] == *head;
    let checkpoint = all.iter().find(of_head).unwrap();
    let warm = format!("warm_start = {}\n", checkpoint["url"]);
    let submit = |spec: String| {
        std::fs::write(cluster.home.path().join("warm.toml"), spec).unwrap();
        cluster.retort("submit warm.toml --id-only").expect(0, &[]).stdout.trim().to_owned()
    };
    // The learning rate of the first step of a warm-up is 0: the weights stay what they were.
    let spec = fixture::spec(4).replace("steps = 6\n", "steps = 1\nwarmup = 1.0\n");
    let id = submit(spec.replace("kind = \"head\"\n", &format!("kind = \"head\"\n{warm}")));
    cluster.retort(&format!("wait {id} --timeout 3m")).expect(0, &["SUCCEEDED"]);
    let listed = cluster.retort(&format!("checkpoint list {id} -o json")).json();
    let same = |one: &Value| {
        one["final"] == true && one["step"] == 1 && one["weights_sha256"] == checkpoint["weights_sha256"]
    };
    assert!(listed["checkpoints"].as_array().unwrap().iter().any(same), "{listed}");
    let id = submit(spec.replace("kind = \"encoder\"\n", &format!("kind = \"encoder\"\n{warm}")));
    cluster.retort(&format!("wait {id} --timeout 3m")).expect(100, &["FAILED", "are needed", "same shape"]);
}

fn open(cluster: &Cluster, id: &str) -> Vec<Value> {
    let listed = cluster.retort(&format!("checkpoint list {id} -o json")).json();
    let all = listed["checkpoints"].as_array().unwrap();
    all.iter().filter(|one| one["final"] == false).cloned().collect()
}

#[test]
fn checkpoints_are_described_kept_and_deleted() {
    let spec =
        fixture::spec(STEPS).replace("checkpoint_every = 2\n", "checkpoint_every = 2\nkeep_last = 4\n");
    let (cluster, id) = with_job(&spec, &["w1"]);
    let lineage_of = |one: &Value| one["lineage"].as_str().unwrap().to_owned();
    // The last phase alone has so many steps.
    let lineage = until("four checkpoints of one training", || {
        let found = open(&cluster, &id);
        let late = found.iter().find(|one| one["step"].as_u64().unwrap() > 20)?;
        let same = found.iter().filter(|one| lineage_of(one) == lineage_of(late)).count();
        (same == 4).then(|| lineage_of(late))
    });
    cluster.check(&format!("pause {id}"), 0, &["PAUSED"]);
    until("an idle worker", || {
        let listed = cluster.retort("worker list -o json").json();
        listed["workers"].as_array()?.iter().all(|worker| worker["task"] == "").then_some(())
    });
    let found: Vec<_> = open(&cluster, &id).into_iter().filter(|one| lineage_of(one) == lineage).collect();
    assert_eq!(found.len(), 4);
    let (first, last) = (found[0]["step"].as_u64().unwrap(), found[3]["step"].as_u64().unwrap());
    let said = cluster
        .retort(&format!("checkpoint describe {id} --step {first} --lineage {lineage} -o json"))
        .json();
    for name in ["weights_sha256", "loss", "bytes", "url", "task"] {
        assert_eq!(said[name], found[0][name], "{name}");
    }
    assert!(said["learning_rate"].as_f64().unwrap() > 0.0 && said["sha256"].as_str().unwrap().len() == 64);
    cluster.check(
        &format!("checkpoint describe {id} --step {first} --lineage {lineage}"),
        0,
        &["gradient_norm", &lineage],
    );
    let delete = |step: u64| format!("checkpoint delete {id} --step {step} --lineage {lineage}");
    cluster.check(&delete(last), 1, &["goes on from it"]);
    cluster.check(&delete(first), 0, &["deleted"]);
    cluster.check(&delete(first), 1, &["no checkpoint of step"]);
    let steps = |all: Vec<Value>| all.iter().filter_map(|one| one["step"].as_u64()).collect::<BTreeSet<_>>();
    let left: Vec<_> = open(&cluster, &id).into_iter().filter(|one| lineage_of(one) == lineage).collect();
    assert!(left.len() == 3 && !steps(left).contains(&first));
    cluster.check(&format!("cancel {id}"), 0, &[]);
    cluster.check(&delete(last), 0, &["deleted"]);
}
