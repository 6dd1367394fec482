//! Tokenisers from the files that came before `tokenizer.json`: BERT's `vocab.txt`, and `vocab.json` with `merges.txt`
//! as RoBERTa has them. The result is what Hugging Face's own conversion gives, as the text of a `tokenizer.json`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::TextError;

/// Largest vocabulary file that is read.
const VOCABULARY_BYTES: u64 = 256 << 20;

/// The text of a folder's `tokenizer.json`: the file itself, or one made from its vocabulary. Also the path of the
/// file that it comes from, for messages.
pub(super) fn tokenizer_json(folder: &Path) -> Result<(PathBuf, Vec<u8>), TextError> {
    let [whole, words, pairs] = ["tokenizer.json", "vocab.txt", "vocab.json"].map(|name| folder.join(name));
    if whole.exists() || !(words.exists() || pairs.exists()) {
        let bytes = read(&whole)?;
        return Ok((whole, bytes));
    }
    let settings = Settings::read(folder)?;
    let (path, value) = if words.exists() {
        (words.clone(), word_piece(&words, &settings)?)
    } else {
        (pairs.clone(), byte_pair(folder, &settings)?)
    };
    Ok((path, value.to_string().into_bytes()))
}

fn load(path: &Path, cause: impl std::fmt::Display) -> TextError {
    TextError::Load { path: path.to_owned(), cause: cause.to_string() }
}

fn read(path: &Path) -> Result<Vec<u8>, TextError> {
    let bytes = std::fs::metadata(path).map_err(|error| load(path, error))?.len();
    if bytes > VOCABULARY_BYTES {
        return Err(load(path, format!("{bytes} bytes are more than {VOCABULARY_BYTES}")));
    }
    std::fs::read(path).map_err(|error| load(path, error))
}

/// What `tokenizer_config.json` and `special_tokens_map.json` say.
struct Settings {
    values: Map<String, Value>,
}

impl Settings {
    fn read(folder: &Path) -> Result<Self, TextError> {
        let mut values = Map::new();
        // The later file wins: the configuration is what the model's author edits.
        for name in ["special_tokens_map.json", "tokenizer_config.json"] {
            let path = folder.join(name);
            if !path.exists() {
                continue;
            }
            let read: Value = serde_json::from_slice(&read(&path)?).map_err(|error| load(&path, error))?;
            let Value::Object(read) = read else { return Err(load(&path, "not an object")) };
            values.extend(read);
        }
        Ok(Self { values })
    }

    fn flag(&self, name: &str, default: bool) -> bool {
        self.values.get(name).and_then(Value::as_bool).unwrap_or(default)
    }

    /// A special token's text, written plainly or as an object.
    fn token(&self, name: &str, default: &str) -> String {
        let value = self.values.get(name);
        let text = value.and_then(|value| value.as_str().or_else(|| value.get("content")?.as_str()));
        text.unwrap_or(default).to_owned()
    }
}

/// The special tokens of a vocabulary: their roles, and those of them that stand in the vocabulary.
struct Special {
    cls: String,
    sep: String,
    unknown: String,
    added: Vec<Value>,
}

impl Special {
    fn find(
        path: &Path,
        settings: &Settings,
        defaults: [&str; 5],
        vocabulary: &BTreeMap<String, u32>,
    ) -> Result<Self, TextError> {
        let roles = ["cls_token", "sep_token", "unk_token", "pad_token", "mask_token"];
        let tokens: Vec<String> =
            roles.iter().zip(defaults).map(|(role, default)| settings.token(role, default)).collect();
        for (role, token) in roles.iter().zip(&tokens).take(3) {
            if !vocabulary.contains_key(token) {
                return Err(load(path, format!("the {role} {token:?} is not in the vocabulary")));
            }
        }
        let mut found: Vec<(u32, Value)> = Vec::new();
        for (role, token) in roles.iter().zip(&tokens) {
            let Some(id) = vocabulary.get(token) else { continue };
            // A mask takes the space before it, as Hugging Face's byte-pair tokenisers have it.
            let lstrip = *role == "mask_token" && token == "<mask>";
            found.push((
                *id,
                json!({
                    "id": id, "content": token, "single_word": false, "lstrip": lstrip, "rstrip": false,
                    "normalized": false, "special": true,
                }),
            ));
        }
        found.sort_by_key(|(id, _)| *id);
        found.dedup_by_key(|(id, _)| *id);
        let [cls, sep, unknown, ..] = tokens.as_slice() else { unreachable!("there are five roles") };
        Ok(Self {
            cls: cls.clone(),
            sep: sep.clone(),
            unknown: unknown.clone(),
            added: found.into_iter().map(|(_, token)| token).collect(),
        })
    }
}

