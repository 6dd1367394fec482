//! Every kind of damaged input: a clear message, an exit code that is not 0, and nothing left behind that a later job
//! would take for finished.

use crate::denoise;
use crate::fixture;
use crate::support::{Cluster, Home, files, finished, report};
use std::fs;
use std::path::{Path, PathBuf};

/// One damage to the fixture and what must be said about it.
struct Case {
    what: &'static str,
    spoil: fn(&Path),
    code: i32,
    words: &'static [&'static str],
}

/// Replaces a text in a file.
fn replace(path: &Path, from: &str, to: &str) {
    let bytes = fs::read(path).unwrap();
    let at = bytes.windows(from.len()).position(|window| window == from.as_bytes());
    let at = at.unwrap_or_else(|| panic!("no {from:?} in {}", path.display()));
    fs::write(path, [&bytes[..at], to.as_bytes(), &bytes[at + from.len()..]].concat()).unwrap();
}

fn append(path: &Path, text: &str) {
    fs::write(path, fs::read_to_string(path).unwrap() + text).unwrap();
}

fn truncate(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() * 2 / 3]).unwrap();
}

/// Replaces text after the name of a tensor in a safetensors header, keeping its length.
fn replace_of_tensor(home: &Path, tensor: &str, from: &str, to: &str) {
    assert_eq!(from.len(), to.len(), "the header keeps its length");
    let path = home.join("teacher/model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let find = |start: usize, text: &str| {
        start + bytes[start..].windows(text.len()).position(|window| window == text.as_bytes()).expect(text)
    };
    let at = find(find(0, &format!("\"{tensor}\"")), from);
    let mut changed = bytes.clone();
    changed[at..at + to.len()].copy_from_slice(to.as_bytes());
    fs::write(&path, changed).unwrap();
}

