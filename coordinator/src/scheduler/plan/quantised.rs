//! A quantised student: a quantiser of the vectors of the teacher or a head, and the vectors its codes stand for. With
//! phases, the head's map and the quantiser's codebooks go on together from there.

use super::students::head;
use super::{Base, PlanError, Planner, Trained, derived_seed, first_alike};
use retort_common::spec::{CodeKind, StudentKind, StudentSpec};
use retort_common::task::{StudentStart, Task, VectorSet};
use std::collections::BTreeMap;

impl Planner<'_, '_> {
    pub(super) fn quantised(
        &mut self,
        base: &Base,
        student: &StudentSpec,
        dim: u32,
        earlier: &BTreeMap<&str, Trained>,
    ) -> Result<Option<Trained>, PlanError> {
        let spec = self.context.spec;
        let bytes = student
            .bytes
            .ok_or_else(|| PlanError::Missing { student: student.name.clone(), key: "bytes" })?;
        let on = match student.on.as_deref() {
            None | Some("teacher") => None,
            Some(name) => Some(head(student, name, earlier)?),
        };
        let vectors = on.map_or_else(|| base.teacher.clone(), |on| on.vectors.clone());
        let quantizer = self.add(Task::FitQuantizer {
            vectors: vectors.passages.clone(),
            code: student.code.unwrap_or_default(),
            bytes,
            unit: student.code == Some(CodeKind::Binary) && self.normalizes(),
            seed: derived_seed(spec.seed, first_alike(spec, student, 0), 0),
            fingerprint: base.fingerprint.clone(),
        });
        if !student.phase.is_empty() {
            // What an MLP gives is read as it is; a linear head goes on learning with the codes.
            let curved =
                on.and_then(|_| self.spec_of(student.on.as_deref())).filter(|on| on.hidden.is_some());
            let last = on.map(|on| on.last.clone());
            let (input, head, below) = match curved {
                Some(curved) => (curved.dim.unwrap_or(dim), None, last),
                None => (dim, last, None),
            };
            let start = StudentStart::Quantised { input, head, quantizer };
            let Some(trained) = self.trained(base, student, start, earlier)? else { return Ok(None) };
            let export = Some(self.export_student(student, &trained.last, below, None));
            return Ok(Some(Trained { export, bytes: Some(bytes), ..trained }));
        }
        let normalize = self.normalizes();
        let passages = self.quantize(&quantizer, &vectors.passages, normalize, &base.fingerprint);
        let vectors = VectorSet { queries: vectors.queries, passages, sentences: Vec::new() };
        let kind = StudentKind::Quantised;
        let maps = on.map_or_else(Vec::new, |on| on.maps.clone());
        let (phases, negatives, bytes) = (Vec::new(), Vec::new(), Some(bytes));
        // What asks them is the head as it is.
        let export = on.and_then(|on| on.export.clone());
        Ok(Some(Trained { phases, last: quantizer, kind, vectors, maps, export, bytes, negatives }))
    }
}
