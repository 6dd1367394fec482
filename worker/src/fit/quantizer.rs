//! A quantiser as a whole: an affine map, then a code. What fit tasks make, students train and indexes hold.

use super::pq::ProductQuantizer;
use super::residual::ResidualQuantizer;
use super::scalar::{BinaryQuantizer, Int8Quantizer, encode_rows};
use crate::matrix::Matrix;
use crate::parallel;
use crate::vectors::{Tensors, Values, VectorError, write_tensors};
use retort_kernels::matmul::{self, Sizes, Write};
use std::path::Path;

/// Vectors or sizes that a quantiser cannot work with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantizerError {
    /// Parts of unequal size.
    #[error(
        "{subquantizers} sub-quantisers do not divide {dim} dimensions: take a divisor, or reduce by PCA first"
    )]
    Division {
        /// Dimensions of the vectors.
        dim: usize,
        /// Parts asked for.
        subquantizers: usize,
    },
    /// More or fewer bits than dimensions.
    #[error(
        "{bytes} bytes are the signs of {} dimensions and the vectors have {dim}: take a byte for each eight dimensions, \
         which must be a multiple of eight", 8 * bytes
    )]
    Bits {
        /// Dimensions of the vectors.
        dim: usize,
        /// Bytes asked for.
        bytes: usize,
    },
    /// Too little to learn from.
    #[error(
        "a quantiser needs at least {needed} vectors to be fitted, there are {got} vectors: give it more"
    )]
    TooFewVectors {
        /// Vectors there.
        got: usize,
        /// Vectors needed.
        needed: usize,
    },
    /// A vector of NaN or infinity.
    #[error("vector {row} holds a value that is not finite: check the model that made it")]
    NonFinite {
        /// Its row in the block.
        row: usize,
    },
    /// Vectors of another space.
    #[error(
        "the quantiser reads {expected} dimensions and the vectors have {got}: give it vectors of the model it was fitted to"
    )]
    Dimensions {
        /// What it reads.
        expected: usize,
        /// What it got.
        got: usize,
    },
    /// Codes of another quantiser.
    #[error(
        "the quantiser writes {expected} bytes a passage and the codes have {got}: they belong to another one"
    )]
    CodeBytes {
        /// What it writes.
        expected: usize,
        /// What it got.
        got: usize,
    },
    /// Codebooks of the wrong size.
    #[error("codebooks of {values} values do not fit {dim} dimensions with 256 centroids")]
    Codebooks {
        /// Values there.
        values: usize,
        /// Dimensions.
        dim: usize,
    },
    /// Codebooks of NaN or infinity.
    #[error("the codebooks hold a value that is not finite")]
    NonFiniteCodebooks,
    /// A map whose parts do not fit.
    #[error("a map to {output} dimensions has {weights} weights and {biases} biases")]
    Map {
        /// Dimensions it gives.
        output: usize,
        /// Weights there.
        weights: usize,
        /// Biases there.
        biases: usize,
    },
}

/// Codes of passages [rows, bytes].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Codes {
    rows: usize,
    bytes: usize,
    data: Vec<u8>,
}

impl Codes {
    /// Wraps `data`, which must hold `rows * bytes` bytes.
    ///
    /// # Panics
    /// When it does not: callers check sizes of outside data first.
    pub fn new(rows: usize, bytes: usize, data: Vec<u8>) -> Self {
        assert_eq!(data.len(), rows * bytes, "[{rows}, {bytes}] codes");
        Self { rows, bytes, data }
    }

    /// Codes of zeros.
    pub fn zeros(rows: usize, bytes: usize) -> Self {
        Self { rows, bytes, data: vec![0; rows * bytes] }
    }

    /// Number of passages.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes of one passage.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// All codes, row after row.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// All codes, mutable.
    pub fn data_mut(&mut self) -> &mut [u8] {
        &mut self.data
    }

    /// The code of passage `i`.
    pub fn row(&self, i: usize) -> &[u8] {
        &self.data[i * self.bytes..][..self.bytes]
    }
}

