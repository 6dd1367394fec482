//! Reduction over separate processes beside PyTorch's gloo: `just bench-exchange`.
//!
//! The parent starts the members of both as processes, lets them reduce in turn, and takes the slowest member's time
//! of each round. Members do what training does: gRPC over TCP, checksums, the canonical tree.

#![allow(clippy::print_stdout)]

use members::{Failure, Group, RANK, cpu, median, number};
use retort_worker::exchange::Wire;
use retort_worker::training::tree::subtrees;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

mod members;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 10;
const WARM_UP: usize = 2;
const GLOO: &str = include_str!("gloo.py");

fn main() -> Result<(), Failure> {
    if std::env::var_os(RANK).is_some() {
        return member();
    }
    let megabytes: usize = number("RETORT_BENCH_MB", 100);
    let python = std::env::var_os("RETORT_BENCH_PYTHON").map(PathBuf::from);
    let folder = tempfile::tempdir()?;
    let script = folder.path().join("gloo.py");
    std::fs::write(&script, GLOO)?;
    println!(
        "{megabytes} MB of f32, {ROUNDS} rounds, one thread a member; median of the slowest member's times"
    );
    for (name, deals, wire, tls) in cases() {
        let settings = [("RETORT_BENCH_MB", megabytes.to_string()), ("RETORT_BENCH_WIRE", wire.to_owned())];
        let mut ours = Group::cohort(&deals, &settings, tls.then_some(folder.path()))?;
        let mut gloo = match &python {
            Some(python) if !tls && wire == "f32" => {
                Some(start_gloo(python, &script, deals.len(), megabytes)?)
            }
            _ => None,
        };
        let (mut times, mut theirs, mut first) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..WARM_UP + ROUNDS {
            let report = ours.round()?;
            let other = gloo.as_mut().map(Group::round).transpose()?;
            if round >= WARM_UP {
                times.push(report.iter().map(|words| words[0]).fold(0.0, f64::max));
                theirs.extend(other.map(|words| words.iter().map(|words| words[0]).fold(0.0, f64::max)));
                first.push(report[0].clone());
            }
        }
        let seconds = median(&mut times);
        let rate = megabytes as f64 / 1e3 / seconds;
        let mean = |at: usize| first.iter().map(|words| words[at]).sum::<f64>() / first.len() as f64 * 1e3;
        print!("{name:24} {:6.1} ms  {rate:5.2} GB/s", seconds * 1e3);
        if !theirs.is_empty() {
            let other = median(&mut theirs);
            let theirs = megabytes as f64 / 1e3 / other;
            print!("  gloo {:6.1} ms {theirs:5.2} GB/s  ratio {:4.2}", other * 1e3, rate / theirs);
        }
        println!(
            "  | rank 0: waiting {:.1}, summing {:.1}, user {:.1}, system {:.1} ms",
            mean(1),
            mean(2),
            mean(3),
            mean(4)
        );
    }
    Ok(())
}

type Case = (&'static str, Vec<Range<u32>>, &'static str, bool);

fn cases() -> Vec<Case> {
    let even = |members: u32| (0..members).map(|rank| rank..rank + 1).collect::<Vec<_>>();
    let all: [Case; 7] = [
        ("n=2", even(2), "f32", false),
        ("n=4", even(4), "f32", false),
        ("n=3", even(3), "f32", false),
        ("n=3 deals 5,2,1 of 8", vec![0..5, 5..7, 7..8], "f32", false),
        ("n=2 mutual TLS", even(2), "f32", true),
        ("n=4 mutual TLS", even(4), "f32", true),
        ("n=2 bf16", even(2), "bf16", false),
    ];
    let wanted = std::env::var("RETORT_BENCH_CASE").unwrap_or_default();
    all.into_iter().filter(|(name, ..)| wanted.is_empty() || *name == wanted).collect()
}

fn start_gloo(python: &Path, script: &Path, members: usize, megabytes: usize) -> Result<Group, Failure> {
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let command = |rank: usize| {
        let mut command = Command::new(python);
        command
            .arg(script)
            .args([rank, members, megabytes, usize::from(port)].map(|number| number.to_string()));
        command.env("OMP_NUM_THREADS", "1").env("GLOO_SOCKET_IFNAME", "lo");
        command
    };
    let mut group = Group::start((0..members).map(command).collect())?;
    group.hear()?;
    Ok(group)
}

/// One member: reduces whenever it is told to.
fn member() -> Result<(), Failure> {
    let length = number("RETORT_BENCH_MB", 100) * 1_000_000 / 4;
    let wire =
        if std::env::var("RETORT_BENCH_WIRE")? == "bf16" { Wire::Bf16 { level: 0 } } else { Wire::F32 };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (cohort, _exchange, lines) = members::join(&runtime, wire)?;
    let roster = cohort.roster();
    let nodes = subtrees(roster.members[roster.rank].microbatches.clone(), roster.leaves());
    let value = |at: usize| ((at % 13) as f32).mul_add(0.01, 1.0);
    let fresh = || (0..length).map(value).collect::<Vec<f32>>();
    let mut partials: Vec<Vec<f32>> = nodes.iter().map(|_| fresh()).collect();
    for (step, line) in (1..).zip(lines) {
        line?;
        let given = nodes.iter().cloned().zip(partials.drain(..)).collect();
        let (user, system) = cpu();
        let begun = Instant::now();
        let mut sum = runtime.block_on(cohort.reduce(step, given))?;
        let elapsed = begun.elapsed().as_secs_f64();
        let (user, system) = (cpu().0 - user, cpu().1 - system);
        let spent = cohort.take_spent();
        println!("{elapsed} {} {} {user} {system}", spent.waiting.as_secs_f64(), spent.summing.as_secs_f64());
        // The next round's partial sums lie in memory that is there already, as gloo's tensor does.
        sum.iter_mut().enumerate().for_each(|(at, sum)| *sum = value(at));
        partials = (1..nodes.len()).map(|_| fresh()).chain([sum]).collect();
    }
    Ok(())
}
