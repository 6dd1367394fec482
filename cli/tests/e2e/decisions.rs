//! Decisions from measurements, and trainings that go on from other states than their newest: whole jobs.

use crate::cohort::with_job;
use crate::fixture;
use crate::support::{Cluster, until};
use retort_common::ids::Digest;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

/// Steps of the last phase: enough to meet it at work.
const STEPS: u32 = 4000;

fn log(cluster: &Cluster, id: &str) -> String {
    cluster.retort(&format!("logs {id}")).stdout
}

/// The rows of the report, which hold no times.
fn rows(cluster: &Cluster, id: &str) -> Value {
    let path = cluster.home.path().join(format!("store/jobs/{id}/report/report.json"));
    let report: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    report["rows"].clone()
}

/// A head whose learning rate is far too high after its beginning, so that it gets worse.
fn evaluated() -> String {
    let spec = fixture::spec(4)
        .replace("steps = 6\n", "steps = 60\nevaluate_every = 5\npatience = 2\nschedule = \"constant\"\n");
    spec.replacen("learning_rate = 1e-2", "learning_rate = 3.0", 1)
}

#[test]
fn the_best_state_is_chosen_whoever_works() {
    let outcome = |workers: &[&str]| {
        let (cluster, id) = with_job(&evaluated(), workers);
        cluster.retort(&format!("wait {id} --timeout 3m")).expect(0, &["SUCCEEDED"]);
        let log = log(&cluster, &id);
        let said = log.lines().filter_map(|line| line.split_once("student head-8, phase 1: "));
        let said: BTreeSet<String> = said.map(|(_, text)| text.to_owned()).collect();
        (rows(&cluster, &id), said)
    };
    let (alone, said) = outcome(&["w1"]);
    assert!(said.iter().any(|text| text.contains("step 5 has mrr@10 ")), "{said:?}");
    let decision = said.iter().find(|text| text.contains("is the best of"));
    let decision = decision.unwrap_or_else(|| panic!("{said:?}"));
    assert!(
        decision.contains("the phase ends early, after step"),
        "it cannot get better for ever: {decision}"
    );
    assert_eq!(outcome(&["w1", "w2"]), (alone, said));
}

/// The open checkpoints of the training with the most steps.
fn open(cluster: &Cluster, id: &str) -> Vec<Value> {
    let listed = cluster.retort(&format!("checkpoint list {id} -o json")).json();
    let all = listed["checkpoints"].as_array().unwrap().clone();
    let newest = all.iter().filter(|one| one["final"] == false).max_by_key(|one| one["step"].as_u64());
    let task = newest.map_or(Value::Null, |one| one["task"].clone());
    all.into_iter().filter(|one| one["final"] == false && one["task"] == task).collect()
}

fn pause(cluster: &Cluster, id: &str) {
    cluster.check(&format!("pause {id}"), 0, &["PAUSED"]);
    idle(cluster);
}

fn idle(cluster: &Cluster) {
    until("idle workers", || {
        let listed = cluster.retort("worker list -o json").json();
        listed["workers"].as_array()?.iter().all(|worker| worker["task"] == "").then_some(())
    });
}

/// The digests of the weights of trainings that are done.
fn weights(cluster: &Cluster, id: &str) -> BTreeSet<String> {
    cluster.retort(&format!("wait {id} --timeout 3m")).expect(0, &["SUCCEEDED"]);
    let listed = cluster.retort(&format!("checkpoint list {id} -o json")).json();
    let finals = listed["checkpoints"].as_array().unwrap().iter().filter(|one| one["final"] == true);
    finals.map(|one| one["weights_sha256"].as_str().unwrap().to_owned()).collect()
}

fn far(cluster: &Cluster, id: &str, step: u64) {
    until("some checkpoints of the last phase", || {
        open(cluster, id).iter().any(|one| one["step"].as_u64() > Some(step)).then_some(())
    });
}

