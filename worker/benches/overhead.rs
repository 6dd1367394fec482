//! What a step of a cohort costs beyond its computing: `just bench-overhead`.
//!
//! Four processes train together as workers do: they gather vectors, compute the loss of the whole batch, sum gradients
//! in the canonical tree, reduce them over gRPC, and apply AdamW to a tower of 22.6 million parameters (90 MB). Only
//! the encoder's passes are simulated: each microbatch sleeps, and then has a gradient of full length. Steps follow
//! each other without a pause, as in training. `RETORT_BENCH_WORKERS` changes their number: four processes on a machine
//! of two cores share each core, and what a step costs beyond computing doubles.

#![allow(clippy::print_stdout)]

use bytes::Bytes;
use members::{Failure, Group, RANK, cpu, median, number};
use retort_worker::exchange::{Cohort, Wire};
use retort_worker::losses::{self, Batch, Loss, Objective, Scope, Similarity, Teacher, Temperature, Term};
use retort_worker::model::{Architecture, Device, EncoderConfig, Head, Input, Pooling, Tower, TowerConfig};
use retort_worker::optimizer::{AdamW, AdamWConfig, Group as Parameters, Schedule, ScheduleKind, clip_scale};
use retort_worker::training::digest::digest;
use retort_worker::training::tree::{TreeSum, subtrees};
use std::ops::Range;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

mod members;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Simulated computing of a microbatch; a third of it is the pass that makes its vectors.
const MICROBATCH: Duration = Duration::from_millis(200);
const ENCODING: Duration = Duration::from_millis(67);
/// Steps that are timed, after one that is not.
const STEPS: usize = 5;
/// A microbatch: questions, each with a positive and a hard negative.
const QUESTIONS: usize = 8;
const CANDIDATES: usize = 2;
const DIM: usize = 384;

fn main() -> Result<(), Failure> {
    if std::env::var_os(RANK).is_some() {
        return member();
    }
    let workers: u32 = number("RETORT_BENCH_WORKERS", 4);
    println!("{workers} workers, {} ms a microbatch, {STEPS} steps; times in ms", MICROBATCH.as_millis());
    println!("microbatches  step  ideal  share | rank 0: gather  loss  tree  reduce (waiting)  apply | cpu");
    for each in [1u32, 2, 4, 8, 16] {
        let deals: Vec<Range<u32>> = (0..workers).map(|rank| rank * each..(rank + 1) * each).collect();
        let mut group = Group::cohort(&deals, &[], None)?;
        let mut steps = Vec::new();
        let mut parts: Vec<f64> = Vec::new();
        for round in 0..=STEPS {
            let report = group.round()?;
            if round > 0 {
                steps.push(report.iter().map(|words| words[0]).fold(0.0, f64::max) * 1e3);
                parts.resize(report[0].len(), 0.0);
                parts.iter_mut().zip(&report[0]).for_each(|(sum, part)| *sum += part * 1e3 / STEPS as f64);
            }
        }
        let ideal = f64::from(each) * MICROBATCH.as_secs_f64() * 1e3;
        let step = median(&mut steps);
        let [_, gather, loss, tree, reduce, waiting, apply, user, system] = parts[..] else {
            return Err("a member says nine numbers".into());
        };
        println!(
            "{each:>12} {step:>5.0} {ideal:>6.0} {:>5.1}% |       {gather:>8.0} {loss:>5.0} {tree:>5.0} \
             {reduce:>7.0} {waiting:>9.0} {apply:>6.0} | {:.0}",
            100.0 * ideal / step,
            user + system
        );
    }
    Ok(())
}

/// A tower of MiniLM-L6's shape.
fn tower() -> Result<Tower, Failure> {
    let encoder = EncoderConfig {
        architecture: Architecture::default(),
        vocabulary_size: 30_522,
        hidden_size: DIM,
        layers: 6,
        heads: 12,
        intermediate_size: 4 * DIM,
        max_positions: 512,
        token_types: 2,
        layer_norm_epsilon: 1e-12,
        pad_token_id: 0,
    };
    let config = TowerConfig { input: Input::Tokens { encoder, pooling: Pooling::Mean }, head: Head::None };
    Ok(Tower::init(config, 1, &Device::flex())?)
}

/// A worker's part of a training.
struct Training {
    tower: Tower,
    params: Vec<f32>,
    optimizer: AdamW,
    schedule: Schedule,
    objective: Objective,
}

/// Where a step's time went.
#[derive(Default)]
struct Spent {
    gather: Duration,
    loss: Duration,
    tree: Duration,
    reduce: Duration,
    apply: Duration,
}

