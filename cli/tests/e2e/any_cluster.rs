//! The student is a function of spec and data: one worker or four, even deals or uneven ones, the same weights.

use crate::support::Cluster;
use crate::training::{Slowed, Training, end, final_weights, log, submit};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

fn training(seed: u32, dropout: f32) -> Training {
    Training { seed, steps: 400, dropout, batch: 96 }
}

/// What a cluster of so many workers makes of a training; one of them may be this many times slower.
fn weights(training: Training, workers: usize, slower: Option<u32>) -> String {
    let mut cluster = Cluster::start_in(training.home());
    (1..=workers).for_each(|number| cluster.add_worker(&format!("w{number}")));
    let id = submit(&cluster, workers);
    let slowed = slower.map(|times| Slowed::new(cluster.workers[workers - 1].id(), times));
    let weights = end(&cluster, &id);
    drop(slowed);
    let (log, parts) = (log(&cluster, &id), final_weights(&cluster, &id));
    let deals = deals(&cluster, &id);
    eprintln!("{training:?}, {workers} workers, slower {slower:?}: {weights}\n    steps by deal: {deals:?}");
    assert!(deals.keys().any(|deal| deal.len() == workers), "some workers never joined in\n{log}");
    if slower.is_some() {
        let uneven = |deal: &Vec<u64>| deal.iter().max() > deal.iter().min().map(|least| least + 1).as_ref();
        assert!(deals.keys().any(uneven), "all deals were as even as can be\n{log}");
    }
    // Initial weights are those of no part: each part changes them.
    assert_eq!(parts.values().map(|(_, digest)| digest).collect::<BTreeSet<_>>().len(), parts.len());
    weights
}

/// How many steps were taken with which numbers of microbatches, by worker.
fn deals(cluster: &Cluster, id: &str) -> BTreeMap<Vec<u64>, usize> {
    let lines = cluster.retort(&format!("metrics {id} -o jsonl")).expect(0, &[]).stdout;
    let mut deals = BTreeMap::new();
    for line in lines.lines() {
        let step: Value = serde_json::from_str(line).unwrap();
        let shares =
            step["workers"].as_array().unwrap().iter().map(|worker| worker["microbatches"].as_u64().unwrap());
        *deals.entry(shares.collect()).or_default() += 1;
    }
    deals
}

/// `just cohort`.
#[test]
#[ignore = "takes minutes"]
fn any_cluster_gives_the_same_weights() {
    let mut seen = BTreeSet::new();
    for dropout in [0.0, 0.1] {
        let alone = weights(training(1, dropout), 1, None);
        for workers in 2..=4 {
            assert_eq!(weights(training(1, dropout), workers, None), alone, "{workers} workers");
        }
        assert_eq!(weights(training(1, dropout), 3, Some(4)), alone, "three workers, one slow");
        assert!(seen.insert(alone), "dropout changes the weights");
        assert!(seen.insert(weights(training(2, dropout), 2, None)), "another seed gives other weights");
    }
    let initial = weights_before_the_first_step();
    assert!(!seen.contains(&initial), "training changes the weights");
}

/// A training whose learning rate is below every f32 ends with the weights that it began with.
fn weights_before_the_first_step() -> String {
    let training = Training { steps: 4, ..training(1, 0.0) };
    let home = training.home();
    let spec = training.spec().replace("learning_rate = 1e-3", "learning_rate = 1e-300");
    std::fs::write(home.path().join("spec.toml"), spec).unwrap();
    let mut cluster = Cluster::start_in(home);
    cluster.add_worker("w1");
    let id = submit(&cluster, 1);
    cluster.retort(&format!("wait {id} --timeout 5m")).expect(0, &["SUCCEEDED"]);
    let parts = final_weights(&cluster, &id);
    let digests: BTreeSet<_> = parts.into_values().map(|(_, digest)| digest).collect();
    assert_eq!(digests.len(), 1, "nothing changed");
    digests.into_iter().next().unwrap()
}
