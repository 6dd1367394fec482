//! Whole jobs, by `retort run` and on a cluster started by hand.

use crate::fixture;
use crate::support::{Cluster, Home, files, finished, report};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The rows of the fixture's report, in its order of kinds.
const ROWS: [(&str, &str); 6] = [
    ("teacher", "teacher"),
    ("head-8", "head"),
    ("encoder-8", "encoder"),
    ("pca-8", "pca"),
    ("pca-4", "pca"),
    ("bm25", "bm25"),
];

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

#[track_caller]
fn check_keys(value: &Value, wanted: &[&str]) {
    let missing: Vec<_> = wanted.iter().filter(|key| !keys(value).contains(**key)).collect();
    assert!(missing.is_empty(), "no {missing:?} in {value}");
}

fn check_report(report: &Value) {
    check_keys(report, &["schema_version", "job", "spec_digest", "rows", "stages"]);
    assert_eq!(report["schema_version"], 1);
    let rows = report["rows"].as_array().unwrap();
    for row in rows {
        check_keys(row, &["name", "kind", "dim", "bytes_per_passage", "metrics"]);
        for set in ["dev", "test"] {
            for metric in ["mrr@10", "ndcg@10", "recall@20", "success@20"] {
                let value = row["metrics"][set][metric].as_f64();
                assert!(value.is_some_and(|value| (0.0..=1.0).contains(&value)), "{set} {metric}: {row}");
            }
        }
        let bytes = row["bytes_per_passage"].as_f64().unwrap();
        assert!(row["dim"].as_u64().map_or(bytes > 0.0, |dim| bytes == 4.0 * dim as f64), "{row}");
    }
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let found: BTreeSet<_> = rows.iter().map(|row| (text(&row["name"]), text(&row["kind"]))).collect();
    assert_eq!(found, ROWS.map(|(name, kind)| (name.to_owned(), kind.to_owned())).into());
    let stages = report["stages"].as_array().unwrap();
    for stage in stages {
        check_keys(stage, &["name", "tasks", "cached", "seconds"]);
        assert!(stage["tasks"].as_u64() >= stage["cached"].as_u64(), "{stage}");
    }
    let names: BTreeSet<_> = stages.iter().map(|stage| text(&stage["name"])).collect();
    for stage in ["shard", "embed", "fit", "search", "mine", "train", "evaluate", "export"] {
        assert!(names.contains(stage), "no stage {stage} in {names:?}");
    }
}

/// MRR@10 of an exported run by an exported file of judgements, computed here without Retort's own code.
fn reciprocal_rank(folder: &Path, row: &str, set: &str) -> f64 {
    let read =
        |name: String| std::fs::read_to_string(folder.join(&name)).unwrap_or_else(|_| panic!("no {name}"));
    let columns = |text: &str| -> Vec<Vec<String>> {
        text.lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
    };
    let mut relevant = BTreeMap::<String, BTreeSet<String>>::new();
    for line in columns(&read(format!("qrels/{set}.qrels"))) {
        if line[3].parse::<i64>().unwrap() > 0 {
            relevant.entry(line[0].clone()).or_default().insert(line[2].clone());
        }
    }
    let mut ranked = BTreeMap::<String, Vec<(f64, String)>>::new();
    for line in columns(&read(format!("runs/{row}.{set}.trec"))) {
        ranked.entry(line[0].clone()).or_default().push((line[4].parse().unwrap(), line[2].clone()));
    }
    let of_question = |(question, positives): (&String, &BTreeSet<String>)| {
        let mut list = ranked.get(question).cloned().unwrap_or_default();
        // As trec_eval: by score alone, later names first among equals.
        list.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| b.1.cmp(&a.1)));
        let at = list.iter().take(10).position(|(_, passage)| positives.contains(passage));
        at.map_or(0.0, |at| 1.0 / (at + 1) as f64)
    };
    relevant.iter().map(of_question).sum::<f64>() / relevant.len() as f64
}

