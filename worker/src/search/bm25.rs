//! BM25 as Lucene scores it (without the constant factor `k1 + 1`), over one shard of the corpus with the
//! statistics of all of it, so that the merged lists of the shards are those of a single index.
//!
//! A term of a query adds `idf · tf / (tf + k1 · (1 - b + b · dl / avgdl))` with
//! `idf = ln(1 + (N - df + 0.5) / (df + 0.5))` (Kamphuis et al., "Which BM25 do you mean?", ECIR 2020). A
//! document's length `dl` is exact here, where Lucene keeps it in one lossy byte: scores differ from
//! Lucene's in the third digit or so.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::analyzer::Analyzer;
use super::topk::{Hit, TopK};

/// BM25's two parameters; the defaults are Anserini's for passages.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bm25 {
    /// Saturation of the term frequency, at least 0.
    pub k1: f64,
    /// Weight of the document's length, 0 to 1.
    pub b: f64,
}

impl Default for Bm25 {
    fn default() -> Self {
        Self { k1: 0.9, b: 0.4 }
    }
}

/// Why a shard cannot be indexed or searched.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Bm25Error {
    /// Parameters outside their range.
    #[error("bm25 with k1 {k1} and b {b}: k1 must be at least 0 and b from 0 to 1")]
    Parameters {
        /// The refused k1.
        k1: f64,
        /// The refused b.
        b: f64,
    },
    /// A shard larger than its 32-bit document numbers.
    #[error(
        "a bm25 shard from row {first_row} holds more than {} passages: cut the corpus smaller",
        u32::MAX
    )]
    TooManyPassages {
        /// Row of the shard's first passage.
        first_row: u64,
    },
    /// Statistics that were not gathered from this shard among others.
    #[error("the corpus statistics do not cover the shard from row {first_row}: gather them from all shards")]
    ForeignStatistics {
        /// Row of the shard's first passage.
        first_row: u64,
    },
}

/// What BM25 must know of the whole corpus. Merging the statistics of the shards gives the corpus's, and
/// the serialised form is sorted, so equal corpora give equal bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CorpusStatistics {
    /// Number of passages.
    pub documents: u64,
    /// Number of terms in all passages.
    pub total_length: u64,
    /// Number of passages that hold each term.
    pub document_frequencies: BTreeMap<String, u64>,
}

impl CorpusStatistics {
    /// Adds the statistics of another part of the corpus.
    pub fn merge(&mut self, other: &Self) {
        self.documents = self.documents.saturating_add(other.documents);
        self.total_length = self.total_length.saturating_add(other.total_length);
        for (term, frequency) in &other.document_frequencies {
            match self.document_frequencies.get_mut(term) {
                Some(mine) => *mine = mine.saturating_add(*frequency),
                None => drop(self.document_frequencies.insert(term.clone(), *frequency)),
            }
        }
    }

    /// The inverse document frequency of a term that `frequency` passages hold.
    fn idf(&self, frequency: u64) -> f64 {
        let (documents, frequency) = (self.documents as f64, frequency as f64);
        (1.0 + (documents - frequency + 0.5) / (frequency + 0.5)).ln()
    }
}

/// One passage that holds a term.
#[derive(Clone, Copy, Debug)]
struct Posting {
    document: u32,
    frequency: u32,
}

/// The inverted index of one shard; its memory grows with the shard's text alone.
pub struct ShardIndex {
    first_row: u64,
    lengths: Vec<u32>,
    postings: HashMap<Box<str>, Vec<Posting>>,
    analyzer: Analyzer,
}

impl ShardIndex {
    /// Indexes passages whose rows are numbered from `first_row`. A title that shall count is a part of the
    /// text.
    ///
    /// # Errors
    /// When there are more passages than 32-bit numbers.
    pub fn build<T: AsRef<str>>(
        first_row: u64,
        texts: impl IntoIterator<Item = T>,
    ) -> Result<Self, Bm25Error> {
        let mut index =
            Self { first_row, lengths: Vec::new(), postings: HashMap::new(), analyzer: Analyzer::default() };
        for text in texts {
            let document = u32::try_from(index.lengths.len())
                .ok()
                .filter(|document| *document < u32::MAX)
                .ok_or(Bm25Error::TooManyPassages { first_row })?;
            let mut length = 0u32;
            let postings = &mut index.postings;
            index.analyzer.for_each_term(text.as_ref(), |term| {
                length = length.saturating_add(1);
                count(postings, term, document);
            });
            index.lengths.push(length);
        }
        index.postings.values_mut().for_each(Vec::shrink_to_fit);
        Ok(index)
    }

    /// Number of passages.
    pub fn passages(&self) -> usize {
        self.lengths.len()
    }

