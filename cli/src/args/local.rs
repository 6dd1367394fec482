//! Flags of the verbs that work on files and stores without a cluster.

use super::*;

#[derive(Debug, Args)]
pub struct EncodeArgs {
    /// The model: a folder as a job's report exports it, or another of sentence-transformers.
    #[arg(value_name = "MODEL_DIR")]
    pub model: PathBuf,
    /// Passages, JSON Lines with _id, title and text; .gz or plain.
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Where to write the index: a new or empty folder.
    #[arg(long, value_name = "INDEX_DIR")]
    pub index: PathBuf,
    /// How passages are kept: vectors, pq-BYTES, opq-BYTES, residual-BYTES, int8 or binary; quantisers are fitted to these passages.
    #[arg(long, value_name = "HOW", default_value = "vectors")]
    pub keep: String,
    /// Compute threads; as many as cores without it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
}

#[derive(Debug, Args)]
pub struct SearchArgs {
    /// An index that `retort encode` wrote.
    #[arg(value_name = "INDEX_DIR")]
    pub index: PathBuf,
    /// Questions.
    #[arg(value_name = "QUESTION")]
    pub queries: Vec<String>,
    /// Questions from a file, JSON Lines with _id and text; .gz or plain.
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// The model that embeds questions; the one that embedded the passages without it.
    #[arg(long, value_name = "MODEL_DIR")]
    pub model: Option<PathBuf>,
    /// Passages for each question; fewer where the index has fewer.
    #[arg(short, value_name = "K", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub k: u32,
    /// Compute threads; as many as cores without it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
    #[arg(long, short, value_name = "FORMAT", default_value = "text")]
    pub output: FoundFormat,
}

/// How passages that were found are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FoundFormat {
    /// For people.
    Text,
    /// One object for each question.
    Jsonl,
    /// TREC's run format.
    Trec,
}

#[derive(Debug, Args)]
pub struct CompareArgs {
    /// Ids of finished jobs or their unambiguous beginnings; the others are tested against the first.
    #[arg(value_name = "ID", required = true)]
    pub ids: Vec<String>,
    /// Metric to show; the first job's deciding one without it.
    #[arg(long)]
    pub metric: Option<String>,
    /// Read the jobs from this store instead of asking a coordinator, e.g. after `retort run`.
    #[arg(long, value_name = "URL")]
    pub store: Option<String>,
    #[arg(long, short, value_name = "FORMAT", default_value = "table")]
    pub output: Format,
    #[command(flatten)]
    pub connect: Connect,
}

#[derive(Debug, Args)]
pub struct EvalArgs {
    /// A TREC run, an MS MARCO run or DPR's results, plain or gzipped; its content tells which.
    pub run: PathBuf,
    /// Judgements: TREC's or MS MARCO's four columns, or BEIR's three with a header.
    #[arg(long, value_name = "FILE")]
    pub qrels: Option<PathBuf>,
    /// Another run on the same questions to test against.
    #[arg(long, value_name = "RUN")]
    pub against: Option<PathBuf>,
    /// Metrics, e.g. mrr@10,recall@100 or, for DPR's results, accuracy@20.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub metrics: Vec<String>,
    /// How answers are looked for in DPR's results.
    #[arg(long, value_name = "RULE", value_parser = ["text", "regex"])]
    pub answers: Option<String>,
    /// Write the values of every question to this file, with tabs.
    #[arg(long, value_name = "FILE")]
    pub per_query: Option<PathBuf>,
    #[arg(long, short, value_name = "FORMAT", default_value = "table")]
    pub output: Format,
}

#[derive(Debug, Args)]
pub struct DatasetArgs {
    #[command(subcommand)]
    pub verb: DatasetVerb,
}

#[derive(Debug, Subcommand)]
pub enum DatasetVerb {
    /// Tell what files are, count and measure their records, and find what is wrong; exit code 1 if something is.
    Check(DatasetCheckArgs),
}

#[derive(Debug, Args)]
pub struct DatasetCheckArgs {
    /// Files, folders, globs or URLs of one data set; passages=PATH, queries=PATH or set=PATH says what a file serves
    /// for where its name does not.
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<String>,
    /// Format of all these files, e.g. psgs; recognised by content without it.
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    #[arg(long, short, value_name = "FORMAT", default_value = "table")]
    pub output: Format,
}
