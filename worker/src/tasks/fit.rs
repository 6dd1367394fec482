//! Baselines and statistics.

use super::bench::{Content, Produced, TaskError, VECTORS, Workbench};
use crate::fit::pca::{Pca, PcaAccumulator};
use crate::search::bm25::{CorpusStatistics, ShardIndex};
use crate::tables::PassageShard;
use crate::vectors::{Tensors, Values, read_vectors, write_tensors};
use retort_common::task::{ArtifactId, Table};
use serde_json::json;

const PCA: &str = "pca.safetensors";
const STATISTICS: &str = "statistics.json";

/// Principal components of all vectors, shard after shard.
pub fn pca(bench: &Workbench<'_>, shards: &[ArtifactId]) -> Result<Produced, TaskError> {
    let mut sums: Option<PcaAccumulator> = None;
    for (at, shard) in shards.iter().enumerate() {
        bench.go_on()?;
        let vectors = read_vectors(&bench.part(shard, VECTORS)?)?;
        sums.get_or_insert_with(|| PcaAccumulator::new(vectors.dim()))
            .add(&vectors)
            .map_err(TaskError::input)?;
        bench.progress.progress(at as u64 + 1, shards.len() as u64, "");
    }
    let sums = sums.ok_or_else(|| TaskError::Input("there are no vectors to fit".to_owned()))?;
    let pca = sums.finish().map_err(TaskError::input)?;
    let path = bench.scratch(PCA);
    write_tensors(
        &path,
        &[
            ("components", vec![pca.dim, pca.dim], Values::F64(&pca.components)),
            ("count", vec![1], Values::U64(&[pca.count])),
            ("eigenvalues", vec![pca.dim], Values::F64(&pca.eigenvalues)),
            ("mean", vec![pca.dim], Values::F64(&pca.mean)),
        ],
    )?;
    let meta = json!({ "dim": pca.dim, "rows": pca.count });
    Ok(Produced { parts: vec![(PCA.to_owned(), Content::File(path))], meta })
}

/// Loads fitted components.
pub fn load_pca(bench: &Workbench<'_>, artifact: &ArtifactId) -> Result<Pca, TaskError> {
    let tensors = Tensors::read(&bench.part(artifact, PCA)?)?;
    let (_, mean) = tensors.f64("mean")?;
    let (_, components) = tensors.f64("components")?;
    let (_, eigenvalues) = tensors.f64("eigenvalues")?;
    let (_, count) = tensors.u64("count")?;
    let dim = mean.len();
    if components.len() != dim * dim || count.len() != 1 {
        return Err(TaskError::Input(format!("{artifact}: the components do not fit {dim} dimensions")));
    }
    Ok(Pca { dim, count: count[0], mean, components, eigenvalues })
}

/// The text that BM25 indexes.
pub fn bm25_texts(shard: &PassageShard) -> Vec<String> {
    (0..shard.ids.len()).map(|i| shard.model_text(i)).collect()
}

/// BM25's statistics of the corpus, shard after shard.
pub fn bm25(bench: &Workbench<'_>, passages: &Table) -> Result<Produced, TaskError> {
    let (mut statistics, mut postings) = (CorpusStatistics::default(), 0u64);
    for shard in 0..passages.shards {
        bench.go_on()?;
        let shard_texts = bench.passages(passages, shard)?;
        let texts = bm25_texts(&shard_texts);
        let index =
            ShardIndex::build(shard_texts.first_row, &texts, bench.threads).map_err(TaskError::input)?;
        let own = index.statistics();
        postings += own.document_frequencies.values().sum::<u64>();
        statistics.merge(&own);
        bench.progress.progress(u64::from(shard) + 1, u64::from(passages.shards), "");
    }
    let bytes = serde_json::to_vec(&statistics).map_err(TaskError::input)?;
    let meta = json!({
        "documents": statistics.documents, "terms": statistics.document_frequencies.len(), "postings": postings,
    });
    Ok(Produced { parts: vec![(STATISTICS.to_owned(), Content::Bytes(bytes.into()))], meta })
}

/// Loads BM25's statistics.
pub fn load_statistics(bench: &Workbench<'_>, artifact: &ArtifactId) -> Result<CorpusStatistics, TaskError> {
    bench.json(artifact, STATISTICS)
}
