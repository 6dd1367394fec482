//! What trainings say of their steps, by (task, lineage, step). A step that comes again must be the same.

use super::state::State;
use retort_common::checkpoint::lineage;
use retort_common::ids::{JobId, TaskId, WorkerId};
use retort_common::metrics::{StepPoint, StepReport, StepTiming};
use retort_common::task::{ArtifactId, Task};
use std::collections::BTreeMap;

/// Steps of a lineage that are kept; the oldest go first. The artifact has the whole curve in the end.
const MAX_STEPS: usize = 200_000;
/// Lineages of a training that are kept.
const MAX_LINEAGES: usize = 64;
/// How old a step must be before it is shown, so that every member has told its part. Members tell at least as often.
const SETTLE_MS: u64 = 600;

/// A step as its workers told it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepRecord {
    /// Its figures, and who told them.
    pub point: Option<(StepPoint, WorkerId)>,
    /// Where each worker's time went.
    pub timings: BTreeMap<WorkerId, StepTiming>,
    /// Uptime when it was first told.
    pub at_ms: u64,
}

/// The steps of one lineage by number.
pub type Steps = BTreeMap<u64, StepRecord>;
/// The lineages of one training by name.
pub type Lineages = BTreeMap<String, Steps>;

/// The first report that contradicts what was told before, in words.
pub(super) fn divergence(
    state: &State,
    task: TaskId,
    lineage: &str,
    worker: &WorkerId,
    steps: &[StepReport],
) -> Option<String> {
    let known = state.metrics.get(&task)?.get(lineage)?;
    steps.iter().find_map(|report| {
        let new = report.point.as_ref()?;
        let (old, by) = known.get(&report.step)?.point.as_ref()?;
        let what = difference(old, new)?;
        Some(format!(
            "DIVERGED: step {} of lineage {lineage} has {what} on worker {worker} after what worker {by} told; \
             look at both machines' memory and at their builds",
            report.step
        ))
    })
}

/// How two tellings of one step differ.
fn difference(old: &StepPoint, new: &StepPoint) -> Option<String> {
    let figures = |point: &StepPoint| {
        let own = [
            ("loss".to_owned(), point.loss),
            ("gradient norm".to_owned(), point.gradient_norm),
            ("learning rate".to_owned(), point.learning_rate),
        ];
        own.into_iter().chain(point.terms.iter().cloned()).collect::<Vec<_>>()
    };
    if old == new {
        return None;
    }
    let differs = figures(old).into_iter().zip(figures(new)).find(|(old, new)| old != new);
    Some(
        differs.map_or("other terms".to_owned(), |((name, old), (_, new))| format!("{name} {new} for {old}")),
    )
}

/// Keeps what a worker told.
pub(super) fn keep(
    state: &mut State,
    task: TaskId,
    lineage: &str,
    worker: &WorkerId,
    steps: &[StepReport],
    at_ms: u64,
) {
    let lineages = state.metrics.entry(task).or_default();
    if !lineages.contains_key(lineage) && lineages.len() >= MAX_LINEAGES {
        return;
    }
    let known = lineages.entry(lineage.to_owned()).or_default();
    for StepReport { step, point, timing } in steps {
        let record = known.entry(*step).or_insert_with(|| StepRecord { at_ms, ..StepRecord::default() });
        if let (None, Some(point)) = (&record.point, point) {
            record.point = Some((point.clone(), worker.clone()));
        }
        if let Some(timing) = timing {
            record.timings.insert(worker.clone(), *timing);
        }
    }
    while known.len() > MAX_STEPS {
        known.pop_first();
    }
}

/// Forgets the figures that a worker told of trainings in work: it computes other bits than its peers.
pub(super) fn forget_worker(state: &mut State, worker: &WorkerId) {
    let State { metrics, tasks, .. } = state;
    let open = metrics.iter_mut().filter(|(id, _)| tasks.get(id).is_none_or(|record| !record.is_done()));
    for record in open.flat_map(|(_, lineages)| lineages.values_mut()).flat_map(BTreeMap::values_mut) {
        record.point.take_if(|(_, by)| by == worker);
    }
}

