//! Training rows in step order, so that training reads from start to end and holds no corpus in memory.
//!
//! - [`order`]: the task; [`OrderReader`]: its artifact, step by step
//! - `source`: what rows are drawn from; `scored`: which of them have given scores; `tokens`: their texts as ids;
//!   `rows`: how they lie in files

mod rows;
mod scored;
mod source;
mod tokens;

pub use rows::{OrderReader, StepRows, TextRow};

use super::bench::{Content, Produced, TaskError, Workbench};
use super::mine::known_positives;
use crate::mining::Permutation;
use retort_common::spec::PhaseData;
use retort_common::task::{PhaseLength, Task};
use rows::{part_name, write_part};
use serde_json::json;
use source::{Mix, Place, Source};
use tokens::TokenStore;

/// Rows in a part, at least one step: parts are read whole.
const ROWS_PER_PART: u64 = 16_384;

/// Writes the rows of a phase.
pub fn order(bench: &Workbench<'_>, task: &Task) -> Result<Produced, TaskError> {
    let Task::Order {
        data,
        queries,
        passages,
        sets,
        batch,
        length,
        span,
        tokens,
        seed,
        unlabelled,
        sentences,
        only_questions,
        ..
    } = task
    else {
        unreachable!("called with its own task")
    };
    let positives = known_positives(bench, queries, sets)?;
    let (source, counts) = match data {
        PhaseData::Texts => {
            let passages = if *only_questions { 0 } else { passages.rows };
            (Source::texts(passages, sentences.as_ref(), &positives), json!({}))
        }
        PhaseData::Queries => Source::questions(bench, task, positives)?,
    };
    let rows = source.len();
    if rows == 0 {
        return Err(TaskError::Input("there is nothing to train on: the training sets are empty".to_owned()));
    }
    let total = match length {
        PhaseLength::Steps(steps) => u64::from(*steps),
        PhaseLength::Epochs(epochs) => {
            let labelled = f64::from(batch.saturating_sub(*unlabelled).max(1));
            (epochs * rows as f64 / labelled).ceil().max(1.0) as u64
        }
    };
    // A part of a phase has the rows that the whole phase has at its steps.
    let (start, end) =
        span.map_or((0, total), |span| (u64::from(span.first), u64::from(span.end).min(total)));
    let steps = end.saturating_sub(start);
    let batch = u64::from(*batch);
    let width = source.width();
    let mix = Mix { batch, unlabelled: u64::from(*unlabelled) };
    let order = |position: u64| {
        let position = match mix.place(position) {
            Place::Labelled(position) => position,
            Place::Unlabelled(place) => return source.unlabelled(place, position),
        };
        let (epoch, at) = (position / rows, position % rows);
        let row = Permutation::new(rows, *seed, epoch).row(at).expect("the position lies within the epoch");
        source.row(row, epoch, position)
    };
    let store = match tokens {
        Some(tokens) => {
            // A part may begin within a pass, hence one more.
            let variety = rows.saturating_mul(source.variety().saturating_add(1));
            let positions = (steps * batch).min(variety);
            let read = if *only_questions { 1 } else { usize::MAX };
            let needed = (start * batch..start * batch + positions)
                .flat_map(|position| order(position).0.into_iter().take(read));
            Some(TokenStore::build(bench, tokens, (queries, passages, sentences.as_ref()), needed.collect())?)
        }
        None => None,
    };
    let steps_per_part = (ROWS_PER_PART / (batch * width)).max(1);
    let mut parts = Vec::new();
    for first in (0..steps).step_by(steps_per_part as usize) {
        bench.go_on()?;
        let last = (first + steps_per_part).min(steps);
        let rows = ((start + first) * batch..(start + last) * batch).map(&order);
        let path = bench.scratch(&part_name(parts.len() as u64));
        write_part(&path, rows, width, store.as_ref(), *only_questions)?;
        parts.push((part_name(parts.len() as u64), Content::File(path)));
        bench.progress.progress(last, steps, "");
    }
    let meta = json!({
        "steps": steps, "rows": rows, "batch": batch, "width": width,
        "steps_per_part": steps_per_part, "counts": counts,
    });
    Ok(Produced { parts, meta })
}
