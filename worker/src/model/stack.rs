//! The layers that a checkpoint puts behind its encoder: sentence-transformers' Dense and LayerNorm, DPR's projection,
//! ANCE's head, a cross-encoder's classifier. They are never trained here, so that plain loops do: one vector after
//! another, sums in a fixed order, the same bits everywhere.

use crate::matrix::Matrix;

/// What follows a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    Identity,
    /// Hyperbolic tangent.
    Tanh,
    /// The exact GELU.
    Gelu,
    /// The positive part.
    Relu,
    /// The logistic function.
    Sigmoid,
}

/// One layer.
#[derive(Clone, Debug, PartialEq)]
pub enum StackLayer {
    /// A linear layer with an activation.
    Linear {
        /// Shape [output, input], row after row, as files hold it.
        weight: Vec<f32>,
        /// One for each output, or empty.
        bias: Vec<f32>,
        /// Width of the input.
        input: usize,
        /// What follows.
        activation: Activation,
    },
    /// Layer normalisation.
    Norm {
        /// One for each dimension.
        scale: Vec<f32>,
        /// One for each dimension.
        shift: Vec<f32>,
        /// Added to the variance.
        epsilon: f64,
    },
    /// Scaling to unit length.
    Normalize,
}

/// Layers in order; none leave vectors as they are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stack {
    /// The layers.
    pub layers: Vec<StackLayer>,
}

impl Stack {
    /// Width of the result for vectors of width `input`.
    pub fn dim(&self, input: usize) -> usize {
        self.layers.iter().fold(input, |width, layer| match layer {
            StackLayer::Linear { weight, input, .. } => weight.len() / (*input).max(1),
            StackLayer::Norm { .. } | StackLayer::Normalize => width,
        })
    }

    /// The layers applied to every row of `vectors`, whose width the first layer takes.
    pub fn apply(&self, vectors: Matrix) -> Matrix {
        if self.layers.is_empty() {
            return vectors;
        }
        let mut result = Matrix::zeros(vectors.rows(), self.dim(vectors.dim()));
        for row in 0..vectors.rows() {
            let mut values = vectors.row(row).to_vec();
            for layer in &self.layers {
                values = layer.apply(&values);
            }
            result.row_mut(row).copy_from_slice(&values);
        }
        result
    }
}

impl StackLayer {
    fn apply(&self, values: &[f32]) -> Vec<f32> {
        match self {
            StackLayer::Linear { weight, bias, input, activation } => weight
                .chunks_exact(*input)
                .enumerate()
                .map(|(output, row)| {
                    let sum = dot(row, values) + f64::from(bias.get(output).copied().unwrap_or(0.0));
                    activation.apply(sum) as f32
                })
                .collect(),
            StackLayer::Normalize => {
                let mut vector = Matrix::new(1, values.len(), values.to_vec());
                vector.normalize_rows();
                vector.data().to_vec()
            }
            StackLayer::Norm { scale, shift, epsilon } => {
                let count = values.len() as f64;
                let mean = values.iter().map(|value| f64::from(*value)).sum::<f64>() / count;
                let square = |value: &f32| (f64::from(*value) - mean).powi(2);
                let deviation = (values.iter().map(square).sum::<f64>() / count + epsilon).sqrt();
                let normed = |(value, (scale, shift)): (&f32, (&f32, &f32))| {
                    ((f64::from(*value) - mean) / deviation * f64::from(*scale) + f64::from(*shift)) as f32
                };
                values.iter().zip(scale.iter().zip(shift)).map(normed).collect()
            }
        }
    }
}

/// In eight partial sums, which the compiler keeps in vector registers.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut sums = [0.0f64; 8];
    let (a_blocks, a_rest) = a.as_chunks::<8>();
    let (b_blocks, b_rest) = b.as_chunks::<8>();
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += f64::from(*a) * f64::from(*b);
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    sums.iter().sum::<f64>() + rest
}

impl Activation {
    fn apply(self, value: f64) -> f64 {
        match self {
            Self::Identity => value,
            Self::Tanh => value.tanh(),
            Self::Gelu => value * 0.5 * (1.0 + erf(value / std::f64::consts::SQRT_2)),
            Self::Relu => value.max(0.0),
            Self::Sigmoid => 1.0 / (1.0 + (-value).exp()),
        }
    }

    /// Its name in sentence-transformers' files.
    pub fn torch_name(self) -> &'static str {
        match self {
            Self::Identity => "torch.nn.modules.linear.Identity",
            Self::Tanh => "torch.nn.modules.activation.Tanh",
            Self::Gelu => "torch.nn.modules.activation.GELU",
            Self::Relu => "torch.nn.modules.activation.ReLU",
            Self::Sigmoid => "torch.nn.modules.activation.Sigmoid",
        }
    }
}

/// The error function to 1e-8, the precision of the 32-bit floats that it ends in. Beyond 4.2 it is one to that
/// precision, and the series' terms would cancel too much.
fn erf(value: f64) -> f64 {
    if value.abs() > 4.2 {
        return value.signum();
    }
    let (square, mut term, mut sum) = (value * value, value, value);
    for order in 1..200 {
        let order = f64::from(order);
        term *= -square / order;
        let share = term / (2.0 * order + 1.0);
        sum += share;
        if share.abs() < 1e-17 {
            break;
        }
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_compute_what_their_names_say() {
        let linear = |activation| StackLayer::Linear {
            weight: vec![1.0, 2.0, -1.0, 0.5, 0.0, 0.0],
            bias: vec![0.5, -1.0, 2.0],
            input: 2,
            activation,
        };
        let check = |layers: Vec<StackLayer>, expected: &[f32]| {
            let stack = Stack { layers };
            let found = stack.apply(Matrix::new(1, 2, vec![2.0, 4.0]));
            assert_eq!(stack.dim(2), expected.len());
            let near = found.data().iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6);
            assert!(near, "{:?} instead of {expected:?}", found.data());
        };
        check(vec![], &[2.0, 4.0]);
        check(vec![linear(Activation::Identity)], &[10.5, -1.0, 2.0]);
        check(vec![linear(Activation::Relu)], &[10.5, 0.0, 2.0]);
        check(vec![linear(Activation::Tanh)], &[1.0, -0.761_594_2, 0.964_027_6]);
        check(vec![linear(Activation::Gelu)], &[10.5, -0.158_655_3, 1.954_499_7]);
        check(vec![linear(Activation::Sigmoid)], &[0.999_972_5, 0.268_941_4, 0.880_797_1]);
        check(vec![StackLayer::Normalize], &[0.447_213_6, 0.894_427_2]);
        let norm = StackLayer::Norm { scale: vec![2.0, 1.0], shift: vec![0.0, 5.0], epsilon: 0.0 };
        check(vec![norm], &[-2.0, 6.0]);
    }

    #[test]
    fn long_dot_products_add_up() {
        let a: Vec<f32> = (0..19).map(|value| value as f32).collect();
        assert_eq!(dot(&a, &a), (0..19).map(|value| f64::from(value * value)).sum::<f64>());
    }
}