/// x ↦ W (x − offset), then optionally to unit length: PCA, a rotation, or both.
#[derive(Clone, Debug, PartialEq)]
pub struct AffineMap {
    /// Dimensions it gives.
    output: usize,
    /// W [output, input].
    weight: Vec<f32>,
    /// Taken off first [input].
    offset: Vec<f32>,
    /// Scale the result to unit length.
    normalize: bool,
}

/// Rows that a thread maps at a time.
const BLOCK_ROWS: usize = 512;

impl AffineMap {
    /// A map of these parts.
    ///
    /// # Errors
    /// When their sizes do not fit.
    pub fn new(
        output: usize,
        weight: Vec<f32>,
        offset: Vec<f32>,
        normalize: bool,
    ) -> Result<Self, QuantizerError> {
        if offset.is_empty() || output == 0 || weight.len() != output * offset.len() {
            return Err(QuantizerError::Map { output, weights: weight.len(), biases: offset.len() });
        }
        Ok(Self { output, weight, offset, normalize })
    }

    /// Dimensions it reads.
    pub fn input(&self) -> usize {
        self.offset.len()
    }

    /// Dimensions it gives.
    pub fn output(&self) -> usize {
        self.output
    }

    /// W [output, input].
    pub fn weight(&self) -> &[f32] {
        &self.weight
    }

    /// What is taken off first [input].
    pub fn offset(&self) -> &[f32] {
        &self.offset
    }

    /// Whether results have unit length.
    pub fn normalizes(&self) -> bool {
        self.normalize
    }

    /// The images [rows, output] of vectors [rows, input], the same for any number of threads.
    pub fn apply(&self, vectors: &Matrix, threads: usize) -> Matrix {
        let (input, output) = (self.input(), self.output);
        let mut images = Matrix::zeros(vectors.rows(), output);
        parallel::for_each_chunk(threads, images.data_mut(), BLOCK_ROWS * output, |at, images| {
            let rows = images.len() / output;
            let block = &vectors.data()[at * BLOCK_ROWS * input..][..rows * input];
            let moved: Vec<f32> = block
                .chunks_exact(input)
                .flat_map(|x| x.iter().zip(&self.offset).map(|(x, o)| x - o))
                .collect();
            matmul::nt(
                Sizes { m: rows, n: output, k: input },
                &moved,
                &self.weight,
                images,
                Write::Overwrite,
            );
        });
        if self.normalize {
            images.normalize_rows();
        }
        images
    }
}

/// How a mapped vector is kept.
#[derive(Clone, Debug, PartialEq)]
pub enum Code {
    /// One byte for each part.
    Product(ProductQuantizer),
    /// One byte for each summand.
    Residual(ResidualQuantizer),
    /// One byte for each dimension.
    Int8(Int8Quantizer),
    /// One bit for each dimension.
    Binary(BinaryQuantizer),
}

/// An affine map, if any, and a code. A passage's score for a question is the inner product of the question's
/// mapped vector with the vector that the passage's code stands for.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantizer {
    /// Applied to both sides first.
    pub map: Option<AffineMap>,
    /// How passages are kept.
    pub code: Code,
}

impl Quantizer {
    /// Dimensions of the vectors it reads.
    pub fn input(&self) -> usize {
        self.map.as_ref().map_or(self.dim(), AffineMap::input)
    }

    /// Dimensions of mapped vectors.
    pub fn dim(&self) -> usize {
        match &self.code {
            Code::Product(pq) => pq.dim(),
            Code::Residual(residual) => residual.dim(),
            Code::Int8(int8) => int8.offset.len(),
            Code::Binary(binary) => binary.threshold.len(),
        }
    }

    /// Bytes of a passage's code.
    pub fn bytes(&self) -> usize {
        match &self.code {
            Code::Product(pq) => pq.subquantizers(),
            Code::Residual(residual) => residual.bytes(),
            Code::Int8(int8) => int8.offset.len(),
            Code::Binary(binary) => binary.threshold.len().div_ceil(8),
        }
    }

