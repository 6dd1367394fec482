//! The shape of a BERT encoder, read from and written to Hugging Face's `config.json`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

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
    /// Another architecture than BERT.
    #[error("{path} describes the architecture {found:?}; only \"bert\" encoders are supported")]
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

/// The shape of a BERT encoder (Devlin et al., 2019).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderConfig {
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
    /// Rows of the position embedding: the longest input in tokens.
    pub max_positions: usize,
    /// Rows of the token-type embedding; only type 0 is used.
    pub token_types: usize,
    /// Added to the variance in layer normalisation.
    pub layer_norm_epsilon: f64,
    /// The id that pads batches.
    pub pad_token_id: u32,
}

/// Sizes beyond these are taken for damage: a config must not make a worker allocate without limit.
const BOUNDS: [(&str, usize); 7] = [
    ("vocab_size", 4 << 20),
    ("hidden_size", 16 << 10),
    ("num_hidden_layers", 256),
    ("num_attention_heads", 1024),
    ("intermediate_size", 128 << 10),
    ("max_position_embeddings", 128 << 10),
    ("type_vocab_size", 16),
];

impl EncoderConfig {
    /// Reads and validates `config.json`.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let bytes =
            std::fs::read(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let json: Value = serde_json::from_slice(&bytes)
            .map_err(|source| ConfigError::Json { path: path.to_owned(), source })?;
        Self::from_json(&json, path)
    }

    /// Validates a parsed `config.json`; `path` is for messages only.
    pub fn from_json(json: &Value, path: &Path) -> Result<Self, ConfigError> {
        let refuse = |field, expected: String| ConfigError::Field {
            path: path.to_owned(),
            field,
            found: json.get(field).map_or("missing".to_owned(), Value::to_string),
            expected,
        };
        let model_type = json.get("model_type").and_then(Value::as_str);
        if model_type != Some("bert") || json.get("is_decoder") == Some(&Value::Bool(true)) {
            let found = model_type.or_else(|| json.pointer("/architectures/0").and_then(Value::as_str));
            return Err(ConfigError::Architecture {
                path: path.to_owned(),
                found: match found {
                    Some("bert") => "bert decoder".to_owned(),
                    found => found.unwrap_or("none").to_owned(),
                },
            });
        }
        if !json["hidden_act"].as_str().is_some_and(|name| EXACT_GELU.contains(&name)) {
            return Err(refuse("hidden_act", format!("one of {EXACT_GELU:?}")));
        }
        if !json.get("position_embedding_type").is_none_or(|kind| kind == "absolute") {
            return Err(refuse("position_embedding_type", "\"absolute\"".to_owned()));
        }
        let [vocabulary_size, hidden_size, layers, heads, intermediate_size, max_positions, token_types] = {
            let mut sizes = [0; 7];
            for (size, (field, bound)) in sizes.iter_mut().zip(BOUNDS) {
                *size = json[field]
                    .as_u64()
                    .filter(|value| (1..=bound as u64).contains(value))
                    .ok_or_else(|| refuse(field, format!("a size from 1 to {bound}")))?
                    as usize;
            }
            sizes
        };
        let layer_norm_epsilon = json["layer_norm_eps"]
            .as_f64()
            .filter(|epsilon| (0.0..=0.01).contains(epsilon))
            .ok_or_else(|| refuse("layer_norm_eps", "a number from 0 to 0.01".to_owned()))?;
        let pad_token_id = match json.get("pad_token_id") {
            None | Some(Value::Null) => 0,
            Some(id) => id
                .as_u64()
                .filter(|id| *id < vocabulary_size as u64)
                .ok_or_else(|| refuse("pad_token_id", format!("an id below {vocabulary_size}")))?
                as u32,
        };
        if !hidden_size.is_multiple_of(heads) {
            return Err(refuse("hidden_size", format!("a multiple of num_attention_heads, {heads}")));
        }
        Ok(Self {
            vocabulary_size,
            hidden_size,
            layers,
            heads,
            intermediate_size,
            max_positions,
            token_types,
            layer_norm_epsilon,
            pad_token_id,
        })
    }

    /// The `config.json` of this encoder; reading it back gives the same encoder.
    pub fn to_json(&self) -> Value {
        json!({
            "architectures": ["BertModel"],
            "model_type": "bert",
            "attention_probs_dropout_prob": 0.1,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.1,
            "hidden_size": self.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate_size,
            "layer_norm_eps": self.layer_norm_epsilon,
            "max_position_embeddings": self.max_positions,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "pad_token_id": self.pad_token_id,
            "position_embedding_type": "absolute",
            "type_vocab_size": self.token_types,
            "vocab_size": self.vocabulary_size,
        })
    }

    /// Whether the sizes are ones that [`EncoderConfig::read`] accepts; for a config that comes from a job spec.
    pub fn validate(&self) -> Result<(), ConfigError> {
        Self::from_json(&self.to_json(), Path::new("encoder config")).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> EncoderConfig {
        EncoderConfig {
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
        assert_eq!(EncoderConfig::from_json(&tiny().to_json(), path).unwrap(), tiny());
        tiny().validate().unwrap();
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
        check("model_type", json!("roberta"), &["roberta", "bert"]);
        check("model_type", Value::Null, &["BertModel"]);
        check("is_decoder", json!(true), &["decoder"]);
        check("hidden_act", json!("gelu_new"), &["hidden_act", "gelu_new"]);
        check("position_embedding_type", json!("relative_key"), &["relative_key"]);
        check("num_attention_heads", json!(3), &["hidden_size", "multiple", "3"]);
        check("vocab_size", json!(1u64 << 40), &["vocab_size"]);
        check("vocab_size", json!(-1), &["vocab_size", "-1"]);
        check("hidden_size", json!("8"), &["hidden_size"]);
        check("layer_norm_eps", json!(3.0), &["layer_norm_eps"]);
        check("pad_token_id", json!(30), &["pad_token_id", "30"]);
    }
}
