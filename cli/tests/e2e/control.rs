//! A coordinator without workers, and what its clients are told.

use crate::support::Cluster;
use std::path::Path;
use std::time::Duration;

#[test]
fn unknown_jobs_are_exit_102_and_empty_lists_are_lists() {
    let mut cluster = Cluster::start();
    for round in 0..2 {
        for verb in ["get nope", "describe nope", "logs nope", "logs nope -f", "wait nope", "cancel nope"] {
            cluster.check(verb, 102, &["nope"]);
        }
        cluster.check("list -o json", 0, &["\"jobs\": []", "\"schema_version\": 1"]);
        cluster.check("list", 0, &["ID", "STATE"]);
        cluster.check("worker list -o json", 0, &["\"workers\": []"]);
        if round == 0 {
            cluster.restart();
            std::thread::sleep(Duration::from_secs(2));
        }
    }
}

/// A spec whose files exist and can be hashed; no worker ever reads them.
fn write_spec(home: &Path) {
    std::fs::create_dir_all(home.join("data/qrels")).unwrap();
    std::fs::create_dir_all(home.join("model")).unwrap();
    let files = ["data/corpus.jsonl", "data/queries.jsonl", "data/qrels/train.tsv", "data/qrels/test.tsv"];
    let model = ["model/config.json", "model/model.safetensors", "model/tokenizer.json"];
    for file in files.iter().chain(&model) {
        std::fs::write(home.join(file), file).unwrap();
    }
    // The client looks into the model's configuration, since it may name further files.
    std::fs::write(home.join("model/config.json"), "{\"model_type\": \"bert\"}").unwrap();
    let spec = "name = \"tiny\"\n[corpus]\npath = \"data\"\n[sets]\ntrain = [\"train\"]\ntest = [\"test\"]\n\
                [teacher]\nmodel = \"model\"\n";
    std::fs::write(home.join("spec.toml"), spec).unwrap();
}

#[test]
fn a_job_is_accepted_once_survives_a_kill_and_ends_when_cancelled() {
    let mut cluster = Cluster::start();
    write_spec(cluster.home.path());
    cluster.check("submit spec.toml --dry-run", 0, &["spec digest", "data/corpus.jsonl"]);
    cluster.check("list -a -o json", 0, &["\"jobs\": []"]);
    cluster.check("submit spec.toml --request-id r1", 0, &["tiny-", "PENDING"]);
    cluster.restart();
    std::thread::sleep(Duration::from_secs(2));
    cluster.check("submit spec.toml --request-id r1 --id-only", 0, &["tiny-"]);
    cluster.check("submit spec.toml --request-id r1 --name other", 1, &["refused", "r1"]);
    cluster.check("wait tiny --timeout 300ms", 124, &["goes on"]);
    cluster.check("get tiny -o json", 0, &["\"state\": \"PENDING\"", "\"submitted_at\""]);
    #[cfg(unix)]
    for verb in ["logs tiny -f", "wait tiny", "list --watch", "submit spec.toml --request-id r1 --wait"] {
        cluster.interrupt(verb);
    }
    cluster.check("get tiny -o json", 0, &["\"state\": \"PENDING\""]);
    cluster.check("cancel tiny", 0, &["CANCELLED"]);
    cluster.check("wait tiny", 103, &["CANCELLED"]);
    cluster.check("list", 0, &["STATE"]);
    cluster.check("list --state cancelled -o jsonl", 0, &["\"state\":\"CANCELLED\""]);
}
