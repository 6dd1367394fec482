//! An independent oracle for tests: the whole batch in one graph, every loss written as its formula says, one number
//! at a time on a tape that is differentiated backwards. Nothing here is shared with the code that it judges.

use super::{Direction, Guide, Loss, Objective, Scope, Side, Similarity, Term};
use std::cell::RefCell;

/// A number on a tape.
#[derive(Clone, Copy, Debug)]
pub struct Var(usize);

/// Numbers with what they were made from: reverse-mode differentiation in f64. A node without a parent names node 0
/// with slope 0.
#[derive(Default)]
pub struct Tape(RefCell<Vec<Node>>);

/// A value, and its parents with the slopes by them.
type Node = (f64, [(usize, f64); 2]);

impl Tape {
    pub fn leaf(&self, value: f64) -> Var {
        self.push(value, [(0, 0.0); 2])
    }

    pub fn value(&self, of: Var) -> f64 {
        self.0.borrow()[of.0].0
    }

    fn push(&self, value: f64, parents: [(usize, f64); 2]) -> Var {
        let mut nodes = self.0.borrow_mut();
        nodes.push((value, parents));
        Var(nodes.len() - 1)
    }

    fn unary(&self, a: Var, value: f64, slope: f64) -> Var {
        self.push(value, [(a.0, slope), (0, 0.0)])
    }

    pub fn add(&self, a: Var, b: Var) -> Var {
        self.push(self.value(a) + self.value(b), [(a.0, 1.0), (b.0, 1.0)])
    }

    pub fn sub(&self, a: Var, b: Var) -> Var {
        self.push(self.value(a) - self.value(b), [(a.0, 1.0), (b.0, -1.0)])
    }

    pub fn mul(&self, a: Var, b: Var) -> Var {
        let (x, y) = (self.value(a), self.value(b));
        self.push(x * y, [(a.0, y), (b.0, x)])
    }

    pub fn div(&self, a: Var, b: Var) -> Var {
        let (x, y) = (self.value(a), self.value(b));
        self.push(x / y, [(a.0, 1.0 / y), (b.0, -x / (y * y))])
    }

    pub fn scale(&self, a: Var, factor: f64) -> Var {
        self.unary(a, self.value(a) * factor, factor)
    }

    pub fn exp(&self, a: Var) -> Var {
        let value = self.value(a).exp();
        self.unary(a, value, value)
    }

    pub fn ln(&self, a: Var) -> Var {
        self.unary(a, self.value(a).ln(), 1.0 / self.value(a))
    }

    pub fn sqrt(&self, a: Var) -> Var {
        let value = self.value(a).sqrt();
        self.unary(a, value, 0.5 / value)
    }

    pub fn tanh(&self, a: Var) -> Var {
        let value = self.value(a).tanh();
        self.unary(a, value, 1.0 - value * value)
    }

    pub fn sum(&self, terms: impl IntoIterator<Item = Var>) -> Var {
        terms.into_iter().reduce(|a, b| self.add(a, b)).unwrap_or_else(|| self.leaf(0.0))
    }

    pub fn dot(&self, a: &[Var], b: &[Var]) -> Var {
        self.sum(a.iter().zip(b).map(|(a, b)| self.mul(*a, *b)))
    }

    /// d `of` / d `by` for every leaf in `by`.
    pub fn gradient(&self, of: Var, by: &[Var]) -> Vec<f64> {
        let nodes = self.0.borrow();
        let mut slopes = vec![0.0; nodes.len()];
        slopes[of.0] = 1.0;
        for at in (0..=of.0).rev() {
            for (parent, slope) in nodes[at].1 {
                slopes[parent] += slope * slopes[at];
            }
        }
        by.iter().map(|leaf| slopes[leaf.0]).collect()
    }
}

/// A batch whose vectors are on a tape.
pub struct Graph<'a> {
    pub tape: &'a Tape,
    pub queries: Vec<Vec<Var>>,
    pub passages: Vec<Vec<Var>>,
    pub passage_rows: &'a [u64],
    pub known: &'a [Vec<u64>],
    pub microbatch: usize,
    /// Scores that the teacher gives, [B][M]; none where it has none.
    pub teacher: Vec<Vec<Option<f64>>>,
    /// The teacher's own vectors, where it has some.
    pub teacher_queries: Vec<Vec<f64>>,
    pub teacher_passages: Vec<Vec<f64>>,
}

