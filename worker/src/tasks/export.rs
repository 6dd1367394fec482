//! Students and runs in the formats of others.

use super::bench::{Content, Produced, TaskError, Workbench};
use super::input::model_folder;
use super::search::load_ranking;
use super::student::{Student, TOKENIZER};
use crate::metrics::run::{RankedDocument, Run};
use crate::model::{
    EncoderConfig, FileDtype, Head, Input, ParamLayout, Pooling, load_encoder, save_encoder,
    write_safetensors,
};
use crate::tables::{Judgement, NO_PASSAGE};
use retort_common::task::Task;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// A student as a folder that sentence-transformers loads: encoder, pooling, projection, normalisation.
pub fn student(bench: &Workbench<'_>, task: &Task) -> Result<Produced, TaskError> {
    let Task::ExportStudent { student, base, pooling, query, passage, normalize } = task else {
        unreachable!("called with its own task")
    };
    let loaded = Student::load(bench, student)?;
    let folder = bench.scratch("export");
    create(&folder)?;
    let (encoder, kind, tokenizer) = match &loaded.shape.tower.input {
        // A head stands on its teacher's encoder, which goes along, so that the folder is complete.
        Input::Vectors { .. } => {
            let source = model_folder(bench, base)?;
            let (encoder, params) = load_encoder(&source, None).map_err(TaskError::input)?;
            save_encoder(&folder, &encoder, &params, FileDtype::F32).map_err(TaskError::input)?;
            (encoder, super::embed::pooling(*pooling), source.join("tokenizer.json"))
        }
        Input::Tokens { encoder, pooling } => {
            let length = loaded.layout.entries().iter().filter(|entry| !entry.path.starts_with("head"));
            let length = length.map(|entry| entry.range().end).max().unwrap_or(0);
            save_encoder(&folder, encoder, &loaded.params[..length], FileDtype::F32)
                .map_err(TaskError::input)?;
            (encoder.clone(), *pooling, bench.part(student, TOKENIZER)?)
        }
    };
    let target = folder.join("tokenizer.json");
    std::fs::copy(&tokenizer, &target).map_err(Workbench::scratch_error(&target))?;
    let longest = query.max_tokens.max(passage.max_tokens);
    describe(&folder, &encoder, kind, longest, [&query.prefix, &passage.prefix])?;
    let mut modules = vec![
        ("", "sentence_transformers.models.Transformer"),
        ("1_Pooling", "sentence_transformers.models.Pooling"),
    ];
    for (number, (name, activation, rows)) in dense_layers(&loaded.shape.tower.head).into_iter().enumerate() {
        let place = ["2_Dense", "3_Dense"][number];
        dense(&folder.join(place), &loaded.layout, &loaded.params, name, activation, rows)?;
        modules.push((place, "sentence_transformers.models.Dense"));
    }
    if *normalize {
        let place = if modules.len() == 2 { "2_Normalize" } else { "4_Normalize" };
        create(&folder.join(place))?;
        modules.push((place, "sentence_transformers.models.Normalize"));
    }
    let modules: Vec<_> = modules
        .into_iter()
        .enumerate()
        .map(|(index, (path, kind))| json!({ "idx": index, "name": index.to_string(), "path": path, "type": kind }))
        .collect();
    write_json(&folder.join("modules.json"), &Value::Array(modules))?;
    let parts = files(&folder, "")?;
    let meta = json!({ "files": parts.len() });
    Ok(Produced { parts, meta })
}

fn create(folder: &Path) -> Result<(), TaskError> {
    std::fs::create_dir_all(folder).map_err(Workbench::scratch_error(folder))
}

fn write_json(path: &Path, value: &Value) -> Result<(), TaskError> {
    let text = serde_json::to_string_pretty(value).expect("a JSON value has a text");
    std::fs::write(path, text + "\n").map_err(Workbench::scratch_error(path))
}

/// The files beside the weights that transformers and sentence-transformers look for.
fn describe(
    folder: &Path,
    encoder: &EncoderConfig,
    pooling: Pooling,
    longest: u32,
    prefixes: [&String; 2],
) -> Result<(), TaskError> {
    create(&folder.join("1_Pooling"))?;
    let mean = pooling == Pooling::Mean;
    let kinds = json!({
        "word_embedding_dimension": encoder.hidden_size,
        "pooling_mode_cls_token": !mean,
        "pooling_mode_mean_tokens": mean,
        "pooling_mode_max_tokens": false,
        "pooling_mode_mean_sqrt_len_tokens": false,
    });
    write_json(&folder.join("1_Pooling/config.json"), &kinds)?;
    let lengths = json!({ "max_seq_length": longest, "do_lower_case": false });
    write_json(&folder.join("sentence_bert_config.json"), &lengths)?;
    let tokenizer = json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": longest,
        "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]",
    });
    write_json(&folder.join("tokenizer_config.json"), &tokenizer)?;
    let [query, passage] = prefixes;
    let prompts = json!({ "prompts": { "query": query, "document": passage }, "default_prompt_name": null });
    write_json(&folder.join("config_sentence_transformers.json"), &prompts)
}

