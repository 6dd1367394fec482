//! Who trains together: generations, one by one.

use crate::cluster::{Attempt, Cluster, DETECTION_MS, worker};
use crate::sample;
use retort_common::checkpoint::{Lineage, Origin, Place};
use retort_common::ids::JobId;
use retort_common::metrics::{StepPoint, StepReport, StepTiming};
use retort_common::task::Task;
use retort_common::view::JobState;
use retort_coordinator::scheduler::{Fact, Input, Outcome, Refusal, metrics, view};

/// A job whose first training, of four microbatches, is at work on these workers.
fn training(names: &[&str]) -> (Cluster, JobId) {
    let mut cluster = Cluster::with_exchange(names);
    let job = cluster.submit("j", sample::full("j", 1));
    cluster.work_until_training();
    cluster.get_ready();
    (cluster, job)
}

#[track_caller]
fn check_cohort(cluster: &Cluster, expected: &[(&str, u32)]) -> Attempt {
    let (attempt, members) = cluster.cohort().expect("a training is at work");
    let members: Vec<_> = members.iter().map(|(name, share)| (name.as_str(), *share)).collect();
    assert_eq!(members, expected);
    attempt
}

/// The job ends well from here, and its journal gives the state.
fn check_end(mut cluster: Cluster, job: &JobId) {
    cluster.check_replay();
    cluster.work();
    assert_eq!(cluster.outcome(job), Some(Outcome::Succeeded), "{}", cluster.reason(job));
    cluster.check_replay();
}

#[test]
fn a_training_begins_on_one_worker_and_takes_in_the_idle_ones_when_they_are_ready() {
    let mut cluster = Cluster::with_exchange(&["w1", "w2", "w3"]);
    let job = cluster.submit("j", sample::full("j", 1));
    cluster.work_until_training();
    let (first, members) = cluster.cohort().unwrap();
    assert_eq!(members.len(), 1, "it does not wait for the others");
    cluster.get_ready();
    let lead = members[0].0.as_str();
    let others: Vec<_> = ["w1", "w2", "w3"].into_iter().filter(|name| *name != lead).collect();
    let now = check_cohort(&cluster, &[(lead, 2), (others[0], 1), (others[1], 1)]);
    assert!(now.0 == first.0 && now.1 > first.1);
    assert_eq!(cluster.first(others[0]), Some(now), "it is told of its generation");
    check_end(cluster, &job);
}

#[test]
fn a_cohort_has_no_more_members_than_microbatches() {
    let (cluster, job) = training(&["w1", "w2", "w3", "w4", "w5", "w6"]);
    let (_, members) = cluster.cohort().unwrap();
    assert_eq!(members.iter().map(|(_, share)| *share).collect::<Vec<_>>(), [1, 1, 1, 1]);
    check_end(cluster, &job);
}

#[test]
fn a_lost_member_is_left_out_at_once() {
    let (mut cluster, job) = training(&["w1", "w2", "w3"]);
    let before = cluster.cohort().unwrap().0;
    cluster.kill("w2");
    let now = check_cohort(&cluster, &[("w1", 2), ("w3", 2)]);
    assert_eq!((now.0, now.1.0), (before.0, before.1.0 + 1));
    cluster.hello("w2", "f1");
    check_cohort(&cluster, &[("w1", 2), ("w3", 2)]);
    cluster.get_ready();
    check_cohort(&cluster, &[("w1", 2), ("w3", 1), ("w2", 1)]);
    check_end(cluster, &job);
}

#[test]
fn a_lost_first_member_is_followed_by_the_next() {
    let (mut cluster, job) = training(&["w1", "w2"]);
    cluster.kill("w1");
    let now = check_cohort(&cluster, &[("w2", 4)]);
    assert_eq!(cluster.first("w2"), Some(now));
    check_end(cluster, &job);
}

#[test]
fn the_last_member_may_come_back() {
    let (mut cluster, job) = training(&["w1", "w2"]);
    cluster.kill("w2");
    let attempt = check_cohort(&cluster, &[("w1", 4)]);
    cluster.gone("w1");
    cluster.pass(DETECTION_MS / 2, &[]);
    cluster.hello("w1", "f1");
    cluster.pass(3 * DETECTION_MS, &[]);
    assert_eq!(check_cohort(&cluster, &[("w1", 4)]), attempt);
    check_end(cluster, &job);
}

