//! What tasks are made of: models, tables, vectors, retrievers, rows of the report.

use super::{ArtifactId, Stage};
use crate::spec::Pooling;
use crate::spec::inputs::{InputFile, ModelFiles};
use serde::{Deserialize, Serialize};

/// Which text of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Questions.
    Query,
    /// Passages.
    Passage,
}

/// How a text becomes tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextInput {
    /// Longest text in tokens, special tokens included.
    pub max_tokens: u32,
    /// Put before the text.
    pub prefix: String,
}

/// A model that turns tokens into vectors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "snake_case", deny_unknown_fields)]
pub enum Encoder {
    /// A Hugging Face folder.
    Files {
        /// Its files.
        files: ModelFiles,
        /// How token vectors become one.
        pooling: Pooling,
    },
    /// A trained student.
    Student {
        /// The last phase's artifact.
        student: ArtifactId,
    },
}

/// An encoder that a student's head stands on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseEncoder {
    /// Its files.
    pub files: ModelFiles,
    /// How token vectors become one.
    pub pooling: Pooling,
}

/// An encoder of passages with the head that stands on it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PassageTower {
    /// The encoder.
    pub base: BaseEncoder,
    /// The head; none where the encoder's vectors are searched as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<ArtifactId>,
}

/// How a student starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "snake_case", deny_unknown_fields)]
pub enum StudentStart {
    /// A linear map or MLP on vectors of `input` dimensions.
    Head {
        /// Dimensions of the vectors it reads.
        input: u32,
        /// Dimensions of the vectors it gives.
        dim: u32,
        /// Width of the hidden layer of an MLP.
        hidden: Option<u32>,
        /// How its weights start.
        init: ProjectionStart,
    },
    /// Layers of a Hugging Face model with a projection.
    Encoder {
        /// The model.
        files: ModelFiles,
        /// Its layers to keep; all without it.
        layers: Option<Vec<u32>>,
        /// How token vectors become one.
        pooling: Pooling,
        /// Dimensions of the projection; none without it.
        dim: Option<u32>,
        /// How the projection starts.
        init: ProjectionStart,
    },
    /// A map for each side and codebooks for passages, to be trained together: as a quantiser codes a linear head's
    /// vectors.
    Quantised {
        /// Dimensions of the vectors it reads.
        input: u32,
        /// The head; none where the quantiser stands on the vectors themselves.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        head: Option<ArtifactId>,
        /// What was fitted to the head's vectors.
        quantizer: ArtifactId,
    },
    /// A shape with the weights of a checkpoint.
    Warm {
        /// The shape, as it would start without the checkpoint.
        shape: Box<StudentStart>,
        /// Its file.
        checkpoint: InputFile,
    },
    /// Where another phase ended.
    Student {
        /// That phase's artifact.
        student: ArtifactId,
    },
    /// Where the part of the same phase before this one ended: with the optimiser's moments, the loss's own
    /// parameters and the loss curve, as if nothing had come between.
    Continue {
        /// That part's artifact.
        student: ArtifactId,
    },
}

/// How a projection starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ProjectionStart {
    /// The leading principal components.
    Pca {
        /// The fitted components.
        pca: ArtifactId,
    },
    /// Small random values.
    Random,
    /// The weights of a trained head.
    Head {
        /// Its last phase's artifact.
        student: ArtifactId,
    },
}

/// The vectors of all texts on both sides, shard after shard.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VectorSet {
    /// Questions, in row order.
    pub queries: Vec<ArtifactId>,
    /// Passages, in row order.
    pub passages: Vec<ArtifactId>,
    /// Sentences that stand as questions, in row order; none where they are not needed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sentences: Vec<ArtifactId>,
}

/// What a training learns from. In JSON each kind has its own keys and no tag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Signal {
    /// Vectors of every text: any pair has a score.
    Vectors(VectorSet),
    /// Scores of single pairs.
    Scores(PairTables),
}

/// Tables {query_row, passage_row, score} of pairs that were scored. Where a pair stands twice, the first one counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairTables {
    /// The artifacts that have them: a cross-encoder's, or the questions' with the scores that their sets bring.
    pub scores: Vec<ArtifactId>,
}

/// Pairs of question and passage that a cross-encoder scores. In JSON each kind is of its own type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ScoredPairs {
    /// The candidates of a mining.
    Mined(ArtifactId),
    /// The questions of these sets with the passages that answer them.
    Positives(Vec<String>),
}

/// A table cut into shards: one artifact with one part a shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// The artifact.
    pub artifact: ArtifactId,
    /// Its number of shards.
    pub shards: u32,
    /// Its number of rows.
    pub rows: u64,
}

/// What ranks passages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Retriever {
    /// Inner products of vectors.
    Dense {
        /// Questions' vectors, in row order.
        queries: Vec<ArtifactId>,
        /// These shards' vectors, in row order.
        passages: Vec<ArtifactId>,
        /// Applied to both sides first.
        reduce: Option<PcaReduction>,
    },
    /// Inner products of mapped questions with what codes stand for.
    Codes {
        /// Questions' vectors, in row order.
        queries: Vec<ArtifactId>,
        /// What made the codes.
        quantizer: ArtifactId,
        /// These shards' codes, in row order.
        codes: Vec<ArtifactId>,
        /// Hamming distances of the questions' own bits instead (binary codes).
        hamming: bool,
        /// Ranks the lists again by more precise vectors.
        rerank: Option<Rerank>,
    },
    /// Lucene's BM25 over these shards.
    Bm25 {
        /// The corpus.
        passages: Table,
        /// First shard to search.
        first_shard: u32,
        /// Number of shards to search.
        shards: u32,
        /// Its statistics.
        statistics: ArtifactId,
        /// Saturation of term frequencies.
        k1: f64,
        /// Normalisation by length.
        b: f64,
    },
}

