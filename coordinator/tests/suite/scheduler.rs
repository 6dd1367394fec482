//! The scheduler's rules, one by one.

use crate::cluster::{Cluster, DETECTION_MS, worker};
use crate::sample;
use retort_common::view::JobState;
use retort_coordinator::scheduler::decide::{MAX_FAILURES, MAX_LOSSES};
use retort_coordinator::scheduler::state::TaskStatus;
use retort_coordinator::scheduler::view;
use retort_coordinator::scheduler::{Input, Outcome, Refusal, Reply};

#[test]
fn a_job_runs_to_its_end() {
    for workers in [&["w1"][..], &["w1", "w2", "w3"]] {
        let mut cluster = Cluster::with(workers);
        let job = cluster.submit("j", sample::full("j", 1));
        assert_eq!(view::job(&cluster.state, &job, 0).unwrap().state, JobState::Running);
        cluster.work();
        assert_eq!(cluster.outcome(&job), Some(Outcome::Succeeded), "{}", cluster.reason(&job));
        let view = view::job(&cluster.state, &job, 0).unwrap();
        assert!(
            view.stages.iter().all(|stage| stage.done == stage.tasks && stage.fraction == 1.0),
            "{view:?}"
        );
        assert_eq!(view.stages.len(), 9);
        assert_eq!(view.fingerprint, "f1");
        cluster.check_replay();
    }
}

#[test]
fn the_same_job_again_does_nothing_twice() {
    let mut cluster = Cluster::with(&["w1"]);
    cluster.submit("one", sample::full("j", 1));
    cluster.work();
    let runs = cluster.runs.len();
    let two = cluster.submit("two", sample::full("j", 1));
    cluster.work();
    // Only the report is of this job alone.
    assert_eq!(cluster.runs.len(), runs + 1);
    assert_eq!(cluster.outcome(&two), Some(Outcome::Succeeded));
    // Nor does a new cluster over the same store.
    let mut other = Cluster::with(&["w1"]);
    other.store = cluster.store.clone();
    let three = other.submit("three", sample::full("j", 1));
    other.work();
    assert_eq!((other.runs.len(), other.outcome(&three)), (1, Some(Outcome::Succeeded)));
    let view = view::job(&other.state, &three, 0).unwrap();
    assert!(
        view.stages.iter().filter(|stage| stage.name != "report").all(|stage| stage.cached == stage.tasks)
    );
}

#[test]
fn two_jobs_at_a_time_share_their_tasks() {
    let mut cluster = Cluster::with(&["w1", "w2"]);
    let (one, two) =
        (cluster.submit("one", sample::full("j", 1)), cluster.submit("two", sample::full("j", 1)));
    cluster.work();
    assert_eq!(
        (cluster.outcome(&one), cluster.outcome(&two)),
        (Some(Outcome::Succeeded), Some(Outcome::Succeeded))
    );
    let alone = cluster.state.jobs[&one].tasks.len();
    assert_eq!(cluster.runs.len(), alone + 1);
}

#[test]
fn a_request_is_accepted_once() {
    let mut cluster = Cluster::new();
    let submitted = |job: &str, created| Ok(Reply::Submitted { job: job.parse().unwrap(), created });
    assert_eq!(cluster.try_submit("a", "r", sample::small("j")), submitted("a", true));
    assert_eq!(cluster.try_submit("b", "r", sample::small("j")), submitted("a", false));
    let other = cluster.try_submit("c", "r", sample::small("other"));
    assert!(matches!(other, Err(Refusal::RequestReused { .. })), "{other:?}");
    cluster.restart();
    assert_eq!(cluster.try_submit("d", "r", sample::small("j")), submitted("a", false));
    assert_eq!(cluster.state.jobs.len(), 1);
}

#[test]
fn ids_may_be_cut_short_while_they_are_clear() {
    let mut cluster = Cluster::new();
    cluster.submit("run-1a", sample::small("j"));
    cluster.submit("run-1b", sample::small("j"));
    cluster.submit("run-1", sample::small("k"));
    let found = |text: &str| cluster.state.resolve(text).map(|id| id.to_string());
    assert_eq!(found("run-1a"), Ok("run-1a".into()));
    assert_eq!(found("run-1"), Ok("run-1".into()));
    assert!(matches!(found("run-"), Err(Refusal::Ambiguous { count: 3, .. })));
    assert!(matches!(found("x"), Err(Refusal::NotFound { .. })));
    assert!(matches!(found(""), Err(Refusal::NotFound { .. })));
}

