//! The gradient that a cohort sums up equals that of one process with the whole batch in one graph, for every loss,
//! whoever computed which microbatch.

use super::reference::{Graph, Tape, TermTheta, Var};
use super::tests::{Case, scope, similarity, vector_term};
use super::*;
use crate::mining::counter;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use std::collections::BTreeMap;
use std::ops::Range;

const INPUT: usize = 3;
const HIDDEN: usize = 4;

/// A tower of two layers, output = W₂ tanh(W₁ x), with its gradient written out.
struct Tower<T> {
    first: Vec<T>,
    second: Vec<T>,
    dim: usize,
}

impl<T: Scalar> Tower<T> {
    fn new(params: &[f64], dim: usize) -> Self {
        let params: Vec<T> = params.iter().map(|value| T::of(*value)).collect();
        let (first, second) = params.split_at(HIDDEN * INPUT);
        Self { first: first.to_vec(), second: second.to_vec(), dim }
    }

    fn hidden(&self, x: &[T]) -> Vec<T> {
        let row = |row: &[T]| T::of(scalar::dot(row, x).tanh());
        self.first.chunks_exact(INPUT).map(row).collect()
    }

    fn forward(&self, inputs: &[T]) -> Vec<T> {
        let output = |x: &[T]| {
            let hidden = self.hidden(x);
            self.second.chunks_exact(HIDDEN).map(|row| T::of(scalar::dot(row, &hidden))).collect::<Vec<_>>()
        };
        inputs.chunks_exact(INPUT).flat_map(output).collect()
    }

    fn backward(&self, inputs: &[T], d_outputs: &[T]) -> Vec<T> {
        let mut gradient = vec![T::zero(); self.first.len() + self.second.len()];
        for (x, dy) in inputs.chunks_exact(INPUT).zip(d_outputs.chunks_exact(self.dim)) {
            let hidden = self.hidden(x);
            let (first, second) = gradient.split_at_mut(self.first.len());
            let mut dh = vec![T::zero(); HIDDEN];
            for (o, dy) in dy.iter().enumerate() {
                let row = o * HIDDEN..(o + 1) * HIDDEN;
                scalar::add_scaled(&mut second[row.clone()], dy.as_f64(), &hidden);
                scalar::add_scaled(&mut dh, dy.as_f64(), &self.second[row]);
            }
            for (h, dh) in dh.iter().enumerate() {
                let slope = dh.as_f64() * (1.0 - hidden[h].as_f64() * hidden[h].as_f64());
                scalar::add_scaled(&mut first[h * INPUT..(h + 1) * INPUT], slope, x);
            }
        }
        gradient
    }
}

/// A batch of texts for a tower, with everything that a loss may read.
struct Setting {
    /// Vectors in it are not used: the tower makes them.
    case: Case,
    microbatches: usize,
    params: Vec<f64>,
    /// [B + M, INPUT]: queries, then passages.
    inputs: Vec<f64>,
    objective: Objective,
    theta: Vec<f64>,
}

impl Setting {
    fn new(
        seed: u64,
        (microbatches, rows, listed): (usize, usize, usize),
        dim: usize,
        objective: Objective,
        kind: TeacherKind,
    ) -> Self {
        let case = Case::new(seed, microbatches * rows, listed, dim, 3, kind);
        let values = |stream: u64, len: usize| -> Vec<f64> {
            (0..len).map(|i| 2.0 * counter::unit(counter::hash(seed, &[stream, i as u64])) - 1.0).collect()
        };
        let texts = case.query_rows.len() + case.passage_rows.len();
        let theta = objective.theta_layout(kind, dim).initial(seed).into_iter().map(f64::from).collect();
        let params = values(11, HIDDEN * (INPUT + dim));
        Self { params, inputs: values(12, texts * INPUT), microbatches, objective, theta, case }
    }

