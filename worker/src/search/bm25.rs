//! BM25 as Lucene scores it (without the constant factor `k1 + 1`), over one shard of the corpus with the
//! statistics of all of it, so that the merged lists of the shards are those of a single index.
//!
//! A term of a query adds `idf · tf / (tf + k1 · (1 - b + b · dl / avgdl))` with
//! `idf = ln(1 + (N - df + 0.5) / (df + 0.5))` (Kamphuis et al., "Which BM25 do you mean?", ECIR 2020). A
//! document's length `dl` is exact here, where Lucene keeps it in one lossy byte: scores differ from
//! Lucene's in the third digit or so.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::analyzer::{Analyzer, for_each_word};
use super::topk::{Best, Hit, TopK};
use crate::parallel;

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
#[derive(Clone, Copy, Debug, Default)]
struct Posting {
    document: u32,
    frequency: u32,
}

/// The inverted index of one shard; its memory grows with the shard's text alone.
pub struct ShardIndex {
    first_row: u64,
    lengths: Vec<u32>,
    /// The number of each term.
    terms: HashMap<Box<str>, u32>,
    /// Where the postings of each term begin, and where the last ones end.
    starts: Vec<usize>,
    /// Term by term, passages in order.
    postings: Vec<Posting>,
}

impl ShardIndex {
    /// Indexes passages whose rows are numbered from `first_row`, the same on any number of threads. A title that
    /// shall count is a part of the text.
    ///
    /// # Errors
    /// When there are more passages than 32-bit numbers.
    pub fn build<T: AsRef<str> + Sync>(
        first_row: u64,
        texts: &[T],
        threads: usize,
    ) -> Result<Self, Bm25Error> {
        if texts.len() >= u32::MAX as usize {
            return Err(Bm25Error::TooManyPassages { first_row });
        }
        let size = texts.len().div_ceil(threads.max(1)).max(LEAST_TEXTS);
        let mut parts = parallel::map(threads, texts.len().div_ceil(size), |at| {
            Part::count(&texts[at * size..texts.len().min((at + 1) * size)], at * size)
        });
        // The terms of later parts are numbered after those of the parts before.
        let mut terms = parts.first_mut().map(|part| std::mem::take(&mut part.terms)).unwrap_or_default();
        for part in parts.iter_mut().skip(1) {
            let mut numbers = vec![0; part.terms.len()];
            for (term, own) in std::mem::take(&mut part.terms) {
                let next = terms.len() as u32;
                numbers[own as usize] = *terms.entry(term).or_insert(next);
            }
            part.counted.iter_mut().for_each(|(term, _)| *term = numbers[*term as usize]);
        }
        let mut starts = vec![0; terms.len() + 1];
        let counted = || parts.iter().flat_map(|part| &part.counted);
        counted().for_each(|(term, _)| starts[*term as usize + 1] += 1);
        (1..starts.len()).for_each(|at| starts[at] += starts[at - 1]);
        let (mut next, mut postings) = (starts.clone(), vec![Posting::default(); starts[terms.len()]]);
        for (term, posting) in counted() {
            let place = &mut next[*term as usize];
            postings[*place] = *posting;
            *place += 1;
        }
        let lengths = parts.into_iter().flat_map(|part| part.lengths).collect();
        Ok(Self { first_row, lengths, terms, starts, postings })
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
                .terms
                .iter()
                .map(|(term, number)| (term.to_string(), self.range(*number).len() as u64))
                .collect(),
        }
    }

    fn range(&self, term: u32) -> Range<usize> {
        self.starts[term as usize]..self.starts[term as usize + 1]
    }

    /// Offers to `top`, which has a list for each question, the passages that share a term with it, scored as a part of
    /// the corpus of `statistics`, on at most `threads` threads (0 counts as 1).
    ///
    /// # Errors
    /// When a parameter is out of range, or the statistics do not cover the shard or lack one of its terms; `top` is
    /// then unchanged.
    ///
    /// # Panics
    /// When `top` has another number of lists than there are questions.
    pub fn search(
        &self,
        statistics: &CorpusStatistics,
        parameters: Bm25,
        questions: &Questions,
        threads: usize,
        top: &mut TopK,
    ) -> Result<(), Bm25Error> {
        assert_eq!(top.queries(), questions.questions.len(), "lists and questions");
        let scorer = Scorer::new(self, statistics, parameters, questions)?;
        parallel::for_each_chunk(threads, top.best_mut(), QUESTIONS_AT_A_TIME, |at, best| {
            let mut scores = vec![0.0; self.lengths.len()];
            let questions = &questions.questions[at * QUESTIONS_AT_A_TIME..];
            for (question, best) in questions.iter().zip(best) {
                scorer.score(question, &mut scores, best);
            }
        });
        Ok(())
    }
}

