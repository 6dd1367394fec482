//! A student through one phase of training.
//!
//! One worker computes every microbatch, but the mathematics is that of a cohort: vectors of the whole batch are
//! gathered before the loss, gradients are taken one microbatch at a time (GradCache, Gao et al. 2021,
//! arXiv 2101.06983), and summed in the canonical tree.

use super::bench::{Content, Produced, TaskError, Workbench};
use super::embed::pooling;
use super::fit::load_pca;
use super::input::model_folder;
use super::order::{OrderReader, StepRows, TextRow};
use super::student::{CURVE, SHAPE, Student, StudentShape, WEIGHTS};
use crate::losses::{self, Objective, Similarity, Teacher};
use crate::matrix::Matrix;
use crate::model::{Batch, Forward, Head, Input, Tower, TowerConfig, FileDtype, load_encoder, write_parameters};
use crate::optimizer::{AdamW, AdamWConfig, Schedule, ScheduleKind, clip_global_norm};
use crate::report::StepPoint;
use crate::text::{TokenBatch, Tokenizer};
use crate::training::checkpoint::{Checkpoint, Checkpoints};
use crate::training::tree::TreeSum;
use crate::vectors::VectorRows;
use retort_common::ids::Digest;
use retort_common::spec::{self, LossKind, LossScope, LossSpec, PhaseSpec};
use retort_common::task::{ProjectionStart, StudentStart, Task, VectorSet};
use serde_json::json;
use std::collections::BTreeMap;

