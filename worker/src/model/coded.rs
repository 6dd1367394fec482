//! A head that ends in codes of a few bytes: a linear map for each side, and codebooks, or signs, that stand for mapped
//! passages.
//!
//! The vector that a passage's code stands for goes into the loss. Which centroids a code names has no derivative, so
//! the gradient passes *straight through* to the mapped vector as if no code stood between (van den Oord et al. 2017,
//! arXiv 1711.00937), and to the centroids that were named. Maps and codebooks so learn together from the loss, as in
//! JPQ (Zhan et al. 2021, arXiv 2108.00644) and RepCONC (Zhan et al. 2022, arXiv 2110.05789). A *pull* draws mapped
//! vectors and what their codes stand for towards each other, so that they stay near enough for that to be true.
//!
//! Signs have no codebooks; a bit is learnt through the map alone. Their way back has the slope of a tanh instead of 1, as
//! in BPR (Yamada et al. 2021, arXiv 2106.00882): a component near 0, whose bit a step may flip, passes the gradient on
//! whole, and one far from 0 passes nearly none. With a slope of 1 everywhere gradients of bits that are long settled would
//! go on moving the map, and the straight-through descent need not come to rest (Yin et al. 2019, arXiv 1903.05662). BPR
//! sharpens its tanh as it trains, since its forward pass has the tanh as well; here it is the sign from the first step,
//! as in search, so that nothing has to sharpen.
//!
//! Questions keep their floats. A rotation in front of a code is part of the passages' map.

use std::sync::Arc;

use retort_common::spec::CodeKind;

use super::flat::{ParamKind, ParamLayout, ParamSpec};
use super::shape::TowerError;
use crate::fit::kmeans::CENTROIDS;
use crate::fit::{BinaryQuantizer, Code, Codes, ProductQuantizer, Quantizer, ResidualQuantizer};
use crate::matrix::Matrix;
use retort_kernels::matmul::{self, Sizes, Write};
use serde::{Deserialize, Serialize};

/// Most bytes of a code.
const MAX_BYTES: usize = 1024;
/// Most values in all codebooks: 1 GiB.
const MAX_CODEBOOKS: usize = 1 << 28;

/// The shape of a head that ends in codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CodedShape {
    /// Width of mapped vectors.
    pub dim: usize,
    /// How a code stands for a vector.
    pub code: CodeKind,
    /// Bytes of a code.
    pub bytes: usize,
    /// Whether mapped passages are scaled to unit length before they get a code.
    pub unit: bool,
}

impl CodedShape {
    /// Width of a centroid; 0 where there are none.
    pub fn part(&self) -> usize {
        match self.code {
            CodeKind::Product => self.dim / self.bytes.max(1),
            CodeKind::Residual => self.dim,
            CodeKind::Binary => 0,
        }
    }

    /// The signs of mapped passages: of unit length, as those are, or of components that are worth 1.
    fn signs(&self) -> BinaryQuantizer {
        BinaryQuantizer::signs(self.dim, (!self.unit).then_some(1.0))
    }

    pub(super) fn validate(&self) -> Result<(), TowerError> {
        let Self { dim, bytes, .. } = *self;
        let divides = match self.code {
            CodeKind::Product => bytes > 0 && dim.is_multiple_of(bytes),
            CodeKind::Residual => true,
            CodeKind::Binary => bytes.checked_mul(8) == Some(dim),
        };
        let fits = (1..=MAX_BYTES).contains(&bytes)
            && bytes.checked_mul(CENTROIDS * self.part()).is_some_and(|values| values <= MAX_CODEBOOKS);
        if divides && fits { Ok(()) } else { Err(TowerError::Codes { dim, bytes }) }
    }

