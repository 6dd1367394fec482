//! A student as a folder that sentence-transformers loads: encoder, pooling, projection, normalisation. A head on two
//! encoders becomes a router with one branch for questions and one for passages.

use super::super::bench::{Content, Produced, TaskError, Workbench};
use super::super::embed::pooling;
use super::super::input::{model_folder, tokenizer_file};
use super::super::student::{Student, TOKENIZER};
use crate::model::{
    EncoderConfig, FileDtype, Head, Input, ParamLayout, Pooling, load_encoder, save_encoder,
    write_safetensors,
};
use crate::text::SpecialTokens;
use retort_common::spec;
use retort_common::spec::inputs::ModelFiles;
use retort_common::task::{ArtifactId, Task, TextInput};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A student as a folder for sentence-transformers.
pub fn student(bench: &Workbench<'_>, task: &Task) -> Result<Produced, TaskError> {
    let Task::ExportStudent { student, base, query_base, pooling, query, passage, normalize } = task else {
        unreachable!("called with its own task")
    };
    let loaded = Student::load(bench, student)?;
    let folder = bench.scratch("export");
    create(&folder)?;
    let writer = Writer { bench, folder: &folder, loaded: &loaded, normalize: *normalize };
    let [query_prompt, passage_prompt] = [&query.prefix, &passage.prefix];
    match (&loaded.shape.tower.input, query_base) {
        (Input::Vectors { .. }, Some(other)) => {
            let query = writer.branch("query_", Some(query), &writer.base(&other.files, other.pooling)?)?;
            let passage = writer.branch("document_", Some(passage), &writer.base(base, *pooling)?)?;
            router(&folder, &query, &passage)?;
        }
        (input, _) => {
            let encoder = match input {
                // A head stands on its teacher's encoder, which goes along, so that the folder is complete.
                Input::Vectors { .. } => writer.base(base, *pooling)?,
                Input::Tokens { encoder, pooling } => writer.own(student, base, encoder, *pooling)?,
            };
            // One encoder cuts both sides at the longer of the two.
            let longest = if query.max_tokens > passage.max_tokens { query } else { passage };
            let modules = writer.branch("", Some(longest), &encoder)?;
            write_json(&folder.join("modules.json"), &module_list(&modules))?;
        }
    }
    let prompts = json!({
        "model_type": "SentenceTransformer",
        "prompts": { "query": query_prompt, "document": passage_prompt },
        "default_prompt_name": null,
        "similarity_fn_name": if *normalize { "cosine" } else { "dot" },
    });
    write_json(&folder.join("config_sentence_transformers.json"), &prompts)?;
    let parts = files(&folder, "")?;
    let meta = json!({ "files": parts.len() });
    Ok(Produced { parts, meta })
}

/// An encoder with everything that its folder needs.
struct Encoder {
    config: EncoderConfig,
    params: Vec<f32>,
    pooling: Pooling,
    tokenizer: PathBuf,
    special: SpecialTokens,
}

/// A module: its folder within the export and its type.
struct Module {
    path: String,
    kind: &'static str,
}

struct Writer<'a> {
    bench: &'a Workbench<'a>,
    folder: &'a Path,
    loaded: &'a Student,
    normalize: bool,
}

impl Writer<'_> {
    /// The encoder that a head stands on.
    fn base(&self, files: &ModelFiles, kind: spec::Pooling) -> Result<Encoder, TaskError> {
        let source = model_folder(self.bench, files)?;
        let (config, params) = load_encoder(&source, None).map_err(TaskError::input)?;
        let tokenizer = tokenizer_file(self.bench, &source)?;
        let special = SpecialTokens::of_folder(&source, &tokenizer).map_err(TaskError::input)?;
        Ok(Encoder { config, params, pooling: pooling(kind)?, tokenizer, special })
    }

    /// The encoder that the student is.
    fn own(
        &self,
        student: &ArtifactId,
        base: &ModelFiles,
        config: &EncoderConfig,
        pooling: Pooling,
    ) -> Result<Encoder, TaskError> {
        let layout = &self.loaded.layout;
        let own = layout.entries().iter().filter(|entry| !entry.path.starts_with("head"));
        let length = own.map(|entry| entry.range().end).max().unwrap_or(0);
        let tokenizer = self.bench.part(student, TOKENIZER)?;
        let source = model_folder(self.bench, &base.tokenizer())?;
        let special = SpecialTokens::of_folder(&source, &tokenizer).map_err(TaskError::input)?;
        let params = self.loaded.params[..length].to_vec();
        Ok(Encoder { config: config.clone(), params, pooling, tokenizer, special })
    }

    /// Writes an encoder and what follows it; module folders begin with `prefix`. Without one the encoder lies in the
    /// export's own folder.
    fn branch(
        &self,
        prefix: &str,
        input: Option<&TextInput>,
        encoder: &Encoder,
    ) -> Result<Vec<Module>, TaskError> {
        let mut modules = Vec::new();
        let mut add = |name: &str, kind: &'static str| -> Result<PathBuf, TaskError> {
            let first_of_plain = prefix.is_empty() && modules.is_empty();
            let path =
                if first_of_plain { String::new() } else { format!("{prefix}{}_{name}", modules.len()) };
            let folder = self.folder.join(&path);
            create(&folder)?;
            modules.push(Module { path, kind });
            Ok(folder)
        };
        let folder = add("Transformer", "sentence_transformers.models.Transformer")?;
        save_encoder(&folder, &encoder.config, &encoder.params, FileDtype::F32).map_err(TaskError::input)?;
        let target = folder.join("tokenizer.json");
        std::fs::copy(&encoder.tokenizer, &target).map_err(Workbench::scratch_error(&target))?;
        let longest = input.map_or(encoder.config.max_tokens(), |input| input.max_tokens as usize);
        let lengths = json!({ "max_seq_length": longest, "do_lower_case": false });
        write_json(&folder.join("sentence_bert_config.json"), &lengths)?;
        write_json(&folder.join("tokenizer_config.json"), &encoder.special.config(longest))?;

        let folder = add("Pooling", "sentence_transformers.models.Pooling")?;
        write_json(
            &folder.join("config.json"),
            &pooling_config(encoder.pooling, encoder.config.hidden_size),
        )?;
        for layer in dense_layers(&self.loaded.shape.tower.head) {
            let folder = add("Dense", "sentence_transformers.models.Dense")?;
            dense(&folder, &self.loaded.layout, &self.loaded.params, layer)?;
        }
        if self.normalize {
            let folder = add("Normalize", "sentence_transformers.models.Normalize")?;
            write_json(&folder.join("config.json"), &json!({}))?;
        }
        Ok(modules)
    }
}

