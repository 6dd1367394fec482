//! The job spec: what a user writes in TOML, checked strictly and kept as plain data.
//!
//! - [`JobSpec`] and its parts: every key with its meaning, unit and default
//! - [`parse`](parse()): TOML and `--set k=v` to a checked spec; errors name line, key and the nearest valid key
//! - [`digest`](digest()): names what a job is asked to do
//! - [`baselines`]: the rows that learn without a label
//! - `corpus`: where passages, questions and judgements come from
//! - [`inputs`]: the files a spec names, with the digests recorded at submit

pub mod baselines;
mod check;
mod corpus;
pub mod inputs;
mod parse;
mod teacher;

pub use baselines::BaselinesSpec;
pub use check::{ContradictionError, check};
pub use corpus::{AnswerRule, CorpusFormat, CorpusPreset, CorpusSpec, FileFormat, FileList, FileRef};
pub use parse::{SpecError, parse};
pub use teacher::{Pooling, TeacherSpec};

use crate::ids::Digest;
use serde::{Deserialize, Serialize};

/// Names what a job is asked to do: two jobs with one digest have one result. Coordinator and clients both
/// compute it, so it stands here.
pub fn digest(spec: &JobSpec, inputs: &inputs::JobInputs) -> Digest {
    Digest::of_json(&serde_json::json!({ "spec": spec, "inputs": inputs }))
}

/// One distillation job: corpus, teacher, students, baselines and how to judge them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// Name of the job; its id begins with it.
    pub name: String,
    /// Seed of everything random: orders, sampling, initial weights.
    #[serde(default)]
    pub seed: u64,
    /// The passages and questions.
    pub corpus: CorpusSpec,
    /// Which sets of judgements serve which purpose.
    #[serde(default)]
    pub sets: SetsSpec,
    /// The model to learn from.
    pub teacher: TeacherSpec,
    /// How hard negatives are chosen.
    #[serde(default)]
    pub mining: MiningSpec,
    /// Unsupervised rows of the report.
    #[serde(default)]
    pub baselines: BaselinesSpec,
    /// The students to train.
    #[serde(default)]
    pub student: Vec<StudentSpec>,
    /// How every row is judged.
    #[serde(default)]
    pub evaluate: EvaluateSpec,
}

/// Sets of judgements by purpose.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetsSpec {
    /// Their questions train the students.
    #[serde(default)]
    pub train: Vec<String>,
    /// Everything that is chosen is chosen on them.
    #[serde(default)]
    pub dev: Vec<String>,
    /// Reported once, never looked at before.
    #[serde(default)]
    pub test: Vec<String>,
}

impl SetsSpec {
    /// The sets that rows are judged on, dev first.
    pub fn judged(&self) -> Vec<String> {
        self.dev.iter().chain(&self.test).cloned().collect()
    }
}

/// How hard negatives are chosen from ranked lists.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MiningSpec {
    /// Retrievers whose lists are mixed.
    pub from: Vec<MiningSource>,
    /// Length of the lists.
    pub depth: u32,
    /// First rank that may be taken, from 1.
    pub from_rank: u32,
    /// Negatives kept for each question.
    pub per_query: u32,
    /// A candidate must score at least this much less than the positive, by the teacher; 0 turns it off.
    pub margin: f64,
    /// A candidate must score at most this share of the positive's score, by the teacher; 0 turns it off.
    pub ratio: f64,
    /// Drop passages that hold one of the question's answers.
    pub drop_answers: bool,
}

impl Default for MiningSpec {
    fn default() -> Self {
        Self {
            from: vec![MiningSource::Teacher, MiningSource::Bm25],
            depth: 50,
            from_rank: 1,
            per_query: 8,
            margin: 0.0,
            ratio: 0.95,
            drop_answers: true,
        }
    }
}

/// A retriever that negatives are mined from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MiningSource {
    /// The job's teacher.
    Teacher,
    /// BM25 with the parameters under `baselines`.
    Bm25,
    /// Negatives that the training files bring along, in their order.
    Given,
}

/// A model to train.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StudentSpec {
    /// Name of its row.
    pub name: String,
    /// What it is made of.
    pub kind: StudentKind,
    /// Dimensions of its vectors. Needed for a head; an encoder without it has its own hidden size.
    pub dim: Option<u32>,
    /// Width of the hidden layer that makes a head an MLP.
    pub hidden: Option<u32>,
    /// Quantised: whose vectors it codes: "teacher" (without it) or the name of an earlier head student.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on: Option<String>,
    /// Quantised: bytes of a passage's code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u32>,
    /// Quantised: how codes stand for vectors; "product" without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<CodeKind>,
    /// Encoder: which of the model's layers to keep, from 0; all without it.
    pub layers: Option<Vec<u32>>,
    /// Encoder: a Hugging Face folder to start from; the teacher's without it.
    pub model: Option<String>,
    /// Encoder: pooling; the teacher's without it.
    pub pooling: Option<Pooling>,
    /// Encoder: longest question in tokens; the teacher's without it.
    pub query_max_tokens: Option<u32>,
    /// Encoder: longest passage in tokens; the teacher's without it.
    pub passage_max_tokens: Option<u32>,
    /// How the projection starts: "pca", "random", or the name of an earlier head student.
    #[serde(default = "default_init")]
    pub init: String,
    /// Its training, phase after phase.
    #[serde(default)]
    pub phase: Vec<PhaseSpec>,
}