/// Trains a student through a phase.
pub fn train(bench: &Workbench<'_>, task: &Task) -> Result<Produced, TaskError> {
    let Task::Train { start, order, inputs, signal, phase, loss, normalize, seed, .. } = task else {
        unreachable!("called with its own task")
    };
    let (shape, params) = begin(bench, start, *seed)?;
    let mut reader = OrderReader::open(bench, order)?;
    let tower = Tower::new(shape.tower.clone(), &params, &bench.device).map_err(TaskError::input)?;
    let mut trainer = Trainer {
        bench,
        phase,
        objective: objective(loss, *normalize),
        optimizer: optimizer(&tower, phase),
        schedule: schedule(phase, reader.steps),
        inputs: inputs.as_ref().map(|set| Vectors::open(bench, set)).transpose()?,
        signal: Vectors::open(bench, signal)?,
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
    finish(bench, &shape, trainer, step)
}

/// The student before the first step.
fn begin(bench: &Workbench<'_>, start: &StudentStart, seed: u64) -> Result<(StudentShape, Vec<f32>), TaskError> {
    match start {
        StudentStart::Student { student } => {
            let Student { shape, params, .. } = Student::load(bench, student)?;
            Ok((shape, params))
        }
        StudentStart::Head { input, dim, hidden, init } => {
            let dim = *dim as usize;
            let head = match hidden {
                Some(hidden) => Head::Mlp { hidden: *hidden as usize, dim },
                None => Head::Linear { dim, bias: false },
            };
            let tower = TowerConfig { input: Input::Vectors { dim: *input as usize }, head };
            tower.validate().map_err(TaskError::input)?;
            let mut params = tower.initial_params(seed);
            start_projection(bench, &tower, &mut params, init)?;
            Ok((StudentShape { tower, tokenizer: None, data: "vectors".to_owned() }, params))
        }
        StudentStart::Encoder { files, layers, pooling: kind, dim, init } => {
            let folder = model_folder(bench, files)?;
            let layers: Option<Vec<usize>> =
                layers.as_ref().map(|layers| layers.iter().map(|layer| *layer as usize).collect());
            let (encoder, encoder_params) = load_encoder(&folder, layers.as_deref()).map_err(TaskError::input)?;
            // The rows hold its token ids already; here both sides are known.
            let tokenizer = folder.join("tokenizer.json");
            Tokenizer::load(&tokenizer, encoder.vocabulary_size).map_err(TaskError::input)?;
            let head = dim.map_or(Head::None, |dim| Head::Linear { dim: dim as usize, bias: false });
            let tower = TowerConfig { input: Input::Tokens { encoder, pooling: pooling(*kind) }, head };
            // The head's parameters follow the encoder's in the canonical order.
            let mut params = tower.initial_params(seed);
            params[..encoder_params.len()].copy_from_slice(&encoder_params);
            if dim.is_some() {
                start_projection(bench, &tower, &mut params, init)?;
            }
            let tokenizer = Some(files.tokenizer.clone());
            Ok((StudentShape { tower, tokenizer, data: "text".to_owned() }, params))
        }
    }
}

fn start_projection(
    bench: &Workbench<'_>,
    tower: &TowerConfig,
    params: &mut [f32],
    init: &ProjectionStart,
) -> Result<(), TaskError> {
    let weight = match init {
        ProjectionStart::Random => return Ok(()),
        ProjectionStart::Pca { pca } => {
            let pca = load_pca(bench, pca)?;
            let values = pca.components.iter().take(tower.dim() * pca.dim).map(|value| *value as f32).collect();
            if tower.dim() > pca.dim {
                return Err(TaskError::Input(format!(
                    "dim = {} is more than the teacher's {}: PCA cannot start it; use init = \"random\"",
                    tower.dim(),
                    pca.dim
                )));
            }
            Matrix::new(tower.dim(), pca.dim, values)
        }
        ProjectionStart::Head { student } => {
            let head = Student::load(bench, student)?;
            let entry = head.layout.entries().iter().find(|entry| entry.path.ends_with("weight"));
            let entry = entry.ok_or_else(|| TaskError::Input(format!("{student} has no linear head")))?;
            let (rows, columns) = (head.shape.tower.dim(), head.shape.tower.head_input());
            let flat = &head.params[entry.range()];
            let at = |i: usize| {
                let (row, column) = (i / columns, i % columns);
                if entry.transposed { flat[column * rows + row] } else { flat[i] }
            };
            Matrix::new(rows, columns, (0..rows * columns).map(at).collect())
        }
    };
    tower.set_head_weight(params, &weight).map_err(TaskError::input)
}

fn pad_token_id(tower: &TowerConfig) -> u32 {
    match &tower.input {
        Input::Tokens { encoder, .. } => encoder.pad_token_id as u32,
        Input::Vectors { .. } => 0,
    }
}

/// The loss that a spec asks for.
fn objective(terms: &[LossSpec], normalize: bool) -> Objective {
    let similarity = if normalize { Similarity::Cosine } else { Similarity::Dot };
    let term = |loss: &LossSpec| {
        let weight = loss.weight;
        let temperature = loss.temperature.unwrap_or(0.05);
        let in_batch = loss.scope.unwrap_or_default() == LossScope::Batch;
        match loss.kind {
            LossKind::InfoNce => losses::LossSpec::InfoNce { weight, temperature, in_batch },
            LossKind::Kl => losses::LossSpec::Kl {
                weight,
                student_temperature: temperature,
                teacher_temperature: loss.teacher_temperature.unwrap_or(temperature),
                scope: if in_batch { losses::Scope::Batch } else { losses::Scope::Listed },
                direction: losses::Direction::TeacherStudent,
            },
            LossKind::MarginMse => losses::LossSpec::MarginMse { weight, scale: 1.0 },
            LossKind::EmbeddingMse => {
                losses::LossSpec::EmbeddingMse { weight, side: losses::Side::Both, projection: false }
            }
            LossKind::EmbeddingCosine => {
                losses::LossSpec::EmbeddingCosine { weight, side: losses::Side::Both, projection: false }
            }
        }
    };
    Objective { similarity, teacher_similarity: similarity, terms: terms.iter().map(term).collect() }
}

fn optimizer(tower: &Tower, phase: &PhaseSpec) -> AdamW {
    let config = AdamWConfig { weight_decay: phase.weight_decay, ..AdamWConfig::default() };
    AdamW::new(config, tower.layout().decayed())
}

fn schedule(phase: &PhaseSpec, steps: u64) -> Schedule {
    let kind = match phase.schedule {
        spec::ScheduleKind::Linear => ScheduleKind::Linear,
        spec::ScheduleKind::Cosine => ScheduleKind::Cosine,
        spec::ScheduleKind::Constant => ScheduleKind::Constant,
    };
    Schedule {
        kind,
        warmup_steps: (phase.warmup * steps as f64).round() as u64,
        total_steps: steps,
        lr: phase.learning_rate,
    }
}

/// Cached vectors of both sides.
struct Vectors {
    queries: VectorRows,
    passages: VectorRows,
}

impl Vectors {
    fn open(bench: &Workbench<'_>, set: &VectorSet) -> Result<Self, TaskError> {
        Ok(Self { queries: bench.vector_rows(&set.queries)?, passages: bench.vector_rows(&set.passages)? })
    }

    fn gather(&self, texts: &[TextRow]) -> Result<Matrix, TaskError> {
        let mut vectors = Matrix::zeros(texts.len(), self.queries.dim());
        for (i, text) in texts.iter().enumerate() {
            let row = match text {
                TextRow::Query(row) => self.queries.gather(&[*row])?,
                TextRow::Passage(row) => self.passages.gather(&[*row])?,
            };
            vectors.row_mut(i).copy_from_slice(row.data());
        }
        Ok(vectors)
    }
}

/// The state of a phase in work.
struct Trainer<'a> {
    bench: &'a Workbench<'a>,
    phase: &'a PhaseSpec,
    objective: Objective,
    optimizer: AdamW,
    schedule: Schedule,
    inputs: Option<Vectors>,
    signal: Vectors,
    pad_token_id: u32,
    tower: Tower,
    params: Vec<f32>,
    curve: Vec<StepPoint>,
}

