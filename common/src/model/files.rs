//! The files that a model is made of, found in its folder and hashed when a job is submitted.

use super::cross;
use super::modules::{self, Module, ModuleKind, is_inside};
use crate::ids::Hasher;
use crate::spec::Pooling;
use crate::spec::inputs::{InputError, InputFile};
use crate::store::{Location, StoreError};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Largest JSON file that is parsed while files are collected: an index of the shards of a very large model.
const JSON_BYTES: usize = 16 << 20;
/// Most shards of one model's weights.
const MOST_SHARDS: usize = 1024;
/// Files that a tokenizer is made from, whichever of them are there.
const TOKENIZER_FILES: [&str; 6] = [
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
];

/// A model's files by their names within its folder, such as "1_Pooling/config.json".
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ModelFiles {
    /// By name. Names stay within the folder.
    pub by_name: BTreeMap<String, InputFile>,
}

impl ModelFiles {
    /// The files of the tokenizer alone, without the folder that the encoder may lie in: what training rows depend on.
    pub fn tokenizer(&self) -> ModelFiles {
        let plain = |name: &str| name.rsplit('/').next().unwrap_or(name).to_owned();
        let own = self.by_name.iter().map(|(name, file)| (plain(name), file.clone()));
        ModelFiles { by_name: own.filter(|(name, _)| TOKENIZER_FILES.contains(&name.as_str())).collect() }
    }

    /// Size of all of them.
    pub fn bytes(&self) -> u64 {
        self.by_name.values().map(|file| file.bytes).sum()
    }

    /// The folder or URL of the model, for messages.
    pub fn place(&self) -> String {
        let one = self.by_name.iter().next();
        one.map_or_else(String::new, |(name, file)| {
            file.url.strip_suffix(name).unwrap_or(&file.url).trim_end_matches('/').to_owned()
        })
    }
}

/// What a sentence-transformers folder says about how its model is used; nothing for other folders. Where a spec is
/// silent, this holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelDefaults {
    /// How token vectors become one vector.
    pub pooling: Option<Pooling>,
    /// Whether vectors are scaled to unit length.
    pub normalize: Option<bool>,
    /// Longest text in tokens.
    pub max_tokens: Option<u32>,
    /// Put before every question.
    pub query_prefix: Option<String>,
    /// Put before every passage.
    pub passage_prefix: Option<String>,
}

/// A model's files and defaults as they were at submit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelInputs {
    /// Its files.
    pub files: ModelFiles,
    /// What its folder says about its use.
    #[serde(default)]
    pub defaults: ModelDefaults,
}

impl ModelInputs {
    /// Finds and hashes the files of the model that `reference` names: a folder relative to `base`, a URL, or
    /// `hf:org/name@revision`. `what` is the model's place in the spec, for messages.
    pub async fn collect(what: &str, base: &Location, reference: &str) -> Result<Self, InputError> {
        let fail = |source| InputError::Read { what: what.to_owned(), source };
        let folder = base.join(reference).map_err(fail)?;
        let folder = crate::hub::pin(folder).await.map_err(fail)?;
        let mut collector = Collector { what, folder, class: "AutoModel", files: ModelFiles::default() };
        let (defaults, _) = collector.run().await?;
        Ok(Self { files: collector.files, defaults })
    }

    /// The same for a model that is to give a score for each pair of texts, of up to `max_tokens`. What its
    /// configuration says against that is an error here, before anything runs.
    pub async fn collect_cross_encoder(
        what: &str,
        base: &Location,
        reference: &str,
        max_tokens: u32,
    ) -> Result<Self, InputError> {
        let fail = |source| InputError::Read { what: what.to_owned(), source };
        let folder = base.join(reference).map_err(fail)?;
        let folder = crate::hub::pin(folder).await.map_err(fail)?;
        let class = "AutoModelForSequenceClassification";
        let mut collector = Collector { what, folder, class, files: ModelFiles::default() };
        let (defaults, config) = collector.run().await?;
        if let Some(objection) = cross::objection(&config) {
            return Err(collector.problem(&objection));
        }
        let positions = config["max_position_embeddings"].as_u64().unwrap_or(u64::MAX);
        if positions < u64::from(max_tokens) {
            return Err(
                collector.problem(&format!("reads {positions} tokens, max_tokens is {max_tokens}; lower it"))
            );
        }
        Ok(Self { files: collector.files, defaults })
    }
}

struct Collector<'a> {
    what: &'a str,
    folder: Location,
    /// What transformers loads such a model with, for messages.
    class: &'a str,
    files: ModelFiles,
}