fn module_list(modules: &[Module]) -> Value {
    let entry = |(index, module): (usize, &Module)| json!({ "idx": index, "name": index.to_string(), "path": module.path, "type": module.kind });
    modules.iter().enumerate().map(entry).collect()
}

/// A router in the export's own folder.
fn router(folder: &Path, query: &[Module], passage: &[Module]) -> Result<(), TaskError> {
    let kind = "sentence_transformers.models.Router";
    let modules = [Module { path: String::new(), kind }];
    write_json(&folder.join("modules.json"), &module_list(&modules))?;
    let paths = |modules: &[Module]| modules.iter().map(|module| module.path.clone()).collect::<Vec<_>>();
    let types: BTreeMap<_, _> =
        query.iter().chain(passage).map(|module| (module.path.clone(), module.kind)).collect();
    let config = json!({
        "types": types,
        "structure": { "query": paths(query), "document": paths(passage) },
        "parameters": { "default_route": "document", "allow_empty_key": true, "route_mappings": {} },
    });
    write_json(&folder.join("router_config.json"), &config)
}

fn create(folder: &Path) -> Result<(), TaskError> {
    std::fs::create_dir_all(folder).map_err(Workbench::scratch_error(folder))
}

fn write_json(path: &Path, value: &Value) -> Result<(), TaskError> {
    let text = serde_json::to_string_pretty(value).expect("a JSON value has a text");
    std::fs::write(path, text + "\n").map_err(Workbench::scratch_error(path))
}

/// In the form that every version of sentence-transformers reads.
fn pooling_config(pooling: Pooling, dim: usize) -> Value {
    json!({
        "word_embedding_dimension": dim,
        "pooling_mode_cls_token": pooling == Pooling::Cls,
        "pooling_mode_mean_tokens": pooling == Pooling::Mean,
        "pooling_mode_max_tokens": false,
        "pooling_mode_mean_sqrt_len_tokens": false,
        "pooling_mode_weightedmean_tokens": false,
        "pooling_mode_lasttoken": false,
        "include_prompt": true,
    })
}

/// A linear layer of a head.
struct Dense {
    /// Its name in the layout.
    name: &'static str,
    activation: &'static str,
    output: usize,
}

fn dense_layers(head: &Head) -> Vec<Dense> {
    const IDENTITY: &str = "torch.nn.modules.linear.Identity";
    match head {
        Head::None => Vec::new(),
        Head::Linear { dim, .. } => vec![Dense { name: "head", activation: IDENTITY, output: *dim }],
        Head::Mlp { hidden, dim } => vec![
            Dense { name: "head.hidden", activation: "torch.nn.modules.activation.GELU", output: *hidden },
            Dense { name: "head.output", activation: IDENTITY, output: *dim },
        ],
    }
}

fn dense(folder: &Path, layout: &ParamLayout, params: &[f32], layer: Dense) -> Result<(), TaskError> {
    let Dense { name, activation, output } = layer;
    let find = |suffix: &str| layout.get(&format!("{name}.{suffix}"));
    let entry =
        find("weight").ok_or_else(|| TaskError::Input(format!("the student has no layer {name:?}")))?;
    let input = entry.len() / output;
    let flat = &params[entry.range()];
    // The flat vector holds it as [input, output].
    let weight: Vec<f32> = (0..entry.len()).map(|i| flat[(i % input) * output + i / input]).collect();
    let shape = [output, input];
    let mut tensors: Vec<(&str, &[usize], &[f32])> = vec![("linear.weight", &shape, &weight)];
    let bias_shape = [output];
    let bias = find("bias").map(|entry| &params[entry.range()]);
    if let Some(bias) = bias {
        tensors.insert(0, ("linear.bias", &bias_shape, bias));
    }
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    write_safetensors(&folder.join("model.safetensors"), &tensors, FileDtype::F32, &metadata)
        .map_err(TaskError::input)?;
    let config = json!({
        "in_features": input, "out_features": output, "bias": bias.is_some(), "activation_function": activation,
    });
    write_json(&folder.join("config.json"), &config)
}

/// All files under a folder as parts, sorted by name.
fn files(folder: &Path, prefix: &str) -> Result<Vec<(String, Content)>, TaskError> {
    let fail = || Workbench::scratch_error(folder);
    let mut entries: Vec<PathBuf> = std::fs::read_dir(folder)
        .map_err(fail())?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()
        .map_err(fail())?;
    entries.sort();
    let mut parts = Vec::new();
    for path in entries {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = format!("{prefix}{name}");
        if path.is_dir() {
            parts.extend(files(&path, &format!("{name}/"))?);
        } else {
            parts.push((name, Content::File(path)));
        }
    }
    Ok(parts)
}
