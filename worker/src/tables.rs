//! The tables between tasks, as Parquet: passages, questions, judgements, ranked lists and hard negatives.

use crate::search::topk::Hit;
use parquet::basic::{Compression, LogicalType, Repetition, Type as PhysicalType};
use parquet::column::reader::get_typed_column_reader;
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::Type;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A table that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The file system failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Not the Parquet table that was expected.
    #[error("{path}: not the expected table: {cause}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
}

/// The values of one column.
#[derive(Clone, Debug, PartialEq)]
enum Column {
    Text(Vec<String>),
    Integer(Vec<i64>),
    Real(Vec<f64>),
}

/// One shard of the corpus.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PassageShard {
    /// Row number of its first passage in the corpus.
    pub first_row: u64,
    /// The corpus' own ids.
    pub ids: Vec<String>,
    /// Titles; empty where there is none.
    pub titles: Vec<String>,
    /// Bodies.
    pub texts: Vec<String>,
}

impl PassageShard {
    /// What a model reads of passage `i`: "title text".
    pub fn model_text(&self, i: usize) -> String {
        if self.titles[i].is_empty() {
            self.texts[i].clone()
        } else {
            format!("{} {}", self.titles[i], self.texts[i])
        }
    }

    /// Writes the shard.
    pub fn write(&self, path: &Path) -> Result<(), TableError> {
        let rows = (self.first_row..).take(self.ids.len()).map(|row| row as i64).collect();
        write(
            path,
            vec![
                ("row", Column::Integer(rows)),
                ("id", Column::Text(self.ids.clone())),
                ("title", Column::Text(self.titles.clone())),
                ("text", Column::Text(self.texts.clone())),
            ],
        )
    }

    /// Reads a shard.
    pub fn read(path: &Path) -> Result<Self, TableError> {
        let [row, id, title, text] = read(path, ["row", "id", "title", "text"])?;
        let rows = integers(path, row)?;
        let first_row = rows.first().copied().unwrap_or(0) as u64;
        Ok(Self { first_row, ids: texts(path, id)?, titles: texts(path, title)?, texts: texts(path, text)? })
    }
}

/// One shard of the questions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QueryShard {
    /// Row number of its first question.
    pub first_row: u64,
    /// Their own ids.
    pub ids: Vec<String>,
    /// Their texts.
    pub texts: Vec<String>,
    /// Accepted answers; empty where there are none.
    pub answers: Vec<Vec<String>>,
}

impl QueryShard {
    /// Writes the shard; answers are JSON lists.
    pub fn write(&self, path: &Path) -> Result<(), TableError> {
        let rows = (self.first_row..).take(self.ids.len()).map(|row| row as i64).collect();
        let answers = self.answers.iter().map(|list| serde_json::json!(list).to_string()).collect();
        write(
            path,
            vec![
                ("row", Column::Integer(rows)),
                ("id", Column::Text(self.ids.clone())),
                ("text", Column::Text(self.texts.clone())),
                ("answers", Column::Text(answers)),
            ],
        )
    }

    /// Reads a shard.
    pub fn read(path: &Path) -> Result<Self, TableError> {
        let [row, id, text, answers] = read(path, ["row", "id", "text", "answers"])?;
        let first_row = integers(path, row)?.first().copied().unwrap_or(0) as u64;
        let parse = |list: String| {
            serde_json::from_str(&list).map_err(|error| format_error(path, format!("answers: {error}")))
        };
        let answers = texts(path, answers)?.into_iter().map(parse).collect::<Result<_, _>>()?;
        Ok(Self { first_row, ids: texts(path, id)?, texts: texts(path, text)?, answers })
    }
}

/// Stands for the passage in the judgement of a question that is judged by its answers alone. Such a row says that the
/// question belongs to the set; its grade is 0.
pub const NO_PASSAGE: u64 = u64::MAX;

/// One judgement: a passage is relevant to a question to some grade.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// The set it belongs to.
    pub set: String,
    /// The question's row.
    pub query: u64,
    /// The passage's row, or [`NO_PASSAGE`].
    pub passage: u64,
    /// Its grade; above 0 is relevant.
    pub grade: i64,
}

/// Writes judgements.
pub fn write_judgements(path: &Path, judgements: &[Judgement]) -> Result<(), TableError> {
    let integer = |value: fn(&Judgement) -> i64| Column::Integer(judgements.iter().map(value).collect());
    write(
        path,
        vec![
            ("set", Column::Text(judgements.iter().map(|judgement| judgement.set.clone()).collect())),
            ("query_row", integer(|judgement| judgement.query as i64)),
            ("passage_row", integer(|judgement| judgement.passage as i64)),
            ("grade", integer(|judgement| judgement.grade)),
        ],
    )
}

