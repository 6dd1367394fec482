//! A student before the first step of a phase.

use super::super::bench::{TaskError, Workbench};
use super::super::fit::load_pca;
use super::super::input::{local_copy, model_folder, tokenizer_file};
use super::super::order::StepRows;
use super::super::quantize::QUANTIZER;
use super::super::student::{Student, StudentShape, TOKENIZER};
use crate::fit::{Code, Quantizer};
use crate::matrix::Matrix;
use crate::model::{Batch, CodedShape, Head, Input, Tower, TowerConfig, load_encoder};
use crate::text::{TokenBatch, Tokenizer};
use crate::vectors::Tensors;
use retort_common::spec::CodeKind;
use retort_common::spec::inputs::InputFile;
use retort_common::task::{ProjectionStart, StudentStart};
use retort_kernels::matmul::{self, Sizes, Write};
use std::path::PathBuf;

/// A head that ends in codes, as it stands before training: the linear map of a head (its weight [dim, input] and bias),
/// the same for both sides, with the rotation of a quantiser that was fitted to the head's vectors.
fn coded(
    (weight, bias): &(Matrix, Vec<f32>),
    quantizer: &Quantizer,
    unit: bool,
) -> Result<(TowerConfig, Vec<f32>), TaskError> {
    let (dim, input) = (weight.rows(), weight.dim());
    if quantizer.input() != dim {
        let found = quantizer.input();
        return Err(TaskError::Input(format!("a quantiser of {found} dimensions for a head of {dim}")));
    }
    let (code, codebooks) = match &quantizer.code {
        Code::Product(pq) => (CodeKind::Product, pq.codebooks()),
        Code::Residual(residual) => (CodeKind::Residual, residual.codebooks()),
        Code::Int8(_) | Code::Binary(_) => {
            return Err(TaskError::Input("codes without codebooks cannot be trained".to_owned()));
        }
    };
    let mut maps = (weight.clone(), bias.clone());
    if let Some(map) = &quantizer.map {
        // A rotation keeps lengths, so that it may as well come before they are scaled.
        if map.normalizes() || map.output() != dim || map.offset().iter().any(|offset| *offset != 0.0) {
            return Err(TaskError::Input("the quantiser's map is no rotation".to_owned()));
        }
        let mut rotated = Matrix::zeros(dim, input);
        let sizes = Sizes { m: dim, n: input, k: dim };
        matmul::nn(sizes, map.weight(), weight.data(), rotated.data_mut(), Write::Overwrite);
        let mut bias = vec![0.0; dim];
        matmul::nn(Sizes { n: 1, ..sizes }, map.weight(), &maps.1, &mut bias, Write::Overwrite);
        maps = (rotated, bias);
    }
    let shape = CodedShape { dim, code, bytes: quantizer.bytes(), unit };
    let tower = TowerConfig { input: Input::Vectors { dim: input }, head: Head::Coded(shape) };
    tower.validate().map_err(TaskError::input)?;
    let layout = tower.layout();
    let mut params = vec![0.0; layout.len()];
    let mut put = |path: &str, values: &mut dyn Iterator<Item = f32>| {
        let range = layout.get(path).expect("the layout is that of a coded head").range();
        params[range].iter_mut().zip(values).for_each(|(target, value)| *target = value);
    };
    put("head.codebooks", &mut codebooks.iter().copied());
    for side in ["passage", "query"] {
        // The flat vector holds the weight as [input, dim].
        let flat = (0..dim * input).map(|at| maps.0.row(at % dim)[at / dim]);
        put(&format!("head.{side}.weight"), &mut { flat });
        put(&format!("head.{side}.bias"), &mut maps.1.iter().copied());
    }
    Ok((tower, params))
}

fn identity(dim: usize) -> Matrix {
    let mut matrix = Matrix::zeros(dim, dim);
    (0..dim).for_each(|at| matrix.row_mut(at)[at] = 1.0);
    matrix
}

