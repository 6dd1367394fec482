//! The terms on scores: queries against passages in blocks of rows, and the way back to the vectors.

use super::batch::{Batch, Teacher};
use super::masks::Columns;
use super::rows::{self, Divergence, Row, Value};
use super::scalar::{Scalar, add_scaled, dot};
use super::spec::{Guide, Loss, Objective, Scope};
use super::unit::{Compared, add_leading, leading};
use retort_kernels::matmul::{self, Sizes, Write};

/// What the terms on scores come to.
#[derive(Clone, Debug)]
pub(super) struct Sums<T> {
    /// Value of each term of the objective before its weight; zero for those on vectors.
    pub terms: Vec<f64>,
    /// Derivative of the whole by the logarithm of each term's temperature.
    pub by_log_temperature: Vec<f64>,
    /// Gradient by queries [B, d].
    pub queries: Vec<T>,
    /// Gradient by passages [M, d].
    pub passages: Vec<T>,
    /// (query, candidate) pairs that were masked as known positives or duplicates.
    pub masked_pairs: u64,
    /// Those that were masked because the teacher takes them for positives.
    pub guided_pairs: u64,
}

/// A term as one view has it.
struct ViewTerm {
    term: usize,
    /// The view's weight within the term.
    share: f64,
    /// Its masks are counted in one of its views only.
    counts: bool,
}

/// The leading components of all vectors, and the terms that compare them.
struct View<'a, T: Scalar> {
    dim: usize,
    terms: Vec<ViewTerm>,
    /// Whether a row spans the batch; otherwise it holds the query's own candidates.
    wide: bool,
    queries: Compared<'a, T>,
    passages: Compared<'a, T>,
    d_queries: Vec<T>,
    d_passages: Vec<T>,
}

impl<'a, T: Scalar> View<'a, T> {
    /// The views of an objective, that of most components first.
    fn all(objective: &Objective, batch: &Batch<'a, T>) -> Vec<Self> {
        let mut terms: Vec<(usize, ViewTerm)> = Vec::new();
        for (k, term) in objective.terms.iter().enumerate().filter(|(_, term)| term.loss.scope().is_some()) {
            for (at, (dim, share)) in term.views(batch.dim).into_iter().enumerate() {
                terms.push((dim, ViewTerm { term: k, share, counts: at == 0 }));
            }
        }
        let mut dims: Vec<usize> = terms.iter().map(|(dim, _)| *dim).collect();
        dims.sort_unstable_by(|a, b| b.cmp(a));
        dims.dedup();
        let view = |dim: usize| {
            let (mine, rest) = std::mem::take(&mut terms).into_iter().partition(|(of, _)| *of == dim);
            terms = rest;
            let mine: Vec<(usize, ViewTerm)> = mine;
            let terms: Vec<ViewTerm> = mine.into_iter().map(|(_, term)| term).collect();
            let wide = terms.iter().any(|t| objective.terms[t.term].loss.scope() != Some(Scope::Listed));
            let compared =
                |vectors: &'a [T]| Compared::new(objective.similarity, leading(vectors, batch.dim, dim), dim);
            let zeros = |vectors: &[T]| vec![T::zero(); vectors.len() / batch.dim * dim];
            View {
                dim,
                terms,
                wide,
                queries: compared(batch.queries),
                passages: compared(batch.passages),
                d_queries: zeros(batch.queries),
                d_passages: zeros(batch.passages),
            }
        };
        dims.into_iter().map(view).collect()
    }

    /// Adds the gradient by a block of scores [rows, width] to that by the vectors.
    fn add_block(&mut self, Block { start, rows, listed }: Block, scores: &[T]) {
        let (d, m) = (self.dim, self.d_passages.len() / self.dim);
        let dq = &mut self.d_queries[start * d..(start + rows) * d];
        if self.wide {
            let q = &self.queries.vectors[start * d..(start + rows) * d];
            matmul::nn(Sizes { m: rows, n: d, k: m }, scores, &self.passages.vectors, dq, Write::Add);
            matmul::tn(Sizes { m, n: d, k: rows }, scores, q, &mut self.d_passages, Write::Add);
            return;
        }
        for (at, g) in scores.iter().enumerate() {
            let (i, passage) = (at / listed, start * listed + at);
            add_scaled(&mut dq[i * d..(i + 1) * d], g.as_f64(), self.passages.row(passage));
            let dp = &mut self.d_passages[passage * d..(passage + 1) * d];
            add_scaled(dp, g.as_f64(), self.queries.row(start + i));
        }
    }
}

/// Queries whose scores are held together.
#[derive(Clone, Copy)]
struct Block {
    start: usize,
    rows: usize,
    listed: usize,
}