/// Reads judgements.
pub fn read_judgements(path: &Path) -> Result<Vec<Judgement>, TableError> {
    let [set, query, passage, grade] = read(path, ["set", "query_row", "passage_row", "grade"])?;
    let (query, passage, grade) = (integers(path, query)?, integers(path, passage)?, integers(path, grade)?);
    let zipped = texts(path, set)?.into_iter().zip(query).zip(passage.into_iter().zip(grade));
    Ok(zipped
        .map(|((set, query), (passage, grade))| Judgement {
            set,
            query: query as u64,
            passage: passage as u64,
            grade,
        })
        .collect())
}

/// One hard negative of a question.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NegativeRow {
    /// The question's row.
    pub query: u64,
    /// The passage's row.
    pub passage: u64,
    /// The teacher's score; NaN where it has none.
    pub score: f64,
}

/// Writes hard negatives.
pub fn write_negatives(path: &Path, negatives: &[NegativeRow]) -> Result<(), TableError> {
    let integer = |value: fn(&NegativeRow) -> u64| negatives.iter().map(|row| value(row) as i64).collect();
    write(
        path,
        vec![
            ("query_row", Column::Integer(integer(|row| row.query))),
            ("passage_row", Column::Integer(integer(|row| row.passage))),
            ("score", Column::Real(negatives.iter().map(|row| row.score).collect())),
        ],
    )
}

/// Reads hard negatives.
pub fn read_negatives(path: &Path) -> Result<Vec<NegativeRow>, TableError> {
    let [query, passage, score] = read(path, ["query_row", "passage_row", "score"])?;
    let Column::Real(score) = score else { return Err(format_error(path, "score is no number".to_owned())) };
    let rows = integers(path, query)?.into_iter().zip(integers(path, passage)?).zip(score);
    Ok(rows
        .map(|((query, passage), score)| NegativeRow { query: query as u64, passage: passage as u64, score })
        .collect())
}

/// Writes ranked lists, each best first.
pub fn write_rankings(path: &Path, lists: &[(u64, Vec<Hit>)]) -> Result<(), TableError> {
    let hits = || lists.iter().flat_map(|(query, hits)| hits.iter().map(move |hit| (*query, hit)));
    write(
        path,
        vec![
            ("query_row", Column::Integer(hits().map(|(query, _)| query as i64).collect())),
            ("passage_row", Column::Integer(hits().map(|(_, hit)| hit.row as i64).collect())),
            ("score", Column::Real(hits().map(|(_, hit)| f64::from(hit.score)).collect())),
        ],
    )
}

/// Reads ranked lists by question, each best first. A question without hits has no list.
pub fn read_rankings(path: &Path) -> Result<BTreeMap<u64, Vec<Hit>>, TableError> {
    let [query, passage, score] = read(path, ["query_row", "passage_row", "score"])?;
    let Column::Real(score) = score else { return Err(format_error(path, "score is no number".to_owned())) };
    let mut lists = BTreeMap::<u64, Vec<Hit>>::new();
    for ((query, row), score) in integers(path, query)?.into_iter().zip(integers(path, passage)?).zip(score) {
        lists.entry(query as u64).or_default().push(Hit { row: row as u64, score: score as f32 });
    }
    Ok(lists)
}

fn format_error(path: &Path, cause: String) -> TableError {
    TableError::Format { path: path.to_owned(), cause }
}

fn texts(path: &Path, column: Column) -> Result<Vec<String>, TableError> {
    match column {
        Column::Text(values) => Ok(values),
        _ => Err(format_error(path, "a column of text is none".to_owned())),
    }
}

fn integers(path: &Path, column: Column) -> Result<Vec<i64>, TableError> {
    match column {
        Column::Integer(values) => Ok(values),
        _ => Err(format_error(path, "a column of integers is none".to_owned())),
    }
}

fn write(path: &Path, columns: Vec<(&str, Column)>) -> Result<(), TableError> {
    let fail = |error: ParquetError| format_error(path, error.to_string());
    let field = |(name, column): &(&str, Column)| {
        let builder = match column {
            Column::Text(_) => Type::primitive_type_builder(name, PhysicalType::BYTE_ARRAY)
                .with_logical_type(Some(LogicalType::String)),
            Column::Integer(_) => Type::primitive_type_builder(name, PhysicalType::INT64),
            Column::Real(_) => Type::primitive_type_builder(name, PhysicalType::DOUBLE),
        };
        builder.with_repetition(Repetition::REQUIRED).build().map(Arc::new)
    };
    let fields = columns.iter().map(field).collect::<Result<_, _>>().map_err(fail)?;
    let schema = Type::group_type_builder("rows").with_fields(fields).build().map_err(fail)?;
    // The writer's version is left out of the file: it would change bytes without changing content.
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_created_by("retort".to_owned())
        .build();
    let file = File::create(path).map_err(|source| TableError::Io { path: path.to_owned(), source })?;
    let mut writer = SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties)).map_err(fail)?;
    let mut group = writer.next_row_group().map_err(fail)?;
    for (_, column) in columns {
        let mut target = group.next_column().map_err(fail)?.expect("the schema has a column for each");
        match column {
            Column::Text(values) => {
                let values: Vec<_> =
                    values.into_iter().map(|value| ByteArray::from(value.into_bytes())).collect();
                target.typed::<ByteArrayType>().write_batch(&values, None, None)
            }
            Column::Integer(values) => target.typed::<Int64Type>().write_batch(&values, None, None),
            Column::Real(values) => target.typed::<DoubleType>().write_batch(&values, None, None),
        }
        .map_err(fail)?;
        target.close().map_err(fail)?;
    }
    group.close().map_err(fail)?;
    writer.close().map_err(fail)?;
    Ok(())
}

