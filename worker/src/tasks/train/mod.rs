//! A student through one phase of training, by one worker or by a cohort of them.
//!
//! Vectors of the whole batch are gathered before the loss, gradients are taken one microbatch at a time (GradCache,
//! Gao et al. 2021, arXiv 2101.06983), and summed in the canonical tree. Who computes which microbatch changes no bit.
//!
//! - `start`: the student before the first step
//! - `objective`: the loss, optimiser and schedule that the settings ask for
//! - `trainer`: one step; `signal`: what it learns from
//! - `generations`: steps from one change of the cohort's membership to the next; `cohort`: its members
//! - `doubt`: values that are not finite; `recompute`: a step once more, by one member alone
//! - `telling`: what the coordinator hears of steps

mod cohort;
mod doubt;
mod generations;
#[cfg(test)]
mod memory;
mod objective;
mod recompute;
mod signal;
mod start;
mod telling;
#[cfg(test)]
mod tests;
mod trainer;

use super::bench::{Content, Produced, TaskError, Workbench};
use super::order::{OrderReader, StepRows};
use super::student::{CURVE, SHAPE, STATE, StudentShape, TOKENIZER, WEIGHTS, curve};
use crate::model::{FileDtype, Input, Tower, write_parameters};
use crate::training::checkpoint::{Checkpoint, Checkpoints, InFlight, weights_sha256};
use crate::vectors::{Tensors, Values, write_tensors};
use cohort::Standing;
use generations::Course;
use objective::{LossDims, PhaseLoss, optimizer, schedule};
use retort_common::task::{ArtifactId, ProjectionStart, Signal, StudentStart, Task};
use serde_json::json;
use signal::SignalSource;
use start::{begin, pad_token_id, scale_projection};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use telling::Telling;
use trainer::{CachedVectors, Trainer};

/// Trains a student through a phase.
pub fn train(bench: &Workbench<'_>, task: &Task) -> Result<Produced, TaskError> {
    let Task::Train { start, order, inputs, signal, phase, loss, span, normalize, seed, .. } = task else {
        unreachable!("called with its own task")
    };
    bench.encoders.clear();
    let mut reader = OrderReader::open(bench, order)?;
    let (shape, mut params, tokenizer) = student(bench, task, &mut || reader.step(0))?;
    let source = SignalSource::open(bench, signal)?;
    let inputs = match (inputs, signal, &source) {
        // A head's own input is mostly its signal, too: its files are opened once.
        (Some(set), Signal::Vectors(own), SignalSource::Vectors(open)) if set == own => Some(Rc::clone(open)),
        (Some(set), ..) => Some(Rc::new(CachedVectors::open(bench, set)?)),
        (None, ..) => None,
    };
    // An encoder reads text: vectors beside it are those of the passages that it asks.
    let (inputs, candidates) = match &shape.tower.input {
        Input::Vectors { .. } => (inputs, None),
        Input::Tokens { .. } => (None, inputs),
    };
    if let Some(candidates) = &candidates
        && candidates.dim() != shape.tower.dim()
    {
        let (theirs, own) = (candidates.dim(), shape.tower.dim());
        return Err(TaskError::Input(format!(
            "the passages' vectors have {theirs} dimensions, this encoder of questions gives {own}: set `dim`"
        )));
    }
    let tower = Tower::new(shape.tower.clone(), &params, &bench.device).map_err(TaskError::input)?;
    // The order holds the rows of this part of the phase; steps are counted over all of it.
    let first = span.map_or(0, |span| u64::from(span.first));
    let (end, total) = (first + reader.steps, span.map_or(reader.steps, |span| u64::from(span.total)));
    let dims =
        LossDims { student: shape.tower.dim(), signal: source.kind(), width: reader.width, steps: total };
    let phase_loss = PhaseLoss::new(loss, phase, *normalize, dims)?;
    let loss_parameters = phase_loss.initial(*seed);
    params.extend_from_slice(&loss_parameters);
    let mut trainer = Trainer {
        phase,
        optimizer: optimizer(tower.layout(), &phase_loss, phase),
        loss: phase_loss,
        seed: *seed,
        schedule: schedule(phase, total),
        inputs,
        candidates,
        signal: source,
        pad_token_id: pad_token_id(&shape.tower),
        tower,
        params,
        curve: Vec::new(),
        weights_digest: None,
    };
    let initial = || initial_state(bench, task, &loss_parameters, first);
    if matches!(start, StudentStart::Continue { .. }) {
        trainer.restore(initial()?)?;
    }
    let mut course = Course {
        bench,
        trainer,
        reader,
        checkpoints: Checkpoints::new(bench, task.id(), phase.keep_last),
        in_flight: InFlight::default(),
        initial: &initial,
        first,
        end,
        total,
        step: first,
        standing: Standing::default(),
        telling: Telling::default(),
        doubt: None,
        leads: true,
    };
    course.run()?;
    let Course { trainer, step, .. } = course;
    finish(bench, task, &shape, tokenizer, trainer, step)
}

/// The student before its first step: its shape, parameters and tokenizer.
fn student(
    bench: &Workbench<'_>,
    task: &Task,
    first: &mut dyn FnMut() -> Result<StepRows, TaskError>,
) -> Result<(StudentShape, Vec<f32>, Option<PathBuf>), TaskError> {
    let Task::Train { start, normalize, seed, .. } = task else { unreachable!("called with its own task") };
    let (shape, mut params, tokenizer) = begin(bench, start, *normalize, *seed)?;
    if let StudentStart::Encoder { dim: Some(_), init, .. } = start
        && *init != ProjectionStart::Random
        && *normalize
    {
        scale_projection(bench, &shape.tower, &mut params, &first()?)?;
    }
    Ok((shape, params, tokenizer))
}

/// The state before the first step, made anew.
fn initial_state(
    bench: &Workbench<'_>,
    task: &Task,
    loss_parameters: &[f32],
    step: u64,
) -> Result<Checkpoint, TaskError> {
    let Task::Train { start, order, .. } = task else { unreachable!("called with its own task") };
    let mut first = || OrderReader::open(bench, order)?.step(0);
    let (_, mut params, _) = student(bench, task, &mut first)?;
    if let StudentStart::Continue { student } = start {
        return taken_over(bench, student, params, loss_parameters.len(), step);
    }
    params.extend_from_slice(loss_parameters);
    let moments = vec![0.0; params.len()];
    let (first_moment, second_moment) = (moments.clone(), moments);
    Ok(Checkpoint { step, params, first_moment, second_moment, curve: Vec::new() })
}

/// The state that the part of the phase before this one ended with, `step` steps after the phase began.
fn taken_over(
    bench: &Workbench<'_>,
    part: &ArtifactId,
    mut params: Vec<f32>,
    loss_parameters: usize,
    step: u64,
) -> Result<Checkpoint, TaskError> {
    let state = Tensors::read(&bench.part(part, STATE)?)?;
    let read = |name: &str, wanted: usize| {
        let (_, values) = state.f32(name)?;
        if values.len() == wanted {
            return Ok(values);
        }
        let found = values.len();
        Err(TaskError::Input(format!("{part}: {name} has {found} values, {wanted} are needed")))
    };
    params.extend(read("loss_parameters", loss_parameters)?);
    let (first_moment, second_moment) =
        (read("first_moment", params.len())?, read("second_moment", params.len())?);
    Ok(Checkpoint { step, params, first_moment, second_moment, curve: curve(bench, part)? })
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
    let weights_sha256 = weights_sha256(params);
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
        let tensors = tensors.map(|(name, values)| (name, vec![values.len()], Values::F32(values)));
        write_tensors(&path, &tensors)?;
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
