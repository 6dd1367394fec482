//! Students that learn from scores of pairs: those that the files bring, and a cross-encoder's.

use crate::denoise::{self, parts, stage};
use crate::fixture;
use crate::support::{Home, files, report};
use retort_worker::tables::read_negatives;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

/// Students that learn from a signal: a head from all training questions at once, and the encoder's last phase.
fn spec(base: &str, signal: &str) -> String {
    let (before, after) = base.split_once("steps = 6\nbatch = 8\n").unwrap();
    let (_, after) = after.split_once("[[student]]\n").unwrap();
    let losses = "{ kind = \"margin_mse\", teacher_scale = 0.1 }, \
                  { kind = \"kl\", scope = \"listed\", teacher_temperature = 1.0 }";
    let head = format!(
        "signal = \"{signal}\"\nsteps = 20\nbatch = 20\nmicrobatches = 4\nnegatives = 3\nlearning_rate = 1e-2\n\
         loss = [{losses}]\n\n[[student]]\n"
    );
    let (encoder, last) = after.rsplit_once("signal = \"head-8\"").unwrap();
    [before, &head, encoder, &format!("signal = \"{signal}\""), last].concat()
}

/// Files of sets with a score for each passage: of the training questions with their positives and with two or three
/// others, and of questions with their positives alone.
fn write_scored(data: &Path) {
    let lines = |name: &str| -> Vec<Value> {
        let text = std::fs::read_to_string(data.join(name)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let (questions, passages) = (lines("queries.jsonl"), lines("corpus.jsonl"));
    let row = |at: usize, others: &[usize]| {
        let listed = [0].iter().chain(others).map(|by| &passages[(at + by) % passages.len()]);
        let scores =
            (0..=others.len()).map(|other| if other == 0 { 4.0 } else { 1.0 - (at + other) as f64 / 5.0 });
        json!({
            "query_id": questions[at]["_id"], "query": questions[at]["text"],
            "passages": listed.map(|one| json!({ "docid": one["_id"], "text": one["text"] })).collect::<Vec<_>>(),
            "scores": scores.collect::<Vec<_>>(),
        })
    };
    let write = |name: &str, row: &dyn Fn(usize) -> Value| {
        let text: String = (0..20).map(|at| row(at).to_string() + "\n").collect();
        std::fs::write(data.join(name), text).unwrap();
    };
    write("scored.jsonl", &|at| row(at, if at % 2 == 0 { &[6, 12, 1] } else { &[6, 12] }));
    write("positives.jsonl", &|at| row(at, &[]));
}

/// The losses of a student's last phase: the first and the last.
fn losses(report: &Value, student: &str) -> (f64, f64) {
    let training = report["training"].as_array().unwrap();
    let phases = &training.iter().find(|training| training["student"] == student).expect(student)["phases"];
    let phase = phases.as_array().unwrap().last().unwrap();
    (phase["first_loss"].as_f64().unwrap(), phase["last_loss"].as_f64().unwrap())
}

#[track_caller]
fn check_the_same(one: &Path, two: &Path, kinds: &[&str]) {
    let (one, two) = (parts(one, kinds), parts(two, kinds));
    assert_eq!(one.keys().collect::<BTreeSet<_>>(), two.keys().collect::<BTreeSet<_>>());
    one.iter().for_each(|(name, bytes)| assert!(two[name] == *bytes, "{} differs", name.display()));
}

#[test]
fn students_learn_from_the_scores_that_files_bring() {
    let given = |workers: usize| {
        let home = Home::new();
        fixture::write(home.path());
        write_scored(&home.path().join("data"));
        std::fs::write(home.path().join("spec.toml"), spec(&fixture::spec(8), "given")).unwrap();
        let line =
            format!("run spec.toml --store store --workers {workers} --set corpus.sets.train=scored.jsonl");
        (home, line)
    };
    let (home, line) = given(1);
    home.retort(&format!("{line} --set mining.from=[\"given\",\"bm25\"]")).expect(0, &["head-8"]);
    let store = home.path().join("store");
    let (_, json) = report(&store);
    for student in ["head-8", "encoder-8"] {
        let (first, last) = losses(&json, student);
        assert!(last < first, "{student}: {first}, then {last}");
    }
    // Two or three of the four negatives are those of the files.
    let orders = files(&store.join("artifacts/order"));
    let manifests = orders.iter().filter(|path| path.ends_with("manifest.1.json"));
    let counts: Vec<Value> = manifests
        .map(|path| std::fs::read(store.join("artifacts/order").join(path)).unwrap())
        .map(|bytes| serde_json::from_slice::<Value>(&bytes).unwrap()["meta"]["counts"].clone())
        .filter(|counts| counts["pairs"].is_u64())
        .collect();
    assert_eq!(counts.len(), 2, "the head's rows and those of the encoder's last phase");
    for counts in counts {
        assert_eq!((&counts["pairs"], &counts["questions_without_comparison"]), (&json!(100), &json!(0)));
        let without = counts["pairs_without_score"].as_u64().unwrap();
        assert!((1..=40).contains(&without), "{counts}");
    }
    let (other, line) = given(2);
    other.retort(&format!("{line} --set mining.from=[\"given\",\"bm25\"]")).expect(0, &[]);
    check_the_same(&store, &other.path().join("store"), &["order", "student"]);

    // Where nobody has said a score, and where there is nothing to compare with.
    let none = line.replace("scored.jsonl", "qrels/train.tsv");
    home.retort(&none).expect(100, &["signal = \"given\"", "bring no scores"]);
    let alone = line.replace("scored.jsonl", "positives.jsonl");
    home.retort(&alone).expect(100, &["no question of set \"train\"", "mining.from = [\"given\"]"]);
}

#[test]
fn students_learn_from_a_cross_encoders_scores() {
    let run = |workers: usize| {
        let home = Home::new();
        denoise::write(home.path());
        let text = std::fs::read_to_string(home.path().join("spec.toml")).unwrap();
        let text = spec(&text.replace("[mining.denoise]\n", ""), "cross-encoder");
        std::fs::write(home.path().join("spec.toml"), text).unwrap();
        let line = format!("run spec.toml --store store --workers {workers}");
        home.retort(&line).expect(0, &["head-8"]);
        (home, line)
    };
    let (home, line) = run(1);
    let store = home.path().join("store");
    let (_, json) = report(&store);
    for student in ["head-8", "encoder-8"] {
        let (first, last) = losses(&json, student);
        assert!(last < first, "{student}: {first}, then {last}");
    }
    // The mined negatives and the positives are scored, each once, and nothing else is.
    let pairs = |kind: &str, part: &str| {
        let folder = store.join("artifacts").join(kind);
        let found = files(&folder).into_iter().filter(|path| path.ends_with(part));
        let pairs = found.flat_map(|path| read_negatives(&folder.join(path)).unwrap());
        pairs.map(|pair| (pair.query, pair.passage)).collect::<Vec<_>>()
    };
    let (mut scored, mut wanted) =
        (pairs("scores", "scores.parquet"), pairs("negatives", "negatives.parquet"));
    // Training questions have the first rows, and the passages that answer them, too.
    wanted.extend((0..20).map(|row| (row, row)));
    scored.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(scored, wanted);

    let (other, _) = run(2);
    check_the_same(&store, &other.path().join("store"), &["scores", "order", "student"]);

    // With a filter beside it, the positives are not scored again, and what the filter has had scored is learnt from.
    let both =
        home.retort(&format!("{line} -o json --set mining.denoise.below=0.9999")).expect(0, &[]).json();
    let (tasks, cached) = stage(&both, "score");
    assert!(cached > 0 && cached < tasks, "{cached} of {tasks}");
    let both =
        home.retort(&format!("{line} -o json --set mining.denoise.below=0.9998")).expect(0, &[]).json();
    let (tasks, cached) = stage(&both, "score");
    assert_eq!(tasks, cached);
}