    pub(super) fn specs(&self, input: usize) -> Vec<ParamSpec> {
        let mut specs = Vec::new();
        if self.code != CodeKind::Binary {
            let shape = [self.bytes * CENTROIDS, self.part()];
            specs.push(ParamSpec::new("head.codebooks", &shape, ParamKind::Codebook));
        }
        for side in ["passage", "query"] {
            specs.push(ParamSpec::new(format!("head.{side}.weight"), &[input, self.dim], ParamKind::Linear));
            specs.push(ParamSpec::new(format!("head.{side}.bias"), &[self.dim], ParamKind::Bias));
        }
        specs
    }
}

/// A linear map x ↦ x W + b.
#[derive(Clone, Debug)]
struct Linear {
    /// [input, output].
    weight: Vec<f32>,
    /// [output].
    bias: Vec<f32>,
}

impl Linear {
    fn apply(&self, vectors: &Matrix) -> Matrix {
        let output = self.bias.len();
        let mut images = Matrix::new(vectors.rows(), output, self.bias.repeat(vectors.rows()));
        let sizes = Sizes { m: vectors.rows(), n: output, k: vectors.dim() };
        matmul::nn(sizes, vectors.data(), &self.weight, images.data_mut(), Write::Add);
        images
    }

    /// Adds the gradient by weight and bias, given that by the images.
    fn gradient(vectors: &Matrix, images: &Matrix, weight: &mut [f32], bias: &mut [f32]) {
        let sizes = Sizes { m: vectors.dim(), n: images.dim(), k: vectors.rows() };
        matmul::tn(sizes, vectors.data(), images.data(), weight, Write::Add);
        for row in images.data().chunks_exact(images.dim()) {
            bias.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
    }
}

/// Vectors of both sides, for a head that treats them differently.
#[derive(Clone, Debug, PartialEq)]
pub struct TwoSided {
    /// [rows, input].
    pub vectors: Matrix,
    /// [rows] whether a row stands for a passage.
    pub passages: Vec<bool>,
    /// How strongly a mapped passage and what its code stands for are drawn together: the factor of their squared
    /// distance, summed over the rows, in what is minimised.
    pub pull: f32,
}

/// A head that ends in codes, with its parameters.
#[derive(Clone, Debug)]
pub struct CodedHead {
    shape: CodedShape,
    passage: Linear,
    query: Linear,
    quantizer: Quantizer,
}

/// What [`CodedHead::forward`] leaves for the way back.
#[derive(Debug)]
pub(super) struct CodedGraph {
    head: Arc<CodedHead>,
    batch: TwoSided,
    /// Mapped passages [passages, dim], as they got their codes.
    mapped: Matrix,
    /// [passages] lengths before scaling, where the shape asks for unit length.
    lengths: Vec<f64>,
    codes: Codes,
}

impl CodedHead {
    /// The head of these parameters, laid out as [`super::TowerConfig::layout`] says.
    pub(super) fn new(shape: CodedShape, layout: &ParamLayout, params: &[f32]) -> Result<Self, TowerError> {
        let values = |path: &str| {
            let entry = layout.get(path).expect("the layout is that of a coded head");
            params[entry.range()].to_vec()
        };
        let linear = |side: &str| Linear {
            weight: values(&format!("head.{side}.weight")),
            bias: values(&format!("head.{side}.bias")),
        };
        let codebooks = || values("head.codebooks");
        let code = match shape.code {
            CodeKind::Product => {
                ProductQuantizer::new(shape.dim, shape.bytes, codebooks()).map(Code::Product)
            }
            CodeKind::Residual => ResidualQuantizer::new(shape.dim, codebooks()).map(Code::Residual),
            CodeKind::Binary => Ok(Code::Binary(shape.signs())),
        };
        let quantizer = Quantizer { map: None, code: code.map_err(TowerError::Codebooks)? };
        Ok(Self { shape, passage: linear("passage"), query: linear("query"), quantizer })
    }

    /// Questions' vectors [rows, input] through their map [rows, dim].
    pub fn questions(&self, vectors: &Matrix) -> Matrix {
        self.query.apply(vectors)
    }