    /// Questions or passages [rows, input] through the map [rows, dim].
    ///
    /// # Errors
    /// When dimensions do not fit or a value is not finite.
    pub fn mapped(&self, vectors: &Matrix, threads: usize) -> Result<Matrix, QuantizerError> {
        if vectors.dim() != self.input() {
            return Err(QuantizerError::Dimensions { expected: self.input(), got: vectors.dim() });
        }
        check_finite(vectors)?;
        Ok(match &self.map {
            Some(map) => map.apply(vectors, threads),
            None => vectors.clone(),
        })
    }

    /// Codes of passages [rows, input], the same for any number of threads.
    ///
    /// # Errors
    /// As [`mapped`](Self::mapped).
    pub fn encode(&self, vectors: &Matrix, threads: usize) -> Result<Codes, QuantizerError> {
        let mapped = self.mapped(vectors, threads)?;
        Ok(match &self.code {
            Code::Product(pq) => pq.encode(&mapped, threads),
            Code::Residual(residual) => residual.encode(&mapped, threads),
            Code::Int8(int8) => encode_rows(&mapped, self.bytes(), |x, code| int8.encode_row(x, code)),
            Code::Binary(binary) => encode_rows(&mapped, self.bytes(), |x, code| binary.encode_row(x, code)),
        })
    }

    /// The mapped vectors [rows, dim] that codes stand for.
    ///
    /// # Errors
    /// When the codes have another size.
    pub fn decode(&self, codes: &Codes) -> Result<Matrix, QuantizerError> {
        self.check_codes(codes)?;
        let mut vectors = Matrix::zeros(codes.rows(), self.dim());
        for row in 0..codes.rows() {
            self.decode_row(codes.row(row), vectors.row_mut(row));
        }
        Ok(vectors)
    }

    /// The vectors [rows, input] that codes stand for, led back through the map. For a rotation these give the scores
    /// that the mapped vectors give; other maps lose what they project away.
    ///
    /// # Errors
    /// As [`decode`](Self::decode).
    pub fn reconstruct(&self, codes: &Codes) -> Result<Matrix, QuantizerError> {
        let decoded = self.decode(codes)?;
        let Some(map) = &self.map else { return Ok(decoded) };
        let mut vectors = Matrix::zeros(decoded.rows(), map.input());
        let sizes = Sizes { m: decoded.rows(), n: map.input(), k: map.output };
        matmul::nn(sizes, decoded.data(), &map.weight, vectors.data_mut(), Write::Overwrite);
        for row in 0..vectors.rows() {
            vectors.row_mut(row).iter_mut().zip(&map.offset).for_each(|(x, offset)| *x += offset);
        }
        Ok(vectors)
    }

    /// The mapped vector [dim] that a code stands for.
    pub fn decode_row(&self, code: &[u8], vector: &mut [f32]) {
        match &self.code {
            Code::Product(pq) => pq.decode_row(code, vector),
            Code::Residual(residual) => residual.decode_row(code, vector),
            Code::Int8(int8) => int8.decode_row(code, vector),
            Code::Binary(binary) => binary.decode_row(code, vector),
        }
    }

    /// Fails when codes cannot be this quantiser's.
    pub fn check_codes(&self, codes: &Codes) -> Result<(), QuantizerError> {
        if codes.bytes() != self.bytes() {
            return Err(QuantizerError::CodeBytes { expected: self.bytes(), got: codes.bytes() });
        }
        Ok(())
    }

    /// Tables [bytes, 256] of a mapped question [dim], whose entries sum up to scores; none where a byte alone says
    /// too little for that to pay.
    pub fn tables(&self, query: &[f32]) -> Option<Vec<f32>> {
        match &self.code {
            Code::Product(pq) => Some(pq.tables(query)),
            Code::Residual(residual) => Some(residual.tables(query)),
            Code::Binary(binary) => Some(binary.tables(query)),
            Code::Int8(_) => None,
        }
    }

