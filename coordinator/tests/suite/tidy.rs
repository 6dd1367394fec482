//! The scheduler stays pure.

use std::path::Path;

#[test]
fn the_scheduler_names_no_clock_randomness_or_io() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/scheduler");
    let banned = [
        "tokio",
        "tonic",
        "object_store",
        "Instant",
        "SystemTime",
        "rand::",
        "HashMap",
        "HashSet",
        "async ",
        "uuid",
        "std::fs",
        "std::env",
        "std::net",
        "retort_common::proto",
        "retort_common::store",
    ];
    let mut files = 0;
    let mut folders = vec![folder];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            // Comments may speak of what code may not use.
            let code: String = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
            for word in banned {
                assert!(!code.contains(word), "{} names {word}", path.display());
            }
            files += 1;
        }
    }
    assert!(files >= 12, "the scheduler's sources were not found");
}
