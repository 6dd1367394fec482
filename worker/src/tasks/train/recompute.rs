//! A step once more, by one member alone: where does a value come from that is not finite?

use super::super::bench::TaskError;
use super::super::order::StepRows;
use super::cohort::{Broken, Membership, Standing};
use super::doubt::{self, Check, What};
use super::trainer::{Trainer, select, wire};
use crate::exchange::wire::all_finite;
use crate::matrix::Matrix;
use crate::training::tree::TreeSum;
use std::ops::Range;

/// The round of exchange in which a generation hears what came of a check, between that of its state and its steps.
const CHECK_ROUND: u32 = 1;

/// What was found not to be finite, and the microbatches that it comes from.
type Strange = (What, Range<u32>);

impl Trainer<'_> {
    /// Decides on a doubt, together with the other members: one of them takes the step alone. Either way the
    /// generation is over.
    pub(super) fn settle(
        &self,
        membership: &Membership<'_>,
        check: &Check,
        rows: &StepRows,
        standing: &Standing,
    ) -> Result<Broken, Broken> {
        let Check { doubt, by } = check;
        let checks = membership.rank() == *by;
        membership.begin("computing a step once more");
        let mine = if checks { self.strange(doubt.step, rows)? } else { None };
        let mine = serde_json::to_vec(&mine).map_err(TaskError::input)?;
        let said = membership.all_gather((0, CHECK_ROUND), mine, standing)?;
        let checker = membership.worker(*by);
        let Ok(found) = serde_json::from_slice::<Option<Strange>>(&said[*by]) else {
            let message =
                format!("step {}: what worker {checker} says of a check is not understood", doubt.step + 1);
            return Ok(Broken::Trouble { peers: vec![checker], suspect: true, message });
        };
        let all = self.phase.microbatches;
        match found
            .filter(|(_, microbatches)| microbatches.start < microbatches.end && microbatches.end <= all)
        {
            None => {
                let message =
                    format!("{}; worker {checker} gets finite ones from the same state", doubt.says());
                Ok(Broken::Trouble { peers: vec![doubt.worker.clone()], suspect: true, message })
            }
            Some((what, microbatches)) => {
                let rows = doubt::rows(rows, &microbatches, all);
                Ok(Broken::Task(TaskError::Input(format!(
                    "{}; worker {checker} gets {} of microbatches {microbatches:?} that are not finite, too: look at \
                     {rows}, or lower the learning rate",
                    doubt.says(),
                    what.name(),
                ))))
            }
        }
    }

    /// What there is to say of a value of this step that is not finite where no other member can say more.
    pub(super) fn not_finite(&self, step: u64, rows: &StepRows, what: &str) -> Result<TaskError, TaskError> {
        let number = step + 1;
        Ok(match self.strange(step, rows)? {
            Some((kind, microbatches)) => {
                let (kind, rows) = (kind.name(), doubt::rows(rows, &microbatches, self.phase.microbatches));
                TaskError::Input(format!(
                    "step {number}: {what}, and computed once more they are not either: {kind} of microbatches \
                     {microbatches:?}: look at {rows}, or lower the learning rate"
                ))
            }
            None => TaskError::Cohort(format!(
                "step {number}: {what}, but computed once more they are: look at this machine's memory"
            )),
        })
    }

    /// The first value of a step that is not finite, by computing all of it here.
    fn strange(&self, step: u64, rows: &StepRows) -> Result<Option<Strange>, TaskError> {
        let leaves = self.phase.microbatches;
        let parts: Vec<_> = (0..leaves).map(|leaf| self.parts(rows, leaf)).collect();
        let mut vectors = Matrix::zeros(rows.texts.len(), self.tower.config().dim());
        for (leaf, part) in
            (0..).zip(&parts).flat_map(|(leaf, parts)| parts.iter().map(move |part| (leaf, part)))
        {
            let (batch, dropout) = self.input(step, rows, part)?;
            let output = self.tower.encode_dropping(&batch, dropout.as_ref()).map_err(TaskError::input)?;
            if !all_finite(output.data()) {
                return Ok(Some((What::Vectors, leaf..leaf + 1)));
            }
            for (at, cell) in part.cells.iter().enumerate() {
                vectors.row_mut(*cell).copy_from_slice(output.row(at));
            }
        }
        self.put_candidates(rows, 0..rows.texts.len(), &mut vectors)?;
        let evaluated = self.loss(step, rows, vectors)?;
        if !evaluated.is_finite() {
            return Ok(Some((What::Loss, 0..leaves)));
        }
        let d_vectors = evaluated.d_vectors;
        let mut sum = TreeSum::of(&(0..leaves), leaves, wire(self.phase));
        for (leaf, parts) in (0..).zip(&parts) {
            let mut total: Option<Vec<f32>> = None;
            for part in parts {
                let gradient = self.forward(step, rows, part)?.backward(&select(&d_vectors, &part.cells));
                match &mut total {
                    Some(total) => total.iter_mut().zip(gradient).for_each(|(a, b)| *a += b),
                    None => total = Some(gradient),
                }
            }
            let total = total.expect("a microbatch has rows");
            if !all_finite(&total) {
                return Ok(Some((What::Gradient, leaf..leaf + 1)));
            }
            sum.push(total);
        }
        let sum = sum.finish().expect("a batch has microbatches");
        let norm: f64 = sum.iter().map(|value| f64::from(*value).powi(2)).sum();
        Ok((!norm.is_finite()).then_some((What::Sum, 0..leaves)))
    }
}
