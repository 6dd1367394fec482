//! English text to BM25 terms: Unicode words, lower-cased, without Lucene's stop words, stemmed.
//!
//! This follows Lucene's `EnglishAnalyzer` with the Snowball English (Porter 2) stemmer in the place of
//! the first Porter stemmer; the possessive `'s` is cut by the stemmer itself.

use rust_stemmers::{Algorithm, Stemmer};
use std::borrow::Cow;
use unicode_segmentation::UnicodeSegmentation;

/// The stop words of Lucene's `EnglishAnalyzer`, sorted.
const STOP_WORDS: [&str; 33] = [
    "a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is", "it", "no",
    "not", "of", "on", "or", "such", "that", "the", "their", "then", "there", "these", "they", "this", "to",
    "was", "will", "with",
];

/// Turns text into terms, the same way for passages and queries.
pub struct Analyzer {
    stemmer: Stemmer,
}

impl Default for Analyzer {
    fn default() -> Self {
        Self { stemmer: Stemmer::create(Algorithm::English) }
    }
}

impl Analyzer {
    /// Calls `each` with every term of `text`, in order.
    pub fn for_each_term(&self, text: &str, mut each: impl FnMut(&str)) {
        for_each_word(text, |word| {
            let term = self.stem(word);
            if !term.is_empty() {
                each(&term);
            }
        });
    }

    /// The term of a word as [`for_each_word`] gives it; empty where nothing is left of it.
    pub fn stem<'a>(&self, word: &'a str) -> Cow<'a, str> {
        self.stemmer.stem(word)
    }

    /// The terms of `text`, in order.
    pub fn terms(&self, text: &str) -> Vec<String> {
        let mut terms = Vec::new();
        self.for_each_term(text, |term| terms.push(term.to_owned()));
        terms
    }
}

/// Calls `each` with every lower-cased word of `text` that is no stop word, in order.
pub fn for_each_word(text: &str, mut each: impl FnMut(&str)) {
    let mut word = String::new();
    for found in text.unicode_words() {
        if found.is_ascii() {
            // Most words: no new string for each.
            word.clear();
            word.push_str(found);
            word.make_ascii_lowercase();
        } else {
            // The stemmer knows the possessive only by the straight apostrophe.
            word = found.to_lowercase().replace(['\u{2019}', '\u{ff07}'], "'");
        }
        if STOP_WORDS.binary_search(&word.as_str()).is_err() {
            each(&word);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[&str]) {
        assert_eq!(Analyzer::default().terms(text), expected, "{text:?}");
    }

    #[test]
    fn text_becomes_lower_cased_stemmed_words_without_stop_words() {
        check("", &[]);
        check("The cats and THE dogs", &["cat", "dog"]);
        check("connection, connected; connecting!", &["connect", "connect", "connect"]);
        check("the nation's oil, the nation\u{2019}s oil", &["nation", "oil", "nation", "oil"]);
        check("5,000 people in 1973", &["5,000", "peopl", "1973"]);
        check("Straße São", &["straße", "são"]);
        check("to be or not", &[]);
    }

    #[test]
    fn stop_words_are_sorted_for_the_binary_search() {
        assert!(STOP_WORDS.is_sorted());
    }
}