    /// The shard's own statistics, to be merged with those of the other shards.
    pub fn statistics(&self) -> CorpusStatistics {
        CorpusStatistics {
            documents: self.lengths.len() as u64,
            total_length: self.lengths.iter().map(|length| u64::from(*length)).sum(),
            document_frequencies: self
                .postings
                .iter()
                .map(|(term, postings)| (term.to_string(), postings.len() as u64))
                .collect(),
        }
    }

    /// Prepares the search of this shard as a part of the corpus of `statistics`.
    ///
    /// # Errors
    /// When a parameter is out of range or the statistics do not cover the shard.
    pub fn searcher<'a>(
        &'a self,
        statistics: &'a CorpusStatistics,
        parameters: Bm25,
    ) -> Result<Searcher<'a>, Bm25Error> {
        let Bm25 { k1, b } = parameters;
        if !(k1 >= 0.0 && k1.is_finite() && (0.0..=1.0).contains(&b)) {
            return Err(Bm25Error::Parameters { k1, b });
        }
        if statistics.documents < self.lengths.len() as u64 {
            return Err(Bm25Error::ForeignStatistics { first_row: self.first_row });
        }
        let average = statistics.total_length.max(1) as f64 / statistics.documents.max(1) as f64;
        let penalty = |length: &u32| k1 * (1.0 - b + b * f64::from(*length) / average);
        Ok(Searcher {
            index: self,
            statistics,
            penalties: self.lengths.iter().map(penalty).collect(),
            scores: vec![0.0; self.lengths.len()],
            touched: Vec::new(),
        })
    }

    /// The best `k` passages for one query. For many queries, prepare one [`searcher`](Self::searcher).
    ///
    /// # Errors
    /// As [`searcher`](Self::searcher) and [`Searcher::search`].
    pub fn search(
        &self,
        statistics: &CorpusStatistics,
        parameters: Bm25,
        query: &str,
        k: usize,
    ) -> Result<Vec<Hit>, Bm25Error> {
        self.searcher(statistics, parameters)?.search(query, k)
    }
}

fn count(postings: &mut HashMap<Box<str>, Vec<Posting>>, term: &str, document: u32) {
    let Some(list) = postings.get_mut(term) else {
        postings.insert(term.into(), vec![Posting { document, frequency: 1 }]);
        return;
    };
    match list.last_mut() {
        Some(last) if last.document == document => last.frequency = last.frequency.saturating_add(1),
        _ => list.push(Posting { document, frequency: 1 }),
    }
}

/// A shard ready to answer queries, one term at a time into an accumulator that all queries use.
pub struct Searcher<'a> {
    index: &'a ShardIndex,
    statistics: &'a CorpusStatistics,
    penalties: Vec<f64>,
    scores: Vec<f64>,
    touched: Vec<u32>,
}

impl<'a> Searcher<'a> {
    /// The best `k` passages that share a term with `query`, best first.
    ///
    /// # Errors
    /// When the statistics lack a term of the shard.
    pub fn search(&mut self, query: &str, k: usize) -> Result<Vec<Hit>, Bm25Error> {
        let mut top = TopK::new(1, k);
        self.search_into(query, 0, &mut top)?;
        Ok(top.into_ranked().pop().unwrap_or_default())
    }

    /// Offers the passages that share a term with `query` to the list `at` of `top`.
    ///
    /// # Errors
    /// When the statistics lack a term of the shard; the list is then unchanged.
    ///
    /// # Panics
    /// When `top` has no list `at`.
    pub fn search_into(&mut self, query: &str, at: usize, top: &mut TopK) -> Result<(), Bm25Error> {
        // Sorted, so that a passage's additions come in the same order in every shard.
        let mut terms = BTreeMap::<String, f64>::new();
        self.index.analyzer.for_each_term(query, |term| *terms.entry(term.to_owned()).or_default() += 1.0);
        let weighted = self.weigh(&terms)?;
        for (postings, weight) in weighted {
            for Posting { document, frequency } in postings {
                let score = &mut self.scores[*document as usize];
                if *score == 0.0 {
                    self.touched.push(*document);
                }
                let frequency = f64::from(*frequency);
                *score += weight * (frequency / (frequency + self.penalties[*document as usize]));
            }
        }
        for document in self.touched.drain(..) {
            let score = std::mem::take(&mut self.scores[document as usize]);
            let row = self.index.first_row + u64::from(document);
            top.push(at, Hit { row, score: score as f32 }).expect("a sum of finite terms is a number");
        }
        Ok(())
    }