    /// Passages' vectors [rows, input] to codes.
    ///
    /// # Errors
    /// When a mapped vector is not finite.
    pub fn encode(&self, vectors: &Matrix, threads: usize) -> Result<Codes, TowerError> {
        let (mapped, _) = self.mapped(vectors);
        self.quantizer.encode(&mapped, threads).map_err(TowerError::Codebooks)
    }

    /// The vectors [rows, dim] that codes stand for.
    ///
    /// # Errors
    /// When the codes are of another size.
    pub fn decode(&self, codes: &Codes) -> Result<Matrix, TowerError> {
        self.quantizer.decode(codes).map_err(TowerError::Codebooks)
    }

    /// The codes' quantiser, without a map: it reads mapped passages.
    pub fn quantizer(&self) -> &Quantizer {
        &self.quantizer
    }

    /// Mapped passages, scaled where the shape says so, and their lengths before.
    fn mapped(&self, vectors: &Matrix) -> (Matrix, Vec<f64>) {
        let mut mapped = self.passage.apply(vectors);
        if !self.shape.unit {
            return (mapped, Vec::new());
        }
        let length = |row: &[f32]| row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let lengths = mapped.data().chunks_exact(mapped.dim()).map(length).collect();
        mapped.normalize_rows();
        (mapped, lengths)
    }

    /// Questions as their map gives them, passages as the vectors that their codes stand for [rows, dim].
    pub(super) fn forward(self: &Arc<Self>, batch: &TwoSided) -> Result<(Matrix, CodedGraph), TowerError> {
        let (questions, passages) = sides(batch);
        let (mapped, lengths) = self.mapped(&pick(&batch.vectors, &passages));
        // One thread: how many there are is the worker's business and changes no code.
        let codes = self.quantizer.encode(&mapped, 1).map_err(TowerError::Codebooks)?;
        let mut output = Matrix::zeros(batch.vectors.rows(), self.shape.dim);
        for (at, row) in passages.iter().enumerate() {
            self.quantizer.decode_row(codes.row(at), output.row_mut(*row));
        }
        let images = self.questions(&pick(&batch.vectors, &questions));
        for (at, row) in questions.iter().enumerate() {
            output.row_mut(*row).copy_from_slice(images.row(at));
        }
        let graph = CodedGraph { head: Arc::clone(self), batch: batch.clone(), mapped, lengths, codes };
        Ok((output, graph))
    }
}

impl CodedGraph {
    /// Adds the flat gradient to `flat`, given that by the output [rows, dim].
    pub(super) fn backward_into(self, d_output: &Matrix, layout: &ParamLayout, flat: &mut [f32]) {
        let (questions, passages) = sides(&self.batch);
        let d_passages = self.through_codes(&pick(d_output, &passages), flat, layout);
        let mut side = |name: &str, rows: &[usize], d_images: &Matrix| {
            let range = |part: &str| {
                let path = format!("head.{name}.{part}");
                layout.get(&path).expect("the layout is that of a coded head").range()
            };
            // The bias stands right before the weight, as their names are sorted.
            let (bias, weight) =
                flat[range("bias").start..range("weight").end].split_at_mut(range("bias").len());
            Linear::gradient(&pick(&self.batch.vectors, rows), d_images, weight, bias);
        };
        side("passage", &passages, &d_passages);
        side("query", &questions, &pick(d_output, &questions));
    }

