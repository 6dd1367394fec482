//! Checkpoints that are damaged, and a store that takes none: named in the log, and no bit of the weights changes.

use super::{SHORT, undisturbed};
use crate::support::{Cluster, files, until};
use crate::training::{Training, end, log, submit};
use std::path::{Path, PathBuf};

/// The complete checkpoints of the training with the most, oldest first: their folders.
fn checkpoints(store: &Path) -> Vec<PathBuf> {
    let jobs = store.join("jobs");
    let manifests = files(&jobs).into_iter().filter(|path| path.ends_with("manifest.json"));
    manifests.map(|path| jobs.join(path.parent().unwrap())).collect()
}

fn part(folder: &Path) -> PathBuf {
    let mut entries = std::fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path());
    entries.find(|path| path.extension().is_some_and(|kind| kind == "safetensors")).unwrap()
}

#[test]
fn damaged_checkpoints_are_passed_over_by_name() {
    let mut cluster = Cluster::start_in(SHORT.home());
    cluster.add_worker("w1");
    let id = submit(&cluster, 1);
    let store = cluster.home.path().join("store");
    until("two checkpoints", || (checkpoints(&store).len() >= 2).then_some(()));
    cluster.workers.clear();
    // What was being written when the worker died is no checkpoint.
    let found = checkpoints(&store);
    let [.., older, newest] = &found[..] else { panic!("{found:?}") };
    let altered = part(newest);
    let mut bytes = std::fs::read(&altered).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&altered, bytes).unwrap();
    std::fs::remove_file(part(older)).unwrap();
    cluster.add_worker("w1");
    assert_eq!(end(&cluster, &id), undisturbed().0);
    let log = log(&cluster, &id);
    for (folder, word) in [(newest, "its digest is not the manifest's"), (older, "is not usable")] {
        let name = format!("{}/manifest.json", folder.file_name().unwrap().display());
        let line = log.lines().find(|line| line.contains(&name));
        assert!(line.is_some_and(|line| line.contains(word)), "no {word:?} about {name} in\n{log}");
    }
}

/// Puts a file where each later checkpoint of a lineage needs a folder; how many there are.
fn refuse_later(newest: &Path) -> usize {
    let step: u32 = newest.file_name().unwrap().to_str().unwrap().parse().unwrap();
    let steps = (step + 4..SHORT.steps / Training::PARTS).step_by(4);
    let refuse = |step: &u32| std::fs::write(newest.with_file_name(format!("{step:010}")), "a file").is_ok();
    steps.filter(refuse).count()
}

#[test]
fn a_store_that_takes_no_checkpoints_is_named_and_the_training_goes_on() {
    let mut cluster = Cluster::start_in(SHORT.home());
    cluster.add_worker("w1");
    let id = submit(&cluster, 1);
    let store = cluster.home.path().join("store");
    until("a checkpoint", || checkpoints(&store).first().cloned());
    // Nobody writes meanwhile. The first part counts from 0, and nothing is left of it to refuse where it is done.
    cluster.workers.clear();
    let refused = checkpoints(&store).last().map_or(0, |newest| refuse_later(newest));
    cluster.add_worker("w1");
    assert_eq!(end(&cluster, &id), undisturbed().0);
    let log = log(&cluster, &id);
    let named = log.contains("a checkpoint could not be written: ") && log.contains("checkpoints/");
    assert!(named || refused == 0, "{log}");
}
