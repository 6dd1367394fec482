//! A phase in work: steps from training rows to the next weights.

use super::super::bench::{TaskError, Workbench};
use super::super::order::{StepRows, TextRow};
use super::cohort::{Broken, Membership, Standing};
use super::doubt::What;
use super::objective::PhaseLoss;
use super::signal::SignalSource;
use crate::exchange::wire::all_finite;
use crate::losses::{self, Outcome};
use crate::matrix::Matrix;
use crate::model::{Batch, Dropout, Forward, Tower, TwoSided};
use crate::optimizer::{AdamW, Schedule, clip_scale};
use crate::report::StepPoint;
use crate::text::TokenBatch;
use crate::training::checkpoint::Checkpoint;
use crate::training::digest::digest;
use crate::training::tree::{TreeSum, Wire, subtrees};
use crate::vectors::VectorRows;
use bytes::Bytes;
use retort_common::ids::WorkerId;
use retort_common::spec::{PhaseSpec, WireSpec};
use retort_common::task::VectorSet;
use std::ops::Range;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// The shortest text in a padded batch has at least this share of the longest one's tokens.
const LEAST_FILL: f64 = 0.6;

/// Cached vectors of both sides.
pub(super) struct CachedVectors {
    queries: VectorRows,
    passages: VectorRows,
    sentences: VectorRows,
}

impl CachedVectors {
    pub(super) fn open(bench: &Workbench<'_>, set: &VectorSet) -> Result<Self, TaskError> {
        Ok(Self {
            queries: bench.vector_rows(&set.queries)?,
            passages: bench.vector_rows(&set.passages)?,
            sentences: bench.vector_rows(&set.sentences)?,
        })
    }

    /// Components of a vector; one side may have no vectors at all.
    pub(super) fn dim(&self) -> usize {
        self.queries.dim().max(self.passages.dim())
    }

    pub(super) fn gather(&self, texts: &[TextRow]) -> Result<Matrix, TaskError> {
        let mut vectors = Matrix::zeros(texts.len(), self.dim());
        for (i, text) in texts.iter().enumerate() {
            let row = match text {
                TextRow::Query(row) => self.queries.gather(&[*row])?,
                TextRow::Passage(row) => self.passages.gather(&[*row])?,
                TextRow::Sentence(row) => self.sentences.gather(&[*row])?,
            };
            vectors.row_mut(i).copy_from_slice(row.data());
        }
        Ok(vectors)
    }
}

/// Sums of gradients by the node of the canonical tree that they belong to.
type Partials = Vec<(Range<u32>, Vec<f32>)>;

/// The state of a phase in work.
pub(super) struct Trainer<'a> {
    pub(super) phase: &'a PhaseSpec,
    pub(super) loss: PhaseLoss,
    /// Seed of the dropout masks.
    pub(super) seed: u64,
    pub(super) optimizer: AdamW,
    pub(super) schedule: Schedule,
    /// What the tower reads, where it reads vectors.
    pub(super) inputs: Option<Rc<CachedVectors>>,
    /// The vectors of candidates, where the tower encodes questions alone.
    pub(super) candidates: Option<Rc<CachedVectors>>,
    pub(super) signal: SignalSource,
    pub(super) pad_token_id: u32,
    pub(super) tower: Tower,
    /// The tower's parameters, and the loss's own behind them.
    pub(super) params: Vec<f32>,
    pub(super) curve: Vec<StepPoint>,
    /// Of the current weights, once it was asked for.
    pub(super) weights_digest: Option<u64>,
}

/// Rounds of exchange within a step: vectors come after what a generation begins with.
pub(super) const STEP_ROUND: u32 = 3;

/// What members of a cohort say before their vectors: whether a generation waits for the end of the step, and the
/// digest of the weights that the vectors come from.
const HEADER_BYTES: usize = 9;

