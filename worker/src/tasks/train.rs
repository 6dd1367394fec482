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
use super::student::{CURVE, SHAPE, Student, StudentShape, TOKENIZER, WEIGHTS};
use crate::losses::{self, Objective, Similarity, Teacher};
use crate::matrix::Matrix;
use crate::model::{Batch, FileDtype, Head, Input, Tower, TowerConfig, load_encoder, write_parameters};
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
use std::path::PathBuf;
use std::rc::Rc;

/// The shortest text in a padded batch has at least this share of the longest one's tokens.
const LEAST_FILL: f64 = 0.6;

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

/// The student before the first step.
fn begin(
    bench: &Workbench<'_>,
    start: &StudentStart,
    normalize: bool,
    seed: u64,
) -> Result<(StudentShape, Vec<f32>, Option<PathBuf>), TaskError> {
    match start {
        StudentStart::Student { student } => {
            let Student { shape, params, .. } = Student::load(bench, student)?;
            let reads_text = matches!(shape.tower.input, Input::Tokens { .. });
            let tokenizer = if reads_text { Some(bench.part(student, TOKENIZER)?) } else { None };
            Ok((shape, params, tokenizer))
        }
        StudentStart::Head { input, dim, hidden, init } => {
            let dim = *dim as usize;
            let head = match hidden {
                Some(hidden) => Head::Mlp { hidden: *hidden as usize, dim },
                None => Head::Linear { dim, bias: true },
            };
            let tower = TowerConfig { input: Input::Vectors { dim: *input as usize }, head };
            tower.validate().map_err(TaskError::input)?;
            let mut params = tower.initial_params(seed);
            start_projection(bench, &tower, &mut params, init, normalize)?;
            Ok((StudentShape { tower }, params, None))
        }
        StudentStart::Encoder { files, layers, pooling: kind, dim, init } => {
            let folder = model_folder(bench, files)?;
            let layers: Option<Vec<usize>> =
                layers.as_ref().map(|layers| layers.iter().map(|layer| *layer as usize).collect());
            let (encoder, encoder_params) =
                load_encoder(&folder, layers.as_deref()).map_err(TaskError::input)?;
            // The rows hold its token ids already; here both sides are known.
            let tokenizer = folder.join("tokenizer.json");
            Tokenizer::load(&tokenizer, encoder.vocabulary_size).map_err(TaskError::input)?;
            let head = dim.map_or(Head::None, |dim| Head::Linear { dim: dim as usize, bias: true });
            let tower = TowerConfig { input: Input::Tokens { encoder, pooling: pooling(*kind) }, head };
            // The head's parameters follow the encoder's in the canonical order.
            let mut params = tower.initial_params(seed);
            params[..encoder_params.len()].copy_from_slice(&encoder_params);
            if dim.is_some() {
                start_projection(bench, &tower, &mut params, init, normalize)?;
            }
            Ok((StudentShape { tower }, params, Some(folder.join("tokenizer.json"))))
        }
    }
}

/// Puts the projection's first weights in place. Where scores are cosines, PCA's centring goes into the bias, so
/// that a head starts exactly as its rival, PCA with renormalisation; with dot products it would change the ranking.
fn start_projection(
    bench: &Workbench<'_>,
    tower: &TowerConfig,
    params: &mut [f32],
    init: &ProjectionStart,
    normalize: bool,
) -> Result<(), TaskError> {
    let (weight, bias) = match init {
        ProjectionStart::Random => return Ok(()),
        ProjectionStart::Pca { pca } => {
            let pca = load_pca(bench, pca)?;
            let dim = tower.dim();
            if dim > pca.dim {
                return Err(TaskError::Input(format!(
                    "dim = {dim} is more than the teacher's {}: PCA cannot start it; use init = \"random\"",
                    pca.dim
                )));
            }
            let components = || pca.components.chunks_exact(pca.dim).take(dim);
            let centre = |row: &[f64]| -row.iter().zip(&pca.mean).map(|(a, b)| a * b).sum::<f64>() as f32;
            let bias = components().map(|row| if normalize { centre(row) } else { 0.0 }).collect();
            let weight = components().flatten().map(|value| *value as f32).collect();
            (Matrix::new(dim, pca.dim, weight), bias)
        }
        ProjectionStart::Head { student } => linear_head(&Student::load(bench, student)?)
            .ok_or_else(|| TaskError::Input(format!("{student} has no linear head")))?,
    };
    tower.set_head(params, &weight, &bias).map_err(TaskError::input)
}

