//! What the small JSON files of a sentence-transformers folder say. Pure: bytes in, facts out; a file's name is for
//! messages only.

use crate::spec::Pooling;
use serde_json::Value;
use std::path::{Component, Path};

/// Most modules that a folder may have; more is taken for damage.
const MOST_MODULES: usize = 32;

/// A file of a sentence-transformers folder that was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModulesError {
    /// Not JSON.
    #[error("{file} is not valid json: {cause}")]
    Json {
        /// The file.
        file: String,
        /// Where and why.
        cause: String,
    },
    /// A field that is missing or has a value that is not supported.
    #[error("{file}: {field} is {found}, expected {expected}")]
    Field {
        /// The file.
        file: String,
        /// The field.
        field: String,
        /// What stands there.
        found: String,
        /// What is supported.
        expected: String,
    },
}

/// What a module does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModuleKind {
    /// The encoder.
    Transformer,
    /// Token states to one vector.
    Pooling,
    /// A linear layer with an activation.
    Dense,
    /// A layer norm on the vector.
    LayerNorm,
    /// Scaling to unit length.
    Normalize,
    /// Different modules for questions and passages.
    Router,
}

/// One module of `modules.json`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// What it does.
    pub kind: ModuleKind,
    /// Its folder within the model's, empty for the model's own.
    pub path: String,
}

impl Module {
    /// The name of one of its files within the model's folder.
    pub fn file(&self, name: &str) -> String {
        join(&self.path, name)
    }
}

/// `name` in the folder `path`, which may be empty.
pub fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") }
}

/// Whether a name from a file stays within the folder that it is relative to.
pub fn is_inside(name: &str) -> bool {
    !name.contains('\\') && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
}

/// Parses JSON of at most a few kilobytes, as these files are.
pub fn json(file: &str, bytes: &[u8]) -> Result<Value, ModulesError> {
    serde_json::from_slice(bytes)
        .map_err(|error| ModulesError::Json { file: file.to_owned(), cause: error.to_string() })
}

fn refuse(file: &str, field: &str, found: Option<&Value>, expected: &str) -> ModulesError {
    ModulesError::Field {
        file: file.to_owned(),
        field: field.to_owned(),
        found: found.map_or("missing".to_owned(), Value::to_string),
        expected: expected.to_owned(),
    }
}

/// The modules of `modules.json` in order. The first is the encoder or a router; an encoder's vector is pooled next.
pub fn modules(file: &str, json: &Value) -> Result<Vec<Module>, ModulesError> {
    let items = json.as_array().filter(|items| (1..=MOST_MODULES).contains(&items.len()));
    let items = items.ok_or_else(|| refuse(file, "the document", Some(json), "a list of 1 to 32 modules"))?;
    let mut found = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let path = item["path"].as_str().filter(|path| is_inside(path)).ok_or_else(|| {
            refuse(file, &format!("path of module {index}"), item.get("path"), "a folder within the model's")
        })?;
        found.push(Module {
            kind: kind(file, index, item.get("type"))?,
            path: path.trim_end_matches('/').to_owned(),
        });
    }
    check_order(file, &found)?;
    Ok(found)
}

/// A module's kind by the last part of its type, which has moved between packages over the years.
fn kind(file: &str, index: usize, name: Option<&Value>) -> Result<ModuleKind, ModulesError> {
    let expected = "a Transformer, Pooling, Dense, LayerNorm, Normalize or Router of sentence_transformers";
    let unknown = || refuse(file, &format!("type of module {index}"), name, expected);
    let text = name.and_then(Value::as_str).filter(|text| text.starts_with("sentence_transformers."));
    match text.and_then(|text| text.rsplit('.').next()).ok_or_else(unknown)? {
        "Transformer" => Ok(ModuleKind::Transformer),
        "Pooling" => Ok(ModuleKind::Pooling),
        "Dense" => Ok(ModuleKind::Dense),
        "LayerNorm" => Ok(ModuleKind::LayerNorm),
        "Normalize" => Ok(ModuleKind::Normalize),
        "Router" | "Asym" => Ok(ModuleKind::Router),
        _ => Err(unknown()),
    }
}

fn check_order(file: &str, modules: &[Module]) -> Result<(), ModulesError> {
    use ModuleKind::{LayerNorm, Normalize, Pooling, Router, Transformer};
    let names = || {
        Value::String(
            modules.iter().map(|module| format!("{:?}", module.kind)).collect::<Vec<_>>().join(", "),
        )
    };
    let kinds: Vec<_> = modules.iter().map(|module| module.kind).collect();
    let tail = match kinds.as_slice() {
        [Router, rest @ ..] => rest,
        [Transformer, Pooling, rest @ ..] => rest,
        _ => {
            return Err(refuse(file, "the order", Some(&names()), "Transformer, Pooling, then layers"));
        }
    };
    let layer = |kind: &ModuleKind| matches!(kind, ModuleKind::Dense | LayerNorm | Normalize);
    if tail.iter().all(layer) {
        Ok(())
    } else {
        Err(refuse(file, "the order", Some(&names()), "Dense, LayerNorm and Normalize behind the pooling"))
    }
}

