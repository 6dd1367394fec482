//! Other layouts than BEIR's, `dataset check` and `eval`.

use crate::fixture;
use crate::support::{Home, report};
use serde_json::{Value, json};
use std::fmt::Write;
use std::fs;
use std::path::Path;

fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap()
}

/// The fixture's data in DPR's layout: passages, retriever JSON for training, questions with answers.
fn write_dpr(home: &Path) {
    let (data, dpr) = (home.join("data"), home.join("dpr"));
    fs::create_dir_all(&dpr).unwrap();
    let passages = lines(&data.join("corpus.jsonl"));
    let mut psgs = "id\ttext\ttitle\n".to_owned();
    for passage in &passages {
        writeln!(psgs, "{}\t\"{}\"\t{}", text(passage, "_id"), text(passage, "text"), text(passage, "title"))
            .unwrap();
    }
    fs::write(dpr.join("psgs.tsv"), psgs).unwrap();
    let questions = lines(&data.join("queries.jsonl"));
    let context = |at: usize| {
        let passage = &passages[at];
        json!({ "passage_id": passage["_id"], "title": passage["title"], "text": passage["text"] })
    };
    let row = |at: usize| {
        json!({
            "question": questions[at]["text"], "answers": questions[at]["metadata"]["answers"],
            "positive_ctxs": [context(at)], "negative_ctxs": [], "hard_negative_ctxs": [context(at + 6), context(at + 12)],
        })
    };
    let rows: Vec<_> = (0..20).map(row).collect();
    fs::write(dpr.join("train.json"), serde_json::to_string_pretty(&rows).unwrap()).unwrap();
    for (set, range) in [("dev", 20..30), ("test", 30..40)] {
        let line = |at: usize| {
            let answer = questions[at]["metadata"]["answers"][0].as_str().unwrap();
            format!("{}\t['{answer}', \"never's\"]\n", text(&questions[at], "text"))
        };
        fs::write(dpr.join(format!("{set}.qas.csv")), range.map(line).collect::<String>()).unwrap();
    }
}

#[test]
fn a_job_on_dprs_layout_is_judged_by_its_answers() {
    let home = Home::new();
    fixture::write(home.path());
    write_dpr(home.path());
    home.retort("dataset check dpr")
        .expect(0, &["psgs", "qas", "nothing is wrong", "judged by their answers"]);
    let line = "run spec.toml --store store --workers 1 --set corpus.path=dpr \
                --set evaluate.metrics=[\"accuracy@5\",\"accuracy@20\"] --set mining.from=[\"given\",\"bm25\"]";
    home.retort(line).expect(0, &["accuracy@5", "encoder-8"]);
    let (folder, report) = report(&home.path().join("store"));
    let bm25 = report["rows"].as_array().unwrap().iter().find(|row| row["kind"] == "bm25").unwrap();
    assert!(bm25["metrics"]["test"]["accuracy@20"].as_f64() > Some(0.0), "{bm25}");
    assert_eq!(report["bad_records"]["count"], 0);
    assert_eq!(fs::read_to_string(folder.join("qrels/test.qrels")).unwrap(), "");
    // Metrics from judgements mean nothing here.
    let line = line.replace("[\"accuracy@5\",\"accuracy@20\"]", "[\"mrr@10\"]");
    home.retort(&line).expect(100, &["none of mrr@10 is defined on set", "accuracy@k"]);
}

#[test]
fn bad_records_are_skipped_counted_and_listed() {
    let home = Home::new();
    fixture::write(home.path());
    let corpus = home.path().join("data/corpus.jsonl");
    let bytes =
        fs::read_to_string(&corpus).unwrap() + "{\"_id\":\"x\"}\n{\"_id\":\"p1\",\"text\":\"again\"}\n";
    fs::write(&corpus, bytes).unwrap();
    home.retort("dataset check data").expect(
        1,
        &["problem", "corpus.jsonl: 1 bad records: line 61: missing field `text`", "line 62: \"p1\""],
    );
    let line = "run spec.toml --store store --workers 1 --set student=[] --set corpus.max_bad_records=";
    home.retort(&format!("{line}1"))
        .expect(100, &["corpus.jsonl:62", "more than corpus.max_bad_records = 1"]);
    home.retort(&format!("{line}2")).expect(0, &["2 bad records of the input left out", "corpus.jsonl:61"]);
    let report = report(&home.path().join("store")).1;
    assert_eq!(report["bad_records"]["count"], 2, "{report}");
}

#[test]
fn eval_gives_the_reports_figures_and_says_what_would_mislead() {
    let home = Home::new();
    fixture::write(home.path());
    home.retort("run spec.toml --store store --workers 1 --set student=[]").expect(0, &["teacher"]);
    let (folder, report) = report(&home.path().join("store"));
    let folder = folder.display();
    let eval = format!("eval {folder}/runs/bm25.test.trec --qrels {folder}/qrels/test.qrels");
    let found = home.retort(&format!("{eval} --metrics mrr@10,recall@20 -o json")).expect(0, &[]).json();
    let bm25 = report["rows"].as_array().unwrap().iter().find(|row| row["kind"] == "bm25").unwrap();
    for metric in found["metrics"].as_array().unwrap() {
        let told = bm25["metrics"]["test"][text(metric, "metric")].as_f64().unwrap();
        assert!((metric["value"].as_f64().unwrap() - told).abs() < 1e-12, "{metric} but {told}");
        assert!(
            metric["low"].as_f64() <= metric["value"].as_f64()
                && metric["value"].as_f64() <= metric["high"].as_f64()
        );
    }
    let against = format!("{eval} --against {folder}/runs/teacher.test.trec --per-query values.tsv");
    home.retort(&against).expect(0, &["DIFFERENCE", "mrr@10", "10 questions"]);
    let values = fs::read_to_string(home.path().join("values.tsv")).unwrap();
    assert!(values.starts_with("query\tmrr@10\t") && values.lines().count() == 11, "{values}");
    home.retort(&format!("eval {folder}/runs/bm25.test.trec")).expect(2, &["needs --qrels"]);
    home.retort(&format!("{eval} --metrics p@50")).expect(1, &["the longest list has"]);
    let others = format!("eval {folder}/runs/bm25.test.trec --qrels {folder}/qrels/dev.qrels");
    home.retort(&others).expect(1, &["no question in common"]);
    let line = "run spec.toml --store store --workers 1 --set student=[] --set name=other --set baselines.bm25_k1=3.0";
    home.retort(line).expect(0, &["bm25"]);
    home.retort("compare tiny other --store store").expect(0, &["mrr@10", "ROW", "bm25", "P", "teacher"]);
    home.retort("compare tiny --store store").expect(2, &["at least two"]);
}
