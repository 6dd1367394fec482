//! What a report is made of. Plain values, so that the report task can gather them from artifacts and
//! every rendering sees the same ones.

use retort_common::metrics::StepPoint;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Everything that a report shows.
///
/// Numbers may be missing or not finite (a metric that no question allows, a diverged loss): they are
/// shown as a dash and written as null.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReportData {
    /// The job's id.
    pub job: String,
    /// The job's name as its spec gives it.
    pub name: String,
    /// The digest of the spec.
    pub spec_digest: String,
    /// The question sets on which choices were made.
    pub dev: Vec<String>,
    /// The question sets that were looked at once, at the end.
    pub test: Vec<String>,
    /// The metrics to show, the one that decides first, e.g. "mrr@10".
    pub metrics: Vec<String>,
    /// One row for each way of keeping passages, in any order.
    pub rows: Vec<Row>,
    /// Paired tests between rows.
    pub comparisons: Vec<Comparison>,
    /// The stages in the order in which they ran.
    pub stages: Vec<StageTime>,
    /// The loss curves, one entry for each student.
    pub training: Vec<Training>,
    /// The audits of the mined negatives, one for each mining.
    pub negatives: Vec<NegativesAudit>,
    /// Records of the input files that could not be used.
    pub bad_records: BadRecords,
}

/// Records of the input files that were skipped, as many as the spec allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadRecords {
    /// How many.
    pub count: u64,
    /// File, line and reason of the first.
    pub reasons: Vec<String>,
}

/// How passages are kept and where that came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The teacher's own vectors.
    Teacher,
    /// A student: a head on the teacher's vectors.
    Head,
    /// A student: a smaller encoder.
    Encoder,
    /// A student: codes trained through a loss.
    Quantised,
    /// Principal components.
    Pca,
    /// Product quantisation.
    Pq,
    /// Product quantisation after a learnt rotation.
    Opq,
    /// Residual quantisation.
    Residual,
    /// One signed byte for each dimension.
    Int8,
    /// One bit for each dimension.
    Binary,
    /// The lexical baseline. Its bytes are those of an inverted index.
    Bm25,
}

impl Kind {
    /// Every kind, in the order in which reports show them.
    pub const ALL: [Kind; 11] = [
        Kind::Teacher,
        Kind::Head,
        Kind::Encoder,
        Kind::Quantised,
        Kind::Pca,
        Kind::Pq,
        Kind::Opq,
        Kind::Residual,
        Kind::Int8,
        Kind::Binary,
        Kind::Bm25,
    ];

    /// Its name in report.json.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Teacher => "teacher",
            Kind::Head => "head",
            Kind::Encoder => "encoder",
            Kind::Quantised => "quantised",
            Kind::Pca => "pca",
            Kind::Pq => "pq",
            Kind::Opq => "opq",
            Kind::Residual => "residual",
            Kind::Int8 => "int8",
            Kind::Binary => "binary",
            Kind::Bm25 => "bm25",
        }
    }

    /// Whether Retort trained it.
    pub fn is_student(self) -> bool {
        matches!(self, Kind::Head | Kind::Encoder | Kind::Quantised)
    }

    /// Whether it compresses the teacher without training through a loss. BM25 is not among them: it
    /// does not start from vectors, and its bytes cannot be set against theirs.
    pub fn is_baseline(self) -> bool {
        !self.is_student() && !matches!(self, Kind::Teacher | Kind::Bm25)
    }
}

/// One line of the result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The name from the spec, e.g. "head-64".
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Dimensions of its vectors; none for BM25.
    pub dim: Option<u32>,
    /// Bytes that one passage takes in the index.
    pub bytes_per_passage: f64,
    /// Which of several ways was chosen on dev, e.g. "renormalised".
    pub variant: Option<String>,
    /// Question set -> metric -> value.
    pub metrics: BTreeMap<String, BTreeMap<String, f64>>,
    /// Question set -> how many questions the values average.
    pub queries: BTreeMap<String, u64>,
}

impl Row {
    /// The value of a metric on a question set, if there is a finite one.
    pub fn metric(&self, set: &str, metric: &str) -> Option<f64> {
        self.metrics.get(set)?.get(metric).copied().filter(|value| value.is_finite())
    }
}

/// A paired randomisation test between two rows on the same questions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The row that is tested, usually a student.
    pub row: String,
    /// The row that it is tested against.
    pub baseline: String,
    /// The question set.
    pub set: String,
    /// The metric.
    pub metric: String,
    /// Mean of `row` less mean of `baseline`.
    pub difference: f64,
    /// Two-sided p-value.
    pub p_value: f64,
    /// How many questions were paired.
    pub queries: u64,
}

/// What a stage took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageTime {
    /// Its name.
    pub name: String,
    /// Its tasks.
    pub tasks: u64,
    /// Those of them whose output was already there.
    pub cached: u64,
    /// Seconds that it took.
    pub seconds: f64,
}

/// The loss curves of a student.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Training {
    /// The student's row.
    pub student: String,
    /// Its phases in order.
    pub phases: Vec<Phase>,
}

/// A phase of training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// Its name or number.
    pub name: String,
    /// What it learns from, in words, e.g. "kl + infonce on train".
    pub signal: String,
    /// Its steps in order.
    pub steps: Vec<StepPoint>,
}

/// What mining kept and what it threw away.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NegativesAudit {
    /// What they were mined from.
    pub source: String,
    /// Questions that were mined for.
    pub questions: u64,
    /// Candidates that were looked at.
    pub candidates: u64,
    /// Negatives that were kept.
    pub kept: u64,
    /// How many candidates each filter removed, in the order of the filters.
    pub filters: Vec<FilterCount>,
    /// What could not be found.
    pub shortfall: Shortfall,
    /// The teacher's score of the positive less that of the negative, over the kept negatives.
    pub gaps: Histogram,
    /// The kept negatives that look most like positives, worst first.
    pub suspicious: Vec<SuspiciousNegative>,
}

/// What one filter removed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FilterCount {
    /// The filter, e.g. "known positive".
    pub filter: String,
    /// How many candidates it removed.
    pub removed: u64,
}

/// Negatives that were asked for and not found. They are counted, never filled in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shortfall {
    /// Questions with fewer negatives than asked for.
    pub questions: u64,
    /// Negatives missing over all questions.
    pub negatives: u64,
}

/// Counts between edges: bin i holds the values from `edges[i]` up to `edges[i + 1]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// Ascending, one more than `counts`.
    pub edges: Vec<f64>,
    /// How many values each bin holds.
    pub counts: Vec<u64>,
}

impl Histogram {
    /// Whether it can be drawn: edges and counts fit together, the edges ascend, and something is in it.
    pub fn is_drawable(&self) -> bool {
        self.edges.len() == self.counts.len() + 1
            && self.edges.iter().all(|edge| edge.is_finite())
            && self.edges.windows(2).all(|pair| pair[0] < pair[1])
            && self.counts.iter().any(|&count| count > 0)
    }
}

/// A kept negative that may answer its question after all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SuspiciousNegative {
    /// The question's id.
    pub query_id: String,
    /// The question.
    pub query: String,
    /// The known positive's text.
    pub positive: String,
    /// The teacher's score of the positive.
    pub positive_score: f64,
    /// The negative's id.
    pub negative_id: String,
    /// The negative's text.
    pub negative: String,
    /// The teacher's score of the negative.
    pub negative_score: f64,
}