/// The pooling of `1_Pooling/config.json`: of one kind, prompts included.
pub fn pooling(file: &str, json: &Value) -> Result<Pooling, ModulesError> {
    const LEGACY: [(&str, Pooling); 6] = [
        ("pooling_mode_cls_token", Pooling::Cls),
        ("pooling_mode_mean_tokens", Pooling::Mean),
        ("pooling_mode_max_tokens", Pooling::Max),
        ("pooling_mode_mean_sqrt_len_tokens", Pooling::MeanSqrtLen),
        ("pooling_mode_weightedmean_tokens", Pooling::WeightedMean),
        ("pooling_mode_lasttoken", Pooling::LastToken),
    ];
    let one = "one of cls, mean, max, mean_sqrt_len_tokens, weightedmean, lasttoken";
    if json.get("include_prompt") == Some(&Value::Bool(false)) {
        return Err(refuse(
            file,
            "include_prompt",
            json.get("include_prompt"),
            "true: prompts are pooled with the text",
        ));
    }
    if let Some(mode) = json.get("pooling_mode") {
        let name = match mode {
            Value::Array(modes) if modes.len() == 1 => modes[0].as_str(),
            mode => mode.as_str(),
        };
        let known = |name: &str| match name {
            "cls" => Some(Pooling::Cls),
            "mean" => Some(Pooling::Mean),
            "max" => Some(Pooling::Max),
            "mean_sqrt_len_tokens" => Some(Pooling::MeanSqrtLen),
            "weightedmean" => Some(Pooling::WeightedMean),
            "lasttoken" => Some(Pooling::LastToken),
            _ => None,
        };
        return name.and_then(known).ok_or_else(|| refuse(file, "pooling_mode", Some(mode), one));
    }
    let active: Vec<_> = LEGACY.iter().filter(|(key, _)| json.get(key) == Some(&Value::Bool(true))).collect();
    match active.as_slice() {
        [] => Ok(Pooling::Mean),
        [(_, pooling)] => Ok(*pooling),
        several => {
            let names = several.iter().map(|(key, _)| *key).collect::<Vec<_>>().join(" and ");
            Err(refuse(file, "the pooling", Some(&Value::String(names)), one))
        }
    }
}

/// `max_seq_length` of `sentence_bert_config.json`, where it is given.
pub fn max_tokens(file: &str, json: &Value) -> Result<Option<u32>, ModulesError> {
    match json.get("max_seq_length") {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            let tokens =
                value.as_u64().and_then(|tokens| u32::try_from(tokens).ok()).filter(|tokens| *tokens >= 3);
            tokens
                .map(Some)
                .ok_or_else(|| refuse(file, "max_seq_length", Some(value), "a number of tokens, 3 or more"))
        }
    }
}

/// `model_max_length` of a `tokenizer_config.json`, where newer versions of sentence-transformers keep the longest text;
/// nothing where it is missing or the huge number that stands for "no limit".
pub fn model_max_length(json: &Value) -> Option<u32> {
    let tokens = json.get("model_max_length")?.as_u64()?;
    u32::try_from(tokens).ok().filter(|tokens| (3..=8192).contains(tokens))
}

/// Whether a `config.json` is that of a retriever trained for dot products of first tokens: DPR and ANCE.
pub fn is_dot_product_retriever(json: &Value) -> bool {
    let class = json.pointer("/architectures/0").and_then(Value::as_str).unwrap_or_default();
    json["model_type"] == "dpr" || class.starts_with("RobertaDot") || class == "AnceEncoder"
}

/// The prompts of `config_sentence_transformers.json` before questions and before passages.
///
/// As in sentence-transformers, a question takes "query", a passage the first of "document", "passage" and "corpus";
/// where there is none, both take the default prompt.
pub fn prompts(file: &str, json: &Value) -> Result<[String; 2], ModulesError> {
    let prompts = json.get("prompts").cloned().unwrap_or(Value::Null);
    let text = |name: &str| match prompts.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(prompt)) => Ok(Some(prompt.clone())),
        Some(other) => Err(refuse(file, &format!("prompts.{name}"), Some(other), "a text")),
    };
    let default = match json.get("default_prompt_name").and_then(Value::as_str) {
        Some(name) => text(name)?,
        None => None,
    };
    let first = |names: &[&str]| -> Result<String, ModulesError> {
        for name in names {
            if let Some(prompt) = text(name)? {
                return Ok(prompt);
            }
        }
        Ok(default.clone().unwrap_or_default())
    };
    Ok([first(&["query"])?, first(&["document", "passage", "corpus"])?])
}

