//! Embeddings and indexes of a row, shard after shard, so that a corpus larger than memory can be exported.

use std::io::Write;
use std::path::Path;

use retort_common::task::ArtifactId;
use serde_json::{Value, json};

use super::catalog::{Catalog, CatalogRow};
use super::embeddings::{ParquetEmbeddings, npy_header, write_values};
use super::faiss::{FaissError, FaissIndex, Storage, Transform};
use super::{Format, Output, write_error};
use crate::fit::{AffineMap, Code, Quantizer};
use crate::matrix::Matrix;
use crate::tasks::baseline::{self, load_codes, reduction_map};
use crate::tasks::{TaskError, VECTORS, Workbench};
use crate::vectors::read_vectors;

/// The vectors of one side of a row, as they are searched.
struct Source<'a> {
    shards: &'a [ArtifactId],
    /// Applied to vectors; codes have been through it.
    reduce: Option<AffineMap>,
    /// Reads the shards, where they are codes.
    decode: Option<&'a Quantizer>,
    dim: usize,
    rows: u64,
}

impl<'a> Source<'a> {
    /// The passages or the questions of a row; `quantizer` is that of a row that keeps codes.
    fn open(
        bench: &Workbench<'_>,
        row: &'a CatalogRow,
        passages: bool,
        quantizer: Option<&'a Quantizer>,
    ) -> Result<Self, TaskError> {
        let vectors = row.vectors.as_ref().ok_or_else(|| no_vectors(row))?;
        let codes = row.codes.as_ref().filter(|_| passages).map(|codes| codes.codes.as_slice());
        let plain = if passages { vectors.passages.as_slice() } else { vectors.queries.as_slice() };
        let shards = codes.unwrap_or(plain);
        let (mut dim, mut rows) = (0, 0);
        for shard in shards {
            let meta = bench.manifest(shard)?.meta;
            let number = |key: &str| {
                meta[key]
                    .as_u64()
                    .ok_or_else(|| TaskError::Input(format!("the manifest of {shard} has no {key}")))
            };
            rows += number("rows")?;
            if codes.is_none() {
                dim = number("dim")? as usize;
            }
        }
        let reduce = match (quantizer, &row.reduce) {
            (Some(quantizer), _) => quantizer.map.clone(),
            (None, Some(reduce)) => Some(reduction_map(bench, reduce)?),
            (None, None) => None,
        };
        let dim = match (quantizer, &reduce) {
            (Some(quantizer), _) => quantizer.dim(),
            (None, Some(map)) => map.output(),
            (None, None) => dim,
        };
        Ok(Self { shards, reduce, decode: quantizer.filter(|_| codes.is_some()), dim, rows })
    }

    fn each(
        &self,
        bench: &Workbench<'_>,
        mut visit: impl FnMut(usize, Matrix) -> Result<(), TaskError>,
    ) -> Result<(), TaskError> {
        for (at, shard) in self.shards.iter().enumerate() {
            bench.go_on()?;
            let read = || -> Result<Matrix, TaskError> { Ok(read_vectors(&bench.part(shard, VECTORS)?)?) };
            let vectors = match (self.decode, &self.reduce) {
                (Some(quantizer), _) => {
                    let (_, codes) = load_codes(bench, shard)?;
                    quantizer.decode(&codes).map_err(TaskError::input)?
                }
                (None, Some(map)) => map.apply(&read()?, bench.threads),
                (None, None) => read()?,
            };
            if vectors.dim() != self.dim {
                let found = vectors.dim();
                return Err(TaskError::Input(format!("{shard} has {found} dimensions, not {}", self.dim)));
            }
            visit(at, vectors)?;
            bench.progress.progress(at as u64 + 1, self.shards.len() as u64, "");
        }
        Ok(())
    }
}

/// The quantiser of a row that keeps codes.
fn quantizer(bench: &Workbench<'_>, row: &CatalogRow) -> Result<Option<Quantizer>, TaskError> {
    row.codes.as_ref().map(|codes| baseline::load(bench, &codes.quantizer)).transpose()
}