fn word_piece(path: &Path, settings: &Settings) -> Result<Value, TextError> {
    let bytes = read(path)?;
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        let line = 1 + bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
        load(path, format!("line {line} is not UTF-8"))
    })?;
    let mut vocabulary = BTreeMap::new();
    for (id, line) in text.lines().enumerate() {
        // A token that stands twice has the later id, as in Hugging Face's reader.
        vocabulary.insert(line.trim_end().to_owned(), id as u32);
    }
    let special = Special::find(path, settings, ["[CLS]", "[SEP]", "[UNK]", "[PAD]", "[MASK]"], &vocabulary)?;
    let id = |token: &String| vocabulary[token];
    let strip = settings.values.get("strip_accents").cloned().unwrap_or(Value::Null);
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": special.added,
        "normalizer": {
            "type": "BertNormalizer", "clean_text": settings.flag("clean_text", true),
            "handle_chinese_chars": settings.flag("tokenize_chinese_chars", true),
            "strip_accents": strip, "lowercase": settings.flag("do_lower_case", true),
        },
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "post_processor": { "type": "BertProcessing",
            "sep": [special.sep, id(&special.sep)], "cls": [special.cls, id(&special.cls)] },
        "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
        "model": {
            "type": "WordPiece", "unk_token": special.unknown, "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocabulary,
        },
    }))
}

fn byte_pair(folder: &Path, settings: &Settings) -> Result<Value, TextError> {
    let [vocabulary_path, merges_path] = ["vocab.json", "merges.txt"].map(|name| folder.join(name));
    let vocabulary: BTreeMap<String, u32> =
        serde_json::from_slice(&read(&vocabulary_path)?).map_err(|error| load(&vocabulary_path, error))?;
    let text = String::from_utf8(read(&merges_path)?).map_err(|error| load(&merges_path, error))?;
    let merges =
        text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with("#version"));
    let merges = merges
        .map(|(number, line)| match line.split(' ').collect::<Vec<_>>().as_slice() {
            [left, right] => Ok(json!([left, right])),
            _ => Err(load(&merges_path, format!("line {} is not two tokens", number + 1))),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let defaults = ["<s>", "</s>", "<unk>", "<pad>", "<mask>"];
    let special = Special::find(&vocabulary_path, settings, defaults, &vocabulary)?;
    let space = settings.flag("add_prefix_space", false);
    let id = |token: &String| vocabulary[token];
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": special.added, "normalizer": null,
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": space, "trim_offsets": true, "use_regex": true },
        "post_processor": { "type": "RobertaProcessing", "trim_offsets": true, "add_prefix_space": space,
            "sep": [special.sep, id(&special.sep)], "cls": [special.cls, id(&special.cls)] },
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": special.unknown, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": merges,
        },
    }))
}

/// The names of a tokenizer's special tokens, for the `tokenizer_config.json` of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecialTokens {
    /// By role, such as "pad_token".
    by_role: BTreeMap<&'static str, String>,
}

impl SpecialTokens {
    /// The roles of `folder`'s settings, and where those are silent BERT's or RoBERTa's names, whichever stand in the
    /// vocabulary of `tokenizer`, a `tokenizer.json`.
    pub fn of_folder(folder: &Path, tokenizer: &Path) -> Result<Self, TextError> {
        let settings = Settings::read(folder)?;
        let inner =
            tokenizers::Tokenizer::from_bytes(read(tokenizer)?).map_err(|error| load(tokenizer, error))?;
        let known = [
            ("cls_token", ["[CLS]", "<s>"]),
            ("sep_token", ["[SEP]", "</s>"]),
            ("pad_token", ["[PAD]", "<pad>"]),
            ("unk_token", ["[UNK]", "<unk>"]),
            ("mask_token", ["[MASK]", "<mask>"]),
        ];
        let mut by_role = BTreeMap::new();
        for (role, names) in known {
            let own = settings.token(role, "");
            let found = [own.as_str(), names[0], names[1]];
            let found = found.into_iter().find(|name| !name.is_empty() && inner.token_to_id(name).is_some());
            if let Some(name) = found {
                by_role.insert(role, name.to_owned());
            }
        }
        Ok(Self { by_role })
    }

