//! AdamW, learning-rate schedules and gradient clipping on the flat parameter vector.
//!
//! - [`AdamW`]: the optimiser and its moments, PyTorch's semantics
//! - [`clip_global_norm`]: clipping by the norm of the whole gradient
//! - [`Schedule`]: the learning rate as a function of the step
//!
//! Every function uses only additions, multiplications, divisions and square roots in a fixed order, which IEEE 754
//! rounds exactly: the same inputs give the same bits on every machine.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Hyperparameters of [`AdamW`]; the defaults are PyTorch's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator, outside the square root.
    pub eps: f64,
    /// Decoupled weight decay, multiplied by the learning rate.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 }
    }
}

/// A range of the flat vector that is treated alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Where it lies.
    pub range: Range<usize>,
    /// Whether weight decay applies.
    pub decay: bool,
    /// Whether it stays as it is; its gradient does not count, either.
    pub frozen: bool,
}

/// AdamW (Loshchilov and Hutter, 2019) as `torch.optim.AdamW` computes it, on one flat vector.
#[derive(Clone, Debug)]
pub struct AdamW {
    config: AdamWConfig,
    groups: Vec<Group>,
    step: u64,
    first: Vec<f32>,
    second: Vec<f32>,
}

impl AdamW {
    /// An optimiser with zero moments. The groups follow each other and cover the whole vector.
    ///
    /// # Panics
    /// When the groups are not consecutive from zero.
    pub fn new(config: AdamWConfig, groups: Vec<Group>) -> Self {
        let mut len = 0;
        for Group { range, .. } in &groups {
            assert_eq!(range.start, len, "groups of parameters must be consecutive");
            len = range.end;
        }
        Self { config, groups, step: 0, first: vec![0.0; len], second: vec![0.0; len] }
    }

    /// Sets the gradient of frozen groups to zero, so that the global norm is that of what is trained.
    pub fn clear_frozen(&self, grads: &mut [f32]) {
        for group in self.groups.iter().filter(|group| group.frozen) {
            grads[group.range.clone()].fill(0.0);
        }
    }

    /// Puts back the state of a checkpoint.
    ///
    /// # Panics
    /// When a moment does not fit the layout: callers check lengths of stored data first.
    pub fn restore(&mut self, step: u64, first: Vec<f32>, second: Vec<f32>) {
        assert!(
            first.len() == self.first.len() && second.len() == self.second.len(),
            "moments must have {} values",
            self.first.len()
        );
        (self.step, self.first, self.second) = (step, first, second);
    }

    /// Number of steps taken.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// First and second moments, in the order of the parameters.
    pub fn moments(&self) -> (&[f32], &[f32]) {
        (&self.first, &self.second)
    }

    /// Takes one step with learning rate `lr`.
    ///
    /// # Panics
    /// When `params` or `grads` do not have the length of the layout.
    pub fn step(&mut self, params: &mut [f32], grads: &[f32], lr: f64) {
        self.step_scaled(params, grads, 1.0, lr);
    }

    /// [`AdamW::step`] by `grads` times `scale`, without writing the product: to have clipped a vector of some 100 MB
    /// beforehand would read and write it once more.
    ///
    /// # Panics
    /// When `params` or `grads` do not have the length of the layout.
    pub fn step_scaled(&mut self, params: &mut [f32], grads: &[f32], scale: f32, lr: f64) {
        assert!(
            params.len() == self.first.len() && grads.len() == params.len(),
            "parameters and gradients must have {} values",
            self.first.len()
        );
        self.step += 1;
        let AdamWConfig { beta1, beta2, eps, weight_decay } = self.config;
        let correction1 = 1.0 - power(beta1, self.step);
        let correction2 = (1.0 - power(beta2, self.step)).sqrt();
        let step_size = (lr / correction1) as f32;
        let (keep1, new1) = (beta1 as f32, (1.0 - beta1) as f32);
        let (keep2, new2) = (beta2 as f32, (1.0 - beta2) as f32);
        let (correction2, eps) = (correction2 as f32, eps as f32);
        for Group { range, decay, .. } in self.groups.iter().filter(|group| !group.frozen) {
            let shrink = if *decay { (1.0 - lr * weight_decay) as f32 } else { 1.0 };
            let params = params[range.clone()].iter_mut();
            let first = self.first[range.clone()].iter_mut();
            let second = self.second[range.clone()].iter_mut();
            for (((param, first), second), grad) in params.zip(first).zip(second).zip(&grads[range.clone()]) {
                let grad = grad * scale;
                *first = keep1 * *first + new1 * grad;
                *second = keep2 * *second + new2 * (grad * grad);
                let denominator = second.sqrt() / correction2 + eps;
                *param = *param * shrink - step_size * (*first / denominator);
            }
        }
    }
}

