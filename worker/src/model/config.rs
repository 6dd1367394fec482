//! The shape of an encoder, read from and written to Hugging Face's `config.json`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::names::Architecture;

/// Activations that compute the exact GELU.
const EXACT_GELU: [&str; 2] = ["gelu", "gelu_python"];

/// Why a `config.json` was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not JSON.
    #[error("{path} is not valid json: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// An architecture that is not supported.
    #[error(
        "{path} describes the architecture {found:?}; supported are encoders of type bert, roberta, xlm-roberta, \
         distilbert, mpnet and dpr"
    )]
    Architecture {
        /// The file.
        path: PathBuf,
        /// Its `model_type`, or what stands there instead.
        found: String,
    },
    /// A field is missing or has a value that is not supported.
    #[error("{path}: {field} is {found}, expected {expected}")]
    Field {
        /// The file.
        path: PathBuf,
        /// Name of the field.
        field: &'static str,
        /// The value found.
        found: String,
        /// What is supported.
        expected: String,
    },
}

/// The shape of an encoder of BERT's family.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderConfig {
    /// Which member of the family.
    #[serde(default)]
    pub architecture: Architecture,
    /// Rows of the word embedding.
    pub vocabulary_size: usize,
    /// Width of the token states.
    pub hidden_size: usize,
    /// Number of transformer layers.
    pub layers: usize,
    /// Attention heads in a layer; divides `hidden_size`.
    pub heads: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Rows of the position embedding; [`EncoderConfig::max_tokens`] is the longest input.
    pub max_positions: usize,
    /// Rows of the token-type embedding; 0 where there is none.
    pub token_types: usize,
    /// Added to the variance in layer normalisation.
    pub layer_norm_epsilon: f64,
    /// The id that pads batches.
    pub pad_token_id: u32,
}

/// Sizes beyond these are taken for damage: a config must not make a worker allocate without limit.
const BOUNDS: [u64; 7] = [4 << 20, 16 << 10, 256, 1024, 128 << 10, 128 << 10, 16];
/// The fields of the sizes, in the order of [`BOUNDS`].
const FIELDS: [&str; 7] = [
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
];
/// The same in DistilBERT's config, which has no token types.
const DISTILBERT_FIELDS: [&str; 7] =
    ["vocab_size", "dim", "n_layers", "n_heads", "hidden_dim", "max_position_embeddings", ""];
/// MPNet's relative positions: buckets of distances, 32 in every checkpoint.
pub(super) const RELATIVE_BUCKETS: usize = 32;

