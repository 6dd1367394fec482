//! Tokenisers and token batches.
//!
//! - [`Tokenizer`]: a Hugging Face `tokenizer.json`, with truncation under our control
//! - `vocabulary`: what becomes one: `vocab.txt`, or `vocab.json` with `merges.txt`
//! - [`TokenBatch`]: token ids padded to a common width
//! - [`plan_batches`]: which texts are computed together, a pure function of their lengths

mod vocabulary;

pub use vocabulary::SpecialTokens;

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use tokenizers::utils::truncation::{TruncationDirection, TruncationParams, truncate_encodings};

/// Why a tokeniser could not be loaded or applied.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// The file could not be read or parsed.
    #[error(
        "cannot load tokenizer {path}: {cause}; give a tokenizer.json written by Hugging Face tokenizers"
    )]
    Load {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        cause: String,
    },
    /// The tokeniser may produce ids that the model has no embedding for.
    #[error(
        "tokenizer/vocabulary mismatch: {path} has token id {largest}, the model has {vocabulary_size} embeddings; \
         use the tokenizer that belongs to the model"
    )]
    Vocabulary {
        /// The file.
        path: PathBuf,
        /// The largest id in the tokeniser's vocabulary.
        largest: u32,
        /// The number of rows of the model's word embedding.
        vocabulary_size: usize,
    },
    /// The tokeniser refused a text.
    #[error("cannot tokenize a text of {bytes} bytes: {cause}")]
    Encode {
        /// Length of the text.
        bytes: usize,
        /// What the tokeniser said.
        cause: String,
    },
    /// No room is left for a token of the text.
    #[error("max length {max_length} leaves no room beside {special} special tokens; raise it")]
    MaxLength {
        /// What was asked for.
        max_length: usize,
        /// Number of special tokens that the tokeniser adds.
        special: usize,
    },
}

/// A Hugging Face tokeniser. Truncation and padding settings found in the file are ignored: the caller decides
/// the length, and batches are padded by [`TokenBatch`].
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Special tokens around one text.
    special: usize,
    /// Special tokens around and between two.
    pair_special: usize,
}

impl Tokenizer {
    /// Loads `tokenizer.json` for a model whose word embedding has `vocabulary_size` rows.
    pub fn load(path: &Path, vocabulary_size: usize) -> Result<Self, TextError> {
        let load = |cause: String| TextError::Load { path: path.to_owned(), cause };
        let bytes = std::fs::read(path).map_err(|error| load(error.to_string()))?;
        Self::parse(path, &bytes, vocabulary_size)
    }

    /// Loads the tokeniser of a model's folder, from `tokenizer.json` or from the older vocabulary files.
    pub fn open(folder: &Path, vocabulary_size: usize) -> Result<Self, TextError> {
        let (path, bytes) = vocabulary::tokenizer_json(folder)?;
        Self::parse(&path, &bytes, vocabulary_size)
    }

    /// The `tokenizer.json` of a model's folder, made from older vocabulary files where it has none.
    pub fn json(folder: &Path) -> Result<Vec<u8>, TextError> {
        vocabulary::tokenizer_json(folder).map(|(_, bytes)| bytes)
    }