/// Scales `grads` so that their Euclidean norm is at most `max`, as `torch.nn.utils.clip_grad_norm_`; returns the norm
/// before. A norm that is not finite leaves the gradients as they are: the caller decides what that means.
pub fn clip_global_norm(grads: &mut [f32], max: f64) -> f64 {
    let (norm, scale) = clip_scale(grads, max);
    if scale < 1.0 {
        grads.iter_mut().for_each(|grad| *grad *= scale);
    }
    norm
}

/// The norm of `grads`, and by what [`clip_global_norm`] would multiply them.
pub fn clip_scale(grads: &[f32], max: f64) -> (f64, f32) {
    let norm = sum_of_squares(grads).sqrt();
    let scale = max / (norm + 1e-6);
    (norm, if norm.is_finite() && scale < 1.0 { scale as f32 } else { 1.0 })
}

/// Sum of squares in f64 over eight interleaved lanes: a fixed order that the compiler can vectorise.
fn sum_of_squares(values: &[f32]) -> f64 {
    let mut lanes = [0.0f64; 8];
    let (chunks, tail) = values.as_chunks::<8>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(*value) * f64::from(*value);
        }
    }
    for (lane, value) in lanes.iter_mut().zip(tail) {
        *lane += f64::from(*value) * f64::from(*value);
    }
    lanes.iter().sum()
}

/// How the learning rate falls after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// Linearly to zero at the last step.
    Linear,
    /// Along half a cosine to zero at the last step.
    Cosine,
    /// Not at all.
    Constant,
}

/// The learning rate as a function of the step: linear warm-up, then a [`ScheduleKind`], as in
/// `transformers.get_scheduler`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// What follows the warm-up.
    pub kind: ScheduleKind,
    /// Steps until the full rate is reached.
    pub warmup_steps: u64,
    /// Steps of the whole training.
    pub total_steps: u64,
    /// The highest rate.
    pub lr: f64,
}

impl Schedule {
    /// The rate of the step after `step` steps have been taken: `at(0)` is the first step's.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.lr * (step as f64 / self.warmup_steps as f64);
        }
        let span = self.total_steps.saturating_sub(self.warmup_steps).max(1) as f64;
        let progress = ((step - self.warmup_steps) as f64 / span).min(1.0);
        match self.kind {
            ScheduleKind::Linear => self.lr * (1.0 - progress),
            ScheduleKind::Cosine => self.lr * (0.5 * (1.0 + cosine_of_half_turns(progress))),
            ScheduleKind::Constant => self.lr,
        }
    }
}

/// `base` to the `exponent` by repeated squaring; `f64::powi` leaves its rounding to the platform.
fn power(base: f64, exponent: u64) -> f64 {
    let (mut result, mut square, mut rest) = (1.0, base, exponent);
    while rest > 0 {
        if rest & 1 == 1 {
            result *= square;
        }
        square *= square;
        rest >>= 1;
    }
    result
}

