//! The report and its rows.

use super::{Base, PlanError, Planner, Trained};
use retort_common::spec::{CodeKind, StudentKind, StudentSpec};
use retort_common::task::{
    ArtifactId, CodesSource, DenseSource, ReportRow, ReportSources, RowVariant, Task, VectorSet,
};
use std::collections::BTreeMap;

impl Planner<'_, '_> {
    pub(super) fn dense_row(
        &mut self,
        base: &Base,
        name: &str,
        kind: &str,
        vectors: &VectorSet,
        export: Option<ArtifactId>,
    ) -> ReportRow {
        let spec = self.context.spec;
        let run = self.search_dense(base, vectors, None, &spec.sets.judged(), spec.evaluate.depth);
        let dense = DenseSource { vectors: vectors.clone(), reduce: None, codes: None };
        self.vectors_row(base, (name, kind), run, dense, export)
    }

    pub(super) fn student_row(&mut self, base: &Base, student: &StudentSpec, planned: &Trained) -> ReportRow {
        let kind = match planned.kind {
            StudentKind::Head => "head",
            StudentKind::Encoder => "encoder",
            StudentKind::Quantised => "quantised",
        };
        let (name, export, vectors) = (student.name.as_str(), planned.export.clone(), &planned.vectors);
        let mut row = if student.code == Some(CodeKind::Binary) {
            // What signs stand for is of one length, so that they are scanned as they lie.
            let (quantizer, codes) = (planned.last.clone(), vectors.passages.clone());
            let run = self.search_codes(base, &vectors.queries, &quantizer, &codes, false);
            let codes = Some(CodesSource { quantizer, codes, hamming: false });
            let dense = DenseSource { vectors: vectors.clone(), reduce: None, codes };
            self.vectors_row(base, (name, kind), run, dense, export)
        } else {
            self.dense_row(base, name, kind, vectors, export)
        };
        row.bytes_per_passage = planned.bytes.map_or(row.bytes_per_passage, f64::from);
        row
    }

    fn vectors_row(
        &mut self,
        base: &Base,
        (name, kind): (&str, &str),
        run: ArtifactId,
        dense: DenseSource,
        export: Option<ArtifactId>,
    ) -> ReportRow {
        let passages = &dense.vectors.passages;
        let dim = passages.iter().find_map(|artifact| self.number(artifact, "dim").ok().flatten());
        let dim = dim.and_then(|dim| u32::try_from(dim).ok());
        let bytes_per_passage = dim.map_or(0.0, |dim| 4.0 * f64::from(dim));
        let variants = vec![self.variant(base, name, "", run, Some(dense))];
        ReportRow { name: name.to_owned(), kind: kind.to_owned(), dim, bytes_per_passage, variants, export }
    }

    pub(super) fn bm25_row(&mut self, base: &Base) -> ReportRow {
        let spec = self.context.spec;
        let run = self.search_bm25(base, &spec.sets.judged(), spec.evaluate.depth);
        let variants = vec![self.variant(base, "bm25", "", run, None)];
        let figure = |key| base.bm25.as_ref().and_then(|fit| self.number(fit, key).ok().flatten());
        // A posting is a document number and a frequency, four bytes each.
        let bytes = |(postings, documents): (u64, u64)| 8.0 * postings as f64 / documents.max(1) as f64;
        let bytes_per_passage = figure("postings").zip(figure("documents")).map_or(0.0, bytes);
        let (name, kind) = ("bm25".to_owned(), "bm25".to_owned());
        ReportRow { name, kind, dim: None, bytes_per_passage, variants, export: None }
    }

    pub(super) fn variant(
        &mut self,
        base: &Base,
        row: &str,
        name: &str,
        run: ArtifactId,
        dense: Option<DenseSource>,
    ) -> RowVariant {
        let spec = self.context.spec;
        let (queries, passages, sets) = (base.queries.clone(), base.passages.clone(), spec.sets.judged());
        let evaluation = self.add(Task::Evaluate {
            run: run.clone(),
            queries: queries.clone(),
            passages: passages.clone(),
            sets: sets.clone(),
            metrics: spec.evaluate.metrics.clone(),
        });
        let ranking = Some(run.clone());
        let tag = if name.is_empty() { row.to_owned() } else { format!("{row}-{name}") };
        let run = self.add(Task::ExportRun { run, name: tag, queries, passages, sets });
        RowVariant { name: name.to_owned(), evaluation, run, ranking, dense }
    }

    /// The report needs figures of every other task, so that it is planned when all of them are done.
    pub(super) fn report(
        &mut self,
        base: &Base,
        rows: Vec<ReportRow>,
        trained: &BTreeMap<&str, Trained>,
    ) -> Result<(), PlanError> {
        let spec = self.context.spec;
        let decided = spec.student.iter().all(|student| trained.contains_key(student.name.as_str()));
        if !decided || self.known.iter().any(|id| (self.context.meta)(*id).is_none()) {
            return Ok(());
        }
        // Here a missing figure is an error and no longer a matter of time.
        if let Some(artifact) = base.bm25.as_ref().filter(|_| spec.baselines.bm25) {
            self.number(artifact, "postings")?;
            self.number(artifact, "documents")?;
        }
        for vectors in trained.values().filter_map(|student| student.vectors.passages.first()) {
            self.number(vectors, "dim")?;
        }
        let phases = |name: &String| trained.get(name.as_str()).map(|student| student.phases.clone());
        let training =
            spec.student.iter().filter_map(|student| Some((student.name.clone(), phases(&student.name)?)));
        let mut audits: Vec<(String, ArtifactId)> = Vec::new();
        let of_students = spec.student.iter().filter_map(|student| trained.get(student.name.as_str()));
        for (name, artifact) in of_students.flat_map(|student| &student.negatives) {
            if audits.iter().all(|(_, other)| other != artifact) {
                audits.push((name.clone(), artifact.clone()));
            }
        }
        self.add(Task::Report {
            job: self.context.job.clone(),
            name: spec.name.clone(),
            spec_digest: self.context.digest,
            rows,
            training: training.collect(),
            negatives: audits,
            stages: (self.context.stages)(),
            sources: ReportSources {
                passages: base.passages.clone(),
                queries: base.queries.clone(),
                train: spec.sets.train.clone(),
                fingerprint: base.fingerprint.clone(),
            },
            dev: spec.sets.dev.clone(),
            test: spec.sets.test.clone(),
            metrics: spec.evaluate.metrics.clone(),
        });
        self.plan.complete = true;
        Ok(())
    }
}
