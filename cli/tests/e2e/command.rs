//! The command line alone: exit codes, what goes to which stream.

use crate::support::{dead_address, retort};
use std::path::Path;
use std::process::Output;

/// Runs a command line in a fresh home and checks how it ends: exit code, and words on stdout or stderr.
fn check(line: &str, code: i32, words: &[&str]) {
    let home = tempfile::tempdir().unwrap();
    check_in(home.path(), line, code, words);
}

pub fn check_in(home: &Path, line: &str, code: i32, words: &[&str]) {
    let arguments: Vec<_> = line.split_whitespace().collect();
    let Output { status, stdout, stderr } = retort(home, &arguments).output().unwrap();
    let (stdout, stderr) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
    assert_eq!(status.code(), Some(code), "retort {line}\n{stdout}{stderr}");
    for word in words {
        let found = if code == 0 { stdout.contains(word) } else { stderr.contains(word) };
        assert!(found, "retort {line}: no {word:?} in\n{stdout}{stderr}");
    }
    assert!(code == 0 || stdout.is_empty(), "retort {line}: data without success\n{stdout}");
    assert!(!stderr.contains('\u{1b}'), "retort {line}: colour off a terminal\n{stderr}");
}

#[test]
fn help_names_every_verb_and_the_exit_codes() {
    let verbs = [
        "run",
        "submit",
        "list",
        "get",
        "describe",
        "logs",
        "metrics",
        "wait",
        "cancel",
        "worker",
        "coordinator",
        "dataset",
        "eval",
        "version",
    ];
    check("--help", 0, &verbs);
    check("--help", 0, &["Exit codes: 0 ok", "130 interrupted"]);
    for verb in verbs {
        check(&format!("{verb} --help"), 0, &["Usage: retort"]);
    }
    check("version", 0, &[concat!("retort ", env!("CARGO_PKG_VERSION"))]);
    check("--version", 0, &[concat!("retort ", env!("CARGO_PKG_VERSION"))]);
}

#[test]
fn usage_errors_exit_with_2_and_say_what_is_expected() {
    check("", 2, &["Usage"]);
    check("distil", 2, &["unrecognized subcommand"]);
    check("get", 2, &["<ID>"]);
    check("wait x --for dinner", 2, &["stage=NAME"]);
    check("wait x --timeout soon", 2, &["10m"]);
    check("list --state BAKING", 2, &["SUCCEEDED"]);
    check("list -o yaml", 2, &["jsonl"]);
    check("submit a.toml --set name", 2, &["KEY=VALUE"]);
    check("submit a.toml --wait --follow", 2, &["cannot be used with"]);
    check("run a.toml --workers 0", 2, &["1..=256"]);
    check("worker list --coordinator http://a:1 --tls-ca ca.pem", 2, &["all three or none"]);
    check("coordinator", 2, &["--store"]);
}

#[test]
fn without_an_address_all_three_places_for_it_are_named() {
    for verb in ["list", "get x", "describe x", "logs x", "wait x", "cancel x", "worker list", "worker"] {
        check(verb, 2, &["--coordinator", "RETORT_COORDINATOR", "config.toml"]);
    }
}

#[test]
fn an_unreachable_coordinator_is_exit_3() {
    let address = dead_address();
    for verb in [
        "list",
        "get x",
        "describe x",
        "logs x",
        "logs x -f",
        "metrics x",
        "metrics x -f",
        "wait x",
        "cancel x",
        "worker list",
    ] {
        check(&format!("{verb} --coordinator {address}"), 3, &["unreachable", &address]);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn the_config_file_gives_the_address_and_is_read_strictly() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join(".config/retort");
    std::fs::create_dir_all(&folder).unwrap();
    let address = dead_address();
    std::fs::write(folder.join("config.toml"), format!("coordinator = \"http://{address}\"\n")).unwrap();
    check_in(home.path(), "list", 3, &[&address]);
    let other = dead_address();
    check_in(home.path(), &format!("list --coordinator {other}"), 3, &[&other]);
    std::fs::write(folder.join("config.toml"), "coordinater = \"http://a:1\"\n").unwrap();
    check_in(home.path(), "list", 2, &["coordinater", "config.toml"]);
}

#[test]
fn a_bad_spec_is_exit_2_with_its_line_and_a_missing_file_exit_1() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("bad.toml"), "name = \"x\"\ncorpis = 3\n").unwrap();
    for verb in ["run", "submit", "submit --dry-run"] {
        check_in(home.path(), &format!("{verb} bad.toml"), 2, &["bad.toml:2", "corpis", "`corpus`"]);
        check_in(home.path(), &format!("{verb} none.toml"), 1, &["cannot read the spec none.toml"]);
    }
    let data = home.path().join(".local/share/retort");
    assert!(!data.exists(), "a wrong spec must leave nothing behind");
}
