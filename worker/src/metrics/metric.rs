//! The retrieval metrics with the definitions of trec_eval and ir_measures.

use std::fmt;
use std::str::FromStr;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Measure {
    /// Reciprocal rank of the first relevant document (`mrr`).
    ReciprocalRank,
    /// Share of the relevant documents that were found (`recall`).
    Recall,
    /// Whether any relevant document was found (`success`).
    Success,
    /// Normalised discounted cumulative gain with linear gain (`ndcg`): the grade over `log2(rank + 1)`.
    Ndcg,
    /// Mean over the relevant documents of the precision at their ranks (`map`).
    AveragePrecision,
    /// Share of the first `cutoff` places that hold a relevant document (`p`).
    Precision,
}

impl Measure {
    fn name(self) -> &'static str {
        match self {
            Self::ReciprocalRank => "mrr",
            Self::Recall => "recall",
            Self::Success => "success",
            Self::Ndcg => "ndcg",
            Self::AveragePrecision => "map",
            Self::Precision => "p",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            "mrr" | "rr" => Self::ReciprocalRank,
            "recall" | "r" => Self::Recall,
            "success" | "hit" => Self::Success,
            "ndcg" => Self::Ndcg,
            "map" | "ap" => Self::AveragePrecision,
            "p" | "precision" => Self::Precision,
            _ => return None,
        })
    }

    fn needs_cutoff(self) -> bool {
        matches!(self, Self::Recall | Self::Success | Self::Precision)
    }
}

/// A measure with its depth and the grade from which a document is relevant, written `mrr@10`,
/// `recall(rel=2)@1000` or `map`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Metric {
    measure: Measure,
    cutoff: Option<u32>,
    min_grade: i32,
}

/// Why text or parts do not name a metric.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("metric \"{metric}\" {reason}")]
pub struct MetricError {
    metric: String,
    reason: &'static str,
}

impl Metric {
    /// `measure` over the first `cutoff` places (all of them if none), where documents graded `min_grade`
    /// or higher are relevant.
    ///
    /// # Errors
    /// When the cutoff is 0 or is missing from recall, success or precision; when the grade is below 1, or
    /// is not 1 for nDCG, which uses the grades themselves.
    pub fn new(measure: Measure, cutoff: Option<u32>, min_grade: i32) -> Result<Self, MetricError> {
        let metric = Self { measure, cutoff, min_grade };
        let refuse = |reason| Err(MetricError { metric: metric.to_string(), reason });
        match (measure, cutoff, min_grade) {
            (_, Some(0), _) => refuse("has a cutoff of 0: give at least 1"),
            (_, None, _) if measure.needs_cutoff() => refuse("needs a cutoff: write for example @100"),
            (_, _, ..=0) => refuse("has a relevant grade below 1: unjudged documents have grade 0"),
            (Measure::Ndcg, _, 2..) => refuse("uses the grades themselves: drop rel"),
            _ => Ok(metric),
        }
    }

    /// What is measured.
    pub fn measure(&self) -> Measure {
        self.measure
    }

    /// Number of places looked at; none for all.
    pub fn cutoff(&self) -> Option<u32> {
        self.cutoff
    }

    /// The grade from which a document is relevant.
    pub fn min_grade(&self) -> i32 {
        self.min_grade
    }

    /// The metric of one query, 0 to 1. A query without a relevant document has 0, as in trec_eval.
    pub fn value(&self, query: &GradedRanking) -> f64 {
        let cutoff = self.cutoff.map_or(usize::MAX, |cutoff| cutoff as usize);
        let places = &query.ranked[..cutoff.min(query.ranked.len())];
        if self.measure == Measure::Ndcg {
            let ideal = gain(&query.ideal[..cutoff.min(query.ideal.len())]);
            return if ideal > 0.0 { gain(places) / ideal } else { 0.0 };
        }
        let relevant = |grade: &i32| *grade >= self.min_grade;
        let total = query.ideal.iter().filter(|grade| relevant(grade)).count();
        if total == 0 {
            return 0.0;
        }
        let found = places.iter().filter(|grade| relevant(grade)).count();
        match self.measure {
            Measure::ReciprocalRank => {
                places.iter().position(relevant).map_or(0.0, |place| 1.0 / (place + 1) as f64)
            }
            Measure::Recall => found as f64 / total as f64,
            Measure::Success => f64::from(u8::from(found > 0)),
            Measure::Precision => found as f64 / cutoff as f64,
            Measure::AveragePrecision => {
                let hits = places.iter().enumerate().filter(|(_, grade)| relevant(grade));
                let precisions =
                    hits.enumerate().map(|(before, (place, _))| (before + 1) as f64 / (place + 1) as f64);
                precisions.sum::<f64>() / total as f64
            }
            Measure::Ndcg => unreachable!("returned above"),
        }
    }
}

/// Discounted gain of grades in rank order; trec_eval gives grades below 0 no gain.
fn gain(grades: &[i32]) -> f64 {
    grades
        .iter()
        .enumerate()
        .map(|(place, grade)| f64::from((*grade).max(0)) / ((place + 2) as f64).log2())
        .sum()
}