/// The linear layers of a head: name in the layout, activation, output dimension.
fn dense_layers(head: &Head) -> Vec<(&'static str, &'static str, usize)> {
    match head {
        Head::None => Vec::new(),
        Head::Linear { dim, .. } => vec![("head", "torch.nn.modules.linear.Identity", *dim)],
        Head::Mlp { hidden, dim } => vec![
            ("head.hidden", "torch.nn.modules.activation.GELU", *hidden),
            ("head.output", "torch.nn.modules.linear.Identity", *dim),
        ],
    }
}

fn dense(
    folder: &Path,
    layout: &ParamLayout,
    params: &[f32],
    name: &str,
    activation: &str,
    rows: usize,
) -> Result<(), TaskError> {
    create(folder)?;
    let find = |suffix: &str| {
        let path = format!("{name}.{suffix}");
        layout.get(&path).or_else(|| layout.entries().iter().find(|entry| entry.path.ends_with(&path)))
    };
    let entry =
        find("weight").ok_or_else(|| TaskError::Input(format!("the student has no layer {name:?}")))?;
    let columns = entry.len() / rows;
    let flat = &params[entry.range()];
    let at = |i: usize| if entry.transposed { flat[(i % columns) * rows + i / columns] } else { flat[i] };
    let weight: Vec<f32> = (0..entry.len()).map(at).collect();
    let shape = [rows, columns];
    let mut tensors: Vec<(&str, &[usize], &[f32])> = vec![("linear.weight", &shape, &weight)];
    let bias_shape = [rows];
    let bias = find("bias").map(|entry| &params[entry.range()]);
    if let Some(bias) = bias {
        tensors.push(("linear.bias", &bias_shape, bias));
    }
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    write_safetensors(&folder.join("model.safetensors"), &tensors, FileDtype::F32, &metadata)
        .map_err(TaskError::input)?;
    let config = json!({
        "in_features": columns, "out_features": rows, "bias": bias.is_some(), "activation_function": activation,
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

/// A run and its judgements with the corpus' own ids, a file for each set.
pub fn run(bench: &Workbench<'_>, task: &Task) -> Result<Produced, TaskError> {
    let Task::ExportRun { run, name, queries, passages, sets } = task else {
        unreachable!("called with its own task")
    };
    let lists = load_ranking(bench, run)?;
    let judgements = bench.judgements(queries, sets)?;
    let is_judged = |judgement: &&Judgement| judgement.passage != NO_PASSAGE;
    let asked = judgements.iter().map(|judgement| judgement.query).collect();
    let query_ids = ids(bench, queries.shards, &asked, |shard| {
        let shard = bench.queries(queries, shard)?;
        Ok((shard.first_row, shard.ids))
    })?;
    let found = lists.values().flatten().map(|hit| hit.row);
    let judged = judgements.iter().filter(is_judged).map(|judgement| judgement.passage);
    let found = found.chain(judged).collect();
    let passage_ids = ids(bench, passages.shards, &found, |shard| {
        let shard = bench.passages(passages, shard)?;
        Ok((shard.first_row, shard.ids))
    })?;
    let mut parts = Vec::new();
    for set in sets {
        let own: Vec<&Judgement> = judgements.iter().filter(|judgement| judgement.set == *set).collect();
        let asked: BTreeSet<u64> = own.iter().map(|judgement| judgement.query).collect();
        let mut exported = Run::default();
        for query in &asked {
            let hits = lists.get(query).map(Vec::as_slice).unwrap_or_default();
            let documents =
                hits.iter().map(|hit| RankedDocument { id: passage_ids[&hit.row].clone(), score: hit.score });
            exported.insert(&query_ids[query], documents.collect()).map_err(TaskError::input)?;
        }
        let mut bytes = Vec::new();
        exported.write_trec(&format!("{name}.{set}.trec"), name, &mut bytes).map_err(TaskError::input)?;
        parts.push((format!("runs/{name}.{set}.trec"), Content::Bytes(bytes.into())));
        let lines = own.iter().copied().filter(is_judged).map(|judgement| {
            let (query, passage) = (&query_ids[&judgement.query], &passage_ids[&judgement.passage]);
            format!("{query} 0 {passage} {}\n", judgement.grade)
        });
        parts.push((
            format!("qrels/{set}.qrels"),
            Content::Bytes(lines.collect::<String>().into_bytes().into()),
        ));
    }
    let meta = json!({ "files": parts.len() });
    Ok(Produced { parts, meta })
}

/// The ids of some rows: reads shard after shard and keeps only those asked for.
fn ids(
    bench: &Workbench<'_>,
    shards: u32,
    wanted: &BTreeSet<u64>,
    read: impl Fn(u32) -> Result<(u64, Vec<String>), TaskError>,
) -> Result<HashMap<u64, String>, TaskError> {
    let mut found = HashMap::with_capacity(wanted.len());
    for shard in 0..shards {
        bench.go_on()?;
        let (first_row, ids) = read(shard)?;
        found.extend((first_row..).zip(ids).filter(|(row, _)| wanted.contains(row)));
    }
    if found.len() == wanted.len() {
        return Ok(found);
    }
    Err(TaskError::Input("a run or a judgement names a row that its table lacks".to_owned()))
}