    fn parse(path: &Path, bytes: &[u8], vocabulary_size: usize) -> Result<Self, TextError> {
        let load = |cause: String| TextError::Load { path: path.to_owned(), cause };
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| load(error.to_string()))?;
        inner.with_truncation(None).map_err(|error| load(error.to_string()))?;
        inner.with_padding(None);
        let largest = inner
            .get_vocab(true)
            .into_values()
            .max()
            .ok_or_else(|| load("the vocabulary is empty".to_owned()))?;
        if largest as usize >= vocabulary_size {
            return Err(TextError::Vocabulary { path: path.to_owned(), largest, vocabulary_size });
        }
        let special = inner.encode_fast("", true).map_err(|error| load(error.to_string()))?.len();
        let pair_special = inner.encode_fast(("", ""), true).map_err(|error| load(error.to_string()))?.len();
        Ok(Self { inner, special, pair_special })
    }

    /// Token ids of `text` with special tokens, at most `max_length` of them in all.
    pub fn encode(&self, text: &str, max_length: usize) -> Result<Vec<u32>, TextError> {
        if max_length <= self.special {
            return Err(TextError::MaxLength { max_length, special: self.special });
        }
        let refuse =
            |error: tokenizers::Error| TextError::Encode { bytes: text.len(), cause: error.to_string() };
        // The text is cut before the special tokens are put around it, so that the closing one survives.
        let mut encoding = self.inner.encode_fast(text, false).map_err(refuse)?;
        encoding.truncate(max_length - self.special, 0, TruncationDirection::Right);
        let encoding = self.inner.post_process(encoding, None, true).map_err(refuse)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Token ids of a pair of texts with special tokens and the type of each token (0 for the first text's), at most
    /// `max_length` of them in all: the longer text is cut first.
    pub fn encode_pair(
        &self,
        first: &str,
        second: &str,
        max_length: usize,
    ) -> Result<(Vec<u32>, Vec<u32>), TextError> {
        let special = self.pair_special;
        if max_length <= special {
            return Err(TextError::MaxLength { max_length, special });
        }
        let bytes = first.len() + second.len();
        let refuse = |error: tokenizers::Error| TextError::Encode { bytes, cause: error.to_string() };
        let a = self.inner.encode_fast(first, false).map_err(refuse)?;
        let mut b = self.inner.encode_fast(second, false).map_err(refuse)?;
        b.set_type_ids(vec![1; b.len()]);
        let params = TruncationParams { max_length: max_length - special, ..TruncationParams::default() };
        let (a, b) = truncate_encodings(a, Some(b), &params).map_err(refuse)?;
        let encoding = self.inner.post_process(a, b, true).map_err(refuse)?;
        Ok((encoding.get_ids().to_vec(), encoding.get_type_ids().to_vec()))
    }

    /// [`Tokenizer::encode`] of many texts on `threads` threads; the result does not depend on their number.
    pub fn encode_all<T: AsRef<str> + Sync>(
        &self,
        texts: &[T],
        max_length: usize,
        threads: usize,
    ) -> Result<Vec<Vec<u32>>, TextError> {
        if threads <= 1 || texts.len() < 2 {
            return texts.iter().map(|text| self.encode(text.as_ref(), max_length)).collect();
        }
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .map_err(|error| TextError::Encode { bytes: 0, cause: error.to_string() })?;
        pool.install(|| texts.par_iter().map(|text| self.encode(text.as_ref(), max_length)).collect())
    }
}

/// Token ids of several texts, padded on the right to a common width.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenBatch {
    /// Ids of shape [rows, width], row after row.
    pub ids: Vec<u32>,
    /// Number of real tokens in each row, at most `width`.
    pub lengths: Vec<u32>,
    /// Length of the longest row.
    pub width: usize,
}

impl TokenBatch {
    /// Pads `rows` with `pad_id` to the longest of them.
    pub fn new(rows: &[&[u32]], pad_id: u32) -> Self {
        let width = rows.iter().map(|row| row.len()).max().unwrap_or(0);
        let mut ids = Vec::with_capacity(rows.len() * width);
        for row in rows {
            ids.extend_from_slice(row);
            ids.resize(ids.len() + width - row.len(), pad_id);
        }
        let lengths = rows.iter().map(|row| row.len() as u32).collect();
        Self { ids, lengths, width }
    }

    /// Number of texts.
    pub fn rows(&self) -> usize {
        self.lengths.len()
    }

    /// Whether any row is shorter than the width.
    pub fn is_padded(&self) -> bool {
        self.lengths.iter().any(|length| *length as usize != self.width)
    }
}

