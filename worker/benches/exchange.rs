//! Reduction over separate processes beside PyTorch's gloo: `just bench-exchange`.
//!
//! The parent starts the members of both as processes, lets them reduce in turn, and takes the slowest member's time
//! of each round. Members do what training does: gRPC over TCP, checksums, the canonical tree.

#![allow(clippy::print_stdout)]

use retort_common::net::{NetOptions, TlsFiles};
use retort_worker::exchange::{Exchange, ExchangeConfig, Member, Roster, Wire};
use retort_worker::training::tree::subtrees;
use std::io::{BufRead, BufReader, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

#[path = "../../common/src/net/certificates.rs"]
mod certificates;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 10;
const WARM_UP: usize = 2;
const GLOO: &str = include_str!("gloo.py");

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    if std::env::var_os("RETORT_BENCH_MEMBER").is_some() {
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
        let mut ours = start_members(&deals, megabytes, wire, tls.then_some(folder.path()))?;
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
    all.into_iter().filter(|(name, ..)| name.starts_with(&wanted)).collect()
}

fn number<T: std::str::FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    (times[(times.len() - 1) / 2] + times[times.len() / 2]) / 2.0
}

/// Processes that reduce together when they are told to.
struct Group {
    members: Vec<(Child, ChildStdin, BufReader<ChildStdout>)>,
}

impl Group {
    fn start(commands: Vec<Command>) -> Result<Self, Failure> {
        let mut members = Vec::new();
        for mut command in commands {
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
            let input = child.stdin.take().ok_or("no standard input")?;
            let output = BufReader::new(child.stdout.take().ok_or("no standard output")?);
            members.push((child, input, output));
        }
        Ok(Self { members })
    }

    fn say(&mut self, line: &str) -> Result<(), Failure> {
        for (_, input, _) in &mut self.members {
            writeln!(input, "{line}")?;
        }
        Ok(())
    }

    fn hear(&mut self) -> Result<Vec<String>, Failure> {
        let mut lines = Vec::new();
        for (_, _, output) in &mut self.members {
            let mut line = String::new();
            if output.read_line(&mut line)? == 0 {
                return Err("a member ended".into());
            }
            lines.push(line.trim().to_owned());
        }
        Ok(lines)
    }

    /// Every member's numbers, seconds.
    fn round(&mut self) -> Result<Vec<Vec<f64>>, Failure> {
        self.say("go")?;
        let numbers = |line: String| -> Result<Vec<f64>, Failure> {
            line.split(' ').map(|word| word.parse::<f64>().map_err(Failure::from)).collect()
        };
        self.hear()?.into_iter().map(numbers).collect()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for (child, ..) in &mut self.members {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
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

fn start_members(
    deals: &[Range<u32>],
    megabytes: usize,
    wire: &str,
    tls: Option<&Path>,
) -> Result<Group, Failure> {
    let authority = tls.map(|folder| certificates::Authority::new(folder, "bench"));
    let mut commands = Vec::new();
    for rank in 0..deals.len() {
        let mut command = Command::new(std::env::current_exe()?);
        command.env("RETORT_BENCH_MEMBER", rank.to_string()).env("RETORT_BENCH_MB", megabytes.to_string());
        command.env("RETORT_BENCH_WIRE", wire);
        if let Some(authority) = &authority {
            let files = authority.issue(&format!("w{rank}"), &["127.0.0.1"]);
            let files: Vec<_> = files.iter().map(|path| path.display().to_string()).collect();
            command.env("RETORT_BENCH_TLS", files.join("\n"));
        }
        commands.push(command);
    }
    let mut group = Group::start(commands)?;
    let addresses = group.hear()?;
    let roster: Vec<_> = addresses
        .iter()
        .zip(deals)
        .map(|(address, deal)| format!("{address},{},{}", deal.start, deal.end))
        .collect();
    group.say(&roster.join(" "))?;
    Ok(group)
}

/// One member: says where it listens, hears the roster, and reduces whenever it is told to.
fn member() -> Result<(), Failure> {
    let rank: usize = number("RETORT_BENCH_MEMBER", 0);
    let length = number("RETORT_BENCH_MB", 100) * 1_000_000 / 4;
    let wire =
        if std::env::var("RETORT_BENCH_WIRE")? == "bf16" { Wire::Bf16 { level: 0 } } else { Wire::F32 };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tls = std::env::var("RETORT_BENCH_TLS").ok().map(|files| {
        let files: Vec<PathBuf> = files.lines().map(PathBuf::from).collect();
        TlsFiles { cert: files[0].clone(), key: files[1].clone(), ca: files[2].clone() }
    });
    let exchange = runtime.block_on(Exchange::listen(ExchangeConfig {
        worker: format!("w{rank}").parse()?,
        listen: "127.0.0.1:0".to_owned(),
        advertise: None,
        net: NetOptions { tls, ..NetOptions::default() },
        patience: Duration::from_secs(60),
    }))?;
    println!("{}", exchange.address());
    let mut lines = std::io::stdin().lock().lines();
    let mut members = Vec::new();
    for (at, text) in lines.next().ok_or("no roster")??.split(' ').enumerate() {
        let parts: Vec<&str> = text.split(',').collect();
        let [address, start, end] = parts[..] else { return Err("a roster's member has three parts".into()) };
        let microbatches = start.parse()?..end.parse()?;
        members.push(Member { worker: format!("w{at}").parse()?, address: address.to_owned(), microbatches });
    }
    let roster = Roster { lineage: "bench".to_owned(), generation: 1, members, rank };
    let nodes = subtrees(roster.members[rank].microbatches.clone(), roster.leaves());
    let cohort = exchange.join(roster, wire)?;
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

/// User and system time of this process, seconds; the kernel counts in hundredths.
fn cpu() -> (f64, f64) {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<f64> =
        text.rsplit(')').next().unwrap_or_default().split(' ').filter_map(|word| word.parse().ok()).collect();
    // After the name and the state come ten fields before utime.
    match fields.get(10..12) {
        Some([user, system]) => (user / 100.0, system / 100.0),
        _ => (0.0, 0.0),
    }
}
