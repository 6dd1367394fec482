//! A student as a folder for sentence-transformers.

use super::super::bench::{Content, Produced, TaskError, Workbench};
use super::super::input::{model_folder, tokenizer_file};
use super::super::student::{Student, TOKENIZER};
use crate::export::model::{Chain, head_layers, write_router, write_shared};
use crate::model::{EncoderConfig, Head, Input, Pooling, StackLayer, load_retriever};
use crate::text::SpecialTokens;
use retort_common::spec::inputs::ModelFiles;
use retort_common::task::{ArtifactId, Task, TextInput};
use serde_json::json;
use std::path::{Path, PathBuf};

/// A student as a folder for sentence-transformers: what it is made of, and for a head the encoder below it. A head on
/// two encoders becomes a router, and so does an encoder of questions with what makes the passages' vectors. Of codes it is
/// what asks them, a folder for questions alone.
pub fn student(bench: &Workbench<'_>, task: &Task) -> Result<Produced, TaskError> {
    let Task::ExportStudent {
        student,
        below,
        base,
        query_base,
        passage_tower,
        pooling,
        query,
        passage,
        normalize,
    } = task
    else {
        unreachable!("called with its own task")
    };
    let loaded = Student::load(bench, student)?;
    let folder = bench.scratch("export");
    std::fs::create_dir_all(&folder).map_err(Workbench::scratch_error(&folder))?;
    let mut head = match below {
        Some(below) => layers(&Student::load(bench, below)?, *normalize)?,
        None => Vec::new(),
    };
    head.extend(layers(&loaded, *normalize)?);
    let prompts = [query.prefix.as_str(), passage.prefix.as_str()];
    let written = match (&loaded.shape.tower.input, query_base, passage_tower) {
        (Input::Tokens { encoder, pooling }, _, Some(tower)) => {
            let questions = Encoder::own(bench, &loaded, student, base, encoder, *pooling)?;
            let passages = Encoder::base(bench, &tower.base.files, tower.base.pooling)?;
            let behind = match &tower.head {
                Some(head) => layers(&Student::load(bench, head)?, *normalize)?,
                None => Vec::new(),
            };
            let (questions, passages) =
                (questions.chain(&head, query, *normalize), passages.chain(&behind, passage, *normalize));
            write_router(&folder, &questions, &passages, prompts)
        }
        (Input::Vectors { .. }, other, _) if matches!(loaded.shape.tower.head, Head::Coded(_)) => {
            let questions = match other {
                Some(other) => Encoder::base(bench, &other.files, other.pooling)?,
                None => Encoder::base(bench, base, *pooling)?,
            };
            write_shared(&folder, &questions.chain(&head, query, *normalize), prompts)
        }
        (Input::Vectors { .. }, Some(other), _) => {
            let passages = Encoder::base(bench, base, *pooling)?;
            let questions = Encoder::base(bench, &other.files, other.pooling)?;
            let (questions, passages) =
                (questions.chain(&head, query, *normalize), passages.chain(&head, passage, *normalize));
            write_router(&folder, &questions, &passages, prompts)
        }
        (input, _, _) => {
            let encoder = match input {
                // A head stands on its teacher's encoder, which goes along, so that the folder is complete.
                Input::Vectors { .. } => Encoder::base(bench, base, *pooling)?,
                Input::Tokens { encoder, pooling } => {
                    Encoder::own(bench, &loaded, student, base, encoder, *pooling)?
                }
            };
            // One encoder cuts both sides at the longer of the two.
            let longest = if query.max_tokens > passage.max_tokens { query } else { passage };
            write_shared(&folder, &encoder.chain(&head, longest, *normalize), prompts)
        }
    };
    written.map_err(TaskError::input)?;
    let parts = files(&folder, "")?;
    let meta = json!({ "files": parts.len() });
    Ok(Produced { parts, meta })
}

/// A student's layers behind its encoder or its teacher's.
fn layers(student: &Student, normalize: bool) -> Result<Vec<StackLayer>, TaskError> {
    let tower = &student.shape.tower;
    let mut layers = head_layers(&tower.head, &student.layout, &student.params).map_err(TaskError::input)?;
    // A head was trained on its teacher's vectors as they were embedded: of unit length where the job normalises.
    if normalize && matches!(tower.input, Input::Vectors { .. }) {
        layers.insert(0, StackLayer::Normalize);
    }
    Ok(layers)
}

/// An encoder with everything that its folder needs.
struct Encoder {
    config: EncoderConfig,
    params: Vec<f32>,
    pooling: Pooling,
    /// What its own checkpoint puts behind it.
    layers: Vec<StackLayer>,
    tokenizer: PathBuf,
    special: SpecialTokens,
}

impl Encoder {
    /// The encoder that a head stands on.
    fn base(bench: &Workbench<'_>, files: &ModelFiles, pooling: Pooling) -> Result<Self, TaskError> {
        let source = model_folder(bench, files)?;
        let (config, params, stack) = load_retriever(&source).map_err(TaskError::input)?;
        let tokenizer = tokenizer_file(bench, &source)?;
        let settings = crate::model::encoder_folder(&source).map_err(TaskError::input)?;
        let special = SpecialTokens::of_folder(&settings, &tokenizer).map_err(TaskError::input)?;
        Ok(Self { config, params, pooling, layers: stack.layers, tokenizer, special })
    }

    /// The encoder that the student is.
    fn own(
        bench: &Workbench<'_>,
        loaded: &Student,
        student: &ArtifactId,
        base: &ModelFiles,
        config: &EncoderConfig,
        pooling: Pooling,
    ) -> Result<Self, TaskError> {
        let own = loaded.layout.entries().iter().filter(|entry| !entry.path.starts_with("head"));
        let length = own.map(|entry| entry.range().end).max().unwrap_or(0);
        let tokenizer = bench.part(student, TOKENIZER)?;
        let source = model_folder(bench, &base.tokenizer())?;
        let special = SpecialTokens::of_folder(&source, &tokenizer).map_err(TaskError::input)?;
        let (config, params) = (config.clone(), loaded.params[..length].to_vec());
        Ok(Self { config, params, pooling, layers: Vec::new(), tokenizer, special })
    }

    fn chain(&self, head: &[StackLayer], input: &TextInput, normalize: bool) -> Chain<'_> {
        Chain {
            encoder: &self.config,
            params: &self.params,
            pooling: self.pooling,
            layers: self.layers.iter().chain(head).cloned().collect(),
            normalize,
            tokenizer: &self.tokenizer,
            special: &self.special,
            max_tokens: input.max_tokens as usize,
        }
    }
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