    /// What one process finds with the whole batch in one graph: the value, and gradients by the tower's first and
    /// second layer and by the loss's own parameters.
    fn reference(&self) -> (f64, [Vec<f64>; 3]) {
        let (case, tape) = (&self.case, Tape::default());
        tape.leaf(0.0);
        let leaves = |values: &[f64]| values.iter().map(|value| tape.leaf(*value)).collect::<Vec<_>>();
        let (params, theta) = (leaves(&self.params), leaves(&self.theta));
        let (first, second) = params.split_at(HIDDEN * INPUT);
        let encode = |x: &[f64]| {
            let x = leaves(x);
            let hidden: Vec<Var> =
                first.chunks_exact(INPUT).map(|row| tape.tanh(tape.dot(row, &x))).collect();
            second.chunks_exact(HIDDEN).map(|row| tape.dot(row, &hidden)).collect::<Vec<_>>()
        };
        let b = case.query_rows.len();
        let vectors: Vec<Vec<Var>> = self.inputs.chunks_exact(INPUT).map(encode).collect();
        let rows = |values: &[f64], dim: usize| values.chunks_exact(dim).map(<[f64]>::to_vec).collect();
        let graph = Graph {
            tape: &tape,
            queries: vectors[..b].to_vec(),
            passages: vectors[b..].to_vec(),
            passage_rows: &case.passage_rows,
            known: &case.known,
            microbatch: b / self.microbatches,
            teacher: self.teacher_scores(),
            teacher_queries: rows(&case.teacher_queries, case.teacher_dim),
            teacher_passages: rows(&case.teacher_passages, case.teacher_dim),
        };
        let layout = self.objective.theta_layout(case.kind, case.dim);
        let mut of_terms: Vec<TermTheta> =
            self.objective.terms.iter().map(|_| TermTheta::default()).collect();
        for entry in layout.entries() {
            match entry.role {
                ThetaRole::Temperature => of_terms[entry.term].temperature = Some(theta[entry.offset]),
                ThetaRole::Projection { dim } => {
                    let rows = theta[entry.range()].chunks_exact(dim).map(<[Var]>::to_vec).collect();
                    of_terms[entry.term].projections.push((dim, rows));
                }
            }
        }
        let value = graph.objective(&self.objective, &of_terms);
        let gradients = [first, second, &theta].map(|leaves| tape.gradient(value, leaves));
        (tape.value(value), gradients)
    }

    /// The least length of the leading two components of a vector.
    fn shortest_vector(&self) -> f64 {
        let vectors = Tower::<f64>::new(&self.params, self.case.dim).forward(&self.inputs);
        let lengths = vectors.chunks_exact(self.case.dim).map(|v| v[0].hypot(v[1]));
        lengths.fold(f64::INFINITY, f64::min)
    }

    fn teacher_scores(&self) -> Vec<Vec<Option<f64>>> {
        let case = &self.case;
        let (b, m) = (case.query_rows.len(), case.passage_rows.len());
        let listed = m / b;
        let score = |q: usize, p: usize| match case.kind {
            TeacherKind::None => None,
            TeacherKind::Scores => (p / listed == q && case.scored[p]).then(|| case.scores[p]),
            TeacherKind::Vectors { dim } => {
                let q = &case.teacher_queries[q * dim..(q + 1) * dim];
                let p = &case.teacher_passages[p * dim..(p + 1) * dim];
                let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                Some(dot(q, p) / (dot(q, q) * dot(p, p)).sqrt())
            }
        };
        (0..b).map(|q| (0..m).map(|p| score(q, p)).collect()).collect()
    }

