//! Losses on one query's scores, in f64: each returns its value and adds `factor` times its gradient.

use super::spec::Direction;

/// Scores of a query's candidates, and where the gradient by them is added to.
pub(super) struct Row<'a> {
    /// The student's.
    pub scores: &'a [f64],
    /// The teacher's; empty where the loss has none.
    pub teacher: &'a [f64],
    /// Which candidates count.
    pub keep: &'a [bool],
    /// Multiplies the gradient.
    pub factor: f64,
    /// d loss / d scores.
    pub gradient: &'a mut [f64],
}

/// A loss's value, and `factor` times its derivative by the logarithm of the student's temperature.
///
/// A loss sees a score s only as s / τ, so that this is −Σ s · d loss / d s.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Value {
    pub value: f64,
    pub by_log_temperature: f64,
}

impl Row<'_> {
    fn kept(&self) -> impl Iterator<Item = usize> {
        (0..self.scores.len()).filter(|j| self.keep[*j])
    }

    /// Adds `slope(j)` to the gradient of every kept candidate; the derivative by the temperature's logarithm.
    fn add(&mut self, slope: impl Fn(&Self, usize) -> f64) -> f64 {
        let mut by_log_temperature = 0.0;
        for j in 0..self.scores.len() {
            if self.keep[j] {
                let slope = self.factor * slope(self, j);
                self.gradient[j] += slope;
                by_log_temperature -= slope * self.scores[j];
            }
        }
        by_log_temperature
    }
}

/// Softmax cross-entropy of candidate `own` among the kept ones.
pub(super) fn info_nce(row: &mut Row, own: usize, temperature: f64) -> Value {
    let Softmax { shares, log_sum } = softmax(row.scores, row.keep, temperature);
    let value = log_sum - row.scores[own] / temperature;
    let by_log_temperature = row.add(|_, j| {
        let label = if j == own { 1.0 } else { 0.0 };
        (shares[j] - label) / temperature
    });
    Value { value, by_log_temperature }
}

/// The temperatures and the direction of a KL divergence.
#[derive(Clone, Copy)]
pub(super) struct Divergence {
    pub temperature: f64,
    pub teacher_temperature: f64,
    pub direction: Direction,
}

/// KL divergence of student and teacher over the kept candidates; zero where none is left to compare.
pub(super) fn kl(row: &mut Row, spec: Divergence) -> Value {
    if row.kept().count() < 2 {
        return Value::default();
    }
    let Divergence { temperature, teacher_temperature, direction } = spec;
    let q = softmax(row.scores, row.keep, temperature);
    let p = softmax(row.teacher, row.keep, teacher_temperature);
    let log_q = |row: &Row, j: usize| row.scores[j] / temperature - q.log_sum;
    let log_p = |row: &Row, j: usize| row.teacher[j] / teacher_temperature - p.log_sum;
    match direction {
        Direction::TeacherStudent => {
            let value = row.kept().map(|j| p.shares[j] * (log_p(row, j) - log_q(row, j))).sum();
            let by_log_temperature = row.add(|_, j| (q.shares[j] - p.shares[j]) / temperature);
            Value { value, by_log_temperature }
        }
        Direction::StudentTeacher => {
            let value: f64 = row.kept().map(|j| q.shares[j] * (log_q(row, j) - log_p(row, j))).sum();
            let by_log_temperature =
                row.add(|row, j| q.shares[j] * (log_q(row, j) - log_p(row, j) - value) / temperature);
            Value { value, by_log_temperature }
        }
    }
}

/// Mean squared difference of margins between candidate 0, the positive, and each other kept one; zero
/// if the positive or every negative is left out.
pub(super) fn margin_mse(row: &mut Row, scale: f64) -> Value {
    let negatives = row.kept().filter(|j| *j > 0).count();
    if !row.keep[0] || negatives == 0 {
        return Value::default();
    }
    let mut value = 0.0;
    for j in (1..row.scores.len()).filter(|j| row.keep[*j]) {
        let (scores, teacher) = (row.scores, row.teacher);
        let difference = (scores[0] - scores[j]) - scale * (teacher[0] - teacher[j]);
        let slope = row.factor * 2.0 * difference / negatives as f64;
        row.gradient[0] += slope;
        row.gradient[j] -= slope;
        value += difference * difference;
    }
    Value { value: value / negatives as f64, by_log_temperature: 0.0 }
}

/// The softmax of the kept candidates' scores.
struct Softmax {
    /// Each candidate's share; zero for those left out.
    shares: Vec<f64>,
    /// ln Σ exp(score / temperature).
    log_sum: f64,
}

/// Exponentials are most of a loss's work on a whole corpus, so that each is computed once. A NaN among the scores stays
/// one.
fn softmax(scores: &[f64], keep: &[bool], temperature: f64) -> Softmax {
    let kept = || scores.iter().zip(keep).filter(|(_, k)| **k).map(|(s, _)| s / temperature);
    let top = kept().fold(f64::NEG_INFINITY, f64::max);
    let power = |(s, k): (&f64, &bool)| if *k { (s / temperature - top).exp() } else { 0.0 };
    let mut shares: Vec<f64> = scores.iter().zip(keep).map(power).collect();
    let sum: f64 = shares.iter().sum();
    shares.iter_mut().for_each(|share| *share /= sum);
    Softmax { shares, log_sum: top + sum.ln() }
}