/// Fewest texts that are worth a thread.
const LEAST_TEXTS: usize = 64;
/// Questions that a thread takes at a time.
const QUESTIONS_AT_A_TIME: usize = 64;

/// The terms of some consecutive passages, as one thread counts them.
struct Part {
    terms: HashMap<Box<str>, u32>,
    counted: Vec<(u32, Posting)>,
    lengths: Vec<u32>,
}

impl Part {
    fn count<T: AsRef<str>>(texts: &[T], first: usize) -> Self {
        let analyzer = Analyzer::default();
        let mut part = Self { terms: HashMap::new(), counted: Vec::new(), lengths: Vec::new() };
        // The same words come again and again, and each is stemmed once.
        let mut known = HashMap::<Box<str>, Option<u32>>::new();
        let mut found = Vec::new();
        for (document, text) in (first as u32..).zip(texts) {
            found.clear();
            for_each_word(text.as_ref(), |word| {
                let number = match known.get(word) {
                    Some(number) => *number,
                    None => {
                        let term = analyzer.stem(word);
                        let next = part.terms.len() as u32;
                        let number = (!term.is_empty())
                            .then(|| *part.terms.entry(term.as_ref().into()).or_insert(next));
                        known.insert(word.into(), number);
                        number
                    }
                };
                found.extend(number);
            });
            part.lengths.push(u32::try_from(found.len()).unwrap_or(u32::MAX));
            found.sort_unstable();
            for same in found.chunk_by(|a, b| a == b) {
                let frequency = u32::try_from(same.len()).unwrap_or(u32::MAX);
                part.counted.push((same[0], Posting { document, frequency }));
            }
        }
        part
    }
}

/// Questions as terms, analysed once for all shards.
pub struct Questions {
    /// Every term of any question, sorted.
    vocabulary: Vec<String>,
    /// The terms of each question by number, rising, with how often it says them: one said twice counts twice, as in
    /// Lucene. Rising, so that a passage's additions come in the same order in every shard.
    questions: Vec<Vec<(u32, f64)>>,
}

impl Questions {
    /// Analyses questions.
    pub fn new<T: AsRef<str>>(texts: &[T]) -> Self {
        let analyzer = Analyzer::default();
        let (mut numbers, mut asked) = (BTreeMap::<String, u32>::new(), Vec::with_capacity(texts.len()));
        for text in texts {
            let mut terms = BTreeMap::<String, f64>::new();
            analyzer.for_each_term(text.as_ref(), |term| *terms.entry(term.to_owned()).or_default() += 1.0);
            numbers.extend(terms.keys().map(|term| (term.clone(), 0)));
            asked.push(terms);
        }
        numbers.values_mut().zip(0..).for_each(|(number, place)| *number = place);
        let number = |(term, times): (String, f64)| (numbers[&term], times);
        let questions = asked.into_iter().map(|terms| terms.into_iter().map(number).collect()).collect();
        Self { vocabulary: numbers.into_keys().collect(), questions }
    }
}

/// What one shard adds to scores.
struct Scorer<'a> {
    index: &'a ShardIndex,
    /// For each term of the questions that the shard holds: its inverse document frequency and its postings.
    terms: Vec<Option<(f64, Range<usize>)>>,
    /// tf / (tf + k1 · (1 - b + b · dl / avgdl)) of each posting of those terms.
    saturated: Vec<f64>,
}