/// The weight [dim, input] and the bias of a linear head.
fn linear_head(student: &Student) -> Option<(Matrix, Vec<f32>)> {
    let values = |path| student.layout.get(path).map(|entry| &student.params[entry.range()]);
    let (dim, input) = (student.shape.tower.dim(), student.shape.tower.head_input());
    // The flat vector holds the weight as [input, dim].
    let flat = values("head.weight")?;
    let weight = (0..dim * input).map(|i| flat[(i % input) * dim + i / input]).collect();
    Some((Matrix::new(dim, input, weight), values("head.bias")?.to_vec()))
}

/// An encoder's pooled vectors are not of unit length like those that its projection was made for. Dividing the
/// weight by their mean length over the first step's texts makes up for it; the bias keeps its share.
fn scale_projection(
    bench: &Workbench<'_>,
    tower: &TowerConfig,
    params: &mut [f32],
    rows: &StepRows,
) -> Result<(), TaskError> {
    let pooled = TowerConfig { input: tower.input.clone(), head: Head::None };
    let encoder = Tower::new(pooled.clone(), &params[..pooled.layout().len()], &bench.device);
    let encoder = encoder.map_err(TaskError::input)?;
    let mut lengths = Vec::with_capacity(rows.tokens.len());
    for ids in &rows.tokens {
        let batch = Batch::Tokens(TokenBatch::new(&[ids], pad_token_id(tower)));
        let vector = encoder.encode_training(&batch).map_err(TaskError::input)?;
        lengths.push(vector.data().iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt());
    }
    let mean = lengths.iter().sum::<f64>() / lengths.len().max(1) as f64;
    if mean > 0.0
        && let Some(entry) = tower.layout().get("head.weight")
    {
        params[entry.range()].iter_mut().for_each(|value| *value = (f64::from(*value) / mean) as f32);
    }
    Ok(())
}

