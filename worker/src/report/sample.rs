//! A report with realistic numbers for tests and for the eye.

use super::StepPoint;
use super::data::{
    BadRecords, Comparison, FilterCount, Histogram, Kind, NegativesAudit, Phase, ReportData, Row, Shortfall,
    StageTime, SuspiciousNegative, Training,
};
use std::collections::BTreeMap;

const SETS: [(&str, u64); 3] = [("test-squad", 1500), ("test-boolq", 1000), ("dev", 500)];

pub(super) fn sample() -> ReportData {
    let texts = |items: &[&str]| items.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>();
    let rows = vec![
        row("bm25", Kind::Bm25, None, 412.3, None, [0.571, 0.803, 0.585]),
        row("pca-128", Kind::Pca, Some(128), 512.0, Some("centred"), [0.586, 0.872, 0.6]),
        row("pca-64", Kind::Pca, Some(64), 256.0, Some("renormalised"), [0.492, 0.826, 0.51]),
        row("pca-32", Kind::Pca, Some(32), 128.0, Some("renormalised"), [0.365, 0.673, 0.38]),
        row("opq-48", Kind::Opq, Some(384), 48.0, None, [0.596, 0.883, 0.61]),
        row("opq-32", Kind::Opq, Some(384), 32.0, None, [0.562, 0.877, 0.573]),
        row("pca128-pq16", Kind::Pq, Some(128), 16.0, None, [0.467, 0.821, 0.48]),
        row("opq-8", Kind::Opq, Some(384), 8.0, None, [0.319, 0.642, 0.33]),
        row("int8", Kind::Int8, Some(384), 384.0, None, [0.636, 0.892, 0.647]),
        row("binary", Kind::Binary, Some(384), 48.0, None, [0.541, 0.851, 0.55]),
        row("teacher", Kind::Teacher, Some(384), 1536.0, None, [0.637, 0.893, 0.65]),
        row("head-64", Kind::Head, Some(64), 256.0, None, [0.541, 0.861, 0.556]),
        row("head-32", Kind::Head, Some(32), 128.0, None, [0.43, 0.757, 0.445]),
        row("encoder-3l", Kind::Encoder, Some(384), 1536.0, None, [0.621, 0.885, 0.633]),
        row("codes-32", Kind::Quantised, Some(384), 32.0, None, [0.603, 0.886, 0.615]),
        row("codes-16", Kind::Quantised, Some(384), 16.0, None, [0.53, 0.853, 0.54]),
        row("codes-8", Kind::Quantised, Some(384), 8.0, None, [0.41, 0.751, 0.42]),
    ];
    ReportData {
        bad_records: BadRecords { count: 2, reasons: vec!["psgs.tsv:7: 2 columns".to_owned()] },
        job: "0197f3c2-8d1e-7a44-9c0b-3f5a1d2e6b70".to_owned(),
        name: "wiki-minilm".to_owned(),
        spec_digest: "6f1d7c2b9a30e58841c7f2d0b6a95e3314cf8d27e0b1a6f5d4c3928170fe5ab9".to_owned(),
        dev: texts(&["dev"]),
        test: texts(&["test-squad", "test-boolq"]),
        metrics: texts(&["mrr@10", "success@20", "ndcg@10"]),
        rows,
        comparisons: vec![
            test("head-64", "pca-64", "test-squad", 0.049, 0.0001),
            test("head-64", "pca-64", "test-boolq", 0.035, 0.00004),
            test("head-32", "pca-32", "test-squad", 0.065, 0.0001),
            test("head-32", "pca-32", "test-boolq", 0.084, 0.0001),
            test("codes-32", "opq-32", "test-squad", 0.041, 0.0007),
            test("codes-32", "opq-32", "test-boolq", 0.009, 0.212),
            test("codes-16", "pca128-pq16", "test-squad", 0.063, 0.0001),
        ],
        stages: stages(),
        training: vec![
            Training {
                student: "head-64".to_owned(),
                phases: vec![phase("1", "kl + infonce on train", 900, 2.4)],
            },
            Training {
                student: "encoder-3l".to_owned(),
                phases: vec![
                    phase("vectors", "embedding cosine on corpus", 3000, 0.9),
                    phase("contrast", "kl + infonce on train with mined negatives", 600, 1.2),
                ],
            },
        ],
        negatives: vec![audit()],
    }
}

