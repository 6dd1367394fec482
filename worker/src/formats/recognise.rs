//! What a file is, by its content.

use super::fields::{csv_fields, python_list, wrong_columns};
use super::record::Role;
use retort_common::spec::FileFormat;

/// How records are marked off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// One in a line.
    Lines,
    /// As CSV with tabs: columns in quotes may hold line ends.
    Csv,
    /// Objects of one JSON array.
    Array,
}

/// What a file's records look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The format.
    pub format: FileFormat,
    /// How records are marked off.
    pub framing: Framing,
    /// Where id, text and title stand (psgs).
    pub columns: [usize; 3],
}

/// Bytes that are looked at.
pub const SAMPLE_BYTES: usize = 256 << 10;
/// Lines that are looked at.
const SAMPLE_LINES: usize = 200;
/// Largest grade that a column of grades may hold to be taken for one.
const USUAL_GRADES: i64 = 10;

/// What a file is, by its first bytes; `given` overrides what they say of the format. `role` settles what content
/// leaves open and refuses a file that cannot serve for it.
pub fn recognise(sample: &[u8], given: Option<FileFormat>, role: Role) -> Result<Layout, String> {
    let sample = &sample[..sample.len().min(SAMPLE_BYTES)];
    let start = sample.iter().position(|byte| !byte.is_ascii_whitespace()).unwrap_or(sample.len());
    let body = &sample[start..];
    let is_array = body.first() == Some(&b'[')
        && body[1..]
            .iter()
            .find(|byte| !byte.is_ascii_whitespace())
            .is_none_or(|byte| matches!(byte, b'{' | b']'));
    let format = match given {
        Some(format) => format,
        None if body.first() == Some(&b'{') || is_array => json_format(body, is_array)?,
        None if body.starts_with(b"[") && !body.starts_with(b"['") => FileFormat::Triplets,
        None if body.is_empty() => return Err("is empty".to_owned()),
        None => table_format(sample, role)?,
    };
    use FileFormat as F;
    let framing = match format {
        F::Psgs | F::Qas => Framing::Csv,
        F::Jsonl | F::Dpr | F::Tevatron | F::FlagEmbedding | F::Triplets | F::ScoredLists if is_array => {
            Framing::Array
        }
        _ => Framing::Lines,
    };
    check_role(format, role)?;
    Ok(Layout { format, framing, columns: psgs_columns(format, sample) })
}

/// What a file serves for where nobody says: by its content, then by its name, as a collection and its queries have
/// the same form.
pub fn role_of(sample: &[u8], given: Option<FileFormat>, name: &str) -> Result<Role, String> {
    // No role refuses what it can tell apart by itself; a set refuses least.
    let format = match (given, recognise(sample, given, Role::Set)) {
        (Some(format), _) => format,
        (None, Ok(layout)) => layout.format,
        (None, Err(refused)) => match recognise(sample, given, Role::Passages) {
            Ok(layout) => layout.format,
            Err(_) => return Err(refused),
        },
    };
    let name = name.rsplit('/').next().unwrap_or(name).to_lowercase();
    let named = |words: &[&str]| words.iter().any(|word| name.contains(word));
    Ok(match format {
        FileFormat::Tsv | FileFormat::Jsonl if named(&["quer", "question", "topic"]) => Role::Questions,
        FileFormat::Psgs | FileFormat::Tsv => Role::Passages,
        FileFormat::Jsonl if named(&["corpus", "collection", "passage", "psgs", "doc"]) => Role::Passages,
        FileFormat::Jsonl if has_key(sample, "answers") || has_key(sample, "answer") => Role::Set,
        FileFormat::Jsonl => Role::Passages,
        _ => Role::Set,
    })
}

/// Refuses a format that cannot serve for a role.
fn check_role(format: FileFormat, role: Role) -> Result<(), String> {
    use FileFormat as F;
    let (serves, wanted) = match role {
        Role::Passages => (
            !matches!(format, F::Qas | F::Qrels | F::IdTriples | F::ScoredTriples),
            "passages: tsv, psgs, jsonl or a format that brings texts",
        ),
        Role::Questions => (matches!(format, F::Tsv | F::Jsonl), "questions: tsv or jsonl"),
        Role::Set => (
            !matches!(format, F::Tsv | F::Psgs),
            "a set: judgements, questions with answers, triples or training rows",
        ),
    };
    if serves {
        return Ok(());
    }
    Err(format!(
        "holds {format}, which cannot serve as {wanted}; name another file, or its format if that is not so"
    ))
}

