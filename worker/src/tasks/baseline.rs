//! Quantisers of baselines and the codes of passages.

use super::bench::{Content, Produced, TaskError, VECTORS, Workbench};
use super::fit::load_pca;
use super::quantize::coded;
use crate::fit::kmeans::{MOST_ROWS, ROUNDS, draw};
use crate::fit::{
    AffineMap, BinaryQuantizer, Code, Codes, Int8Quantizer, ProductQuantizer, Quantizer, ResidualQuantizer,
    opq, train_opq,
};
use crate::matrix::Matrix;
use crate::vectors::{read_codes, read_vectors, write_codes};
use retort_common::task::{ArtifactId, PcaReduction, QuantizerMethod, Task};
use retort_kernels::matmul::{self, Sizes, Write};
use serde_json::json;

/// The part that holds a quantiser, of a fit or of a student.
pub const QUANTIZER: &str = "quantizer.safetensors";
/// The part that holds codes.
pub const CODES: &str = "codes.safetensors";

/// Fits a quantiser to passages' vectors, to a sample where there are many.
pub fn fit(bench: &Workbench<'_>, task: &Task) -> Result<Produced, TaskError> {
    let Task::FitBaseline { vectors, reduce, method, seed, .. } = task else {
        unreachable!("called with its own task")
    };
    let sample = sample(bench, vectors, *seed)?;
    let reduce = reduce.as_ref().map(|reduction| reduction_map(bench, reduction)).transpose()?;
    let quantizer = quantizer(&sample, reduce, *method, *seed, bench.threads)?;
    let path = bench.scratch(QUANTIZER);
    quantizer.write(&path)?;
    let meta = json!({ "dim": quantizer.dim(), "bytes": quantizer.bytes(), "rows": sample.rows() });
    Ok(Produced { parts: vec![(QUANTIZER.to_owned(), Content::File(path))], meta })
}

/// The vectors of all shards, or a sample of [`MOST_ROWS`] where there are more: k-means looks at each of them many
/// times, hence in memory.
pub fn sample(bench: &Workbench<'_>, shards: &[ArtifactId], seed: u64) -> Result<Matrix, TaskError> {
    let all = bench.vector_rows(shards)?;
    let total = usize::try_from(all.rows()).map_err(TaskError::input)?;
    let mut rows: Vec<u64> = if total > MOST_ROWS {
        draw(total, MOST_ROWS, seed).into_iter().map(|row| row as u64).collect()
    } else {
        (0..total as u64).collect()
    };
    // In row order, so that files are read from front to back.
    rows.sort_unstable();
    let sample = all.gather(&rows)?;
    bench.go_on()?;
    Ok(sample)
}

/// A reduction by PCA as a map.
pub fn reduction_map(bench: &Workbench<'_>, reduction: &PcaReduction) -> Result<AffineMap, TaskError> {
    let PcaReduction { pca, dim, whiten, renormalize } = reduction;
    load_pca(bench, pca)?.map(*dim as usize, *whiten, *renormalize).map_err(TaskError::input)
}

fn quantizer(
    sample: &Matrix,
    reduce: Option<AffineMap>,
    method: QuantizerMethod,
    seed: u64,
    threads: usize,
) -> Result<Quantizer, TaskError> {
    let reduced;
    let vectors = match &reduce {
        Some(map) => {
            reduced = map.apply(sample, threads);
            &reduced
        }
        None => sample,
    };
    let (map, code) = match method {
        QuantizerMethod::Product { bytes, rotation: false } => {
            let trained = ProductQuantizer::train(vectors, bytes as usize, None, ROUNDS, seed, threads);
            (reduce, Code::Product(trained.map_err(TaskError::input)?))
        }
        QuantizerMethod::Product { bytes, rotation: true } => {
            let trained = train_opq(vectors, bytes as usize, opq::ROUNDS, seed, threads);
            let (rotation, pq) = trained.map_err(TaskError::input)?;
            (Some(after(reduce, rotation)?), Code::Product(pq))
        }
        QuantizerMethod::Residual { bytes } => {
            let trained = ResidualQuantizer::train(vectors, bytes as usize, seed, threads);
            (reduce, Code::Residual(trained.map_err(TaskError::input)?))
        }
        QuantizerMethod::Int8 => {
            (reduce, Code::Int8(Int8Quantizer::train(vectors).map_err(TaskError::input)?))
        }
        QuantizerMethod::Binary => {
            (reduce, Code::Binary(BinaryQuantizer::train(vectors).map_err(TaskError::input)?))
        }
    };
    Ok(Quantizer { map, code })
}

