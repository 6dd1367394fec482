//! The job spec: what a user writes in TOML, checked strictly and kept as plain data.
//!
//! - [`JobSpec`] and its parts: every key with its meaning, unit and default
//! - `loss`: the terms of a loss
//! - `cross_encoder`: a model that scores pairs; `denoise`: its look at mined candidates
//! - [`parse`](parse()): TOML and `--set k=v` to a checked spec; errors name line, key and the nearest valid key
//! - [`digest`](digest()): names what a job is asked to do
//! - [`differences`]: the keys in which two specs differ, and whether that changes a result
//! - [`baselines`]: the rows that learn without a label
//! - `corpus`: where passages, questions and judgements come from
//! - [`inputs`]: the files a spec names, with the digests recorded at submit

pub mod baselines;
mod check;
mod check_loss;
mod check_signal;
mod corpus;
mod cross_encoder;
mod denoise;
mod differ;
pub mod inputs;
mod loss;
mod parse;
mod teacher;

pub use baselines::BaselinesSpec;
pub use check::{ContradictionError, check};
pub use corpus::{AnswerRule, CorpusFormat, CorpusPreset, CorpusSpec, FileFormat, FileList, FileRef};
pub use cross_encoder::CrossEncoderSpec;
pub use denoise::DenoiseSpec;
pub use differ::{Difference, KEEPING_KEYS, differences};
pub use loss::{LossDirection, LossKind, LossScope, LossSide, LossSpec, RampSpec};
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
    /// A model that scores pairs of question and passage, where mining or a phase asks one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cross_encoder: Option<CrossEncoderSpec>,
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
    /// A candidate must score at most this, by the teacher.
    pub ceiling: Option<f64>,
    /// Which of the candidates that pass all filters are kept.
    pub sampling: MiningSampling,
    /// Drop passages that hold one of the question's answers.
    pub drop_answers: bool,
    /// Drop passages that the cross-encoder takes for answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub denoise: Option<DenoiseSpec>,
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
            ceiling: None,
            sampling: MiningSampling::Best,
            drop_answers: true,
            denoise: None,
        }
    }
}

/// A retriever that negatives are mined from; in a spec its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum MiningSource {
    /// The job's teacher.
    Teacher,
    /// BM25 with the parameters under `baselines`.
    Bm25,
    /// Negatives that the training files bring along, in their order.
    Given,
    /// A student of the job that is trained before.
    Student(String),
}

impl From<String> for MiningSource {
    fn from(name: String) -> Self {
        match name.as_str() {
            "teacher" => MiningSource::Teacher,
            "bm25" => MiningSource::Bm25,
            "given" => MiningSource::Given,
            _ => MiningSource::Student(name),
        }
    }
}

impl From<MiningSource> for String {
    fn from(source: MiningSource) -> Self {
        match source {
            MiningSource::Teacher => "teacher".to_owned(),
            MiningSource::Bm25 => "bm25".to_owned(),
            MiningSource::Given => "given".to_owned(),
            MiningSource::Student(name) => name,
        }
    }
}

/// Which candidates become negatives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MiningSampling {
    /// The best ranked; lists of several retrievers take turns.
    #[default]
    Best,
    /// A seeded random choice.
    Random,
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
    /// Quantised: whose vectors it codes: "teacher" (without it) or the name of an earlier head student. Encoder: whose
    /// passages it asks, as an encoder of questions alone: "teacher", or the name of an earlier head or quantised
    /// student; without it, it encodes passages, too.
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
    /// A checkpoint's file, of this or another job's training of a student of the same shape: the first phase starts
    /// from its weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_start: Option<String>,
    /// Its training, phase after phase. A quantised student may do without: it is fitted then.
    #[serde(default)]
    pub phase: Vec<PhaseSpec>,
}

impl StudentSpec {
    /// Whether it encodes questions alone and leaves the passages as another row has them.
    pub fn only_asks(&self) -> bool {
        self.kind == StudentKind::Encoder && self.on.is_some()
    }

    /// Whether it is an MLP whose hidden layer has no room for a linear map: two units for each component.
    pub fn is_narrow(&self) -> bool {
        self.hidden.is_some_and(|hidden| self.dim.is_none_or(|dim| hidden / 2 < dim))
    }
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
    /// A rotation, then the sign of each dimension, a bit (Gong & Lazebnik 2011, ITQ).
    Binary,
}