fn pad_token_id(tower: &TowerConfig) -> u32 {
    match &tower.input {
        Input::Tokens { encoder, .. } => encoder.pad_token_id,
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
    inputs: Option<Rc<Vectors>>,
    signal: Rc<Vectors>,
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
        // One microbatch needs no second forward pass: its graphs are kept. The kernels are the same either way.
        let keep = microbatches.len() == 1;
        let mut vectors = Matrix::zeros(rows.texts.len(), self.tower.config().dim());
        let mut graphs = Vec::new();
        for part in microbatches.iter().flatten() {
            let output = if keep {
                let forward = self.tower.forward(&part.batch).map_err(TaskError::input)?;
                let vectors = forward.vectors.clone();
                graphs.push(forward);
                vectors
            } else {
                self.tower.encode_training(&part.batch).map_err(TaskError::input)?
            };
            for (at, cell) in part.cells.iter().enumerate() {
                vectors.row_mut(*cell).copy_from_slice(output.row(at));
            }
        }
        let (value, terms, d_vectors) = self.loss(rows, &vectors)?;
        let mut sum = TreeSum::default();
        let mut graphs = graphs.into_iter();
        for parts in &microbatches {
            let mut leaf: Option<Vec<f32>> = None;
            for part in parts {
                let forward = match graphs.next() {
                    Some(graph) => graph,
                    None => self.tower.forward(&part.batch).map_err(TaskError::input)?,
                };
                let gradient = forward.backward(&select(&d_vectors, &part.cells));
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

    /// The parts of each microbatch. How they are cut depends on the microbatch alone, never on who computes it.
    fn microbatches(&self, rows: &StepRows) -> Result<Vec<Vec<Part>>, TaskError> {
        let count = self.phase.microbatches as usize;
        let cells = rows.texts.len() / count;
        (0..count).map(|at| self.parts(rows, at * cells..(at + 1) * cells)).collect()
    }

    /// Vectors go through a head together. Texts go through an encoder with others of about their length, since
    /// padding costs as much as text.
    fn parts(&self, rows: &StepRows, cells: std::ops::Range<usize>) -> Result<Vec<Part>, TaskError> {
        if let Some(inputs) = &self.inputs {
            let batch = Batch::Vectors(inputs.gather(&rows.texts[cells.clone()])?);
            return Ok(vec![Part { cells: cells.collect(), batch }]);
        }
        let length = |cell: usize| rows.tokens[cell].len();
        let mut sorted: Vec<usize> = cells.collect();
        sorted.sort_by_key(|cell| (std::cmp::Reverse(length(*cell)), *cell));
        let mut parts = Vec::new();
        while let Some(longest) = sorted.first().copied() {
            let fits = |cell: &usize| length(*cell) as f64 >= LEAST_FILL * length(longest) as f64;
            let rest = sorted.split_off(sorted.partition_point(fits));
            let tokens: Vec<_> = sorted.iter().map(|cell| rows.tokens[*cell].as_slice()).collect();
            let batch = Batch::Tokens(TokenBatch::new(&tokens, self.pad_token_id));
            parts.push(Part { cells: sorted, batch });
            sorted = rest;
        }
        Ok(parts)
    }

    /// The loss of the gathered vectors [texts, dim] and its gradient for them.
    #[allow(clippy::type_complexity)]
    fn loss(
        &self,
        rows: &StepRows,
        vectors: &Matrix,
    ) -> Result<(f64, Vec<(String, f64)>, Matrix), TaskError> {
        let width = rows.texts.len() / rows.known_positives.len();
        // Single texts stand on both sides of the batch; only the side of the questions is compared.
        let single = width == 1;
        let all = 0..rows.texts.len();
        let query_cells: Vec<usize> = all.clone().step_by(width).collect();
        let passage_cells: Vec<usize> =
            if single { query_cells.clone() } else { all.filter(|cell| cell % width > 0).collect() };
        let texts = |cells: &[usize]| cells.iter().map(|cell| rows.texts[*cell]).collect::<Vec<_>>();
        let numbers = |cells: &[usize]| texts(cells).iter().map(TextRow::row).collect::<Vec<_>>();
        let (queries, passages) = (select(vectors, &query_cells), select(vectors, &passage_cells));
        let teacher_queries = self.signal.gather(&texts(&query_cells))?;
        let teacher_passages = self.signal.gather(&texts(&passage_cells))?;
        let mut objective = self.objective.clone();
        if single {
            objective.terms.iter_mut().for_each(only_queries);
        }
        let batch = losses::Batch {
            dim: vectors.dim(),
            queries: queries.data(),
            passages: passages.data(),
            query_rows: &numbers(&query_cells),
            passage_rows: &numbers(&passage_cells),
            known_positives: &rows.known_positives,
            teacher: Teacher::Vectors {
                dim: teacher_queries.dim(),
                queries: teacher_queries.data(),
                passages: teacher_passages.data(),
            },
        };
        let outcome = losses::evaluate(&objective, &batch, &[]).map_err(TaskError::input)?;
        let names = objective.terms.iter().map(term_name);
        let terms = names.zip(outcome.terms.iter().copied()).collect();
        let mut gradient = Matrix::zeros(vectors.rows(), vectors.dim());
        let sides = [(&query_cells, &outcome.queries), (&passage_cells, &outcome.passages)];
        for (cells, values) in sides.into_iter().take(if single { 1 } else { 2 }) {
            for (cell, row) in cells.iter().zip(values.chunks_exact(vectors.dim())) {
                gradient.row_mut(*cell).copy_from_slice(row);
            }
        }
        Ok((outcome.value, terms, gradient))
    }
}

/// Texts that go through the tower together.
struct Part {
    /// Where they stand among the texts of the step.
    cells: Vec<usize>,
    batch: Batch,
}

/// Some rows of a matrix.
fn select(matrix: &Matrix, rows: &[usize]) -> Matrix {
    let values = rows.iter().flat_map(|row| matrix.row(*row).iter().copied()).collect();
    Matrix::new(rows.len(), matrix.dim(), values)
}

fn only_queries(term: &mut losses::LossSpec) {
    if let losses::LossSpec::EmbeddingMse { side, .. } | losses::LossSpec::EmbeddingCosine { side, .. } = term
    {
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