/// The student before the first step.
pub(super) fn begin(
    bench: &Workbench<'_>,
    start: &StudentStart,
    normalize: bool,
    seed: u64,
) -> Result<(StudentShape, Vec<f32>, Option<PathBuf>), TaskError> {
    match start {
        StudentStart::Student { student } | StudentStart::Continue { student } => {
            let Student { shape, params, .. } = Student::load(bench, student)?;
            let reads_text = matches!(shape.tower.input, Input::Tokens { .. });
            let tokenizer = if reads_text { Some(bench.part(student, TOKENIZER)?) } else { None };
            Ok((shape, params, tokenizer))
        }
        StudentStart::Warm { shape, checkpoint } => {
            let (shape, mut params, tokenizer) = begin(bench, shape, normalize, seed)?;
            warm(bench, checkpoint, &mut params)?;
            Ok((shape, params, tokenizer))
        }
        StudentStart::Head { input, dim, hidden, init } => {
            let dim = *dim as usize;
            let head = match hidden {
                Some(hidden) => Head::Mlp { hidden: *hidden as usize, dim },
                None => Head::Linear { dim, bias: true },
            };
            let tower = TowerConfig { input: Input::Vectors { dim: *input as usize }, head };
            tower.validate().map_err(TaskError::input)?;
            let mut params = tower.initial_params(seed);
            start_projection(bench, &tower, &mut params, init, normalize)?;
            Ok((StudentShape { tower }, params, None))
        }
        StudentStart::Quantised { input, head, quantizer } => {
            let quantizer = Quantizer::read(&bench.part(quantizer, QUANTIZER)?)?;
            let head = match head {
                Some(head) => linear_head(&Student::load(bench, head)?)
                    .ok_or_else(|| TaskError::Input(format!("{head} has no linear head to train on")))?,
                None => (identity(*input as usize), vec![0.0; *input as usize]),
            };
            let (tower, params) = coded(&head, &quantizer, normalize)?;
            Ok((StudentShape { tower }, params, None))
        }
        StudentStart::Encoder { files, layers, pooling, dim, init } => {
            let folder = model_folder(bench, files)?;
            let layers: Option<Vec<usize>> =
                layers.as_ref().map(|layers| layers.iter().map(|layer| *layer as usize).collect());
            let (encoder, encoder_params) =
                load_encoder(&folder, layers.as_deref()).map_err(TaskError::input)?;
            // The rows hold its token ids already; here both sides are known.
            let tokenizer = tokenizer_file(bench, &folder)?;
            Tokenizer::load(&tokenizer, encoder.vocabulary_size).map_err(TaskError::input)?;
            let head = dim.map_or(Head::None, |dim| Head::Linear { dim: dim as usize, bias: true });
            let tower = TowerConfig { input: Input::Tokens { encoder, pooling: *pooling }, head };
            // The head's parameters follow the encoder's in the canonical order.
            let mut params = tower.initial_params(seed);
            params[..encoder_params.len()].copy_from_slice(&encoder_params);
            if dim.is_some() {
                start_projection(bench, &tower, &mut params, init, normalize)?;
            }
            Ok((StudentShape { tower }, params, Some(tokenizer)))
        }
    }
}

/// Puts a checkpoint's weights in place. Behind the tower's it may hold parameters of the loss that it was trained by,
/// which end with its training.
fn warm(bench: &Workbench<'_>, checkpoint: &InputFile, params: &mut [f32]) -> Result<(), TaskError> {
    let path = local_copy(bench, checkpoint)?;
    let tensors = Tensors::read(&path)?;
    let (_, values) = tensors.f32("params")?;
    let (found, needed) = (values.len(), params.len());
    if found < needed {
        let text = "start from a checkpoint of a student of the same shape";
        let url = &checkpoint.url;
        return Err(TaskError::Input(format!("{url}: {found} parameters where {needed} are needed; {text}")));
    }
    if let Some(at) = values.iter().position(|value| !value.is_finite()) {
        return Err(TaskError::Input(format!("{}: parameter {at} is not finite", checkpoint.url)));
    }
    params.copy_from_slice(&values[..needed]);
    Ok(())
}

