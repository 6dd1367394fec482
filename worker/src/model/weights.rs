//! Weights as safetensors files of a whole layout, with reproducible bytes; [`super::storage`] reads single tensors.
//!
//! Only in these two is the weight of a linear layer transposed between the file's [output, input] and our
//! [input, output].

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use burn::tensor::f16;

use super::flat::{ParamEntry, ParamLayout};
use super::names::Architecture;
use super::storage::{TensorFiles, read_layout};

/// Why weights could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// Reading or writing failed.
    #[error("cannot access {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not a whole safetensors file.
    #[error("{path} is damaged or truncated ({cause}); fetch it again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        cause: String,
    },
    /// A tensor that the model needs is not there.
    #[error("{path} has no tensor {tensor}; its config.json describes another model")]
    Missing {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor that the model does not have.
    #[error("{path} holds tensor {tensor}, which its config.json leaves no place for")]
    Unexpected {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor of another shape.
    #[error("{path}: tensor {tensor} has shape {found:?}, its config.json says {expected:?}")]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape of the model.
        expected: Vec<usize>,
    },
    /// A number type that is not supported.
    #[error("{path}: tensor {tensor} has type {found}; convert it to F32, F16 or BF16")]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Type in the file.
        found: String,
    },
    /// A weight that is NaN or infinite.
    #[error(
        "{path}: tensor {tensor} has {value} at position {position}; the training that wrote it diverged"
    )]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Index in the tensor's data.
        position: usize,
        /// The value.
        value: f32,
    },
    /// A layer behind the encoder whose configuration is not supported.
    #[error("{path}: {message}")]
    Layers {
        /// The file that describes it.
        path: PathBuf,
        /// What is wrong, and what is supported.
        message: String,
    },
    /// A layer was asked for that the encoder does not have.
    #[error("layer {layer} was asked for, {path} has layers 0 to {last}")]
    Layer {
        /// Directory of the encoder.
        path: PathBuf,
        /// The layer asked for.
        layer: usize,
        /// The last layer there is.
        last: usize,
    },
}

/// The number type of a written file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileDtype {
    /// 32-bit floats.
    F32,
    /// 16-bit floats, rounded to nearest even.
    F16,
}

/// Reads the parameters of `layout` from a safetensors file into one flat vector. The file must hold exactly those,
/// apart from tensors that retrieval does not use (pooler, language-model head, position ids).
pub fn read_parameters(path: &Path, layout: &ParamLayout) -> Result<Vec<f32>, WeightsError> {
    read_layout(&TensorFiles::open(path)?, layout, |name| Architecture::Bert.layout_name(name))
}

/// Writes the parameters of `layout` under Hugging Face's names, transposed to its layout.
///
/// # Panics
/// When `params` does not have the length of the layout.
pub fn write_parameters(
    path: &Path,
    layout: &ParamLayout,
    params: &[f32],
    dtype: FileDtype,
    metadata: &BTreeMap<String, String>,
) -> Result<(), WeightsError> {
    write_named(path, layout, params, dtype, metadata, |name| name.to_owned())
}

/// [`write_parameters`] with the names that `rename` gives.
///
/// # Panics
/// When `params` does not have the length of the layout.
pub(super) fn write_named(
    path: &Path,
    layout: &ParamLayout,
    params: &[f32],
    dtype: FileDtype,
    metadata: &BTreeMap<String, String>,
    rename: impl Fn(&str) -> String,
) -> Result<(), WeightsError> {
    assert_eq!(params.len(), layout.len(), "the parameters must fit the layout");
    let to_file = |entry: &ParamEntry| {
        let values = &params[entry.range()];
        if !entry.transposed {
            return values.to_vec();
        }
        let mut target = vec![0.0; values.len()];
        transpose(values, entry.shape[0], entry.shape[1], &mut target);
        target
    };
    let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> = layout
        .entries()
        .iter()
        .map(|entry| (rename(&entry.path), entry.file_shape(), to_file(entry)))
        .collect();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    let borrowed: Vec<(&str, &[usize], &[f32])> = tensors
        .iter()
        .map(|(name, shape, values)| (name.as_str(), shape.as_slice(), values.as_slice()))
        .collect();
    write_safetensors(path, &borrowed, dtype, metadata)
}

