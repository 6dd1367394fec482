//! A folder of passages to search without a cluster: a JSON manifest, Parquet tables of passages, and safetensors
//! with their vectors or codes, shard by shard.
//!
//! - `index.json`: [`Manifest`]
//! - `passages-000000.parquet`: {row, id, title, text}
//! - `vectors-000000.safetensors` [rows, dim], or `codes-000000.safetensors` [rows, bytes] and
//!   `quantizer.safetensors`
//!
//! [`folder`] reads a finished student.

pub mod folder;

use crate::fit::kmeans::{MOST_ROWS, ROUNDS, draw};
use crate::fit::{
    BinaryQuantizer, Code, Int8Quantizer, ProductQuantizer, Quantizer, QuantizerError, ResidualQuantizer,
    opq, train_opq,
};
use crate::matrix::Matrix;
use crate::search::codes::{CodeQueries, CodesError};
use crate::search::dense::{DenseError, Queries};
use crate::search::topk::{Hit, TopK};
use crate::tables::{PassageShard, TableError};
use crate::vectors::{VectorError, VectorRows, read_codes, read_vectors, write_codes, write_vectors};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Passages in a shard: what is in memory at a time.
pub const SHARD_ROWS: usize = 1024;

const MANIFEST: &str = "index.json";
const QUANTIZER: &str = "quantizer.safetensors";
const FORMAT: &str = "retort-index";
const VERSION: u32 = 1;
/// Seed of samples and first centroids.
const SEED: u64 = 0;

/// What `index.json` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// "retort-index".
    pub format: String,
    /// 1.
    pub version: u32,
    /// The folder of the model that embedded the passages, as it was given.
    pub model: String,
    /// Number of passages.
    pub rows: u64,
    /// Dimensions of the model's vectors.
    pub dim: u32,
    /// Bytes that a passage's vector or code takes.
    pub bytes_per_passage: u32,
    /// The file of the quantiser, where passages are kept as codes.
    pub quantizer: Option<String>,
    /// The shards in row order.
    pub shards: Vec<Shard>,
}

/// A part of the passages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    /// Row of its first passage.
    pub first_row: u64,
    /// Number of passages.
    pub rows: u32,
    /// The table of passages.
    pub passages: String,
    /// Vectors or codes.
    pub data: String,
}

/// Why an index cannot be written or searched.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The file system failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A folder that holds something already.
    #[error("{path} is not empty: name another folder")]
    NotEmpty {
        /// The folder.
        path: PathBuf,
    },
    /// A manifest that is none.
    #[error("{path} is no index that this version reads: {cause}")]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
    /// Nothing to index.
    #[error("there are no passages: an index of nothing answers nothing")]
    NoPassages,
    /// Vectors that do not fit.
    #[error(
        "{path} holds [{rows}, {dim}], [{expected_rows}, {expected_dim}] is expected: make the index again"
    )]
    Shape {
        /// The file.
        path: PathBuf,
        /// Rows there.
        rows: usize,
        /// Dimensions or bytes there.
        dim: usize,
        /// Rows expected.
        expected_rows: usize,
        /// Dimensions or bytes expected.
        expected_dim: usize,
    },
    /// A vector of NaN or infinity, or other misfits.
    #[error(transparent)]
    Quantizer(#[from] QuantizerError),
    /// A search that failed.
    #[error(transparent)]
    Dense(#[from] DenseError),
    /// A scan that failed.
    #[error(transparent)]
    Codes(#[from] CodesError),
    /// A table that failed.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A tensor file that failed.
    #[error(transparent)]
    Vectors(#[from] VectorError),
}

/// How passages are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// As vectors.
    Vectors,
    /// In this many bytes by product quantisation.
    Pq(usize),
    /// The same after a learnt rotation.
    Opq(usize),
    /// In this many bytes by residual quantisation.
    Residual(usize),
    /// A byte for each dimension.
    Int8,
    /// A bit for each dimension.
    Binary,
}

impl std::str::FromStr for Keep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("{text:?}: use vectors, pq-BYTES, opq-BYTES, residual-BYTES, int8 or binary, e.g. opq-32")
        };
        let bytes = |text: &str| text.parse::<usize>().ok().filter(|bytes| *bytes > 0).ok_or_else(wrong);
        match text {
            "vectors" => Ok(Keep::Vectors),
            "int8" => Ok(Keep::Int8),
            "binary" => Ok(Keep::Binary),
            _ => match text.split_once('-') {
                Some(("pq", rest)) => Ok(Keep::Pq(bytes(rest)?)),
                Some(("opq", rest)) => Ok(Keep::Opq(bytes(rest)?)),
                Some(("residual", rest)) => Ok(Keep::Residual(bytes(rest)?)),
                _ => Err(wrong()),
            },
        }
    }
}