/// The ids of a shard of either side and its first row.
fn shard_ids(
    bench: &Workbench<'_>,
    catalog: &Catalog,
    side: &str,
    shard: usize,
) -> Result<(u64, Vec<String>), TaskError> {
    if side == "passages" {
        let shard = bench.passages(&catalog.passages, shard as u32)?;
        Ok((shard.first_row, shard.ids))
    } else {
        let shard = bench.queries(&catalog.queries, shard as u32)?;
        Ok((shard.first_row, shard.ids))
    }
}

fn parquet_error(path: &Path) -> impl Fn(parquet::errors::ParquetError) -> TaskError {
    let path = path.display().to_string();
    move |error| TaskError::Input(format!("{path}: {error}"))
}

fn no_vectors(row: &CatalogRow) -> TaskError {
    TaskError::Input(format!("{:?} has no vectors of its own; export it as trec or dpr", row.name))
}

/// Writes passages and questions of a row with their ids; gives facts for the manifest.
pub(super) fn embeddings(
    bench: &Workbench<'_>,
    catalog: &Catalog,
    row: &CatalogRow,
    format: Format,
    output: &mut Output,
) -> Result<Value, TaskError> {
    let quantizer = quantizer(bench, row)?;
    let mut facts = json!({});
    for side in ["passages", "queries"] {
        let source = Source::open(bench, row, side == "passages", quantizer.as_ref())?;
        facts[side] = json!({ "rows": source.rows, "dim": source.dim });
        let about = [
            ("job", catalog.job.clone()),
            ("row", row.name.clone()),
            ("side", side.to_owned()),
            ("fingerprint", catalog.fingerprint.clone()),
        ];
        if format == Format::Parquet {
            let name = format!("{side}.parquet");
            let path = output.path(&name)?;
            let fail = parquet_error(&path);
            let mut file = ParquetEmbeddings::create(&path, &about).map_err(&fail)?;
            source.each(bench, |shard, vectors| {
                let (first_row, ids) = shard_ids(bench, catalog, side, shard)?;
                check_ids(side, &ids, &vectors)?;
                file.add(first_row, &ids, &vectors).map_err(&fail)
            })?;
            file.finish().map_err(&fail)?;
            output.note(&name)?;
            continue;
        }
        let (name, header) = match format {
            Format::Npy => (format!("{side}.npy"), npy_header(source.rows, source.dim)),
            _ => (format!("{side}.safetensors"), safetensors_header(source.rows, source.dim, &about)),
        };
        let mut names = Vec::new();
        output.file(&name, |out| {
            out.write_all(&header).map_err(write_error)?;
            source.each(bench, |shard, vectors| {
                let (_, ids) = shard_ids(bench, catalog, side, shard)?;
                check_ids(side, &ids, &vectors)?;
                names.extend(ids);
                write_values(out, &vectors).map_err(write_error)
            })
        })?;
        write_ids(output, side, &names)?;
    }
    Ok(facts)
}

fn check_ids(side: &str, ids: &[String], vectors: &Matrix) -> Result<(), TaskError> {
    if ids.len() == vectors.rows() {
        return Ok(());
    }
    Err(TaskError::Input(format!("a shard has {} ids of {side} and {} vectors", ids.len(), vectors.rows())))
}

/// The ids in row order, a line each.
fn write_ids(output: &mut Output, side: &str, ids: &[String]) -> Result<(), TaskError> {
    if let Some(id) = ids.iter().find(|id| id.contains(['\n', '\r'])) {
        return Err(TaskError::Input(format!("the id {id:?} has a line break; export to parquet instead")));
    }
    output.file(&format!("{side}.ids.txt"), |out| {
        ids.iter().try_for_each(|id| writeln!(out, "{id}")).map_err(write_error)
    })
}

/// The header of a safetensors file with one tensor, "vectors" [rows, dim].
fn safetensors_header(rows: u64, dim: usize, about: &[(&str, String)]) -> Vec<u8> {
    let about: std::collections::BTreeMap<_, _> = about.iter().cloned().collect();
    let header = json!({
        "__metadata__": about,
        "vectors": { "dtype": "F32", "shape": [rows, dim], "data_offsets": [0, rows * dim as u64 * 4] },
    });
    let mut text = header.to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text);
    bytes
}

