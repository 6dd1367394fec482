//! A phase in work: steps from training rows to the next weights.

use super::super::bench::{TaskError, Workbench};
use super::super::order::{StepRows, TextRow};
use super::objective::{only_queries, term_name};
use crate::losses::{self, Objective, Teacher};
use crate::matrix::Matrix;
use crate::model::{Batch, Tower};
use crate::optimizer::{AdamW, Schedule, clip_global_norm};
use crate::report::StepPoint;
use crate::text::TokenBatch;
use crate::training::checkpoint::{Checkpoint, Checkpoints};
use crate::training::tree::TreeSum;
use crate::vectors::VectorRows;
use retort_common::spec::PhaseSpec;
use retort_common::task::VectorSet;
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
    pub(super) objective: Objective,
    pub(super) optimizer: AdamW,
    pub(super) schedule: Schedule,
    pub(super) inputs: Option<Rc<Vectors>>,
    pub(super) signal: Rc<Vectors>,
    pub(super) pad_token_id: u32,
    pub(super) tower: Tower,
    pub(super) params: Vec<f32>,
    pub(super) curve: Vec<StepPoint>,
}

impl Trainer<'_> {
    /// Takes up the newest complete checkpoint; the number of steps already taken.
    pub(super) fn resume(&mut self, checkpoints: &Checkpoints<'_>) -> Result<u64, TaskError> {
        let Some(found) = checkpoints.latest(self.params.len())? else { return Ok(0) };
        let Checkpoint { step, params, first_moment, second_moment, curve } = found;
        self.tower.set_params(&params).map_err(TaskError::input)?;
        self.optimizer.restore(step, first_moment, second_moment);
        (self.params, self.curve) = (params, curve);
        self.bench.progress.log(&format!("resumed from the checkpoint of step {step}"));
        Ok(step)
    }

    pub(super) fn save(&self, checkpoints: &Checkpoints<'_>, step: u64) -> Result<(), TaskError> {
        let (first_moment, second_moment) = self.optimizer.moments();
        checkpoints.save(step, &self.params, first_moment, second_moment, &self.curve)
    }

    pub(super) fn step(&mut self, step: u64, rows: &StepRows) -> Result<(), TaskError> {
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