#[test]
fn all_members_lost_means_another_try() {
    let (mut cluster, job) = training(&["w1", "w2"]);
    let before = cluster.cohort().unwrap().0;
    cluster.kill("w1");
    cluster.kill("w2");
    cluster.pass(2 * DETECTION_MS, &[]);
    assert_eq!(cluster.cohort(), None);
    cluster.hello("w3", "f1");
    let now = check_cohort(&cluster, &[("w3", 4)]);
    assert!(now.1 > before.1);
    check_end(cluster, &job);
}

#[test]
fn a_silent_member_is_left_out_after_failure_detection() {
    let (mut cluster, job) = training(&["w1", "w2", "w3"]);
    cluster.pass(DETECTION_MS + DETECTION_MS / 5 + 1, &["w3"]);
    check_cohort(&cluster, &[("w1", 2), ("w2", 2)]);
    check_end(cluster, &job);
}

#[test]
fn any_member_may_say_that_the_task_is_done() {
    let (mut cluster, job) = training(&["w1", "w2", "w3"]);
    let attempt = cluster.cohort().unwrap().0;
    let stops = cluster.stops.len();
    cluster.finish("w2", attempt);
    assert!(cluster.state.tasks[&attempt.0].is_done());
    let stopped: Vec<_> = cluster.stops[stops..].iter().map(|(worker, ..)| worker.as_str()).collect();
    assert_eq!(stopped, ["w1", "w3"]);
    check_end(cluster, &job);
}

#[test]
fn a_member_that_fails_leaves_and_the_others_go_on() {
    let (mut cluster, job) = training(&["w1", "w2", "w3"]);
    let attempt = cluster.cohort().unwrap().0;
    cluster.fail("w2", attempt, "disk full", true);
    check_cohort(&cluster, &[("w1", 2), ("w3", 2)]);
    cluster.get_ready();
    check_cohort(&cluster, &[("w1", 2), ("w3", 2)]);
    check_end(cluster, &job);
}

#[test]
fn a_bad_input_fails_the_job_and_stops_every_member() {
    let (mut cluster, job) = training(&["w1", "w2", "w3"]);
    let attempt = cluster.cohort().unwrap().0;
    let stops = cluster.stops.len();
    cluster.fail("w2", attempt, "row 7 is torn", false);
    assert_eq!(cluster.outcome(&job), Some(Outcome::Failed));
    let stopped: Vec<_> = cluster.stops[stops..].iter().map(|(worker, ..)| worker.as_str()).collect();
    assert_eq!(stopped, ["w1", "w3"]);
}

#[test]
fn broken_edges_are_tried_again_once_and_then_cost_the_worse_end_its_place() {
    let (mut cluster, job) = training(&["w1", "w2", "w3"]);
    let first = cluster.cohort().unwrap().0;
    cluster.trouble("w1", first, &["w3"], false);
    cluster.pass(DETECTION_MS / 5, &[]);
    let second = check_cohort(&cluster, &[("w1", 2), ("w2", 1), ("w3", 1)]);
    assert!(second.1 > first.1, "connections do break: the same members again");
    cluster.trouble("w1", second, &["w3"], false);
    cluster.trouble("w3", second, &["w1"], false);
    cluster.pass(2 * DETECTION_MS, &[]);
    check_cohort(&cluster, &[("w1", 2), ("w2", 2)]);
    // Not again with those it cannot reach, until that is long ago.
    cluster.get_ready();
    check_cohort(&cluster, &[("w1", 2), ("w2", 2)]);
    cluster.pass(70_000, &[]);
    cluster.hello("w4", "f1");
    cluster.get_ready();
    assert_eq!(cluster.cohort().unwrap().1.len(), 4);
    check_end(cluster, &job);
}

#[test]
fn a_worker_that_dies_again_and_again_may_come_back_each_time() {
    let (mut cluster, job) = training(&["w1", "w2"]);
    for _ in 0..4 {
        let (attempt, members) = cluster.cohort().unwrap();
        assert_eq!(members.len(), 2, "it is a member again");
        // Its peer notices first, and complains in each generation.
        let (survivor, victim) = (members[0].0.clone(), members[1].0.clone());
        cluster.trouble(&survivor, attempt, &[&victim], false);
        cluster.pass(DETECTION_MS / 5, &[]);
        let (attempt, _) = cluster.cohort().unwrap();
        cluster.trouble(&survivor, attempt, &[&victim], false);
        cluster.kill(&victim);
        assert_eq!(cluster.cohort().unwrap().1.len(), 1);
        cluster.hello(&victim, "f1");
        cluster.get_ready();
    }
    check_end(cluster, &job);
}

