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
#[cfg(test)]
mod tests;
mod trainer;

use super::bench::{Content, Produced, TaskError, Workbench};
use super::order::OrderReader;
use super::student::{CURVE, SHAPE, STATE, StudentShape, TOKENIZER, WEIGHTS};
use crate::model::{FileDtype, Tower, write_parameters};
use crate::training::checkpoint::Checkpoints;
use crate::vectors::{Values, write_tensors};
use objective::{LossDims, PhaseLoss, optimizer, schedule};
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
    let Task::Train { start, order, inputs, signal, phase, loss, span, normalize, seed, .. } = task else {
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
    // The order holds the rows of this part of the phase; steps are counted over all of it.
    let first = span.map_or(0, |span| u64::from(span.first));
    let end = first + reader.steps;
    let steps = span.map_or(reader.steps, |span| u64::from(span.total));
    let dims = LossDims { student: shape.tower.dim(), signal: signal.dim(), width: reader.width, steps };
    let phase_loss = PhaseLoss::new(loss, phase, *normalize, dims)?;
    params.extend(phase_loss.initial(*seed));
    let mut trainer = Trainer {
        bench,
        phase,
        optimizer: optimizer(tower.layout(), &phase_loss, phase),
        loss: phase_loss,
        seed: *seed,
        schedule: schedule(phase, steps),
        inputs,
        signal,
        pad_token_id: pad_token_id(&shape.tower),
        tower,
        params,
        curve: Vec::new(),
    };
    if let StudentStart::Continue { student } = start {
        trainer.take_over(student, first)?;
    }
    let checkpoints = Checkpoints::new(bench, task.id());
    let mut step = trainer.resume(&checkpoints)?.unwrap_or(first);
    while step < end {
        if bench.progress.stopped() {
            trainer.save(&checkpoints, step)?;
            return Err(TaskError::Stopped);
        }
        trainer.step(step, &reader.step(step - first)?)?;
        step += 1;
        let loss = trainer.curve.last().map_or(f64::NAN, |point| point.loss);
        let detail = format!("step {step}/{steps}, loss {loss:.4}");
        bench.progress.progress(step - first, end - first, &detail);
        if step % u64::from(phase.checkpoint_every) == 0 && step < end {
            trainer.save(&checkpoints, step)?;
        }
    }
    finish(bench, task, &shape, tokenizer, trainer, step)
}

fn finish(
    bench: &Workbench<'_>,
    task: &Task,
    shape: &StudentShape,
    tokenizer: Option<PathBuf>,
    trainer: Trainer<'_>,
    steps: u64,
) -> Result<Produced, TaskError> {
    let path = bench.scratch(WEIGHTS);
    let (params, loss_parameters) = trainer.params.split_at(trainer.tower_len());
    write_parameters(&path, trainer.tower.layout(), params, FileDtype::F32, &BTreeMap::new())
        .map_err(TaskError::input)?;
    let flat: Vec<u8> = params.iter().flat_map(|value| value.to_le_bytes()).collect();
    let weights_sha256 = Digest::of(&flat);
    let json = |value: serde_json::Result<Vec<u8>>| value.map(Into::into).map_err(TaskError::input);
    let mut parts = vec![
        (SHAPE.to_owned(), Content::Bytes(json(serde_json::to_vec_pretty(shape))?)),
        (WEIGHTS.to_owned(), Content::File(path)),
        (CURVE.to_owned(), Content::Bytes(json(serde_json::to_vec(&trainer.curve))?)),
    ];
    if matches!(task, Task::Train { keeps_state: true, .. }) {
        let path = bench.scratch(STATE);
        let (first, second) = trainer.optimizer.moments();
        let tensors =
            [("first_moment", first), ("loss_parameters", loss_parameters), ("second_moment", second)];
        write_tensors(&path, &tensors.map(|(name, values)| (name, vec![values.len()], Values::F32(values))))?;
        parts.push((STATE.to_owned(), Content::File(path)));
    }
    parts.extend(tokenizer.map(|path| (TOKENIZER.to_owned(), Content::File(path))));
    let last = trainer.curve.last().map(|point| point.loss);
    let meta = json!({
        "steps": steps, "loss": last, "weights_sha256": weights_sha256,
        "dim": shape.tower.dim(), "parameters": params.len(),
        "temperatures": trainer.loss.temperatures(loss_parameters),
    });
    Ok(Produced { parts, meta })
}