#[test]
fn a_run_leaves_its_report_and_a_second_run_computes_nothing() {
    let home = Home::new();
    fixture::write(home.path());
    let store = home.path().join("store");
    let first = home.retort("run spec.toml --store store --workers 2");
    let first = first.expect(0, &["store: file://", "submitted", "report.json", "report.html"]);
    for (row, _) in ROWS {
        assert!(first.stdout.contains(row), "no {row} in the table\n{}", first.stdout);
    }
    let (folder, json) = report(&store);
    check_report(&json);
    for (row, _) in ROWS.iter().filter(|(_, kind)| *kind != "pca") {
        for set in ["dev", "test"] {
            let rows = json["rows"].as_array().unwrap();
            let told =
                rows.iter().find(|found| found["name"] == *row).unwrap()["metrics"][set]["mrr@10"].as_f64();
            let computed = reciprocal_rank(&folder, row, set);
            assert!(
                (told.unwrap() - computed).abs() < 1e-12,
                "{row} on {set}: {told:?}, exported {computed}"
            );
        }
    }
    let page = std::fs::read_to_string(folder.join("report.html")).unwrap();
    assert!(
        page.contains("<svg") && !page.contains("http://") && !page.contains("src="),
        "the page is self-contained"
    );
    for student in ["head-8", "encoder-8"] {
        let found = files(&folder.join("models").join(student));
        for file in ["config.json", "model.safetensors", "tokenizer.json", "modules.json"] {
            assert!(found.contains(Path::new(file)), "{student} lacks {file}: {found:?}");
        }
    }
    #[cfg(target_os = "linux")]
    assert!(
        files(&home.path().join(".local/share/retort/cache")).is_empty(),
        "workers' files end with the run"
    );

    let (before, bytes) =
        (files(&store.join("artifacts")), std::fs::read(folder.join("report.json")).unwrap());
    let second = home.retort("run spec.toml --store store --workers 2 -o json");
    let second = second.expect(0, &["nothing is computed again"]);
    assert_eq!(second.json(), json);
    assert_eq!(files(&store.join("artifacts")), before);
    assert_eq!(std::fs::read(folder.join("report.json")).unwrap(), bytes);
}

/// A stage of a job as `get -o json` tells it.
fn stage<'a>(job: &'a Value, name: &str) -> &'a Value {
    job["stages"].as_array().unwrap().iter().find(|stage| stage["name"] == name).expect(name)
}