    /// What a cohort finds whose workers take these numbers of microbatches each.
    fn cohort<T: Scalar>(&self, deal: &[usize]) -> (f64, [Vec<T>; 3]) {
        let narrow = |values: &[f64]| values.iter().map(|value| T::of(*value)).collect::<Vec<T>>();
        let (case, tower) = (&self.case, Tower::<T>::new(&self.params, self.case.dim));
        let inputs = narrow(&self.inputs);
        let (b, m) = (case.query_rows.len(), case.passage_rows.len());
        let (q, p) = (b / self.microbatches, m / self.microbatches);
        // A microbatch's queries and its passages among the texts.
        let texts = |microbatch: usize| {
            [microbatch * q..(microbatch + 1) * q, b + microbatch * p..b + (microbatch + 1) * p]
        };
        let of = |range: Range<usize>, width: usize| range.start * width..range.end * width;
        // Encode and gather: every worker's vectors in the order of microbatches.
        let (mut queries, mut passages) = (Vec::new(), Vec::new());
        for microbatch in 0..self.microbatches {
            let [of_queries, of_passages] = texts(microbatch);
            queries.extend(tower.forward(&inputs[of(of_queries, INPUT)]));
            passages.extend(tower.forward(&inputs[of(of_passages, INPUT)]));
        }
        // The loss, the same everywhere.
        let (tq, tp) = (narrow(&case.teacher_queries), narrow(&case.teacher_passages));
        let scores = narrow(&case.scores);
        let batch = Batch {
            dim: case.dim,
            microbatch: q,
            queries: &queries,
            passages: &passages,
            query_rows: &case.query_rows,
            passage_rows: &case.passage_rows,
            known_positives: &case.known,
            teacher: match case.kind {
                TeacherKind::None => Teacher::None,
                TeacherKind::Vectors { dim } => Teacher::Vectors { dim, queries: &tq, passages: &tp },
                TeacherKind::Scores => Teacher::Scores { listed: &scores, scored: &case.scored },
            },
        };
        let outcome = evaluate(&self.objective, &batch, &narrow(&self.theta)).unwrap();
        // Backward, one microbatch at a time, and the canonical tree.
        let leaf = |microbatch: usize| {
            let [of_queries, of_passages] = texts(microbatch);
            let d_passages = of_passages.start - b..of_passages.end - b;
            let x: Vec<T> =
                [&inputs[of(of_queries.clone(), INPUT)], &inputs[of(of_passages, INPUT)]].concat();
            let dy: Vec<T> =
                [&outcome.queries[of(of_queries, case.dim)], &outcome.passages[of(d_passages, case.dim)]]
                    .concat();
            tower.backward(&x, &dy)
        };
        let mut partials = BTreeMap::new();
        let mut first = 0;
        for microbatches in deal {
            let mine = first..first + microbatches;
            own_nodes(0..self.microbatches, &mine, &leaf, &mut partials);
            first = mine.end;
        }
        assert_eq!(first, self.microbatches, "a deal covers every microbatch once");
        let mut gradient = finish(0..self.microbatches, &mut partials);
        assert!(partials.is_empty(), "every partial sum is used once");
        // dθ is added once, after the root.
        let second = gradient.split_off(HIDDEN * INPUT);
        (outcome.value, [gradient, second, outcome.theta])
    }
}

fn split(node: &Range<usize>) -> usize {
    node.start + node.len().next_power_of_two() / 2
}

fn sum<T: Scalar>(mut left: Vec<T>, right: Vec<T>) -> Vec<T> {
    left.iter_mut().zip(right).for_each(|(a, b)| *a += b);
    left
}

/// The sums of the largest subtrees below `node` whose leaves a worker has all of.
fn own_nodes<T: Scalar>(
    node: Range<usize>,
    mine: &Range<usize>,
    leaf: &impl Fn(usize) -> Vec<T>,
    partials: &mut BTreeMap<(usize, usize), Vec<T>>,
) {
    if node.end <= mine.start || mine.end <= node.start {
        return;
    }
    if mine.start <= node.start && node.end <= mine.end {
        let held = partials.insert((node.start, node.end), subtree(node, leaf));
        assert!(held.is_none());
        return;
    }
    let middle = split(&node);
    own_nodes(node.start..middle, mine, leaf, partials);
    own_nodes(middle..node.end, mine, leaf, partials);
}

fn subtree<T: Scalar>(node: Range<usize>, leaf: &impl Fn(usize) -> Vec<T>) -> Vec<T> {
    if node.len() == 1 {
        return leaf(node.start);
    }
    let middle = split(&node);
    sum(subtree(node.start..middle, leaf), subtree(middle..node.end, leaf))
}

fn finish<T: Scalar>(node: Range<usize>, partials: &mut BTreeMap<(usize, usize), Vec<T>>) -> Vec<T> {
    if let Some(sum) = partials.remove(&(node.start, node.end)) {
        return sum;
    }
    let middle = split(&node);
    let left = finish(node.start..middle, partials);
    sum(left, finish(middle..node.end, partials))
}