/// An index in the making, one shard at a time.
pub struct IndexWriter {
    folder: PathBuf,
    manifest: Manifest,
}

impl IndexWriter {
    /// Begins an index of vectors of `dim` dimensions in a new or empty folder.
    ///
    /// # Errors
    /// When the folder cannot be made or is not empty.
    pub fn create(folder: &Path, model: &str, dim: usize) -> Result<Self, IndexError> {
        let io = |source| IndexError::Io { path: folder.to_owned(), source };
        std::fs::create_dir_all(folder).map_err(io)?;
        if std::fs::read_dir(folder).map_err(io)?.next().is_some() {
            return Err(IndexError::NotEmpty { path: folder.to_owned() });
        }
        let manifest = Manifest {
            format: FORMAT.to_owned(),
            version: VERSION,
            model: model.to_owned(),
            rows: 0,
            dim: dim as u32,
            bytes_per_passage: 4 * dim as u32,
            quantizer: None,
            shards: Vec::new(),
        };
        Ok(Self { folder: folder.to_owned(), manifest })
    }

    /// Adds passages with their vectors [passages, dim].
    ///
    /// # Errors
    /// When a vector is not finite, the shapes differ, or a file cannot be written.
    pub fn push(&mut self, mut passages: PassageShard, vectors: &Matrix) -> Result<(), IndexError> {
        crate::fit::quantizer::check_finite(vectors)?;
        let at = self.manifest.shards.len();
        let (table, data) = (format!("passages-{at:06}.parquet"), format!("vectors-{at:06}.safetensors"));
        let path = self.folder.join(&data);
        check_shape(
            &path,
            (vectors.rows(), vectors.dim()),
            (passages.ids.len(), self.manifest.dim as usize),
        )?;
        passages.first_row = self.manifest.rows;
        passages.write(&self.folder.join(&table))?;
        write_vectors(&path, vectors)?;
        let rows = vectors.rows() as u32;
        self.manifest.shards.push(Shard { first_row: self.manifest.rows, rows, passages: table, data });
        self.manifest.rows += u64::from(rows);
        Ok(())
    }

    /// Replaces vectors by codes where asked for, and writes the manifest last: without one there is no index.
    ///
    /// # Errors
    /// When there are no passages, a quantiser does not fit the vectors, or a file cannot be written.
    pub fn finish(mut self, keep: Keep, threads: usize) -> Result<Manifest, IndexError> {
        if self.manifest.rows == 0 {
            return Err(IndexError::NoPassages);
        }
        if keep != Keep::Vectors {
            let quantizer = self.fit(keep, threads)?;
            self.quantize(&quantizer, threads)?;
        }
        let path = self.folder.join(MANIFEST);
        let text = serde_json::to_string_pretty(&self.manifest).expect("a manifest has a JSON form") + "\n";
        std::fs::write(&path, text).map_err(|source| IndexError::Io { path, source })?;
        Ok(self.manifest)
    }

    fn fit(&self, keep: Keep, threads: usize) -> Result<Quantizer, IndexError> {
        let mut all = VectorRows::default();
        for shard in &self.manifest.shards {
            all.push(&self.folder.join(&shard.data))?;
        }
        let total = self.manifest.rows as usize;
        let mut rows: Vec<u64> =
            draw(total, total.min(MOST_ROWS), SEED).into_iter().map(|row| row as u64).collect();
        rows.sort_unstable();
        let sample = all.gather(&rows)?;
        let pq = |bytes| ProductQuantizer::train(&sample, bytes, None, ROUNDS, SEED, threads);
        let (map, code) = match keep {
            Keep::Pq(bytes) => (None, Code::Product(pq(bytes)?)),
            Keep::Opq(bytes) => {
                let (map, pq) = train_opq(&sample, bytes, opq::ROUNDS, SEED, threads)?;
                (Some(map), Code::Product(pq))
            }
            Keep::Residual(bytes) => {
                (None, Code::Residual(ResidualQuantizer::train(&sample, bytes, SEED, threads)?))
            }
            Keep::Int8 => (None, Code::Int8(Int8Quantizer::train(&sample)?)),
            Keep::Vectors | Keep::Binary => (None, Code::Binary(BinaryQuantizer::train(&sample)?)),
        };
        Ok(Quantizer { map, code })
    }