#[test]
fn another_job_on_a_cluster_by_hand_computes_only_what_is_new() {
    let mut cluster = Cluster::start();
    fixture::write(cluster.home.path());
    cluster.add_worker("w1");
    cluster.add_worker("w2");
    cluster.retort("submit spec.toml --wait").expect(0, &["tiny-", "SUCCEEDED", "report: file://"]);
    let store = cluster.home.path().join("store");
    let before = finished(&store);

    // Another depth of the lists changes what is searched, and nothing that the students learn from.
    let id = cluster
        .retort("submit spec.toml --name other --set evaluate.depth=30 --id-only")
        .expect(0, &["other-"]);
    let id = id.stdout.trim();
    cluster.retort(&format!("wait {id} --for stage=embed")).expect(0, &["stage embed", "is done"]);
    cluster.retort(&format!("wait {id} --timeout 2m")).expect(0, &["SUCCEEDED", "report: file://"]);
    let job = cluster.retort("get other -o json").expect(0, &[]).json();
    let job = if job["jobs"].is_array() { job["jobs"][0].clone() } else { job };
    assert_eq!(job["state"], "SUCCEEDED");
    assert_eq!(job["id"], id);
    for name in ["shard", "embed", "fit", "mine", "train"] {
        let stage = stage(&job, name);
        assert!(stage["tasks"].as_u64() > Some(0) && stage["tasks"] == stage["cached"], "{stage}");
        assert_eq!(stage["done"], stage["tasks"]);
    }
    assert!(stage(&job, "search")["cached"].as_u64() < stage(&job, "search")["tasks"].as_u64());
    let after = finished(&store);
    assert!(before.iter().all(|(task, made)| after.get(task) == Some(made)), "no artifact was made again");

    let audit = ["negatives from teacher, bm25", "removed by filter", "most suspicious negatives (2 of"];
    cluster.check("negatives report other --cases 2", 0, &audit);
    let audits = cluster.retort("negatives report other -o json").expect(0, &[]).json();
    check_keys(&audits["negatives"][0], &["source", "filters", "gaps", "shortfall", "suspicious"]);
    cluster.check("negatives report nobody", 102, &["nobody"]);
    cluster.check("describe other", 0, &["state:       SUCCEEDED", "CACHED", "train"]);
    cluster.check(&format!("logs {id}"), 0, &["accepted"]);
    cluster.check(&format!("logs {id} --follow -o jsonl"), 0, &["\"message\":"]);
    let jobs = cluster.retort("list --all -o json").expect(0, &[]).json();
    let names: Vec<_> =
        jobs["jobs"].as_array().unwrap().iter().map(|job| job["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["other", "tiny"], "newest first");
    let workers = cluster.retort("worker list -o json").expect(0, &[]).json();
    let workers = workers["workers"].as_array().unwrap();
    assert_eq!(workers.len(), 2);
    for worker in workers {
        check_keys(worker, &["id", "device", "fingerprint", "version", "task", "threads"]);
        assert_eq!(worker["connected"], true);
        assert!(worker["tasks_done"].as_u64() > Some(0), "{worker}");
    }

    // A long one, cancelled in its training; the workers are free for the next job.
    std::fs::write(cluster.home.path().join("long.toml"), fixture::spec(1_000_000)).unwrap();
    cluster.retort("submit long.toml --name long --id-only").expect(0, &["long-"]);
    cluster.retort("wait long --timeout 1s").expect(124, &["goes on"]);
    cluster.retort("cancel long").expect(0, &["CANCELLED"]);
    cluster.retort("wait long").expect(103, &["CANCELLED"]);
    cluster.retort("submit spec.toml --name last --set evaluate.depth=25 --follow").expect(0, &["SUCCEEDED"]);
}

/// A student that mines anew while it trains, with dropout and with parameters of the loss's own, has the same weights
/// on one worker as on three.
#[test]
fn fresh_negatives_give_the_same_student_on_any_cluster() {
    let sets = "--set student.1.phase.1.refresh_every=2 --set student.1.phase.1.dropout=0.1 \
                --set student.1.phase.1.steps=7 --set student.0.phase.0.negatives_from=[\"bm25\"] \
                --set student.1.phase.1.freeze_embeddings=true \
                --set student.0.phase.0.loss=[{kind=\"info_nce\",temperature=0.1,learn_temperature=true}]";
    let train = |workers: usize| {
        let home = Home::new();
        fixture::write(home.path());
        let store = home.path().join("store");
        let line = format!("run spec.toml --store store --workers {workers} {sets}");
        home.retort(&line).expect(0, &["report.json"]);
        let (folder, json) = report(&store);
        let mined: Vec<_> = json["negatives"]
            .as_array()
            .unwrap()
            .iter()
            .map(|audit| audit["source"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(mined, ["bm25", "teacher, bm25", "encoder-8 at step 2", "encoder-8 at step 4"]);
        let case = &json["negatives"][0]["suspicious"][0];
        check_keys(case, &["query", "positive", "negative", "positive_score", "negative_score"]);
        // A head stands on the teacher's vectors of unit length, so that its layer comes one place later.
        ["head-8/3_Dense", "encoder-8/2_Dense"]
            .map(|layer| std::fs::read(folder.join("models").join(layer).join("model.safetensors")).unwrap())
    };
    assert_eq!(train(1), train(3));
}
