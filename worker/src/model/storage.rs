//! Tensors in safetensors files, one file or several shards, read one at a time: nothing in a header is believed
//! before it is checked against the file's own length.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use burn::tensor::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use super::flat::ParamLayout;
use super::weights::{WeightsError, transpose};

/// Largest header that is read: that of a model with a million tensors.
const HEADER_BYTES: u64 = 100 << 20;
/// Largest index of shards that is read.
const INDEX_BYTES: u64 = 64 << 20;

/// Where a tensor lies.
#[derive(Debug)]
struct Place {
    file: usize,
    info: TensorInfo,
    /// Where its data begins in the file.
    offset: u64,
}

/// The tensors of a model.
#[derive(Debug)]
pub(super) struct TensorFiles {
    /// The file, or the index of the shards.
    path: PathBuf,
    files: Vec<(PathBuf, File)>,
    tensors: BTreeMap<String, Place>,
}

impl TensorFiles {
    /// Opens one file.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let mut files = Self { path: path.to_owned(), files: Vec::new(), tensors: BTreeMap::new() };
        files.add(path)?;
        Ok(files)
    }

    /// Opens a folder's `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    pub fn open_folder(folder: &Path) -> Result<Self, WeightsError> {
        let [whole, index] =
            ["model.safetensors", "model.safetensors.index.json"].map(|name| folder.join(name));
        if whole.exists() || !index.exists() {
            return Self::open(&whole);
        }
        let damaged = |cause: String| WeightsError::Damaged { path: index.clone(), cause };
        let io = |source| WeightsError::Io { path: index.clone(), source };
        if std::fs::metadata(&index).map_err(io)?.len() > INDEX_BYTES {
            return Err(damaged(format!("more than {INDEX_BYTES} bytes")));
        }
        let bytes = std::fs::read(&index).map_err(io)?;
        let json: serde_json::Value =
            serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        let map = json["weight_map"].as_object().ok_or_else(|| damaged("no weight_map".to_owned()))?;
        let mut shards: Vec<&str> = Vec::new();
        for (tensor, shard) in map {
            let plain = |name: &&str| !name.is_empty() && !name.contains(['/', '\\']) && *name != "..";
            let shard = shard.as_str().filter(plain);
            shards.push(shard.ok_or_else(|| damaged(format!("tensor {tensor} is in no plain file")))?);
        }
        shards.sort_unstable();
        shards.dedup();
        let mut files = Self { path: index.clone(), files: Vec::new(), tensors: BTreeMap::new() };
        for shard in shards {
            files.add(&folder.join(shard))?;
        }
        if let Some(tensor) = map.keys().find(|tensor| !files.tensors.contains_key(*tensor)) {
            return Err(WeightsError::Missing { path: index, tensor: tensor.clone() });
        }
        Ok(files)
    }

    fn add(&mut self, path: &Path) -> Result<(), WeightsError> {
        let io = |source| WeightsError::Io { path: path.to_owned(), source };
        let damaged = |cause: String| WeightsError::Damaged { path: path.to_owned(), cause };
        let file = File::open(path).map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len();
        let mut length = [0; 8];
        if bytes < 8 {
            return Err(damaged(format!("{bytes} bytes are no header")));
        }
        file.read_exact_at(&mut length, 0).map_err(io)?;
        let length = u64::from_le_bytes(length);
        if length > HEADER_BYTES || length > bytes - 8 {
            return Err(damaged(format!("its header would be {length} bytes, the file has {bytes}")));
        }
        let mut header = vec![0; length as usize];
        file.read_exact_at(&mut header, 8).map_err(io)?;
        let header: Metadata = serde_json::from_slice(&header).map_err(|error| damaged(error.to_string()))?;
        let mut infos: Vec<_> = header.tensors().into_iter().collect();
        infos.sort_by_key(|(_, info)| info.data_offsets);
        let mut end = 0;
        for (name, info) in infos {
            if info.data_offsets.0 != end
                || Some(info.data_offsets.1) != size(info).and_then(|size| size.checked_add(end))
            {
                return Err(damaged(format!(
                    "tensor {name} of shape {:?} lies at bytes {:?}, where byte {end} comes next",
                    info.shape, info.data_offsets
                )));
            }
            let place = Place { file: self.files.len(), info: info.clone(), offset: 8 + length + end as u64 };
            end = info.data_offsets.1;
            if self.tensors.insert(name.clone(), place).is_some() {
                return Err(damaged(format!("tensor {name} is in two shards")));
            }
        }
        if end as u64 != bytes - 8 - length {
            return Err(damaged(format!("its tensors take {end} bytes, {} are there", bytes - 8 - length)));
        }
        self.files.push((path.to_owned(), file));
        Ok(())
    }

    /// The file, or the index of the shards.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tensors' names in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The values of a tensor, which must have this shape and be finite.
    pub fn read(&self, tensor: &str, expected: &[usize]) -> Result<Vec<f32>, WeightsError> {
        let Some(place) = self.tensors.get(tensor) else {
            return Err(WeightsError::Missing { path: self.path.clone(), tensor: tensor.to_owned() });
        };
        let (path, file) = &self.files[place.file];
        let (path, tensor) = (path.clone(), tensor.to_owned());
        let Place { info, offset, .. } = place;
        if info.shape != expected {
            let (found, expected) = (info.shape.clone(), expected.to_vec());
            return Err(WeightsError::Shape { path, tensor, found, expected });
        }
        let mut bytes = vec![0; info.data_offsets.1 - info.data_offsets.0];
        if let Err(source) = file.read_exact_at(&mut bytes, *offset) {
            return Err(WeightsError::Io { path, source });
        }
        let Some(values) = decode(info.dtype, &bytes) else {
            return Err(WeightsError::Dtype { path, tensor, found: format!("{:?}", info.dtype) });
        };
        match values.iter().position(|value| !value.is_finite()) {
            Some(position) => {
                let value = values[position];
                Err(WeightsError::NotFinite { path, tensor, position, value })
            }
            None => Ok(values),
        }
    }
}