#[test]
fn a_lost_attempt_is_dealt_again_after_its_time() {
    let mut cluster = Cluster::with(&["w1", "w2"]);
    cluster.submit("j", sample::small("j"));
    let attempt = cluster.first("w1").unwrap();
    cluster.kill("w1");
    cluster.pass(DETECTION_MS - 1_000, &[]);
    assert_eq!(cluster.first("w2"), None, "the worker may still come back");
    cluster.pass(1_000, &[]);
    let again = cluster.first("w2").unwrap();
    assert_eq!((again.0, again.1.0), (attempt.0, attempt.1.0 + 1));
}

#[test]
fn a_worker_that_comes_back_in_time_keeps_its_attempt() {
    let mut cluster = Cluster::with(&["w1", "w2"]);
    cluster.submit("j", sample::small("j"));
    let attempt = cluster.first("w1").unwrap();
    cluster.gone("w1");
    cluster.pass(DETECTION_MS / 2, &[]);
    cluster.hello("w1", "f1");
    cluster.pass(3 * DETECTION_MS, &[]);
    assert_eq!(cluster.runs.len(), 1);
    cluster.finish("w1", attempt);
    assert!(cluster.state.tasks[&attempt.0].is_done());
}

#[test]
fn a_worker_that_comes_back_without_its_attempt_gets_it_dealt_again_at_once() {
    let mut cluster = Cluster::with(&["w1"]);
    cluster.submit("j", sample::small("j"));
    let attempt = cluster.first("w1").unwrap();
    cluster.kill("w1");
    cluster.hello("w1", "f1");
    assert_eq!(cluster.first("w1").map(|again| again.1.0), Some(attempt.1.0 + 1));
}

#[test]
fn silence_ends_a_session_and_a_late_driver_does_not() {
    let mut cluster = Cluster::with(&["w1", "w2"]);
    cluster.submit("j", sample::small("j"));
    let attempt = cluster.first("w1").unwrap();
    // The driver stood still for longer than the failure detection: nobody could be heard.
    cluster.now_ms += 4 * DETECTION_MS;
    cluster.feed(Input::Tick { late_ms: 4 * DETECTION_MS });
    cluster.feed(Input::Tick { late_ms: 0 });
    assert!(cluster.state.workers[&worker("w1")].connected);
    cluster.pass(DETECTION_MS + 1_000, &["w1"]);
    assert!(!cluster.state.workers[&worker("w1")].connected);
    assert!(cluster.state.workers[&worker("w2")].connected);
    cluster.pass(DETECTION_MS, &[]);
    assert_eq!(cluster.first("w2").map(|again| again.0), Some(attempt.0));
}

#[test]
fn a_stale_result_changes_nothing_and_is_settled() {
    let mut cluster = Cluster::with(&["w1", "w2"]);
    cluster.submit("j", sample::small("j"));
    let attempt = cluster.first("w1").unwrap();
    cluster.gone("w1");
    cluster.pass(DETECTION_MS, &[]);
    let current = cluster.first("w2").unwrap();
    cluster.hello("w1", "f1");
    assert_eq!(cluster.stops, [(worker("w1"), attempt, true)]);
    let before = cluster.journal.len();
    cluster.fail("w1", attempt, "too late", false);
    assert_eq!(cluster.journal.len(), before);
    assert_eq!(cluster.settled, [(worker("w1"), attempt)]);
    assert!(cluster.state.tasks[&current.0].is_current(&worker("w2"), current.1));
    // Nor does one of an old session.
    let input = |session| Input::Failed {
        worker: worker("w2"),
        session,
        task: current.0,
        attempt: current.1,
        message: "old".into(),
        retryable: false,
    };
    cluster.feed(input(0));
    assert_eq!(cluster.journal.len(), before);
}

#[test]
fn a_restarted_coordinator_adopts_what_runs() {
    let mut cluster = Cluster::with(&["w1", "w2"]);
    let job = cluster.submit("j", sample::full("j", 1));
    let attempt = cluster.first("w1").unwrap();
    cluster.restart();
    cluster.hello("w2", "f1");
    cluster.pass(DETECTION_MS, &[]);
    cluster.hello("w1", "f1");
    cluster.pass(4 * DETECTION_MS, &[]);
    assert_eq!(cluster.runs.len(), 1, "nothing is dealt twice");
    cluster.finish("w1", attempt);
    cluster.work();
    assert_eq!(cluster.outcome(&job), Some(Outcome::Succeeded));
    cluster.check_replay();
}

