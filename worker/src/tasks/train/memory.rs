//! What more microbatches cost in memory: `just bench-memory`.
//!
//! A training of a head of 6 million parameters runs in a process of its own, once with 8 microbatches and once with 64
//! of the same size; what the kernel says of their peaks is compared with what the second may need more.

#![allow(clippy::print_stdout)]

use super::tests::{Fixture, Sizes};
use crate::losses::block_rows;
use crate::training::tree::subtrees;
use retort_common::spec::PhaseSpec;
use retort_common::task::{ProjectionStart, StudentStart};
use serde_json::json;
use std::process::Command;

/// The variable that makes a process train, and says with how many microbatches.
const CHILD: &str = "RETORT_MEMORY_MICROBATCHES";
const DIM: usize = 1024;
const HIDDEN: u32 = 4096;
const OUT: u32 = 512;
/// Questions of a microbatch, and texts of each of them: it, its positive and two negatives.
const QUESTIONS: usize = 8;
const WIDTH: usize = 4;
const STEPS: u32 = 2;

fn train(microbatches: u32) {
    let batch = QUESTIONS * microbatches as usize;
    let phase: PhaseSpec = serde_json::from_value(json!({
        "data": "queries", "steps": STEPS, "batch": batch, "microbatches": microbatches, "negatives": 2,
        "learning_rate": 0.001,
        "loss": [{ "kind": "info_nce", "temperature": 0.2 }, { "kind": "kl", "temperature": 0.2, "scope": "batch" }],
    }))
    .unwrap();
    let start = StudentStart::Head {
        input: DIM as u32,
        dim: OUT,
        hidden: Some(HIDDEN),
        init: ProjectionStart::Random,
    };
    Fixture::new(Sizes { batch, dim: DIM, steps: STEPS }).train(start, 0..STEPS, &phase);
}

/// The most memory that this process has had, in bytes.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

fn peak_of(microbatches: u32) -> usize {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([
        "--ignored",
        "--exact",
        "--nocapture",
        "tasks::train::memory::more_microbatches_cost_little",
    ]);
    let output = command.env(CHILD, microbatches.to_string()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let peak = text.split_whitespace().skip_while(|word| *word != "peak").nth(1);
    peak.unwrap_or_else(|| panic!("{text}")).parse().unwrap()
}

#[test]
#[ignore = "half a minute: just bench-memory"]
fn more_microbatches_cost_little() {
    if let Ok(microbatches) = std::env::var(CHILD) {
        train(microbatches.parse().unwrap());
        println!("peak {}", peak());
        return;
    }
    let (few, many) = (8u32, 64u32);
    let (before, after) = (peak_of(few), peak_of(many));
    let texts = QUESTIONS * WIDTH * (many - few) as usize;
    let gathered = texts * (OUT as usize + DIM) * 4;
    let passages = many as usize * QUESTIONS * (WIDTH - 1);
    let block = 2 * block_rows(passages) * passages * 4;
    let parameters = DIM * HIDDEN as usize + HIDDEN as usize * OUT as usize + (HIDDEN + OUT) as usize;
    // One worker sums the whole tree: it holds a partial sum for each level, and the leaf that is added.
    let levels = |leaves: u32| subtrees(0..leaves - 1, leaves).len() + 1;
    let partials = (levels(many) - levels(few)) * parameters * 4;
    let mb = |bytes: usize| bytes as f64 / 1e6;
    println!(
        "peak with {few} microbatches {:.1} MB, with {many} {:.1} MB: {:.1} MB more",
        mb(before),
        mb(after),
        mb(after - before)
    );
    println!("  vectors of {texts} more texts, student's and teacher's: {:.1} MB", mb(gathered));
    println!("  scores of one block of the loss, student's and teacher's: {:.1} MB", mb(block));
    println!(
        "  {} partial gradients of {:.1} MB: {:.1} MB",
        levels(many) - levels(few),
        mb(4 * parameters),
        mb(partials)
    );
    assert_eq!(levels(many) - levels(few), 3);
    let allowed = gathered + block + partials;
    assert!(after - before <= allowed, "{:.1} MB are allowed", mb(allowed));
}
