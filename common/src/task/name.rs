//! A task's name, stage, output and needs.

use super::{ArtifactId, Stage, TASK_VERSION, Task};
use crate::ids::{Digest, TaskId};
use crate::spec::KEEPING_KEYS;
use serde_json::Value;

impl Task {
    /// The task's name: the digest of its canonical JSON without the places of its input files.
    pub fn id(&self) -> TaskId {
        let mut value = serde_json::to_value(self).expect("a task has a JSON form");
        forget_places(&mut value);
        forget_keeping(&mut value);
        TaskId(Digest::of_json(&serde_json::json!({ "version": TASK_VERSION, "task": value })))
    }

    /// The artifact it makes.
    pub fn output(&self) -> ArtifactId {
        ArtifactId { kind: self.output_kind().to_owned(), task: self.id() }
    }

    fn output_kind(&self) -> &'static str {
        match self {
            Task::ShardCorpus { .. } => "passages",
            Task::ShardQueries { .. } => "queries",
            Task::ShardSentences { .. } => "sentences",
            Task::Embed { .. } | Task::Project { .. } | Task::Quantize { .. } => "vectors",
            Task::FitQuantizer { .. } | Task::FitBaseline { .. } => "quantizer",
            Task::Encode { .. } => "codes",
            Task::FitPca { .. } => "pca",
            Task::FitBm25 { .. } => "bm25",
            Task::Search { .. } | Task::Merge { .. } => "ranking",
            Task::Mine { .. } | Task::Denoise { .. } => "negatives",
            Task::Score { .. } => "scores",
            Task::Order { .. } => "order",
            Task::Train { .. } => "student",
            Task::Evaluate { .. } => "evaluation",
            Task::ExportStudent { .. } | Task::ExportRun { .. } => "export",
            Task::Report { .. } => "report",
        }
    }

    /// The stage it belongs to. A stage is what a user sees; vectors of students are "embed" like the teacher's.
    pub fn stage(&self) -> Stage {
        match self {
            Task::ShardCorpus { .. } | Task::ShardQueries { .. } | Task::ShardSentences { .. } => {
                Stage::Shard
            }
            Task::Embed { .. } | Task::Project { .. } | Task::Quantize { .. } | Task::Encode { .. } => {
                Stage::Embed
            }
            Task::FitPca { .. }
            | Task::FitBm25 { .. }
            | Task::FitQuantizer { .. }
            | Task::FitBaseline { .. } => Stage::Fit,
            Task::Search { .. } | Task::Merge { .. } => Stage::Search,
            Task::Score { .. } => Stage::Score,
            Task::Mine { .. } | Task::Denoise { .. } | Task::Order { .. } => Stage::Mine,
            Task::Train { .. } => Stage::Train,
            Task::Evaluate { .. } => Stage::Evaluate,
            Task::ExportStudent { .. } | Task::ExportRun { .. } => Stage::Export,
            Task::Report { .. } => Stage::Report,
        }
    }

    /// Every artifact it reads, found in its JSON form, so that no new field can be forgotten here.
    pub fn needs(&self) -> Vec<ArtifactId> {
        let mut found = Vec::new();
        collect_artifacts(&serde_json::to_value(self).expect("a task has a JSON form"), &mut found);
        found.sort();
        found.dedup();
        found
    }

    /// The kernels' fingerprint that it is bound to, if its output depends on them.
    pub fn fingerprint(&self) -> Option<&str> {
        match self {
            Task::Embed { fingerprint, .. }
            | Task::Project { fingerprint, .. }
            | Task::FitPca { fingerprint, .. }
            | Task::FitQuantizer { fingerprint, .. }
            | Task::FitBaseline { fingerprint, .. }
            | Task::Encode { fingerprint, .. }
            | Task::Quantize { fingerprint, .. }
            | Task::Search { fingerprint, .. }
            | Task::Score { fingerprint, .. }
            | Task::Train { fingerprint, .. } => Some(fingerprint.as_str()).filter(|text| !text.is_empty()),
            _ => None,
        }
    }
}

/// Removes `url` from every input file: where a file lies is not what it is.
fn forget_places(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if map.contains_key("sha256") {
                map.remove("url");
            }
            map.values_mut().for_each(forget_places);
        }
        Value::Array(items) => items.iter_mut().for_each(forget_places),
        _ => {}
    }
}

/// Removes what says how often checkpoints are written and how long they are kept, which changes no output.
fn forget_keeping(value: &mut Value) {
    match value {
        Value::Object(map) => {
            KEEPING_KEYS.iter().for_each(|key| drop(map.remove(*key)));
            map.values_mut().for_each(forget_keeping);
        }
        Value::Array(items) => items.iter_mut().for_each(forget_keeping),
        _ => {}
    }
}

fn collect_artifacts(value: &Value, found: &mut Vec<ArtifactId>) {
    match value {
        Value::Object(map) => {
            if map.len() == 2
                && map.contains_key("kind")
                && let Ok(artifact) = serde_json::from_value(value.clone())
            {
                found.push(artifact);
                return;
            }
            map.values().for_each(|value| collect_artifacts(value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| collect_artifacts(value, found)),
        _ => {}
    }
}
