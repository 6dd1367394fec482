//! Vectors and training rows in safetensors files: written whole, read whole or row by row.

use crate::fit::Codes;
use crate::matrix::Matrix;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Largest header of a safetensors file that is read.
const HEADER_BYTES: u64 = 16 << 20;

/// A safetensors file that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum VectorError {
    /// The file system failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Not the tensors that were expected.
    #[error("{path}: {cause}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
}

/// A tensor to write.
#[derive(Clone, Debug)]
pub enum Values<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// 64-bit floats.
    F64(&'a [f64]),
    /// 32-bit unsigned integers.
    U32(&'a [u32]),
    /// 64-bit unsigned integers.
    U64(&'a [u64]),
    /// Bytes.
    U8(&'a [u8]),
}

impl Values<'_> {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Values::F32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Values::F64(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Values::U32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Values::U64(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Values::U8(values) => values.to_vec(),
        }
    }

    fn dtype(&self) -> Dtype {
        match self {
            Values::F32(_) => Dtype::F32,
            Values::F64(_) => Dtype::F64,
            Values::U32(_) => Dtype::U32,
            Values::U64(_) => Dtype::U64,
            Values::U8(_) => Dtype::U8,
        }
    }
}

/// Writes named tensors (name, shape, values).
pub fn write_tensors(path: &Path, tensors: &[(&str, Vec<usize>, Values<'_>)]) -> Result<(), VectorError> {
    let bytes: Vec<_> = tensors.iter().map(|(_, _, values)| values.bytes()).collect();
    let fail = |error: safetensors::SafeTensorError| format(path, error.to_string());
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, shape, values), bytes)| {
            TensorView::new(values.dtype(), shape.clone(), bytes).map(|view| ((*name).to_owned(), view))
        })
        .collect::<Result<Vec<_>, _>>()
        .map_err(fail)?;
    let serialized = safetensors::serialize(views, None).map_err(fail)?;
    std::fs::write(path, serialized).map_err(|source| VectorError::Io { path: path.to_owned(), source })
}

/// Named tensors of a file, checked as they are taken out.
pub struct Tensors {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Tensors {
    /// Reads a whole file.
    pub fn read(path: &Path) -> Result<Self, VectorError> {
        let bytes =
            std::fs::read(path).map_err(|source| VectorError::Io { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), bytes })
    }

    /// Whether there is a tensor of that name.
    pub fn has(&self, name: &str) -> bool {
        SafeTensors::deserialize(&self.bytes).is_ok_and(|file| file.tensor(name).is_ok())
    }

    fn get<const WIDTH: usize, T>(
        &self,
        name: &str,
        dtype: Dtype,
        convert: fn([u8; WIDTH]) -> T,
    ) -> Result<(Vec<usize>, Vec<T>), VectorError> {
        let fail =
            |error: safetensors::SafeTensorError| format(&self.path, format!("tensor {name:?}: {error}"));
        let file = SafeTensors::deserialize(&self.bytes).map_err(fail)?;
        let view = file.tensor(name).map_err(fail)?;
        if view.dtype() != dtype {
            let cause = format!("tensor {name:?} is {:?}, {dtype:?} is expected", view.dtype());
            return Err(format(&self.path, cause));
        }
        let (chunks, _) = view.data().as_chunks::<WIDTH>();
        Ok((view.shape().to_vec(), chunks.iter().map(|chunk| convert(*chunk)).collect()))
    }

    /// A tensor of 32-bit floats with its shape.
    pub fn f32(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>), VectorError> {
        self.get(name, Dtype::F32, f32::from_le_bytes)
    }

    /// A tensor of 64-bit floats with its shape.
    pub fn f64(&self, name: &str) -> Result<(Vec<usize>, Vec<f64>), VectorError> {
        self.get(name, Dtype::F64, f64::from_le_bytes)
    }

    /// A tensor of 32-bit unsigned integers with its shape.
    pub fn u32(&self, name: &str) -> Result<(Vec<usize>, Vec<u32>), VectorError> {
        self.get(name, Dtype::U32, u32::from_le_bytes)
    }

    /// A tensor of 64-bit unsigned integers with its shape.
    pub fn u64(&self, name: &str) -> Result<(Vec<usize>, Vec<u64>), VectorError> {
        self.get(name, Dtype::U64, u64::from_le_bytes)
    }
}

/// Writes a shard of codes [rows, bytes].
pub fn write_codes(path: &Path, codes: &Codes) -> Result<(), VectorError> {
    write_tensors(path, &[("codes", vec![codes.rows(), codes.bytes()], Values::U8(codes.data()))])
}

/// Reads a shard of codes [rows, bytes].
pub fn read_codes(path: &Path) -> Result<Codes, VectorError> {
    let (shape, values) = Tensors::read(path)?.get("codes", Dtype::U8, u8::from_le_bytes)?;
    match shape[..] {
        [rows, bytes] => Ok(Codes::new(rows, bytes, values)),
        _ => Err(format(path, format!("codes have shape {shape:?}, two dimensions are expected"))),
    }
}

/// Writes a shard of vectors [rows, dim].
pub fn write_vectors(path: &Path, vectors: &Matrix) -> Result<(), VectorError> {
    let shape = vec![vectors.rows(), vectors.dim()];
    write_tensors(path, &[("vectors", shape, Values::F32(vectors.data()))])
}