    /// Replaces every shard's vectors by codes.
    fn quantize(&mut self, quantizer: &Quantizer, threads: usize) -> Result<(), IndexError> {
        quantizer.write(&self.folder.join(QUANTIZER))?;
        for shard in &mut self.manifest.shards {
            let old = self.folder.join(&shard.data);
            let codes = quantizer.encode(&read_vectors(&old)?, threads)?;
            shard.data = shard.data.replace("vectors", "codes");
            write_codes(&self.folder.join(&shard.data), &codes)?;
            std::fs::remove_file(&old).map_err(|source| IndexError::Io { path: old, source })?;
        }
        self.manifest.quantizer = Some(QUANTIZER.to_owned());
        self.manifest.bytes_per_passage = quantizer.bytes() as u32;
        Ok(())
    }
}

fn check_shape(path: &Path, found: (usize, usize), expected: (usize, usize)) -> Result<(), IndexError> {
    if found == expected {
        return Ok(());
    }
    let ((rows, dim), (expected_rows, expected_dim)) = (found, expected);
    Err(IndexError::Shape { path: path.to_owned(), rows, dim, expected_rows, expected_dim })
}

/// A passage that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Its row.
    pub row: u64,
    /// The corpus' own id.
    pub id: String,
    /// Its title; empty where there is none.
    pub title: String,
    /// Its text.
    pub text: String,
    /// Its score.
    pub score: f32,
}

/// An index on disk; shards are read one after the other when it is searched.
pub struct Index {
    folder: PathBuf,
    manifest: Manifest,
    quantizer: Option<Quantizer>,
}

impl Index {
    /// Opens an index.
    ///
    /// # Errors
    /// When the folder has no manifest of this version or its quantiser does not fit.
    pub fn open(folder: &Path) -> Result<Self, IndexError> {
        let path = folder.join(MANIFEST);
        let bytes = std::fs::read(&path).map_err(|source| IndexError::Io { path: path.clone(), source })?;
        let bad = |cause: String| IndexError::Manifest { path: path.clone(), cause };
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
        if (manifest.format.as_str(), manifest.version) != (FORMAT, VERSION) {
            return Err(bad(format!("it is {} version {}", manifest.format, manifest.version)));
        }
        let names = manifest.shards.iter().flat_map(|shard| [&shard.passages, &shard.data]);
        if let Some(name) = names.chain(&manifest.quantizer).find(|name| name.contains(['/', '\\'])) {
            return Err(bad(format!("{name:?} lies outside the folder")));
        }
        let quantizer =
            manifest.quantizer.as_ref().map(|name| Quantizer::read(&folder.join(name))).transpose()?;
        let input = quantizer.as_ref().map_or(manifest.dim as usize, Quantizer::input);
        if input != manifest.dim as usize {
            return Err(bad(format!(
                "its quantiser reads {input} dimensions, its model gives {}",
                manifest.dim
            )));
        }
        Ok(Self { folder: folder.to_owned(), manifest, quantizer })
    }

    /// What the manifest says.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The best `k` passages for each question [questions, dim], best first; all of them where there are fewer.
    ///
    /// # Errors
    /// When a question is not finite or of other dimensions, or a shard is not as the manifest says.
    pub fn search(&self, queries: &Matrix, k: usize, threads: usize) -> Result<Vec<Vec<Hit>>, IndexError> {
        crate::fit::quantizer::check_finite(queries)?;
        let mut top = TopK::new(queries.rows(), k);
        let codes = self.quantizer.as_ref().map(|fit| CodeQueries::new(fit, queries, threads)).transpose()?;
        let dense = Queries::new(queries);
        for shard in &self.manifest.shards {
            let path = self.folder.join(&shard.data);
            let rows = shard.rows as usize;
            if let Some(queries) = &codes {
                let codes = read_codes(&path)?;
                let expected = (rows, self.manifest.bytes_per_passage as usize);
                check_shape(&path, (codes.rows(), codes.bytes()), expected)?;
                queries.search(&codes, shard.first_row, threads, &mut top)?;
            } else {
                let vectors = read_vectors(&path)?;
                check_shape(&path, (vectors.rows(), vectors.dim()), (rows, self.manifest.dim as usize))?;
                dense.search(&vectors, shard.first_row, threads, &mut top)?;
            }
        }
        Ok(top.into_ranked())
    }

