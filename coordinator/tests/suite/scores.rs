//! What a cross-encoder scores: candidates that are denoised, and all pairs that a phase learns from.

use crate::plan::{ids, last_plan, whole_plan};
use crate::sample;
use retort_common::spec::{JobSpec, LossKind, LossScope};
use retort_common::task::{ArtifactId, PairTables, ScoredPairs, Signal, Stage, Task};
use retort_coordinator::scheduler::plan::PlanError;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

/// A job whose negatives a cross-encoder has looked at.
fn denoised(below: f64) -> JobSpec {
    let mut spec = sample::full("j", 1);
    spec.cross_encoder = Some(serde_json::from_value(json!({ "model": "cross" })).unwrap());
    spec.mining.denoise = Some(serde_json::from_value(json!({ "below": below })).unwrap());
    spec.mining.per_query = 5;
    let phase = &mut spec.student[0].phase[1];
    (phase.steps, phase.epochs, phase.refresh_every) = (Some(10), None, Some(3));
    retort_common::spec::check(&spec).unwrap();
    spec
}

#[test]
fn candidates_are_mined_scored_by_shard_and_chosen_from() {
    let tasks = last_plan(&denoised(0.2));
    let made: BTreeMap<_, _> = tasks.iter().map(|task| (task.output(), task)).collect();
    let Some(Task::Report { negatives, .. }) = tasks.last() else { panic!("no report") };
    assert_eq!(negatives.len(), 3);
    for (name, artifact) in negatives {
        // The first ones and those of each refresh alike.
        let Task::Denoise { candidates, scores, per_query: 5, below: 0.2, .. } = made[artifact] else {
            panic!("{name} are not denoised")
        };
        let Task::Mine { mining, .. } = made[candidates] else { panic!("{name} come from nothing") };
        assert_eq!((mining.per_query, &mining.denoise), (20, &None));
        // 60 pairs, and three shards of 4 rows.
        let place = |scores: &ArtifactId| match made[scores] {
            Task::Score {
                candidates: ScoredPairs::Mined(of),
                shard,
                share,
                shares: 5,
                max_tokens: 256,
                ..
            } if of == candidates => (*shard, *share),
            other => panic!("{other:?}"),
        };
        let all = (0..sample::SHARDS).flat_map(|shard| (0..5).map(move |share| (shard, share)));
        assert_eq!(scores.iter().map(place).collect::<Vec<_>>(), all.collect::<Vec<_>>());
    }
    // Every training row is drawn from what was looked at.
    for task in &tasks {
        let Task::Order { negatives: Some(negatives), .. } = task else { continue };
        assert!(matches!(made[negatives], Task::Denoise { .. }));
    }
    assert!(tasks.iter().any(|task| task.stage() == Stage::Score));
    assert!(!last_plan(&sample::full("j", 1)).iter().any(|task| task.stage() == Stage::Score));
}

#[test]
fn another_bound_scores_no_pair_again_and_another_length_mines_none() {
    let mined =
        |tasks: &[Task]| ids(tasks, |task| matches!(task, Task::Mine { runs, .. } if runs.len() == 2));
    // Pairs that a refreshed student found depend on what it was trained with.
    let scored = |tasks: &[Task]| {
        let first = mined(tasks);
        ids(tasks, |task| match task {
            Task::Score { candidates: ScoredPairs::Mined(of), .. } => first.contains(&of.task),
            _ => false,
        })
    };
    let chosen = |tasks: &[Task]| ids(tasks, |task| matches!(task, Task::Denoise { .. }));
    let (one, two) = (last_plan(&denoised(0.2)), last_plan(&denoised(0.3)));
    assert_eq!((mined(&one), scored(&one)), (mined(&two), scored(&two)));
    assert_eq!((mined(&one).len(), scored(&one).len()), (1, 15));
    assert!(chosen(&one).is_disjoint(&chosen(&two)));
    let mut longer = denoised(0.2);
    longer.cross_encoder.as_mut().unwrap().max_tokens = 128;
    let longer = last_plan(&longer);
    assert_eq!(mined(&one), mined(&longer));
    assert!(scored(&one).is_disjoint(&scored(&longer)));
}

/// A job whose second phase learns from scores of pairs; from a cross-encoder's in parts with fresh negatives.
fn learning_from(signal: &str, denoised: bool) -> JobSpec {
    let mut spec = self::denoised(0.2);
    if !denoised {
        spec.mining.denoise = None;
    }
    let phase = &mut spec.student[0].phase[1];
    phase.signal = signal.to_owned();
    phase.refresh_every = phase.refresh_every.filter(|_| signal == "cross-encoder");
    (phase.loss[0].kind, phase.loss[0].scope) = (LossKind::Kl, Some(LossScope::Listed));
    retort_common::spec::check(&spec).unwrap();
    spec
}