/// Writes named tensors (name, shape, values) to a safetensors file, which appears whole or not at all. The same
/// tensors give the same bytes: the `safetensors` crate orders metadata by a random hash, so the header is written
/// here.
///
/// # Panics
/// When a tensor's values do not fit its shape.
pub fn write_safetensors(
    path: &Path,
    tensors: &[(&str, &[usize], &[f32])],
    dtype: FileDtype,
    metadata: &BTreeMap<String, String>,
) -> Result<(), WeightsError> {
    let (type_name, width) = match dtype {
        FileDtype::F32 => ("F32", 4),
        FileDtype::F16 => ("F16", 2),
    };
    let mut header = BTreeMap::new();
    if !metadata.is_empty() {
        header.insert("__metadata__", serde_json::json!(metadata));
    }
    let mut offset = 0;
    for (name, shape, values) in tensors {
        assert_eq!(
            shape.iter().product::<usize>(),
            values.len(),
            "tensor {name} must fit its shape {shape:?}"
        );
        let end = offset + values.len() * width;
        header.insert(
            name,
            serde_json::json!({"dtype": type_name, "shape": shape, "data_offsets": [offset, end]}),
        );
        offset = end;
    }
    let mut header = serde_json::to_vec(&header).expect("a map of json values serializes");
    // The data begins at a multiple of eight so that readers may map it.
    header.resize(header.len().next_multiple_of(8), b' ');

    let write = || -> std::io::Result<()> {
        let directory =
            path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = std::io::BufWriter::new(tempfile::NamedTempFile::new_in(directory)?);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        for (_, _, values) in tensors {
            match dtype {
                FileDtype::F32 => values.iter().try_for_each(|value| file.write_all(&value.to_le_bytes()))?,
                FileDtype::F16 => values
                    .iter()
                    .try_for_each(|value| file.write_all(&f16::from_f32(*value).to_le_bytes()))?,
            }
        }
        let file = file.into_inner().map_err(|error| error.into_error())?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    write().map_err(|source| WeightsError::Io { path: path.to_owned(), source })
}

/// Transposes a row-major [rows, columns] matrix.
pub(super) fn transpose(source: &[f32], rows: usize, columns: usize, target: &mut [f32]) {
    // In blocks, so that both sides stay in the cache.
    const BLOCK: usize = 32;
    for row_block in (0..rows).step_by(BLOCK) {
        for column_block in (0..columns).step_by(BLOCK) {
            for row in row_block..(row_block + BLOCK).min(rows) {
                for column in column_block..(column_block + BLOCK).min(columns) {
                    target[column * rows + row] = source[row * columns + column];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::bf16;
    use safetensors::{Dtype, SafeTensors};

    use super::super::flat::{ParamKind, ParamSpec};
    use super::super::storage::decode;
    use super::*;

    fn layout() -> ParamLayout {
        ParamLayout::new(vec![
            ParamSpec::new("embeddings.LayerNorm.weight", &[2], ParamKind::Scale),
            ParamSpec::new("layer.weight", &[2, 3], ParamKind::Linear),
        ])
    }

    const FLAT: [f32; 8] = [0.5, -2.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0];

    type Tensors<'a> = Vec<(&'a str, &'a [usize], &'a [f32])>;

    fn check(change: impl FnOnce(&mut Tensors), words: &[&str]) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let mut tensors: Tensors = vec![
            ("bert.embeddings.LayerNorm.gamma", &[2], &[0.5, -2.0]),
            ("bert.layer.weight", &[3, 2], &[1.0, 4.0, 2.0, 5.0, 3.0, 6.0]),
            ("bert.pooler.dense.bias", &[1], &[0.0]),
            ("cls.predictions.bias", &[1], &[f32::NAN]),
            ("bert.embeddings.position_ids", &[1], &[0.0]),
        ];
        change(&mut tensors);
        write_safetensors(&path, &tensors, FileDtype::F32, &BTreeMap::new()).unwrap();
        match read_parameters(&path, &layout()) {
            Ok(flat) => assert!(words.is_empty() && flat == FLAT, "{flat:?} instead of {words:?}"),
            Err(error) => {
                let message = error.to_string();
                assert!(!words.is_empty(), "{message}");
                for word in words.iter().chain(&["model.safetensors"]) {
                    assert!(message.contains(word), "{message:?} lacks {word:?}");
                }
            }
        }
    }

    #[test]
    fn reading_checks_names_shapes_and_values() {
        check(|_| (), &[]);
        check(|tensors| tensors.truncate(1), &["no tensor layer.weight"]);
        check(|tensors| tensors[1].1 = &[2, 3], &["layer.weight", "[2, 3]", "[3, 2]"]);
        check(|tensors| tensors[0].2 = &[0.5, f32::INFINITY], &["LayerNorm.gamma", "inf", "position 1"]);
        check(|tensors| tensors.push(("bert.layer.bias", &[1], &[0.0])), &["layer.bias", "no place"]);
    }

    #[test]
    fn damaged_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let message = || read_parameters(&path, &layout()).unwrap_err().to_string();
        assert!(message().contains("cannot access"));
        write_parameters(&path, &layout(), &FLAT, FileDtype::F32, &BTreeMap::new()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for cut in [0, 7, 20, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            assert!(message().contains("damaged"), "cut at {cut}: {}", message());
        }
        std::fs::write(&path, [0xff; 64]).unwrap();
        assert!(message().contains("damaged"));
        // Headers that say more than there is, ask for memory, or put two tensors in one place.
        let with_header = |header: &str, data: usize| {
            let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
            bytes.extend(header.as_bytes());
            bytes.resize(bytes.len() + data, 0);
            std::fs::write(&path, bytes).unwrap();
            message()
        };
        let tensor = |shape: &str, offsets: &str| {
            format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        for (shape, offsets) in [
            ("[18446744073709551615, 18446744073709551615]", "[0, 4]"),
            ("[4611686018427387905]", "[0, 4]"),
            ("[1]", "[0, 18446744073709551615]"),
            ("[1]", "[4, 0]"),
            ("[1]", "[8, 12]"),
            ("[-1]", "[0, 4]"),
        ] {
            let told = with_header(&tensor(shape, offsets), 4);
            assert!(told.contains("damaged"), "{shape} {offsets}: {told}");
        }
        let overlapping = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
            "b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
        assert!(with_header(overlapping, 4).contains("damaged"));
        std::fs::write(&path, u64::MAX.to_le_bytes()).unwrap();
        assert!(message().contains("damaged"));
        let mut patched = bytes;
        let at = patched.windows(3).position(|window| window == b"F32").unwrap();
        patched[at] = b'I';
        std::fs::write(&path, &patched).unwrap();
        assert!(message().contains("has type I32"), "{}", message());
    }

    #[test]
    fn written_bytes_are_reproducible_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.safetensors");
        let metadata: BTreeMap<String, String> =
            [("format", "pt"), ("a", "1"), ("z", "2")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        for dtype in [FileDtype::F32, FileDtype::F16] {
            write_parameters(&path, &layout(), &FLAT, dtype, &metadata).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            write_parameters(&path, &layout(), &FLAT, dtype, &metadata).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), bytes);
            assert_eq!(read_parameters(&path, &layout()).unwrap(), FLAT);
            let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
            assert_eq!(header.metadata().as_ref().unwrap()["format"], "pt");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "temporary files are left");
    }

    #[test]
    fn sixteen_bit_values_decode() {
        let bf16_bytes: Vec<u8> =
            [1.5f32, -3.0].iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
        assert_eq!(decode(Dtype::BF16, &bf16_bytes).unwrap(), [1.5, -3.0]);
        assert!(decode(Dtype::I64, &[0; 8]).is_none());
    }
}