#[test]
fn a_restarted_coordinator_deals_again_what_nobody_has() {
    let mut cluster = Cluster::with(&["w1"]);
    cluster.submit("j", sample::small("j"));
    let attempt = cluster.first("w1").unwrap();
    cluster.restart();
    cluster.hello("w2", "f1");
    cluster.pass(3 * DETECTION_MS, &[]);
    assert_eq!(cluster.first("w2").map(|again| (again.0, again.1.0)), Some((attempt.0, attempt.1.0 + 1)));
}

#[test]
fn bad_input_fails_its_job_and_says_where() {
    let mut cluster = Cluster::with(&["w1"]);
    let job = cluster.submit("j", sample::small("j"));
    let attempt = cluster.first("w1").unwrap();
    cluster.fail("w1", attempt, "corpus.jsonl:3: no _id", false);
    assert_eq!(cluster.outcome(&job), Some(Outcome::Failed));
    let reason = cluster.reason(&job);
    for part in ["shard", &format!("{:?}", attempt.0), "w1", "corpus.jsonl:3: no _id"] {
        assert!(reason.contains(part), "{part} is missing in {reason}");
    }
    // The user mends the file and submits again: the task is tried again.
    let again = cluster.submit("k", sample::small("j"));
    cluster.work();
    assert_eq!(cluster.outcome(&again), Some(Outcome::Succeeded));
    assert_eq!(cluster.outcome(&job), Some(Outcome::Failed));
}

#[test]
fn poison_is_given_up_after_few_tries_on_different_workers() {
    // Workers, tries until the job fails, workers that tried.
    for (names, tries, tried) in [(&["a"][..], 3, 1), (&["a", "b"], 3, 2), (&["a", "b", "c", "d", "e"], 3, 3)]
    {
        let mut cluster = Cluster::with(names);
        let job = cluster.submit("j", sample::small("j"));
        let mut who = std::collections::BTreeSet::new();
        let mut failures = 0;
        while cluster.outcome(&job).is_none() {
            let found = names.iter().find_map(|name| Some((*name, cluster.first(name)?)));
            let (name, attempt) = found.unwrap();
            who.insert(name);
            failures += 1;
            cluster.fail(name, attempt, "store is away", true);
            cluster.pass(30_000, &[]);
        }
        assert_eq!((failures, who.len()), (tries, tried), "{names:?}");
        assert!(failures <= MAX_FAILURES);
        assert!(cluster.reason(&job).contains("given up"), "{}", cluster.reason(&job));
    }
}

#[test]
fn a_failure_that_goes_away_is_forgotten() {
    let mut cluster = Cluster::with(&["a", "b"]);
    let job = cluster.submit("j", sample::small("j"));
    let attempt = cluster.first("a").unwrap();
    cluster.fail("a", attempt, "store is away", true);
    assert_eq!(cluster.first("b"), None, "a pause comes first");
    cluster.pass(1_000, &[]);
    assert!(cluster.first("b").is_some(), "another worker tries");
    cluster.work();
    assert_eq!(cluster.outcome(&job), Some(Outcome::Succeeded));
}

#[test]
fn lost_sessions_are_no_failures_but_have_a_limit() {
    let mut cluster = Cluster::with(&["a"]);
    let job = cluster.submit("j", sample::small("j"));
    for losses in 0..MAX_LOSSES {
        assert_eq!(cluster.outcome(&job), None, "after {losses} losses");
        cluster.kill("a");
        cluster.hello("a", "f1");
    }
    assert_eq!(cluster.outcome(&job), Some(Outcome::Failed));
    assert!(cluster.reason(&job).contains("lost"), "{}", cluster.reason(&job));
}

#[test]
fn cancelling_stops_what_no_other_job_needs() {
    for (force, shared) in [(false, false), (true, false), (true, true)] {
        let mut cluster = Cluster::with(&["w1"]);
        let job = cluster.submit("one", sample::small("j"));
        let other = shared.then(|| cluster.submit("two", sample::small("j")));
        let attempt = cluster.first("w1").unwrap();
        cluster.cancel(&job, force);
        assert_eq!(cluster.outcome(&job), Some(Outcome::Cancelled));
        let Some(other) = other else {
            assert_eq!(cluster.stops, [(worker("w1"), attempt, force)]);
            // Until the worker has stopped it gets nothing else.
            cluster.submit("next", sample::small("next"));
            assert_eq!(cluster.runs.len(), 1);
            cluster.fail("w1", attempt, "stopped", true);
            assert_eq!(cluster.runs.len(), 2);
            continue;
        };
        assert_eq!(cluster.stops, []);
        cluster.work();
        assert_eq!(cluster.outcome(&other), Some(Outcome::Succeeded));
        cluster.cancel(&other, true);
        assert_eq!(cluster.outcome(&other), Some(Outcome::Succeeded), "an ended job stays as it ended");
    }
}