/// One member: takes a step whenever it is told to.
fn member() -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tower = tower()?;
    let groups = tower.layout().entries().iter();
    let groups = groups.map(|entry| Parameters { range: entry.range(), decay: entry.decay, frozen: false });
    let optimizer = AdamW::new(AdamWConfig::default(), groups.collect());
    let params = tower.params();
    let schedule = Schedule { kind: ScheduleKind::Linear, warmup_steps: 2, total_steps: 100, lr: 1e-4 };
    let temperature = Temperature { value: 0.05, learnt: None };
    let loss = Loss::InfoNce { temperature, scope: Scope::Batch, guide: None };
    let term = Term { weight: 1.0, ramp: None, dims: Vec::new(), loss };
    let similarity = Similarity::Cosine;
    let objective = Objective { similarity, teacher_similarity: similarity, terms: vec![term] };
    let mut training = Training { tower, params, optimizer, schedule, objective };
    let (cohort, _exchange, lines) = members::join(&runtime, Wire::F32)?;
    for (step, line) in (1..).zip(lines) {
        line?;
        let (user, system) = cpu();
        cohort.take_spent();
        let begun = Instant::now();
        let Spent { gather, loss, tree, reduce, apply } = training.step(&runtime, &cohort, step)?;
        let elapsed = begun.elapsed();
        let waiting = cohort.take_spent().waiting;
        let times = [elapsed, gather, loss, tree, reduce, waiting, apply].map(|time| time.as_secs_f64());
        let (user, system) = (cpu().0 - user, cpu().1 - system);
        let words = times.into_iter().chain([user, system]).map(|number| number.to_string());
        println!("{}", words.collect::<Vec<_>>().join(" "));
    }
    Ok(())
}

impl Training {
    /// What a worker does in a step, in its order.
    fn step(&mut self, runtime: &Runtime, cohort: &Cohort, step: u64) -> Result<Spent, Failure> {
        let mut spent = Spent::default();
        let roster = cohort.roster();
        let (deal, leaves) = (roster.members[roster.rank].microbatches.clone(), roster.leaves());
        let mut mine = Vec::new();
        for leaf in deal.clone() {
            let begun = Instant::now();
            mine.extend(vectors(step, leaf));
            sleep_until(begun, ENCODING);
        }
        let begun = Instant::now();
        let mut message = digest(&[&self.params]).to_le_bytes().to_vec();
        message.extend(mine.iter().flat_map(|value| value.to_le_bytes()));
        let all = runtime.block_on(cohort.all_gather((step, 0), message.into()))?;
        spent.gather = begun.elapsed();
        let begun = Instant::now();
        let value = self.loss(&all)?;
        spent.loss = begun.elapsed();
        let mut partials = Vec::new();
        for node in subtrees(deal, leaves) {
            let mut sum = TreeSum::of(&node, leaves, Wire::F32);
            for leaf in node.clone() {
                let begun = Instant::now();
                let gradient = gradient(self.params.len(), step, leaf, value);
                sleep_until(begun, MICROBATCH - ENCODING);
                let begun = Instant::now();
                sum.push(gradient);
                spent.tree += begun.elapsed();
            }
            partials.push((node, sum.finish().ok_or("a subtree has leaves")?));
        }
        let begun = Instant::now();
        let mut gradient = runtime.block_on(cohort.reduce(step, partials))?;
        spent.reduce = begun.elapsed();
        let begun = Instant::now();
        self.optimizer.clear_frozen(&mut gradient);
        let (_, scale) = clip_scale(&gradient, 1.0);
        self.optimizer.step_scaled(&mut self.params, &gradient, scale, self.schedule.at(step));
        cohort.recycle(gradient);
        self.tower.set_params(&self.params)?;
        spent.apply = begun.elapsed();
        Ok(spent)
    }

    /// The loss of the whole batch, every question against every passage.
    fn loss(&self, all: &[Bytes]) -> Result<f64, Failure> {
        let width = (1 + CANDIDATES) * DIM;
        let (mut queries, mut passages) = (Vec::new(), Vec::new());
        for message in all {
            let values = message[8..].as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
            for row in values.collect::<Vec<f32>>().chunks_exact(width) {
                queries.extend_from_slice(&row[..DIM]);
                passages.extend_from_slice(&row[DIM..]);
            }
        }
        let rows = queries.len() / DIM;
        let numbers = |count: usize| (0..count as u64).collect::<Vec<_>>();
        let known: Vec<Vec<u64>> = (0..rows).map(|row| vec![(row * CANDIDATES) as u64]).collect();
        let batch = Batch {
            dim: DIM,
            microbatch: QUESTIONS,
            queries: &queries,
            passages: &passages,
            query_rows: &numbers(rows),
            passage_rows: &numbers(rows * CANDIDATES),
            known_positives: &known,
            teacher: Teacher::None,
        };
        Ok(losses::evaluate(&self.objective, &batch, &[])?.value)
    }
}

fn sleep_until(begun: Instant, length: Duration) {
    std::thread::sleep(length.saturating_sub(begun.elapsed()));
}

/// Vectors of a microbatch, questions with their candidates.
fn vectors(step: u64, leaf: u32) -> impl Iterator<Item = f32> {
    let values = QUESTIONS * (1 + CANDIDATES) * DIM;
    let seed = step * 31 + u64::from(leaf) * 17;
    (0..values as u64).map(move |at| (((at * 7919 + seed) % 1013) as f32).mul_add(0.002, -1.0))
}

/// A microbatch's gradient, which depends on the loss.
fn gradient(length: usize, step: u64, leaf: u32, loss: f64) -> Vec<f32> {
    let scale = loss as f32 * 1e-6;
    let start = (step as u32).wrapping_mul(13).wrapping_add(leaf * 7) % 17;
    let pattern: Vec<f32> = (0..4096u32).map(|at| scale * ((at + start) % 17) as f32 - 8.0 * scale).collect();
    let mut values = Vec::with_capacity(length + pattern.len());
    while values.len() < length {
        values.extend_from_slice(&pattern);
    }
    values.truncate(length);
    values
}