#[test]
fn a_paused_job_goes_on_from_a_step_in_another_lineage() {
    // Long enough to be met at work, short enough to be done.
    let steps = 600;
    let spec = fixture::spec(steps);
    let (cluster, id) = with_job(&spec, &["w1"]);
    far(&cluster, &id, 20);
    pause(&cluster, &id);
    let before = open(&cluster, &id);
    let step = before[0]["step"].as_u64().unwrap();
    assert!(before.len() == 2 && step < before[1]["step"].as_u64().unwrap(), "{before:?}");
    let refused = |how: &str, words: &[&str]| cluster.check(&format!("resume {id} {how}"), 1, words);
    refused("--from best", &["evaluate_every"]);
    refused("--from 100000", &["no training in work has a checkpoint of step", &step.to_string()]);
    refused("--from yesterday", &["\"latest\" nor \"best\""]);
    refused(
        "--spec spec.toml --set student.encoder-8.phase.1.batch=16 --set seed=2",
        &["student.1.phase.1.batch (16, was 8)", "seed (2, was 1)", "another result"],
    );
    let resume =
        format!("resume {id} --from {step} --spec spec.toml --set student.encoder-8.phase.1.keep_last=9");
    cluster.check(&resume, 0, &["RUNNING"]);
    until("a new lineage", || {
        let found = open(&cluster, &id);
        found.iter().any(|one| one["lineage"].as_str().unwrap().ends_with("-2")).then_some(())
    });
    // What the new one began with is not deleted as long as it may go back there.
    let old = before[0]["lineage"].as_str().unwrap();
    cluster.check(&format!("checkpoint delete {id} --step {step} --lineage {old}"), 1, &["goes on from it"]);
    let found = weights(&cluster, &id);
    let log = log(&cluster, &id);
    assert!(log.contains(&format!("{old}-2 begins with step {step} of lineage {old}")), "{log}");
    assert!(log.contains(&format!("resumed from the checkpoint of step {step}")), "{log}");
    assert!(log.contains("the spec changes: student.1.phase.1.keep_last (9, was not given)"), "{log}");
    // Every step of either lineage once.
    let lines = cluster.retort(&format!("metrics {id} -o jsonl")).expect(0, &[]).stdout;
    let points: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |lineage: &str| {
        let own = points.iter().filter(|one| one["lineage"] == lineage);
        own.map(|one| one["step"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(of(&format!("{old}-2")), (1..=u64::from(steps)).collect::<Vec<_>>());
    // What was computed in the last moment before the pause may not have been told.
    let told = of(old);
    assert_eq!(told, (1..=told.len() as u64).collect::<Vec<_>>());
    assert!(told.len() < steps as usize);
    let (other, id) = with_job(&spec, &["w1", "w2"]);
    assert_eq!(weights(&other, &id), found, "a lineage changes no bit");
}

#[test]
fn a_job_goes_on_with_what_another_has_trained() {
    let (cluster, id) = with_job(&fixture::spec(STEPS), &["w1"]);
    far(&cluster, &id, 20);
    cluster.check(&format!("cancel {id}"), 0, &["CANCELLED"]);
    idle(&cluster);
    let before = open(&cluster, &id);
    let newest = before.last().unwrap()["step"].as_u64().unwrap();
    let submit = "submit spec.toml --set name=other --id-only";
    let other = cluster.retort(submit).expect(0, &["other-"]).stdout.trim().to_owned();
    until("the training", || {
        let text = format!("resumed from the checkpoint of step {newest}");
        log(&cluster, &other).contains(&text).then_some(())
    });
    pause(&cluster, &other);
    let step = open(&cluster, &other).last().unwrap()["step"].as_u64().unwrap();
    cluster.check(&format!("checkpoint verify {other}"), 0, &[&format!("step {step}: ok")]);
    cluster.check(&format!("cancel {other}"), 0, &[]);
}

/// The losses of the training with the most steps, as far as they are told.
fn told(cluster: &Cluster, id: &str) -> usize {
    let lines = cluster.retort(&format!("metrics {id} -o jsonl")).expect(0, &[]).stdout;
    let points = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    points.filter(|point| point["student"] == "encoder-8" && point["phase"] == 2).count()
}

/// Gives a checkpoint other weights, with every digest as it should be: what a machine writes that computes wrongly.
fn forge(checkpoint: &Value) {
    let part = Path::new(checkpoint["url"].as_str().unwrap().strip_prefix("file://").unwrap());
    let mut bytes = std::fs::read(part).unwrap();
    // Tensors stand in the order of their names: the parameters between the moments.
    let (header, values) = bytes.split_at_mut(8);
    let length = u64::from_le_bytes(header.try_into().unwrap()) as usize;
    let values = &mut values[length..];
    let third = values.len() / 3;
    for value in values[third..2 * third].chunks_mut(4) {
        value.copy_from_slice(&(f32::from_le_bytes((&*value).try_into().unwrap()) * 1.5).to_le_bytes());
    }
    let weights = Digest::of(&values[third..2 * third]).to_string();
    let digest = Digest::of(&bytes).to_string();
    let forged = part.with_file_name(format!("{digest}.safetensors"));
    std::fs::write(&forged, &bytes).unwrap();
    std::fs::remove_file(part).unwrap();
    let path = part.with_file_name("manifest.json");
    let mut manifest: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let name = manifest["part"].as_str().unwrap().rsplit_once('/').unwrap().0.to_owned();
    manifest["part"] = json!(format!("{name}/{digest}.safetensors"));
    (manifest["sha256"], manifest["weights_sha256"]) = (json!(digest), json!(weights));
    std::fs::write(&path, serde_json::to_vec(&manifest).unwrap()).unwrap();
}

#[test]
fn a_step_that_comes_again_with_other_figures_is_diverged() {
    // So many steps between checkpoints that those after the oldest have been told.
    let often = "checkpoint_every = 2\n";
    let spec = fixture::spec(STEPS).replace(often, "checkpoint_every = 50\nkeep_last = 4\n");
    let (mut cluster, id) = with_job(&spec, &["w1"]);
    far(&cluster, &id, 199);
    pause(&cluster, &id);
    let all = open(&cluster, &id);
    let step = all[0]["step"].as_u64().unwrap() as usize;
    until("the steps after the oldest checkpoint", || (told(&cluster, &id) > step).then_some(()));
    // The newer ones are lost, and the oldest is not what it was.
    for one in &all[1..] {
        let url = one["url"].as_str().unwrap().strip_prefix("file://").unwrap();
        std::fs::remove_dir_all(Path::new(url).parent().unwrap()).unwrap();
    }
    forge(&all[0]);
    cluster.workers.clear();
    cluster.add_worker("w2");
    cluster.check(&format!("resume {id}"), 0, &["RUNNING"]);
    let words = ["DIVERGED", &format!("step {} of lineage", step + 1), "worker w2", "worker w1"];
    cluster.retort(&format!("wait {id} --timeout 2m")).expect(100, &words);
    cluster.check(&format!("describe {id}"), 0, &["FAILED", "DIVERGED"]);
    // Nobody knows which bits are right: who submits it again begins anew.
    let again = cluster.retort("submit spec.toml --id-only").expect(0, &[]).stdout.trim().to_owned();
    until("another lineage", || {
        let found = open(&cluster, &again);
        found.iter().any(|one| one["lineage"].as_str().unwrap().ends_with("-2")).then_some(())
    });
    assert!(!log(&cluster, &again).contains("resumed from the checkpoint"), "{}", log(&cluster, &again));
    cluster.check(&format!("cancel {again}"), 0, &[]);
}

#[test]
fn values_that_are_not_finite_fail_the_job_with_their_rows() {
    let spec = fixture::spec(40).replace("microbatches = 2\n", "");
    let spec = spec.replace("batch = 8\n", "batch = 8\nmicrobatches = 4\n");
    let (head, rest) = spec.split_once("name = \"encoder-8\"").unwrap();
    let rest =
        rest.replacen("learning_rate = 1e-3", "learning_rate = 1e38\nwarmup = 0.0\nclip_norm = 0.0", 1);
    let (cluster, id) = with_job(&format!("{head}name = \"encoder-8\"{rest}"), &["w1", "w2"]);
    let words = ["FAILED", "look at question rows", "passage rows", "lower the learning rate"];
    cluster.retort(&format!("wait {id} --timeout 2m")).expect(100, &words);
}