/// The terms on scores over a whole batch, `block` queries at a time.
pub(super) fn score_terms<T: Scalar>(
    objective: &Objective,
    batch: &Batch<T>,
    temperatures: &[f64],
    block: usize,
) -> Sums<T> {
    let (b, m, listed) = (batch.len(), batch.passage_rows.len(), batch.listed());
    let mut views = View::all(objective, batch);
    let teacher = TeacherScores::new(objective, batch);
    let columns = Columns::of(batch);
    let width = |wide: bool| if wide { m } else { listed };
    let wide_teacher = objective.terms.iter().any(|term| {
        term.loss.needs_teacher() && term.loss.scope().is_some_and(|scope| scope != Scope::Listed)
    });
    let teacher_width = if teacher.is_none() { 0 } else { width(wide_teacher) };
    let widest = views.iter().map(|view| width(view.wide)).max().unwrap_or(0);
    let mut scores = vec![T::zero(); block.min(b) * widest];
    let mut teacher_scores = vec![T::zero(); block.min(b) * teacher_width];
    let mut state = RowState::new(objective, batch, &columns, temperatures);
    for start in (0..b).step_by(block) {
        let at = Block { start, rows: block.min(b - start), listed };
        let teacher_block = &mut teacher_scores[..at.rows * teacher_width];
        teacher.block(at, wide_teacher, teacher_block);
        for view in &mut views {
            let width = width(view.wide);
            let scores = &mut scores[..at.rows * width];
            score_block(&view.queries, &view.passages, at, view.wide, scores);
            for i in 0..at.rows {
                let row = &mut scores[i * width..(i + 1) * width];
                let teacher_row = &teacher_block[i * teacher_width..(i + 1) * teacher_width];
                state.load(row, teacher_row);
                state.add_terms(&view.terms, start + i, teacher.scored(start + i, listed));
                // The scores are not needed any more: the gradient takes their place.
                row.iter_mut().zip(&state.gradient).for_each(|(s, g)| *s = T::of(*g));
            }
            view.add_block(at, scores);
        }
    }
    let mut sums = state.sums;
    sums.terms.iter_mut().for_each(|term| *term /= b as f64);
    for mut view in views {
        view.queries.backward(&mut view.d_queries);
        view.passages.backward(&mut view.d_passages);
        add_view(&mut sums.queries, view.d_queries, view.dim, batch.dim);
        add_view(&mut sums.passages, view.d_passages, view.dim, batch.dim);
    }
    sums
}

/// Adds a view's gradient to that by whole vectors; the first one, if it is whole, is taken as it is.
fn add_view<T: Scalar>(target: &mut Vec<T>, gradient: Vec<T>, dim: usize, whole: usize) {
    if target.is_empty() && dim == whole {
        *target = gradient;
        return;
    }
    target.resize(gradient.len() / dim * whole, T::zero());
    add_leading(target, whole, &gradient, dim);
}

/// Scores of a block of queries with every passage, or with their own candidates.
fn score_block<T: Scalar>(
    queries: &Compared<T>,
    passages: &Compared<T>,
    Block { start, rows, listed }: Block,
    wide: bool,
    scores: &mut [T],
) {
    if wide {
        let d = queries.row(0).len();
        let (q, m) = (&queries.vectors[start * d..(start + rows) * d], scores.len() / rows);
        matmul::nt(Sizes { m: rows, n: m, k: d }, q, &passages.vectors, scores, Write::Overwrite);
        return;
    }
    for (at, score) in scores.iter_mut().enumerate() {
        *score = T::of(dot(queries.row(start + at / listed), passages.row(start * listed + at)));
    }
}

/// The teacher as a source of scores.
enum TeacherScores<'a, T: Scalar> {
    None,
    Vectors { queries: Compared<'a, T>, passages: Compared<'a, T> },
    Listed { scores: &'a [T], scored: &'a [bool] },
}

impl<'a, T: Scalar> TeacherScores<'a, T> {
    fn new(objective: &Objective, batch: &Batch<'a, T>) -> Self {
        let compares = |loss: &Loss| loss.needs_teacher() && loss.scope().is_some();
        match batch.teacher {
            _ if !objective.terms.iter().any(|term| compares(&term.loss)) => Self::None,
            Teacher::None => Self::None,
            Teacher::Vectors { dim, queries, passages } => {
                let compared =
                    |vectors: &'a [T]| Compared::new(objective.teacher_similarity, vectors.into(), dim);
                Self::Vectors { queries: compared(queries), passages: compared(passages) }
            }
            Teacher::Scores { listed, scored } => Self::Listed { scores: listed, scored },
        }
    }

    fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    /// Fills the scores of a block of queries.
    fn block(&self, at: Block, wide: bool, scores: &mut [T]) {
        match self {
            Self::None => {}
            Self::Vectors { queries, passages } => score_block(queries, passages, at, wide, scores),
            Self::Listed { scores: all, .. } => {
                scores.copy_from_slice(&all[at.start * at.listed..(at.start + at.rows) * at.listed]);
            }
        }
    }

    /// Which of a query's own candidates have a score; `None` means all.
    fn scored(&self, query: usize, listed: usize) -> Option<&'a [bool]> {
        match self {
            Self::Listed { scored, .. } => Some(&scored[query * listed..(query + 1) * listed]),
            Self::None | Self::Vectors { .. } => None,
        }
    }
}