/// Reads a shard of vectors [rows, dim].
pub fn read_vectors(path: &Path) -> Result<Matrix, VectorError> {
    let (shape, values) = Tensors::read(path)?.f32("vectors")?;
    match shape[..] {
        [rows, dim] => Ok(Matrix::new(rows, dim, values)),
        _ => Err(format(path, format!("vectors have shape {shape:?}, two dimensions are expected"))),
    }
}

/// The vectors of all shards of a table, read row by row from their files, so that a corpus larger than memory
/// can be trained on.
#[derive(Default)]
pub struct VectorRows {
    dim: usize,
    shards: Vec<Shard>,
}

struct Shard {
    first_row: u64,
    rows: u64,
    file: File,
    data_offset: u64,
    path: PathBuf,
}

impl VectorRows {
    /// Adds the next shard in row order; its file stays open.
    pub fn push(&mut self, path: &Path) -> Result<(), VectorError> {
        let io = |source| VectorError::Io { path: path.to_owned(), source };
        let bad = |cause: String| format(path, cause);
        let file = File::open(path).map_err(io)?;
        let mut length = [0; 8];
        file.read_exact_at(&mut length, 0).map_err(io)?;
        let length = u64::from_le_bytes(length);
        if length > HEADER_BYTES {
            return Err(bad(format!("a header of {length} bytes is too large")));
        }
        let mut header = vec![0; length as usize];
        file.read_exact_at(&mut header, 8).map_err(io)?;
        let header: BTreeMap<String, serde_json::Value> =
            serde_json::from_slice(&header).map_err(|error| bad(error.to_string()))?;
        let tensor = header.get("vectors").ok_or_else(|| bad("no tensor \"vectors\"".to_owned()))?;
        let number = |value: &serde_json::Value| value.as_u64();
        let shape =
            tensor["shape"].as_array().map(|shape| shape.iter().filter_map(number).collect::<Vec<_>>());
        let start = tensor["data_offsets"].get(0).and_then(number);
        let (Some([rows, width]), Some(start), Some("F32")) =
            (shape.as_deref(), start, tensor["dtype"].as_str())
        else {
            return Err(bad("tensor \"vectors\" is no f32 matrix".to_owned()));
        };
        if !self.shards.is_empty() && self.dim as u64 != *width {
            return Err(bad(format!("vectors have {width} dimensions, those before have {}", self.dim)));
        }
        let first_row = self.rows();
        self.dim = *width as usize;
        let data_offset = 8 + length + start;
        self.shards.push(Shard { first_row, rows: *rows, file, data_offset, path: path.to_owned() });
        Ok(())
    }

    /// Dimensions of a vector.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Number of vectors.
    pub fn rows(&self) -> u64 {
        self.shards.last().map_or(0, |shard| shard.first_row + shard.rows)
    }

    /// The vectors of some rows [rows.len(), dim], in the order asked for.
    pub fn gather(&self, rows: &[u64]) -> Result<Matrix, VectorError> {
        let mut vectors = Matrix::zeros(rows.len(), self.dim);
        let mut buffer = vec![0; self.dim * 4];
        for (i, row) in rows.iter().enumerate() {
            let at = self.shards.partition_point(|shard| shard.first_row + shard.rows <= *row);
            let Some(shard) = self.shards.get(at) else {
                return Err(format(
                    Path::new("vectors"),
                    format!("row {row} is beyond the last, {}", self.rows()),
                ));
            };
            let offset = shard.data_offset + (row - shard.first_row) * buffer.len() as u64;
            let io = |source| VectorError::Io { path: shard.path.clone(), source };
            shard.file.read_exact_at(&mut buffer, offset).map_err(io)?;
            for (value, bytes) in vectors.row_mut(i).iter_mut().zip(buffer.as_chunks::<4>().0) {
                *value = f32::from_le_bytes(*bytes);
            }
        }
        Ok(vectors)
    }
}

fn format(path: &Path, cause: String) -> VectorError {
    VectorError::Format { path: path.to_owned(), cause }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_several_shards_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let mut paths = Vec::new();
        for (shard, rows) in [3, 1, 2].into_iter().enumerate() {
            let path = folder.path().join(format!("{shard}"));
            let values = (0..rows * 2).map(|i| (shard * 10 + i) as f32).collect();
            write_vectors(&path, &Matrix::new(rows, 2, values)).unwrap();
            paths.push(path);
        }
        let mut rows = VectorRows::default();
        paths.iter().for_each(|path| rows.push(path).unwrap());
        assert_eq!((rows.rows(), rows.dim()), (6, 2));
        assert_eq!(rows.gather(&[5, 0, 3]).unwrap().data(), [22.0, 23.0, 0.0, 1.0, 10.0, 11.0]);
        assert!(rows.gather(&[6]).is_err());
        assert_eq!(read_vectors(&paths[1]).unwrap().data(), [10.0, 11.0]);
        std::fs::write(&paths[0], [255; 16]).unwrap();
        assert!(rows.push(&paths[0]).is_err() && read_vectors(&paths[0]).is_err());
        let codes = Codes::new(2, 3, vec![1, 2, 3, 4, 5, 255]);
        write_codes(&paths[1], &codes).unwrap();
        assert_eq!(read_codes(&paths[1]).unwrap(), codes);
        assert!(read_codes(&paths[2]).is_err());
    }
}