/// The folders of a router's modules for questions and for passages, each in order, from `router_config.json`.
pub fn routes(file: &str, folder: &str, json: &Value) -> Result<[Vec<Module>; 2], ModulesError> {
    let route = |names: &[&str]| -> Result<Vec<Module>, ModulesError> {
        let found = names.iter().find_map(|name| json["structure"].get(name)?.as_array());
        let ids = found.filter(|ids| (1..=MOST_MODULES).contains(&ids.len())).ok_or_else(|| {
            refuse(
                file,
                "structure",
                json.get("structure"),
                "lists of modules under \"query\" and \"document\"",
            )
        })?;
        let mut modules = Vec::new();
        for (index, id) in ids.iter().enumerate() {
            let name = id.as_str().filter(|name| is_inside(name));
            let name =
                name.ok_or_else(|| refuse(file, "structure", Some(id), "folders within the model's"))?;
            let kind = kind(file, index, json["types"].get(name))?;
            modules.push(Module { kind, path: join(folder, name) });
        }
        check_order(file, &modules)?;
        Ok(modules)
    };
    Ok([route(&["query"])?, route(&["document", "passage", "corpus"])?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn modules_of_all_ages_are_read() {
        let check = |kinds: &[(&str, &str)], expected: Result<usize, &str>| {
            let list: Vec<_> =
                kinds.iter().map(|(kind, path)| json!({"idx": 0, "type": kind, "path": path})).collect();
            match (modules("m/modules.json", &Value::Array(list)), expected) {
                (Ok(found), Ok(count)) => assert_eq!(found.len(), count),
                (Err(error), Err(word)) => {
                    let text = error.to_string();
                    assert!(
                        text.contains(word) && text.contains("m/modules.json"),
                        "{text:?} lacks {word:?}"
                    );
                }
                (found, expected) => panic!("{found:?} instead of {expected:?}"),
            }
        };
        let (transformer, pooling) =
            ("sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling");
        let new = "sentence_transformers.base.modules.transformer.Transformer";
        let dense = "sentence_transformers.models.Dense";
        let normalize = "sentence_transformers.models.Normalize";
        check(&[(transformer, ""), (pooling, "1_Pooling")], Ok(2));
        check(
            &[(new, "0_Transformer/"), (pooling, "1_Pooling"), (dense, "2_Dense"), (normalize, "3")],
            Ok(4),
        );
        check(&[(transformer, ""), (pooling, "1"), (normalize, "2"), (dense, "3")], Ok(4));
        check(&[(transformer, "")], Err("order"));
        check(&[], Err("1 to 32"));
        check(&[(transformer, "../up"), (pooling, "1")], Err("within"));
        check(&[("evil.Module", ""), (pooling, "1")], Err("evil.Module"));
        check(&[("sentence_transformers.models.CNN", ""), (pooling, "1")], Err("CNN"));
    }

    #[test]
    fn poolings_lengths_and_prompts_are_read() {
        let pool = |json: Value| pooling("1_Pooling/config.json", &json).map_err(|error| error.to_string());
        assert_eq!(pool(json!({"pooling_mode_cls_token": true})), Ok(Pooling::Cls));
        assert_eq!(pool(json!({"pooling_mode": ["max"]})), Ok(Pooling::Max));
        assert_eq!(pool(json!({"pooling_mode": "weightedmean"})), Ok(Pooling::WeightedMean));
        assert_eq!(pool(json!({})), Ok(Pooling::Mean));
        let two = json!({"pooling_mode_cls_token": true, "pooling_mode_max_tokens": true});
        assert!(pool(two).unwrap_err().contains("pooling_mode_cls_token and"));
        assert!(pool(json!({"pooling_mode": ["cls", "max"]})).is_err());
        assert!(pool(json!({"include_prompt": false})).is_err());
        assert_eq!(max_tokens("f", &json!({"max_seq_length": 256})), Ok(Some(256)));
        assert_eq!(max_tokens("f", &json!({"max_seq_length": null})), Ok(None));
        assert!(max_tokens("f", &json!({"max_seq_length": -1})).is_err());
        let check = |json: Value, query: &str, passage: &str| {
            assert_eq!(prompts("f", &json).unwrap(), [query.to_owned(), passage.to_owned()]);
        };
        check(json!({"prompts": {"query": "q: ", "passage": "p: "}}), "q: ", "p: ");
        check(json!({"prompts": {"query": "q: ", "document": null}, "default_prompt_name": null}), "q: ", "");
        check(json!({"prompts": {"s": "s: "}, "default_prompt_name": "s"}), "s: ", "s: ");
        assert!(prompts("f", &json!({"prompts": {"query": 3}})).is_err());
    }

    #[test]
    fn routes_name_their_modules() {
        let json = json!({
            "types": {"q_0": "sentence_transformers.models.Transformer", "q_1": "sentence_transformers.models.Pooling",
                      "d_0": "sentence_transformers.models.Transformer", "d_1": "sentence_transformers.models.Pooling"},
            "structure": {"query": ["q_0", "q_1"], "document": ["d_0", "d_1"]}
        });
        let [query, passage] = routes("router_config.json", "", &json).unwrap();
        assert_eq!((query[0].path.as_str(), passage[1].path.as_str()), ("q_0", "d_1"));
        assert!(routes("router_config.json", "", &json!({"structure": {"query": ["../x"]}})).is_err());
    }
}
