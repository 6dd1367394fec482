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

#[test]
fn a_store_that_takes_no_checkpoints_is_named_and_the_training_goes_on() {
    let mut cluster = Cluster::start_in(SHORT.home());
    cluster.add_worker("w1");
    let id = submit(&cluster, 1);
    let store = cluster.home.path().join("store");
    let first = until("a checkpoint", || checkpoints(&store).first().cloned());
    let refused = |step: &u32| {
        let folder = first.with_file_name(format!("{step:010}"));
        std::fs::File::create_new(folder).is_ok()
    };
    // A file where a folder has to be.
    let refused = (4..SHORT.steps / Training::PARTS).step_by(4).filter(refused).count();
    assert!(refused > 0, "every checkpoint was there already");
    assert_eq!(end(&cluster, &id), undisturbed().0);
    let log = log(&cluster, &id);
    assert!(log.contains("a checkpoint could not be written: ") && log.contains("checkpoints/"), "{log}");
}
