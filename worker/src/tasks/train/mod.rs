//! A student through one phase of training.
//!
//! One worker computes every microbatch, but the mathematics is that of a cohort: vectors of the whole batch are
//! gathered before the loss, gradients are taken one microbatch at a time (GradCache, Gao et al. 2021,
//! arXiv 2101.06983), and summed in the canonical tree.
//!
//! - `start`: the student before the first step
//! - `objective`: the loss, optimiser and schedule that the settings ask for
//! - `trainer`: the steps

mod objective;
mod start;
mod trainer;

use super::bench::{Content, Produced, TaskError, Workbench};
use super::order::OrderReader;
use super::student::{CURVE, SHAPE, StudentShape, TOKENIZER, WEIGHTS};
use crate::model::{FileDtype, Tower, write_parameters};
use crate::training::checkpoint::Checkpoints;
use objective::{objective, optimizer, schedule};
use retort_common::ids::Digest;
use retort_common::task::{ProjectionStart, StudentStart, Task};
use serde_json::json;
use start::{begin, pad_token_id, scale_projection};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use trainer::{Trainer, Vectors};

/// Trains a student through a phase.
pub fn train(bench: &Workbench<'_>, task: &Task) -> Result<Produced, TaskError> {
    let Task::Train { start, order, inputs, signal, phase, loss, normalize, seed, .. } = task else {
        unreachable!("called with its own task")
    };
    bench.encoders.clear();
    let (shape, mut params, tokenizer) = begin(bench, start, *normalize, *seed)?;
    let mut reader = OrderReader::open(bench, order)?;
    if let StudentStart::Encoder { dim: Some(_), init, .. } = start
        && *init != ProjectionStart::Random
        && *normalize
    {
        scale_projection(bench, &shape.tower, &mut params, &reader.step(0)?)?;
    }
    let signal_vectors = Rc::new(Vectors::open(bench, signal)?);
    let inputs = match inputs {
        // A head's own input is mostly its signal, too: its files are opened once.
        Some(set) if set == signal => Some(Rc::clone(&signal_vectors)),
        Some(set) => Some(Rc::new(Vectors::open(bench, set)?)),
        None => None,
    };
    let signal = signal_vectors;
    let tower = Tower::new(shape.tower.clone(), &params, &bench.device).map_err(TaskError::input)?;
    let mut trainer = Trainer {
        bench,
        phase,
        objective: objective(loss, *normalize),
        optimizer: optimizer(&tower, phase),
        schedule: schedule(phase, reader.steps),
        inputs,
        signal,
        pad_token_id: pad_token_id(&shape.tower),
        tower,
        params,
        curve: Vec::new(),
    };
    let checkpoints = Checkpoints::new(bench, task.id());
    let mut step = trainer.resume(&checkpoints)?;
    while step < reader.steps {
        if bench.progress.stopped() {
            trainer.save(&checkpoints, step)?;
            return Err(TaskError::Stopped);
        }
        trainer.step(step, &reader.step(step)?)?;
        step += 1;
        let loss = trainer.curve.last().map_or(f64::NAN, |point| point.loss);
        let detail = format!("step {step}/{}, loss {loss:.4}", reader.steps);
        bench.progress.progress(step, reader.steps, &detail);
        if step % u64::from(phase.checkpoint_every) == 0 && step < reader.steps {
            trainer.save(&checkpoints, step)?;
        }
    }
    finish(bench, &shape, tokenizer, trainer, step)
}

fn finish(
    bench: &Workbench<'_>,
    shape: &StudentShape,
    tokenizer: Option<PathBuf>,
    trainer: Trainer<'_>,
    steps: u64,
) -> Result<Produced, TaskError> {
    let path = bench.scratch(WEIGHTS);
    write_parameters(&path, trainer.tower.layout(), &trainer.params, FileDtype::F32, &BTreeMap::new())
        .map_err(TaskError::input)?;
    let flat: Vec<u8> = trainer.params.iter().flat_map(|value| value.to_le_bytes()).collect();
    let weights_sha256 = Digest::of(&flat);
    let json = |value: serde_json::Result<Vec<u8>>| value.map(Into::into).map_err(TaskError::input);
    let mut parts = vec![
        (SHAPE.to_owned(), Content::Bytes(json(serde_json::to_vec_pretty(shape))?)),
        (WEIGHTS.to_owned(), Content::File(path)),
        (CURVE.to_owned(), Content::Bytes(json(serde_json::to_vec(&trainer.curve))?)),
    ];
    parts.extend(tokenizer.map(|path| (TOKENIZER.to_owned(), Content::File(path))));
    let last = trainer.curve.last().map(|point| point.loss);
    let meta = json!({
        "steps": steps, "loss": last, "weights_sha256": weights_sha256,
        "dim": shape.tower.dim(), "parameters": trainer.params.len(),
    });
    Ok(Produced { parts, meta })
}