impl Collector<'_> {
    /// What the folder says about the model's use, and the encoder's configuration.
    async fn run(&mut self) -> Result<(ModelDefaults, serde_json::Value), InputError> {
        let mut defaults = ModelDefaults::default();
        let mut encoder = String::new();
        if let Some(json) = self.json("modules.json").await? {
            let modules =
                modules::modules(&self.name("modules.json"), &json).map_err(|error| self.wrong(error))?;
            if modules[0].kind == ModuleKind::Router {
                return Err(self.problem(
                    "is a router of several models; name the folders of its encoders \
                     as teacher.query_model and teacher.passage_model",
                ));
            }
            encoder.clone_from(&modules[0].path);
            defaults.normalize =
                Some(modules.last().is_some_and(|module| module.kind == ModuleKind::Normalize));
            for module in &modules[1..] {
                self.module(module, &mut defaults).await?;
            }
            self.usage(&encoder, &mut defaults).await?;
        }
        let config = modules::join(&encoder, "config.json");
        let json = self.json(&config).await?.ok_or_else(|| self.missing(&[&config]))?;
        if defaults.pooling.is_none() && modules::is_dot_product_retriever(&json) {
            (defaults.pooling, defaults.normalize) = (Some(Pooling::Cls), Some(false));
        }
        self.weights(&encoder).await?;
        self.tokenizer(&encoder).await?;
        Ok((defaults, json))
    }

    /// The files of a module behind the encoder.
    async fn module(&mut self, module: &Module, defaults: &mut ModelDefaults) -> Result<(), InputError> {
        let config = module.file("config.json");
        match module.kind {
            ModuleKind::Pooling => {
                let json = self.json(&config).await?.ok_or_else(|| self.missing(&[&config]))?;
                let pooling =
                    modules::pooling(&self.name(&config), &json).map_err(|error| self.wrong(error))?;
                defaults.pooling = Some(pooling);
            }
            ModuleKind::Dense | ModuleKind::LayerNorm => {
                if !self.file(&config).await? {
                    return Err(self.missing(&[&config]));
                }
                self.weights(&module.path).await?;
            }
            ModuleKind::Normalize | ModuleKind::Transformer | ModuleKind::Router => {}
        }
        Ok(())
    }

    /// Longest text and prompts.
    async fn usage(&mut self, encoder: &str, defaults: &mut ModelDefaults) -> Result<(), InputError> {
        let lengths = modules::join(encoder, "sentence_bert_config.json");
        if let Some(json) = self.json(&lengths).await? {
            let tokens = modules::max_tokens(&self.name(&lengths), &json);
            defaults.max_tokens = tokens.map_err(|error| self.wrong(error))?;
        }
        let settings = modules::join(encoder, "tokenizer_config.json");
        if let (None, Some(json)) = (defaults.max_tokens, self.json(&settings).await?) {
            defaults.max_tokens = modules::model_max_length(&json);
        }
        let usage = "config_sentence_transformers.json";
        if let Some(json) = self.json(usage).await? {
            let prompts = modules::prompts(&self.name(usage), &json).map_err(|error| self.wrong(error))?;
            let [query, passage] = prompts.map(|prompt| Some(prompt).filter(|prompt| !prompt.is_empty()));
            (defaults.query_prefix, defaults.passage_prefix) = (query, passage);
            // Models from before the Normalize module say it here.
            if json["similarity_fn_name"] == "cosine" {
                defaults.normalize = Some(true);
            }
        }
        Ok(())
    }

    /// The weights of a module: one safetensors file, or the shards that an index names.
    async fn weights(&mut self, folder: &str) -> Result<(), InputError> {
        let [whole, index] =
            ["model.safetensors", "model.safetensors.index.json"].map(|name| modules::join(folder, name));
        if self.file(&whole).await? {
            return Ok(());
        }
        if let Some(json) = self.json(&index).await? {
            let shards = shard_names(&json).ok_or_else(|| {
                self.problem(&format!("has an {index} whose weight_map is not tensors to plain file names"))
            })?;
            for shard in shards {
                let name = modules::join(folder, &shard);
                if !self.file(&name).await? {
                    return Err(self.missing(&[&name]));
                }
            }
            return Ok(());
        }
        for name in ["pytorch_model.bin", "pytorch_model.bin.index.json"] {
            if self.exists(&modules::join(folder, name)).await? {
                return Err(self.problem(&format!(
                    "has its weights only as {name}, a Python pickle that could run code; convert it once with: \
                     python -c \"from transformers import {class}, AutoTokenizer as T; \
                     {class}.from_pretrained('MODEL').save_pretrained('NEW'); \
                     T.from_pretrained('MODEL').save_pretrained('NEW')\" \
                     and name the folder NEW instead",
                    class = self.class,
                )));
            }
        }
        Err(self.missing(&[&whole, &index]))
    }

    /// Whatever the tokenizer is made from: tokenizer.json, or a WordPiece or byte-pair vocabulary.
    async fn tokenizer(&mut self, encoder: &str) -> Result<(), InputError> {
        for name in ["tokenizer_config.json", "special_tokens_map.json"] {
            self.file(&modules::join(encoder, name)).await?;
        }
        for names in [&["tokenizer.json"][..], &["vocab.txt"], &["vocab.json", "merges.txt"]] {
            let mut all = true;
            for name in names {
                all = all && self.file(&modules::join(encoder, name)).await?;
            }
            if all {
                return Ok(());
            }
        }
        let [json, text] = ["tokenizer.json", "vocab.txt"].map(|name| modules::join(encoder, name));
        Err(self.missing(&[&json, &text]))
    }

    /// The full name of a file, for messages.
    fn name(&self, file: &str) -> String {
        self.folder.join(file).map_or_else(|_| file.to_owned(), |location| location.to_string())
    }

    fn missing(&self, files: &[&str]) -> InputError {
        let tried = files.iter().map(|file| self.name(file)).collect::<Vec<_>>().join(", ");
        InputError::Missing { what: self.what.to_owned(), tried }
    }

    fn problem(&self, text: &str) -> InputError {
        InputError::Model { what: self.what.to_owned(), message: format!("{} {text}", self.folder) }
    }

    fn wrong(&self, error: modules::ModulesError) -> InputError {
        InputError::Model { what: self.what.to_owned(), message: error.to_string() }
    }

    fn fail(&self, source: StoreError) -> InputError {
        InputError::Read { what: self.what.to_owned(), source }
    }

    async fn exists(&self, name: &str) -> Result<bool, InputError> {
        let file = self.folder.join(name).map_err(|source| self.fail(source))?;
        Ok(crate::hub::optional(&file).await.map_err(|source| self.fail(source))?.is_some())
    }

    /// Hashes a file and keeps it, if it is there.
    async fn file(&mut self, name: &str) -> Result<bool, InputError> {
        Ok(self.read(name, 0).await?.is_some())
    }

    /// Hashes, keeps and parses a JSON file, if it is there.
    async fn json(&mut self, name: &str) -> Result<Option<serde_json::Value>, InputError> {
        let Some(bytes) = self.read(name, JSON_BYTES).await? else { return Ok(None) };
        modules::json(&self.name(name), &bytes).map(Some).map_err(|error| self.wrong(error))
    }

    /// Hashes and keeps a file; gives up to `keep` bytes of it, and refuses a longer one where any are asked for.
    async fn read(&mut self, name: &str, keep: usize) -> Result<Option<Vec<u8>>, InputError> {
        let location = self.folder.join(name).map_err(|source| self.fail(source))?;
        let Some(mut stream) = crate::hub::optional(&location).await.map_err(|source| self.fail(source))?
        else {
            return Ok(None);
        };
        let (mut hasher, mut bytes, mut kept) = (Hasher::default(), 0, Vec::new());
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|source| self.fail(source))?;
            hasher.update(&chunk);
            bytes += chunk.len() as u64;
            if keep > 0 {
                if kept.len() + chunk.len() > keep {
                    return Err(self.problem(&format!("has a {name} of more than {keep} bytes")));
                }
                kept.extend_from_slice(&chunk);
            }
        }
        let file = InputFile { url: location.to_string(), bytes, sha256: hasher.finish() };
        self.files.by_name.insert(name.to_owned(), file);
        Ok(Some(kept))
    }
}

