//! Metrics of a run over the queries of the judgements.

use super::metric::{GradedRanking, Metric};
use super::qrels::Qrels;
use super::run::Run;

/// Metrics of one run, by query and as means.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// The metrics, in the order asked for.
    pub metrics: Vec<Metric>,
    /// Every query of the judgements in sorted order with its values, one a metric.
    pub by_query: Vec<(String, Vec<f64>)>,
    /// Mean of every metric over the queries of the judgements; 0 where there is none.
    pub means: Vec<f64>,
    /// Queries of the judgements that the run lacks; each counted as zero.
    pub missing: usize,
}

/// Evaluates `run` on the queries *of the judgements*: one that the run lacks counts as zero, as with
/// ir_measures and MS MARCO's script, and queries without judgements are left out.
pub fn evaluate(qrels: &Qrels, run: &Run, metrics: &[Metric]) -> Evaluation {
    evaluate_with(qrels, metrics, |query| {
        run.documents(query).map(|documents| documents.iter().map(|document| document.id.as_str()))
    })
}

/// As [`evaluate`], with ranked lists that are not in a [`Run`]: `ranked` gives the documents of a query,
/// best first and each once, or none if it was not searched.
pub fn evaluate_with<'a, L: IntoIterator<Item = &'a str>>(
    qrels: &Qrels,
    metrics: &[Metric],
    mut ranked: impl FnMut(&str) -> Option<L>,
) -> Evaluation {
    let mut missing = 0;
    let mut by_query = Vec::with_capacity(qrels.len());
    let mut means = vec![0.0; metrics.len()];
    for (query, judgements) in qrels.iter() {
        let list = ranked(query);
        missing += usize::from(list.is_none());
        let grade = |document: &str| judgements.get(document).copied().unwrap_or(0);
        let ranking = GradedRanking::new(list.into_iter().flatten().map(grade), judgements.values().copied());
        let values: Vec<f64> = metrics.iter().map(|metric| metric.value(&ranking)).collect();
        means.iter_mut().zip(&values).for_each(|(mean, value)| *mean += value);
        by_query.push((query.to_owned(), values));
    }
    let queries = by_query.len().max(1) as f64;
    means.iter_mut().for_each(|mean| *mean /= queries);
    Evaluation { metrics: metrics.to_vec(), by_query, means, missing }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_that_the_run_lacks_counts_as_zero() {
        let qrels = Qrels::read_trec("t", "q1 0 a 1\nq2 0 b 1\nq3 0 c 0\nq4 0 d 1\n".as_bytes()).unwrap();
        let run = Run::read_trec(
            "r",
            "q1 Q0 a 1 2.0 x\nq3 Q0 c 1 1 x\nq4 Q0 z 1 2 x\nq4 Q0 d 2 1 x\nq9 Q0 a 1 1 x\n".as_bytes(),
        )
        .unwrap();
        let evaluation = evaluate(&qrels, &run, &["mrr@10".parse().unwrap(), "success@1".parse().unwrap()]);
        assert_eq!(evaluation.means, [1.5 / 4.0, 0.25]);
        assert_eq!(evaluation.missing, 1);
        let queries: Vec<_> =
            evaluation.by_query.iter().map(|(query, values)| (query.as_str(), values[0])).collect();
        assert_eq!(queries, [("q1", 1.0), ("q2", 0.0), ("q3", 0.0), ("q4", 0.5)]);
    }
}
