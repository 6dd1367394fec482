//! Random inputs: the safety rules hold after every step, replay equals the live state, and when the faults
//! stop every job ends.

use crate::cluster::{Cluster, DETECTION_MS};
use crate::sample;
use proptest::prelude::*;
use retort_coordinator::scheduler::Input;

#[derive(Clone, Debug)]
enum Step {
    Submit(u8, bool),
    Hello(u8),
    Gone(u8),
    Kill(u8),
    Finish(u8),
    Fail(u8, bool),
    StaleFinish(u8, u32),
    Cancel(u8, bool),
    Pass(u16, u8),
    Late(u16),
    Ready,
    Measure(u8, u64, u64, bool),
    Trouble(u8, u8, bool),
    HoldProbes(bool),
    Restart,
}

const WORKERS: [&str; 4] = ["w0", "w1", "w2", "w3"];
const FINGERPRINTS: [&str; 4] = ["f1", "f1", "f2", "f1"];

fn step() -> impl Strategy<Value = Step> {
    let who = 0u8..4;
    prop_oneof![
        2 => (0u8..3, any::<bool>()).prop_map(|(job, full)| Step::Submit(job, full)),
        6 => who.clone().prop_map(Step::Hello),
        2 => who.clone().prop_map(Step::Gone),
        1 => who.clone().prop_map(Step::Kill),
        24 => who.clone().prop_map(Step::Finish),
        2 => (who.clone(), prop::bool::weighted(0.9)).prop_map(|(who, again)| Step::Fail(who, again)),
        2 => (who.clone(), 0u32..4).prop_map(|(who, attempt)| Step::StaleFinish(who, attempt)),
        1 => (0u8..3, any::<bool>()).prop_map(|(job, force)| Step::Cancel(job, force)),
        4 => (0u16..8_000, 0u8..5).prop_map(|(ms, silent)| Step::Pass(ms, silent)),
        1 => (0u16..20_000).prop_map(Step::Late),
        4 => Just(Step::Ready),
        4 => (who.clone(), 0u64..9, 0u64..5_000, any::<bool>())
            .prop_map(|(who, done, us, waiting)| Step::Measure(who, done, us, waiting)),
        3 => (who.clone(), who.clone(), prop::bool::weighted(0.3))
            .prop_map(|(who, whom, suspect)| Step::Trouble(who, whom, suspect)),
        1 => any::<bool>().prop_map(Step::HoldProbes),
        1 => Just(Step::Restart),
    ]
}

fn take(cluster: &mut Cluster, step: Step) {
    let name = |who: u8| WORKERS[who as usize];
    match step {
        Step::Submit(job, full) => {
            let spec = if full { sample::full("j", u64::from(job)) } else { sample::small("j") };
            let id = format!("job-{job}-{full}");
            let _ = cluster.try_submit(&id, &format!("request-{job}"), spec);
        }
        Step::Hello(who) => cluster.hello(name(who), FINGERPRINTS[who as usize]),
        Step::Gone(who) => cluster.gone(name(who)),
        Step::Kill(who) => cluster.kill(name(who)),
        Step::Finish(who) => {
            if let Some(attempt) = cluster.first(name(who)) {
                cluster.finish(name(who), attempt);
            }
        }
        Step::Fail(who, retryable) => {
            if let Some(attempt) = cluster.first(name(who)) {
                cluster.fail(name(who), attempt, "broken", retryable);
            }
        }
        Step::StaleFinish(who, number) => {
            let task = cluster.state.tasks.keys().nth(number as usize * 7).copied();
            if let (Some(task), Some(session)) = (task, cluster.sessions.values().next().copied()) {
                let (worker, attempt) =
                    (name(who).parse().unwrap(), retort_common::ids::AttemptNumber(number));
                let real = cluster.state.tasks[&task].is_current(&worker, attempt);
                if !real {
                    let (meta, elapsed_ms, found) = (serde_json::json!({ "wrong": true }), 1, false);
                    cluster.feed(Input::Finished { worker, session, task, attempt, meta, elapsed_ms, found });
                }
            }
        }
        Step::Cancel(job, force) => {
            let job = cluster.state.jobs.keys().nth(job as usize).cloned();
            if let Some(job) = job {
                cluster.cancel(&job, force);
            }
        }
        Step::Pass(ms, silent) => {
            let silent: Vec<_> = WORKERS.get(silent as usize).copied().into_iter().collect();
            cluster.pass(u64::from(ms), &silent);
        }
        Step::Late(ms) => {
            cluster.now_ms += u64::from(ms);
            cluster.feed(Input::Tick { late_ms: u64::from(ms) });
        }
        Step::Ready => cluster.get_ready(),
        Step::Measure(who, done, microbatch_us, waiting) => {
            if let Some(attempt) = cluster.first(name(who)) {
                cluster.measure(name(who), attempt, done, microbatch_us, waiting);
            }
        }
        Step::Trouble(who, whom, suspect) => {
            if let Some(attempt) = cluster.first(name(who)) {
                cluster.trouble(name(who), attempt, &[name(whom)], suspect);
            }
        }
        Step::HoldProbes(hold) => {
            cluster.answer_probes = !hold;
            cluster.answer();
        }
        Step::Restart => cluster.restart(),
    }
}

/// The faults stop: every worker comes back and does its work.
fn heal(cluster: &mut Cluster) {
    cluster.answer_probes = true;
    cluster.answer();
    for round in 0..200 {
        for (name, fingerprint) in WORKERS.iter().zip(FINGERPRINTS) {
            if !cluster.sessions.contains_key(&name.parse().unwrap()) {
                cluster.hello(name, fingerprint);
            }
        }
        cluster.work();
        if cluster.state.live.is_empty() {
            return;
        }
        cluster.pass(DETECTION_MS, &[]);
        assert!(round < 199, "jobs never end: {:?}", cluster.state.live);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_is_safe_replays_and_ends(steps in prop::collection::vec(step(), 1..120)) {
        let mut cluster = Cluster::with_exchange(&[]);
        for step in steps {
            take(&mut cluster, step);
        }
        cluster.check_replay();
        heal(&mut cluster);
        cluster.check();
        cluster.check_replay();
    }
}