const CASES: &[Case] = &[
    Case {
        what: "a missing corpus",
        spoil: |home| fs::remove_file(home.join("data/corpus.jsonl")).unwrap(),
        code: 1,
        words: &["corpus", "data/corpus.jsonl", "put the file there or correct the path"],
    },
    Case {
        what: "missing judgements",
        spoil: |home| fs::remove_file(home.join("data/qrels/dev.tsv")).unwrap(),
        code: 1,
        words: &["set \"dev\"", "qrels/dev.tsv", "put the file there or correct the path"],
    },
    Case {
        what: "a missing tokenizer",
        spoil: |home| fs::remove_file(home.join("teacher/tokenizer.json")).unwrap(),
        code: 1,
        words: &["teacher", "teacher/tokenizer.json"],
    },
    Case {
        what: "a spec with an unknown key",
        spoil: |home| replace(&home.join("spec.toml"), "rows_per_shard", "rows_per_shart"),
        code: 2,
        words: &["spec.toml:6", "rows_per_shart", "`rows_per_shard`"],
    },
    Case {
        what: "a malformed line",
        spoil: |home| replace(&home.join("data/corpus.jsonl"), "\n{\"_id\":\"p2\"", "\n{\"_id\":p2\""),
        code: 100,
        words: &["data/corpus.jsonl:3: expected value at column 8", "correct the line"],
    },
    Case {
        what: "a malformed question",
        spoil: |home| append(&home.join("data/queries.jsonl"), "{\"_id\": \"q99\"}\n"),
        code: 100,
        words: &["data/queries.jsonl:41", "text"],
    },
    Case {
        what: "a corpus that is no gzip",
        spoil: |home| {
            fs::remove_file(home.join("data/corpus.jsonl")).unwrap();
            fs::write(home.join("data/corpus.jsonl.gz"), b"\x1f\x8b\x08 and nothing that follows").unwrap();
        },
        code: 100,
        words: &["data/corpus.jsonl.gz:1", "damaged or truncated"],
    },
    Case {
        what: "an empty corpus",
        spoil: |home| fs::write(home.join("data/corpus.jsonl"), "").unwrap(),
        code: 100,
        words: &["data/corpus.jsonl", "no passages"],
    },
    Case {
        what: "a passage that stands there twice",
        spoil: |home| {
            append(&home.join("data/corpus.jsonl"), "{\"_id\":\"p7\",\"title\":\"\",\"text\":\"again\"}\n")
        },
        code: 100,
        words: &["data/corpus.jsonl:61", "\"p7\"", "twice"],
    },
    Case {
        what: "a question that stands there twice",
        spoil: |home| append(&home.join("data/queries.jsonl"), "{\"_id\":\"q7\",\"text\":\"again\"}\n"),
        code: 100,
        words: &["data/queries.jsonl:41", "\"q7\"", "twice"],
    },
    Case {
        what: "judgements of an unknown passage",
        spoil: |home| append(&home.join("data/qrels/test.tsv"), "q30\tnowhere\t1\n"),
        code: 100,
        words: &["qrels/test.tsv:12", "\"nowhere\"", "remove the line or add it"],
    },
    Case {
        what: "judgements of an unknown question",
        spoil: |home| append(&home.join("data/qrels/test.tsv"), "nobody\tp3\t1\n"),
        code: 100,
        words: &["qrels/test.tsv:12", "\"nobody\"", "remove the line or add it"],
    },
    Case {
        what: "a question without a positive",
        spoil: |home| replace(&home.join("data/qrels/train.tsv"), "q4\tp4\t1", "q4\tp4\t0"),
        code: 100,
        words: &["qrels/train.tsv", "\"q4\"", "no passage with a score above 0"],
    },
    Case {
        what: "judgements without tabs",
        spoil: |home| replace(&home.join("data/qrels/dev.tsv"), "q21\tp21\t1", "q21 p21 1"),
        code: 100,
        words: &["qrels/dev.tsv:3", "tabs"],
    },
    Case {
        what: "truncated weights",
        spoil: |home| truncate(&home.join("teacher/model.safetensors")),
        code: 100,
        words: &["teacher/model.safetensors", "damaged or truncated"],
    },
    Case {
        what: "a tensor of another type",
        spoil: |home| replace_of_tensor(home, "encoder.layer.1.output.dense.bias", "\"F32\"", "\"I32\""),
        code: 100,
        words: &["teacher/model.safetensors", "encoder.layer.1.output.dense.bias", "I32"],
    },
    Case {
        what: "a tensor of another shape",
        spoil: |home| {
            replace_of_tensor(home, "encoder.layer.0.intermediate.dense.weight", "[32,16]", "[16,32]")
        },
        code: 100,
        words: &[
            "teacher/model.safetensors",
            "encoder.layer.0.intermediate.dense.weight",
            "[16, 32]",
            "[32, 16]",
        ],
    },
    Case {
        what: "a model without one of its tensors",
        spoil: |home| {
            replace(&home.join("teacher/config.json"), "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3")
        },
        code: 100,
        words: &["teacher/model.safetensors", "no tensor encoder.layer.2."],
    },
    Case {
        what: "another architecture",
        spoil: |home| {
            replace(&home.join("teacher/config.json"), "\"model_type\": \"bert\"", "\"model_type\": \"gpt2\"")
        },
        code: 100,
        words: &["teacher/config.json", "gpt2", "bert"],
    },
    Case {
        what: "a truncated tokenizer",
        spoil: |home| truncate(&home.join("teacher/tokenizer.json")),
        code: 100,
        words: &["teacher/tokenizer.json", "cannot load tokenizer"],
    },
    Case {
        what: "a tokenizer with more tokens than the vocabulary",
        spoil: |home| write_larger_tokenizer(&home.join("teacher")),
        code: 100,
        words: &[
            "teacher/tokenizer.json",
            "tokenizer/vocabulary mismatch",
            "the tokenizer that belongs to the model",
        ],
    },
    Case {
        what: "a student's own model with such a tokenizer",
        spoil: |home| {
            fixture::write_model(&home.join("own"), 2);
            write_larger_tokenizer(&home.join("own"));
            replace(&home.join("spec.toml"), "layers = [0]", "layers = [0]\nmodel = \"own\"");
        },
        code: 100,
        words: &["own/tokenizer.json", "tokenizer/vocabulary mismatch"],
    },
    Case {
        what: "a layer that the model does not have",
        spoil: |home| replace(&home.join("spec.toml"), "layers = [0]", "layers = [5]"),
        code: 100,
        words: &["layer 5", "layers 0 to 1"],
    },
    Case {
        what: "more dimensions than the teacher has",
        spoil: |home| replace(&home.join("spec.toml"), "pca = [4]", "pca = [400]"),
        code: 100,
        words: &["400", "16"],
    },
    Case {
        what: "a cross-encoder of two labels",
        spoil: |home| {
            denoise::write(home);
            replace(&home.join("cross/config.json"), "\"0\":\"LABEL_0\"", "\"0\":\"no\",\"1\":\"yes\"");
        },
        code: 1,
        words: &["cross_encoder", "cross", "2 labels", "one label"],
    },
    Case {
        what: "an encoder of texts as a cross-encoder",
        spoil: |home| {
            denoise::write(home);
            replace(&home.join("spec.toml"), "model = \"cross\"", "model = \"teacher\"");
        },
        code: 1,
        words: &["cross_encoder", "teacher", "BertModel", "cross-encoder"],
    },
    Case {
        what: "pairs longer than the cross-encoder reads",
        spoil: |home| {
            denoise::write(home);
            replace(&home.join("spec.toml"), "max_tokens = 48", "max_tokens = 65");
        },
        code: 1,
        words: &["cross_encoder", "cross", "64 tokens", "max_tokens is 65", "lower it"],
    },
    Case {
        what: "a cross-encoder without its classifier",
        spoil: |home| {
            denoise::write(home);
            fs::copy(home.join("teacher/model.safetensors"), home.join("cross/model.safetensors")).unwrap();
        },
        code: 100,
        words: &["cross", "no tensor of a classifier", "model.safetensors"],
    },
    Case {
        what: "a cross-encoder without one of its tensors",
        spoil: |home| {
            denoise::write(home);
            replace(&home.join("cross/model.safetensors"), "classifier.bias", "classifier.bios");
        },
        code: 100,
        words: &["cross/model.safetensors", "no tensor classifier.bias"],
    },
    Case {
        what: "scores that are no numbers",
        spoil: |home| {
            denoise::write(home);
            let path = home.join("cross/model.safetensors");
            let mut bytes = fs::read(&path).unwrap();
            // The classifier's bias and the end of its weights come last.
            let end = bytes.len() - 40;
            bytes[end..].as_chunks_mut::<4>().0.fill(f32::MAX.to_le_bytes());
            fs::write(&path, bytes).unwrap();
        },
        code: 100,
        words: &["cross gives", "inf for question \"q", "cross_encoder"],
    },
];

