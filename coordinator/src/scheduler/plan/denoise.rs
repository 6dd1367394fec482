//! What a cross-encoder says of mined candidates.

use super::{Base, MAX_SHARDS, Planner};
use retort_common::spec::DenoiseSpec;
use retort_common::spec::inputs::ModelFiles;
use retort_common::task::{ArtifactId, Task};

impl Planner<'_, '_> {
    /// Negatives among candidates, `each` of a question at most: their scores, shard after shard of the passages, and
    /// the choice by them. Only the choice depends on the bound.
    pub(super) fn denoise(
        &mut self,
        base: &Base,
        denoise: &DenoiseSpec,
        model: &ModelFiles,
        candidates: ArtifactId,
        each: u32,
    ) -> ArtifactId {
        let spec = self.context.spec;
        let (queries, passages) = (&base.queries, &base.passages);
        let pairs = queries.rows.saturating_mul(u64::from(each));
        let shares = shares(pairs, passages.shards, spec.corpus.rows_per_shard);
        let score = |shard, share| Task::Score {
            model: model.clone(),
            candidates: candidates.clone(),
            queries: queries.clone(),
            passages: passages.clone(),
            shard,
            share,
            shares,
            max_tokens: denoise.max_tokens,
            batch_tokens: spec.teacher.batch_tokens.max(denoise.max_tokens),
            fingerprint: base.fingerprint.clone(),
        };
        let places = (0..passages.shards).flat_map(|shard| (0..shares).map(move |share| (shard, share)));
        let scores = places.map(|(shard, share)| self.add(score(shard, share))).collect();
        self.add(Task::Denoise {
            candidates,
            scores,
            queries: queries.clone(),
            passages: passages.clone(),
            sets: spec.sets.train.clone(),
            teacher: base.teacher.clone(),
            per_query: spec.mining.per_query,
            below: denoise.below,
        })
    }
}

/// Shares that the pairs of a shard are scored in: where a small corpus meets many questions, so many that a task has
/// about as many pairs as a shard has rows.
fn shares(pairs: u64, shards: u32, rows_per_shard: u32) -> u32 {
    let (shards, rows) = (u64::from(shards.max(1)), u64::from(rows_per_shard.max(1)));
    pairs.div_ceil(shards * rows).clamp(1, (MAX_SHARDS / shards).max(1)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_has_about_as_many_pairs_as_a_shard_has_rows() {
        for (pairs, shards, rows, expected) in [
            (0, 3, 1024, 1),
            (3 * 1024, 3, 1024, 1),
            (3 * 1024 + 1, 3, 1024, 2),
            (2_500_000, 20, 1024, 123),
            (16_000_000, 540, 16_384, 2),
            (u64::MAX, 7, 1, 14_285),
            (u64::MAX, 100_000, 1, 1),
        ] {
            assert_eq!(shares(pairs, shards, rows), expected, "{pairs} pairs of {shards} shards");
        }
    }
}
