//! How long a cohort stands still when one of its workers dies.

use super::Wired;
use crate::support::{signal, until};
use crate::training::{Position, Training, submit};
use std::time::{Duration, Instant};

/// Times that a worker is killed.
const KILLS: usize = 7;
/// The cluster's failure detection.
const DETECTION: Duration = Duration::from_secs(1);

/// `just recovery`: from kill -9 of one of three workers to the next finished step, beside the bound: failure detection,
/// a second, and one undisturbed step of the two that remain.
#[test]
#[ignore = "measures time"]
fn two_of_three_workers_go_on_in_time() {
    let training = Training { seed: 1, steps: 4000, dropout: 0.1, batch: 32 };
    let mut wired = Wired::start(&training, 3);
    let id = submit(&wired.cluster, 3);
    let position = |wired: &Wired, workers: usize| {
        let at = Position::of(&wired.cluster, &id)?;
        assert!(!at.has_ended(), "the job ended before the last kill: {at:?}");
        (at.workers == workers && at.step > 0).then_some(at)
    };
    let mut worst = Duration::ZERO;
    // One that is frozen is noticed by its silence; the bound is for one whose death closes its connections.
    until("three workers", || position(&wired, 3));
    let begun = Instant::now();
    signal("-STOP", wired.process(1));
    until("a step without the frozen worker", || position(&wired, 2));
    eprintln!("w1 frozen: two workers go on after {:.2?}", begun.elapsed());
    signal("-CONT", wired.process(1));
    for kill in 0..KILLS {
        let before = until("three workers", || position(&wired, 3));
        let victim = kill % 3;
        let begun = Instant::now();
        wired.kill(victim);
        let after = until("a step of the other two", || {
            position(&wired, 2).filter(|at| (at.done, at.step) > (before.done, before.step))
        });
        let recovery = begun.elapsed();
        let step = undisturbed_step(|| position(&wired, 2));
        let bound = DETECTION + Duration::from_secs(1) + step;
        eprintln!(
            "kill {}: w{victim} at {}; the next step, {}, after {recovery:.2?}; bound {bound:.2?} with a step of {step:.3?}",
            kill + 1,
            before.detail,
            after.detail
        );
        worst = worst.max(recovery);
        assert!(recovery < bound, "{recovery:?} is not under {bound:?}");
        wired.start_worker(victim);
    }
    eprintln!("slowest of {KILLS}: {worst:.2?}");
}

/// The time of a step, from how far a while gets.
fn undisturbed_step(mut position: impl FnMut() -> Option<Position>) -> Duration {
    let first = until("a step", &mut position);
    let begun = Instant::now();
    std::thread::sleep(Duration::from_secs(1));
    let last = until("some steps", || {
        position().filter(|at| at.done == first.done && at.step > first.step + 2 || at.done > first.done)
    });
    let steps = last.step.saturating_sub(first.step).max(1);
    begun.elapsed() / steps as u32
}