#[test]
fn the_end_with_more_bad_edges_goes() {
    let (mut cluster, job) = training(&["w1", "w2", "w3", "w4"]);
    for _ in 0..2 {
        let attempt = cluster.cohort().unwrap().0;
        cluster.trouble("w1", attempt, &["w2"], false);
        cluster.trouble("w4", attempt, &["w2"], false);
        cluster.trouble("w2", attempt, &["w1"], false);
        cluster.pass(2 * DETECTION_MS, &[]);
    }
    check_cohort(&cluster, &[("w1", 2), ("w3", 1), ("w4", 1)]);
    check_end(cluster, &job);
}

#[test]
fn whom_most_others_contradict_goes_into_quarantine() {
    let (mut cluster, job) = training(&["w1", "w2", "w3"]);
    let attempt = cluster.cohort().unwrap().0;
    cluster.trouble("w1", attempt, &["w3"], true);
    cluster.trouble("w3", attempt, &["w1", "w2"], true);
    cluster.pass(DETECTION_MS / 5, &[]);
    check_cohort(&cluster, &[("w1", 2), ("w2", 1), ("w3", 1)]);
    cluster.trouble("w2", attempt, &["w3"], true);
    cluster.pass(DETECTION_MS / 5, &[]);
    check_cohort(&cluster, &[("w1", 2), ("w2", 2)]);
    assert!(cluster.state.workers[&worker("w3")].quarantined.is_some());
    assert!(cluster.logs.iter().any(|line| line.contains("w3 computes other bits")));
    check_end(cluster, &job);
}

#[test]
fn two_that_contradict_each_other_try_again_and_then_fail_the_job() {
    let (mut cluster, job) = training(&["w1", "w2"]);
    for _ in 0..20 {
        let Some((attempt, _)) = cluster.cohort() else { break };
        cluster.trouble("w1", attempt, &["w2"], true);
        cluster.trouble("w2", attempt, &["w1"], true);
        cluster.pass(2 * DETECTION_MS, &[]);
    }
    assert_eq!(cluster.outcome(&job), Some(Outcome::Failed));
    assert!(cluster.reason(&job).contains("different bits"), "{}", cluster.reason(&job));
}

#[test]
fn deals_follow_measured_speed() {
    let (mut cluster, job) = training(&["w1", "w2"]);
    let attempt = cluster.cohort().unwrap().0;
    cluster.measure("w1", attempt, 1, 100, false);
    cluster.measure("w2", attempt, 1, 390, false);
    cluster.pass(1_000, &[]);
    assert_eq!(check_cohort(&cluster, &[("w1", 2), ("w2", 2)]), attempt, "not while the generation is young");
    cluster.pass(6_000, &[]);
    let now = check_cohort(&cluster, &[("w1", 3), ("w2", 1)]);
    cluster.pass(60_000, &[]);
    assert_eq!(check_cohort(&cluster, &[("w1", 3), ("w2", 1)]), now, "and not again for the same figures");
    check_end(cluster, &job);
}

#[test]
fn a_member_that_stalls_leaves() {
    let (mut cluster, job) = training(&["w1", "w2", "w3"]);
    let limit_ms = cluster.state.stall_limit_ms;
    let attempt = cluster.cohort().unwrap().0;
    for name in ["w1", "w2", "w3"] {
        cluster.measure(name, attempt, 1, 100, name != "w2");
    }
    cluster.pass(limit_ms - 10_000, &[]);
    assert_eq!(cluster.cohort().unwrap().0, attempt);
    cluster.pass(20_000, &[]);
    check_cohort(&cluster, &[("w1", 2), ("w3", 2)]);
    check_end(cluster, &job);
}