impl Trainer<'_> {
    /// Takes up the newest complete checkpoint; the number of steps already taken.
    fn resume(&mut self, checkpoints: &Checkpoints<'_>) -> Result<u64, TaskError> {
        let Some(found) = checkpoints.latest(self.params.len())? else { return Ok(0) };
        let Checkpoint { step, params, first_moment, second_moment, curve } = found;
        self.tower.set_params(&params).map_err(TaskError::input)?;
        self.optimizer.restore(step, first_moment, second_moment);
        (self.params, self.curve) = (params, curve);
        self.bench.progress.log(&format!("resumed from the checkpoint of step {step}"));
        Ok(step)
    }

    fn save(&self, checkpoints: &Checkpoints<'_>, step: u64) -> Result<(), TaskError> {
        let (first_moment, second_moment) = self.optimizer.moments();
        checkpoints.save(step, &self.params, first_moment, second_moment, &self.curve)
    }

    fn step(&mut self, step: u64, rows: &StepRows) -> Result<(), TaskError> {
        let microbatches = self.microbatches(rows)?;
        // One microbatch needs no second forward pass: its graph is kept. The kernels are the same either way.
        let keep = microbatches.len() == 1;
        let (mut outputs, mut graphs) = (Vec::new(), Vec::new());
        for parts in &microbatches {
            for batch in parts {
                if keep {
                    let forward = self.tower.forward(batch).map_err(TaskError::input)?;
                    outputs.push(forward.vectors.clone());
                    graphs.push(forward);
                } else {
                    outputs.push(self.tower.encode_training(batch).map_err(TaskError::input)?);
                }
            }
        }
        let (value, terms, gradients) = self.loss(rows, &outputs)?;
        let mut sum = TreeSum::default();
        let (mut graphs, mut gradients) = (graphs.into_iter(), gradients.into_iter());
        for parts in &microbatches {
            let mut leaf: Option<Vec<f32>> = None;
            for batch in parts {
                let forward: Forward = match graphs.next() {
                    Some(graph) => graph,
                    None => self.tower.forward(batch).map_err(TaskError::input)?,
                };
                let gradient = forward.backward(&gradients.next().expect("one gradient for each output"));
                match &mut leaf {
                    Some(leaf) => leaf.iter_mut().zip(gradient).for_each(|(a, b)| *a += b),
                    None => leaf = Some(gradient),
                }
            }
            sum.push(leaf.expect("a microbatch has rows"));
        }
        let mut gradient = sum.finish().expect("a batch has microbatches");
        let clip = if self.phase.clip_norm > 0.0 { self.phase.clip_norm } else { f64::INFINITY };
        let gradient_norm = clip_global_norm(&mut gradient, clip);
        if !value.is_finite() || !gradient_norm.is_finite() {
            let remedy = "lower the learning rate or look at the rows";
            return Err(TaskError::Input(format!(
                "step {}: loss {value} and gradient norm {gradient_norm} are not finite; {remedy}",
                step + 1
            )));
        }
        let learning_rate = self.schedule.at(step);
        self.optimizer.step(&mut self.params, &gradient, learning_rate);
        self.tower.set_params(&self.params).map_err(TaskError::input)?;
        self.curve.push(StepPoint { step: step + 1, loss: value, terms, learning_rate, gradient_norm });
        Ok(())
    }

    /// The batches of each microbatch: its questions and its passages, or its single texts.
    fn microbatches(&self, rows: &StepRows) -> Result<Vec<Vec<Batch>>, TaskError> {
        let count = self.phase.microbatches as usize;
        let batch = rows.known_positives.len();
        let width = rows.texts.len() / batch;
        let size = batch / count;
        let cells = |from: usize, to: usize, keep: fn(usize, usize) -> bool| -> Vec<usize> {
            (from * width..to * width).filter(|cell| keep(cell % width, width)).collect()
        };
        let mut microbatches = Vec::with_capacity(count);
        for at in 0..count {
            let (from, to) = (at * size, (at + 1) * size);
            let groups = [cells(from, to, |column, _| column == 0), cells(from, to, |column, _| column > 0)];
            let batches = groups.iter().filter(|cells| !cells.is_empty()).map(|cells| self.batch(rows, cells));
            microbatches.push(batches.collect::<Result<_, _>>()?);
        }
        Ok(microbatches)
    }

    fn batch(&self, rows: &StepRows, cells: &[usize]) -> Result<Batch, TaskError> {
        if let Some(inputs) = &self.inputs {
            let texts: Vec<_> = cells.iter().map(|cell| rows.texts[*cell]).collect();
            return Ok(Batch::Vectors(inputs.gather(&texts)?));
        }
        let tokens: Vec<_> = cells.iter().map(|cell| rows.tokens[*cell].as_slice()).collect();
        Ok(Batch::Tokens(TokenBatch::new(&tokens, self.pad_token_id)))
    }

    /// The loss of the gathered batch and its gradient for each of `outputs`.
    #[allow(clippy::type_complexity)]
    fn loss(
        &self,
        rows: &StepRows,
        outputs: &[Matrix],
    ) -> Result<(f64, Vec<(String, f64)>, Vec<Matrix>), TaskError> {
        let batch = rows.known_positives.len();
        let width = rows.texts.len() / batch;
        let dim = self.tower.config().dim();
        let gathered = |first: usize, by: usize| -> Vec<f32> {
            outputs.iter().skip(first).step_by(by).flat_map(|output| output.data().iter().copied()).collect()
        };
        // Single texts stand on both sides of the batch; only the side of the questions is compared.
        let single = width == 1;
        let (queries, passages) = if single {
            let texts = gathered(0, 1);
            (texts.clone(), texts)
        } else {
            (gathered(0, 2), gathered(1, 2))
        };
        let pick = |keep: fn(usize) -> bool| -> Vec<TextRow> {
            (0..rows.texts.len()).filter(|cell| keep(cell % width)).map(|cell| rows.texts[cell]).collect()
        };
        let query_texts = pick(|column| column == 0);
        let passage_texts = if single { query_texts.clone() } else { pick(|column| column > 0) };
        let row = |text: &TextRow| match text {
            TextRow::Query(row) | TextRow::Passage(row) => *row,
        };
        let query_rows: Vec<_> = query_texts.iter().map(row).collect();
        let passage_rows: Vec<_> = passage_texts.iter().map(row).collect();
        let teacher_queries = self.signal.gather(&query_texts)?;
        let teacher_passages =
            if single { teacher_queries.clone() } else { self.signal.gather(&passage_texts)? };
        let mut objective = self.objective.clone();
        if single {
            objective.terms.iter_mut().for_each(only_queries);
        }
        let batch_view = losses::Batch {
            dim,
            queries: &queries,
            passages: &passages,
            query_rows: &query_rows,
            passage_rows: &passage_rows,
            known_positives: &rows.known_positives,
            teacher: Teacher::Vectors {
                dim: teacher_queries.dim(),
                queries: teacher_queries.data(),
                passages: teacher_passages.data(),
            },
        };
        let outcome = losses::evaluate(&objective, &batch_view, &[]).map_err(TaskError::input)?;
        let names = objective.terms.iter().map(term_name);
        let terms = names.zip(outcome.terms.iter().copied()).collect();
        let mut sides = [outcome.queries.as_slice(), outcome.passages.as_slice()];
        let mut gradients = Vec::with_capacity(outputs.len());
        for (at, output) in outputs.iter().enumerate() {
            let side = if single { 0 } else { at % 2 };
            let (own, rest) = sides[side].split_at(output.data().len());
            gradients.push(Matrix::new(output.rows(), dim, own.to_vec()));
            sides[side] = rest;
        }
        Ok((outcome.value, terms, gradients))
    }
}

