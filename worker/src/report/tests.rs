use super::StepPoint;
use super::data::{Kind, ReportData, Row};
use super::sample::{phase, sample};
use super::*;
use std::collections::BTreeMap;

const HOSTILE: &str = "<script>alert(\"x\")</script>&'\u{1b}[31m\u{202e}";

/// Every text that a spec or a corpus can set is hostile.
fn hostile() -> ReportData {
    let mut data = sample();
    let bad = || HOSTILE.to_owned();
    (data.job, data.name, data.spec_digest) = (bad(), bad(), bad());
    let old = data.test[0].clone();
    data.test[0] = bad();
    for row in &mut data.rows {
        (row.name, row.variant) = (format!("{}{HOSTILE}", row.name), Some(bad()));
        let values = row.metrics.remove(&old).unwrap();
        row.metrics.insert(bad(), values.into_iter().map(|(name, value)| (name + HOSTILE, value)).collect());
    }
    data.metrics.iter_mut().for_each(|metric| metric.push_str(HOSTILE));
    for test in &mut data.comparisons {
        (test.row, test.baseline, test.set, test.metric) = (bad(), bad(), bad(), bad());
    }
    data.stages.iter_mut().for_each(|stage| stage.name = bad());
    for training in &mut data.training {
        training.student = bad();
        for phase in &mut training.phases {
            (phase.name, phase.signal) = (bad(), bad());
            phase.steps.iter_mut().flat_map(|step| &mut step.terms).for_each(|term| term.0.push_str(HOSTILE));
        }
    }
    let audit = &mut data.negatives[0];
    audit.source = bad();
    audit.filters.iter_mut().for_each(|filter| filter.filter = bad());
    for case in &mut audit.suspicious {
        (case.query_id, case.query, case.positive) = (bad(), bad(), bad());
        (case.negative_id, case.negative) = (bad(), bad());
    }
    data
}

/// Data that a report must survive.
fn odd() -> Vec<(&'static str, ReportData)> {
    let with = |change: &dyn Fn(&mut ReportData)| {
        let mut data = sample();
        change(&mut data);
        data
    };
    vec![
        ("sample", sample()),
        ("hostile", hostile()),
        ("empty", ReportData::default()),
        ("one row", with(&|data| data.rows.truncate(1))),
        ("no teacher", with(&|data| data.rows.retain(|row| row.kind != Kind::Teacher))),
        (
            "teacher of zero",
            with(&|data| {
                data.rows.iter_mut().for_each(|row| {
                    row.metrics.values_mut().flat_map(BTreeMap::values_mut).for_each(|value| *value = 0.0);
                })
            }),
        ),
        ("no training", with(&|data| data.training.clear())),
        ("no negatives", with(&|data| data.negatives.clear())),
        ("no metrics", with(&|data| data.metrics.clear())),
        ("no sets", with(&|data| (data.dev, data.test) = (Vec::new(), Vec::new()))),
        ("only dev", with(&|data| data.test.clear())),
        ("one step", with(&|data| data.training[0].phases[0].steps.truncate(1))),
        (
            "edges that do not fit",
            with(&|data| {
                data.negatives[0].gaps.edges.pop();
            }),
        ),
        (
            "not finite",
            with(&|data| {
                for (index, row) in data.rows.iter_mut().enumerate() {
                    row.bytes_per_passage = [f64::NAN, 0.0, f64::INFINITY, -1.0, 1e300, 1e-300][index % 6];
                    row.metrics
                        .values_mut()
                        .flat_map(BTreeMap::values_mut)
                        .for_each(|value| *value = f64::NAN);
                }
                data.comparisons[0].p_value = f64::NAN;
                data.comparisons[0].difference = f64::NEG_INFINITY;
                data.stages[0].seconds = f64::NAN;
                let steps = &mut data.training[0].phases[0].steps;
                steps[10].loss = f64::INFINITY;
                steps.iter_mut().for_each(|step| step.learning_rate = f64::NAN);
                data.training[1].phases[0].steps.iter_mut().for_each(|step| step.loss = f64::NAN);
            }),
        ),
        (
            "extreme bytes",
            with(&|data| {
                data.rows[0].bytes_per_passage = 1e300;
                data.rows[1].bytes_per_passage = 1e-300;
                data.training[0].phases[0].steps[0].loss = 1e300;
            }),
        ),
    ]
}

