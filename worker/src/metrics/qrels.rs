//! Relevance judgements: TREC's four columns (MS MARCO's too) and BEIR's three with a header.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::Path;

use super::lines::{FileError, columns, for_each_line, number, open};

/// Graded judgements by query and document. Grades from 1 are relevant; what is not judged counts as 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Qrels {
    queries: BTreeMap<String, BTreeMap<String, i32>>,
}

impl Qrels {
    /// Reads a file, gzipped or not, in either format: BEIR's is known by its three columns.
    ///
    /// # Errors
    /// When the file cannot be read or a line does not have the format.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let (file, reader) = open(path)?;
        let mut format = None;
        Self::read(&file, reader, |line| {
            *format.get_or_insert_with(|| {
                if line.split_ascii_whitespace().count() == 3 { Format::Beir } else { Format::Trec }
            })
        })
    }

    /// Reads `query iteration document grade` lines; columns are separated by blanks.
    ///
    /// # Errors
    /// When the reader fails or a line does not have the format; `file` is the name in the error.
    pub fn read_trec(file: &str, reader: impl BufRead) -> Result<Self, FileError> {
        Self::read(file, reader, |_| Format::Trec)
    }

    /// Reads `query-id corpus-id score` lines below a header.
    ///
    /// # Errors
    /// When the reader fails or a line does not have the format; `file` is the name in the error.
    pub fn read_beir(file: &str, reader: impl BufRead) -> Result<Self, FileError> {
        Self::read(file, reader, |_| Format::Beir)
    }

    fn read(
        file: &str,
        reader: impl BufRead,
        mut format: impl FnMut(&str) -> Format,
    ) -> Result<Self, FileError> {
        let mut qrels = Self::default();
        let mut first = true;
        for_each_line(file, reader, |_, line| {
            let is_first = std::mem::replace(&mut first, false);
            match format(line) {
                Format::Trec => {
                    let [query, _, document, grade] = columns(line, "trec qrels (query 0 document grade)")?;
                    qrels.insert(query, document, number(grade, "grade")?)
                }
                Format::Beir => {
                    let [query, document, grade] = columns(line, "beir qrels (query-id corpus-id score)")?;
                    if is_first {
                        // A number here is a judgement that would be lost as a header.
                        return match grade.parse::<i32>() {
                            Ok(_) => {
                                Err("has no header: beir qrels begin with query-id corpus-id score"
                                    .to_owned())
                            }
                            Err(_) => Ok(()),
                        };
                    }
                    qrels.insert(query, document, number(grade, "grade")?)
                }
            }
        })?;
        Ok(qrels)
    }

    /// Adds a judgement; saying the same twice is harmless.
    ///
    /// # Errors
    /// When the document is already judged otherwise for the query.
    pub fn insert(&mut self, query: &str, document: &str, grade: i32) -> Result<(), String> {
        let judgements = self.queries.entry(query.to_owned()).or_default();
        match judgements.insert(document.to_owned(), grade) {
            Some(before) if before != grade => {
                Err(format!("grades document {document} of query {query} {grade} but it was {before} before"))
            }
            _ => Ok(()),
        }
    }

    /// Number of judged queries.
    pub fn len(&self) -> usize {
        self.queries.len()
    }

    /// Whether nothing is judged.
    pub fn is_empty(&self) -> bool {
        self.queries.is_empty()
    }

    /// The judgements of one query by document.
    pub fn judgements(&self, query: &str) -> Option<&BTreeMap<String, i32>> {
        self.queries.get(query)
    }

    /// The queries in sorted order, each with its judgements by document.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &BTreeMap<String, i32>)> {
        self.queries.iter().map(|(query, judgements)| (query.as_str(), judgements))
    }
}

#[derive(Clone, Copy)]
enum Format {
    Trec,
    Beir,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_text(text: &str) -> Result<Qrels, FileError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Qrels::open(file.path())
    }

    #[test]
    fn both_formats_give_the_same_judgements() {
        let trec = open_text("q1 0 d1 2\nq1\t0\td2\t0\n\nq2 Q0 d1 -1\r\n").unwrap();
        let beir =
            open_text("query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\nq2\td1\t-1\nq2\td1\t-1\n").unwrap();
        assert_eq!(trec, beir);
        assert_eq!(trec.judgements("q1").unwrap()["d1"], 2);
        assert_eq!(trec.len(), 2);
    }

    #[test]
    fn errors_tell_the_line() {
        let check = |text: &str, expected: &str| {
            let error = open_text(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check("q1 0 d1 1\nq1 0 d2\n", "line 2: has 3 columns where trec qrels");
        check("q1 0 d1 x\n", "line 1: grade \"x\" is not a number");
        check("q1 0 d1 1\nq1 0 d1 2\n", "line 2: grades document d1 of query q1 2 but it was 1");
        check("q1 d1 1\n", "line 1: has no header");
        check("query-id corpus-id score\nq 0 d 1\n", "line 2: has 4 columns where beir");
    }
}
