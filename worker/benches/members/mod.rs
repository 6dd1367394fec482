//! Members of a cohort as processes of a benchmark, driven over their standard input and output.

// Each benchmark uses its part of this.
#![allow(dead_code)]

use retort_common::net::{NetOptions, TlsFiles};
use retort_worker::exchange::{Cohort, Exchange, ExchangeConfig, Member, Roster, Wire};
use std::io::{BufRead, BufReader, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

#[path = "../../../common/src/net/certificates.rs"]
mod certificates;

pub type Failure = Box<dyn std::error::Error>;

/// The variable that makes a process a member, and says of which rank.
pub const RANK: &str = "RETORT_BENCH_MEMBER";

/// A number from the environment.
pub fn number<T: std::str::FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// The middle of some times.
pub fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    (times[(times.len() - 1) / 2] + times[times.len() / 2]) / 2.0
}

/// Processes that do the same in turn when they are told to.
pub struct Group {
    members: Vec<(Child, ChildStdin, BufReader<ChildStdout>)>,
}

impl Group {
    pub fn start(commands: Vec<Command>) -> Result<Self, Failure> {
        let mut members = Vec::new();
        for mut command in commands {
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
            let input = child.stdin.take().ok_or("no standard input")?;
            let output = BufReader::new(child.stdout.take().ok_or("no standard output")?);
            members.push((child, input, output));
        }
        Ok(Self { members })
    }

    /// This program again, a process for each deal, as a cohort.
    pub fn cohort(
        deals: &[Range<u32>],
        settings: &[(&str, String)],
        tls: Option<&Path>,
    ) -> Result<Self, Failure> {
        let authority = tls.map(|folder| certificates::Authority::new(folder, "bench"));
        let mut commands = Vec::new();
        for rank in 0..deals.len() {
            let mut command = Command::new(std::env::current_exe()?);
            command.env(RANK, rank.to_string());
            command.envs(settings.iter().map(|(name, value)| (name, value)));
            if let Some(authority) = &authority {
                let files = authority.issue(&format!("w{rank}"), &["127.0.0.1"]);
                let files: Vec<_> = files.iter().map(|path| path.display().to_string()).collect();
                command.env("RETORT_BENCH_TLS", files.join("\n"));
            }
            commands.push(command);
        }
        let mut group = Self::start(commands)?;
        let addresses = group.hear()?;
        let place =
            |(address, deal): (&String, &Range<u32>)| format!("{address},{},{}", deal.start, deal.end);
        let roster: Vec<_> = addresses.iter().zip(deals).map(place).collect();
        group.say(&roster.join(" "))?;
        Ok(group)
    }

    pub fn say(&mut self, line: &str) -> Result<(), Failure> {
        for (_, input, _) in &mut self.members {
            writeln!(input, "{line}")?;
        }
        Ok(())
    }

    pub fn hear(&mut self) -> Result<Vec<String>, Failure> {
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

    /// Every member's numbers of one round.
    pub fn round(&mut self) -> Result<Vec<Vec<f64>>, Failure> {
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

/// The lines that tell a member to go on.
pub type Lines = std::io::Lines<std::io::StdinLock<'static>>;

/// A member's side: says where it listens, hears the roster, and joins.
#[allow(clippy::print_stdout)]
pub fn join(runtime: &tokio::runtime::Runtime, wire: Wire) -> Result<(Cohort, Exchange, Lines), Failure> {
    let rank: usize = number(RANK, 0);
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
    let mut lines = std::io::stdin().lines();
    let mut members = Vec::new();
    for (at, text) in lines.next().ok_or("no roster")??.split(' ').enumerate() {
        let parts: Vec<&str> = text.split(',').collect();
        let [address, start, end] = parts[..] else { return Err("a roster's member has three parts".into()) };
        let microbatches = start.parse()?..end.parse()?;
        members.push(Member { worker: format!("w{at}").parse()?, address: address.to_owned(), microbatches });
    }
    let roster = Roster { lineage: "bench".to_owned(), generation: 1, members, rank };
    let cohort = exchange.join(roster, wire)?;
    Ok((cohort, exchange, lines))
}

/// User and system time of this process, seconds; the kernel counts in hundredths.
pub fn cpu() -> (f64, f64) {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<f64> =
        text.rsplit(')').next().unwrap_or_default().split(' ').filter_map(|word| word.parse().ok()).collect();
    // After the name and the state come ten fields before utime.
    match fields.get(10..12) {
        Some([user, system]) => (user / 100.0, system / 100.0),
        _ => (0.0, 0.0),
    }
}