    /// Adds the codebooks' gradient to `flat`, and gives that by the passages' images before they were scaled.
    fn through_codes(&self, d_decoded: &Matrix, flat: &mut [f32], layout: &ParamLayout) -> Matrix {
        let shape = self.head.shape;
        let (part, pull) = (shape.part(), 2.0 * self.batch.pull);
        let codebooks = match layout.get("head.codebooks") {
            Some(entry) => &mut flat[entry.range()],
            None => &mut [],
        };
        let mut gradient = d_decoded.clone();
        let (mut decoded, mut d_code) = (vec![0.0; shape.dim], vec![0.0; shape.dim]);
        for row in 0..gradient.rows() {
            let (code, mapped) = (self.codes.row(row), self.mapped.row(row));
            self.head.quantizer.decode_row(code, &mut decoded);
            let d_mapped = gradient.row_mut(row);
            let gradients = d_mapped.iter_mut().zip(&mut d_code);
            for ((d_mapped, d_code), (mapped, decoded)) in gradients.zip(mapped.iter().zip(&decoded)) {
                let apart = pull * (mapped - decoded);
                *d_code = *d_mapped - apart;
                if shape.code == CodeKind::Binary {
                    // Of worth · tanh(x / worth), which a sign stands for: `decoded` is worth with the sign of x.
                    *d_mapped *= tanh_slope(mapped / decoded);
                }
                *d_mapped += apart;
            }
            for (number, code) in code.iter().enumerate() {
                let centroid = (number * CENTROIDS + usize::from(*code)) * part;
                let share = match shape.code {
                    CodeKind::Product => &d_code[number * part..][..part],
                    CodeKind::Residual => &d_code[..],
                    // A sign names no centroid.
                    CodeKind::Binary => break,
                };
                codebooks[centroid..][..part].iter_mut().zip(share).for_each(|(sum, x)| *sum += x);
            }
            if let Some(length) = self.lengths.get(row) {
                before_scaling(d_mapped, mapped, *length);
            }
        }
        gradient
    }
}

/// The derivative of tanh.
fn tanh_slope(x: f32) -> f32 {
    let tanh = f64::from(x).tanh();
    (1.0 - tanh * tanh) as f32
}

/// Turns the gradient by a unit vector into that by the vector it was before: (d − u (u · d)) / length, and zero for a
/// vector of zeros.
fn before_scaling(gradient: &mut [f32], unit: &[f32], length: f64) {
    if length == 0.0 {
        gradient.fill(0.0);
        return;
    }
    let along: f64 = gradient.iter().zip(unit).map(|(d, u)| f64::from(*d) * f64::from(*u)).sum();
    for (d, u) in gradient.iter_mut().zip(unit) {
        *d = ((f64::from(*d) - f64::from(*u) * along) / length) as f32;
    }
}

/// Numbers of the rows of questions and of passages.
fn sides(batch: &TwoSided) -> (Vec<usize>, Vec<usize>) {
    (0..batch.passages.len()).partition(|row| !batch.passages[*row])
}

fn pick(matrix: &Matrix, rows: &[usize]) -> Matrix {
    let values = rows.iter().flat_map(|row| matrix.row(*row).iter().copied()).collect();
    Matrix::new(rows.len(), matrix.dim(), values)
}

#[cfg(test)]
mod tests {
    use super::super::{Batch, Device, Head, Input, Tower, TowerConfig};
    use super::*;

    const INPUT: usize = 5;

    fn config(code: CodeKind, unit: bool) -> TowerConfig {
        let (dim, bytes) = if code == CodeKind::Binary { (8, 1) } else { (4, 2) };
        let head = Head::Coded(CodedShape { dim, code, bytes, unit });
        TowerConfig { input: Input::Vectors { dim: INPUT }, head }
    }

    fn value(seed: u64, at: usize) -> f32 {
        crate::mining::counter::unit(crate::mining::counter::hash(seed, &[at as u64])) as f32 - 0.5
    }

    fn tower(code: CodeKind, unit: bool) -> Tower {
        let config = config(code, unit);
        let params: Vec<f32> = (0..config.layout().len()).map(|at| value(1, at)).collect();
        Tower::new(config, &params, &Device::flex()).unwrap()
    }

    fn batch(rows: usize, pull: f32) -> TwoSided {
        let vectors = Matrix::new(rows, INPUT, (0..rows * INPUT).map(|at| value(2, at)).collect());
        TwoSided { vectors, passages: (0..rows).map(|row| row % 3 > 0).collect(), pull }
    }