#[test]
fn other_work_gets_workers_back_but_for_half() {
    let (mut cluster, job) = training(&["w1", "w2", "w3", "w4"]);
    assert_eq!(cluster.cohort().unwrap().1.len(), 4);
    let other = cluster.submit("k", sample::small("other"));
    let members = cluster.cohort().unwrap().1;
    assert!(members.len() < 4 && members.len() >= 2, "{members:?}");
    // What was lent has to end its part first.
    let lent =
        ["w1", "w2", "w3", "w4"].into_iter().find(|name| members.iter().all(|(known, _)| known != name));
    let (name, attempt) = (lent.unwrap(), cluster.first(lent.unwrap()).unwrap());
    cluster.fail(name, attempt, "stopped on request", true);
    assert_ne!(cluster.first(name), Some(attempt));
    assert_eq!(view::job(&cluster.state, &other, 0).unwrap().state, JobState::Running);
    cluster.work();
    assert_eq!(cluster.outcome(&other), Some(Outcome::Succeeded));
    check_end(cluster, &job);
}

#[test]
fn a_restarted_coordinator_takes_up_the_generation() {
    let (mut cluster, job) = training(&["w1", "w2", "w3"]);
    let attempt = cluster.cohort().unwrap().0;
    cluster.restart();
    cluster.hello("w2", "f1");
    cluster.hello("w3", "f1");
    cluster.pass(DETECTION_MS / 2, &[]);
    assert_eq!(cluster.cohort().unwrap().0, attempt, "the first member may still come");
    cluster.hello("w1", "f1");
    cluster.pass(4 * DETECTION_MS, &[]);
    assert_eq!(check_cohort(&cluster, &[("w1", 2), ("w2", 1), ("w3", 1)]), attempt);
    cluster.restart();
    cluster.hello("w2", "f1");
    cluster.pass(4 * DETECTION_MS, &[]);
    check_cohort(&cluster, &[("w2", 4)]);
    check_end(cluster, &job);
}

#[test]
fn a_member_that_missed_its_generation_is_told_again() {
    let (mut cluster, job) = training(&["w1", "w2", "w3"]);
    cluster.gone("w3");
    let before = cluster.cohort().unwrap().0;
    // It trains on, knows nothing of the generation without it, and is told to stop.
    cluster.hello("w3", "f1");
    assert!(cluster.stops.iter().any(|(name, (task, _), _)| name == &worker("w3") && *task == before.0));
    let stale = cluster.first("w3").unwrap();
    cluster.fail("w3", stale, "stopped on request", true);
    cluster.get_ready();
    check_cohort(&cluster, &[("w1", 2), ("w2", 1), ("w3", 1)]);
    // A session that is replaced before a command went through: the same generation again.
    let now = cluster.cohort().unwrap().0;
    let hand = cluster.hands.get_mut(&worker("w2")).unwrap();
    let task = hand.remove(&now).unwrap();
    hand.insert((now.0, before.1), task);
    cluster.hello("w2", "f1");
    assert_eq!(cluster.first("w2"), Some(now));
    check_end(cluster, &job);
}

#[test]
fn cancelling_stops_members_and_those_that_stand_by() {
    let mut cluster = Cluster::with_exchange(&["w1", "w2", "w3"]);
    let job = cluster.submit("j", sample::full("j", 1));
    cluster.work_until_training();
    cluster.cancel(&job, false);
    let stopped: std::collections::BTreeSet<_> =
        cluster.stops.iter().map(|(worker, ..)| worker.as_str()).collect();
    assert_eq!(stopped.len(), 3);
    assert!(cluster.state.running.is_empty());
    let facts = cluster.journal.iter().filter(|fact| matches!(fact, Fact::Withdrawn { .. })).count();
    assert_eq!(facts, 1);
}