fn write_larger_tokenizer(model: &Path) {
    let text = fs::read_to_string(model.join("tokenizer.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let vocabulary = json["model"]["vocab"].as_object().unwrap();
    let mut tokens = vec![String::new(); vocabulary.len()];
    for (token, id) in vocabulary {
        tokens[usize::try_from(id.as_u64().unwrap()).unwrap()].clone_from(token);
    }
    tokens.push("surplus".to_owned());
    fs::write(model.join("tokenizer.json"), fixture::tokenizer(&tokens).to_string()).unwrap();
}

fn restore(home: &Path) {
    for folder in ["data", "teacher", "own", "cross"] {
        let _ = fs::remove_dir_all(home.join(folder));
    }
    fixture::write(home);
}

#[test]
fn bad_input_is_named_and_leaves_nothing_behind() {
    let mut cluster = Cluster::start();
    cluster.add_worker("w1");
    let home = cluster.home.path().to_owned();
    for Case { what, spoil, code, words } in CASES {
        restore(&home);
        spoil(&home);
        eprintln!("{what}");
        let ended = cluster.retort("submit spec.toml --wait").expect(*code, words);
        assert!(!ended.stderr.contains("panicked"), "{what}: {}", ended.stderr);
    }
    restore(&home);
    cluster.retort("submit spec.toml --wait").expect(0, &["SUCCEEDED"]);
    check_as_new(&home.join("store"));
}

/// The figures in a store are those of a job on a store that has never seen anything bad.
fn check_as_new(store: &Path) {
    let home = Home::new();
    fixture::write(home.path());
    home.retort("run spec.toml --store store").expect(0, &[]);
    assert_eq!(report(store).1["rows"], report(&home.path().join("store")).1["rows"]);
}

#[test]
fn a_failed_job_is_exit_100_of_a_run_and_the_corrected_one_runs_on_the_same_store() {
    let home = Home::new();
    fixture::write(home.path());
    truncate(&home.path().join("teacher/model.safetensors"));
    let words = ["FAILED", "teacher/model.safetensors", "damaged or truncated", "logs of its processes"];
    let ended = home.retort("run spec.toml --store store --workers 1").expect(100, &words);
    assert!(ended.stdout.is_empty(), "{}", ended.stdout);
    fixture::write(home.path());
    home.retort("run spec.toml --store store --workers 1").expect(0, &["submitted", "encoder-8"]);
}

/// A file of the fixture and what happens to it.
type Change = (&'static str, fn(&Path));

#[test]
fn an_input_that_changed_after_submit_fails_the_job_and_is_fine_once_restored() {
    let mut cluster = Cluster::start();
    let home = cluster.home.path().to_owned();
    let changes: [Change; 4] = [
        ("data/corpus.jsonl", |path| append(path, "{\"_id\":\"new\",\"text\":\"a passage\"}\n")),
        ("data/qrels/train.tsv", |path| append(path, "q0\tp1\t1\n")),
        ("teacher/tokenizer.json", |path| append(path, "\n")),
        ("teacher/model.safetensors", |path| fs::write(path, vec![0; 100]).unwrap()),
    ];
    for (file, change) in changes {
        cluster.workers.clear();
        restore(&home);
        let id = cluster.retort("submit spec.toml --id-only").expect(0, &[]).stdout;
        change(&home.join(file));
        cluster.add_worker("w1");
        let wait = format!("wait {} --timeout 1m", id.trim());
        cluster
            .retort(&wait)
            .expect(100, &[file, "changed since the job was submitted", "submit the job again"]);
        cluster.check(&format!("get {}", id.trim()), 0, &["FAILED"]);
    }
    restore(&home);
    cluster.retort("submit spec.toml --wait").expect(0, &["SUCCEEDED"]);
    check_as_new(&home.join("store"));
}

/// The bytes of an artifact are not those that were written: named, and mended as the message says.
#[test]
fn a_corrupt_artifact_is_named_and_mended_as_the_message_says() {
    let home = Home::new();
    fixture::write(home.path());
    home.retort("run spec.toml --store store --workers 1").expect(0, &[]);
    let store = home.path().join("store");
    let is_vectors = |path: &PathBuf| path.ends_with("vectors.safetensors");
    let vectors: Vec<_> = files(&store.join("artifacts")).into_iter().filter(is_vectors).collect();
    for part in &vectors {
        let path = store.join("artifacts").join(part);
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.last_mut().unwrap();
        *last ^= 1;
        fs::write(&path, bytes).unwrap();
    }
    let line = "run spec.toml --store store --workers 1 --set evaluate.depth=30";
    let words =
        ["vectors.safetensors", "is corrupt", "delete this artifact's folder and the store's journal"];
    home.retort(line).expect(100, &words);
    fs::remove_dir_all(store.join("artifacts/vectors")).unwrap();
    fs::remove_dir_all(store.join("journal")).unwrap();
    home.retort(line).expect(0, &["encoder-8"]);
}

#[test]
fn a_store_that_refuses_writes_is_named_and_used_once_it_is_mended() {
    let home = Home::new();
    fixture::write(home.path());
    let store = home.path().join("store");
    fs::write(&store, "a file").unwrap();
    for line in [
        "run spec.toml --store store/below",
        "run spec.toml --store store",
        "coordinator --store store/below",
    ] {
        home.retort(line).expect(1, &["/store", "cannot make this folder the store"]);
    }
    fs::remove_file(&store).unwrap();

    // A store that takes the journal and nothing else.
    fs::create_dir(&store).unwrap();
    fs::write(store.join("artifacts"), "a file").unwrap();
    let words = ["FAILED", "artifacts/"];
    home.retort("run spec.toml --store store --workers 1").expect(100, &words);
    assert!(finished(&store).is_empty());
    fs::remove_file(store.join("artifacts")).unwrap();
    home.retort("run spec.toml --store store --workers 1").expect(0, &["encoder-8"]);
}
