//! Ranked lists in files: TREC's six columns and MS MARCO's three.
//!
//! trec_eval ignores the written rank: it orders by score and, where scores tie, by document id descending,
//! and it keeps scores in single precision. So reading orders in just that way, and writing makes scores
//! strictly decreasing in single precision: a score that is not below the one before it becomes the next
//! `f32` below that one. The order on disk is then the order that every tool sees, at the price of a last
//! digit where scores tie.

use std::collections::{BTreeMap, HashSet};
use std::io::{BufRead, Write};
use std::path::Path;

use super::lines::{FileError, columns, for_each_line, number, open};

/// A document at its place in a ranked list.
#[derive(Clone, Debug, PartialEq)]
pub struct RankedDocument {
    /// The document's id.
    pub id: String,
    /// The score, in the single precision that trec_eval orders by.
    pub score: f32,
}

/// The ranked lists of a retriever by query, best document first and each once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Run {
    queries: BTreeMap<String, Vec<RankedDocument>>,
}

/// Why a ranked list is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// A query that has a list already.
    #[error("query {0} has a ranked list already")]
    QueryTwice(String),
    /// A document at two places.
    #[error("query {query} ranks document {document} twice")]
    DocumentTwice {
        /// The query.
        query: String,
        /// The document.
        document: String,
    },
    /// A score that cannot be ordered.
    #[error("query {query} scores document {document} with a value that is not a number")]
    NotANumber {
        /// The query.
        query: String,
        /// The document.
        document: String,
    },
}

impl Run {
    /// Adds the list of a query, which is best first whatever the scores say.
    ///
    /// # Errors
    /// When the query has a list, a document stands twice or a score is `NaN`.
    pub fn insert(&mut self, query: &str, documents: Vec<RankedDocument>) -> Result<(), RunError> {
        if self.queries.contains_key(query) {
            return Err(RunError::QueryTwice(query.to_owned()));
        }
        check_list(query, &documents)?;
        self.queries.insert(query.to_owned(), documents);
        Ok(())
    }

    /// The ranked list of a query, if it was searched.
    pub fn documents(&self, query: &str) -> Option<&[RankedDocument]> {
        self.queries.get(query).map(Vec::as_slice)
    }