#[test]
fn a_paused_job_gets_no_work_until_it_is_resumed() {
    let (mut cluster, job) = training(&["w1", "w2"]);
    let pause = |cluster: &mut Cluster, resume| match resume {
        true => cluster.resume(&job, &[], None),
        false => cluster.feed(Input::Pause { job: job.clone() }).unwrap(),
    };
    assert!(matches!(pause(&mut cluster, true), Err(Refusal::NotPaused { .. })));
    let stops = cluster.stops.len();
    pause(&mut cluster, false).unwrap();
    // Without force: the first member leaves a checkpoint.
    let stopped: Vec<_> =
        cluster.stops[stops..].iter().map(|(worker, _, force)| (worker.as_str(), *force)).collect();
    assert_eq!(stopped, [("w1", false), ("w2", false)]);
    assert_eq!(view::job(&cluster.state, &job, 0).unwrap().state, JobState::Paused);
    // Until it has let go of its task, a worker may write a checkpoint: it is not idle.
    let tasks = |cluster: &Cluster| {
        view::workers(&cluster.state).into_iter().map(|worker| worker.task).collect::<Vec<_>>()
    };
    assert!(tasks(&cluster).iter().all(|task| task.starts_with("j/train ") && task.ends_with(", stopping")));
    cluster.end_stopped();
    assert_eq!(tasks(&cluster), ["", ""]);
    cluster.pass(10_000, &[]);
    assert!(cluster.state.running.is_empty());
    assert!(pause(&mut cluster, false).is_ok(), "pausing twice is pausing");
    // Others are not held up, even where they want the same task.
    let other = cluster.submit("k", sample::full("j", 1));
    cluster.work();
    assert_eq!(cluster.outcome(&other), Some(Outcome::Succeeded));
    assert_eq!(cluster.outcome(&job), None);
    cluster.restart();
    assert_eq!(view::job(&cluster.state, &job, 0).unwrap().state, JobState::Paused);
    cluster.hello("w1", "f1");
    pause(&mut cluster, true).unwrap();
    cluster.work();
    assert!(matches!(pause(&mut cluster, false), Err(Refusal::Ended { .. })));
    check_end(cluster, &job);
}

fn told(step: u64, loss: f64) -> StepReport {
    let terms = vec![("kl".to_owned(), loss)];
    let point = StepPoint { step, loss, terms, learning_rate: 0.1, gradient_norm: 1.0 };
    let timing = StepTiming { microbatches: 2, step_us: 1000, waiting_us: 100, exchange_us: 50 };
    StepReport { step, point: Some(point), timing: Some(timing) }
}

/// The steps that clients see, with their losses and who has told how long it took.
fn shown(cluster: &Cluster, job: &JobId) -> Vec<(u64, f64, usize)> {
    let trainings = metrics::trainings(&cluster.state, job);
    let training =
        trainings.iter().find(|one| cluster.state.metrics.contains_key(&one.artifact.task)).unwrap();
    let steps = metrics::steps(&cluster.state, u64::MAX, training, "l", training.first, 100);
    let of = |(step, record): (u64, metrics::StepRecord)| {
        (step, record.point.unwrap().0.loss, record.timings.len())
    };
    steps.into_iter().map(of).collect()
}

#[test]
fn steps_are_kept_once_whoever_tells_them() {
    let (mut cluster, job) = training(&["w1", "w2"]);
    cluster.get_ready();
    let (attempt, _) = cluster.cohort().unwrap();
    cluster.tell("w1", attempt, "l", vec![told(1, 0.5), told(2, 0.25)]);
    cluster.tell("w2", attempt, "l", vec![StepReport { point: None, ..told(1, 0.0) }]);
    // Again, as after a new session; and a step too far, which has to wait for the one before it.
    cluster.tell("w1", attempt, "l", vec![told(1, 0.5), told(4, 0.1)]);
    assert_eq!(shown(&cluster, &job), [(1, 0.5, 2), (2, 0.25, 1)]);
    cluster.tell("w1", attempt, "l", vec![told(3, 0.125)]);
    assert_eq!(shown(&cluster, &job).len(), 4);
    assert_eq!(cluster.outcome(&job), None);
}

#[test]
fn a_training_that_students_share_shows_under_each() {
    let mut spec = sample::full("j", 1);
    let mut twin = spec.student[0].clone();
    twin.name = "twin".to_owned();
    spec.student.insert(1, twin);
    let mut cluster = Cluster::with_exchange(&["w1"]);
    let job = cluster.submit("k", spec);
    cluster.work_until_training();
    let shown = metrics::trainings(&cluster.state, &job);
    let of = |name: &str| shown.iter().find(|one| one.student == name && one.phase == 1).unwrap();
    assert_eq!(of("head").artifact, of("twin").artifact);
}

#[test]
fn a_step_that_comes_again_with_other_figures_fails_the_job_as_diverged() {
    let (mut cluster, job) = training(&["w1", "w2"]);
    cluster.get_ready();
    let (attempt, _) = cluster.cohort().unwrap();
    cluster.tell("w1", attempt, "l", vec![told(1, 0.5)]);
    // Another history of the training is another matter.
    cluster.tell("w2", attempt, "m", vec![told(1, 0.75)]);
    assert_eq!(cluster.outcome(&job), None);
    cluster.tell("w2", attempt, "l", vec![told(1, 0.75)]);
    assert_eq!(cluster.outcome(&job), Some(Outcome::Failed));
    let reason = cluster.reason(&job);
    for word in ["DIVERGED", "step 1 ", "loss 0.75 for 0.5", "worker w2", "worker w1"] {
        assert!(reason.contains(word), "no {word:?} in {reason}");
    }
}

