//! A cohort of two in one process: values that are not finite are computed once more by the other member.

use super::*;
use crate::exchange::{Exchange, ExchangeConfig};
use crate::session::TaskContext;
use retort_common::cohort::Member;
use retort_common::net::NetOptions;
use retort_common::proto;
use retort_common::proto::session_request::Message;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Longest that a cohort may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a cohort ended: what each member's task said, and what each told the coordinator of others' bits.
struct Ended {
    outcomes: Vec<Result<Produced, TaskError>>,
    accusations: Vec<(String, proto::Trouble)>,
}

/// Runs a training on two members, each of which reads its own vectors. A coordinator names the same members again
/// whenever they cannot go on, and stops them once somebody's bits are called wrong.
fn together(fixtures: [&Fixture; 2]) -> Ended {
    let phase = phase(json!({}));
    let names = ["w1", "w2"];
    let tasks = fixtures.map(|fixture| fixture.task(mlp(), 0..STEPS, &phase));
    assert_eq!(tasks[0].id(), tasks[1].id());
    let exchange = |name: &str, fixture: &Fixture| {
        let net = NetOptions { tls: None, failure_detection: Duration::from_secs(2) };
        let (worker, listen) = (name.parse().unwrap(), "127.0.0.1:0".to_owned());
        let config = ExchangeConfig { worker, listen, advertise: None, net, patience: PATIENCE };
        fixture.runtime.block_on(Exchange::listen(config)).unwrap()
    };
    let exchanges: Vec<_> =
        names.iter().zip(fixtures).map(|(name, fixture)| exchange(name, fixture)).collect();
    let member = |(at, name): (usize, &&str)| {
        let (worker, first) = (name.parse().unwrap(), 2 * at as u32);
        Member { worker, address: exchanges[at].address().to_owned(), microbatches: first..first + 2 }
    };
    let members: Vec<Member> = names.iter().enumerate().map(member).collect();
    let (contexts, mut news): (Vec<_>, Vec<_>) = names
        .iter()
        .map(|_| {
            let (sender, receiver) = mpsc::channel(1024);
            let first = Some(members.clone());
            (TaskContext::new(tasks[0].id(), AttemptNumber(1), first, sender), receiver)
        })
        .unzip();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|at| {
                let seat = Seat {
                    context: &contexts[at],
                    worker: names[at].parse().unwrap(),
                    exchange: Some(exchanges[at].clone()),
                    orphan_limit: PATIENCE,
                };
                let (fixture, task) = (fixtures[at], &tasks[at]);
                scope.spawn(move || fixture.try_train(task, Some(seat)))
            })
            .collect();
        let (mut number, mut accusations, begun) = (1, Vec::new(), Instant::now());
        // The member that does not write the artifact waits for the next generation until it is stopped.
        while threads.iter().all(|thread| !thread.is_finished()) && accusations.len() < 2 {
            assert!(begun.elapsed() < PATIENCE, "the cohort does not come to an end");
            for (at, news) in news.iter_mut().enumerate() {
                let Ok(Message::Trouble(trouble)) = news.try_recv() else { continue };
                if trouble.attempt.as_ref().is_none_or(|attempt| attempt.attempt != number) {
                    continue;
                }
                if trouble.suspect {
                    accusations.retain(|(by, _)| by != names[at]);
                    accusations.push((names[at].to_owned(), trouble));
                } else {
                    number += 1;
                    let next = AttemptNumber(number);
                    contexts.iter().for_each(|context| context.regroup(next, members.clone()));
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(200));
        contexts.iter().for_each(|context| context.stop(true));
        let outcomes = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        Ended { outcomes, accusations }
    })
}

#[test]
fn two_members_make_what_one_makes() {
    let fixtures = [Fixture::new(SMALL), Fixture::new(SMALL)];
    let ended = together([&fixtures[0], &fixtures[1]]);
    let made = ended.outcomes[0].as_ref().unwrap();
    let (_, alone, _) = fixtures[1].train(mlp(), 0..STEPS, &phase(json!({})));
    assert_eq!(made.meta, alone);
    assert!(ended.accusations.is_empty());
}

#[test]
fn a_member_whose_values_are_finite_elsewhere_is_named_by_both() {
    let (good, bad) = (Fixture::new(SMALL), Fixture::with_vectors(SMALL, |_| f32::NAN));
    for (fixtures, wrong) in [([&good, &bad], "w2"), ([&bad, &good], "w1")] {
        let ended = together(fixtures);
        let by: Vec<_> = ended.accusations.iter().map(|(by, _)| by.as_str()).collect();
        assert_eq!(by.len(), 2, "{by:?}");
        for (_, trouble) in &ended.accusations {
            assert_eq!(trouble.peers, [wrong]);
            for word in ["step 1:", &format!("worker {wrong} has vectors"), "finite ones from the same state"]
            {
                assert!(trouble.message.contains(word), "no {word:?} in {}", trouble.message);
            }
        }
        assert!(ended.outcomes.iter().all(|outcome| matches!(outcome, Err(TaskError::Stopped))));
    }
}

#[test]
fn values_that_are_finite_nowhere_fail_the_task_with_their_rows() {
    let bad = [Fixture::with_vectors(SMALL, |_| f32::NAN), Fixture::with_vectors(SMALL, |_| f32::NAN)];
    let ended = together([&bad[0], &bad[1]]);
    assert!(ended.accusations.is_empty());
    let failed = |outcome: &Result<Produced, TaskError>| match outcome {
        Err(error @ TaskError::Input(_)) => Some(error.to_string()),
        _ => None,
    };
    let messages: Vec<_> = ended.outcomes.iter().filter_map(failed).collect();
    assert!(!messages.is_empty());
    let words =
        ["step 1: worker w1 has vectors of microbatches 0..1", "worker w2 gets vectors", "question rows "];
    for (message, word) in messages.iter().flat_map(|message| words.map(|word| (message, word))) {
        assert!(message.contains(word), "no {word:?} in {message}");
    }
}

#[test]
fn alone_the_rows_are_named_after_a_second_look() {
    let bad = Fixture::with_vectors(SMALL, |value| if value > 0.48 { f32::INFINITY } else { value });
    let task = bad.task(mlp(), 0..STEPS, &phase(json!({})));
    let error = bad.try_train(&task, None).unwrap_err();
    assert!(!error.is_retryable());
    for word in ["are not finite, and computed once more", "vectors of microbatches", "passage rows "] {
        assert!(error.to_string().contains(word), "no {word:?} in {error}");
    }
}