/// The files that an index of sharded weights names.
fn shard_names(index: &serde_json::Value) -> Option<BTreeSet<String>> {
    let map = index.get("weight_map")?.as_object()?;
    let names: BTreeSet<String> = map
        .values()
        .map(|name| {
            name.as_str()
                .filter(|name| is_inside(name) && !name.is_empty() && !name.contains('/'))
                .map(str::to_owned)
        })
        .collect::<Option<_>>()?;
    (1..=MOST_SHARDS).contains(&names.len()).then_some(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODULES: &str = r#"[
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}]"#;

    /// Collects a folder with the given files; gives the names found, or the error's text.
    fn collect(files: &[(&str, &str)]) -> Result<(Vec<String>, ModelDefaults), String> {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let base = Location::of_path(folder.path()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let found = runtime.block_on(ModelInputs::collect("teacher", &base, "."));
        let inputs = found.map_err(|error| error.to_string())?;
        assert!(inputs.files.place().ends_with(folder.path().file_name().unwrap().to_str().unwrap()));
        Ok((inputs.files.by_name.into_keys().collect(), inputs.defaults))
    }

    #[test]
    fn a_plain_folder_and_one_of_sentence_transformers_are_found() {
        let plain = [("config.json", "{}"), ("model.safetensors", "w"), ("vocab.txt", "a")];
        let (names, defaults) = collect(&plain).unwrap();
        assert_eq!(names, ["config.json", "model.safetensors", "vocab.txt"]);
        assert_eq!(defaults, ModelDefaults::default());
        let mut full = plain.to_vec();
        full.extend([
            ("modules.json", MODULES),
            ("1_Pooling/config.json", r#"{"pooling_mode_cls_token": true}"#),
            ("2_Dense/config.json", "{}"),
            ("2_Dense/model.safetensors", "w"),
            ("sentence_bert_config.json", r#"{"max_seq_length": 99}"#),
            ("config_sentence_transformers.json", r#"{"prompts": {"query": "q: "}}"#),
        ]);
        let (names, defaults) = collect(&full).unwrap();
        assert_eq!(names.len(), 9);
        let expected = ModelDefaults {
            pooling: Some(Pooling::Cls),
            normalize: Some(false),
            max_tokens: Some(99),
            query_prefix: Some("q: ".to_owned()),
            passage_prefix: None,
        };
        assert_eq!(defaults, expected);
    }

    #[test]
    fn shards_are_found_and_what_is_missing_is_named() {
        let index = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
        let mut files =
            vec![("config.json", "{}"), ("tokenizer.json", "{}"), ("model.safetensors.index.json", index)];
        let check = |files: &[(&str, &str)], words: &[&str]| {
            let message = collect(files).unwrap_err();
            words.iter().for_each(|word| assert!(message.contains(word), "{message:?} lacks {word:?}"));
        };
        files.push(("model-1.safetensors", "w"));
        check(&files, &["model-2.safetensors"]);
        files.push(("model-2.safetensors", "w"));
        assert_eq!(collect(&files).unwrap().0.len(), 5);
        files[2].1 = r#"{"weight_map": {"a": "../secret"}}"#;
        check(&files, &["weight_map", "plain"]);
        files[2].1 = "{";
        check(&files, &["index.json", "not valid json"]);
        check(
            &[("config.json", "{}"), ("pytorch_model.bin", "x")],
            &["pytorch_model.bin", "save_pretrained"],
        );
        check(&[("config.json", "{}"), ("model.safetensors", "x")], &["tokenizer.json", "vocab.txt"]);
        check(&[("model.safetensors", "x")], &["config.json"]);
    }

    #[test]
    fn a_model_that_gives_no_score_is_refused_by_name() {
        let check = |config: &str, weights: &str, words: &[&str]| {
            let folder = tempfile::tempdir().unwrap();
            for (name, text) in [("config.json", config), (weights, "w"), ("vocab.txt", "a")] {
                std::fs::write(folder.path().join(name), text).unwrap();
            }
            let base = Location::of_path(folder.path()).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let found =
                runtime.block_on(ModelInputs::collect_cross_encoder("cross_encoder", &base, ".", 256));
            let message = found.map_or_else(|error| error.to_string(), |_| String::new());
            assert_eq!(message.is_empty(), words.is_empty(), "{message}");
            words.iter().for_each(|word| assert!(message.contains(word), "{message:?} lacks {word:?}"));
        };
        let weights = "model.safetensors";
        check(r#"{"num_labels": 1, "max_position_embeddings": 512}"#, weights, &[]);
        check(r#"{"num_labels": 2}"#, weights, &["cross_encoder", "2 labels", "with one label"]);
        check(r#"{"architectures": ["BertModel"]}"#, weights, &["cross_encoder", "is a BertModel"]);
        check(
            r#"{"max_position_embeddings": 128}"#,
            weights,
            &["128 tokens", "max_tokens is 256", "lower it"],
        );
        check("{}", "pytorch_model.bin", &["AutoModelForSequenceClassification.from_pretrained"]);
    }
}