/// A training of a job, for people.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingView {
    /// Its artifact, once it is done.
    pub artifact: ArtifactId,
    /// Its last step, once it is done.
    pub last: Option<u64>,
    /// The student's name.
    pub student: String,
    /// Its phase, from 1.
    pub phase: u32,
    /// The step after which this part of the phase begins.
    pub first: u64,
    /// Questions in a batch.
    pub batch: u32,
}

/// A job's trainings by student, phase and step.
pub fn trainings(state: &State, job: &JobId) -> Vec<TrainingView> {
    let Some(record) = state.jobs.get(job) else { return Vec::new() };
    // A seed tells a training's phase. Students that are the same up to there share it.
    let mut places = BTreeMap::<u64, Vec<_>>::new();
    for (at, student) in record.spec.student.iter().enumerate() {
        for index in 0..student.phase.len() {
            let seed = super::plan::phase_seed(&record.spec, student, index);
            places.entry(seed).or_default().push((at, student.name.as_str(), index as u32 + 1));
        }
    }
    let mut found = Vec::new();
    for record in record.tasks.iter().filter_map(|id| state.tasks.get(id)) {
        let Task::Train { seed, span, phase: settings, .. } = &record.task else { continue };
        let (first, batch) = (span.map_or(0, |span| u64::from(span.first)), settings.batch);
        let last = record.meta().map(|meta| meta["steps"].as_u64().unwrap_or(u64::MAX));
        for &(at, student, phase) in places.get(seed).into_iter().flatten() {
            let (artifact, student) = (record.task.output(), student.to_owned());
            found.push(((at, phase, first), TrainingView { artifact, last, student, phase, first, batch }));
        }
    }
    found.sort_by_key(|(order, _)| *order);
    found.into_iter().map(|(_, training)| training).collect()
}

/// The steps after `after` that have been told, without a gap, `limit` at most. Those of a training in work are shown
/// a moment later, when every member has told its part.
pub fn steps(
    state: &State,
    now_ms: u64,
    training: &TrainingView,
    lineage: &str,
    after: u64,
    limit: usize,
) -> Steps {
    let task = training.artifact.task;
    let Some(known) = state.metrics.get(&task).and_then(|lineages| lineages.get(lineage)) else {
        return Steps::new();
    };
    let settled = |record: &StepRecord| training.last.is_some() || record.at_ms + SETTLE_MS <= now_ms;
    let range = known.range(after.saturating_add(1)..).zip(after.saturating_add(1)..);
    let shown =
        range.take_while(|((step, record), due)| **step == *due && record.point.is_some() && settled(record));
    shown.take(limit).map(|((step, record), _)| (*step, record.clone())).collect()
}

/// The lineages of a training that have told something, the newest last; the one that goes on where none has.
pub fn lineages(state: &State, task: TaskId) -> Vec<String> {
    let mut names: Vec<String> =
        state.metrics.get(&task).into_iter().flat_map(BTreeMap::keys).cloned().collect();
    if names.is_empty() {
        let number = state.tasks.get(&task).map_or(1, |record| record.lineage.number);
        names.push(lineage(task, number));
    }
    // Later ones have larger numbers behind the same name.
    names.sort_by_key(|name| (name.len(), name.clone()));
    names
}

/// Where workers' time in a training's steps went.
pub fn timings(state: &State, task: TaskId, lineage: &str) -> BTreeMap<u64, BTreeMap<WorkerId, StepTiming>> {
    let known = state.metrics.get(&task).and_then(|lineages| lineages.get(lineage));
    let of = |(step, record): (&u64, &StepRecord)| (*step, record.timings.clone());
    known.into_iter().flatten().map(of).collect()
}
