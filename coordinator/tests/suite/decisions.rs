//! Phases of which measurements decide where they end and which state they give.

use crate::cluster::Cluster;
use crate::sample;
use retort_common::ids::TaskId;
use retort_common::spec::JobSpec;
use retort_common::task::Task;
use retort_coordinator::scheduler::Outcome;
use serde_json::json;
use std::collections::BTreeSet;

/// The last step of the newest training that a task stands on.
fn newest_step(cluster: &Cluster, task: TaskId) -> u32 {
    let (mut open, mut newest) = (vec![task], 0);
    while let Some(next) = open.pop() {
        let record = &cluster.state.tasks[&next];
        if let Task::Train { span: Some(span), .. } = &record.task {
            newest = newest.max(span.end);
        }
        open.extend(&record.needs);
    }
    newest
}

/// What a cluster makes of a job whose student has these figures on dev after each four steps: the steps that were
/// trained, and the log.
fn decided(spec: &JobSpec, figures: &[f64], workers: &[&str]) -> (BTreeSet<u32>, Vec<String>, Cluster) {
    let mut cluster = Cluster::with(workers);
    let mut trained = BTreeSet::new();
    let job = cluster.submit("j", spec.clone());
    for _ in 0..10_000 {
        let work = cluster.hands.iter().find_map(|(worker, hand)| {
            hand.iter().next().map(|(attempt, task)| (worker.to_string(), *attempt, task.clone()))
        });
        let Some((worker, attempt, task)) = work else { break };
        let meta = match &task {
            Task::Train { span: Some(span), .. } => {
                trained.insert(span.end);
                None
            }
            Task::Evaluate { sets, metrics, .. } if sets == &["dev"] => {
                let figure = figures[newest_step(&cluster, attempt.0) as usize / 4 - 1];
                Some(json!({ "means": { "dev": { metrics[0].as_str(): figure } } }))
            }
            _ => None,
        };
        cluster.finish_with(&worker, attempt, meta);
        cluster.end_stopped();
    }
    assert_eq!(cluster.outcome(&job), Some(Outcome::Succeeded), "{}", cluster.reason(&job));
    let log = cluster.logs.clone();
    (trained, log, cluster)
}

fn evaluated(patience: Option<u32>) -> JobSpec {
    let mut spec = sample::full("j", 1);
    let phase = &mut spec.student[0].phase[1];
    (phase.steps, phase.epochs, phase.evaluate_every, phase.patience) = (Some(20), None, Some(4), patience);
    retort_common::spec::check(&spec).unwrap();
    spec
}

/// The last step of the student that is reported.
fn reported(cluster: &Cluster) -> u32 {
    let tasks = cluster.state.tasks.values().map(|record| &record.task);
    let rows = tasks.filter_map(|task| match task {
        Task::Report { rows, .. } => Some(rows),
        _ => None,
    });
    let export = rows.flatten().find(|row| row.name == "head").and_then(|row| row.export.as_ref()).unwrap();
    newest_step(cluster, export.task)
}

#[test]
fn the_best_evaluated_state_is_the_student() {
    let (trained, log, cluster) = decided(&evaluated(None), &[0.1, 0.4, 0.3, 0.4, 0.2], &["w1"]);
    assert_eq!(trained, [4, 8, 12, 16, 20].into());
    assert!(log.iter().any(|line| line.contains("head, phase 2: step 8 is the best of 5")), "{log:?}");
    assert_eq!(log.iter().filter(|line| line.contains("step 8 has mrr@10 0.4000")).count(), 1);
    assert_eq!(reported(&cluster), 8);
    cluster.check_replay();
}

#[test]
fn patience_ends_a_phase_early_and_what_ran_ahead_is_discarded() {
    for workers in [&["w1"][..], &["w1", "w2", "w3"]] {
        let (trained, log, cluster) = decided(&evaluated(Some(1)), &[0.3, 0.2, 0.9, 0.9, 0.9], workers);
        assert!(log.iter().any(|line| line.contains("the phase ends early, after step 8")), "{log:?}");
        assert!(trained.contains(&8) && !trained.contains(&20), "{trained:?}");
        assert_eq!(reported(&cluster), 4);
        cluster.check_replay();
    }
}

#[test]
fn a_figure_that_is_none_ends_the_job_by_name() {
    let mut cluster = Cluster::with(&["w1"]);
    let job = cluster.submit("j", evaluated(None));
    cluster.work();
    assert_eq!(cluster.outcome(&job), Some(Outcome::Failed));
    assert!(cluster.reason(&job).contains("mrr@10 is not defined on the dev sets"));
}