/// Bytes that a tensor takes.
fn size(info: &TensorInfo) -> Option<usize> {
    let values = info.shape.iter().try_fold(1usize, |product, width| product.checked_mul(*width))?;
    values.checked_mul(info.dtype.bitsize()).map(|bits| bits.div_ceil(8))
}

/// Floats of 16 or 32 bits as 32-bit floats; nothing for other types.
pub(super) fn decode(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    let pairs = || bytes.as_chunks::<2>().0.iter();
    match dtype {
        Dtype::F32 => Some(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
        Dtype::F16 => Some(pairs().map(|b| f16::from_le_bytes(*b).to_f32()).collect()),
        Dtype::BF16 => Some(pairs().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()),
        _ => None,
    }
}

/// Reads the parameters of `layout` into one flat vector. `rename` gives a tensor's name in the layout, or nothing for
/// one that is left out on purpose; a tensor whose name the layout lacks is an error.
pub(super) fn read_layout(
    files: &TensorFiles,
    layout: &ParamLayout,
    rename: impl Fn(&str) -> Option<String>,
) -> Result<Vec<f32>, WeightsError> {
    let mut names = BTreeMap::new();
    for name in files.names() {
        let Some(path) = rename(name) else { continue };
        if layout.get(&path).is_none() {
            return Err(WeightsError::Unexpected { path: files.path().to_owned(), tensor: name.to_owned() });
        }
        names.insert(path, name);
    }
    let mut flat = vec![0.0; layout.len()];
    for entry in layout.entries() {
        let Some(name) = names.get(&entry.path) else {
            return Err(WeightsError::Missing { path: files.path().to_owned(), tensor: entry.path.clone() });
        };
        let values = files.read(name, &entry.file_shape())?;
        let target = &mut flat[entry.range()];
        if entry.transposed {
            transpose(&values, entry.shape[1], entry.shape[0], target);
        } else {
            target.copy_from_slice(&values);
        }
    }
    Ok(flat)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of this header and so many bytes of data.
    fn bytes(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    fn check(result: Result<TensorFiles, WeightsError>, words: &[&str]) {
        match result {
            Ok(_) => assert!(words.is_empty(), "{words:?} were expected"),
            Err(error) => {
                let message = error.to_string();
                assert!(!words.is_empty(), "{message}");
                words.iter().for_each(|word| assert!(message.contains(word), "{message:?} lacks {word:?}"));
            }
        }
    }

    #[test]
    fn hostile_headers_are_refused_before_memory_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let one = |name: &str, shape: &str, offsets: &str| {
            format!(r#""{name}":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}"#)
        };
        let file = |tensors: &[String], data: usize, words: &[&str]| {
            std::fs::write(&path, bytes(&format!("{{{}}}", tensors.join(",")), data)).unwrap();
            check(TensorFiles::open(&path), words);
        };
        let refused = ["model.safetensors", "damaged"];
        file(&[one("a", "[2]", "[0,8]")], 8, &[]);
        file(&[one("a", "[2]", "[0,8]"), one("b", "[1]", "[8,12]")], 12, &[]);
        file(&[one("a", "[4294967296,4294967296]", "[0,8]")], 8, &refused);
        file(&[one("a", "[2]", "[0,8]"), one("b", "[2]", "[4,12]")], 12, &refused);
        file(&[one("a", "[2]", "[0,8]"), one("b", "[2]", "[12,20]")], 20, &refused);
        file(&[one("a", "[4]", "[0,16]")], 8, &refused);
        file(&[one("a", "[2]", "[0,8]")], 9, &refused);
        file(&[one("a", "[1]", "[0,18446744073709551615]")], 8, &refused);
        file(&[one("a", "[2]", "[8,0]")], 8, &refused);
        for whole in [vec![0xff; 64], bytes("[]", 0), bytes("{", 4), vec![1, 2, 3]] {
            std::fs::write(&path, whole).unwrap();
            check(TensorFiles::open(&path), &refused);
        }
    }

    #[test]
    fn shards_are_one_model_and_their_index_is_checked() {
        let dir = tempfile::tempdir().unwrap();
        let tensor =
            |name: &str| format!(r#"{{"{name}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}"#);
        let write = |name: &str, text: Vec<u8>| std::fs::write(dir.path().join(name), text).unwrap();
        let index = |map: &str| {
            let text = format!(r#"{{"weight_map":{map}}}"#);
            write("model.safetensors.index.json", text.into_bytes());
        };
        write("x.safetensors", bytes(&tensor("a"), 4));
        write("y.safetensors", bytes(&tensor("b"), 4));
        write("z.safetensors", bytes(&tensor("a"), 4));
        index(r#"{"a":"x.safetensors","b":"y.safetensors"}"#);
        let files = TensorFiles::open_folder(dir.path()).unwrap();
        assert_eq!(files.read("b", &[1]).unwrap(), [0.0]);
        assert!(files.read("c", &[1]).unwrap_err().to_string().contains("no tensor c"));
        let wrong = files.read("a", &[2]).unwrap_err().to_string();
        assert!(wrong.contains("x.safetensors") && wrong.contains("tensor a"), "{wrong}");
        for (map, words) in [
            (r#"{"a":"x.safetensors","b":"z.safetensors"}"#, ["tensor a", "two shards"]),
            (r#"{"a":"x.safetensors","c":"y.safetensors"}"#, ["index.json", "no tensor c"]),
            (r#"{"a":"../x.safetensors"}"#, ["index.json", "plain file"]),
            (r#"{"a":"none.safetensors"}"#, ["none.safetensors", "cannot access"]),
            (r#"{"a":3}"#, ["index.json", "plain file"]),
        ] {
            index(map);
            check(TensorFiles::open_folder(dir.path()), &words);
        }
    }
}