/// The trainings that learn from scores of pairs: the rows' negatives and the tables of each.
fn trainings(tasks: &[Task]) -> Vec<(ArtifactId, Vec<ArtifactId>)> {
    let made: BTreeMap<_, _> = tasks.iter().map(|task| (task.output(), task)).collect();
    let training = |task: &Task| match task {
        Task::Train { signal: Signal::Scores(PairTables { scores }), order, .. } => {
            let Task::Order { negatives: Some(negatives), .. } = made[order] else { panic!("no negatives") };
            Some((negatives.clone(), scores.clone()))
        }
        _ => None,
    };
    tasks.iter().filter_map(training).collect()
}

#[test]
fn a_phase_learns_from_a_cross_encoders_scores_of_positives_and_of_its_own_negatives() {
    for denoised in [false, true] {
        let tasks = last_plan(&learning_from("cross-encoder", denoised));
        let made: BTreeMap<_, _> = tasks.iter().map(|task| (task.output(), task)).collect();
        let trainings = trainings(&tasks);
        assert_eq!(trainings.len(), 4);
        let (mut positives, mut candidates) = (BTreeSet::new(), BTreeSet::new());
        for (negatives, scores) in &trainings {
            // What the negatives were chosen from has been scored already where they are denoised.
            let scored_from = match made[negatives] {
                Task::Denoise { candidates, .. } if denoised => candidates,
                Task::Mine { .. } if !denoised => negatives,
                other => panic!("{other:?}"),
            };
            let mut own = 0;
            for artifact in scores {
                match made[artifact] {
                    Task::Score { candidates: ScoredPairs::Positives(sets), .. } if sets == &["train"] => {
                        positives.insert(artifact);
                    }
                    Task::Score { candidates: ScoredPairs::Mined(of), .. } if of == scored_from => {
                        candidates.insert(artifact);
                        own += 1;
                    }
                    other => panic!("{other:?}"),
                }
            }
            // 20 or 5 candidates of three questions, and three shards of 4 rows.
            assert_eq!(own, if denoised { 15 } else { 6 });
            // Positives are scored once for all parts. Of a pair that stands twice, theirs would count.
            assert_eq!(scores.len(), own + 3);
            assert!(scores[..3].iter().all(|artifact| positives.contains(artifact)));
        }
        assert_eq!(positives.len(), 3);
        // The first negatives, and those of two refreshes: nothing else is scored.
        let all = ids(&tasks, |task| task.stage() == Stage::Score);
        assert_eq!(all.len(), positives.len() + candidates.len());
        assert_eq!(candidates.len(), 3 * if denoised { 15 } else { 6 });
        let orders = ids(&tasks, |task| matches!(task, Task::Order { given_scores: true, .. }));
        assert!(orders.is_empty());
    }
}

#[test]
fn given_scores_stand_beside_the_questions() {
    let mut spec = learning_from("given", false);
    spec.cross_encoder = None;
    let scores = |count: u64| {
        move |task: &Task| match task {
            Task::ShardQueries { .. } => json!({ "rows": 3, "shards": 1, "scores": count }),
            task => sample::meta(task),
        }
    };
    let tasks = whole_plan(&spec, "a", &scores(9)).unwrap().pop().unwrap().tasks;
    let queries = tasks.iter().find(|task| matches!(task, Task::ShardQueries { .. })).unwrap().output();
    let trainings = trainings(&tasks);
    assert_eq!(trainings.len(), 1);
    assert!(trainings.iter().all(|(_, scores)| *scores == [queries.clone()]));
    let counted = ids(&tasks, |task| matches!(task, Task::Order { given_scores: true, .. }));
    assert_eq!(counted.len(), 1);
    assert!(!tasks.iter().any(|task| task.stage() == Stage::Score));
    // The first plan that can know it says so.
    assert_eq!(whole_plan(&spec, "a", &scores(0)).unwrap_err(), PlanError::NoScores);
    let old = whole_plan(&spec, "a", &sample::meta);
    assert!(matches!(old, Err(PlanError::Meta { key: "scores", .. })));
}

#[test]
fn a_cross_encoder_whose_files_are_missing_is_an_error() {
    let spec = learning_from("cross-encoder", false);
    let mut without = spec.clone();
    without.cross_encoder = None;
    assert!(retort_common::spec::check(&without).unwrap_err().to_string().contains("[cross_encoder]"));
    assert_eq!(whole_plan(&without, "a", &sample::meta).unwrap_err(), PlanError::NoCrossEncoder);
}