    /// The `tokenizer_config.json` beside a `tokenizer.json`.
    pub fn config(&self, max_tokens: usize) -> Value {
        let mut config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_tokens,
            "clean_up_tokenization_spaces": false,
        });
        for (role, name) in &self.by_role {
            config[*role] = json!(name);
        }
        config
    }
}

#[cfg(test)]
mod tests {
    use super::super::Tokenizer;

    fn write(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, text)| std::fs::write(folder.path().join(name), text).unwrap());
        folder
    }

    const WORDS: &str = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ncat\nca\n##t\n##s\nCat\nc\n\u{e9}t\u{e9}\nete\n";

    #[test]
    fn a_word_piece_vocabulary_becomes_a_tokenizer() {
        let check = |config: &str, text: &str, ids: &[u32]| {
            let folder = write(&[("vocab.txt", WORDS), ("tokenizer_config.json", config)]);
            let tokenizer = Tokenizer::open(folder.path(), 13).unwrap();
            assert_eq!(tokenizer.encode(text, 16).unwrap(), ids, "{text:?} with {config}");
        };
        check("{}", "Cats [SEP] dog", &[2, 5, 8, 3, 1, 3]);
        check(r#"{"do_lower_case": false}"#, "Cats", &[2, 9, 8, 3]);
        check("{}", "\u{c9}t\u{e9}", &[2, 12, 3]);
        check(r#"{"strip_accents": false}"#, "\u{c9}t\u{e9}", &[2, 11, 3]);
    }

    #[test]
    fn a_byte_pair_vocabulary_becomes_a_tokenizer() {
        let vocabulary = r#"{"<s>":0,"<pad>":1,"</s>":2,"<unk>":3,"c":4,"a":5,"t":6,"ca":7,"cat":8,"Ġ":9,"Ġcat":10,"<mask>":11}"#;
        let merges = "#version: 0.2\nc a\nca t\nĠ cat\n";
        let folder = write(&[("vocab.json", vocabulary), ("merges.txt", merges)]);
        let tokenizer = Tokenizer::open(folder.path(), 12).unwrap();
        assert_eq!(tokenizer.encode("cat cat<mask>", 16).unwrap(), [0, 8, 10, 11, 2]);
    }

    #[test]
    fn refusals_name_file_and_line() {
        let check = |files: &[(&str, &str)], words: &[&str]| {
            let folder = write(files);
            let message = Tokenizer::open(folder.path(), 100).unwrap_err().to_string();
            words.iter().for_each(|word| assert!(message.contains(word), "{message:?} lacks {word:?}"));
        };
        check(&[], &["tokenizer.json"]);
        check(&[("vocab.txt", "a\nb\n")], &["vocab.txt", "cls_token", "[CLS]"]);
        check(&[("vocab.txt", WORDS), ("tokenizer_config.json", "{")], &["tokenizer_config.json"]);
        check(&[("vocab.json", "[]"), ("merges.txt", "")], &["vocab.json"]);
        check(&[("vocab.json", "{}"), ("merges.txt", "a b c\n")], &["merges.txt", "line 1"]);
        let folder = write(&[("vocab.txt", "")]);
        std::fs::write(folder.path().join("vocab.txt"), b"a\n\xff\n").unwrap();
        let message = Tokenizer::open(folder.path(), 100).unwrap_err().to_string();
        assert!(message.contains("line 2"), "{message}");
        let folder = write(&[("vocab.txt", WORDS)]);
        let message = Tokenizer::open(folder.path(), 12).unwrap_err().to_string();
        assert!(message.contains("vocab.txt") && message.contains("mismatch"), "{message}");
    }
}
