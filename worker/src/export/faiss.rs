//! FAISS's binary index format, as `faiss.read_index` reads it: exact and product-quantised vectors behind linear
//! transforms, under a map of ids. Written front to back, so that an index larger than memory can be streamed.
//!
//! The format is that of faiss/impl/index_write.cpp: a four-letter code, a common header, then the fields in order,
//! all little-endian; a vector is its length as 64 bits, then its values.

use std::io::{self, Write};

/// faiss's METRIC_INNER_PRODUCT.
const INNER_PRODUCT: i32 = 0;
/// A field that faiss writes and never reads.
const UNUSED: i64 = 1 << 20;

/// A transform that faiss applies to every vector before the index proper.
#[derive(Clone, Debug, PartialEq)]
pub enum Transform {
    /// `weight` x + `bias`: PCA with its centring, OPQ's rotation, a projection.
    Linear {
        /// Width of what it reads.
        input: usize,
        /// Shape [output, input], row after row.
        weight: Vec<f32>,
        /// Width of what it gives, or empty.
        bias: Vec<f32>,
    },
    /// Scaling to unit length.
    Normalize,
}

/// What an index stores of each vector.
#[derive(Clone, Debug, PartialEq)]
pub enum Storage {
    /// Its values: 4 bytes a dimension.
    Flat,
    /// Codes of a product quantiser, 8 bits for each of the sub-spaces.
    Product {
        /// Number of sub-spaces; divides the dimensions.
        subspaces: usize,
        /// Centroids [subspaces, 256, dimensions / subspaces].
        centroids: Vec<f32>,
    },
}

/// An index over inner products.
#[derive(Clone, Debug, PartialEq)]
pub struct FaissIndex {
    /// Width of the vectors that questions bring.
    pub dim: usize,
    /// Applied in order to questions; stored vectors have been through them already.
    pub transforms: Vec<Transform>,
    /// What is stored.
    pub storage: Storage,
    /// Number of vectors.
    pub count: u64,
}

/// Why an index was not written.
#[derive(Debug, thiserror::Error)]
pub enum FaissError {
    /// The file system failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Parts of the index that do not fit each other.
    #[error("a faiss index cannot have {what} of {found}, expected {expected}")]
    Shape {
        /// Which part.
        what: &'static str,
        /// Its size.
        found: usize,
        /// What the others ask for.
        expected: String,
    },
}

impl FaissIndex {
    /// Width of the stored vectors.
    pub fn stored_dim(&self) -> usize {
        self.transforms.iter().fold(self.dim, |width, transform| match transform {
            Transform::Linear { input, weight, .. } => weight.len() / (*input).max(1),
            Transform::Normalize => width,
        })
    }

    /// Bytes of one stored vector.
    pub fn code_bytes(&self) -> usize {
        match &self.storage {
            Storage::Flat => 4 * self.stored_dim(),
            Storage::Product { subspaces, .. } => *subspaces,
        }
    }

    fn check(&self) -> Result<(), FaissError> {
        let mut width = self.dim;
        let shape = |what, found, expected: String| Err(FaissError::Shape { what, found, expected });
        for transform in &self.transforms {
            let Transform::Linear { input, weight, bias } = transform else { continue };
            if *input != width || width == 0 {
                return shape("a transform's input", *input, width.to_string());
            }
            if weight.is_empty() || !weight.len().is_multiple_of(width) {
                return shape("a transform's weight", weight.len(), format!("a multiple of {width}"));
            }
            width = weight.len() / width;
            if !bias.is_empty() && bias.len() != width {
                return shape("a transform's bias", bias.len(), width.to_string());
            }
        }
        match &self.storage {
            Storage::Product { subspaces, .. } if *subspaces == 0 || !width.is_multiple_of(*subspaces) => {
                shape("sub-spaces", *subspaces, format!("a divisor of {width}"))
            }
            Storage::Product { centroids, .. } if centroids.len() != 256 * width => {
                shape("centroids", centroids.len(), (256 * width).to_string())
            }
            _ => Ok(()),
        }
    }

    /// Writes the index. `fill` writes the stored vectors, [`FaissIndex::code_bytes`] each; `ids` name them in the
    /// same order and are what a search gives back.
    pub fn write<W: Write, E: From<FaissError>>(
        &self,
        out: &mut W,
        fill: impl FnOnce(&mut dyn Write) -> Result<(), E>,
        ids: impl ExactSizeIterator<Item = i64>,
    ) -> Result<(), E> {
        self.check()?;
        if ids.len() as u64 != self.count {
            let expected = self.count.to_string();
            return Err(FaissError::Shape { what: "ids", found: ids.len(), expected }.into());
        }
        self.write_head(out).map_err(FaissError::Io)?;
        let mut counted = Counted { inner: out, bytes: 0 };
        fill(&mut counted)?;
        let (written, due) = (counted.bytes, self.count * self.code_bytes() as u64);
        if written != due {
            let what = "bytes of vectors";
            return Err(FaissError::Shape { what, found: written as usize, expected: due.to_string() }.into());
        }
        self.write_tail(out, ids).map_err(|error| FaissError::Io(error).into())
    }

    fn write_head(&self, out: &mut impl Write) -> io::Result<()> {
        out.write_all(b"IxMp")?;
        self.header(out, self.dim)?;
        if !self.transforms.is_empty() {
            out.write_all(b"IxPT")?;
            self.header(out, self.dim)?;
            out.write_all(&(self.transforms.len() as i32).to_le_bytes())?;
            let mut width = self.dim;
            for transform in &self.transforms {
                width = write_transform(out, transform, width)?;
            }
        }
        let width = self.stored_dim();
        match &self.storage {
            Storage::Flat => {
                out.write_all(b"IxFI")?;
                self.header(out, width)?;
                out.write_all(&(self.count * width as u64).to_le_bytes())
            }
            Storage::Product { subspaces, centroids } => {
                out.write_all(b"IxPq")?;
                self.header(out, width)?;
                for size in [width, *subspaces, 8] {
                    out.write_all(&(size as u64).to_le_bytes())?;
                }
                write_floats(out, centroids)?;
                out.write_all(&(self.count * *subspaces as u64).to_le_bytes())
            }
        }
    }