impl EncoderConfig {
    /// Reads and validates `config.json`.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        Self::read_with_json(path).map(|(config, _)| config)
    }

    /// [`EncoderConfig::read`] with the document, which may say more.
    pub(super) fn read_with_json(path: &Path) -> Result<(Self, Value), ConfigError> {
        let bytes =
            std::fs::read(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let json: Value = serde_json::from_slice(&bytes)
            .map_err(|source| ConfigError::Json { path: path.to_owned(), source })?;
        let config = Self::from_json(&json, path)?;
        Ok((config, json))
    }

    /// Validates a parsed `config.json`; `path` is for messages only.
    pub fn from_json(json: &Value, path: &Path) -> Result<Self, ConfigError> {
        let refuse = |field, expected: String| ConfigError::Field {
            path: path.to_owned(),
            field,
            found: json.get(field).map_or("missing".to_owned(), Value::to_string),
            expected,
        };
        let architecture = architecture(json, path)?;
        let distilbert = architecture == Architecture::Distilbert;
        let activation = if distilbert { "activation" } else { "hidden_act" };
        if !json[activation].as_str().is_some_and(|name| EXACT_GELU.contains(&name)) {
            return Err(refuse(activation, format!("one of {EXACT_GELU:?}")));
        }
        if !json.get("position_embedding_type").is_none_or(|kind| kind == "absolute") {
            return Err(refuse("position_embedding_type", "\"absolute\"".to_owned()));
        }
        let buckets = json.get("relative_attention_num_buckets");
        if architecture == Architecture::Mpnet && buckets.is_some_and(|buckets| *buckets != RELATIVE_BUCKETS)
        {
            return Err(refuse("relative_attention_num_buckets", RELATIVE_BUCKETS.to_string()));
        }
        let fields = if distilbert { DISTILBERT_FIELDS } else { FIELDS };
        let typeless = distilbert || architecture == Architecture::Mpnet;
        let mut sizes = [0; 7];
        for (index, (size, (field, bound))) in
            sizes.iter_mut().zip(fields.into_iter().zip(BOUNDS)).enumerate()
        {
            if index == 6 && typeless {
                continue;
            }
            *size = json[field]
                .as_u64()
                .filter(|value| (1..=bound).contains(value))
                .ok_or_else(|| refuse(field, format!("a size from 1 to {bound}")))?
                as usize;
        }
        let [vocabulary_size, hidden_size, layers, heads, intermediate_size, max_positions, token_types] =
            sizes;
        // DistilBERT's config has no such field.
        let layer_norm_epsilon = if distilbert { Some(1e-12) } else { json["layer_norm_eps"].as_f64() };
        let layer_norm_epsilon = layer_norm_epsilon
            .filter(|epsilon| (0.0..=0.01).contains(epsilon))
            .ok_or_else(|| refuse("layer_norm_eps", "a number from 0 to 0.01".to_owned()))?;
        let pad_token_id = match json.get("pad_token_id") {
            None | Some(Value::Null) => u32::from(architecture.positions_follow_padding()),
            Some(id) => id
                .as_u64()
                .filter(|id| *id < vocabulary_size as u64)
                .ok_or_else(|| refuse("pad_token_id", format!("an id below {vocabulary_size}")))?
                as u32,
        };
        if !hidden_size.is_multiple_of(heads) {
            return Err(refuse(fields[1], format!("a multiple of {}, {heads}", fields[3])));
        }
        let config = Self {
            architecture,
            vocabulary_size,
            hidden_size,
            layers,
            heads,
            intermediate_size,
            max_positions,
            token_types,
            layer_norm_epsilon,
            pad_token_id,
        };
        if config.first_position() >= max_positions {
            let expected = format!("more than pad_token_id + 1 = {}", config.first_position());
            return Err(refuse("max_position_embeddings", expected));
        }
        Ok(config)
    }

    /// The row of the position embedding that the first token takes.
    pub fn first_position(&self) -> usize {
        if self.architecture.positions_follow_padding() { self.pad_token_id as usize + 1 } else { 0 }
    }

    /// The longest input in tokens.
    pub fn max_tokens(&self) -> usize {
        self.max_positions - self.first_position()
    }

    /// The `config.json` of this encoder; reading it back gives the same encoder.
    pub fn to_json(&self) -> Value {
        let (class, model_type) = match self.architecture {
            Architecture::Bert => ("BertModel", "bert"),
            Architecture::Roberta => ("RobertaModel", "roberta"),
            Architecture::XlmRoberta => ("XLMRobertaModel", "xlm-roberta"),
            Architecture::Distilbert => ("DistilBertModel", "distilbert"),
            Architecture::Mpnet => ("MPNetModel", "mpnet"),
        };
        let mut json = json!({
            "architectures": [class],
            "model_type": model_type,
            "initializer_range": 0.02,
            "max_position_embeddings": self.max_positions,
            "pad_token_id": self.pad_token_id,
            "vocab_size": self.vocabulary_size,
        });
        let more = if self.architecture == Architecture::Distilbert {
            json!({
                "activation": "gelu",
                "attention_dropout": 0.1,
                "dim": self.hidden_size,
                "dropout": 0.1,
                "hidden_dim": self.intermediate_size,
                "n_heads": self.heads,
                "n_layers": self.layers,
                "sinusoidal_pos_embds": false,
            })
        } else {
            json!({
                "attention_probs_dropout_prob": 0.1,
                "hidden_act": "gelu",
                "hidden_dropout_prob": 0.1,
                "hidden_size": self.hidden_size,
                "intermediate_size": self.intermediate_size,
                "layer_norm_eps": self.layer_norm_epsilon,
                "num_attention_heads": self.heads,
                "num_hidden_layers": self.layers,
            })
        };
        let mut set = |key: &str, value: Value| json[key] = value;
        more.as_object().into_iter().flatten().for_each(|(key, value)| set(key, value.clone()));
        match self.architecture {
            Architecture::Bert | Architecture::Roberta | Architecture::XlmRoberta => {
                set("position_embedding_type", json!("absolute"));
                set("type_vocab_size", json!(self.token_types));
            }
            Architecture::Mpnet => set("relative_attention_num_buckets", json!(RELATIVE_BUCKETS)),
            Architecture::Distilbert => {}
        }
        if self.architecture.positions_follow_padding() {
            set("bos_token_id", json!(0));
            set("eos_token_id", json!(2));
        }
        json
    }

    /// Whether the sizes are ones that [`EncoderConfig::read`] accepts; for a config that comes from a job spec.
    pub fn validate(&self) -> Result<(), ConfigError> {
        Self::from_json(&self.to_json(), Path::new("encoder config")).map(|_| ())
    }
}

