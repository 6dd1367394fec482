//! What a cross-encoder says of pairs: of mined candidates, to filter them, and of all that a phase learns from.
//!
//! Positives and candidates are scored by tasks of their own, so that nothing is scored twice: positives once for all
//! phases, and what the filter has had scored for the phases that learn from what it kept.

use super::{Base, MAX_SHARDS, PlanError, Planner};
use retort_common::spec::inputs::ModelFiles;
use retort_common::spec::{CrossEncoderSpec, DenoiseSpec};
use retort_common::task::{ArtifactId, PairTables, ScoredPairs, Signal, Task};

/// Mined negatives.
#[derive(Clone, Debug)]
pub(super) struct Mined {
    /// Those that are kept.
    pub(super) negatives: ArtifactId,
    /// What they were chosen from by a cross-encoder's word; without one, themselves.
    pub(super) candidates: ArtifactId,
    /// Most candidates of a question.
    pub(super) each: u32,
}

impl Planner<'_, '_> {
    /// The cross-encoder's keys and files, where the job has one.
    fn cross_encoder(&self) -> Option<(&CrossEncoderSpec, &ModelFiles)> {
        let files = self.context.inputs.cross_encoder.as_ref().map(|model| &model.files);
        self.context.spec.cross_encoder.as_ref().zip(files)
    }

    /// Negatives among candidates. Only the choice depends on the bound, not the scores.
    pub(super) fn denoise(
        &mut self,
        base: &Base,
        denoise: &DenoiseSpec,
        candidates: ArtifactId,
        each: u32,
    ) -> Result<Mined, PlanError> {
        let spec = self.context.spec;
        let scores = self.scores(base, &ScoredPairs::Mined(candidates.clone()), each)?;
        let negatives = self.add(Task::Denoise {
            candidates: candidates.clone(),
            scores,
            queries: base.queries.clone(),
            passages: base.passages.clone(),
            sets: spec.sets.train.clone(),
            teacher: base.teacher.clone(),
            per_query: spec.mining.per_query,
            below: denoise.below,
        });
        Ok(Mined { negatives, candidates, each })
    }

    /// A signal of the cross-encoder's scores of the training questions' positives and of mined negatives.
    pub(super) fn cross_encoder_signal(&mut self, base: &Base, mined: &Mined) -> Result<Signal, PlanError> {
        let positives = ScoredPairs::Positives(self.context.spec.sets.train.clone());
        let mut scores = self.scores(base, &positives, 1)?;
        scores.extend(self.scores(base, &ScoredPairs::Mined(mined.candidates.clone()), mined.each)?);
        Ok(Signal::Scores(PairTables { scores }))
    }

    /// The scores of pairs, about `each` of a question, shard after shard of the passages.
    fn scores(&mut self, base: &Base, pairs: &ScoredPairs, each: u32) -> Result<Vec<ArtifactId>, PlanError> {
        let spec = self.context.spec;
        let (cross, model) = self.cross_encoder().ok_or(PlanError::NoCrossEncoder)?;
        let (max_tokens, model) = (cross.max_tokens, model.clone());
        let (queries, passages) = (&base.queries, &base.passages);
        let count = queries.rows.saturating_mul(u64::from(each));
        let shares = shares(count, passages.shards, spec.corpus.rows_per_shard);
        let score = |shard, share| Task::Score {
            model: model.clone(),
            candidates: pairs.clone(),
            queries: queries.clone(),
            passages: passages.clone(),
            shard,
            share,
            shares,
            max_tokens,
            batch_tokens: spec.teacher.batch_tokens.max(max_tokens),
            fingerprint: base.fingerprint.clone(),
        };
        let places = (0..passages.shards).flat_map(|shard| (0..shares).map(move |share| (shard, share)));
        Ok(places.map(|(shard, share)| self.add(score(shard, share))).collect())
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
