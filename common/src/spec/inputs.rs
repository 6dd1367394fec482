//! The files that a spec names, found and hashed when the job is submitted.
//!
//! Their digests are part of the job: a worker that reads a file verifies it, so an input that changes in
//! mid-job is an error and never a silent mixture.

mod corpus;

pub use corpus::{CorpusInputs, DataFile};

use super::JobSpec;
use crate::ids::{Digest, Hasher};
pub use crate::model::{ModelDefaults, ModelFiles, ModelInputs};
use crate::store::{Location, StoreError};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A file outside the store, as it was when the job was submitted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputFile {
    /// Where it lies. Not part of any task's name: a moved file is the same input.
    pub url: String,
    /// Its size.
    pub bytes: u64,
    /// Its digest.
    pub sha256: Digest,
}

impl InputFile {
    /// Hashes a file, if it is there; `what` is its place in the spec, for messages.
    pub async fn find(what: &str, location: &Location) -> Result<Option<Self>, InputError> {
        let fail = |source| read(what, source);
        let Some(mut stream) = location.stream().await.map_err(fail)? else { return Ok(None) };
        let (mut hasher, mut bytes) = (Hasher::default(), 0);
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(fail)?;
            hasher.update(&chunk);
            bytes += chunk.len() as u64;
        }
        Ok(Some(Self { url: location.to_string(), bytes, sha256: hasher.finish() }))
    }
}

/// All files of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobInputs {
    /// The passages, questions and judgements.
    pub corpus: CorpusInputs,
    /// The teacher; its passage encoder where questions have their own.
    pub teacher: ModelInputs,
    /// The teacher's encoder of questions, where it is another model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher_query: Option<ModelInputs>,
    /// The cross-encoder, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cross_encoder: Option<ModelInputs>,
    /// Models that encoder students start from, by student name.
    pub students: BTreeMap<String, ModelInputs>,
    /// Checkpoints that students start from, by student name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub checkpoints: BTreeMap<String, InputFile>,
}

/// Why the files of a spec could not be recorded.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// No file under any of its names.
    #[error("{what}: none of {tried} exists; put the file there or correct the path in the spec")]
    Missing {
        /// Which input.
        what: String,
        /// The names tried.
        tried: String,
    },
    /// A model whose files contradict each other or need another form.
    #[error("{what}: {message}")]
    Model {
        /// Which model.
        what: String,
        /// File, what is wrong, and what to do.
        message: String,
    },
    /// The file could not be read.
    #[error("{what}: {source}")]
    Read {
        /// Which input.
        what: String,
        /// The cause.
        source: StoreError,
    },
}

impl JobInputs {
    /// Finds and hashes every file that `spec` names; relative paths start at `base`.
    pub async fn collect(spec: &JobSpec, base: &Location) -> Result<Self, InputError> {
        let (mut students, mut checkpoints) = (BTreeMap::new(), BTreeMap::new());
        for student in &spec.student {
            if let Some(checkpoint) = &student.warm_start {
                let what = format!("warm_start of student {:?}", student.name);
                let location = base.join(checkpoint).map_err(|source| read(&what, source))?;
                let missing = InputError::Missing { what: what.clone(), tried: location.to_string() };
                let file = InputFile::find(&what, &location).await?.ok_or(missing)?;
                checkpoints.insert(student.name.clone(), file);
            }
            if let Some(model) = &student.model {
                let what = format!("model of student {:?}", student.name);
                students.insert(student.name.clone(), ModelInputs::collect(&what, base, model).await?);
            }
        }
        Ok(Self {
            corpus: CorpusInputs::collect(spec, base).await?,
            teacher: ModelInputs::collect("teacher", base, spec.teacher.passage_reference()).await?,
            teacher_query: match spec.teacher.query_reference() {
                Some(model) => Some(ModelInputs::collect("teacher.query_model", base, model).await?),
                None => None,
            },
            cross_encoder: match &spec.cross_encoder {
                Some(cross) => {
                    let (model, tokens) = (&cross.model, cross.max_tokens);
                    Some(ModelInputs::collect_cross_encoder("cross_encoder", base, model, tokens).await?)
                }
                None => None,
            },
            students,
            checkpoints,
        })
    }
}

fn read(what: &str, source: StoreError) -> InputError {
    InputError::Read { what: what.to_owned(), source }
}