/// Checks that every element that opens closes, in order.
fn check_balanced(name: &str, html: &str) {
    let start = html.find("<body").unwrap();
    let mut open = Vec::new();
    for part in html[start..].split('<').skip(1) {
        let tag = part.split('>').next().unwrap();
        if let Some(closed) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(closed), "{name}: </{closed}>");
        } else if !tag.ends_with('/') {
            open.push(tag.split_whitespace().next().unwrap());
        }
    }
    assert_eq!(open, ["html"; 0], "{name}: left open");
}

#[test]
fn every_report_renders_well_formed_and_the_same_twice() {
    for (name, data) in odd() {
        let html = render_html(&data);
        check_balanced(name, &html.replace("</html>", ""));
        for forbidden in ["NaN", "inf\"", "<script", "http://", "https://", "url(", "\u{1b}", "\u{202e}"] {
            assert!(!html.contains(forbidden), "{name}: {forbidden:?} on the page");
        }
        assert_eq!(html, render_html(&data.clone()), "{name}");
        let table = render_table(&data);
        assert!(
            table.ends_with('\n') && !table.contains("NaN") && !table.contains('\u{1b}'),
            "{name}: {table}"
        );
        let json: serde_json::Value = serde_json::from_str(&render_json(&data).unwrap()).unwrap();
        assert_eq!(json["schema_version"], 1, "{name}");
        assert_eq!(json["rows"].as_array().unwrap().len(), data.rows.len(), "{name}");
    }
}

#[test]
fn hostile_text_is_shown_as_text() {
    let html = render_html(&hostile());
    let shown = "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&amp;&#39;\u{fffd}[31m\u{fffd}";
    assert!(html.matches(shown).count() > 50);
    assert!(!html.contains("alert(\""));
}

#[test]
fn every_row_set_and_metric_is_in_every_rendering() {
    let data = sample();
    let (html, table, json) = (render_html(&data), render_table(&data), render_json(&data).unwrap());
    for row in &data.rows {
        for (name, text) in [("html", &html), ("table", &table), ("json", &json)] {
            assert!(text.contains(&row.name), "{} in {name}", row.name);
        }
    }
    for word in data.test.iter().chain(&data.dev).chain(&data.metrics[..1]) {
        assert!(html.contains(word) && table.contains(word) && json.contains(word), "{word}");
    }
    assert!(
        table.contains("head-64 vs pca-64 on test-squad mrr@10: +.049 (p = .0001, 1,500 questions)\n"),
        "{table}"
    );
}

#[test]
fn json_has_the_promised_keys() {
    let json: serde_json::Value = serde_json::from_str(&render_json(&sample()).unwrap()).unwrap();
    let teacher = &json["rows"][0];
    assert_eq!((teacher["kind"].as_str(), teacher["dim"].as_u64()), (Some("teacher"), Some(384)));
    assert_eq!(teacher["metrics"]["test-squad"]["mrr@10"], 0.637);
    assert_eq!(json["stages"][1]["name"], "embed");
    assert_eq!(json["stages"][1]["cached"], 40);
    assert!(json["rows"].as_array().unwrap().iter().any(|row| row["kind"] == "bm25" && row["dim"].is_null()));
    for kind in Kind::ALL {
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
    }
}

#[test]
fn table_is_aligned_and_fits() {
    let table = render_table(&sample());
    let results: Vec<&str> = table.lines().skip_while(|line| !line.starts_with("name")).take(19).collect();
    let widths: Vec<usize> = results.iter().map(|line| line.chars().count()).collect();
    assert!(widths.iter().all(|&width| width == widths[0] && width <= table::WIDTH), "{widths:?}\n{table}");
    let order: Vec<&str> = results[2..].iter().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(order[..6], ["teacher", "head-64", "head-32", "encoder-3l", "codes-32", "codes-16"]);
    assert_eq!(order.last(), Some(&"bm25"));
}

/// A student, a baseline and a teacher with one deciding metric on "dev" and "test".
fn three(student: f64, baseline: f64) -> ReportData {
    let row = |name: &str, kind, bytes_per_passage, value: f64| Row {
        name: name.to_owned(),
        kind,
        dim: Some(64),
        bytes_per_passage,
        variant: None,
        metrics: ["dev", "test"]
            .map(|set| (set.to_owned(), BTreeMap::from([("mrr@10".to_owned(), value)])))
            .into(),
        queries: BTreeMap::new(),
    };
    ReportData {
        dev: vec!["dev".to_owned()],
        test: vec!["test".to_owned()],
        metrics: vec!["mrr@10".to_owned()],
        rows: vec![
            row("head-64", Kind::Head, 256.0, student),
            row("pca-64", Kind::Pca, 256.0, baseline),
            row("minilm", Kind::Teacher, 1536.0, 0.5),
        ],
        ..ReportData::default()
    }
}