    /// A head in f64.
    struct Exact<'a> {
        shape: CodedShape,
        layout: &'a ParamLayout,
        params: Vec<f64>,
    }

    impl Exact<'_> {
        fn values(&self, path: &str) -> &[f64] {
            &self.params[self.layout.get(path).unwrap().range()]
        }

        fn image(&self, side: &str, vector: &[f32]) -> Vec<f64> {
            let mut image = self.values(&format!("head.{side}.bias")).to_vec();
            let weight = self.values(&format!("head.{side}.weight")).chunks_exact(image.len());
            for (x, row) in vector.iter().zip(weight) {
                image.iter_mut().zip(row).for_each(|(sum, weight)| *sum += f64::from(*x) * weight);
            }
            image
        }

        fn mapped(&self, vector: &[f32]) -> Vec<f64> {
            let image = self.image("passage", vector);
            let length = if self.shape.unit { dot(&image, &image).sqrt() } else { 1.0 };
            image.iter().map(|x| x / length).collect()
        }

        /// What a sign is worth.
        fn worth(&self) -> f64 {
            if self.shape.unit { (self.shape.dim as f64).sqrt().recip() } else { 1.0 }
        }

        fn decoded(&self, code: &[u8]) -> Vec<f64> {
            let part = self.shape.part();
            let centroid = |(number, code): (usize, &u8)| {
                &self.values("head.codebooks")[(number * CENTROIDS + usize::from(*code)) * part..][..part]
            };
            let centroids = code.iter().enumerate().map(centroid);
            match self.shape.code {
                CodeKind::Product => centroids.flatten().copied().collect(),
                CodeKind::Residual => {
                    let none = vec![0.0; part];
                    centroids
                        .fold(none, |sum, centroid| sum.iter().zip(centroid).map(|(a, b)| a + b).collect())
                }
                CodeKind::Binary => {
                    let set = |at: usize| code[at / 8] >> (at % 8) & 1 == 1;
                    (0..self.shape.dim).map(|at| if set(at) { self.worth() } else { -self.worth() }).collect()
                }
            }
        }

        /// What stands for a mapped passage where its code has no derivative.
        fn surrogate(&self, mapped: &[f64]) -> Vec<f64> {
            match self.shape.code {
                CodeKind::Product | CodeKind::Residual => mapped.to_vec(),
                CodeKind::Binary => mapped.iter().map(|x| self.worth() * (x / self.worth()).tanh()).collect(),
            }
        }

