//! A phase in work: steps from training rows to the next weights.

use super::super::bench::{TaskError, Workbench};
use super::super::order::{StepRows, TextRow};
use super::super::student::{STATE, curve};
use super::objective::PhaseLoss;
use crate::losses::{self, Outcome, Teacher};
use crate::matrix::Matrix;
use crate::model::{Batch, Dropout, Forward, Tower};
use crate::optimizer::{AdamW, Schedule, clip_global_norm};
use crate::report::StepPoint;
use crate::text::TokenBatch;
use crate::training::checkpoint::{Checkpoint, Checkpoints};
use crate::training::tree::TreeSum;
use crate::vectors::{Tensors, VectorRows};
use retort_common::spec::PhaseSpec;
use retort_common::task::{ArtifactId, VectorSet};
use std::rc::Rc;

/// The shortest text in a padded batch has at least this share of the longest one's tokens.
const LEAST_FILL: f64 = 0.6;

/// Cached vectors of both sides.
pub(super) struct Vectors {
    queries: VectorRows,
    passages: VectorRows,
}

impl Vectors {
    pub(super) fn open(bench: &Workbench<'_>, set: &VectorSet) -> Result<Self, TaskError> {
        Ok(Self { queries: bench.vector_rows(&set.queries)?, passages: bench.vector_rows(&set.passages)? })
    }

    pub(super) fn dim(&self) -> usize {
        self.queries.dim()
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
pub(super) struct Trainer<'a> {
    pub(super) bench: &'a Workbench<'a>,
    pub(super) phase: &'a PhaseSpec,
    pub(super) loss: PhaseLoss,
    /// Seed of the dropout masks.
    pub(super) seed: u64,
    pub(super) optimizer: AdamW,
    pub(super) schedule: Schedule,
    pub(super) inputs: Option<Rc<Vectors>>,
    pub(super) signal: Rc<Vectors>,
    pub(super) pad_token_id: u32,
    pub(super) tower: Tower,
    /// The tower's parameters, and the loss's own behind them.
    pub(super) params: Vec<f32>,
    pub(super) curve: Vec<StepPoint>,
}

impl Trainer<'_> {
    /// Number of the tower's own parameters.
    pub(super) fn tower_len(&self) -> usize {
        self.tower.layout().len()
    }

    /// Goes on where the part of the phase before this one ended, after `step` steps.
    pub(super) fn take_over(&mut self, part: &ArtifactId, step: u64) -> Result<(), TaskError> {
        let state = Tensors::read(&self.bench.part(part, STATE)?)?;
        let read = |name: &str, wanted: usize| {
            let (_, values) = state.f32(name)?;
            if values.len() == wanted {
                return Ok(values);
            }
            let found = values.len();
            Err(TaskError::Input(format!("{part}: {name} has {found} values, {wanted} are needed")))
        };
        let (len, all) = (self.tower_len(), self.params.len());
        self.params[len..].copy_from_slice(&read("loss_parameters", all - len)?);
        self.optimizer.restore(step, read("first_moment", all)?, read("second_moment", all)?);
        self.curve = curve(self.bench, part)?;
        Ok(())
    }

    /// Takes up the newest complete checkpoint; the number of steps already taken.
    pub(super) fn resume(&mut self, checkpoints: &Checkpoints<'_>) -> Result<Option<u64>, TaskError> {
        let Some(found) = checkpoints.latest(self.params.len())? else { return Ok(None) };
        let Checkpoint { step, params, first_moment, second_moment, curve } = found;
        self.tower.set_params(&params[..self.tower_len()]).map_err(TaskError::input)?;
        self.optimizer.restore(step, first_moment, second_moment);
        (self.params, self.curve) = (params, curve);
        self.bench.progress.log(&format!("resumed from the checkpoint of step {step}"));
        Ok(Some(step))
    }

    pub(super) fn save(&self, checkpoints: &Checkpoints<'_>, step: u64) -> Result<(), TaskError> {
        let (first_moment, second_moment) = self.optimizer.moments();
        checkpoints.save(step, &self.params, first_moment, second_moment, &self.curve)
    }

