//! Losses on one query's scores, in f64: each returns its value and adds `factor` times its gradient.

use super::spec::Direction;

/// Softmax cross-entropy of candidate `own` among the kept ones.
pub(super) fn info_nce(
    scores: &[f64],
    keep: &[bool],
    own: usize,
    temperature: f64,
    factor: f64,
    gradient: &mut [f64],
) -> f64 {
    let log_sum = log_sum_exp(scores, keep, temperature);
    for (j, g) in gradient.iter_mut().enumerate().filter(|(j, _)| keep[*j]) {
        let p = (scores[j] / temperature - log_sum).exp();
        let label = if j == own { 1.0 } else { 0.0 };
        *g += factor * (p - label) / temperature;
    }
    log_sum - scores[own] / temperature
}

/// The temperatures and the direction of a KL divergence.
#[derive(Clone, Copy)]
pub(super) struct Divergence {
    pub student_temperature: f64,
    pub teacher_temperature: f64,
    pub direction: Direction,
}

/// KL divergence of student and teacher over the kept candidates; zero where none is left to compare.
pub(super) fn kl(
    spec: Divergence,
    scores: &[f64],
    teacher: &[f64],
    keep: &[bool],
    factor: f64,
    gradient: &mut [f64],
) -> f64 {
    if keep.iter().filter(|k| **k).count() < 2 {
        return 0.0;
    }
    let student_sum = log_sum_exp(scores, keep, spec.student_temperature);
    let teacher_sum = log_sum_exp(teacher, keep, spec.teacher_temperature);
    let log_q = |j: usize| scores[j] / spec.student_temperature - student_sum;
    let log_p = |j: usize| teacher[j] / spec.teacher_temperature - teacher_sum;
    let kept = || (0..scores.len()).filter(|j| keep[*j]);
    match spec.direction {
        Direction::TeacherStudent => {
            for j in kept() {
                gradient[j] += factor * (log_q(j).exp() - log_p(j).exp()) / spec.student_temperature;
            }
            kept().map(|j| log_p(j).exp() * (log_p(j) - log_q(j))).sum()
        }
        Direction::StudentTeacher => {
            let value: f64 = kept().map(|j| log_q(j).exp() * (log_q(j) - log_p(j))).sum();
            for j in kept() {
                let slope = log_q(j).exp() * (log_q(j) - log_p(j) - value);
                gradient[j] += factor * slope / spec.student_temperature;
            }
            value
        }
    }
}

/// Mean squared difference of margins between candidate 0, the positive, and each other kept one; zero
/// if the positive or every negative is left out.
pub(super) fn margin_mse(
    scores: &[f64],
    teacher: &[f64],
    keep: &[bool],
    scale: f64,
    factor: f64,
    gradient: &mut [f64],
) -> f64 {
    let negatives = keep.iter().skip(1).filter(|k| **k).count();
    if !keep[0] || negatives == 0 {
        return 0.0;
    }
    let mut value = 0.0;
    for j in (1..scores.len()).filter(|j| keep[*j]) {
        let difference = (scores[0] - scores[j]) - scale * (teacher[0] - teacher[j]);
        let slope = factor * 2.0 * difference / negatives as f64;
        gradient[0] += slope;
        gradient[j] -= slope;
        value += difference * difference;
    }
    value / negatives as f64
}

/// ln Σ exp(score / temperature) over kept candidates; a NaN among them stays one.
fn log_sum_exp(scores: &[f64], keep: &[bool], temperature: f64) -> f64 {
    let kept = || scores.iter().zip(keep).filter(|(_, k)| **k).map(|(s, _)| s / temperature);
    let top = kept().fold(f64::NEG_INFINITY, f64::max);
    top + kept().map(|s| (s - top).exp()).sum::<f64>().ln()
}
