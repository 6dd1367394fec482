//! Quantisers of passages' vectors, and passages through them.

use super::baseline::sample;
use super::bench::{Content, Produced, TaskError, VECTORS, Workbench};
use super::student::Student;
use crate::fit::{Code, Codes, Quantizer, ResidualQuantizer, opq, train_itq, train_opq};
use crate::matrix::Matrix;
use crate::model::{CodedHead, Tower, TowerConfig};
use crate::vectors::{Values, read_vectors, write_tensors, write_vectors};
use retort_common::spec::CodeKind;
use retort_common::task::{ArtifactId, Task};
use serde_json::json;

/// The part that holds a quantiser.
pub const QUANTIZER: &str = "quantizer.safetensors";
const CODES: &str = "codes.safetensors";

/// A quantiser fitted to vectors, to a sample where there are many.
pub fn fit(bench: &Workbench<'_>, task: &Task) -> Result<Produced, TaskError> {
    let Task::FitQuantizer { vectors: shards, code, bytes, unit, seed, .. } = task else {
        unreachable!("called with its own task")
    };
    let vectors = sample(bench, shards, *seed)?;
    let bytes = *bytes as usize;
    bench.progress.progress(0, 1, "");
    let quantizer = match code {
        CodeKind::Product => {
            let (map, pq) =
                train_opq(&vectors, bytes, opq::ROUNDS, *seed, bench.threads).map_err(TaskError::input)?;
            Quantizer { map: Some(map), code: Code::Product(pq) }
        }
        CodeKind::Residual => {
            let residual =
                ResidualQuantizer::train(&vectors, bytes, *seed, bench.threads).map_err(TaskError::input)?;
            Quantizer { map: None, code: Code::Residual(residual) }
        }
        CodeKind::Binary => {
            let (map, signs) =
                train_itq(&vectors, bytes, *unit, *seed, bench.threads).map_err(TaskError::input)?;
            Quantizer { map: Some(map), code: Code::Binary(signs) }
        }
    };
    let path = bench.scratch(QUANTIZER);
    quantizer.write(&path)?;
    let meta = json!({ "bytes": quantizer.bytes(), "dim": vectors.dim(), "rows": vectors.rows() });
    Ok(Produced { parts: vec![(QUANTIZER.to_owned(), Content::File(path))], meta })
}

/// One shard of passages to codes, and to the vectors that the codes stand for: a dense search ranks as a scan of the
/// codes does. Those of a fitted quantiser lie in the space of the vectors it reads, those of a student that was trained
/// through its codes in its own, to which it has a map for questions.
pub fn quantize(bench: &Workbench<'_>, task: &Task) -> Result<Produced, TaskError> {
    let Task::Quantize { quantizer, vectors, normalize, .. } = task else {
        unreachable!("called with its own task")
    };
    let first_row = bench.manifest(vectors)?.meta["first_row"].as_u64().unwrap_or(0);
    let input = read_vectors(&bench.part(vectors, VECTORS)?)?;
    let (codes, mut decoded) = match quantizer.kind.as_str() {
        "student" => through_student(bench, quantizer, &input)?,
        _ => {
            let quantizer = Quantizer::read(&bench.part(quantizer, QUANTIZER)?)?;
            let codes = quantizer.encode(&input, bench.threads).map_err(TaskError::input)?;
            let decoded = quantizer.reconstruct(&codes).map_err(TaskError::input)?;
            (codes, decoded)
        }
    };
    if *normalize {
        decoded.normalize_rows();
    }
    let (path, code_path) = (bench.scratch(VECTORS), bench.scratch(CODES));
    write_vectors(&path, &decoded)?;
    write_tensors(&code_path, &[("codes", vec![codes.rows(), codes.bytes()], Values::U8(codes.data()))])?;
    let meta = json!({
        "rows": decoded.rows(), "dim": decoded.dim(), "first_row": first_row, "bytes": codes.bytes(),
    });
    let parts = vec![(VECTORS.to_owned(), Content::File(path)), (CODES.to_owned(), Content::File(code_path))];
    Ok(Produced { parts, meta })
}

/// The codes of a student that was trained through them.
fn through_student(
    bench: &Workbench<'_>,
    student: &ArtifactId,
    vectors: &Matrix,
) -> Result<(Codes, Matrix), TaskError> {
    let (tower, head) = coded(bench, student)?;
    if vectors.dim() != tower.head_input() {
        let (needed, found) = (tower.head_input(), vectors.dim());
        return Err(TaskError::Input(format!(
            "{student} reads {needed} dimensions, the vectors have {found}"
        )));
    }
    let codes = head.encode(vectors, bench.threads).map_err(TaskError::input)?;
    let decoded = head.decode(&codes).map_err(TaskError::input)?;
    Ok((codes, decoded))
}

/// The tower of a student that was trained through its codes, and its head.
pub fn coded(bench: &Workbench<'_>, student: &ArtifactId) -> Result<(TowerConfig, CodedHead), TaskError> {
    let Student { shape, params, .. } = Student::load(bench, student)?;
    let tower = Tower::new(shape.tower, &params, &bench.device).map_err(TaskError::input)?;
    let head = tower.coded().ok_or_else(|| TaskError::Input(format!("{student} ends in no codes")))?;
    Ok((tower.config().clone(), head.clone()))
}
