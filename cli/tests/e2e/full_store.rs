//! A store that is full: named, nothing half-written is taken for finished, and the job is done once there is room.

use crate::fixture;
use crate::support::{Ended, Home, finished};
use std::path::Path;
use std::process::{Command, Stdio};

/// Runs a command line with `store` on a file system of its own of so many KiB, in a namespace of its own, so that it
/// needs no rights. What was in the folder is put there first, and what is there in the end is kept.
fn in_store_of(home: &Path, kib: u32, line: &str) -> Ended {
    let script = format!(
        "mkdir -p kept store && mount -t tmpfs -o size={kib}k,nr_inodes=0 tmpfs store && cp -a kept/. store/ && {{ \
         \"$RETORT\" {line}; code=$?; rm -rf kept && cp -a store kept; exit $code; }}"
    );
    let output = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", &script])
        .env("RETORT", env!("CARGO_BIN_EXE_retort"))
        .env("HOME", home)
        .current_dir(home)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    Ended::of(line, output)
}

/// `just full-store`.
#[test]
#[ignore = "needs user namespaces"]
fn a_full_store_is_named_and_used_once_it_has_room() {
    let home = Home::new();
    fixture::write(home.path());
    let line = "run spec.toml --store store --workers 1";
    let mut seen = Vec::new();
    // From a journal's first records to a job that is almost done.
    for kib in [64, 256, 512, 1024] {
        let ended = in_store_of(home.path(), kib, line);
        if ended.code == Some(0) {
            break;
        }
        let text = format!("{}{}", ended.stdout, ended.stderr);
        assert!(text.contains("No space left on device"), "{kib} KiB: {text}");
        assert!(!text.contains("panicked"), "{kib} KiB: {text}");
        let done = finished(&home.path().join("kept")).len();
        eprintln!("{kib} KiB: exit {:?} after {done} tasks", ended.code);
        seen.push(done);
    }
    assert!(seen.len() >= 2 && seen.is_sorted(), "no store was too small: {seen:?}");
    in_store_of(home.path(), 16 << 10, line).expect(0, &["encoder-8"]);
}