#[test]
fn a_training_that_another_job_takes_over_goes_on_where_it_is() {
    let (mut cluster, job) = training(&["w1"]);
    let (task, _) = cluster.cohort().unwrap().0;
    assert_eq!(cluster.places[&task], Place { job: job.clone(), lineage: Lineage::FIRST });
    cluster.cancel(&job, false);
    cluster.end_stopped();
    let other = cluster.submit("k", sample::full("j", 1));
    cluster.work_until_training();
    assert_eq!(cluster.places[&task].job, job, "its checkpoints lie where they lay");
    assert_eq!(view::places(&cluster.state, &other)[&task].job, job);
    check_end(cluster, &other);
}

#[test]
fn a_paused_training_branches_off_into_another_lineage() {
    let (mut cluster, job) = training(&["w1"]);
    let (task, _) = cluster.cohort().unwrap().0;
    let origin = Some(Origin { number: 1, step: 4 });
    let refused = |cluster: &mut Cluster| {
        let refusal = cluster.resume(&job, &[(task, origin)], None).unwrap_err();
        matches!(refusal, Refusal::NotPaused { .. } | Refusal::NoBranch { .. })
    };
    assert!(refused(&mut cluster), "it is in work");
    cluster.feed(Input::Pause { job: job.clone() });
    cluster.end_stopped();
    // Another job takes it over: its state is in a worker's memory.
    let other = cluster.submit("k", sample::full("j", 1));
    cluster.work_until_training();
    assert!(refused(&mut cluster), "it is in work for another job");
    cluster.cancel(&other, false);
    cluster.end_stopped();
    cluster.resume(&job, &[(task, origin)], None).unwrap();
    cluster.work_until_training();
    assert_eq!(cluster.places[&task].lineage, Lineage { number: 2, origin });
    cluster.restart();
    assert_eq!(cluster.state.tasks[&task].lineage, Lineage { number: 2, origin });
    cluster.check_replay();
}

#[test]
fn a_diverged_training_begins_anew_for_the_next_job() {
    let (mut cluster, job) = training(&["w1", "w2"]);
    cluster.get_ready();
    let (attempt, _) = cluster.cohort().unwrap();
    cluster.tell("w1", attempt, "l", vec![told(1, 0.5)]);
    cluster.tell("w2", attempt, "l", vec![told(1, 0.75)]);
    assert_eq!(cluster.outcome(&job), Some(Outcome::Failed));
    cluster.end_stopped();
    let other = cluster.submit("k", sample::full("j", 1));
    cluster.work_until_training();
    assert_eq!(cluster.places[&attempt.0].lineage, Lineage { number: 2, origin: None });
    check_end(cluster, &other);
}

#[test]
fn a_resumed_job_may_change_what_changes_no_result_and_nothing_else() {
    let (mut cluster, job) = training(&["w1"]);
    let (task, _) = cluster.cohort().unwrap().0;
    cluster.feed(Input::Pause { job: job.clone() });
    cluster.end_stopped();
    let mut spec = sample::full("another-name", 1);
    spec.student[0].phase[0].keep_last = 7;
    spec.student[0].phase[0].checkpoint_every = 3;
    let mut other = spec.clone();
    (other.seed, other.student[0].phase[0].batch) = (9, 8);
    let refusal = cluster.resume(&job, &[], Some(other)).unwrap_err().to_string();
    for word in ["seed (9, was 1)", "student.0.phase.0.batch (8, was 4)", "another result"] {
        assert!(refusal.contains(word), "no {word:?} in {refusal}");
    }
    assert!(!refusal.contains("keep_last") && !refusal.contains("name"), "{refusal}");
    cluster.resume(&job, &[], Some(spec)).unwrap();
    cluster.work_until_training();
    let Some(Task::Train { phase, .. }) = cluster.hands[&worker("w1")].values().next() else {
        panic!("no training")
    };
    assert_eq!((phase.keep_last, phase.checkpoint_every), (7, 3));
    assert_eq!(cluster.first("w1").unwrap().0, task, "it is the same task");
    check_end(cluster, &job);
}
