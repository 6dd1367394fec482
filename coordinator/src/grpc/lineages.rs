//! From which states a paused job's trainings go on when their user names one.

use super::CallError;
use super::checkpoints::manifests;
use crate::scheduler::view::OpenTraining;
use retort_common::checkpoint::{self, Origin};
use retort_common::ids::{JobId, TaskId};
use retort_common::store::Store;
use std::collections::BTreeSet;
use std::str::FromStr;

/// Steps that a refusal names.
const MAX_NAMED: usize = 20;

/// A state as its user names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// After this step.
    Step(u64),
    /// The newest checkpoint.
    Latest,
    /// The best evaluated one.
    Best,
}

impl FromStr for Point {
    type Err = CallError;

    fn from_str(text: &str) -> Result<Self, CallError> {
        match text {
            "latest" => Ok(Self::Latest),
            "best" => Ok(Self::Best),
            _ => text.parse().map(Self::Step).map_err(|_| {
                CallError::invalid("from", format!("{text:?} is neither a step nor \"latest\" nor \"best\""))
            }),
        }
    }
}

/// What each of the open trainings that are concerned begins its next lineage with: a checkpoint, or its own beginning.
pub async fn branches(
    store: &Store,
    job: &JobId,
    from: Point,
    open: &[OpenTraining],
) -> Result<Vec<(TaskId, Option<Origin>)>, CallError> {
    let places = open.iter().map(|training| (training.task, training.place.clone())).collect();
    let all = manifests(store, job, &places).await?;
    let mut known = BTreeSet::new();
    let mut found = Vec::new();
    for training in open {
        let own = all.iter().filter_map(|(_, lineage, step)| {
            Some(Origin { number: checkpoint::number(lineage, training.task)?, step: *step })
        });
        let own: Vec<_> = own.collect();
        known.extend(own.iter().map(|origin| origin.step));
        if let Some(origin) = branch(training, from, &own) {
            found.push((training.task, origin));
        }
    }
    if !found.is_empty() {
        return Ok(found);
    }
    let steps: Vec<_> = known.iter().take(MAX_NAMED).map(ToString::to_string).collect();
    let there = if steps.is_empty() { "none".to_owned() } else { steps.join(", ") };
    Err(CallError::NoBranch(match from {
        Point::Step(step) => format!(
            "no training in work has a checkpoint of step {step}; of those in work there are: {there}. What is done \
             stays as it is"
        ),
        Point::Latest => "no training in work has a checkpoint; resume without --from".to_owned(),
        Point::Best => {
            "no training in work belongs to a phase of which a state was evaluated: give its phase \
                       `evaluate_every`, or name a step"
                .to_owned()
        }
    }))
}

/// Nothing where a training is not concerned.
fn branch(training: &OpenTraining, from: Point, own: &[Origin]) -> Option<Option<Origin>> {
    let newest = |origin: &&Origin| (origin.number, origin.step);
    match from {
        Point::Step(step) if step == training.first => Some(None),
        Point::Step(step) => {
            let at = own.iter().filter(|origin| origin.step == step);
            at.max_by_key(newest).copied().map(Some)
        }
        Point::Latest => own.iter().max_by_key(newest).copied().map(Some),
        // A phase is evaluated where its parts end: what comes after the best begins anew.
        Point::Best => training.best.map(|_| None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use retort_common::checkpoint::{Lineage, Place};
    use retort_common::ids::Digest;

    #[test]
    fn a_training_branches_off_where_it_is_told() {
        let origin = |number, step| Origin { number, step };
        let check = |best, from: &str, own: &[Origin], expected| {
            let place = Place { job: "j".parse().unwrap(), lineage: Lineage::FIRST };
            let task = TaskId(Digest::of(b"t"));
            let training = OpenTraining { task, place, first: 10, best };
            assert_eq!(branch(&training, from.parse().unwrap(), own), expected, "{from} {own:?}");
        };
        let own = [origin(1, 12), origin(1, 14), origin(2, 12)];
        check(None, "14", &own, Some(Some(origin(1, 14))));
        check(None, "12", &own, Some(Some(origin(2, 12))));
        check(None, "13", &own, None);
        check(None, "10", &own, Some(None));
        check(None, "latest", &own, Some(Some(origin(2, 12))));
        check(None, "latest", &[], None);
        check(None, "best", &own, None);
        check(Some(5), "best", &own, Some(None));
        assert!("newest".parse::<Point>().is_err());
    }
}