/// What a student is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StudentKind {
    /// A linear map or MLP on the teacher's cached vectors.
    Head,
    /// An encoder of its own, with a projection where `dim` is given.
    Encoder,
    /// Codes of a few bytes for the passages' vectors of the teacher or a head; questions stay as they are.
    Quantised,
}

/// How a code stands for a vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CodeKind {
    /// A rotation, then a byte for each part of the vector (Ge et al. 2014, OPQ).
    #[default]
    Product,
    /// A sum of vectors, one for each byte (Chen et al. 2010, residual quantisation).
    Residual,
}

/// One phase of a student's training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhaseSpec {
    /// What the rows of a batch are.
    pub data: PhaseData,
    /// Whose vectors give the signal: "teacher" or the name of an earlier head student.
    #[serde(default = "default_signal")]
    pub signal: String,
    /// Steps to take; or give `epochs`.
    pub steps: Option<u32>,
    /// Passes over the data; or give `steps`.
    pub epochs: Option<f64>,
    /// Rows in a global batch.
    pub batch: u32,
    /// Parts a global batch is cut into: leaves of the gradient tree, upper limit of the cohort.
    #[serde(default = "default_microbatches")]
    pub microbatches: u32,
    /// Mined negatives beside each question's positive (data = "queries").
    #[serde(default)]
    pub negatives: u32,
    /// Passages drawn from the whole corpus beside each question's own (data = "queries"): candidates for the signal
    /// to score that need no label.
    #[serde(default)]
    pub corpus_samples: u32,
    /// Share of a batch's rows whose question is a passage of the corpus, its candidates all drawn from the corpus
    /// (data = "queries"): questions that need no label, which reach passages that nobody asked about.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unlabelled: f64,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Share of the steps over which the learning rate rises.
    #[serde(default = "default_warmup")]
    pub warmup: f64,
    /// How the learning rate falls after that.
    #[serde(default)]
    pub schedule: ScheduleKind,
    /// AdamW's decoupled weight decay; biases and LayerNorm are spared.
    #[serde(default = "default_weight_decay")]
    pub weight_decay: f64,
    /// Largest global norm of the gradient; 0 turns clipping off.
    #[serde(default = "default_clip")]
    pub clip_norm: f64,
    /// Steps between checkpoints.
    #[serde(default = "default_checkpoint_every")]
    pub checkpoint_every: u32,
    /// The loss: a weighted sum of its terms.
    pub loss: Vec<LossSpec>,
}

/// What the rows of a training batch are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PhaseData {
    /// Single texts without labels: every passage and every training question.
    Texts,
    /// Training questions, each with one of its positives and mined negatives.
    Queries,
}

/// How the learning rate falls after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// In a straight line to 0.
    #[default]
    Linear,
    /// As half a cosine to 0.
    Cosine,
    /// Not at all.
    Constant,
}

/// One term of a loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossSpec {
    /// Which loss.
    pub kind: LossKind,
    /// Factor in the sum.
    #[serde(default = "one")]
    pub weight: f64,
    /// Divides the student's scores (info_nce, kl).
    pub temperature: Option<f64>,
    /// Divides the teacher's scores (kl); the student's without it.
    pub teacher_temperature: Option<f64>,
    /// Candidates beyond a question's own: its listed negatives only, or the whole batch (info_nce, kl).
    pub scope: Option<LossScope>,
}

/// Which loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossKind {
    /// Cross-entropy of the positive against its negatives (van den Oord et al. 2018).
    InfoNce,
    /// Kullback-Leibler divergence from the teacher's to the student's distribution over candidates.
    Kl,
    /// Squared difference of score margins (Hofstätter et al. 2020).
    MarginMse,
    /// Squared distance to the signal's vectors.
    EmbeddingMse,
    /// One minus the cosine to the signal's vectors.
    EmbeddingCosine,
}

/// Which candidates a loss over scores looks at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossScope {
    /// The question's own positive and mined negatives.
    Listed,
    /// Every passage of the global batch; other known positives and duplicates are masked.
    #[default]
    Batch,
}

/// How every row is judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluateSpec {
    /// Length of the ranked lists.
    pub depth: u32,
    /// Metrics, e.g. "mrr@10"; the first decides where something is chosen on dev.
    pub metrics: Vec<String>,
}

impl Default for EvaluateSpec {
    fn default() -> Self {
        let metrics = ["mrr@10", "ndcg@10", "recall@20", "recall@100", "success@20", "accuracy@20"];
        Self { depth: 100, metrics: metrics.map(str::to_owned).to_vec() }
    }
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

fn one() -> f64 {
    1.0
}

fn default_init() -> String {
    "pca".to_owned()
}

fn default_signal() -> String {
    "teacher".to_owned()
}

fn default_microbatches() -> u32 {
    4
}

fn default_warmup() -> f64 {
    0.1
}

fn default_weight_decay() -> f64 {
    0.01
}

fn default_clip() -> f64 {
    1.0
}

fn default_checkpoint_every() -> u32 {
    100
}
