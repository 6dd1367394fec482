//! Metric values against those of ir_measures, computed by tests/parity/metrics.py.

use std::collections::BTreeMap;
use std::path::Path;

use retort_worker::metrics::evaluation::evaluate;
use retort_worker::metrics::metric::Metric;
use retort_worker::metrics::qrels::Qrels;
use retort_worker::metrics::run::Run;

/// Compares every "query metric value" line of `expected`, where the query "all" is the mean.
fn check(qrels: &Path, run: &Path, expected: &Path) {
    let text = std::fs::read_to_string(expected).unwrap();
    let expected: BTreeMap<(String, Metric), f64> = text
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .map(|columns| ((columns[0].to_owned(), columns[1].parse().unwrap()), columns[2].parse().unwrap()))
        .collect();
    let mut metrics: Vec<Metric> = expected.keys().map(|(_, metric)| *metric).collect();
    metrics.sort();
    metrics.dedup();
    let found = evaluate(&Qrels::open(qrels).unwrap(), &Run::open_trec(run).unwrap(), &metrics);
    let mut by_query = found.by_query;
    by_query.push(("all".to_owned(), found.means));
    for (query, values) in &by_query {
        for (metric, value) in metrics.iter().zip(values) {
            // ir_measures leaves out what counts as zero, as a query that the run lacks.
            let expected = expected.get(&(query.clone(), *metric)).copied().unwrap_or(0.0);
            assert!(
                (value - expected).abs() < 1e-9,
                "{metric} of {query} in {run:?}: {value}, not {expected}"
            );
        }
    }
    for (query, metric) in expected.keys() {
        assert!(
            by_query.iter().any(|(found, _)| found == query),
            "{metric} of {query} in {run:?} is missing"
        );
    }
}

#[test]
fn trec_dl_2019_values_equal_ir_measures() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/metrics");
    for run in ["ance", "bm25"] {
        check(
            &fixtures.join("dl19.qrels.gz"),
            &fixtures.join(format!("dl19.{run}.run.gz")),
            &fixtures.join(format!("dl19.{run}.expected.txt")),
        );
    }
}

/// `RETORT_METRICS_PARITY` names a folder that tests/parity/metrics.py random has filled.
#[test]
#[ignore = "needs a folder of random runs"]
fn random_values_equal_ir_measures() {
    let folder = std::env::var("RETORT_METRICS_PARITY").expect("RETORT_METRICS_PARITY names a folder");
    let folder = Path::new(&folder);
    let mut pairs = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let expected = entry.unwrap().path();
        if let Some(seed) = expected.to_str().and_then(|path| path.strip_suffix(".expected.txt")) {
            check(Path::new(&format!("{seed}.qrels")), Path::new(&format!("{seed}.run")), &expected);
            pairs += 1;
        }
    }
    assert!(pairs > 0, "{folder:?} holds no expected values");
}