/// Parameters of a term.
#[derive(Default)]
pub struct TermTheta {
    /// The logarithm of the temperature.
    pub temperature: Option<Var>,
    /// By leading components, [teacher dim][dim].
    pub projections: Vec<(usize, Vec<Vec<Var>>)>,
}

impl Graph<'_> {
    /// The whole objective.
    pub fn objective(&self, objective: &Objective, theta: &[TermTheta]) -> Var {
        let terms = objective.terms.iter().zip(theta);
        self.tape.sum(terms.map(|(term, theta)| self.term(objective.similarity, term, theta)))
    }

    fn term(&self, similarity: Similarity, term: &Term, theta: &TermTheta) -> Var {
        let whole = self.queries[0].len();
        let views = if term.dims.is_empty() { vec![(whole, 1.0)] } else { term.dims.clone() };
        let values = views.into_iter().map(|(dim, share)| {
            let value = match term.loss {
                Loss::EmbeddingMse { side, .. } | Loss::EmbeddingCosine { side, .. } => {
                    let projection = theta.projections.iter().find(|(of, _)| *of == dim).map(|(_, p)| p);
                    self.vectors(&term.loss, side, dim, projection)
                }
                _ => self.scores(similarity, &term.loss, dim, theta.temperature),
            };
            self.tape.scale(value, share * term.weight)
        });
        self.tape.sum(values)
    }

    fn vectors(&self, loss: &Loss, side: Side, dim: usize, projection: Option<&Vec<Vec<Var>>>) -> Var {
        let tape = self.tape;
        let one = |student: &[Var], teacher: &[f64]| {
            let student = &student[..dim];
            let mapped = projection.map_or_else(
                || student.to_vec(),
                |map| map.iter().map(|row| tape.dot(row, student)).collect(),
            );
            let teacher: Vec<Var> = teacher.iter().map(|value| tape.leaf(*value)).collect();
            if matches!(loss, Loss::EmbeddingMse { .. }) {
                let squares = mapped.iter().zip(&teacher).map(|(a, b)| tape.sub(*a, *b));
                let squares: Vec<Var> = squares.map(|d| tape.mul(d, d)).collect();
                return tape.scale(tape.sum(squares.iter().copied()), 1.0 / teacher.len() as f64);
            }
            let lengths = tape.mul(tape.dot(&mapped, &mapped), tape.dot(&teacher, &teacher));
            tape.sub(tape.leaf(1.0), tape.div(tape.dot(&mapped, &teacher), tape.sqrt(lengths)))
        };
        let mean = |student: &[Vec<Var>], teacher: &[Vec<f64>]| {
            let values: Vec<Var> = student.iter().zip(teacher).map(|(s, t)| one(s, t)).collect();
            tape.scale(tape.sum(values.iter().copied()), 1.0 / values.len() as f64)
        };
        let queries = (side != Side::Passages).then(|| mean(&self.queries, &self.teacher_queries));
        let passages = (side != Side::Queries).then(|| mean(&self.passages, &self.teacher_passages));
        tape.sum(queries.into_iter().chain(passages))
    }

    fn scores(&self, similarity: Similarity, loss: &Loss, dim: usize, log_temperature: Option<Var>) -> Var {
        let tape = self.tape;
        let scope = loss.scope().unwrap();
        let fixed = loss.temperature().map_or(1.0, |temperature| temperature.value);
        let temperature = log_temperature.map_or_else(|| tape.leaf(fixed), |log| tape.exp(log));
        let b = self.queries.len();
        let values = (0..b).map(|query| {
            let candidates = self.candidates(query, scope, loss);
            let score = |j: usize| {
                let (q, p) = (&self.queries[query][..dim], &self.passages[j][..dim]);
                let score = tape.dot(q, p);
                if similarity == Similarity::Dot {
                    return score;
                }
                tape.div(score, tape.sqrt(tape.mul(tape.dot(q, q), tape.dot(p, p))))
            };
            let scores: Vec<Var> = candidates.iter().map(|j| score(*j)).collect();
            let teacher: Vec<f64> =
                candidates.iter().map(|j| self.teacher[query][*j].unwrap_or(f64::NAN)).collect();
            let own = candidates.iter().position(|j| *j == query * (self.passages.len() / b));
            self.query(loss, &scores, &teacher, own, temperature)
        });
        let values: Vec<Var> = values.collect();
        tape.scale(tape.sum(values.iter().copied()), 1.0 / b as f64)
    }

    /// The columns that count for a query: each passage once, without what is masked.
    fn candidates(&self, query: usize, scope: Scope, loss: &Loss) -> Vec<usize> {
        let (b, m) = (self.queries.len(), self.passages.len());
        let listed = m / b;
        let own = query * listed;
        let span = match scope {
            Scope::Listed => own..own + listed,
            Scope::Microbatch => {
                let first = query / self.microbatch * self.microbatch * listed;
                first..first + self.microbatch * listed
            }
            Scope::Batch => 0..m,
        };
        let row = |j: usize| self.passage_rows[j];
        let first_of = |j: usize| span.clone().find(|i| row(*i) == row(j)) == Some(j);
        let mut kept: Vec<usize> =
            span.clone().filter(|j| *j == own || (row(*j) != row(own) && first_of(*j))).collect();
        let teacher = &self.teacher[query];
        match loss {
            Loss::InfoNce { guide, .. } => {
                kept.retain(|j| *j == own || !self.known[query].contains(&row(*j)));
                if let (Some(Guide { margin, ratio }), Some(positive)) = (guide, teacher[own]) {
                    kept.retain(|j| {
                        let Some(score) = teacher[*j] else { return true };
                        let near = margin.is_some_and(|margin| score > positive - margin);
                        let share = |ratio: f64| score > positive - (1.0 - ratio) * positive.abs();
                        *j == own || !(near || ratio.is_some_and(share))
                    });
                }
            }
            _ => kept.retain(|j| teacher[*j].is_some()),
        }
        kept
    }

    fn query(
        &self,
        loss: &Loss,
        scores: &[Var],
        teacher: &[f64],
        own: Option<usize>,
        temperature: Var,
    ) -> Var {
        let tape = self.tape;
        let probabilities = |logits: &[Var]| {
            let weights: Vec<Var> = logits.iter().map(|logit| tape.exp(*logit)).collect();
            let sum = tape.sum(weights.iter().copied());
            weights.into_iter().map(|weight| tape.div(weight, sum)).collect::<Vec<_>>()
        };
        let logits: Vec<Var> = scores.iter().map(|score| tape.div(*score, temperature)).collect();
        match *loss {
            Loss::InfoNce { .. } => {
                let own = own.unwrap();
                tape.scale(tape.ln(probabilities(&logits)[own]), -1.0)
            }
            Loss::Kl { .. } if scores.len() < 2 => tape.leaf(0.0),
            Loss::Kl { teacher_temperature, direction, .. } => {
                let logits_of_teacher: Vec<Var> =
                    teacher.iter().map(|score| tape.leaf(score / teacher_temperature)).collect();
                let (p, q) = (probabilities(&logits_of_teacher), probabilities(&logits));
                let (from, to) = if direction == Direction::TeacherStudent { (p, q) } else { (q, p) };
                let parts = from.iter().zip(&to).map(|(f, t)| tape.mul(*f, tape.ln(tape.div(*f, *t))));
                tape.sum(parts.collect::<Vec<_>>())
            }
            Loss::MarginMse { scale } => {
                let others: Vec<usize> = (0..scores.len()).filter(|j| Some(*j) != own).collect();
                let (Some(own), false) = (own, others.is_empty()) else { return tape.leaf(0.0) };
                let square = |j: &usize| {
                    let margin = tape.leaf(scale * (teacher[own] - teacher[*j]));
                    let difference = tape.sub(tape.sub(scores[own], scores[*j]), margin);
                    tape.mul(difference, difference)
                };
                let squares: Vec<Var> = others.iter().map(square).collect();
                tape.scale(tape.sum(squares.iter().copied()), 1.0 / others.len() as f64)
            }
            Loss::EmbeddingMse { .. } | Loss::EmbeddingCosine { .. } => unreachable!("it compares vectors"),
        }
    }
}