#[test]
fn float_tasks_go_only_where_their_fingerprint_is() {
    let mut cluster = Cluster::with(&["a", "b"]);
    cluster.hello("c", "f2");
    let job = cluster.submit("j", sample::full("j", 1));
    cluster.work();
    assert_eq!(cluster.outcome(&job), Some(Outcome::Succeeded));
    for (who, (task, _)) in &cluster.runs {
        let bound = cluster.state.tasks[task].task.fingerprint();
        assert!(bound.is_none() || (bound == Some("f1") && who != &worker("c")), "{bound:?} on {who}");
    }
    assert!(cluster.runs.iter().any(|(who, _)| who == &worker("c")), "it does what is not bound");
}

#[test]
fn a_job_says_what_it_waits_for() {
    let mut cluster = Cluster::new();
    let job = cluster.submit("j", sample::small("j"));
    assert!(cluster.reason(&job).contains("none is connected"), "{}", cluster.reason(&job));
    cluster.hello("plain", "");
    cluster.work();
    assert!(cluster.reason(&job).contains("numerics fingerprint"), "{}", cluster.reason(&job));
    cluster.hello("a", "f1");
    assert!(cluster.reason(&job).contains("in work"), "{}", cluster.reason(&job));
    cluster.kill("a");
    cluster.pass(2 * DETECTION_MS, &[]);
    assert!(cluster.reason(&job).contains("fingerprint f1"), "{}", cluster.reason(&job));
    assert_eq!(cluster.outcome(&job), None);
}

#[test]
fn older_jobs_and_warm_caches_come_first() {
    let mut cluster = Cluster::with(&["a", "b"]);
    cluster.answer_probes = true;
    let old = cluster.submit("zz-old", sample::full("old", 1));
    cluster.submit("aa-new", sample::full("new", 2));
    cluster.work();
    let order = |job: &str| {
        let end = cluster.state.jobs[&job.parse().unwrap()].end.clone().unwrap();
        cluster.journal.iter().position(|fact| {
            matches!(fact, retort_coordinator::scheduler::Fact::Ended { job: id, .. } if id.as_str() == job)
                && end.outcome == Outcome::Succeeded
        })
    };
    assert!(order("zz-old") < order("aa-new"));
    // Phase two of the head reads phase one's student; where both are free, its maker runs it.
    let tasks = &cluster.state.jobs[&old].tasks;
    let maker = |id| match &cluster.state.tasks[&id].status {
        TaskStatus::Done { made_by, .. } => made_by.clone(),
        _ => None,
    };
    assert!(tasks.iter().all(|id| maker(*id).is_some()));
}

#[test]
fn a_manifest_written_by_a_lost_worker_is_found() {
    let mut cluster = Cluster::with(&["w1", "w2"]);
    cluster.submit("j", sample::small("j"));
    let attempt = cluster.first("w1").unwrap();
    cluster.gone("w1");
    // It finishes while nobody hears it, and dies.
    cluster.finish("w1", attempt);
    cluster.hands.clear();
    cluster.pass(DETECTION_MS, &[]);
    assert!(cluster.state.tasks[&attempt.0].is_done());
    assert!(!cluster.runs[1..].iter().any(|(_, run)| run.0 == attempt.0), "it is not run again");
}

#[test]
fn progress_shows_in_the_view_and_not_in_the_journal() {
    let mut cluster = Cluster::with(&["w1"]);
    let job = cluster.submit("j", sample::small("j"));
    let (task, attempt) = cluster.first("w1").unwrap();
    let before = cluster.journal.len();
    cluster.now_ms += 2_000;
    let told = |done| Input::Progress {
        worker: worker("w1"),
        session: 1,
        task,
        attempt,
        done,
        total: 4,
        detail: format!("row {done}/4"),
        microbatch_us: 0,
        waiting: false,
    };
    cluster.feed(told(1));
    assert_eq!(cluster.journal.len(), before);
    let view = view::job(&cluster.state, &job, cluster.now_ms).unwrap();
    let stage = &view.stages[0];
    assert_eq!((stage.fraction, stage.detail.as_str(), stage.eta_seconds), (0.25, "row 1/4", Some(6.0)));
    assert_eq!(view.elapsed.as_millis(), 2_000);
    // It slows down: what is left takes as long as its own speed says, counted from what it first told.
    cluster.now_ms += 8_000;
    cluster.feed(told(2));
    let view = view::job(&cluster.state, &job, cluster.now_ms).unwrap();
    assert_eq!(view.stages[0].eta_seconds, Some(20.0));
}