fn read<const N: usize>(path: &Path, names: [&str; N]) -> Result<[Column; N], TableError> {
    let fail = |error: ParquetError| format_error(path, error.to_string());
    let file = File::open(path).map_err(|source| TableError::Io { path: path.to_owned(), source })?;
    let reader = SerializedFileReader::new(file).map_err(fail)?;
    let schema = reader.metadata().file_metadata().schema_descr_ptr();
    let found: Vec<_> = schema.columns().iter().map(|column| column.name().to_owned()).collect();
    if found != names {
        return Err(format_error(path, format!("its columns are {}", found.join(", "))));
    }
    let mut columns: Vec<_> = schema
        .columns()
        .iter()
        .map(|column| match column.physical_type() {
            PhysicalType::BYTE_ARRAY => Ok(Column::Text(Vec::new())),
            PhysicalType::INT64 => Ok(Column::Integer(Vec::new())),
            PhysicalType::DOUBLE => Ok(Column::Real(Vec::new())),
            other => Err(format_error(path, format!("a column is {other}"))),
        })
        .collect::<Result<_, _>>()?;
    for index in 0..reader.num_row_groups() {
        let group = reader.get_row_group(index).map_err(fail)?;
        let rows = group.metadata().num_rows() as usize;
        for (at, column) in columns.iter_mut().enumerate() {
            let source = group.get_column_reader(at).map_err(fail)?;
            match column {
                Column::Text(values) => {
                    let mut bytes = Vec::new();
                    let mut source = get_typed_column_reader::<ByteArrayType>(source);
                    source.read_records(rows, None, None, &mut bytes).map_err(fail)?;
                    for value in bytes {
                        let text = std::str::from_utf8(value.data());
                        values.push(text.map_err(|error| format_error(path, error.to_string()))?.to_owned());
                    }
                }
                Column::Integer(values) => {
                    let mut source = get_typed_column_reader::<Int64Type>(source);
                    source.read_records(rows, None, None, values).map_err(fail)?;
                }
                Column::Real(values) => {
                    let mut source = get_typed_column_reader::<DoubleType>(source);
                    source.read_records(rows, None, None, values).map_err(fail)?;
                }
            }
        }
    }
    Ok(columns.try_into().expect("as many columns as names"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_survive_their_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table.parquet");
        let passages = PassageShard {
            first_row: 7,
            ids: vec!["a".into(), "b".into()],
            titles: vec!["".into(), "Ägypten".into()],
            texts: vec!["x".into(), "東京\n".into()],
        };
        passages.write(&path).unwrap();
        assert_eq!(PassageShard::read(&path).unwrap(), passages);
        assert_eq!(passages.model_text(1), "Ägypten 東京\n");
        assert!(QueryShard::read(&path).is_err());
        let queries = QueryShard {
            first_row: 3,
            ids: vec!["q".into()],
            texts: vec!["who?".into()],
            answers: vec![vec!["\"me\"".into()]],
        };
        queries.write(&path).unwrap();
        assert_eq!(QueryShard::read(&path).unwrap(), queries);
        let judgements = vec![Judgement { set: "dev".into(), query: 3, passage: 8, grade: 1 }];
        write_judgements(&path, &judgements).unwrap();
        assert_eq!(read_judgements(&path).unwrap(), judgements);
        let negatives = vec![NegativeRow { query: 1, passage: 2, score: 0.5 }];
        write_negatives(&path, &negatives).unwrap();
        assert_eq!(read_negatives(&path).unwrap(), negatives);
        let hits =
            |hits: &[(u64, f32)]| hits.iter().map(|(row, score)| Hit { row: *row, score: *score }).collect();
        let lists: Vec<(u64, Vec<Hit>)> = vec![(3, hits(&[(9, 0.5), (1, 0.5)])), (8, hits(&[(2, -1.5)]))];
        write_rankings(&path, &lists).unwrap();
        assert_eq!(read_rankings(&path).unwrap(), lists.into_iter().collect());
        std::fs::write(&path, b"PAR1").unwrap();
        assert!(read_negatives(&path).is_err());
    }
}