impl Trainer<'_> {
    /// Number of the tower's own parameters.
    pub(super) fn tower_len(&self) -> usize {
        self.tower.layout().len()
    }

    /// Takes up a state that was reached before.
    pub(super) fn restore(&mut self, state: Checkpoint) -> Result<(), TaskError> {
        let Checkpoint { step, params, first_moment, second_moment, curve } = state;
        self.tower.set_params(&params[..self.tower_len()]).map_err(TaskError::input)?;
        self.optimizer.restore(step, first_moment, second_moment);
        (self.params, self.curve) = (params, curve);
        self.weights_digest = None;
        Ok(())
    }

    /// Copies the state after `step` steps into memory that may have been used before.
    pub(super) fn copy_state(&self, step: u64, into: &mut Checkpoint) {
        let (first_moment, second_moment) = self.optimizer.moments();
        into.step = step;
        into.params.clone_from(&self.params);
        into.first_moment.clear();
        into.first_moment.extend_from_slice(first_moment);
        into.second_moment.clear();
        into.second_moment.extend_from_slice(second_moment);
        into.curve.clone_from(&self.curve);
    }

    /// A digest of everything that the next steps depend on.
    pub(super) fn state_digest(&self) -> u64 {
        let (first_moment, second_moment) = self.optimizer.moments();
        digest(&[&self.params, first_moment, second_moment])
    }

    /// One step, together with the other members. True where all of them leave the generation after it.
    pub(super) fn step(
        &mut self,
        membership: &Membership<'_>,
        step: u64,
        rows: &StepRows,
        standing: &mut Standing,
    ) -> Result<bool, Broken> {
        let grows = membership.look()?;
        membership.begin_step(step);
        let deal = membership.deal();
        let parts: Vec<Vec<Part>> = deal.clone().map(|at| self.parts(rows, at)).collect();
        // One microbatch needs no second forward pass: its graphs are kept. The kernels are the same either way.
        let keep = parts.len() == 1;
        let width = rows.texts.len() / self.phase.microbatches as usize;
        let first_cell = deal.start as usize * width;
        let mut mine = Matrix::zeros(deal.len() * width, self.tower.config().dim());
        let mut graphs = Vec::new();
        let begun = Instant::now();
        for part in parts.iter().flatten() {
            membership.look()?;
            let output = if keep {
                let forward = self.forward(step, rows, part)?;
                let vectors = forward.vectors.clone();
                graphs.push(forward);
                vectors
            } else {
                let (batch, dropout) = self.input(step, rows, part)?;
                self.tower.encode_dropping(&batch, dropout.as_ref()).map_err(TaskError::input)?
            };
            for (at, cell) in part.cells.iter().enumerate() {
                mine.row_mut(*cell - first_cell).copy_from_slice(output.row(at));
            }
        }
        let cells = first_cell..first_cell + mine.rows();
        self.put_candidates(rows, cells, &mut mine)?;
        let encoding = begun.elapsed();
        membership.begin("gathering vectors");
        let (vectors, leave) = self.gather(membership, step, mine, grows, standing)?;
        membership.begin("computing the loss");
        let evaluated = self.loss(step, rows, vectors)?;
        if membership.deals().len() > 1 && !evaluated.is_finite() {
            let own = membership.worker(membership.rank());
            return Err(membership.doubt(own, 0..self.phase.microbatches, What::Loss));
        }
        let Evaluated { value, terms, theta, d_vectors } = evaluated;
        membership.begin("computing gradients");
        let (partials, backward) = self.partials(membership, (step, rows), &parts, graphs, &d_vectors)?;
        let microbatch = (encoding + backward) / deal.len().max(1) as u32;
        standing.microbatch_us = mean(standing.microbatch_us, microbatch);
        membership.begin("summing gradients");
        let mut gradient = membership.reduce(step, partials, standing)?;
        membership.begin("applying the gradient");
        // Everyone has the whole gradient by the loss's own parameters: it is added once, after the tree's root.
        gradient.extend_from_slice(&theta);
        self.optimizer.clear_frozen(&mut gradient);
        let clip = if self.phase.clip_norm > 0.0 { self.phase.clip_norm } else { f64::INFINITY };
        let (gradient_norm, scale) = clip_scale(&gradient, clip);
        if !value.is_finite() || !gradient_norm.is_finite() {
            let what = format!("loss {value} and gradient norm {gradient_norm} are not finite");
            return Err(Broken::Task(self.not_finite(step, rows, &what)?));
        }
        let learning_rate = self.schedule.at(step);
        self.optimizer.step_scaled(&mut self.params, &gradient, scale, learning_rate);
        let len = self.tower_len();
        gradient.truncate(len);
        membership.recycle(gradient);
        self.loss.clamp(&mut self.params[len..]);
        self.tower.set_params(&self.params[..len]).map_err(TaskError::input)?;
        self.weights_digest = None;
        self.curve.push(StepPoint { step: step + 1, loss: value, terms, learning_rate, gradient_norm });
        Ok(leave)
    }

    /// The vectors of the whole batch, and whether any member waits for the end of the step. Vectors from other
    /// weights than these, and such as are no numbers, are refused.
    fn gather(
        &mut self,
        membership: &Membership<'_>,
        step: u64,
        mine: Matrix,
        grows: bool,
        standing: &Standing,
    ) -> Result<(Matrix, bool), Broken> {
        if membership.deals().len() == 1 {
            return Ok((mine, grows));
        }
        let weights = *self.weights_digest.get_or_insert_with(|| digest(&[&self.params]));
        let mut message = Vec::with_capacity(HEADER_BYTES + 4 * mine.data().len());
        message.push(u8::from(grows));
        message.extend_from_slice(&weights.to_le_bytes());
        message.extend(mine.data().iter().flat_map(|value| value.to_le_bytes()));
        let all = membership.all_gather((step, STEP_ROUND), message, standing)?;
        let (width, dim) = (mine.rows() / membership.deal().len(), mine.dim());
        let mut leave = false;
        let mut values = Vec::new();
        let mut differ = Vec::new();
        let mut strange = None;
        for (rank, (message, deal)) in all.iter().zip(membership.deals()).enumerate() {
            let Some(Vectors { grows, weights: theirs, values: theirs_values }) =
                decode(message, deal.len() * width * dim)
            else {
                let message =
                    format!("step {}: {} bytes of vectors, not as many as it owes", step + 1, message.len());
                return Err(Broken::Trouble { peers: vec![membership.worker(rank)], suspect: true, message });
            };
            leave |= grows;
            if theirs != weights {
                differ.push(membership.worker(rank));
            }
            if let Some(at) = theirs_values.iter().position(|value| !value.is_finite()) {
                let microbatch = deal.start + (at / (width * dim)) as u32;
                strange.get_or_insert((rank, microbatch..microbatch + 1));
            }
            values.extend(theirs_values);
        }
        if !differ.is_empty() {
            let names = differ.iter().map(WorkerId::as_str).collect::<Vec<_>>().join(", ");
            let message = format!("step {}: other weights than here on {names}", step + 1);
            return Err(Broken::Trouble { peers: differ, suspect: true, message });
        }
        if let Some((rank, microbatches)) = strange {
            return Err(membership.doubt(membership.worker(rank), microbatches, What::Vectors));
        }
        Ok((Matrix::new(values.len() / dim, dim, values), leave))
    }

    /// The sums of the whole subtrees that this member owns, and the time they took.
    fn partials(
        &self,
        membership: &Membership<'_>,
        (step, rows): (u64, &StepRows),
        microbatches: &[Vec<Part>],
        graphs: Vec<Forward>,
        d_vectors: &Matrix,
    ) -> Result<(Partials, Duration), Broken> {
        let begun = Instant::now();
        let (leaves, deal) = (self.phase.microbatches, membership.deal());
        let mut graphs = graphs.into_iter();
        let mut partials = Vec::new();
        for node in subtrees(deal.clone(), leaves) {
            let mut sum = TreeSum::of(&node, leaves, wire(self.phase));
            for leaf in node.clone() {
                let mut total = vec![0.0; self.tower_len()];
                for part in &microbatches[(leaf - deal.start) as usize] {
                    membership.look()?;
                    let forward = match graphs.next() {
                        Some(graph) => graph,
                        None => self.forward(step, rows, part)?,
                    };
                    forward.backward_into(&select(d_vectors, &part.cells), &mut total);
                }
                sum.push(total);
            }
            partials.push((node, sum.finish().expect("a subtree has leaves")));
        }
        Ok((partials, begun.elapsed()))
    }

    pub(super) fn forward(&self, step: u64, rows: &StepRows, part: &Part) -> Result<Forward, TaskError> {
        let (batch, dropout) = self.input(step, rows, part)?;
        self.tower.forward_dropping(&batch, dropout.as_ref()).map_err(TaskError::input)
    }

    /// What the tower is applied to. It is made anew for each pass: that of one microbatch is in memory at a time.
    pub(super) fn input(
        &self,
        step: u64,
        rows: &StepRows,
        part: &Part,
    ) -> Result<(Batch, Option<Dropout>), TaskError> {
        if let Some(inputs) = &self.inputs {
            let texts: Vec<_> = part.cells.iter().map(|cell| rows.texts[*cell]).collect();
            let dropout = self.dropout(step, rows, part);
            let vectors = inputs.gather(&texts)?;
            let batch = match self.tower.coded() {
                Some(_) => Batch::TwoSided(self.two_sided(vectors, rows, &part.cells)),
                None => Batch::Vectors(vectors),
            };
            return Ok((batch, dropout));
        }
        let tokens: Vec<_> = part.cells.iter().map(|cell| rows.tokens[*cell].as_slice()).collect();
        let batch = Batch::Tokens(TokenBatch::new(&tokens, self.pad_token_id));
        Ok((batch, self.dropout(step, rows, part)))
    }

    /// Puts the vectors in place that no pass through the tower makes: those of candidates where it encodes questions
    /// alone. `into` holds the vectors of `cells`.
    pub(super) fn put_candidates(
        &self,
        rows: &StepRows,
        cells: Range<usize>,
        into: &mut Matrix,
    ) -> Result<(), TaskError> {
        let Some(candidates) = &self.candidates else { return Ok(()) };
        let first = cells.start;
        let cells: Vec<usize> = cells.filter(|cell| !asks(rows, *cell)).collect();
        let texts: Vec<_> = cells.iter().map(|cell| rows.texts[*cell]).collect();
        let vectors = candidates.gather(&texts)?;
        for (at, cell) in cells.iter().enumerate() {
            into.row_mut(*cell - first).copy_from_slice(vectors.row(at));
        }
        Ok(())
    }

    fn dropout(&self, step: u64, rows: &StepRows, part: &Part) -> Option<Dropout> {
        let first = part.microbatch as usize * self.cells(rows);
        let numbers = part.cells.iter().map(|cell| (cell - first) as u64).collect();
        Dropout::new(self.phase.dropout, self.seed, step, u64::from(part.microbatch), numbers)
    }

    /// Texts of a microbatch.
    fn cells(&self, rows: &StepRows) -> usize {
        rows.texts.len() / self.phase.microbatches as usize
    }

    /// How a microbatch is cut, which depends on it alone, never on who computes it. Vectors go through a head together,
    /// and texts through an encoder that computes no padding. Elsewhere texts go with others of about their length.
    pub(super) fn parts(&self, rows: &StepRows, microbatch: u32) -> Vec<Part> {
        let first = microbatch as usize * self.cells(rows);
        let mut sorted: Vec<usize> = (first..first + self.cells(rows)).collect();
        if self.inputs.is_some() {
            return vec![Part { microbatch, cells: sorted }];
        }
        if self.candidates.is_some() {
            sorted.retain(|cell| asks(rows, *cell));
        }
        let length = |cell: usize| rows.tokens[cell].len();
        sorted.sort_by_key(|cell| (std::cmp::Reverse(length(*cell)), *cell));
        let mut parts = Vec::new();
        while let Some(longest) = sorted.first().copied() {
            let least = if self.tower.computes_padding() { LEAST_FILL * length(longest) as f64 } else { 0.0 };
            let fits = |cell: &usize| length(*cell) as f64 >= least;
            let rest = sorted.split_off(sorted.partition_point(fits));
            parts.push(Part { microbatch, cells: sorted });
            sorted = rest;
        }
        parts
    }

    fn two_sided(&self, vectors: Matrix, rows: &StepRows, cells: &[usize]) -> TwoSided {
        let questions = rows.known_positives.len();
        let passages = cells.iter().map(|cell| !asks(rows, *cell)).collect();
        // The mean over all passages of the step, whoever computes which of them.
        let pull = self.phase.commitment() / (rows.texts.len() - questions).max(1) as f64;
        TwoSided { vectors, passages, pull: pull as f32 }
    }

    /// The loss of the gathered vectors [texts, dim] and its gradient for them.
    pub(super) fn loss(&self, step: u64, rows: &StepRows, vectors: Matrix) -> Result<Evaluated, TaskError> {
        let width = rows.texts.len() / rows.known_positives.len();
        // Single texts stand on both sides of the batch; only the side of the questions is compared.
        let single = width == 1;
        let all = 0..rows.texts.len();
        let query_cells: Vec<usize> = all.clone().step_by(width).collect();
        let passage_cells: Vec<usize> =
            if single { query_cells.clone() } else { all.filter(|cell| cell % width > 0).collect() };
        let texts = |cells: &[usize]| cells.iter().map(|cell| rows.texts[*cell]).collect::<Vec<_>>();
        let numbers = |cells: &[usize]| texts(cells).iter().map(TextRow::row).collect::<Vec<_>>();
        let (count, dim) = (vectors.rows(), vectors.dim());
        let (queries, passages) = (select(&vectors, &query_cells), select(&vectors, &passage_cells));
        drop(vectors);
        let said = self.signal.says(&texts(&query_cells), &texts(&passage_cells))?;
        let batch = losses::Batch {
            dim,
            microbatch: rows.known_positives.len() / self.phase.microbatches as usize,
            queries: queries.data(),
            passages: passages.data(),
            query_rows: &numbers(&query_cells),
            passage_rows: &numbers(&passage_cells),
            known_positives: &rows.known_positives,
            teacher: said.teacher(),
        };
        let (outcome, terms) = self.loss.evaluate(step, &batch, &self.params[self.tower_len()..])?;
        let Outcome { value, theta, queries: d_queries, passages: d_passages, .. } = outcome;
        drop((queries, passages, said));
        let mut d_vectors = Matrix::zeros(count, dim);
        let sides = [(&query_cells, &d_queries), (&passage_cells, &d_passages)];
        for (cells, values) in sides.into_iter().take(if single { 1 } else { 2 }) {
            for (cell, row) in cells.iter().zip(values.chunks_exact(dim)) {
                d_vectors.row_mut(*cell).copy_from_slice(row);
            }
        }
        Ok(Evaluated { value, terms, theta, d_vectors })
    }
}