fn only_queries(term: &mut losses::LossSpec) {
    if let losses::LossSpec::EmbeddingMse { side, .. } | losses::LossSpec::EmbeddingCosine { side, .. } = term {
        *side = losses::Side::Queries;
    }
}

fn term_name(term: &losses::LossSpec) -> String {
    match term {
        losses::LossSpec::InfoNce { .. } => "info_nce",
        losses::LossSpec::Kl { .. } => "kl",
        losses::LossSpec::MarginMse { .. } => "margin_mse",
        losses::LossSpec::EmbeddingMse { .. } => "embedding_mse",
        losses::LossSpec::EmbeddingCosine { .. } => "embedding_cosine",
    }
    .to_owned()
}

fn finish(
    bench: &Workbench<'_>,
    shape: &StudentShape,
    trainer: Trainer<'_>,
    steps: u64,
) -> Result<Produced, TaskError> {
    let path = bench.scratch(WEIGHTS);
    write_parameters(&path, trainer.tower.layout(), &trainer.params, FileDtype::F32, &BTreeMap::new())
        .map_err(TaskError::input)?;
    let flat: Vec<u8> = trainer.params.iter().flat_map(|value| value.to_le_bytes()).collect();
    let weights_sha256 = Digest::of(&flat);
    let json = |value: serde_json::Result<Vec<u8>>| value.map(Into::into).map_err(TaskError::input);
    let parts = vec![
        (SHAPE.to_owned(), Content::Bytes(json(serde_json::to_vec_pretty(shape))?)),
        (WEIGHTS.to_owned(), Content::File(path)),
        (CURVE.to_owned(), Content::Bytes(json(serde_json::to_vec(&trainer.curve))?)),
    ];
    let last = trainer.curve.last().map(|point| point.loss);
    let meta = json!({
        "steps": steps, "loss": last, "weights_sha256": weights_sha256,
        "dim": shape.tower.dim(), "parameters": trainer.params.len(),
    });
    Ok(Produced { parts, meta })
}