fn row(
    name: &str,
    kind: Kind,
    dim: Option<u32>,
    bytes: f64,
    variant: Option<&str>,
    quality: [f64; 3],
) -> Row {
    let mut metrics = BTreeMap::new();
    let mut queries = BTreeMap::new();
    for ((set, questions), value) in SETS.into_iter().zip(quality) {
        let of = |metric: &str, value: f64| (metric.to_owned(), value);
        let success = 1.0 - (1.0 - value) * 0.34;
        let values = [of("mrr@10", value), of("success@20", success), of("ndcg@10", value * 0.8 + 0.19)];
        metrics.insert(set.to_owned(), BTreeMap::from(values));
        queries.insert(set.to_owned(), questions);
    }
    let variant = variant.map(str::to_owned);
    Row { name: name.to_owned(), kind, dim, bytes_per_passage: bytes, variant, metrics, queries }
}

fn test(row: &str, baseline: &str, set: &str, difference: f64, p_value: f64) -> Comparison {
    let owned = |text: &str| text.to_owned();
    let queries = SETS.iter().find(|(name, _)| *name == set).map_or(0, |(_, questions)| *questions);
    let (row, baseline, set, metric) = (owned(row), owned(baseline), owned(set), owned("mrr@10"));
    Comparison { row, baseline, set, metric, difference, p_value, queries }
}

fn stages() -> Vec<StageTime> {
    let rows = [
        ("shard", 12, 12, 0.0),
        ("embed", 42, 40, 61.4),
        ("fit", 9, 2, 88.0),
        ("search", 51, 3, 240.7),
        ("mine", 4, 0, 12.2),
        ("train", 6, 0, 1480.9),
        ("evaluate", 51, 3, 31.0),
        ("export", 6, 0, 4.1),
        ("report", 1, 0, 0.3),
    ];
    let stage = |(name, tasks, cached, seconds): (&str, u64, u64, f64)| StageTime {
        name: name.to_owned(),
        tasks,
        cached,
        seconds,
    };
    rows.into_iter().map(stage).collect()
}

pub(super) fn phase(name: &str, signal: &str, steps: u64, start: f64) -> Phase {
    let mut noise = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (noise >> 40) as f64 / (1u64 << 24) as f64 - 0.5
    };
    let point = |step: u64| {
        let done = step as f64 / steps as f64;
        let level = start * (0.18 + 0.82 * (-5.0 * done).exp());
        let loss = level * (1.0 + 0.3 * next());
        let learning_rate = 1e-3 * if done < 0.1 { done / 0.1 } else { (1.0 - done) / 0.9 };
        let terms = vec![("kl".to_owned(), loss * 0.6), ("infonce".to_owned(), loss * 0.4)];
        StepPoint { step, loss, terms, learning_rate, gradient_norm: level * (1.4 + next()) }
    };
    Phase { name: name.to_owned(), signal: signal.to_owned(), steps: (1..=steps).map(point).collect() }
}

fn audit() -> NegativesAudit {
    let filter = |(filter, removed): (&str, u64)| FilterCount { filter: filter.to_owned(), removed };
    let removed = [
        ("known positive", 4210),
        ("duplicate text", 318),
        ("margin", 9120),
        ("ratio", 2204),
        ("answer in text", 1630),
    ];
    let counts = vec![120, 460, 1300, 2900, 4700, 5600, 5100, 3900, 2500, 1500, 800, 420, 190, 70, 30];
    NegativesAudit {
        source: "teacher, bm25".to_owned(),
        questions: 8400,
        candidates: 84_000,
        kept: counts.iter().sum(),
        filters: removed.into_iter().map(filter).collect(),
        shortfall: Shortfall { questions: 212, negatives: 803 },
        gaps: Histogram { edges: (0..=15).map(|edge| f64::from(edge) * 0.04).collect(), counts },
        suspicious: vec![SuspiciousNegative {
            query_id: "q1021".to_owned(),
            query: "When did the Normans settle in Normandy?".to_owned(),
            positive:
                "The Normans were the people who in the 10th and 11th centuries gave their name to Normandy."
                    .to_owned(),
            positive_score: 0.712,
            negative_id: "p88".to_owned(),
            negative:
                "Norse settlers came to the region in the early tenth century and mixed with the Franks."
                    .to_owned(),
            negative_score: 0.708,
        }],
    }
}