        /// What straight-through pretends: codes stay as they are, and a passage's vector is what its code stands for,
        /// moved as its surrogate moves from that of the `origin`.
        fn pretended(&self, origin: &Exact<'_>, batch: &TwoSided, codes: &Codes, weights: &Matrix) -> f64 {
            let (questions, passages) = sides(batch);
            let weights = |row: usize| weights.row(row).iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
            let asked = |row: &usize| dot(&self.image("query", batch.vectors.row(*row)), &weights(*row));
            let mut sum: f64 = questions.iter().map(asked).sum();
            for (at, row) in passages.iter().enumerate() {
                let vector = batch.vectors.row(*row);
                let (decoded, mapped) = (self.decoded(codes.row(at)), self.mapped(vector));
                let (now, before) = (self.surrogate(&mapped), origin.surrogate(&origin.mapped(vector)));
                let weights = weights(*row);
                sum += dot(&decoded, &weights) + dot(&now, &weights) - dot(&before, &weights);
                let apart = mapped.iter().zip(&decoded).map(|(y, x)| (y - x).powi(2)).sum::<f64>();
                sum += f64::from(batch.pull) * apart;
            }
            sum
        }
    }

    fn dot(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    #[test]
    fn gradients_are_those_of_what_straight_through_pretends() {
        for (code, unit) in [
            (CodeKind::Product, true),
            (CodeKind::Product, false),
            (CodeKind::Residual, true),
            (CodeKind::Binary, true),
            (CodeKind::Binary, false),
        ] {
            let tower = tower(code, unit);
            let Head::Coded(shape) = tower.config().head else { unreachable!() };
            let (layout, params) = (tower.layout().clone(), tower.params());
            let batch = batch(40, 0.7);
            let head = Arc::new(CodedHead::new(shape, &layout, &params).unwrap());
            let weights = Matrix::new(40, shape.dim, (0..40 * shape.dim).map(|at| value(3, at)).collect());
            let gradient = tower.forward(&Batch::TwoSided(batch.clone())).unwrap().backward(&weights);
            let (_, graph) = head.forward(&batch).unwrap();
            let exact = |params| Exact { shape, layout: &layout, params };
            let origin = exact(params.iter().map(|x| f64::from(*x)).collect());
            for (at, found) in gradient.iter().enumerate() {
                let loss = |step: f64| {
                    let mut params = origin.params.clone();
                    params[at] += step;
                    exact(params).pretended(&origin, &batch, &graph.codes, &weights)
                };
                let (numeric, found) = ((loss(1e-4) - loss(-1e-4)) / 2e-4, f64::from(*found));
                let close = (numeric - found).abs() < 1e-4 * found.abs().max(1.0);
                assert!(close, "{code:?} {unit} {at}: {found} but numerically {numeric}");
            }
        }
    }

    #[test]
    fn a_bit_near_its_turn_passes_the_gradient_on_and_a_settled_one_does_not() {
        assert_eq!(tanh_slope(0.0), 1.0);
        assert!(tanh_slope(1.0) < 0.5 && tanh_slope(-4.0) < 0.01 && tanh_slope(f32::MAX) == 0.0);
        // Nothing but the maps is learnt.
        let layout = config(CodeKind::Binary, true).layout();
        assert_eq!((layout.len(), layout.get("head.codebooks")), (2 * (INPUT * 8 + 8), None));
    }

    #[test]
    fn passages_are_what_their_codes_stand_for_in_every_pass() {
        for code in [CodeKind::Product, CodeKind::Residual, CodeKind::Binary] {
            let tower = tower(code, true);
            let batch = batch(30, 0.5);
            let (_, passages) = sides(&batch);
            let two_sided = Batch::TwoSided(batch.clone());
            let forward = tower.forward(&two_sided).unwrap().vectors;
            assert_eq!(forward, tower.encode_training(&two_sided).unwrap());
            let head = tower.coded().unwrap();
            let codes = head.encode(&pick(&batch.vectors, &passages), 3).unwrap();
            assert_eq!(pick(&forward, &passages), head.decode(&codes).unwrap());
            // Vectors that do not say which side they are of are questions.
            let questions = tower.encode(&Batch::Vectors(batch.vectors.clone())).unwrap();
            assert_eq!(questions, head.questions(&batch.vectors));
        }
    }

    #[test]
    fn shapes_and_values_that_make_no_codes_are_refused() {
        let check = |dim, code, bytes, holds: bool| {
            let shape = CodedShape { dim, code, bytes, unit: true };
            assert_eq!(shape.validate().is_ok(), holds, "{shape:?}");
        };
        check(4, CodeKind::Product, 2, true);
        check(4, CodeKind::Product, 3, false);
        check(4, CodeKind::Residual, 3, true);
        check(16, CodeKind::Binary, 2, true);
        check(16, CodeKind::Binary, 1, false);
        check(12, CodeKind::Binary, 1, false);
        check(0, CodeKind::Binary, 0, false);
        check(4, CodeKind::Residual, 0, false);
        check(4, CodeKind::Residual, 1025, false);
        check(60_000, CodeKind::Residual, 1000, false);
        let config = config(CodeKind::Product, true);
        let params = vec![f32::NAN; config.layout().len()];
        assert!(Tower::new(config, &params, &Device::flex()).is_err());
    }
}
