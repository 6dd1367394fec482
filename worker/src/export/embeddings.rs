//! Embeddings for other programs: NumPy's `.npy` and Parquet with a list of floats in each row.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use parquet::basic::{Compression, LogicalType, Repetition, Type as PhysicalType};
use parquet::data_type::{ByteArray, ByteArrayType, FloatType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::Type;

use crate::matrix::Matrix;

/// The header of an `.npy` file (format 1.0) of 32-bit floats [rows, dim], which follow it row after row.
pub fn npy_header(rows: u64, dim: usize) -> Vec<u8> {
    let text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dim}), }}");
    // Magic, version and length take ten bytes; the whole is a multiple of 64 and ends with a new line.
    let padded = (10 + text.len() + 1).next_multiple_of(64) - 10;
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend((padded as u16).to_le_bytes());
    header.extend(text.as_bytes());
    header.resize(10 + padded - 1, b' ');
    header.push(b'\n');
    header
}

/// Writes the values of a block of vectors.
pub fn write_values(out: &mut (impl Write + ?Sized), vectors: &Matrix) -> io::Result<()> {
    let bytes: Vec<u8> = vectors.data().iter().flat_map(|value| value.to_le_bytes()).collect();
    out.write_all(&bytes)
}

/// A Parquet file {row, id, vector} that grows by a row group for each block.
pub struct ParquetEmbeddings {
    writer: SerializedFileWriter<BufWriter<File>>,
}

impl ParquetEmbeddings {
    /// Begins a file; `facts` go into its key-value metadata.
    pub fn create(path: &Path, facts: &[(&str, String)]) -> Result<Self, ParquetError> {
        let required =
            |name, kind| Type::primitive_type_builder(name, kind).with_repetition(Repetition::REQUIRED);
        let id =
            required("id", PhysicalType::BYTE_ARRAY).with_logical_type(Some(LogicalType::String)).build()?;
        let item = required("element", PhysicalType::FLOAT).build()?;
        let list = Type::group_type_builder("list")
            .with_repetition(Repetition::REPEATED)
            .with_fields(vec![Arc::new(item)])
            .build()?;
        let vector = Type::group_type_builder("vector")
            .with_repetition(Repetition::REQUIRED)
            .with_logical_type(Some(LogicalType::List))
            .with_fields(vec![Arc::new(list)])
            .build()?;
        let row = required("row", PhysicalType::INT64).build()?;
        let fields = vec![Arc::new(row), Arc::new(id), Arc::new(vector)];
        let schema = Type::group_type_builder("embeddings").with_fields(fields).build()?;
        let facts =
            facts.iter().map(|(key, value)| KeyValue::new((*key).to_owned(), value.clone())).collect();
        // Floats of embeddings neither repeat nor compress.
        let properties = WriterProperties::builder()
            .set_compression(Compression::UNCOMPRESSED)
            .set_dictionary_enabled(false)
            .set_created_by("retort".to_owned())
            .set_key_value_metadata(Some(facts))
            .build();
        let file = BufWriter::new(File::create(path)?);
        Ok(Self { writer: SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties))? })
    }

    /// Adds a block: the vectors of `ids`, whose first has row number `first_row`.
    pub fn add(&mut self, first_row: u64, ids: &[String], vectors: &Matrix) -> Result<(), ParquetError> {
        let mut group = self.writer.next_row_group()?;
        let mut column = group.next_column()?.ok_or_else(too_few)?;
        let rows: Vec<i64> = (first_row as i64..).take(ids.len()).collect();
        column.typed::<Int64Type>().write_batch(&rows, None, None)?;
        column.close()?;
        let mut column = group.next_column()?.ok_or_else(too_few)?;
        let names: Vec<_> = ids.iter().map(|id| ByteArray::from(id.as_str())).collect();
        column.typed::<ByteArrayType>().write_batch(&names, None, None)?;
        column.close()?;
        let mut column = group.next_column()?.ok_or_else(too_few)?;
        let dim = vectors.dim().max(1);
        // A new list begins where an element does not repeat the one before it.
        let repeats: Vec<i16> = (0..vectors.data().len()).map(|at| i16::from(at % dim != 0)).collect();
        let defined = vec![1i16; vectors.data().len()];
        column.typed::<FloatType>().write_batch(vectors.data(), Some(&defined), Some(&repeats))?;
        column.close()?;
        group.close()?;
        Ok(())
    }

    /// Ends the file.
    pub fn finish(self) -> Result<(), ParquetError> {
        self.writer.close().map(|_| ())
    }
}

fn too_few() -> ParquetError {
    ParquetError::General("the schema has three columns".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::RowAccessor;

    #[test]
    fn npy_headers_are_aligned() {
        for (rows, dim) in [(0, 1), (3, 4), (21_015_324, 768)] {
            let header = npy_header(rows, dim);
            assert_eq!(header.len() % 64, 0);
            assert_eq!(header.last(), Some(&b'\n'));
            assert_eq!(u16::from_le_bytes([header[8], header[9]]) as usize, header.len() - 10);
            assert!(String::from_utf8_lossy(&header[10..]).contains(&format!("({rows}, {dim})")));
        }
    }

    #[test]
    fn parquet_rows_hold_ids_and_vectors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("e.parquet");
        let mut file = ParquetEmbeddings::create(&path, &[("fingerprint", "f".to_owned())]).unwrap();
        file.add(0, &["a".to_owned(), "b c".to_owned()], &Matrix::new(2, 2, vec![1.0, 2.0, 3.0, 4.0]))
            .unwrap();
        file.add(2, &["d".to_owned()], &Matrix::new(1, 2, vec![5.0, 6.0])).unwrap();
        file.finish().unwrap();
        let reader = SerializedFileReader::new(File::open(&path).unwrap()).unwrap();
        let facts = reader.metadata().file_metadata().key_value_metadata().unwrap();
        assert!(facts.iter().any(|fact| fact.key == "fingerprint" && fact.value.as_deref() == Some("f")));
        let rows: Vec<_> = reader.get_row_iter(None).unwrap().map(Result::unwrap).collect();
        let found: Vec<_> = rows
            .iter()
            .map(|row| {
                (row.get_long(0).unwrap(), row.get_string(1).unwrap().clone(), row.get_list(2).unwrap().len())
            })
            .collect();
        assert_eq!(found, [(0, "a".to_owned(), 2), (1, "b c".to_owned(), 2), (2, "d".to_owned(), 2)]);
    }
}