/// The side of a text is its place in the row: the first one asks, even where it is a passage.
fn asks(rows: &StepRows, cell: usize) -> bool {
    cell.is_multiple_of(rows.texts.len() / rows.known_positives.len())
}

/// The format of sums on their way between workers.
pub(super) fn wire(phase: &PhaseSpec) -> Wire {
    match phase.wire {
        WireSpec::F32 => Wire::F32,
        WireSpec::Bf16 => Wire::Bf16 { level: phase.wire_level },
    }
}

/// What the loss of a step says.
pub(super) struct Evaluated {
    value: f64,
    /// Its terms by name.
    terms: Vec<(String, f64)>,
    /// Gradient by the loss's own parameters.
    theta: Vec<f32>,
    /// Gradient by the vectors, [texts, dim].
    pub(super) d_vectors: Matrix,
}

impl Evaluated {
    /// Whether the loss and all of its gradients are numbers.
    pub(super) fn is_finite(&self) -> bool {
        self.value.is_finite() && all_finite(&self.theta) && all_finite(self.d_vectors.data())
    }
}

/// Texts that go through the tower together.
pub(super) struct Part {
    microbatch: u32,
    /// Where they stand among the texts of the step.
    pub(super) cells: Vec<usize>,
}

/// Some rows of a matrix.
pub(super) fn select(matrix: &Matrix, rows: &[usize]) -> Matrix {
    let values = rows.iter().flat_map(|row| matrix.row(*row).iter().copied()).collect();
    Matrix::new(rows.len(), matrix.dim(), values)
}

/// What a member says in the exchange of vectors.
struct Vectors {
    grows: bool,
    weights: u64,
    values: Vec<f32>,
}

/// A member's message, if it has so many values.
fn decode(message: &Bytes, values: usize) -> Option<Vectors> {
    if message.len() != HEADER_BYTES + 4 * values {
        return None;
    }
    let (header, values) = message.split_at(HEADER_BYTES);
    let (flag, weights) = header.split_first()?;
    let weights = u64::from_le_bytes(weights.try_into().ok()?);
    let values = values.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    Some(Vectors { grows: *flag != 0, weights, values })
}

/// A mean that follows changes within some steps, in microseconds.
fn mean(before_us: u64, now: Duration) -> u64 {
    let now_us = (now.as_micros() as u64).max(1);
    if before_us == 0 { now_us } else { (3 * before_us + now_us) / 4 }
}