/// A rotation after another map, as one. Scaling to unit length may come last: a rotation keeps lengths.
fn after(first: Option<AffineMap>, rotation: AffineMap) -> Result<AffineMap, TaskError> {
    let Some(first) = first else { return Ok(rotation) };
    let (m, k, n) = (rotation.output(), first.output(), first.input());
    let mut weight = vec![0.0; m * n];
    matmul::nn(Sizes { m, n, k }, rotation.weight(), first.weight(), &mut weight, Write::Overwrite);
    AffineMap::new(m, weight, first.offset().to_vec(), first.normalizes()).map_err(TaskError::input)
}

/// One shard of vectors to codes.
pub fn encode(
    bench: &Workbench<'_>,
    quantizer: &ArtifactId,
    vectors: &ArtifactId,
) -> Result<Produced, TaskError> {
    let first_row = bench.manifest(vectors)?.meta["first_row"].as_u64().unwrap_or(0);
    let quantizer = load(bench, quantizer)?;
    let vectors = read_vectors(&bench.part(vectors, VECTORS)?)?;
    let codes = quantizer.encode(&vectors, bench.threads).map_err(TaskError::input)?;
    let path = bench.scratch(CODES);
    write_codes(&path, &codes)?;
    let meta = json!({ "rows": codes.rows(), "bytes": codes.bytes(), "first_row": first_row });
    Ok(Produced { parts: vec![(CODES.to_owned(), Content::File(path))], meta })
}

/// Loads a quantiser: a fitted one, or that of a student, which reads what the student's maps give.
pub fn load(bench: &Workbench<'_>, artifact: &ArtifactId) -> Result<Quantizer, TaskError> {
    if artifact.kind == "student" {
        return Ok(coded(bench, artifact)?.1.quantizer().clone());
    }
    Ok(Quantizer::read(&bench.part(artifact, QUANTIZER)?)?)
}

/// Loads a shard of codes with the row of its first passage.
pub fn load_codes(bench: &Workbench<'_>, artifact: &ArtifactId) -> Result<(u64, Codes), TaskError> {
    let first_row = bench.manifest(artifact)?.meta["first_row"].as_u64().unwrap_or(0);
    Ok((first_row, read_codes(&bench.part(artifact, CODES)?)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fit::PcaAccumulator;
    use crate::mining::counter;

    #[test]
    fn every_method_makes_a_quantiser_of_its_bytes() {
        let value = |i: usize| counter::unit(counter::hash(7, &[i as u64])) as f32 - 0.4;
        let sample = Matrix::new(300, 12, (0..3600).map(value).collect());
        let mut sums = PcaAccumulator::new(12);
        sums.add(&sample).unwrap();
        let pca = sums.finish().unwrap();
        let check = |dim: Option<usize>, method, bytes| {
            let reduce = dim.map(|dim| pca.map(dim, false, true).unwrap());
            let made = quantizer(&sample, reduce, method, 1, 1).unwrap();
            assert_eq!((made.input(), made.dim(), made.bytes()), (12, dim.unwrap_or(12), bytes));
            let decoded = made.decode(&made.encode(&sample, 1).unwrap()).unwrap();
            let mapped = made.mapped(&sample, 1).unwrap();
            let error = |other: &dyn Fn(usize) -> f32| -> f32 {
                mapped.data().iter().enumerate().map(|(i, x)| (x - other(i)).powi(2)).sum()
            };
            assert!(error(&|i| decoded.data()[i]) < 0.5 * error(&|_| 0.0), "{method:?}");
        };
        let product = |bytes, rotation| QuantizerMethod::Product { bytes, rotation };
        check(None, product(4, false), 4);
        check(None, product(4, true), 4);
        check(Some(8), product(4, false), 4);
        check(Some(8), product(4, true), 4);
        check(None, QuantizerMethod::Residual { bytes: 4 }, 4);
        check(None, QuantizerMethod::Int8, 12);
        check(None, QuantizerMethod::Binary, 2);
        assert!(quantizer(&sample, None, product(5, false), 1, 1).is_err());
    }
}