    /// Writes it as safetensors: `map.weight`, `map.offset`, `map.normalize`, and `pq.codebooks`
    /// [subquantizers, 256, part], `residual.codebooks` [bytes, 256, dim], or `int8.offset` and `int8.scale`, or `binary.threshold` and `binary.scale`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), VectorError> {
        let mut tensors = Vec::new();
        let normalize;
        if let Some(map) = &self.map {
            normalize = [u32::from(map.normalize)];
            tensors.push(("map.weight", vec![map.output, map.input()], Values::F32(&map.weight)));
            tensors.push(("map.offset", vec![map.input()], Values::F32(&map.offset)));
            tensors.push(("map.normalize", vec![1], Values::U32(&normalize)));
        }
        match &self.code {
            Code::Product(pq) => {
                let shape = vec![pq.subquantizers(), 256, pq.dim() / pq.subquantizers()];
                tensors.push(("pq.codebooks", shape, Values::F32(pq.codebooks())));
            }
            Code::Residual(residual) => {
                let shape = vec![residual.bytes(), 256, residual.dim()];
                tensors.push(("residual.codebooks", shape, Values::F32(residual.codebooks())));
            }
            Code::Int8(int8) => {
                tensors.push(("int8.offset", vec![int8.offset.len()], Values::F32(&int8.offset)));
                tensors.push(("int8.scale", vec![int8.scale.len()], Values::F32(&int8.scale)));
            }
            Code::Binary(binary) => {
                let dim = vec![binary.threshold.len()];
                tensors.push(("binary.threshold", dim.clone(), Values::F32(&binary.threshold)));
                tensors.push(("binary.scale", dim, Values::F32(&binary.scale)));
            }
        }
        write_tensors(path, &tensors)
    }

    /// Reads what [`write`](Self::write) wrote.
    ///
    /// # Errors
    /// When the file cannot be read or its tensors do not make a quantiser.
    pub fn read(path: &Path) -> Result<Self, VectorError> {
        let tensors = Tensors::read(path)?;
        let bad = |cause: String| VectorError::Format { path: path.to_owned(), cause };
        let broken = |error: QuantizerError| bad(error.to_string());
        let map = if tensors.has("map.weight") {
            let (shape, weight) = tensors.f32("map.weight")?;
            let (_, offset) = tensors.f32("map.offset")?;
            let (_, normalize) = tensors.u32("map.normalize")?;
            let output = shape.first().copied().unwrap_or(0);
            Some(AffineMap::new(output, weight, offset, normalize.first() == Some(&1)).map_err(broken)?)
        } else {
            None
        };
        let code = if tensors.has("pq.codebooks") {
            let (shape, codebooks) = tensors.f32("pq.codebooks")?;
            let [subquantizers, 256, part] = shape[..] else {
                return Err(bad(format!(
                    "codebooks of shape {shape:?}, [subquantizers, 256, part] is expected"
                )));
            };
            Code::Product(
                ProductQuantizer::new(subquantizers * part, subquantizers, codebooks).map_err(broken)?,
            )
        } else if tensors.has("residual.codebooks") {
            let (shape, codebooks) = tensors.f32("residual.codebooks")?;
            let [_, 256, dim] = shape[..] else {
                return Err(bad(format!("codebooks of shape {shape:?}, [bytes, 256, dim] is expected")));
            };
            Code::Residual(ResidualQuantizer::new(dim, codebooks).map_err(broken)?)
        } else if tensors.has("int8.scale") {
            let ((_, offset), (_, scale)) = (tensors.f32("int8.offset")?, tensors.f32("int8.scale")?);
            Code::Int8(Int8Quantizer { offset, scale })
        } else {
            let ((_, threshold), (_, scale)) =
                (tensors.f32("binary.threshold")?, tensors.f32("binary.scale")?);
            Code::Binary(BinaryQuantizer { threshold, scale })
        };
        let even = match &code {
            Code::Product(_) | Code::Residual(_) => true,
            Code::Int8(int8) => int8.offset.len() == int8.scale.len(),
            Code::Binary(binary) => binary.threshold.len() == binary.scale.len(),
        };
        let quantizer = Self { map, code };
        let fits = quantizer.map.as_ref().is_none_or(|map| map.output == quantizer.dim());
        if !even || !fits || quantizer.dim() == 0 {
            return Err(bad("its tensors do not fit each other".to_owned()));
        }
        Ok(quantizer)
    }
}

