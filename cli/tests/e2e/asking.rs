//! Students that encode questions alone, and leave the passages as another row has them.

use crate::fixture;
use crate::support::{Home, files, report};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};

/// A head, codes that go on learning from it, and an encoder of questions for each of them and for the teacher.
fn spec() -> String {
    let base = fixture::spec(1);
    let (base, _) = base.split_once("[[student]]\nname = \"encoder-8\"").unwrap();
    let texts = |signal: &str| {
        format!(
            "[[student.phase]]\ndata = \"texts\"\nsignal = \"{signal}\"\nsteps = 4\nbatch = 8\nsentences = true\n\
             learning_rate = 1e-3\nloss = [{{ kind = \"embedding_cosine\" }}]\n"
        )
    };
    let queries = "[[student.phase]]\ndata = \"queries\"\nsteps = 6\nbatch = 8\ncorpus_samples = 4\n\
                   unlabelled = 0.5\nlearning_rate = 1e-3\nloss = [{ kind = \"kl\" }]\n";
    let asker = |name: &str, on: &str, keys: &str| {
        format!("[[student]]\nname = \"{name}\"\nkind = \"encoder\"\nlayers = [0]\non = \"{on}\"\n{keys}")
    };
    let codes = "[[student]]\nname = \"codes\"\nkind = \"quantised\"\non = \"head-8\"\nbytes = 2\n";
    [
        base.replace("[corpus]\n", "[corpus]\nsentences = 20\n"),
        format!("{codes}{queries}"),
        asker("asks-teacher", "teacher", &texts("teacher")),
        asker("asks-head", "head-8", &format!("dim = 8\ninit = \"head-8\"\n{}{queries}", texts("head-8"))),
        asker("asks-codes", "codes", &format!("dim = 8\ninit = \"codes\"\n{}{queries}", texts("codes"))),
    ]
    .concat()
}

/// Codes of a byte need 256 passages to be fitted to.
fn add_passages(corpus: &Path) {
    let words = ["river", "steam", "opera", "comet", "flour", "siege", "spring"];
    let mut file = std::fs::File::options().append(true).open(corpus).unwrap();
    for number in 0..words.len().pow(3) {
        let text = [number, number / 7, number / 49].map(|at| words[at % 7]).join(" ");
        writeln!(file, "{}", json!({ "_id": format!("x{number}"), "title": "", "text": text })).unwrap();
    }
}

fn run(workers: usize) -> (Home, PathBuf, Value) {
    let home = Home::new();
    fixture::write(home.path());
    add_passages(&home.path().join("data/corpus.jsonl"));
    std::fs::write(home.path().join("spec.toml"), spec()).unwrap();
    home.retort(&format!("run spec.toml --store store --workers {workers}")).expect(0, &["asks-codes"]);
    let (folder, json) = report(&home.path().join("store"));
    (home, folder, json)
}

fn row<'a>(report: &'a Value, name: &str) -> &'a Value {
    report["rows"].as_array().unwrap().iter().find(|row| row["name"] == name).expect(name)
}

/// The scores of an exported run.
fn scores(report: &Path, row: &str) -> Vec<String> {
    let run = std::fs::read_to_string(report.join(format!("runs/{row}.dev.trec"))).unwrap();
    run.lines().filter_map(|line| line.split_whitespace().nth(4)).map(str::to_owned).collect()
}

#[test]
fn encoders_of_questions_ask_the_passages_of_other_rows() {
    let (_home, folder, report) = run(1);
    for (asker, asked) in [("asks-teacher", "teacher"), ("asks-head", "head-8"), ("asks-codes", "codes")] {
        assert_ne!(scores(&folder, asker), scores(&folder, asked), "the questions' vectors are its own");
        let (asker, asked) = (row(&report, asker), row(&report, asked));
        assert_eq!(asker["kind"], "encoder");
        assert_eq!(
            (&asker["bytes_per_passage"], &asker["dim"]),
            (&asked["bytes_per_passage"], &asked["dim"])
        );
    }
    // One folder with both sides, or the questions' alone where the passages are codes.
    let found = |student: &str| files(&folder.join("models").join(student));
    for (student, routed) in [("asks-teacher", true), ("asks-head", true), ("asks-codes", false)] {
        let found = found(student);
        assert_eq!(found.contains(Path::new("router_config.json")), routed, "{student}: {found:?}");
        assert!(found.contains(Path::new("modules.json")), "{student}: {found:?}");
    }
    let (_home, other, again) = run(3);
    for student in ["asks-teacher", "asks-head", "asks-codes"] {
        assert_eq!(row(&again, student)["metrics"], row(&report, student)["metrics"]);
        for file in found(student).iter().filter(|file| file.ends_with("model.safetensors")) {
            let read = |folder: &Path| std::fs::read(folder.join("models").join(student).join(file)).unwrap();
            assert_eq!(read(&folder), read(&other), "{student}: {}", file.display());
        }
    }
}
