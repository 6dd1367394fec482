//! Where a finished job's results lie: written beside its report, read by whoever exports them.

use std::collections::BTreeMap;

use retort_common::task::{ArtifactId, CodesSource, PcaReduction, Table, VectorSet};
use serde::{Deserialize, Serialize};

/// The catalogue's name in the report's folder.
pub const CATALOG: &str = "catalog.json";

/// A finished job's results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalog {
    /// 1; raised when fields change their meaning.
    pub schema_version: u32,
    /// The job's id.
    pub job: String,
    /// Its name.
    pub name: String,
    /// Digest of spec and inputs.
    pub spec_digest: String,
    /// The kernels that its vectors come from.
    pub fingerprint: String,
    /// The corpus.
    pub passages: Table,
    /// The questions with their judgements.
    pub queries: Table,
    /// Sets whose questions trained.
    pub train: Vec<String>,
    /// Sets that rows are judged on.
    pub judged: Vec<String>,
    /// Mined negatives, where any were mined.
    pub negatives: Option<ArtifactId>,
    /// The report's rows.
    pub rows: Vec<CatalogRow>,
    /// The students' model cards, Markdown.
    pub cards: BTreeMap<String, String>,
}

/// A row with what it was made from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogRow {
    /// Its name.
    pub name: String,
    /// teacher, head, encoder, pca, bm25, ….
    pub kind: String,
    /// The variant that was best on dev; empty where there is one.
    pub variant: String,
    /// The student's folder for sentence-transformers.
    pub export: Option<ArtifactId>,
    /// Its TREC runs.
    pub run: ArtifactId,
    /// Its ranked lists by row number.
    pub ranking: Option<ArtifactId>,
    /// Its vectors; none for BM25.
    pub vectors: Option<VectorSet>,
    /// Applied to them before they are searched.
    pub reduce: Option<PcaReduction>,
    /// What is searched instead of the passages' vectors.
    #[serde(default)]
    pub codes: Option<CodesSource>,
}