    pub(super) fn step(&mut self, step: u64, rows: &StepRows) -> Result<(), TaskError> {
        let microbatches = self.microbatches(step, rows)?;
        // One microbatch needs no second forward pass: its graphs are kept. The kernels are the same either way.
        let keep = microbatches.len() == 1;
        let mut vectors = Matrix::zeros(rows.texts.len(), self.tower.config().dim());
        let mut graphs = Vec::new();
        for part in microbatches.iter().flatten() {
            let output = if keep {
                let forward = self.forward(part)?;
                let vectors = forward.vectors.clone();
                graphs.push(forward);
                vectors
            } else {
                self.tower.encode_dropping(&part.batch, part.dropout.as_ref()).map_err(TaskError::input)?
            };
            for (at, cell) in part.cells.iter().enumerate() {
                vectors.row_mut(*cell).copy_from_slice(output.row(at));
            }
        }
        let (outcome, terms, d_vectors) = self.loss(step, rows, &vectors)?;
        let value = outcome.value;
        let mut sum = TreeSum::default();
        let mut graphs = graphs.into_iter();
        for parts in &microbatches {
            let mut leaf: Option<Vec<f32>> = None;
            for part in parts {
                let forward = match graphs.next() {
                    Some(graph) => graph,
                    None => self.forward(part)?,
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
        // Everyone has the whole gradient by the loss's own parameters: it is added once, after the tree's root.
        gradient.extend(outcome.theta);
        self.optimizer.clear_frozen(&mut gradient);
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
        let len = self.tower_len();
        self.loss.clamp(&mut self.params[len..]);
        self.tower.set_params(&self.params[..len]).map_err(TaskError::input)?;
        self.curve.push(StepPoint { step: step + 1, loss: value, terms, learning_rate, gradient_norm });
        Ok(())
    }

    fn forward(&self, part: &Part) -> Result<Forward, TaskError> {
        self.tower.forward_dropping(&part.batch, part.dropout.as_ref()).map_err(TaskError::input)
    }

    /// The parts of each microbatch. How they are cut depends on the microbatch alone, never on who computes it.
    fn microbatches(&self, step: u64, rows: &StepRows) -> Result<Vec<Vec<Part>>, TaskError> {
        let count = self.phase.microbatches as usize;
        let cells = rows.texts.len() / count;
        let parts = |at: usize| {
            let mut parts = self.parts(rows, at * cells..(at + 1) * cells)?;
            for part in &mut parts {
                let numbers = part.cells.iter().map(|cell| (cell - at * cells) as u64).collect();
                part.dropout = Dropout::new(self.phase.dropout, self.seed, step, at as u64, numbers);
            }
            Ok(parts)
        };
        (0..count).map(parts).collect()
    }

    /// Vectors go through a head together. Texts go through an encoder with others of about their length, since
    /// padding costs as much as text.
    fn parts(&self, rows: &StepRows, cells: std::ops::Range<usize>) -> Result<Vec<Part>, TaskError> {
        if let Some(inputs) = &self.inputs {
            let batch = Batch::Vectors(inputs.gather(&rows.texts[cells.clone()])?);
            return Ok(vec![Part { cells: cells.collect(), batch, dropout: None }]);
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
            parts.push(Part { cells: sorted, batch, dropout: None });
            sorted = rest;
        }
        Ok(parts)
    }

    /// The loss of the gathered vectors [texts, dim] and its gradient for them.
    #[allow(clippy::type_complexity)]
    fn loss(
        &self,
        step: u64,
        rows: &StepRows,
        vectors: &Matrix,
    ) -> Result<(Outcome<f32>, Vec<(String, f64)>, Matrix), TaskError> {
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
        let batch = losses::Batch {
            dim: vectors.dim(),
            microbatch: rows.known_positives.len() / self.phase.microbatches as usize,
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
        let (outcome, terms) = self.loss.evaluate(step, &batch, &self.params[self.tower_len()..])?;
        let mut gradient = Matrix::zeros(vectors.rows(), vectors.dim());
        let sides = [(&query_cells, &outcome.queries), (&passage_cells, &outcome.passages)];
        for (cells, values) in sides.into_iter().take(if single { 1 } else { 2 }) {
            for (cell, row) in cells.iter().zip(values.chunks_exact(vectors.dim())) {
                gradient.row_mut(*cell).copy_from_slice(row);
            }
        }
        Ok((outcome, terms, gradient))
    }
}

/// Texts that go through the tower together.
struct Part {
    /// Where they stand among the texts of the step.
    cells: Vec<usize>,
    batch: Batch,
    dropout: Option<Dropout>,
}

/// Some rows of a matrix.
fn select(matrix: &Matrix, rows: &[usize]) -> Matrix {
    let values = rows.iter().flat_map(|row| matrix.row(*row).iter().copied()).collect();
    Matrix::new(rows.len(), matrix.dim(), values)
}
