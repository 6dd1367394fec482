//! Whether a passage holds an answer, by the rule behind DPR's top-k accuracy (Karpukhin et al., EMNLP 2020;
//! `SimpleTokenizer` and `has_answer` of its code).
//!
//! Text and answer are brought to Unicode NFD and cut into tokens, and each token is then lower-cased; the
//! passage has the answer where the answer's tokens stand in it as a contiguous run. Punctuation, articles
//! and accents stay. Only the passage's body is searched, not its title.

use std::sync::LazyLock;

use regex::{Regex, RegexBuilder};
use unicode_normalization::UnicodeNormalization;

static TOKEN: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]").expect("the token pattern is valid"));
/// Bounds the memory of one compiled answer; patterns come from data sets.
const MAX_PATTERN_BYTES: usize = 1 << 20;

/// A passage made ready, so that many answers are looked for at the cost of one tokenisation.
pub struct AnswerText {
    normalized: String,
    tokens: Vec<String>,
}

impl AnswerText {
    /// Normalises and tokenises the body of a passage.
    pub fn new(text: &str) -> Self {
        let normalized: String = text.nfd().collect();
        let tokens = tokens(&normalized);
        Self { normalized, tokens }
    }

    /// Whether the passage holds `answer`. An answer without tokens is in no passage.
    pub fn has(&self, answer: &Answer) -> bool {
        match answer {
            Answer::Tokens(answer) => {
                !answer.is_empty() && self.tokens.windows(answer.len()).any(|run| run == answer)
            }
            Answer::Pattern(pattern) => {
                pattern.as_ref().is_some_and(|pattern| pattern.is_match(&self.normalized))
            }
        }
    }

    /// Whether the passage holds any of `answers`.
    pub fn has_any(&self, answers: &[Answer]) -> bool {
        answers.iter().any(|answer| self.has(answer))
    }
}

/// An accepted answer of a question, made ready.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Tokens that must stand in the passage as a contiguous run.
    Tokens(Vec<String>),
    /// A regular expression that must match somewhere; none if it is invalid, which matches nothing.
    Pattern(Option<Regex>),
}

impl Answer {
    /// An answer given as text.
    pub fn text(answer: &str) -> Self {
        let normalized: String = answer.nfd().collect();
        Self::Tokens(tokens(&normalized))
    }

    /// An answer given as a regular expression, as CuratedTREC's are: case-insensitive, with `^` and `$` at
    /// line breaks, on NFD text. What the `regex` crate does not know (look-around, back-references) counts
    /// as invalid.
    pub fn pattern(answer: &str) -> Self {
        let normalized: String = answer.nfd().collect();
        let pattern = RegexBuilder::new(&normalized)
            .case_insensitive(true)
            .multi_line(true)
            .size_limit(MAX_PATTERN_BYTES)
            .build();
        Self::Pattern(pattern.ok())
    }
}

fn tokens(normalized: &str) -> Vec<String> {
    TOKEN.find_iter(normalized).map(|token| token.as_str().to_lowercase()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(answer: &Answer, text: &str, expected: bool) {
        assert_eq!(AnswerText::new(text).has(answer), expected, "{answer:?} in {text:?}");
    }

    #[test]
    fn text_answers_are_contiguous_runs_of_tokens() {
        for (answer, text, expected) in [
            ("U.S.A.", "USA", false),
            ("USA", "the U.S.A.", false),
            ("u.s.a.", "the U.S.A. won", true),
            ("caf\u{e9}", "a cafe\u{301} there", true),
            ("cafe\u{301}", "a caf\u{e9} there", true),
            ("cafe", "a caf\u{e9} there", false),
            ("5000", "about 5,000 men", false),
            ("5,000", "about 5,000 men", true),
            ("don", "they don't", true),
            ("a", "a_b", true),
            ("東京", "東京タワー", false),
            ("東京タワー", "東京タワー", true),
            ("October 1973", "in october\n1973", true),
            ("October 1973", "October of 1973", false),
            ("civil-disobedience", "civil disobedience", false),
            ("", "anything", false),
            ("\u{a0}", "anything", false),
            ("a b c", "a b", false),
            ("ΟΔΟΣ", "η οδο\u{3c2}", true),
        ] {
            check(&Answer::text(answer), text, expected);
        }
    }

    #[test]
    fn pattern_answers_ignore_case_and_invalid_ones_match_nothing() {
        for (pattern, text, expected) in [
            ("19\\d\\d", "in 1973", true),
            ("lake (erie|huron)", "Lake HURON", true),
            ("^second$", "first\nsecond\nthird", true),
            ("caf\u{e9}", "cafe\u{301}", true),
            ("(unclosed", "(unclosed", false),
            ("x(?=y)", "xy", false),
            ("huron", "erie", false),
        ] {
            check(&Answer::pattern(pattern), text, expected);
        }
        assert!(AnswerText::new("b").has_any(&[Answer::text("a"), Answer::text("b")]));
        assert!(!AnswerText::new("b").has_any(&[]));
    }
}
