//! Students whose passages are a bit for each dimension: fitted to a head, and trained through their signs.

use crate::fixture;
use crate::support::{Home, files, report};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Dimensions of the head, and bits of a passage.
const DIM: usize = 8;

/// A head, and signs of it that are fitted alone and that go on learning.
fn spec() -> String {
    let base = fixture::spec(1);
    let (base, _) = base.split_once("[[student]]\nname = \"encoder-8\"").unwrap();
    let signs = |name: &str| {
        format!(
            "[[student]]\nname = \"{name}\"\nkind = \"quantised\"\non = \"head-8\"\nbytes = 1\ncode = \"binary\"\n"
        )
    };
    let phase = "[[student.phase]]\ndata = \"queries\"\nsteps = 40\nbatch = 8\nmicrobatches = 4\nnegatives = 2\n\
                 corpus_samples = 4\nlearning_rate = 1e-2\nloss = [{ kind = \"kl\" }]\n";
    [base, &signs("fitted"), &signs("trained"), phase].concat()
}

fn run(workers: usize) -> (Home, PathBuf, Value) {
    let home = Home::new();
    fixture::write(home.path());
    std::fs::write(home.path().join("spec.toml"), spec()).unwrap();
    home.retort(&format!("run spec.toml --store store --workers {workers}")).expect(0, &["trained"]);
    let (folder, json) = report(&home.path().join("store"));
    (home, folder, json)
}

/// Exports a row; gives its folder.
fn export(home: &Home, row: &str, format: &str) -> PathBuf {
    let out = format!("{row}-{format}");
    home.retort(&format!("export tiny {row} --format {format} --store store --out {out}")).expect(0, &[]);
    home.path().join(out)
}

/// The vectors of one side by their ids.
fn vectors(folder: &Path, side: &str) -> BTreeMap<String, Vec<f32>> {
    let bytes = std::fs::read(folder.join(format!("{side}.npy"))).unwrap();
    let header = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let values = bytes[header..].as_chunks().0.iter().map(|value| f32::from_le_bytes(*value));
    let values: Vec<f32> = values.collect();
    let ids = std::fs::read_to_string(folder.join(format!("{side}.ids.txt"))).unwrap();
    ids.lines().map(str::to_owned).zip(values.chunks_exact(DIM).map(<[f32]>::to_vec)).collect()
}

/// Checks that a run's scores are inner products of real questions with signs that have unit length.
fn check_scores(home: &Home, report: &Path, row: &str) {
    let folder = export(home, row, "npy");
    let (questions, passages) = (vectors(&folder, "queries"), vectors(&folder, "passages"));
    let worth = (DIM as f32).sqrt().recip();
    assert!(passages.values().flatten().all(|x| (x.abs() - worth).abs() < 1e-6));
    let run = std::fs::read_to_string(report.join(format!("runs/{row}.dev.trec"))).unwrap();
    let mut judged = 0;
    for line in run.lines() {
        let fields: Vec<_> = line.split_whitespace().collect();
        let score: f32 = fields[4].parse().unwrap();
        let product: f32 = questions[fields[0]].iter().zip(&passages[fields[2]]).map(|(q, x)| q * x).sum();
        assert!((score - product).abs() < 1e-5, "{row}: {line}, but {product}");
        judged += 1;
    }
    assert!(judged > 0, "{row}: an empty run");
    // The question of a Hamming distance would have signs, too.
    assert!(questions.values().flatten().any(|x| (x.abs() - worth).abs() > 1e-3));
}

/// Checks that the exported model gives the questions that ask a row.
fn check_model(home: &Home, row: &str) {
    let model = export(home, row, "st");
    let card = std::fs::read_to_string(model.join("README.md")).unwrap();
    assert!(card.contains(&format!("{row} --format faiss")), "{card}");
    let index = format!("{row}-questions");
    home.retort(&format!("encode {} data/queries.jsonl --index {index}", model.display())).expect(0, &[]);
    let bytes = std::fs::read(home.path().join(index).join("vectors-000000.safetensors")).unwrap();
    let header = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let found = bytes[header..].as_chunks().0.iter().map(|value| f32::from_le_bytes(*value));
    let found: Vec<f32> = found.collect();
    let asked = vectors(&home.path().join(format!("{row}-npy")), "queries");
    for (id, asked) in asked {
        // Questions stand in the file by their numbers.
        let number: usize = id.trim_start_matches('q').parse().unwrap();
        let apart = asked.iter().zip(&found[number * DIM..]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(apart < 1e-5, "{row}: question {id} is {apart} off");
    }
}

#[test]
fn signs_are_asked_by_real_questions_and_the_same_from_any_number_of_workers() {
    let (home, folder, json) = run(1);
    for name in ["fitted", "trained"] {
        let row = json["rows"].as_array().unwrap().iter().find(|row| row["name"] == name).unwrap();
        assert_eq!((&row["kind"], row["bytes_per_passage"].as_f64()), (&"quantised".into(), Some(1.0)));
        check_scores(&home, &folder, name);
        // A byte a passage in faiss, too.
        let index = export(&home, name, "faiss").join("manifest.json");
        let manifest: Value = serde_json::from_slice(&std::fs::read(index).unwrap()).unwrap();
        assert_eq!(manifest["index"]["bytes_per_passage"], 1);
    }
    check_model(&home, "trained");
    // Where nothing but a quantiser was fitted, the head asks.
    let head = folder.join("models/head-8");
    for file in files(&head).iter().filter(|file| !file.ends_with("README.md")) {
        let read = |student: &str| std::fs::read(folder.join("models").join(student).join(file)).unwrap();
        assert!(read("head-8") == read("fitted"), "{}", file.display());
    }
    let (_other, folders, again) = run(3);
    assert_eq!(json["rows"], again["rows"]);
    let made = |file: &&PathBuf| file.starts_with("models") || file.starts_with("runs");
    // Cards name their job.
    for file in files(&folder).iter().filter(made).filter(|file| !file.ends_with("README.md")) {
        let read = |folder: &Path| std::fs::read(folder.join(file)).unwrap();
        assert!(read(&folder) == read(&folders), "{}", file.display());
    }
}
