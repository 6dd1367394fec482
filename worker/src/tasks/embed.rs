//! Texts to vectors.

use super::bench::{Content, Produced, TaskError, VECTORS, Workbench};
use super::input::{model_folder, tokenizer_file};
use super::student::{Student, TOKENIZER};
use crate::embedding::{EmbeddingError, TextEncoder};
use crate::matrix::Matrix;
use crate::model::{Batch, Head, Input, Stack, Tower, TowerConfig, load_retriever};
use crate::text::Tokenizer;
use crate::vectors::{read_vectors, write_vectors};
use retort_common::ids::Digest;
use retort_common::task::{ArtifactId, Encoder, Side, Task};
use serde_json::json;
use std::any::Any;
use std::sync::{Arc, Mutex};

/// An encoder ready to use.
pub struct LoadedEncoder {
    tower: Tower,
    /// What its checkpoint puts behind it.
    stack: Stack,
    tokenizer: Tokenizer,
    pad_token_id: u32,
}

/// The encoder that was used last, of texts or of pairs: neighbouring tasks need the same one.
#[derive(Default)]
pub struct EncoderCache(Mutex<Option<(Digest, Arc<dyn Any + Send + Sync>)>>);

impl EncoderCache {
    /// Lets go of the encoder: training needs the memory.
    pub fn clear(&self) {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
    }

    /// The encoder that `key` names, loaded unless it is the last one.
    pub(super) fn get<T: Any + Send + Sync>(
        &self,
        key: Digest,
        load: impl FnOnce() -> Result<T, TaskError>,
    ) -> Result<Arc<T>, TaskError> {
        let mut slot = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((held, loaded)) = slot.as_ref()
            && *held == key
            && let Ok(loaded) = Arc::clone(loaded).downcast()
        {
            return Ok(loaded);
        }
        // The old encoder goes first: two at once would double the memory.
        *slot = None;
        let loaded = Arc::new(load()?);
        *slot = Some((key, Arc::clone(&loaded) as Arc<dyn Any + Send + Sync>));
        Ok(loaded)
    }
}

fn load(bench: &Workbench<'_>, encoder: &Encoder) -> Result<LoadedEncoder, TaskError> {
    let (config, params, stack, tokenizer) = match encoder {
        Encoder::Files { files, pooling } => {
            let folder = model_folder(bench, files)?;
            let (encoder, params, stack) = load_retriever(&folder).map_err(TaskError::input)?;
            let input = Input::Tokens { encoder, pooling: *pooling };
            (TowerConfig { input, head: Head::None }, params, stack, tokenizer_file(bench, &folder)?)
        }
        Encoder::Student { student } => {
            let Student { shape, params, .. } = Student::load(bench, student)?;
            (shape.tower, params, Stack::default(), bench.part(student, TOKENIZER)?)
        }
    };
    let Input::Tokens { encoder, .. } = &config.input else {
        return Err(TaskError::Input("this model reads vectors and cannot embed text".to_owned()));
    };
    let (vocabulary, pad) = (encoder.vocabulary_size, encoder.pad_token_id);
    let tokenizer = Tokenizer::load(&tokenizer, vocabulary).map_err(TaskError::input)?;
    let tower = Tower::new(config, &params, &bench.device).map_err(TaskError::input)?;
    Ok(LoadedEncoder { tower, stack, tokenizer, pad_token_id: pad })
}

/// One shard of texts through an encoder.
pub fn embed(bench: &Workbench<'_>, task: &Task) -> Result<Produced, TaskError> {
    let Task::Embed { encoder, texts, shard, side, input, batch_tokens, normalize, .. } = task else {
        unreachable!("called with its own task")
    };
    let (first_row, strings) = match side {
        Side::Passage => {
            let shard = bench.passages(texts, *shard)?;
            (shard.first_row, (0..shard.ids.len()).map(|i| shard.model_text(i)).collect())
        }
        Side::Query => {
            let shard = bench.queries(texts, *shard)?;
            (shard.first_row, shard.texts)
        }
    };
    let strings: Vec<_> = strings.iter().map(|text| format!("{}{text}", input.prefix)).collect();
    let loaded = bench.encoders.get(Digest::of_json(encoder), || load(bench, encoder))?;
    let encoder = TextEncoder {
        tokenizer: &loaded.tokenizer,
        tower: &loaded.tower,
        stack: &loaded.stack,
        pad_token_id: loaded.pad_token_id,
        max_tokens: input.max_tokens as usize,
        batch_tokens: *batch_tokens as usize,
    };
    let vectors = encoder.embed(&strings, bench.threads, |done| {
        bench.progress.progress(done as u64, strings.len() as u64, "");
        bench.go_on()
    })?;
    finish(bench, vectors, *normalize, first_row)
}

impl From<EmbeddingError> for TaskError {
    fn from(error: EmbeddingError) -> Self {
        Self::input(error)
    }
}

/// One shard of vectors through a head.
pub fn project(
    bench: &Workbench<'_>,
    student: &ArtifactId,
    vectors: &ArtifactId,
    normalize: bool,
) -> Result<Produced, TaskError> {
    let first_row = bench.manifest(vectors)?.meta["first_row"].as_u64().unwrap_or(0);
    let input = read_vectors(&bench.part(vectors, VECTORS)?)?;
    let Student { shape, params, .. } = Student::load(bench, student)?;
    let tower = Tower::new(shape.tower, &params, &bench.device).map_err(TaskError::input)?;
    let output = tower.encode(&Batch::Vectors(input)).map_err(TaskError::input)?;
    finish(bench, output, normalize, first_row)
}

fn finish(
    bench: &Workbench<'_>,
    mut vectors: Matrix,
    normalize: bool,
    first_row: u64,
) -> Result<Produced, TaskError> {
    if let Some(at) = vectors.data().iter().position(|value| !value.is_finite()) {
        let row = first_row + (at / vectors.dim().max(1)) as u64;
        return Err(TaskError::Input(format!(
            "the vector of row {row} is not finite: check the model's weights"
        )));
    }
    if normalize {
        vectors.normalize_rows();
    }
    let path = bench.scratch(VECTORS);
    write_vectors(&path, &vectors)?;
    let meta = json!({ "rows": vectors.rows(), "dim": vectors.dim(), "first_row": first_row });
    Ok(Produced { parts: vec![(VECTORS.to_owned(), Content::File(path))], meta })
}
