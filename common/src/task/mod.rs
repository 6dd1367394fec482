//! Tasks: pure functions from artifacts and files to one artifact, named by the digest of what they depend on.
//!
//! - [`Task`]: every unit of work
//! - `parts`: what tasks are made of
//! - `name`: a task's name, stage, output and needs
//! - [`Stage`]: what a user sees of them

mod name;
mod parts;
mod stage;

pub use parts::*;
pub use stage::Stage;

use crate::ids::{Digest, JobId, TaskId};
use crate::spec::inputs::{DataFile, ModelFiles};
use crate::spec::{AnswerRule, CodeKind, LossSpec, MiningSpec, PhaseData, PhaseSpec, Pooling};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Raised when tasks start to mean something else, so that no old artifact is taken for a new one.
pub const TASK_VERSION: u32 = 6;
/// The output of a task. It lies under `artifacts/{kind}/{digest}`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArtifactId {
    /// What it is, e.g. "vectors".
    pub kind: String,
    /// The task that makes it.
    pub task: TaskId,
}

impl fmt::Display for ArtifactId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.task)
    }
}
/// A unit of work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "task", rename_all = "snake_case", deny_unknown_fields)]
pub enum Task {
    /// Passages to Parquet shards {row, id, title, text}. Meta: rows, shards, bad_records.
    ShardCorpus {
        /// The passages: files of them, or files of sets that bring their own.
        passages: Vec<DataFile>,
        /// Rows in a shard.
        rows_per_shard: u32,
        /// Malformed records to skip.
        max_bad_records: u64,
    },
    /// The sets' questions to Parquet shards {row, id, text, answers}, one table of judgements {set, query_row,
    /// passage_row, grade} and, where the files bring them, tables of negatives and of a teacher's scores
    /// {query_row, passage_row, score}. Meta: rows, shards, sets {name: questions}, answers, negatives, scores.
    ShardQueries {
        /// Questions beside those that the sets bring along.
        queries: Vec<DataFile>,
        /// Judgements, questions with answers, triples and such, by set.
        sets: BTreeMap<String, Vec<DataFile>>,
        /// How answers are looked for.
        answers: AnswerRule,
        /// The passages that judgements may name.
        passages: Table,
        /// Rows in a shard.
        rows_per_shard: u32,
        /// Malformed records to skip.
        max_bad_records: u64,
    },
    /// Sentences of passages to shards like those of questions {row, id, text, answers}, and the rows of the passages
    /// that they come from. Meta: rows, shards.
    ShardSentences {
        /// The corpus.
        passages: Table,
        /// How many; all where the corpus has fewer.
        count: u32,
        /// Rows in a shard.
        rows_per_shard: u32,
        /// Seed of the draw.
        seed: u64,
    },
    /// One shard of texts to vectors [rows, dim]. Meta: rows, dim, first_row.
    Embed {
        /// The model.
        encoder: Encoder,
        /// The texts.
        texts: Table,
        /// Which shard.
        shard: u32,
        /// Questions or passages.
        side: Side,
        /// How they become tokens.
        input: TextInput,
        /// Most tokens in a batch.
        batch_tokens: u32,
        /// Scale to unit length.
        normalize: bool,
        /// The kernels' fingerprint.
        fingerprint: String,
    },
    /// One shard of vectors through a head to vectors. Meta: rows, dim, first_row.
    Project {
        /// The head.
        student: ArtifactId,
        /// The vectors it reads.
        vectors: ArtifactId,
        /// Scale to unit length.
        normalize: bool,
        /// The kernels' fingerprint.
        fingerprint: String,
    },
    /// Principal components of vectors. Meta: dim, rows.
    FitPca {
        /// The vectors.
        vectors: Vec<ArtifactId>,
        /// The kernels' fingerprint.
        fingerprint: String,
    },
    /// A baseline's quantiser for vectors. Meta: dim, bytes, rows.
    FitBaseline {
        /// The passages' vectors.
        vectors: Vec<ArtifactId>,
        /// Applied first.
        reduce: Option<PcaReduction>,
        /// How passages are kept.
        method: QuantizerMethod,
        /// Seed of samples and first centroids.
        seed: u64,
        /// The kernels' fingerprint.
        fingerprint: String,
    },
    /// One shard of vectors to codes [rows, bytes]. Meta: rows, bytes, first_row.
    Encode {
        /// What makes the codes.
        quantizer: ArtifactId,
        /// The vectors.
        vectors: ArtifactId,
        /// The kernels' fingerprint.
        fingerprint: String,
    },
    /// A quantiser of passages' vectors. Meta: bytes, dim, rows.
    FitQuantizer {
        /// The vectors it is fitted to.
        vectors: Vec<ArtifactId>,
        /// How codes stand for vectors.
        code: CodeKind,
        /// Bytes of a code.
        bytes: u32,
        /// Whether signs stand for vectors of unit length.
        #[serde(default, skip_serializing_if = "is_false")]
        unit: bool,
        /// Seed of the clustering.
        seed: u64,
        /// The kernels' fingerprint.
        fingerprint: String,
    },
    /// One shard of vectors to codes and to the vectors that these stand for. Meta: rows, dim, first_row, bytes.
    Quantize {
        /// The quantiser, or a student that was trained through its codes.
        quantizer: ArtifactId,
        /// The vectors it reads.
        vectors: ArtifactId,
        /// Scale what codes stand for to unit length.
        normalize: bool,
        /// The kernels' fingerprint.
        fingerprint: String,
    },
    /// BM25's corpus statistics. Meta: documents, terms, postings.
    FitBm25 {
        /// The corpus.
        passages: Table,
    },
    /// Top-k of a retriever over some shards: a table of ranked lists by row numbers.
    Search {
        /// What ranks.
        retriever: Retriever,
        /// The questions.
        queries: Table,
        /// Only questions of these sets.
        sets: Vec<String>,
        /// Length of the lists.
        depth: u32,
        /// The kernels' fingerprint; empty for BM25.
        fingerprint: String,
    },
    /// Ranked lists over disjoint shards to one list.
    Merge {
        /// The runs.
        runs: Vec<ArtifactId>,
        /// Length of the lists.
        depth: u32,
    },
    /// Runs to hard negatives for every question. Meta: the audit.
    Mine {
        /// Runs to mix.
        runs: Vec<ArtifactId>,
        /// Whether negatives that the training files bring along are mixed in first.
        given: bool,
        /// The questions with their judgements.
        queries: Table,
        /// The corpus, for duplicates and answers.
        passages: Table,
        /// Questions of these sets.
        sets: Vec<String>,
        /// The teacher's vectors, for the scores of the filters.
        teacher: VectorSet,
        /// The filters.
        mining: MiningSpec,
        /// Seed of the sampling.
        seed: u64,
    },
    /// Pairs of question and passage to a cross-encoder's scores, for the passages of one shard: a table {query_row,
    /// passage_row, score} with the classifier's logits. Meta: pairs.
    Score {
        /// The cross-encoder.
        model: ModelFiles,
        /// The pairs.
        candidates: ScoredPairs,
        /// The questions.
        queries: Table,
        /// The corpus.
        passages: Table,
        /// Which shard of it.
        shard: u32,
        /// Which of equal shares of the shard's pairs, from 0.
        share: u32,
        /// How many shares there are.
        shares: u32,
        /// Longest pair in tokens.
        max_tokens: u32,
        /// Most tokens in a batch.
        batch_tokens: u32,
        /// The kernels' fingerprint.
        fingerprint: String,
    },
    /// Candidates to hard negatives: without those that a cross-encoder takes for answers. Meta: the audit.
    Denoise {
        /// The candidates, best first, with the audit of the filters before.
        candidates: ArtifactId,
        /// The scores of all of them.
        scores: Vec<ArtifactId>,
        /// The questions with their judgements.
        queries: Table,
        /// The corpus, for the audit's texts.
        passages: Table,
        /// Questions of these sets.
        sets: Vec<String>,
        /// The teacher's vectors, for the audit's gaps.
        teacher: VectorSet,
        /// Negatives kept for each question.
        per_query: u32,
        /// Largest probability of being an answer that a negative may have.
        below: f64,
    },
    /// Training rows in step order. Meta: steps, rows.
    Order {
        /// Texts or questions with candidates.
        data: PhaseData,
        /// The questions with their judgements.
        queries: Table,
        /// The corpus.
        passages: Table,
        /// Questions of these sets.
        sets: Vec<String>,
        /// Hard negatives (data = queries).
        negatives: Option<ArtifactId>,
        /// How many of them each row takes.
        negatives_per_row: u32,
        /// Passages drawn from the corpus for each row.
        corpus_samples: u32,
        /// Whether the scores that the sets bring are learnt from, so that pairs without one are counted.
        #[serde(default, skip_serializing_if = "is_false")]
        given_scores: bool,
        /// Rows of each batch whose question is a passage, or a sentence where there are some.
        #[serde(default, skip_serializing_if = "is_zero")]
        unlabelled: u32,
        /// Sentences that stand as questions.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sentences: Option<Table>,
        /// Rows in a global batch.
        batch: u32,
        /// Steps, or passes over the data.
        length: PhaseLength,
        /// The part of the phase whose rows these are; all of it without one.
        span: Option<Span>,
        /// Tokens are written where the student reads text.
        tokens: Option<OrderTokens>,
        /// Whether the student reads questions alone: what stands as candidate has no tokens, and texts are no passages.
        #[serde(default, skip_serializing_if = "is_false")]
        only_questions: bool,
        /// Seed of the permutation.
        seed: u64,
    },
    /// A student through one phase, or a part of it. Meta: steps, final loss, weights_sha256.
    Train {
        /// How it starts.
        start: StudentStart,
        /// The training rows.
        order: ArtifactId,
        /// The vectors a head or codes read, or those of the passages that an encoder of questions asks; none for an
        /// encoder of both.
        inputs: Option<VectorSet>,
        /// What is learnt from.
        signal: Signal,
        /// Batch, optimiser and schedule; its `loss` is the next field.
        phase: PhaseSpec,
        /// The loss.
        loss: Vec<LossSpec>,
        /// The part of the phase; all of it without one.
        span: Option<Span>,
        /// Whether another part goes on from here: the artifact then holds the optimiser's state.
        keeps_state: bool,
        /// Whether scores are cosines.
        normalize: bool,
        /// Seed of initial weights.
        seed: u64,
        /// The kernels' fingerprint.
        fingerprint: String,
    },
    /// A run's metrics on sets, per question and as means. Meta: the means.
    Evaluate {
        /// The run, with row numbers.
        run: ArtifactId,
        /// The questions with their judgements.
        queries: Table,
        /// The corpus, where answers are looked for.
        passages: Table,
        /// The sets.
        sets: Vec<String>,
        /// The metrics.
        metrics: Vec<String>,
    },
    /// A student as a sentence-transformers folder; of one that ends in codes, what asks them. Meta: files.
    ExportStudent {
        /// The last phase's artifact.
        student: ArtifactId,
        /// The MLP whose vectors it reads, where codes stand on one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        below: Option<ArtifactId>,
        /// The encoder a head stands on, or the tokenizer's origin.
        base: ModelFiles,
        /// The encoder of questions, where a head stands on two; `base` is that of passages then.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        query_base: Option<BaseEncoder>,
        /// What makes the passages' vectors, where the student encodes questions alone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        passage_tower: Option<PassageTower>,
        /// The base model's pooling.
        pooling: Pooling,
        /// How questions become tokens.
        query: TextInput,
        /// How passages become tokens.
        passage: TextInput,
        /// Scale to unit length.
        normalize: bool,
    },
    /// A run with the corpus' own ids. Meta: files.
    ExportRun {
        /// The run, with row numbers.
        run: ArtifactId,
        /// Its name, TREC's tag.
        name: String,
        /// The questions with their judgements.
        queries: Table,
        /// The corpus.
        passages: Table,
        /// One file for each of these sets.
        sets: Vec<String>,
    },
    /// The table, report.json and report.html under `jobs/{job}/report`. Meta: rows.
    Report {
        /// The job.
        job: JobId,
        /// Its name.
        name: String,
        /// Digest of spec and inputs.
        spec_digest: Digest,
        /// The rows.
        rows: Vec<ReportRow>,
        /// The students' training, for the loss curves: name and phases.
        training: Vec<(String, Vec<ArtifactId>)>,
        /// The mined negatives by what they were mined from, whose audits are shown.
        negatives: Vec<(String, ArtifactId)>,
        /// The stages as they went.
        stages: Vec<StageSummary>,
        /// What the rows come from.
        sources: ReportSources,
        /// Sets that things are chosen on.
        dev: Vec<String>,
        /// Sets that are reported.
        test: Vec<String>,
        /// The metrics, the deciding one first.
        metrics: Vec<String>,
    },
}

fn is_false(value: &bool) -> bool {
    !*value
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}