#[test]
fn sentences_say_what_is_kept() {
    let check = |data: &ReportData, expected: &str| assert_eq!(summary::sentences(data), [expected]);
    check(
        &three(0.46, 0.42),
        "the 256-byte head-64 keeps 92 % of the teacher's mrr@10 on test, pca-64 keeps 84 %",
    );
    check(
        &three(0.461, 0.459),
        "the 256-byte head-64 keeps 92.2 % of the teacher's mrr@10 on test, pca-64 keeps 91.8 %",
    );
    let mut alone = three(0.46, 0.42);
    alone.rows.truncate(1);
    check(&alone, "the 256-byte head-64 reaches mrr@10 .460 on test");
    let mut doubtful = three(0.46, 0.42);
    doubtful.comparisons = sample().comparisons[..1].to_vec();
    (doubtful.comparisons[0].set, doubtful.comparisons[0].p_value) = ("test".to_owned(), 0.21);
    check(
        &doubtful,
        "the 256-byte head-64 keeps 92 % of the teacher's mrr@10 on test, pca-64 keeps 84 % \
         (not significant: p = .210 on test)",
    );
}

#[test]
fn headline_is_the_smallest_good_student_on_dev() {
    let first = summary::sentences(&sample()).remove(0);
    assert!(first.starts_with("the 32-byte codes-32 keeps 95 %"), "{first}");
    assert!(first.contains("99 % on test-boolq, opq-32 keeps 88 % and 98 %"), "{first}");
}

#[test]
fn numbers_are_written_as_readers_expect() {
    let cases = [
        (format::metric(Some(0.6372)), ".637"),
        (format::metric(Some(1.0)), "1.000"),
        (format::metric(None), "–"),
        (format::difference(0.0312), "+.031"),
        (format::difference(-0.004), "−.004"),
        (format::difference(0.0), "±.000"),
        (format::p_value(0.0001), "p = .0001"),
        (format::p_value(0.00001), "p < .0001"),
        (format::p_value(0.0214), "p = .021"),
        (format::p_value(1.0), "p = 1.000"),
        (format::percent(0.9199), "92 %"),
        (format::percent(0.9997), "99.9 %"),
        (format::percent(1.0), "100 %"),
        (format::count(1_234_567), "1,234,567"),
        (format::bytes(1536.0), "1,536"),
        (format::bytes(412.34), "412.3"),
        (format::bytes(9.96), "10"),
        (format::seconds(0.421), "0.42 s"),
        (format::seconds(59.7), "1 min 00 s"),
        (format::seconds(12_000.0), "3 h 20 min"),
        (format::shorten("a long name", 7), "a long…"),
    ];
    for (written, expected) in cases {
        assert_eq!(written, expected);
    }
}

#[test]
fn curves_are_thinned_and_keep_their_spikes() {
    let mut data = sample();
    data.training.truncate(1);
    let mut long = phase("1", "kl", 20_000, 2.0);
    long.steps[7_777] = StepPoint { loss: 50.0, ..long.steps[7_777].clone() };
    data.training[0].phases = vec![long];
    let html = render_html(&data);
    let section = &html[html.find("id=\"training\"").unwrap()..];
    let paths: Vec<&str> = section.split("<path class=\"").skip(1).collect();
    assert_eq!(paths.len(), 6, "raw, two terms, loss, learning rate, gradient norm");
    for path in &paths {
        let points = path.split("/>").next().unwrap().matches(['M', 'L']).count();
        assert!((200..=html::POINT_LIMIT).contains(&points), "{points}");
    }
    assert!(paths[0].contains(" 14.0"), "the spike reaches the drawing's upper edge");
}

/// Writes the page and the table for the eye: RETORT_REPORT_SAMPLE names the file.
#[test]
#[ignore = "writes a file for the eye"]
fn write_sample() {
    let path = std::env::var("RETORT_REPORT_SAMPLE").unwrap();
    let data = sample();
    std::fs::write(&path, render_html(&data)).unwrap();
    std::fs::write(format!("{path}.txt"), render_table(&data)).unwrap();
    std::fs::write(format!("{path}.json"), render_json(&data).unwrap()).unwrap();
}
