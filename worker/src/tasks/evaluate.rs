//! Ranked lists to metrics.

use super::bench::{Content, Produced, TaskError, Workbench};
use super::mine::answers;
use super::search::load_ranking;
use crate::metrics::answers::AnswerText;
use crate::metrics::metric::{GradedRanking, Metric};
use crate::search::topk::Hit;
use crate::tables::NO_PASSAGE;
use retort_common::task::{Table, Task};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::{BTreeMap, HashMap};

/// The part that holds the figures.
pub const EVALUATION: &str = "evaluation.json";

/// A row's figures on every set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figures {
    /// By set.
    pub sets: BTreeMap<String, SetFigures>,
}

/// A row's figures on one set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetFigures {
    /// Rows of its questions, in rising order.
    pub queries: Vec<u64>,
    /// Means by metric.
    pub means: BTreeMap<String, f64>,
    /// Values by metric, one for each question.
    pub values: BTreeMap<String, Vec<f64>>,
}

/// What is computed for a question.
enum Wanted {
    /// From judgements.
    Judged(Metric),
    /// The share of questions with an answer among the first k passages (Karpukhin et al. 2020).
    Accuracy(usize),
}

fn parse(name: &str) -> Result<Wanted, TaskError> {
    if let Some(cutoff) = name.strip_prefix("accuracy@") {
        let cutoff = cutoff.parse().ok().filter(|cutoff| *cutoff > 0);
        let bad = || TaskError::Input(format!("metric {name:?}: a number above 0 must follow accuracy@"));
        return Ok(Wanted::Accuracy(cutoff.ok_or_else(bad)?));
    }
    Ok(Wanted::Judged(name.parse().map_err(TaskError::input)?))
}

/// A run's metrics on sets, for each question and as means over the questions that are judged.
pub fn evaluate(bench: &Workbench<'_>, task: &Task) -> Result<Produced, TaskError> {
    let Task::Evaluate { run, queries, passages, sets, metrics } = task else {
        unreachable!("called with its own task")
    };
    let wanted = metrics.iter().map(|name| parse(name)).collect::<Result<Vec<_>, _>>()?;
    let lists = load_ranking(bench, run)?;
    let deepest = wanted.iter().filter_map(|metric| match metric {
        Wanted::Accuracy(cutoff) => Some(*cutoff),
        Wanted::Judged(_) => None,
    });
    let first_hits = match deepest.max() {
        Some(cutoff) => first_answers(bench, queries, passages, &lists, cutoff)?,
        None => HashMap::new(),
    };
    let mut figures = Figures::default();
    for set in sets {
        let mut grades = BTreeMap::<u64, BTreeMap<u64, i32>>::new();
        for judgement in bench.judgements(queries, std::slice::from_ref(set))? {
            let grade = i32::try_from(judgement.grade).unwrap_or(i32::MAX);
            let judged = grades.entry(judgement.query).or_default();
            if judgement.passage != NO_PASSAGE {
                judged.insert(judgement.passage, grade);
            }
        }
        let own = set_figures(&grades, &lists, metrics, &wanted, &first_hits);
        if own.means.is_empty() {
            let metrics = metrics.join(", ");
            return Err(TaskError::Input(format!(
                "none of {metrics} is defined on set {set:?}: questions that are judged by answers alone have \
                 accuracy@k only, and those without answers have not; correct evaluate.metrics"
            )));
        }
        figures.sets.insert(set.clone(), own);
    }
    let means: BTreeMap<_, _> = figures.sets.iter().map(|(set, figures)| (set, &figures.means)).collect();
    let meta = json!({ "means": means });
    let bytes = serde_json::to_vec(&figures).map_err(TaskError::input)?;
    Ok(Produced { parts: vec![(EVALUATION.to_owned(), Content::Bytes(bytes.into()))], meta })
}

fn set_figures(
    grades: &BTreeMap<u64, BTreeMap<u64, i32>>,
    lists: &BTreeMap<u64, Vec<Hit>>,
    names: &[String],
    wanted: &[Wanted],
    first_hits: &HashMap<u64, Option<usize>>,
) -> SetFigures {
    let mut figures = SetFigures { queries: grades.keys().copied().collect(), ..SetFigures::default() };
    for (name, metric) in names.iter().zip(wanted) {
        let values: Option<Vec<f64>> = grades
            .iter()
            .map(|(query, judged)| match metric {
                // Nor are the others where one is judged by its answers alone.
                Wanted::Judged(_) if judged.is_empty() => None,
                Wanted::Judged(metric) => {
                    let hits = lists.get(query).map(Vec::as_slice).unwrap_or_default();
                    let ranked = hits.iter().map(|hit| judged.get(&hit.row).copied().unwrap_or(0));
                    Some(metric.value(&GradedRanking::new(ranked, judged.values().copied())))
                }
                // Where one question of the set has no accepted answers, accuracy is not defined for the set.
                Wanted::Accuracy(cutoff) => {
                    let first = first_hits.get(query)?;
                    Some(f64::from(u8::from(first.is_some_and(|rank| rank < *cutoff))))
                }
            })
            .collect();
        if let Some(values) = values {
            figures.means.insert(name.clone(), values.iter().sum::<f64>() / values.len().max(1) as f64);
            figures.values.insert(name.clone(), values);
        }
    }
    figures
}

/// For every question with accepted answers, the rank (from 0) of the first passage that holds one.
fn first_answers(
    bench: &Workbench<'_>,
    queries: &Table,
    passages: &Table,
    lists: &BTreeMap<u64, Vec<Hit>>,
    cutoff: usize,
) -> Result<HashMap<u64, Option<usize>>, TaskError> {
    let accepted = answers(bench, queries)?;
    let mut asked = HashMap::<u64, Vec<(u64, usize)>>::new();
    let mut first = HashMap::new();
    for query in accepted.keys() {
        first.insert(*query, None);
        for (rank, hit) in lists.get(query).into_iter().flatten().take(cutoff).enumerate() {
            asked.entry(hit.row).or_default().push((*query, rank));
        }
    }
    for shard in 0..passages.shards {
        bench.go_on()?;
        let shard = bench.passages(passages, shard)?;
        for (row, text) in (shard.first_row..).zip(&shard.texts) {
            let Some(places) = asked.get(&row) else { continue };
            let text = AnswerText::new(text);
            for (query, rank) in places {
                let best: &mut Option<usize> = first.get_mut(query).expect("every asked question is listed");
                if best.is_none_or(|best| rank < &best) && text.has_any(&accepted[query]) {
                    *best = Some(*rank);
                }
            }
        }
    }
    Ok(first)
}