/// One phase of a student's training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhaseSpec {
    /// What the rows of a batch are.
    pub data: PhaseData,
    /// Whose vectors give the signal: "teacher", the name of an earlier head student, or that of the quantised student
    /// whose codes an encoder of questions asks. Or scores of single pairs: "given", those that the corpus' files
    /// bring, or "cross-encoder".
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
    /// Retrievers whose lists this phase's negatives are mined from: "teacher", "bm25", names of earlier students;
    /// those under `mining` without it.
    pub negatives_from: Option<Vec<MiningSource>>,
    /// Passages drawn from the whole corpus beside each question's own (data = "queries"): candidates for the signal
    /// to score that need no label.
    #[serde(default)]
    pub corpus_samples: u32,
    /// Share of a batch's rows whose question is a passage of the corpus, its candidates all drawn from the corpus
    /// (data = "queries"): questions that need no label, which reach passages that nobody asked about.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unlabelled: f64,
    /// Whether sentences of the corpus (`corpus.sentences`) are learnt from: as the questions of the rows without
    /// labels, or as texts beside the others.
    #[serde(default, skip_serializing_if = "is_false")]
    pub sentences: bool,
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
    /// AdamW's decay of the first moment.
    #[serde(default = "default_beta1")]
    pub beta1: f64,
    /// AdamW's decay of the second moment.
    #[serde(default = "default_beta2")]
    pub beta2: f64,
    /// Added to AdamW's denominator.
    #[serde(default = "default_epsilon")]
    pub epsilon: f64,
    /// Share of an encoder's activations that are set to 0 in training (an MLP's hidden ones, too).
    #[serde(default)]
    pub dropout: f64,
    /// Quantised: the weight of the mean squared distance between a passage's mapped vector and what its code stands
    /// for, beside the loss; 0.5 without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commitment: Option<f64>,
    /// Encoder: keep the embeddings as they are.
    #[serde(default)]
    pub freeze_embeddings: bool,
    /// Encoder: keep this many of the lowest layers as they are.
    #[serde(default)]
    pub freeze_layers: u32,
    /// Steps after which the student mines its negatives anew (data = "queries").
    pub refresh_every: Option<u32>,
    /// Steps after which the student is evaluated on the dev sets; the best of these states is what the phase gives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluate_every: Option<u32>,
    /// Evaluations without a better one after which the phase ends early (with `evaluate_every`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience: Option<u32>,
    /// Steps between checkpoints.
    #[serde(default = "default_checkpoint_every")]
    pub checkpoint_every: u32,
    /// Checkpoints that are kept; older ones are deleted once a newer one is complete.
    #[serde(default = "default_keep_last", skip_serializing_if = "is_default_keep_last")]
    pub keep_last: u32,
    /// The format in which gradients travel between workers.
    #[serde(default, skip_serializing_if = "WireSpec::is_default")]
    pub wire: WireSpec,
    /// With bf16: sums of blocks of 2^level microbatches, and those above them, are rounded. A block is never shared
    /// between workers.
    #[serde(default, skip_serializing_if = "is_zero_level")]
    pub wire_level: u32,
    /// The loss: a weighted sum of its terms.
    pub loss: Vec<LossSpec>,
}

/// The default of a phase's `commitment`.
const COMMITMENT: f64 = 0.5;

impl PhaseSpec {
    /// Where the scores come from, where the signal is scores of single pairs and no vectors.
    pub fn pair_scores(&self) -> Option<PairScores> {
        PairScores::ALL.into_iter().find(|scores| scores.name() == self.signal)
    }

    /// The weight that draws passages and their codes together.
    pub fn commitment(&self) -> f64 {
        self.commitment.unwrap_or(COMMITMENT)
    }
}

/// A signal that is scores of single pairs: a question with its own positives and mined negatives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairScores {
    /// Those that the corpus' files bring for pairs.
    Given,
    /// A cross-encoder's logits (margins as in Hofstätter et al. 2020, distributions as in RocketQAv2, Ren et al. 2021).
    CrossEncoder,
}

impl PairScores {
    /// Both.
    pub const ALL: [Self; 2] = [PairScores::Given, PairScores::CrossEncoder];

    /// Its name as a phase's `signal`; no student may have it.
    pub fn name(self) -> &'static str {
        match self {
            PairScores::Given => "given",
            PairScores::CrossEncoder => "cross-encoder",
        }
    }
}

impl JobSpec {
    /// Whether what is planned depends on measurements.
    pub fn decides(&self) -> bool {
        self.student.iter().flat_map(|student| &student.phase).any(|phase| phase.evaluate_every.is_some())
    }
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

/// A format of gradients on their way between workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WireSpec {
    /// As they are.
    #[default]
    F32,
    /// Rounded to half the bytes, whether or not they travel: the result does not depend on who computed what.
    Bf16,
}

impl WireSpec {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl PhaseSpec {
    /// Microbatches that are computed by one worker together: its deal is made of whole blocks.
    pub fn block(&self) -> u32 {
        match self.wire {
            WireSpec::F32 => 1,
            WireSpec::Bf16 => 1 << self.wire_level.min(30),
        }
    }
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

fn default_keep_last() -> u32 {
    2
}

fn is_default_keep_last(value: &u32) -> bool {
    *value == default_keep_last()
}

fn is_zero_level(value: &u32) -> bool {
    *value == 0
}

fn is_false(value: &bool) -> bool {
    !*value
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
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

fn default_beta1() -> f64 {
    0.9
}

fn default_beta2() -> f64 {
    0.999
}

fn default_epsilon() -> f64 {
    1e-8
}

fn default_checkpoint_every() -> u32 {
    100
}