/// |Δ| / |g| of each tensor within `tolerance`. Where hardly anything is left of a gradient, nothing remains to
/// compare: `floor` is the least length that is looked at.
fn check<T: Scalar>(setting: &Setting, deals: &[Vec<usize>], tolerance: f64, floor: f64) {
    let (value, gradients) = setting.reference();
    let (found, by_first_deal) = setting.cohort::<T>(&deals[0]);
    assert!((found - value).abs() <= tolerance * value.abs().max(1.0), "{found} but {value}");
    for (name, (found, wanted)) in
        ["first layer", "second layer", "θ"].iter().zip(by_first_deal.iter().zip(&gradients))
    {
        let length = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
        let norm = length(&mut wanted.iter().copied());
        let off = length(&mut found.iter().zip(wanted).map(|(a, b)| a.as_f64() - b));
        assert!(off <= tolerance * norm.max(floor), "{name}: off by {off} of {norm}");
    }
    for deal in &deals[1..] {
        assert!(setting.cohort::<T>(deal).1 == by_first_deal, "the deal {deal:?} changes bits");
    }
}

/// Deals of `microbatches` to one worker, to as many as there are microbatches, and two between, cut anywhere.
fn deals(microbatches: usize, seed: u64) -> Vec<Vec<usize>> {
    let cut = |stream: u64| {
        let mut deal = vec![1];
        for at in 1..microbatches {
            match counter::hash(seed, &[stream, at as u64]).is_multiple_of(2) {
                true => deal.push(1),
                false => *deal.last_mut().unwrap() += 1,
            }
        }
        deal
    };
    vec![vec![microbatches], vec![1; microbatches], cut(1), cut(2)]
}

fn sharp(term: Term, value: f64) -> Term {
    let cooled =
        |temperature: Temperature| Temperature { value, learnt: temperature.learnt.map(|_| (0.01, 2.0)) };
    let loss = match term.loss {
        Loss::InfoNce { temperature, scope, guide } => {
            Loss::InfoNce { temperature: cooled(temperature), scope, guide }
        }
        Loss::Kl { temperature, scope, direction, .. } => {
            Loss::Kl { temperature: cooled(temperature), teacher_temperature: value, scope, direction }
        }
        loss => loss,
    };
    Term { loss, ..term }
}

proptest! {
    // A fixed seed: a vector next to zero, whose cosine no f32 can follow, comes once in thousands of cases.
    #![proptest_config(ProptestConfig { cases: 96, rng_seed: RngSeed::Fixed(2), ..ProptestConfig::default() })]

    #[test]
    fn with_teacher_vectors(
        seed: u64, shape in (1usize..7, 1usize..4, 2usize..4), dim in 3usize..6, similarity in similarity(),
        terms in prop::collection::vec(vector_term(), 1..4), temperature in 0.05..0.5f64,
    ) {
        let kind = TeacherKind::Vectors { dim: 3 };
        let terms = terms.into_iter().map(|term| sharp(term, temperature)).collect();
        let objective = Objective { similarity, teacher_similarity: Similarity::Cosine, terms };
        let setting = Setting::new(seed, shape, dim, objective, kind);
        prop_assume!(setting.shortest_vector() > 0.05);
        let deals = deals(shape.0, seed);
        check::<f64>(&setting, &deals, 1e-9, 1e-3);
        check::<f32>(&setting, &deals, 1e-4, 1e-2);
    }

    #[test]
    fn with_teacher_scores(
        seed: u64, shape in (1usize..7, 1usize..4, 2usize..5), similarity in similarity(), scope in scope(),
        direction in prop_oneof![Just(Direction::TeacherStudent), Just(Direction::StudentTeacher)],
    ) {
        let temperature = Temperature { value: 0.05, learnt: Some((0.01, 1.0)) };
        let guide = Some(Guide { margin: Some(0.1), ratio: Some(0.9) });
        let losses = [
            Loss::Kl { temperature, teacher_temperature: 0.1, scope: Scope::Listed, direction },
            Loss::MarginMse { scale: 0.5 },
            Loss::InfoNce { temperature, scope: Scope::Listed, guide },
            Loss::InfoNce { temperature, scope, guide: None },
        ];
        let terms = losses.into_iter().map(|loss| Term::new(0.7, loss)).collect();
        let objective = Objective { similarity, teacher_similarity: similarity, terms };
        let setting = Setting::new(seed, shape, 4, objective, TeacherKind::Scores);
        let deals = deals(shape.0, seed);
        check::<f64>(&setting, &deals, 1e-9, 1e-3);
        check::<f32>(&setting, &deals, 1e-4, 1e-2);
    }
}