impl<'a> Scorer<'a> {
    fn new(
        index: &'a ShardIndex,
        statistics: &CorpusStatistics,
        parameters: Bm25,
        questions: &Questions,
    ) -> Result<Self, Bm25Error> {
        let Bm25 { k1, b } = parameters;
        if !(k1 >= 0.0 && k1.is_finite() && (0.0..=1.0).contains(&b)) {
            return Err(Bm25Error::Parameters { k1, b });
        }
        let foreign = Bm25Error::ForeignStatistics { first_row: index.first_row };
        if statistics.documents < index.lengths.len() as u64 {
            return Err(foreign);
        }
        let average = statistics.total_length.max(1) as f64 / statistics.documents.max(1) as f64;
        let penalty = |length: &u32| k1 * (1.0 - b + b * f64::from(*length) / average);
        let penalties: Vec<f64> = index.lengths.iter().map(penalty).collect();
        let mut terms = Vec::with_capacity(questions.vocabulary.len());
        let mut saturated = vec![0.0; index.postings.len()];
        for term in &questions.vocabulary {
            let Some(number) = index.terms.get(term.as_str()) else {
                terms.push(None);
                continue;
            };
            let range = index.range(*number);
            let frequency = statistics.document_frequencies.get(term).copied().unwrap_or(0);
            if frequency < range.len() as u64 || frequency > statistics.documents {
                return Err(foreign);
            }
            for (value, posting) in saturated[range.clone()].iter_mut().zip(&index.postings[range.clone()]) {
                let frequency = f64::from(posting.frequency);
                *value = frequency / (frequency + penalties[posting.document as usize]);
            }
            terms.push(Some((statistics.idf(frequency), range)));
        }
        Ok(Self { index, terms, saturated })
    }