    /// The postings of each term that the shard holds, with the weight of the term in the query. A term
    /// said twice counts twice, as in Lucene.
    fn weigh(&self, terms: &BTreeMap<String, f64>) -> Result<Vec<(&'a [Posting], f64)>, Bm25Error> {
        let (index, statistics) = (self.index, self.statistics);
        let mut weighted = Vec::with_capacity(terms.len());
        for (term, times) in terms {
            let Some(postings) = index.postings.get(term.as_str()) else { continue };
            let frequency = statistics.document_frequencies.get(term).copied().unwrap_or(0);
            if frequency < postings.len() as u64 || frequency > statistics.documents {
                return Err(Bm25Error::ForeignStatistics { first_row: index.first_row });
            }
            weighted.push((postings.as_slice(), times * statistics.idf(frequency)));
        }
        Ok(weighted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXTS: [&str; 5] = [
        "The cat sat on the mat.",
        "A dog and a cat, cats everywhere",
        "Dogs bark",
        "",
        "An entirely different sentence about oil prices and oil",
    ];

    fn search(texts: &[&str], query: &str, k: usize) -> Vec<Hit> {
        let index = ShardIndex::build(0, texts).unwrap();
        index.search(&index.statistics(), Bm25::default(), query, k).unwrap()
    }

    fn check(query: &str, expected_rows: &[u64]) {
        let rows: Vec<_> = search(&TEXTS, query, 10).iter().map(|hit| hit.row).collect();
        assert_eq!(rows, expected_rows, "{query:?}");
    }

    #[test]
    fn queries_find_the_passages_that_share_a_term() {
        check("cat", &[1, 0]);
        check("the barking dog", &[2, 1]);
        check("oil", &[4]);
        check("the", &[]);
        check("zebra", &[]);
        check("", &[]);
    }

    #[test]
    fn a_score_is_lucenes_formula() {
        // Lengths without stop words: 3 (cat sat mat), 4 (dog cat cat everywher), 2, 0, 7; the average is 16 / 5.
        let idf = (1.0f64 + (5.0 - 2.0 + 0.5) / (2.0 + 0.5)).ln();
        let expected = idf * 2.0 / (2.0 + 0.9 * (1.0 - 0.4 + 0.4 * 4.0 / 3.2));
        let hit = search(&TEXTS, "cat", 1)[0];
        assert!((f64::from(hit.score) - expected).abs() < 1e-6, "{hit:?} {expected}");
        let twice = search(&TEXTS, "cat cat", 1)[0];
        assert!((f64::from(twice.score) - 2.0 * expected).abs() < 1e-6);
    }

    #[test]
    fn statistics_serialise_sorted_and_round_trip() {
        let statistics = ShardIndex::build(0, ["b a c", "c"]).unwrap().statistics();
        let text = serde_json::to_string(&statistics).unwrap();
        assert_eq!(text, r#"{"documents":2,"total_length":3,"document_frequencies":{"b":1,"c":2}}"#);
        assert_eq!(serde_json::from_str::<CorpusStatistics>(&text).unwrap(), statistics);
    }

    #[test]
    fn bad_parameters_and_foreign_statistics_are_refused() {
        let index = ShardIndex::build(3, TEXTS).unwrap();
        let own = index.statistics();
        for (k1, b) in [(-0.1, 0.4), (f64::NAN, 0.4), (f64::INFINITY, 0.4), (0.9, 1.1), (0.9, f64::NAN)] {
            assert!(matches!(index.searcher(&own, Bm25 { k1, b }), Err(Bm25Error::Parameters { .. })));
        }
        let foreign = Err(Bm25Error::ForeignStatistics { first_row: 3 });
        let empty = CorpusStatistics::default();
        assert_eq!(index.search(&empty, Bm25::default(), "cat", 1), foreign);
        let other = CorpusStatistics { document_frequencies: BTreeMap::new(), ..own };
        assert_eq!(index.search(&other, Bm25::default(), "cat", 1), foreign);
    }

    proptest! {
        /// A small vocabulary, so that terms repeat and scores tie.
        #[test]
        fn shards_with_the_corpus_statistics_equal_one_index(
            texts in prop::collection::vec("([xyzw]{1,2} ){0,8}", 0..30),
            query in "([xyzw]{1,2} ){1,4}",
            cut in 0.0f64..1.0,
        ) {
            let whole = ShardIndex::build(0, &texts).unwrap();
            let expected = whole.search(&whole.statistics(), Bm25::default(), &query, 5).unwrap();

            let cut = (cut * texts.len() as f64) as usize;
            let shards = [
                ShardIndex::build(0, &texts[..cut]).unwrap(),
                ShardIndex::build(cut as u64, &texts[cut..]).unwrap(),
            ];
            let mut statistics = CorpusStatistics::default();
            shards.iter().for_each(|shard| statistics.merge(&shard.statistics()));
            prop_assert_eq!(&statistics, &whole.statistics());
            let mut top = TopK::new(1, 5);
            for shard in &shards {
                shard.searcher(&statistics, Bm25::default()).unwrap().search_into(&query, 0, &mut top).unwrap();
            }
            prop_assert_eq!(&top.into_ranked()[0], &expected);
        }
    }
}