    /// The passages of ranked lists.
    ///
    /// # Errors
    /// When a table of passages cannot be read.
    pub fn passages(&self, lists: &[Vec<Hit>]) -> Result<Vec<Vec<Found>>, IndexError> {
        let mut found: Vec<Vec<Option<Found>>> = lists.iter().map(|list| vec![None; list.len()]).collect();
        for shard in &self.manifest.shards {
            let rows = shard.first_row..shard.first_row + u64::from(shard.rows);
            let places = lists.iter().enumerate();
            let wanted: Vec<(usize, usize, Hit)> = places
                .flat_map(|(query, list)| list.iter().enumerate().map(move |(rank, hit)| (query, rank, *hit)))
                .filter(|(_, _, hit)| rows.contains(&hit.row))
                .collect();
            if wanted.is_empty() {
                continue;
            }
            let path = self.folder.join(&shard.passages);
            let table = PassageShard::read(&path)?;
            check_shape(&path, (table.ids.len(), 1), (shard.rows as usize, 1))?;
            for (query, rank, Hit { row, score }) in wanted {
                let at = (row - shard.first_row) as usize;
                let (id, title, text) =
                    (table.ids[at].clone(), table.titles[at].clone(), table.texts[at].clone());
                found[query][rank] = Some(Found { row, id, title, text, score });
            }
        }
        Ok(found.into_iter().map(|list| list.into_iter().flatten().collect()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mining::counter;

    fn random(rows: usize, dim: usize, seed: u64) -> Matrix {
        let value = |i: usize| counter::unit(counter::hash(seed, &[i as u64])) as f32 - 0.5;
        let mut vectors = Matrix::new(rows, dim, (0..rows * dim).map(value).collect());
        vectors.normalize_rows();
        vectors
    }

    fn passages(rows: std::ops::Range<usize>) -> PassageShard {
        let text = |what: &str| rows.clone().map(|row| format!("{what}{row}")).collect();
        PassageShard { first_row: 0, ids: text("id"), titles: text("title"), texts: text("text") }
    }

    fn build(folder: &Path, keep: Keep) -> Result<Manifest, IndexError> {
        let mut writer = IndexWriter::create(folder, "model", 8)?;
        writer.push(passages(0..200), &random(200, 8, 1))?;
        writer.push(passages(200..300), &random(100, 8, 2))?;
        writer.finish(keep, 1)
    }

    #[test]
    fn an_index_finds_its_passages_however_they_are_kept() {
        for (keep, bytes) in
            [("vectors", 32), ("pq-4", 4), ("opq-4", 4), ("residual-4", 4), ("int8", 8), ("binary", 1)]
        {
            let folder = tempfile::tempdir().unwrap();
            let manifest = build(folder.path(), keep.parse().unwrap()).unwrap();
            assert_eq!((manifest.rows, manifest.bytes_per_passage), (300, bytes));
            let index = Index::open(folder.path()).unwrap();
            assert_eq!(index.manifest(), &manifest);
            let lists = index.search(&random(100, 8, 2), 500, 2).unwrap();
            let found = index.passages(&lists).unwrap();
            // More than there are gives all; most passages are near themselves.
            assert!(found.iter().all(|list| list.len() == 300));
            let own = found
                .iter()
                .enumerate()
                .filter(|(i, list)| list[..20].iter().any(|found| found.id == format!("id{}", 200 + i)));
            assert!(own.count() >= if keep == "binary" { 50 } else { 90 }, "{keep}");
            assert_eq!(found[0][0].text.replace("text", "title"), found[0][0].title);
            let mut bad = random(1, 8, 3);
            bad.row_mut(0)[0] = f32::NAN;
            assert!(index.search(&bad, 1, 1).is_err() && index.search(&random(1, 7, 1), 1, 1).is_err());
        }
    }

    #[test]
    fn what_is_no_index_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        assert!(matches!(Index::open(path), Err(IndexError::Io { .. })));
        assert!(matches!(build(path, Keep::Pq(3)), Err(IndexError::Quantizer(_))));
        // Without its manifest the folder is none, and it is not written over.
        assert!(Index::open(path).is_err());
        assert!(matches!(build(path, Keep::Vectors), Err(IndexError::NotEmpty { .. })));
        let other = tempfile::tempdir().unwrap();
        build(other.path(), Keep::Vectors).unwrap();
        let manifest = std::fs::read_to_string(other.path().join(MANIFEST)).unwrap();
        for (from, to) in [("\"version\": 1", "\"version\": 9"), ("vectors-000000", "../vectors-000000")] {
            std::fs::write(other.path().join(MANIFEST), manifest.replace(from, to)).unwrap();
            assert!(matches!(Index::open(other.path()), Err(IndexError::Manifest { .. })), "{to}");
        }
        let empty = tempfile::tempdir().unwrap();
        let writer = IndexWriter::create(empty.path(), "model", 8).unwrap();
        assert!(matches!(writer.finish(Keep::Vectors, 1), Err(IndexError::NoPassages)));
        for wrong in ["pq", "pq-0", "opq-x", "residual-0", "int4", ""] {
            assert!(wrong.parse::<Keep>().is_err(), "{wrong}");
        }
    }
}