    /// Offers to `best` the passages of one question. `scores` are zeros, before and after.
    fn score(&self, question: &[(u32, f64)], scores: &mut [f64], best: &mut Best) {
        let held = || {
            let terms = question.iter().map(|(term, times)| (&self.terms[*term as usize], times));
            terms.filter_map(|(held, times)| held.as_ref().map(|(idf, range)| (range.clone(), times * idf)))
        };
        for (range, weight) in held() {
            for (posting, saturated) in self.index.postings[range.clone()].iter().zip(&self.saturated[range])
            {
                scores[posting.document as usize] += weight * saturated;
            }
        }
        let mut limit = best.threshold();
        let mut offer = |document: usize, score: f64| {
            // Every passage that shares a term has a score above zero.
            let score = score as f32;
            if score > 0.0 && score >= limit {
                best.offer(Hit { row: self.index.first_row + document as u64, score });
                limit = best.threshold();
            }
        };
        // Few postings are looked up once more, many are found by looking at every score.
        if held().map(|(range, _)| range.len()).sum::<usize>() < scores.len() / 8 {
            for posting in held().flat_map(|(range, _)| &self.index.postings[range]) {
                let score = std::mem::take(&mut scores[posting.document as usize]);
                offer(posting.document as usize, score);
            }
        } else {
            scores.iter().enumerate().for_each(|(document, score)| offer(document, *score));
            scores.fill(0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mining::counter;
    use proptest::prelude::*;

    const TEXTS: [&str; 5] = [
        "The cat sat on the mat.",
        "A dog and a cat, cats everywhere",
        "Dogs bark",
        "",
        "An entirely different sentence about oil prices and oil",
    ];

    fn ask(
        index: &ShardIndex,
        statistics: &CorpusStatistics,
        parameters: Bm25,
        query: &str,
        k: usize,
    ) -> Result<Vec<Hit>, Bm25Error> {
        let mut top = TopK::new(1, k);
        index.search(statistics, parameters, &Questions::new(&[query]), 1, &mut top)?;
        Ok(top.into_ranked().remove(0))
    }

    fn search(texts: &[&str], query: &str, k: usize) -> Vec<Hit> {
        let index = ShardIndex::build(0, texts, 1).unwrap();
        ask(&index, &index.statistics(), Bm25::default(), query, k).unwrap()
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
        let statistics = ShardIndex::build(0, &["b a c", "c"], 1).unwrap().statistics();
        let text = serde_json::to_string(&statistics).unwrap();
        assert_eq!(text, r#"{"documents":2,"total_length":3,"document_frequencies":{"b":1,"c":2}}"#);
        assert_eq!(serde_json::from_str::<CorpusStatistics>(&text).unwrap(), statistics);
    }

    #[test]
    fn bad_parameters_and_foreign_statistics_are_refused() {
        let index = ShardIndex::build(3, &TEXTS, 1).unwrap();
        let own = index.statistics();
        for (k1, b) in [(-0.1, 0.4), (f64::NAN, 0.4), (f64::INFINITY, 0.4), (0.9, 1.1), (0.9, f64::NAN)] {
            let refused = ask(&index, &own, Bm25 { k1, b }, "cat", 1);
            assert!(matches!(refused, Err(Bm25Error::Parameters { .. })));
        }
        let foreign = Err(Bm25Error::ForeignStatistics { first_row: 3 });
        let empty = CorpusStatistics::default();
        assert_eq!(ask(&index, &empty, Bm25::default(), "cat", 1), foreign);
        let other = CorpusStatistics { document_frequencies: BTreeMap::new(), ..own };
        assert_eq!(ask(&index, &other, Bm25::default(), "cat", 1), foreign);
    }

    proptest! {
        /// A small vocabulary, so that terms repeat and scores tie.
        #[test]
        fn shards_with_the_corpus_statistics_equal_one_index(
            texts in prop::collection::vec("([xyzw]{1,2} ){0,8}", 0..30),
            query in "([xyzw]{1,2} ){1,4}",
            cut in 0.0f64..1.0,
        ) {
            let whole = ShardIndex::build(0, &texts, 1).unwrap();
            let expected = ask(&whole, &whole.statistics(), Bm25::default(), &query, 5).unwrap();

            let cut = (cut * texts.len() as f64) as usize;
            let shards = [
                ShardIndex::build(0, &texts[..cut], 1).unwrap(),
                ShardIndex::build(cut as u64, &texts[cut..], 3).unwrap(),
            ];
            let mut statistics = CorpusStatistics::default();
            shards.iter().for_each(|shard| statistics.merge(&shard.statistics()));
            prop_assert_eq!(&statistics, &whole.statistics());
            let mut top = TopK::new(1, 5);
            for shard in &shards {
                shard.search(&statistics, Bm25::default(), &Questions::new(&[&query]), 1, &mut top).unwrap();
            }
            prop_assert_eq!(&top.into_ranked()[0], &expected);
        }
    }

    #[test]
    fn threads_change_nothing_and_every_score_is_that_of_the_formula() {
        let words = |seed: u64, count: usize| -> String {
            let word = |i: usize| {
                let uniform = counter::unit(counter::hash(seed, &[i as u64]));
                format!("w{} ", 300f64.powf(uniform) as u64)
            };
            (0..count).map(word).collect()
        };
        let texts: Vec<String> = (0..500).map(|i| words(i, 5 + i as usize % 40)).collect();
        let queries: Vec<String> = (0..150).map(|i| words(1000 + i, 1 + i as usize % 6)).collect();
        let index = ShardIndex::build(7, &texts, 1).unwrap();
        let statistics = index.statistics();
        let find = |index: &ShardIndex, threads| {
            let mut top = TopK::new(queries.len(), 20);
            index.search(&statistics, Bm25::default(), &Questions::new(&queries), threads, &mut top).unwrap();
            top.into_ranked()
        };
        let found = find(&index, 1);
        let threaded = ShardIndex::build(7, &texts, 3).unwrap();
        assert_eq!((threaded.statistics(), find(&threaded, 4)), (statistics.clone(), found.clone()));
        let (average, Bm25 { k1, b }) = (statistics.total_length as f64 / 500.0, Bm25::default());
        for (query, hits) in queries.iter().zip(&found) {
            let score = |text: &String| -> f64 {
                let held: Vec<&str> = text.split_whitespace().collect();
                let each = query.split_whitespace().map(|term| {
                    let frequency = held.iter().filter(|word| **word == term).count() as f64;
                    let holding = statistics.document_frequencies.get(term).copied().unwrap_or(0);
                    let idf = statistics.idf(holding);
                    let penalty = k1 * (1.0 - b + b * held.len() as f64 / average);
                    if frequency == 0.0 { 0.0 } else { idf * frequency / (frequency + penalty) }
                });
                each.sum()
            };
            let mut best: Vec<f64> = texts.iter().map(score).filter(|score| *score > 0.0).collect();
            best.sort_by(|a, b| b.total_cmp(a));
            assert_eq!(hits.len(), best.len().min(20), "{query}");
            for (hit, best) in hits.iter().zip(best) {
                assert!((f64::from(hit.score) - best).abs() < 1e-5, "{query}");
                assert!((score(&texts[hit.row as usize - 7]) - best).abs() < 1e-5, "{query}");
            }
        }
    }
}