/// Whether a JSON text has a key of this name somewhere. Within a string its quotes would be escaped.
fn has_key(text: &[u8], key: &str) -> bool {
    let quoted = format!("\"{key}\"");
    memchr::memmem::find_iter(text, quoted.as_bytes()).any(|at| {
        let rest = &text[at + quoted.len()..];
        rest.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b':')
    })
}

fn json_format(body: &[u8], is_array: bool) -> Result<FileFormat, String> {
    let end = if is_array { None } else { memchr::memchr(b'\n', body) };
    let first = &body[..end.unwrap_or(body.len())];
    let any = |keys: &[&str]| keys.iter().any(|key| has_key(first, key));
    let asks = any(&["query", "query_text", "question", "anchor"]);
    if any(&["positive_ctxs"]) {
        Ok(FileFormat::Dpr)
    } else if any(&["ctxs"]) {
        Err("holds a retriever's results (ctxs) and no data to learn from; `retort eval` judges them"
            .to_owned())
    } else if any(&["positive_document_ids", "positive_passages"]) {
        Ok(FileFormat::Tevatron)
    } else if asks && any(&["pos"]) {
        Ok(FileFormat::FlagEmbedding)
    } else if asks && any(&["positive"]) {
        Ok(FileFormat::Triplets)
    } else if asks && any(&["scores", "labels"]) {
        Ok(FileFormat::ScoredLists)
    } else if asks || any(&["text", "document_text", "contents"]) {
        Ok(FileFormat::Jsonl)
    } else {
        Err("has JSON records with none of the keys of a known format; name its format if it is one"
            .to_owned())
    }
}

fn table_format(sample: &[u8], role: Role) -> Result<FileFormat, String> {
    let text = String::from_utf8_lossy(sample);
    let mut lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).take(SAMPLE_LINES).collect();
    // The last line of the sample may be cut off.
    if lines.len() > 1 && sample.len() == SAMPLE_BYTES {
        lines.pop();
    }
    let first = lines[0];
    let columns: Vec<&str> = first.split('\t').collect();
    let every = |test: fn(&[&str]) -> bool| {
        lines.iter().skip(1).all(|line| test(&line.split('\t').collect::<Vec<_>>()))
    };
    let is_header =
        |names: &[&str]| columns.iter().all(|column| names.contains(&column.to_lowercase().as_str()));
    Ok(match columns.len() {
        3 if is_header(&["id", "text", "title"]) => FileFormat::Psgs,
        3 if first.to_lowercase().starts_with("query") => FileFormat::Qrels,
        2 if csv_fields(first, b'\t')
            .is_ok_and(|columns| columns.get(1).is_some_and(|column| python_list(column).is_ok())) =>
        {
            FileFormat::Qas
        }
        2 => FileFormat::Tsv,
        3 if columns.iter().any(|column| column.contains(char::is_whitespace)) => {
            // DPR's passages without their header: a number, and a body in quotes.
            let is_psgs = columns[0].parse::<u64>().is_ok() && role == Role::Passages;
            if is_psgs { FileFormat::Psgs } else { FileFormat::TextTriples }
        }
        3 if every(|columns| grade(columns.get(2))) && grade(columns.get(2)) => FileFormat::Qrels,
        3 => FileFormat::IdTriples,
        4 => FileFormat::Qrels,
        5 if columns[..2].iter().all(|score| score.parse::<f64>().is_ok()) => FileFormat::ScoredTriples,
        1 => match first.split_ascii_whitespace().count() {
            3 | 4 => FileFormat::Qrels,
            6 => return Err("holds a TREC run and no data to learn from; `retort eval` judges it".to_owned()),
            found => return Err(wrong_columns(found, 2, "columns of a known format")),
        },
        found => return Err(format!("has {found} columns, which no known format has")),
    })
}

fn grade(column: Option<&&str>) -> bool {
    column
        .and_then(|column| column.trim().parse::<i64>().ok())
        .is_some_and(|grade| grade.abs() <= USUAL_GRADES)
}

/// Where id, text and title stand by the header; in this order where there is none.
fn psgs_columns(format: FileFormat, sample: &[u8]) -> [usize; 3] {
    let usual = [0, 1, 2];
    if format != FileFormat::Psgs {
        return usual;
    }
    let end = memchr::memchr(b'\n', sample).unwrap_or(sample.len());
    let Ok(header) = std::str::from_utf8(&sample[..end]) else { return usual };
    let names: Vec<_> = header.trim_end().split('\t').collect();
    let place = |name: &str| names.iter().position(|column| *column == name);
    match (place("id"), place("text"), place("title")) {
        (Some(id), Some(text), Some(title)) => [id, text, title],
        _ => usual,
    }
}