/// The architecture that a config names. DPR's encoders are BERT's.
fn architecture(json: &Value, path: &Path) -> Result<Architecture, ConfigError> {
    let model_type = json.get("model_type").and_then(Value::as_str);
    let refuse = |found: &str| ConfigError::Architecture { path: path.to_owned(), found: found.to_owned() };
    if json.get("is_decoder") == Some(&Value::Bool(true)) {
        return Err(refuse(&format!("{} decoder", model_type.unwrap_or("unnamed"))));
    }
    match model_type {
        Some("bert" | "dpr") => Ok(Architecture::Bert),
        Some("roberta" | "camembert") => Ok(Architecture::Roberta),
        Some("xlm-roberta") => Ok(Architecture::XlmRoberta),
        Some("distilbert") => Ok(Architecture::Distilbert),
        Some("mpnet") => Ok(Architecture::Mpnet),
        other => {
            let class = json.pointer("/architectures/0").and_then(Value::as_str);
            Err(refuse(other.or(class).unwrap_or("none")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> EncoderConfig {
        EncoderConfig {
            architecture: Architecture::Bert,
            vocabulary_size: 30,
            hidden_size: 8,
            layers: 2,
            heads: 2,
            intermediate_size: 12,
            max_positions: 16,
            token_types: 2,
            layer_norm_epsilon: 1e-12,
            pad_token_id: 3,
        }
    }

    #[test]
    fn a_config_survives_the_round_trip() {
        let path = Path::new("config.json");
        let check = |architecture, token_types, max_tokens| {
            let config = EncoderConfig { architecture, token_types, ..tiny() };
            assert_eq!(EncoderConfig::from_json(&config.to_json(), path).unwrap(), config);
            config.validate().unwrap();
            assert_eq!(config.max_tokens(), max_tokens);
        };
        check(Architecture::Bert, 2, 16);
        check(Architecture::Roberta, 1, 12);
        check(Architecture::XlmRoberta, 1, 12);
        check(Architecture::Distilbert, 0, 16);
        check(Architecture::Mpnet, 0, 12);
    }

    #[test]
    fn refusals_name_file_field_and_value() {
        let check = |field: &str, value: Value, words: &[&str]| {
            let mut json = tiny().to_json();
            json[field] = value;
            let message =
                EncoderConfig::from_json(&json, Path::new("m/config.json")).unwrap_err().to_string();
            for word in words.iter().chain(&["m/config.json"]) {
                assert!(message.contains(word), "{message:?} lacks {word:?}");
            }
        };
        check("model_type", json!("gpt2"), &["gpt2", "bert"]);
        check("model_type", json!("distilbert"), &["activation"]);
        check("model_type", Value::Null, &["BertModel"]);
        check("is_decoder", json!(true), &["decoder"]);
        check("hidden_act", json!("gelu_new"), &["hidden_act", "gelu_new"]);
        check("position_embedding_type", json!("relative_key"), &["relative_key"]);
        check("num_attention_heads", json!(3), &["hidden_size", "multiple", "num_attention_heads", "3"]);
        check("vocab_size", json!(1u64 << 40), &["vocab_size"]);
        check("vocab_size", json!(-1), &["vocab_size", "-1"]);
        check("hidden_size", json!("8"), &["hidden_size"]);
        check("layer_norm_eps", json!(3.0), &["layer_norm_eps"]);
        check("pad_token_id", json!(30), &["pad_token_id", "30"]);
    }
}