/// Cuts texts of the given token `lengths` into batches of indices, longest texts first, so that rows times width
/// of each batch is at most `batch_tokens`. A text longer than that is a batch of its own.
///
/// The plan depends on nothing but its arguments: the bits of an embedding may depend on the batch that it was
/// computed in, hence never on the machine.
pub fn plan_batches(lengths: &[u32], batch_tokens: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|index| (std::cmp::Reverse(lengths[*index]), *index));
    let mut batches = Vec::new();
    let mut rest = order.as_slice();
    while let Some(first) = rest.first() {
        // The first text is the longest left, so its length is the width of the batch.
        let width = (lengths[*first] as usize).max(1);
        let rows = (batch_tokens / width).clamp(1, rest.len());
        let (batch, tail) = rest.split_at(rows);
        batches.push(batch.to_vec());
        rest = tail;
    }
    batches
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A word-level tokeniser with a vocabulary of five, BERT-like special tokens, and settings to be overridden.
    fn tiny() -> String {
        serde_json::json!({
            "version": "1.0",
            "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
            "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null,
                        "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
            "added_tokens": [], "normalizer": null, "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]},
            "decoder": null,
            "model": {"type": "WordLevel", "unk_token": "[UNK]",
                      "vocab": {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "cat": 4}}
        })
        .to_string()
    }

    #[test]
    fn truncation_keeps_the_special_tokens_and_ignores_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        std::fs::write(&path, tiny()).unwrap();
        let tokenizer = Tokenizer::load(&path, 5).unwrap();
        let check = |text, max_length, ids: &[u32]| {
            assert_eq!(tokenizer.encode(text, max_length).unwrap(), ids, "{text:?} at {max_length}")
        };
        check("", 8, &[1, 2]);
        check("cat cat dog cat", 8, &[1, 4, 4, 3, 4, 2]);
        check("cat cat dog cat", 5, &[1, 4, 4, 3, 2]);
        check("cat cat dog cat", 3, &[1, 4, 2]);
        assert!(tokenizer.encode("cat", 2).unwrap_err().to_string().contains("no room"));
        let texts = ["cat", "", "dog cat"];
        assert_eq!(tokenizer.encode_all(&texts, 8, 1).unwrap(), tokenizer.encode_all(&texts, 8, 3).unwrap());
    }

    #[test]
    fn refusals_name_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        assert!(Tokenizer::load(&path, 5).unwrap_err().to_string().contains("tokenizer.json"));
        std::fs::write(&path, &tiny()[..40]).unwrap();
        assert!(Tokenizer::load(&path, 5).unwrap_err().to_string().contains("tokenizer.json"));
        std::fs::write(&path, tiny()).unwrap();
        let message = Tokenizer::load(&path, 4).unwrap_err().to_string();
        assert!(message.contains("mismatch") && message.contains("tokenizer.json"), "{message}");
    }

    #[test]
    fn batches_are_padded_to_the_longest_row() {
        let batch = TokenBatch::new(&[&[5, 6, 7], &[8]], 0);
        assert_eq!(batch.ids, [5, 6, 7, 8, 0, 0]);
        assert_eq!((batch.lengths.as_slice(), batch.width, batch.is_padded()), (&[3u32, 1][..], 3, true));
        assert!(!TokenBatch::new(&[&[1, 2], &[3, 4]], 0).is_padded());
    }

    proptest! {
        #[test]
        fn a_plan_holds_each_text_once_within_the_budget(
            lengths in proptest::collection::vec(0u32..600, 0..200),
            batch_tokens in 0usize..4096,
        ) {
            let plan = plan_batches(&lengths, batch_tokens);
            let mut seen: Vec<usize> = plan.iter().flatten().copied().collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
            for batch in &plan {
                let width = batch.iter().map(|index| lengths[*index] as usize).max().unwrap();
                prop_assert!(batch.len() == 1 || batch.len() * width <= batch_tokens);
            }
            prop_assert!(plan.iter().flatten().is_sorted_by_key(|index| std::cmp::Reverse(lengths[*index])));
        }
    }
}