/// Fails with the first row that holds NaN or infinity.
pub fn check_finite(vectors: &Matrix) -> Result<(), QuantizerError> {
    match vectors.data().iter().position(|value| !value.is_finite()) {
        Some(at) => Err(QuantizerError::NonFinite { row: at / vectors.dim() }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::random;
    use super::*;

    fn check(quantizer: &Quantizer) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("quantizer.safetensors");
        quantizer.write(&path).unwrap();
        assert_eq!(&Quantizer::read(&path).unwrap(), quantizer);
        let vectors = random(20, quantizer.input(), 9);
        let codes = quantizer.encode(&vectors, 1).unwrap();
        assert_eq!((codes.rows(), codes.bytes()), (20, quantizer.bytes()));
        assert_eq!(codes, quantizer.encode(&vectors, 3).unwrap());
        let decoded = quantizer.decode(&codes).unwrap();
        assert_eq!((decoded.rows(), decoded.dim()), (20, quantizer.dim()));
        assert!(quantizer.encode(&random(2, quantizer.input() + 1, 1), 1).is_err());
        assert!(quantizer.decode(&Codes::zeros(1, quantizer.bytes() + 1)).is_err());
        let mut bad = random(3, quantizer.input(), 1);
        bad.row_mut(1)[0] = f32::NAN;
        assert_eq!(quantizer.encode(&bad, 1), Err(QuantizerError::NonFinite { row: 1 }));
    }

    #[test]
    fn quantizers_survive_their_files_and_refuse_what_is_not_theirs() {
        let vectors = random(300, 8, 1);
        let pq =
            |vectors: &Matrix| Code::Product(ProductQuantizer::train(vectors, 4, None, 2, 1, 1).unwrap());
        let map = AffineMap::new(8, random(8, 10, 2).into_data(), vec![0.1; 10], true).unwrap();
        check(&Quantizer { map: None, code: pq(&vectors) });
        check(&Quantizer { code: pq(&map.apply(&random(300, 10, 3), 2)), map: Some(map) });
        let residual = ResidualQuantizer::train(&vectors, 3, 1, 1).unwrap();
        check(&Quantizer { map: None, code: Code::Residual(residual) });
        check(&Quantizer { map: None, code: Code::Int8(Int8Quantizer::train(&vectors).unwrap()) });
        check(&Quantizer { map: None, code: Code::Binary(BinaryQuantizer::train(&vectors).unwrap()) });
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, [1; 20]).unwrap();
        assert!(Quantizer::read(&path).is_err());
        write_tensors(&path, &[("pq.codebooks", vec![2, 2, 2], Values::F32(&[0.0; 8]))]).unwrap();
        assert!(Quantizer::read(&path).is_err());
    }

    #[test]
    fn a_map_moves_multiplies_and_normalises() {
        let map = AffineMap::new(1, vec![3.0, 4.0], vec![1.0, 1.0], false).unwrap();
        let vectors = Matrix::new(2, 2, vec![2.0, 3.0, 1.0, 1.0]);
        assert_eq!(map.apply(&vectors, 2).data(), [11.0, 0.0]);
        let unit = AffineMap::new(1, vec![3.0, 4.0], vec![1.0, 1.0], true).unwrap();
        assert_eq!(unit.apply(&vectors, 1).data(), [1.0, 0.0]);
        assert!(AffineMap::new(2, vec![1.0], vec![1.0], false).is_err());
    }
}