/// One query's ranked list as grades: all that the metrics look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GradedRanking {
    /// The grade of each place, best place first; 0 where the document is not judged.
    ranked: Vec<i32>,
    /// All positive grades of the judgements, highest first.
    ideal: Vec<i32>,
}

impl GradedRanking {
    /// From the grades of the ranked documents, in order, each document once and 0 where it is not judged,
    /// and the grades of all judgements of the query, found or not.
    pub fn new(ranked: impl IntoIterator<Item = i32>, judged: impl IntoIterator<Item = i32>) -> Self {
        let mut ideal: Vec<i32> = judged.into_iter().filter(|grade| *grade > 0).collect();
        ideal.sort_unstable_by(|a, b| b.cmp(a));
        Self { ranked: ranked.into_iter().collect(), ideal }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.measure.name())?;
        if self.min_grade != 1 {
            write!(f, "(rel={})", self.min_grade)?;
        }
        self.cutoff.map_or(Ok(()), |cutoff| write!(f, "@{cutoff}"))
    }
}

impl FromStr for Metric {
    type Err = MetricError;

    /// Reads the form that is displayed, also with the parenthesis after the cutoff, in any case, with the
    /// aliases `rr`, `r`, `hit`, `ap` and `precision`.
    fn from_str(text: &str) -> Result<Self, MetricError> {
        let refuse = |reason| MetricError { metric: text.to_owned(), reason };
        let form =
            || refuse("is not understood: write for example mrr@10, recall(rel=2)@100, ndcg@10 or map");
        let (before, grade, after) = match text.split_once('(') {
            None => (text, 1, ""),
            Some((before, rest)) => {
                let (inside, after) = rest.split_once(')').ok_or_else(form)?;
                let grade = inside.trim().strip_prefix("rel=").and_then(|grade| grade.parse().ok());
                (before, grade.ok_or_else(form)?, after)
            }
        };
        let whole = format!("{before}{after}");
        let (name, cutoff) = match whole.split_once('@') {
            None => (whole.as_str(), None),
            Some((name, cutoff)) => (name, Some(cutoff.parse().map_err(|_| form())?)),
        };
        Self::new(Measure::from_name(name).ok_or_else(form)?, cutoff, grade)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(metric: &str, ranked: &[i32], judged: &[i32], expected: f64) {
        let value =
            metric.parse::<Metric>().unwrap().value(&GradedRanking::new(ranked.to_vec(), judged.to_vec()));
        assert!(
            (value - expected).abs() < 1e-12,
            "{metric} of {ranked:?} in {judged:?}: {value}, not {expected}"
        );
    }

    #[test]
    fn values_follow_their_definitions() {
        let (ranked, judged) = ([0, 1, 0, 3], [0, 1, 3, 2]);
        check("mrr", &ranked, &judged, 0.5);
        check("mrr@1", &ranked, &judged, 0.0);
        check("mrr(rel=2)@10", &ranked, &judged, 0.25);
        check("recall@2", &ranked, &judged, 1.0 / 3.0);
        check("recall@100", &ranked, &judged, 2.0 / 3.0);
        check("success@1", &ranked, &judged, 0.0);
        check("success@2", &ranked, &judged, 1.0);
        check("p@4", &ranked, &judged, 0.5);
        check("p@10", &ranked, &judged, 0.2);
        check("map", &ranked, &judged, (0.5 + 0.5) / 3.0);
        check("map@2", &ranked, &judged, 0.5 / 3.0);
        let log3 = 3f64.log2();
        check("ndcg@2", &ranked, &judged, (1.0 / log3) / (3.0 + 2.0 / log3));
        check("ndcg", &ranked, &judged, (1.0 / log3 + 3.0 / 5f64.log2()) / (3.0 + 2.0 / log3 + 1.0 / 2.0));
        check("ndcg@3", &[-1, 1], &[-1, 1], 1.0 / log3);
        for metric in ["mrr", "recall@5", "success@5", "p@5", "map", "ndcg@5"] {
            check(metric, &[0, 0], &[0], 0.0);
            check(metric, &[], &[1], 0.0);
        }
    }

    #[test]
    fn names_round_trip() {
        for (text, canonical) in [
            ("mrr@10", "mrr@10"),
            ("RR@10", "mrr@10"),
            ("nDCG@10", "ndcg@10"),
            ("hit@20", "success@20"),
            ("map", "map"),
            ("AP(rel=2)", "map(rel=2)"),
            ("recall@1000(rel=2)", "recall(rel=2)@1000"),
            ("R(rel=1)@5", "recall@5"),
            ("p@30", "p@30"),
        ] {
            let metric: Metric = text.parse().unwrap();
            assert_eq!(metric.to_string(), canonical);
            assert_eq!(canonical.parse(), Ok(metric));
        }
    }

    #[test]
    fn what_is_no_metric_is_refused_with_its_name() {
        for text in [
            "",
            "mrr@",
            "mrr@x",
            "mrr@0",
            "mrr@-1",
            "recall",
            "p",
            "ndcg(rel=2)@10",
            "map(rel=0)",
            "map(2)",
            "map(rel=2",
            "mean@10",
            "mrr@10@5",
        ] {
            let error = text.parse::<Metric>().unwrap_err().to_string();
            assert!(error.starts_with("metric \""), "{error}");
        }
    }
}
