//! Small jobs.

use retort_common::ids::Digest;
use retort_common::spec::JobSpec;
use retort_common::spec::inputs::{CorpusInputs, DataFile, InputFile, JobInputs, ModelFiles, ModelInputs};
use retort_common::task::Task;
use serde_json::{Value, json};

/// Shards of the sample corpus.
pub const SHARDS: u32 = 3;

/// A job without students: the smallest there is.
pub fn small(name: &str) -> JobSpec {
    spec(json!({
        "name": name,
        "corpus": { "path": "corpus", "rows_per_shard": 4 },
        "sets": { "train": ["train"], "dev": ["dev"], "test": ["test"] },
        "teacher": { "model": "teacher" },
        "baselines": { "pca": [4], "bm25": true },
    }))
}

/// A job with a head of two phases, an encoder that starts from it, and mining.
pub fn full(name: &str, seed: u64) -> JobSpec {
    let loss = json!([{ "kind": "embedding_mse" }]);
    spec(json!({
        "name": name,
        "seed": seed,
        "corpus": { "path": "corpus", "rows_per_shard": 4 },
        "sets": { "train": ["train"], "dev": ["dev"], "test": ["test"] },
        "teacher": { "model": "teacher" },
        "baselines": { "pca": [4], "bm25": true },
        "student": [
            { "name": "head", "kind": "head", "dim": 2, "phase": [
                { "data": "queries", "steps": 10, "batch": 4, "microbatches": 4,
                  "learning_rate": 0.001, "loss": [{ "kind": "kl" }] },
                { "data": "queries", "epochs": 1.0, "batch": 4, "microbatches": 2, "negatives": 2, "learning_rate": 0.001,
                  "loss": [{ "kind": "info_nce", "temperature": 0.05 }] },
            ]},
            { "name": "codes", "kind": "quantised", "on": "head", "bytes": 2 },
            { "name": "small", "kind": "encoder", "dim": 2, "init": "head", "layers": [0], "phase": [
                { "data": "texts", "signal": "head", "steps": 10, "batch": 4, "microbatches": 4,
                  "learning_rate": 0.001, "loss": loss },
            ]},
        ],
    }))
}

fn spec(value: Value) -> JobSpec {
    let spec = serde_json::from_value(value).unwrap();
    retort_common::spec::check(&spec).unwrap();
    spec
}

/// Input files under a folder of that name.
pub fn inputs(folder: &str) -> JobInputs {
    let file = |name: &str| InputFile {
        url: format!("file:///{folder}/{name}"),
        bytes: 1,
        sha256: Digest::of(name.as_bytes()),
    };
    let data = |name: &str| DataFile { file: file(name), format: None };
    JobInputs {
        corpus: CorpusInputs {
            passages: vec![data("corpus.jsonl")],
            queries: vec![data("queries.jsonl")],
            sets: ["train", "dev", "test"].map(|set| (set.to_owned(), vec![data(set)])).into_iter().collect(),
        },
        teacher: ModelInputs {
            files: ModelFiles {
                by_name: ["config.json", "model.safetensors", "tokenizer.json"]
                    .map(|name| (name.to_owned(), file(name)))
                    .into(),
            },
            ..ModelInputs::default()
        },
        teacher_query: None,
        cross_encoder: None,
        students: Default::default(),
        checkpoints: Default::default(),
    }
}

/// The same with a cross-encoder for mined candidates.
pub fn with_cross_encoder(folder: &str) -> JobInputs {
    let inputs = inputs(folder);
    let mut cross = inputs.teacher.clone();
    for (name, file) in &mut cross.files.by_name {
        (file.url, file.sha256) =
            (format!("file:///{folder}/cross/{name}"), Digest::of(format!("cross {name}").as_bytes()));
    }
    JobInputs { cross_encoder: Some(cross), ..inputs }
}

/// What a worker would write into the manifest of a task's artifact.
pub fn meta(task: &Task) -> Value {
    match task {
        Task::ShardCorpus { .. } => json!({ "rows": 4 * SHARDS, "shards": SHARDS, "bad_records": 0 }),
        Task::ShardQueries { .. } => json!({ "rows": 3, "shards": 1, "sets": {} }),
        Task::ShardSentences { .. } => json!({ "rows": 50, "shards": 2 }),
        Task::Embed { encoder: retort_common::task::Encoder::Files { .. }, .. } => {
            json!({ "rows": 4, "dim": 8 })
        }
        Task::Embed { .. } | Task::Project { .. } | Task::Quantize { .. } => json!({ "rows": 4, "dim": 2 }),
        Task::FitBm25 { .. } => json!({ "documents": 12, "terms": 5, "postings": 24 }),
        _ => json!({}),
    }
}