    /// The queries in sorted order with their ranked lists.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[RankedDocument])> {
        self.queries.iter().map(|(query, documents)| (query.as_str(), documents.as_slice()))
    }

    /// Reads a TREC run file, gzipped or not.
    ///
    /// # Errors
    /// When the file cannot be read or a line does not have the format.
    pub fn open_trec(path: &Path) -> Result<Self, FileError> {
        let (file, reader) = open(path)?;
        Self::read_trec(&file, reader)
    }

    /// Reads an MS MARCO run file, gzipped or not.
    ///
    /// # Errors
    /// When the file cannot be read or a line does not have the format.
    pub fn open_ms_marco(path: &Path) -> Result<Self, FileError> {
        let (file, reader) = open(path)?;
        Self::read_ms_marco(&file, reader)
    }

    /// Reads `query Q0 document rank score tag` lines in trec_eval's order: by single-precision score, then
    /// by document id descending; the written rank must be a number and is not used.
    ///
    /// # Errors
    /// When the reader fails or a line does not have the format; `file` is the name in the error.
    pub fn read_trec(file: &str, reader: impl BufRead) -> Result<Self, FileError> {
        let mut run = Self::default();
        for_each_line(file, reader, |_, line| {
            let [query, _, document, rank, score, _] =
                columns(line, "a trec run (query Q0 document rank score tag)")?;
            number::<i64>(rank, "rank")?;
            // Through double precision, because that is how trec_eval comes to its single precision.
            let score = number::<f64>(score, "score")? as f32;
            if score.is_nan() {
                return Err("score is not a number".to_owned());
            }
            run.append(query, RankedDocument { id: document.to_owned(), score });
            Ok(())
        })?;
        for documents in run.queries.values_mut() {
            documents.sort_by(|a, b| {
                b.score.partial_cmp(&a.score).expect("NaN was refused").then_with(|| b.id.cmp(&a.id))
            });
        }
        run.checked(file)
    }

    /// Reads `query document rank` lines in the order of the written ranks; the score is the rank's
    /// reciprocal.
    ///
    /// # Errors
    /// When the reader fails, a line does not have the format or a rank is 0 or stands twice in a query;
    /// `file` is the name in the error.
    pub fn read_ms_marco(file: &str, reader: impl BufRead) -> Result<Self, FileError> {
        let mut ranked = BTreeMap::<String, BTreeMap<u32, String>>::new();
        for_each_line(file, reader, |_, line| {
            let [query, document, rank] = columns(line, "an ms marco run (query document rank)")?;
            let rank = number::<u32>(rank, "rank")?;
            if rank == 0 {
                return Err("rank 0: ranks begin at 1".to_owned());
            }
            match ranked.entry(query.to_owned()).or_default().insert(rank, document.to_owned()) {
                Some(before) => Err(format!("rank {rank} of query {query} is taken by document {before}")),
                None => Ok(()),
            }
        })?;
        let mut run = Self::default();
        for (query, documents) in ranked {
            for (rank, id) in documents {
                run.append(&query, RankedDocument { id, score: 1.0 / rank as f32 });
            }
        }
        run.checked(file)
    }

    /// Orders documents of equal score by id ascending. ir_measures does so for a
    /// reciprocal rank with a cutoff, and only there; runs with many ties differ in the third digit.
    pub fn order_ties_by_lowest_id(&mut self) {
        for documents in self.queries.values_mut() {
            documents
                .chunk_by_mut(|a, b| a.score == b.score)
                .for_each(|tied| tied.sort_by(|a, b| a.id.cmp(&b.id)));
        }
    }

    fn append(&mut self, query: &str, document: RankedDocument) {
        match self.queries.get_mut(query) {
            Some(documents) => documents.push(document),
            None => drop(self.queries.insert(query.to_owned(), vec![document])),
        }
    }

    fn checked(self, file: &str) -> Result<Self, FileError> {
        for (query, documents) in &self.queries {
            check_list(query, documents)
                .map_err(|source| FileError::List { file: file.to_owned(), source })?;
        }
        Ok(self)
    }

    /// Writes a TREC run with ranks from 1 and strictly decreasing scores; `file` is the name in the error.
    ///
    /// # Errors
    /// When the writer fails.
    pub fn write_trec(&self, file: &str, tag: &str, mut writer: impl Write) -> Result<(), FileError> {
        for (query, documents) in &self.queries {
            let mut previous = None;
            for (place, document) in documents.iter().enumerate() {
                let score = strictly_below(document.score, previous);
                previous = Some(score);
                let (id, rank, score) = (&document.id, place + 1, decimal(score));
                writeln!(writer, "{query} Q0 {id} {rank} {score} {tag}")
                    .map_err(|e| FileError::io(file, e))?;
            }
        }
        writer.flush().map_err(|e| FileError::io(file, e))
    }

    /// Writes an MS MARCO run with ranks from 1; `file` is the name in the error.
    ///
    /// # Errors
    /// When the writer fails.
    pub fn write_ms_marco(&self, file: &str, mut writer: impl Write) -> Result<(), FileError> {
        for (query, documents) in &self.queries {
            for (place, document) in documents.iter().enumerate() {
                writeln!(writer, "{query}\t{}\t{}", document.id, place + 1)
                    .map_err(|e| FileError::io(file, e))?;
            }
        }
        writer.flush().map_err(|e| FileError::io(file, e))
    }
}

fn check_list(query: &str, documents: &[RankedDocument]) -> Result<(), RunError> {
    let mut seen = HashSet::with_capacity(documents.len());
    for document in documents {
        let (query, id) = (query.to_owned(), document.id.clone());
        if document.score.is_nan() {
            return Err(RunError::NotANumber { query, document: id });
        }
        if !seen.insert(document.id.as_str()) {
            return Err(RunError::DocumentTwice { query, document: id });
        }
    }
    Ok(())
}

/// The score, or the next one below the `previous` place's. Infinite scores become the largest finite ones,
/// which every tool reads.
fn strictly_below(score: f32, previous: Option<f32>) -> f32 {
    let score = score.clamp(f32::MIN, f32::MAX);
    match previous {
        // The step leaves zero for a normal number, because tools may flush subnormal ones.
        Some(previous) if score >= previous && (0.0..=f32::MIN_POSITIVE).contains(&previous) => {
            if previous == 0.0 { -f32::MIN_POSITIVE } else { 0.0 }
        }
        Some(previous) if score >= previous => previous.next_down(),
        _ => score,
    }
}

