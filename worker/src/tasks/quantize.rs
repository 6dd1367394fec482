//! Quantisers of passages' vectors, and passages through them.

use super::baseline::sample;
use super::bench::{Content, Produced, TaskError, VECTORS, Workbench};
use crate::fit::{Code, Quantizer, ResidualQuantizer, opq, train_opq};
use crate::vectors::{Values, read_vectors, write_tensors, write_vectors};
use retort_common::spec::CodeKind;
use retort_common::task::Task;
use serde_json::json;

const QUANTIZER: &str = "quantizer.safetensors";
const CODES: &str = "codes.safetensors";

/// A quantiser fitted to vectors, to a sample where there are many.
pub fn fit(bench: &Workbench<'_>, task: &Task) -> Result<Produced, TaskError> {
    let Task::FitQuantizer { vectors: shards, code, bytes, seed, .. } = task else {
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
    };
    let path = bench.scratch(QUANTIZER);
    quantizer.write(&path)?;
    let meta = json!({ "bytes": quantizer.bytes(), "dim": vectors.dim(), "rows": vectors.rows() });
    Ok(Produced { parts: vec![(QUANTIZER.to_owned(), Content::File(path))], meta })
}

/// One shard of passages to codes, and to the vectors that the codes stand for, in the space of those they were made
/// of: questions need no map of their own, and a dense search ranks as a scan of the codes does.
pub fn quantize(bench: &Workbench<'_>, task: &Task) -> Result<Produced, TaskError> {
    let Task::Quantize { quantizer, vectors, normalize, .. } = task else {
        unreachable!("called with its own task")
    };
    let first_row = bench.manifest(vectors)?.meta["first_row"].as_u64().unwrap_or(0);
    let quantizer = Quantizer::read(&bench.part(quantizer, QUANTIZER)?)?;
    let input = read_vectors(&bench.part(vectors, VECTORS)?)?;
    let codes = quantizer.encode(&input, bench.threads).map_err(TaskError::input)?;
    let mut decoded = quantizer.reconstruct(&codes).map_err(TaskError::input)?;
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
