//! Negatives that a cross-encoder has looked at.

use crate::fixture;
use crate::support::{Home, files, report};
use retort_worker::model::{CrossEncoder, CrossError, Device};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const KEYS: &str = "[mining.denoise]\n\n[cross_encoder]\nmodel = \"cross\"\nmax_tokens = 48\n\n[baselines]";
/// A student whose negatives are mined anew while it trains.
const REFRESH: &str = "--set student.1.phase.1.refresh_every=2 --set student.1.phase.1.steps=5";

/// Writes the fixture with a cross-encoder.
pub fn write(home: &Path) {
    fixture::write(home);
    fixture::write_cross_encoder(&home.join("cross"), 3);
    std::fs::write(home.join("spec.toml"), fixture::spec(8).replace("[baselines]", KEYS)).unwrap();
}

/// The probability that each passage is an answer to each question of the training set, by their ids.
fn probabilities(home: &Path) -> BTreeMap<(String, String), f64> {
    let lines = |name: &str| -> Vec<Value> {
        let text = std::fs::read_to_string(home.join("data").join(name)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let word = |line: &Value, key: &str| line[key].as_str().unwrap().to_owned();
    let passage =
        |line: &Value| (word(line, "_id"), format!("{} {}", word(line, "title"), word(line, "text")));
    let passages: Vec<_> = lines("corpus.jsonl").iter().map(passage).collect();
    let questions = lines("queries.jsonl").into_iter().take(20);
    let questions: Vec<_> = questions.map(|line| (word(&line, "_id"), word(&line, "text"))).collect();
    let all =
        || questions.iter().flat_map(|question| passages.iter().map(move |passage| (question, passage)));
    let pairs: Vec<_> = all().map(|(question, passage)| (question.1.as_str(), passage.1.as_str())).collect();
    let cross = CrossEncoder::load(&home.join("cross"), &Device::flex()).unwrap();
    let logits = cross.score(&pairs, 48, 256, 1, |_| Ok::<_, CrossError>(())).unwrap();
    let probability = |logit: f32| 1.0 / (1.0 + (-f64::from(logit)).exp());
    let named = all().map(|(question, passage)| (question.0.clone(), passage.0.clone()));
    named.zip(logits.into_iter().map(probability)).collect()
}

/// Files of some kinds of artifacts, whichever attempt wrote them.
pub fn parts(store: &Path, kinds: &[&str]) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for kind in kinds {
        let folder = store.join("artifacts").join(kind);
        for path in files(&folder).into_iter().filter(|path| path.components().count() == 3) {
            let names: Vec<_> = path.iter().collect();
            let name = Path::new(kind).join(names[0]).join(names[2]);
            found.insert(name, std::fs::read(folder.join(&path)).unwrap());
        }
    }
    found
}

/// Tasks of a stage and how many of them were there already.
pub fn stage(report: &Value, name: &str) -> (u64, u64) {
    let stages = report["stages"].as_array().unwrap();
    let stage = stages.iter().find(|stage| stage["name"] == name).expect(name);
    (stage["tasks"].as_u64().unwrap(), stage["cached"].as_u64().unwrap())
}

/// What the cross-encoder dropped of each mining.
fn dropped(report: &Value) -> Vec<u64> {
    let of_audit = |audit: &Value| {
        let filters = audit["filters"].as_array().unwrap();
        let own = filters.iter().find(|filter| filter["filter"] == "cross-encoder");
        own.map_or(0, |filter| filter["removed"].as_u64().unwrap())
    };
    report["negatives"].as_array().unwrap().iter().map(of_audit).collect()
}

#[test]
fn what_a_cross_encoder_takes_for_answers_is_no_negative_on_any_cluster() {
    let run = |workers: usize| {
        let home = Home::new();
        write(home.path());
        let probabilities = probabilities(home.path());
        // Half of all pairs are beyond it.
        let mut sorted: Vec<f64> = probabilities.values().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let below = sorted[sorted.len() / 2];
        let line = format!(
            "run spec.toml --store store --workers {workers} --set mining.denoise.below={below} {REFRESH}"
        );
        home.retort(&line).expect(0, &["report.json"]);
        (home, probabilities, below, line)
    };
    let (home, probabilities, below, line) = run(1);
    let store = home.path().join("store");
    let (folder, json) = report(&store);

    // The mined negatives and the fresh ones.
    let dropped = dropped(&json);
    assert!(dropped.len() == 2 && dropped.iter().all(|count| *count > 0), "{dropped:?}");
    assert!(stage(&json, "score").0 > 1, "the pairs are scored in several tasks");
    let page = std::fs::read_to_string(folder.join("report.html")).unwrap();
    assert!(page.contains("cross-encoder"));
    home.retort("export tiny --store store --format negatives --out negatives").expect(0, &[]);
    let text = std::fs::read_to_string(home.path().join("negatives/beir.jsonl")).unwrap();
    let mut kept = 0;
    for line in text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        let question = line["query-id"].as_str().unwrap();
        for negative in line["negatives"].as_array().unwrap() {
            let passage = negative["corpus-id"].as_str().unwrap();
            let probability = probabilities[&(question.to_owned(), passage.to_owned())];
            assert!(probability <= below, "{question} {passage}: {probability} above {below}");
            kept += 1;
        }
    }
    assert_eq!(json["negatives"][0]["kept"], kept);
    assert!(kept > 0);

    let (other, ..) = run(3);
    let kinds = ["negatives", "scores", "order", "student"];
    let (one, three) = (parts(&store, &kinds), parts(&other.path().join("store"), &kinds));
    assert_eq!(one.keys().collect::<BTreeSet<_>>(), three.keys().collect::<BTreeSet<_>>());
    one.iter().for_each(|(name, bytes)| assert!(three[name] == *bytes, "{} differs", name.display()));

    // Again, nothing is computed; with another bound, no pair is scored again that was scored before.
    home.retort(&line).expect(0, &["nothing is computed again"]);
    let scored = parts(&store, &["scores"]).len() as u64;
    let looser =
        line.replace(&below.to_string(), "0.9999") + " -o json --set student.1.phase.1.refresh_every=5";
    let looser = home.retort(&looser).expect(0, &[]).json();
    let (tasks, cached) = stage(&looser, "score");
    assert!(tasks > 0 && tasks == cached, "{cached} of {tasks}");
    assert_eq!(parts(&store, &["scores"]).len() as u64, scored);
    assert!(self::dropped(&looser)[0] < dropped[0]);
}