/// One query's row in work, and the sums over all rows so far.
struct RowState<'s, 'b, T> {
    objective: &'s Objective,
    batch: &'s Batch<'b, T>,
    columns: &'s Columns<'b>,
    temperatures: &'s [f64],
    scores: Vec<f64>,
    teacher: Vec<f64>,
    gradient: Vec<f64>,
    keep: Vec<bool>,
    sums: Sums<T>,
}

impl<'s, 'b, T: Scalar> RowState<'s, 'b, T> {
    fn new(
        objective: &'s Objective,
        batch: &'s Batch<'b, T>,
        columns: &'s Columns<'b>,
        temperatures: &'s [f64],
    ) -> Self {
        let zeros = vec![0.0; objective.terms.len()];
        let sums = Sums {
            terms: zeros.clone(),
            by_log_temperature: zeros,
            queries: Vec::new(),
            passages: Vec::new(),
            masked_pairs: 0,
            guided_pairs: 0,
        };
        let (scores, teacher, gradient, keep) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { objective, batch, columns, temperatures, scores, teacher, gradient, keep, sums }
    }

    fn load(&mut self, scores: &[T], teacher: &[T]) {
        self.scores.clear();
        self.scores.extend(scores.iter().map(|s| s.as_f64()));
        self.teacher.clear();
        self.teacher.extend(teacher.iter().map(|s| s.as_f64()));
        self.gradient.clear();
        self.gradient.resize(scores.len(), 0.0);
    }

    /// Adds every term of a view for this query to the sums and to the row's gradient.
    fn add_terms(&mut self, terms: &[ViewTerm], query: usize, scored: Option<&[bool]>) {
        for view in terms {
            let term = &self.objective.terms[view.term];
            let Some(scope) = term.loss.scope() else { continue };
            let span = self.columns.span(query, scope);
            // A row that does not span the batch begins with the query's own candidates, and so may the teacher's.
            let own = query * self.batch.listed();
            let part = |width: usize| {
                let first = if width == self.batch.passage_rows.len() { 0 } else { own };
                span.start - first..span.end - first
            };
            self.mask(&term.loss, scope, query, scored, view.counts);
            let mut row = Row {
                scores: &self.scores[part(self.scores.len())],
                teacher: if term.loss.needs_teacher() {
                    &self.teacher[part(self.teacher.len())]
                } else {
                    &[]
                },
                keep: &self.keep,
                factor: term.weight * view.share / self.batch.len() as f64,
                gradient: &mut self.gradient[part(self.scores.len())],
            };
            let temperature = self.temperatures[view.term];
            let Value { value, by_log_temperature } = match term.loss {
                Loss::InfoNce { .. } => rows::info_nce(&mut row, own - span.start, temperature),
                Loss::Kl { teacher_temperature, direction, .. } => {
                    rows::kl(&mut row, Divergence { temperature, teacher_temperature, direction })
                }
                Loss::MarginMse { scale } => rows::margin_mse(&mut row, scale),
                Loss::EmbeddingMse { .. } | Loss::EmbeddingCosine { .. } => Value::default(),
            };
            self.sums.terms[view.term] += view.share * value;
            self.sums.by_log_temperature[view.term] += by_log_temperature;
        }
    }

    /// Which candidates count for a term.
    fn mask(&mut self, loss: &Loss, scope: Scope, query: usize, scored: Option<&[bool]>, counts: bool) {
        let Loss::InfoNce { guide, .. } = loss else {
            self.columns.distinct(query, scope, &mut self.keep);
            // A loss against the teacher leaves out what the teacher did not score.
            if let Some(scored) = scored {
                self.keep.iter_mut().zip(scored).for_each(|(k, s)| *k = *k && *s);
            }
            return;
        };
        let known = &self.batch.known_positives[query];
        let masked = self.columns.negatives(query, known, scope, &mut self.keep);
        let guided = guide.map_or(0, |guide| self.mask_by_teacher(&guide, scope, query, scored));
        if counts {
            self.sums.masked_pairs += masked;
            self.sums.guided_pairs += guided;
        }
    }

    /// Masks what the teacher takes for positives; what it did not score stays. Returns how many were masked.
    fn mask_by_teacher(&mut self, guide: &Guide, scope: Scope, query: usize, scored: Option<&[bool]>) -> u64 {
        let span = self.columns.span(query, scope);
        let own = query * self.batch.listed();
        let first = if self.teacher.len() == self.batch.passage_rows.len() { 0 } else { own };
        // Sparse scores are of the own candidates, which are the span.
        let has_score = |j: usize| scored.is_none_or(|scored| scored[j - own]);
        if !has_score(own) {
            return 0;
        }
        let bound = guide.bound(self.teacher[own - first]);
        let mut masked = 0;
        for (j, kept) in span.zip(self.keep.iter_mut()) {
            if *kept && j != own && has_score(j) && self.teacher[j - first] > bound {
                *kept = false;
                masked += 1;
            }
        }
        masked
    }
}