/// Reduction of vectors by PCA.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PcaReduction {
    /// The fitted components.
    pub pca: ArtifactId,
    /// Leading components to keep.
    pub dim: u32,
    /// Divide each component by its standard deviation.
    pub whiten: bool,
    /// Scale to unit length afterwards.
    pub renormalize: bool,
}

/// A second look at the best of a ranked list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rerank {
    /// The passages' vectors, in row order, all of them.
    pub passages: Vec<ArtifactId>,
    /// Length of the lists before.
    pub depth: u32,
}

/// How a fitted quantiser keeps passages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case", deny_unknown_fields)]
pub enum QuantizerMethod {
    /// A product quantiser of this many bytes, after a learnt rotation or not.
    Product {
        /// Bytes of a code.
        bytes: u32,
        /// Whether a rotation is learnt.
        rotation: bool,
    },
    /// A residual quantiser of this many bytes.
    Residual {
        /// Bytes of a code.
        bytes: u32,
    },
    /// A byte for each dimension.
    Int8,
    /// A bit for each dimension.
    Binary,
}

/// How long a phase is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PhaseLength {
    /// This many steps.
    Steps(u32),
    /// This many passes over the data, rounded up to whole steps.
    Epochs(f64),
}

/// A part of a phase, in steps from 0. Order, schedules and loss curve are those of the whole phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Span {
    /// Its first step.
    pub first: u32,
    /// The step after its last.
    pub end: u32,
    /// Steps of the whole phase.
    pub total: u32,
}

/// How texts of training rows become tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrderTokens {
    /// The files of the student's tokenizer.
    pub tokenizer: ModelFiles,
    /// Questions.
    pub query: TextInput,
    /// Passages.
    pub passage: TextInput,
}

/// A row of the report before it is filled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportRow {
    /// Its name.
    pub name: String,
    /// teacher, head, encoder, pca or bm25.
    pub kind: String,
    /// Dimensions of its vectors; absent for BM25.
    pub dim: Option<u32>,
    /// Bytes a passage takes in the index.
    pub bytes_per_passage: f64,
    /// Its variants; the one that is best on dev is reported.
    pub variants: Vec<RowVariant>,
    /// The exported student.
    pub export: Option<ArtifactId>,
}

/// One way to make a row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowVariant {
    /// E.g. "centred", one word; empty where there is one.
    pub name: String,
    /// Its metrics.
    pub evaluation: ArtifactId,
    /// Its exported run.
    pub run: ArtifactId,
    /// Its ranked lists by row number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranking: Option<ArtifactId>,
    /// The vectors that were searched; none for BM25.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dense: Option<DenseSource>,
}

/// Vectors and what is applied to them before they are searched.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenseSource {
    /// Of questions and passages.
    pub vectors: VectorSet,
    /// Applied to both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reduce: Option<PcaReduction>,
    /// What is searched instead of the passages' vectors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub codes: Option<CodesSource>,
}

/// Codes of passages with what makes and reads them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CodesSource {
    /// Its map is applied to questions too.
    pub quantizer: ArtifactId,
    /// Shard after shard.
    pub codes: Vec<ArtifactId>,
    /// Whether they are ranked by Hamming distance.
    pub hamming: bool,
}

/// What a report's rows come from: exports find their way by it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportSources {
    /// The corpus.
    pub passages: Table,
    /// The questions with their judgements.
    pub queries: Table,
    /// Sets whose questions trained.
    pub train: Vec<String>,
    /// The kernels' fingerprint of the vectors.
    pub fingerprint: String,
}

/// How a stage went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageSummary {
    /// The stage.
    pub name: Stage,
    /// Its tasks.
    pub tasks: u32,
    /// Those whose artifact was there already.
    pub cached: u32,
    /// Worker seconds spent in this job.
    pub seconds: f64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Digest, TaskId};
    use serde_json::json;

    /// Tasks are named by their JSON: what kinds of signals and pairs there are must not show in that of the first.
    #[test]
    fn vectors_and_candidates_stand_in_json_as_they_are() {
        let artifact = ArtifactId { kind: "negatives".to_owned(), task: TaskId(Digest::of(b"a")) };
        let set = VectorSet { queries: vec![artifact.clone()], ..VectorSet::default() };
        let tables = PairTables { scores: vec![artifact.clone()] };
        let signals = [
            (Signal::Vectors(set.clone()), json!(set)),
            (Signal::Scores(tables), json!({ "scores": [artifact] })),
        ];
        for (signal, expected) in signals {
            assert_eq!(json!(signal), expected);
            assert_eq!(serde_json::from_value::<Signal>(expected).unwrap(), signal);
        }
        let pairs = [
            (ScoredPairs::Mined(artifact.clone()), json!(artifact)),
            (ScoredPairs::Positives(vec!["train".to_owned()]), json!(["train"])),
        ];
        for (pairs, expected) in pairs {
            assert_eq!(json!(pairs), expected);
            assert_eq!(serde_json::from_value::<ScoredPairs>(expected).unwrap(), pairs);
        }
    }
}