    fn write_tail(&self, out: &mut impl Write, ids: impl ExactSizeIterator<Item = i64>) -> io::Result<()> {
        if matches!(self.storage, Storage::Product { .. }) {
            // Plain search, no encoded signs, no polysemous threshold.
            out.write_all(&0i32.to_le_bytes())?;
            out.write_all(&[0])?;
            out.write_all(&0i32.to_le_bytes())?;
        }
        out.write_all(&(ids.len() as u64).to_le_bytes())?;
        for id in ids {
            out.write_all(&id.to_le_bytes())?;
        }
        out.flush()
    }

    fn header(&self, out: &mut impl Write, dim: usize) -> io::Result<()> {
        out.write_all(&(dim as i32).to_le_bytes())?;
        out.write_all(&(self.count as i64).to_le_bytes())?;
        out.write_all(&UNUSED.to_le_bytes())?;
        out.write_all(&UNUSED.to_le_bytes())?;
        out.write_all(&[1])?;
        out.write_all(&INNER_PRODUCT.to_le_bytes())
    }
}

/// Writes a transform of `width` dimensions and gives the width behind it.
fn write_transform(out: &mut impl Write, transform: &Transform, width: usize) -> io::Result<usize> {
    let output = match transform {
        Transform::Linear { weight, bias, .. } => {
            out.write_all(b"LTra")?;
            out.write_all(&[u8::from(!bias.is_empty())])?;
            write_floats(out, weight)?;
            write_floats(out, bias)?;
            weight.len() / width
        }
        Transform::Normalize => {
            out.write_all(b"VNrm")?;
            out.write_all(&2f32.to_le_bytes())?;
            width
        }
    };
    out.write_all(&(width as i32).to_le_bytes())?;
    out.write_all(&(output as i32).to_le_bytes())?;
    out.write_all(&[1])?;
    Ok(output)
}

fn write_floats(out: &mut impl Write, values: &[f32]) -> io::Result<()> {
    out.write_all(&(values.len() as u64).to_le_bytes())?;
    values.iter().try_for_each(|value| out.write_all(&value.to_le_bytes()))
}

/// Counts what goes through.
struct Counted<'a, W> {
    inner: &'a mut W,
    bytes: u64,
}

impl<W: Write> Write for Counted<'_, W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buffer)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(index: &FaissIndex, codes: &[u8], ids: &[i64]) -> Result<Vec<u8>, FaissError> {
        let mut out = Vec::new();
        let fill = |out: &mut dyn Write| Ok(out.write_all(codes)?);
        index.write::<_, FaissError>(&mut out, fill, ids.iter().copied())?;
        Ok(out)
    }

    /// What `faiss.write_index` 1.15 gives for `IndexIDMap(IndexFlatIP(4))` over rows 0..4, 4..8, 8..12 and these ids.
    const FLAT: &str = "49784d70 04000000 0300000000000000 0000100000000000 0000100000000000 01 00000000
        49784649 04000000 0300000000000000 0000100000000000 0000100000000000 01 00000000 0c00000000000000
        00000000 0000803f 00000040 00004040 00008040 0000a040 0000c040 0000e040 00000041 00001041 00002041 00003041
        0300000000000000 0700000000000000 0800000000000000 0900000000000000";

    #[test]
    fn a_flat_index_has_the_bytes_that_faiss_writes() {
        let index = FaissIndex { dim: 4, transforms: Vec::new(), storage: Storage::Flat, count: 3 };
        let codes: Vec<u8> = (0..12).flat_map(|value| (value as f32).to_le_bytes()).collect();
        let hex: String =
            write(&index, &codes, &[7, 8, 9]).unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, FLAT.split_whitespace().collect::<String>());
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let linear = |input, weight: usize, bias: usize| Transform::Linear {
            input,
            weight: vec![0.0; weight],
            bias: vec![0.0; bias],
        };
        let product = |subspaces, centroids| Storage::Product { subspaces, centroids: vec![0.0; centroids] };
        let check = |transforms: Vec<Transform>, storage, codes: usize, ids: &[i64], word: &str| {
            let index = FaissIndex { dim: 4, transforms, storage, count: 1 };
            match write(&index, &vec![0; codes], ids) {
                Ok(_) => assert_eq!(word, ""),
                Err(error) => {
                    assert!(!word.is_empty() && error.to_string().contains(word), "{error} lacks {word:?}")
                }
            }
        };
        check(vec![linear(4, 8, 2), Transform::Normalize], Storage::Flat, 8, &[0], "");
        check(vec![linear(4, 8, 0)], product(2, 512), 2, &[0], "");
        check(vec![linear(3, 6, 0)], Storage::Flat, 8, &[0], "input");
        check(vec![linear(4, 7, 0)], Storage::Flat, 8, &[0], "weight");
        check(vec![linear(4, 8, 3)], Storage::Flat, 8, &[0], "bias");
        check(vec![], product(3, 1024), 3, &[0], "sub-spaces");
        check(vec![], product(2, 1000), 2, &[0], "centroids");
        check(vec![], Storage::Flat, 15, &[0], "bytes of vectors");
        check(vec![], Storage::Flat, 16, &[0, 1], "ids");
    }
}