/// The shortest decimal that gives `score` when it is read in double precision and then rounded.
fn decimal(score: f32) -> String {
    let short = score.to_string();
    if short.parse::<f64>().is_ok_and(|read| read as f32 == score) {
        short
    } else {
        f64::from(score).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn list(scores: &[f32]) -> Vec<RankedDocument> {
        scores
            .iter()
            .enumerate()
            .map(|(i, score)| RankedDocument { id: format!("d{i}"), score: *score })
            .collect()
    }

    fn ids(run: &Run, query: &str) -> Vec<String> {
        run.documents(query).unwrap().iter().map(|document| document.id.clone()).collect()
    }

    #[test]
    fn a_trec_run_is_read_in_trec_evals_order() {
        let text = "q Q0 a 1 1.0 x\nq\tQ0\tb\t2\t1.0 x\nq Q0 c 3 2 x\n\nq Q0 d 0 1.00000000001 x\n";
        let run = Run::read_trec("r", text.as_bytes()).unwrap();
        assert_eq!(ids(&run, "q"), ["c", "d", "b", "a"]);
        let mut lowest = run;
        lowest.order_ties_by_lowest_id();
        assert_eq!(ids(&lowest, "q"), ["c", "a", "b", "d"]);
    }

    #[test]
    fn an_ms_marco_run_is_read_by_rank_and_round_trips() {
        let run = Run::read_ms_marco("r", "q\tb\t2\nq\ta\t1\n".as_bytes()).unwrap();
        assert_eq!(ids(&run, "q"), ["a", "b"]);
        let mut text = Vec::new();
        run.write_ms_marco("r", &mut text).unwrap();
        assert_eq!(text, b"q\ta\t1\nq\tb\t2\n");
    }

    #[test]
    fn bad_lists_are_refused_with_their_place() {
        let check = |text: &str, expected: &str| {
            let told = Run::read_trec("r.trec", text.as_bytes()).unwrap_err().to_string();
            assert!(told.contains("r.trec") && told.contains(expected), "{told}");
        };
        check("q Q0 a 1 1.0 x\nq Q0 a 1 1.0\n", "line 2: has 5 columns where a trec run");
        check("q Q0 a 1 one x\n", "line 1: score \"one\"");
        check("q Q0 a first 1 x\n", "line 1: rank \"first\"");
        check("q Q0 a 1 NaN x\n", "line 1: score is not a number");
        check("q Q0 a 1 2 x\nq Q0 a 2 1 x\n", "query q ranks document a twice");
        let error = Run::read_ms_marco("r", "q a 1\nq b 1\n".as_bytes()).unwrap_err().to_string();
        assert!(error.contains("line 2: rank 1 of query q is taken by document a"), "{error}");
        let mut run = Run::default();
        run.insert("q", list(&[1.0])).unwrap();
        assert_eq!(run.insert("q", list(&[1.0])), Err(RunError::QueryTwice("q".to_owned())));
    }

    proptest! {
        /// Scores that tie, rise or sit at the edges still give the order of the list when read again.
        #[test]
        fn the_written_order_is_the_order_read(scores in prop::collection::vec(
            prop_oneof![
                any::<f32>().prop_filter("numbers", |score| !score.is_nan()),
                prop::sample::select(vec![0.0, -0.0, 1.0, 0.1, f32::MIN_POSITIVE, 1e-45, f32::MAX, f32::INFINITY]),
                (-20i32..20).prop_map(|score| score as f32 / 16.0),
            ], 0..40)) {
            let mut run = Run::default();
            // The lowest finite score has nothing below it.
            let documents = list(&scores.iter().map(|score| score.max(-1e30)).collect::<Vec<_>>());
            run.insert("q", documents.clone()).unwrap();
            let mut text = Vec::new();
            run.write_trec("r", "tag", &mut text).unwrap();
            let read = Run::read_trec("r", text.as_slice()).unwrap();
            let read = read.documents("q").unwrap_or_default();
            prop_assert!(read.iter().map(|d| &d.id).eq(documents.iter().map(|d| &d.id)));
            prop_assert!(read.is_sorted_by(|a, b| a.score > b.score));
        }
    }
}