/// Writes `passages.faiss` with the ids that it gives back: the corpus' own where all of them are numbers, row numbers
/// otherwise. `passages.ids.txt` maps rows to ids either way.
pub(super) fn index(
    bench: &Workbench<'_>,
    catalog: &Catalog,
    row: &CatalogRow,
    output: &mut Output,
) -> Result<Value, TaskError> {
    if row.codes.as_ref().is_some_and(|codes| codes.hamming) {
        let message =
            format!("{:?} ranks by Hamming distance, not by inner products; export its runs", row.name);
        return Err(TaskError::Input(message));
    }
    let quantizer = quantizer(bench, row)?;
    let source = Source::open(bench, row, true, quantizer.as_ref())?;
    // Eight bits are a byte of a product quantiser, whose centroids are all the patterns that they make. Other codes are
    // stored as the vectors that they stand for.
    let centroids = match quantizer.as_ref().map(|quantizer| &quantizer.code) {
        Some(Code::Product(pq)) => Some(pq.codebooks().to_vec()),
        Some(Code::Binary(binary)) => binary.codebooks(),
        _ => None,
    };
    let storage = match (&quantizer, centroids) {
        (Some(quantizer), Some(centroids)) => Storage::Product { subspaces: quantizer.bytes(), centroids },
        _ => Storage::Flat,
    };
    let mut names = Vec::with_capacity(source.rows as usize);
    for shard in 0..source.shards.len() {
        names.extend(shard_ids(bench, catalog, "passages", shard)?.1);
    }
    let numbers: Option<Vec<i64>> = names.iter().map(|id| plain_number(id)).collect();
    let own = numbers.is_some();
    let ids = numbers.unwrap_or_else(|| (0..names.len() as i64).collect());
    let index = FaissIndex {
        dim: source.reduce.as_ref().map_or(source.dim, AffineMap::input),
        transforms: transforms(&source),
        storage,
        count: source.rows,
    };
    output.file("passages.faiss", |out| {
        let fill = |out: &mut dyn Write| match &index.storage {
            Storage::Flat => {
                source.each(bench, |_, vectors| write_values(out, &vectors).map_err(write_error))
            }
            Storage::Product { .. } => source.shards.iter().try_for_each(|shard| {
                bench.go_on()?;
                let (_, codes) = load_codes(bench, shard)?;
                out.write_all(codes.data()).map_err(write_error)
            }),
        };
        index.write(out, fill, ids.iter().copied())
    })?;
    write_ids(output, "passages", &names)?;
    Ok(json!({
        "rows": source.rows, "dim": index.dim, "stored_dim": source.dim, "metric": "inner_product",
        "bytes_per_passage": index.code_bytes(),
        "ids": if own { "the corpus' own" } else { "row numbers, from 0, of passages.ids.txt" },
    }))
}

impl From<FaissError> for TaskError {
    fn from(error: FaissError) -> Self {
        match error {
            FaissError::Io(error) => write_error(error),
            error => TaskError::Input(error.to_string()),
        }
    }
}

/// An id that is a number and written as faiss gives it back.
fn plain_number(id: &str) -> Option<i64> {
    id.parse().ok().filter(|number: &i64| number.to_string() == id)
}

/// What faiss must do to a question before it searches: PCA's centring and projection, then unit length.
fn transforms(source: &Source<'_>) -> Vec<Transform> {
    let Some(map) = &source.reduce else { return Vec::new() };
    let rows = map.weight().chunks_exact(map.input());
    let product = |row: &[f32]| -> f64 {
        row.iter().zip(map.offset()).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let bias = rows.map(|row| -product(row) as f32).collect();
    let weight = map.weight().to_vec();
    let mut transforms = vec![Transform::Linear { input: map.input(), weight, bias }];
    if map.normalizes() {
        transforms.push(Transform::Normalize);
    }
    transforms
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ids_that_come_back_as_they_were_count_as_numbers() {
        for (id, number) in
            [("7", Some(7)), ("-1", Some(-1)), ("007", None), ("p7", None), ("9223372036854775808", None)]
        {
            assert_eq!(plain_number(id), number, "{id}");
        }
    }

    #[test]
    fn a_safetensors_header_is_one_that_can_be_read() {
        let mut bytes = safetensors_header(2, 3, &[("fingerprint", "f".to_owned())]);
        assert_eq!(bytes.len() % 8, 0);
        bytes.extend([0; 24]);
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.tensor("vectors").unwrap().shape(), [2, 3]);
    }
}