/// Puts the projection's first weights in place. Where scores are cosines, PCA's centring goes into the bias, so
/// that a head starts exactly as its rival, PCA with renormalisation; with dot products it would change the ranking.
fn start_projection(
    bench: &Workbench<'_>,
    tower: &TowerConfig,
    params: &mut [f32],
    init: &ProjectionStart,
    normalize: bool,
) -> Result<(), TaskError> {
    let (weight, bias) = match init {
        ProjectionStart::Random => return Ok(()),
        ProjectionStart::Pca { pca } => {
            let pca = load_pca(bench, pca)?;
            let dim = tower.dim();
            if dim > pca.dim {
                return Err(TaskError::Input(format!(
                    "dim = {dim} is more than the teacher's {}: PCA cannot start it; use init = \"random\"",
                    pca.dim
                )));
            }
            let components = || pca.components.chunks_exact(pca.dim).take(dim);
            let centre = |row: &[f64]| -row.iter().zip(&pca.mean).map(|(a, b)| a * b).sum::<f64>() as f32;
            let bias = components().map(|row| if normalize { centre(row) } else { 0.0 }).collect();
            let weight = components().flatten().map(|value| *value as f32).collect();
            (Matrix::new(dim, pca.dim, weight), bias)
        }
        ProjectionStart::Head { student } => linear_head(&Student::load(bench, student)?)
            .ok_or_else(|| TaskError::Input(format!("{student} has no linear head")))?,
    };
    tower.set_head(params, &weight, &bias).map_err(TaskError::input)
}

/// The weight [dim, input] and the bias of a linear head, or of the map that asks trained codes.
fn linear_head(student: &Student) -> Option<(Matrix, Vec<f32>)> {
    let map = if matches!(student.shape.tower.head, Head::Coded(_)) { "head.query" } else { "head" };
    let values =
        |name| student.layout.get(&format!("{map}.{name}")).map(|entry| &student.params[entry.range()]);
    let (dim, input) = (student.shape.tower.dim(), student.shape.tower.head_input());
    // The flat vector holds the weight as [input, dim].
    let flat = values("weight")?;
    let weight = (0..dim * input).map(|i| flat[(i % input) * dim + i / input]).collect();
    Some((Matrix::new(dim, input, weight), values("bias")?.to_vec()))
}

/// An encoder's pooled vectors are not of unit length like those that its projection was made for. Dividing the
/// weight by their mean length over the first step's texts makes up for it; the bias keeps its share.
pub(super) fn scale_projection(
    bench: &Workbench<'_>,
    tower: &TowerConfig,
    params: &mut [f32],
    rows: &StepRows,
) -> Result<(), TaskError> {
    let pooled = TowerConfig { input: tower.input.clone(), head: Head::None };
    let encoder = Tower::new(pooled.clone(), &params[..pooled.layout().len()], &bench.device);
    let encoder = encoder.map_err(TaskError::input)?;
    let mut lengths = Vec::with_capacity(rows.tokens.len());
    // Candidates of an encoder of questions have no tokens.
    for ids in rows.tokens.iter().filter(|ids| !ids.is_empty()) {
        let batch = Batch::Tokens(TokenBatch::new(&[ids], pad_token_id(tower)));
        let vector = encoder.encode_training(&batch).map_err(TaskError::input)?;
        lengths.push(vector.data().iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt());
    }
    let mean = lengths.iter().sum::<f64>() / lengths.len().max(1) as f64;
    if mean > 0.0
        && let Some(entry) = tower.layout().get("head.weight")
    {
        params[entry.range()].iter_mut().for_each(|value| *value = (f64::from(*value) / mean) as f32);
    }
    Ok(())
}

pub(super) fn pad_token_id(tower: &TowerConfig) -> u32 {
    match &tower.input {
        Input::Tokens { encoder, .. } => encoder.pad_token_id,
        Input::Vectors { .. } => 0,
    }
}
