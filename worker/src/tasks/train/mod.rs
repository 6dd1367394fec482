//! A student through one phase of training, by one worker or by a cohort of them.
//!
//! Vectors of the whole batch are gathered before the loss, gradients are taken one microbatch at a time (GradCache,
//! Gao et al. 2021, arXiv 2101.06983), and summed in the canonical tree. Who computes which microbatch changes no bit.
//!
//! - `start`: the student before the first step
//! - `objective`: the loss, optimiser and schedule that the settings ask for
//! - `trainer`: one step
//! - `generations`: steps from one change of the cohort's membership to the next; `cohort`: its members

mod cohort;
mod generations;
mod objective;
mod start;
mod trainer;

use super::bench::{Content, Produced, TaskError, Workbench};
use super::order::{OrderReader, StepRows};
use super::student::{CURVE, SHAPE, StudentShape, TOKENIZER, WEIGHTS};
use crate::model::{FileDtype, Tower, write_parameters};
use crate::training::checkpoint::{Checkpoint, Checkpoints, InFlight, weights_sha256};
use cohort::Standing;
use generations::Course;
use objective::{objective, optimizer, schedule};
use retort_common::task::{ProjectionStart, StudentStart, Task};
use serde_json::json;
use start::{begin, pad_token_id, scale_projection};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use trainer::{CachedVectors, Trainer};

/// Trains a student through a phase.
pub fn train(bench: &Workbench<'_>, task: &Task) -> Result<Produced, TaskError> {
    let Task::Train { order, inputs, signal, phase, loss, normalize, .. } = task else {
        unreachable!("called with its own task")
    };
    bench.encoders.clear();
    let mut reader = OrderReader::open(bench, order)?;
    let (shape, params, tokenizer) = student(bench, task, &mut || reader.step(0))?;
    let signal_vectors = Rc::new(CachedVectors::open(bench, signal)?);
    let inputs = match inputs {
        // A head's own input is mostly its signal, too: its files are opened once.
        Some(set) if set == signal => Some(Rc::clone(&signal_vectors)),
        Some(set) => Some(Rc::new(CachedVectors::open(bench, set)?)),
        None => None,
    };
    let signal = signal_vectors;
    let tower = Tower::new(shape.tower.clone(), &params, &bench.device).map_err(TaskError::input)?;
    let trainer = Trainer {
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
        weights_digest: None,
    };
    let initial = || initial_state(bench, task);
    let mut course = Course {
        bench,
        trainer,
        reader,
        checkpoints: Checkpoints::new(bench, task.id(), 1),
        in_flight: InFlight::default(),
        initial: &initial,
        step: 0,
        standing: Standing::default(),
        leads: true,
    };
    course.run()?;
    let Course { trainer, step, .. } = course;
    finish(bench, &shape, tokenizer, trainer, step)
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
fn initial_state(bench: &Workbench<'_>, task: &Task) -> Result<Checkpoint, TaskError> {
    let Task::Train { order, .. } = task else { unreachable!("called with its own task") };
    let mut first = || OrderReader::open(bench, order)?.step(0);
    let (_, params, _) = student(bench, task, &mut first)?;
    let moments = vec![0.0; params.len()];
    let (first_moment, second_moment) = (moments.clone(), moments);
    Ok(Checkpoint { step: 0, params, first_moment, second_moment, curve: Vec::new() })
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
    let weights_sha256 = weights_sha256(&trainer.params);
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