/// cos(pi x) for x in [0, 1] by the Taylor series of the sine around x = 1/2; the platform's cosine may differ in the
/// last bit from one libm to another.
fn cosine_of_half_turns(x: f64) -> f64 {
    let angle = std::f64::consts::PI * (0.5 - x);
    let square = angle * angle;
    let series = (1..=11).rev().fold(1.0, |sum, k| {
        let k = f64::from(k);
        1.0 - square / (2.0 * k * (2.0 * k + 1.0)) * sum
    });
    angle * series
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(range: Range<usize>, decay: bool) -> Group {
        Group { range, decay, frozen: false }
    }

    fn near(found: f64, wanted: f64, tolerance: f64) {
        assert!((found - wanted).abs() <= tolerance, "{found} is not {wanted}");
    }

    /// PyTorch's documented formula in f64, one parameter at a time.
    fn reference(config: AdamWConfig, lr: f64, param: f64, grads: &[f64], decays: bool) -> f64 {
        let (mut param, mut first, mut second) = (param, 0.0, 0.0);
        for (index, grad) in grads.iter().enumerate() {
            let t = index as i32 + 1;
            if decays {
                param -= lr * config.weight_decay * param;
            }
            first = config.beta1 * first + (1.0 - config.beta1) * grad;
            second = config.beta2 * second + (1.0 - config.beta2) * grad * grad;
            let first_hat = first / (1.0 - config.beta1.powi(t));
            let second_hat: f64 = second / (1.0 - config.beta2.powi(t));
            param -= lr * first_hat / (second_hat.sqrt() + config.eps);
        }
        param
    }

    #[test]
    fn adamw_follows_the_formula_and_its_decay_mask() {
        let config = AdamWConfig { weight_decay: 0.1, ..AdamWConfig::default() };
        let mut optimizer = AdamW::new(config, vec![group(0..1, true), group(1..2, false)]);
        let mut params = [0.5f32, -0.25];
        let grads = [[0.1, -0.3], [0.2, 0.05], [-0.4, 0.0]];
        for grad in grads {
            optimizer.step(&mut params, &grad.map(|g| g as f32), 0.01);
        }
        for (index, start) in [0.5, -0.25].into_iter().enumerate() {
            let series: Vec<f64> = grads.iter().map(|grad| grad[index]).collect();
            near(f64::from(params[index]), reference(config, 0.01, start, &series, index == 0), 1e-6);
        }
        // The first step of Adam has size lr whatever the gradient's scale.
        let mut first = AdamW::new(AdamWConfig { weight_decay: 0.0, ..config }, vec![group(0..1, true)]);
        let mut param = [1.0f32];
        first.step(&mut param, &[1e-3], 0.5);
        near(f64::from(param[0]), 0.5, 1e-5);
    }

    #[test]
    fn training_agrees_with_pytorch() {
        // torch 2.9.1: AdamW with a second group without decay, clip_grad_norm_ and transformers' get_scheduler.
        let check = |config: AdamWConfig, schedule: Schedule, max_norm: f64, wanted: [f64; 7]| {
            let mut optimizer = AdamW::new(config, vec![group(0..4, true), group(4..6, false)]);
            let mut params = [0.5f32, -0.25, 1.5, 0.0, 0.125, -2.0];
            let mut norm = 0.0;
            for t in 0..schedule.total_steps {
                let mut grads: [f32; 6] =
                    std::array::from_fn(|i| ((((i as u64 * 7 + t * 5) % 11) as f64 - 5.0) * 0.37) as f32);
                norm = clip_global_norm(&mut grads, max_norm);
                optimizer.step(&mut params, &grads, schedule.at(t));
            }
            for (found, wanted) in params.iter().map(|p| f64::from(*p)).chain([norm]).zip(wanted) {
                near(found, wanted, 2e-6);
            }
        };
        check(
            AdamWConfig { weight_decay: 0.1, ..AdamWConfig::default() },
            Schedule { kind: ScheduleKind::Linear, warmup_steps: 3, total_steps: 25, lr: 0.05 },
            1.0,
            [
                0.463_073_998_7,
                -0.189_177_066_1,
                1.448_251_128_2,
                -0.080_696_746_7,
                0.111_462_034_3,
                -1.913_477_063_2,
                3.028_580_427_2,
            ],
        );
        check(
            AdamWConfig { beta1: 0.8, beta2: 0.95, eps: 1e-4, weight_decay: 0.01 },
            Schedule { kind: ScheduleKind::Cosine, warmup_steps: 5, total_steps: 40, lr: 0.02 },
            2.5,
            [
                0.495_753_884_3,
                -0.242_333_724_8,
                1.501_573_443_4,
                -0.007_145_186_4,
                0.113_728_225_2,
                -1.983_259_320_3,
                3.051_098_108_3,
            ],
        );
    }

    #[test]
    fn a_restored_optimizer_goes_on_with_the_same_bits() {
        let mut whole = AdamW::new(AdamWConfig::default(), vec![group(0..3, true)]);
        let mut params = vec![0.1f32, 0.2, 0.3];
        whole.step(&mut params, &[0.3, -0.1, 0.2], 1e-3);
        let mut resumed = AdamW::new(AdamWConfig::default(), vec![group(0..3, true)]);
        let (first, second) = whole.moments();
        resumed.restore(whole.steps(), first.to_vec(), second.to_vec());
        let mut copy = params.clone();
        whole.step(&mut params, &[0.1, 0.1, 0.1], 1e-3);
        resumed.step(&mut copy, &[0.1, 0.1, 0.1], 1e-3);
        assert_eq!(params, copy);
    }

    #[test]
    fn a_frozen_group_stays_and_does_not_count() {
        let groups = vec![group(0..1, true), Group { frozen: true, ..group(1..3, true) }];
        let mut optimizer = AdamW::new(AdamWConfig::default(), groups);
        let (mut params, mut grads) = ([0.5f32; 3], [3.0f32, 40.0, 0.0]);
        optimizer.clear_frozen(&mut grads);
        near(clip_global_norm(&mut grads, 10.0), 3.0, 1e-12);
        optimizer.step(&mut params, &grads, 0.1);
        assert!(params[0] < 0.5 && params[1..] == [0.5; 2]);
        assert_eq!(optimizer.moments().0[1..], [0.0; 2]);
    }

    #[test]
    fn clipping_scales_only_what_is_too_long() {
        let mut grads = vec![0.0f32; 20];
        (grads[3], grads[17]) = (3.0, 4.0);
        near(clip_global_norm(&mut grads, 10.0), 5.0, 1e-12);
        assert_eq!((grads[3], grads[17]), (3.0, 4.0));
        near(clip_global_norm(&mut grads, 1.0), 5.0, 1e-12);
        near(f64::from(grads[3]), 0.6, 1e-6);
        let mut broken = [f32::NAN, 1.0];
        assert!(clip_global_norm(&mut broken, 1.0).is_nan() && broken[1] == 1.0);
    }

    #[test]
    fn schedules_warm_up_and_fall() {
        let check = |kind, expected: [f64; 5]| {
            let schedule = Schedule { kind, warmup_steps: 10, total_steps: 110, lr: 2.0 };
            for (step, wanted) in [0, 5, 10, 60, 110].into_iter().zip(expected) {
                near(schedule.at(step), wanted, 1e-12);
            }
        };
        check(ScheduleKind::Linear, [0.0, 1.0, 2.0, 1.0, 0.0]);
        check(ScheduleKind::Cosine, [0.0, 1.0, 2.0, 1.0, 0.0]);
        check(ScheduleKind::Constant, [0.0, 1.0, 2.0, 2.0, 2.0]);
        let short = Schedule { kind: ScheduleKind::Linear, warmup_steps: 0, total_steps: 0, lr: 1.0 };
        near(short.at(0), 1.0, 0.0);
        near(short.at(9), 0.0, 0.0);
    }

    #[test]
    fn the_cosine_is_the_cosine() {
        for index in 0..=100 {
            let x = f64::from(index) / 100.0;
            near(cosine_of_half_turns(x), (std::f64::consts::PI * x).cos(), 1e-15);
        }
    }
}
