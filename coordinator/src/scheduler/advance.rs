//! What follows from the state alone: jobs end, plans grow, manifests are looked for, tasks are dealt.

use super::cohort;
use super::decide::{end_jobs, withdraw_tasks};
use super::fact::{Fact, Outcome};
use super::input::{Command, Decision};
use super::place;
use super::plan::{self, Plan, PlanContext, PlanError};
use super::state::{JobRecord, State, TaskStatus};
use retort_common::ids::{AttemptNumber, JobId, TaskId};
use retort_common::spec::JobSpec;
use retort_common::task::{Stage, StageSummary, Task};
use std::collections::{BTreeMap, BTreeSet};

/// Under which number manifests are written. It rises once artifacts can be condemned.
pub const INCARNATION: u32 = 1;

pub(super) fn advance(state: &State, now_ms: u64) -> Decision {
    let mut decision = Decision::default();
    for job in state.live.values() {
        if let Some(record) = state.jobs.get(job) {
            advance_job(state, now_ms, job, record, &mut decision);
        }
    }
    // Tasks of a job that has just ended are no longer wanted, so they are looked at only in the next round.
    if decision.facts.is_empty() {
        probe(state, &mut decision);
        deal(state, now_ms, &mut decision);
    }
    // Cohorts get what no other task needs.
    if decision.facts.is_empty() {
        cohort::advance(state, now_ms, &mut decision);
    }
    decision
}

fn advance_job(state: &State, now_ms: u64, job: &JobId, record: &JobRecord, decision: &mut Decision) {
    if record.complete_plan && record.open.is_empty() {
        let only = BTreeSet::from([job.clone()]);
        end_jobs(state, now_ms, &only, Outcome::Succeeded, "every task is done", false, decision);
    } else if record.replan {
        plan_job(state, now_ms, job, record, decision);
    } else if record.wants_fingerprint
        && record.fingerprint.is_none()
        && let Some(fingerprint) = commonest_fingerprint(state)
    {
        decision.reason = format!("job {job} is bound to fingerprint {fingerprint}");
        decision.facts.push(Fact::Pinned { job: job.clone(), fingerprint });
        decision.commands.push(Command::JobChanged(job.clone()));
    }
}

fn plan_job(state: &State, now_ms: u64, job: &JobId, record: &JobRecord, decision: &mut Decision) {
    let plan = match plan_of(state, job, record, &record.spec) {
        Ok(plan) => plan,
        Err(error) => {
            let only = BTreeSet::from([job.clone()]);
            let reason = format!("the job cannot be planned: {error}");
            return end_jobs(state, now_ms, &only, Outcome::Failed, &reason, true, decision);
        }
    };
    let planned: Vec<(TaskId, Task)> = plan.tasks.into_iter().map(|task| (task.id(), task)).collect();
    let ids: BTreeSet<TaskId> = planned.iter().map(|(id, _)| *id).collect();
    say_decisions(job, record, plan.decisions, decision);
    // What ran ahead of a decision is discarded.
    let overrun: Vec<TaskId> = record.open.iter().filter(|id| !ids.contains(*id)).copied().collect();
    if !overrun.is_empty() {
        decision.reason = format!("job {job} does not want {} of its tasks any more", overrun.len());
        withdraw_tasks(state, job, &overrun, decision);
        decision.facts.push(Fact::Dropped { job: job.clone(), tasks: overrun });
        return;
    }
    let new = planned.into_iter().filter(|(id, _)| !record.tasks.contains(id));
    let tasks: Vec<Task> = new.map(|(_, task)| task).collect();
    if tasks.is_empty() {
        let wants_fingerprint = plan.wants_fingerprint;
        decision.facts.push(Fact::Surveyed { job: job.clone(), wants_fingerprint });
        return;
    }
    decision.reason = format!("job {job} has {} more tasks", tasks.len());
    decision.facts.push(Fact::Planned { job: job.clone(), tasks, complete: plan.complete });
    decision.commands.push(Command::JobChanged(job.clone()));
}

/// A job's plan as far as it can be known, by this spec.
fn plan_of(state: &State, job: &JobId, record: &JobRecord, spec: &JobSpec) -> Result<Plan, PlanError> {
    let stages = || stage_summaries(state, job, record);
    plan::plan(&PlanContext {
        job,
        spec,
        inputs: &record.inputs,
        digest: record.digest,
        fingerprint: record.fingerprint.as_deref(),
        meta: &|id| state.tasks.get(&id).filter(|_| record.tasks.contains(&id))?.meta(),
        stages: &stages,
    })
}

/// The best evaluated step so far of each phase that is evaluated, by the seed of its trainings.
pub(super) fn best_steps(state: &State, job: &JobId, record: &JobRecord) -> BTreeMap<u64, u32> {
    plan_of(state, job, record, &record.spec).map(|plan| plan.best).unwrap_or_default()
}

/// Those of a job's open tasks that say something else by this spec, under the names that they have.
pub(super) fn tasks_with(state: &State, job: &JobId, record: &JobRecord, spec: &JobSpec) -> Vec<Task> {
    let planned = plan_of(state, job, record, spec).map(|plan| plan.tasks).unwrap_or_default();
    let differs = |task: &Task| {
        let id = task.id();
        record.open.contains(&id) && state.tasks.get(&id).is_some_and(|known| known.task != *task)
    };
    planned.into_iter().filter(differs).collect()
}

/// Each decision goes into the job's log once.
fn say_decisions(job: &JobId, record: &JobRecord, decisions: Vec<String>, decision: &mut Decision) {
    let new: Vec<String> = decisions.into_iter().filter(|text| !record.decided.contains(text)).collect();
    if new.is_empty() {
        return;
    }
    for message in &new {
        let (job, level, message) = (job.clone(), "INFO".to_owned(), message.clone());
        let (worker, stage) = (None, Some(Stage::Train));
        decision.commands.push(Command::Log { job, worker, stage, level, message });
    }
    decision.facts.push(Fact::Decided { job: job.clone(), decisions: new });
}

/// The stages of a job so far, for its report.
pub(super) fn stage_summaries(state: &State, job: &JobId, record: &JobRecord) -> Vec<StageSummary> {
    let mut stages: BTreeMap<Stage, StageSummary> = BTreeMap::new();
    for task in record.tasks.iter().filter_map(|id| state.tasks.get(id)) {
        let empty = StageSummary { name: task.stage, tasks: 0, cached: 0, seconds: 0.0 };
        let summary = stages.entry(task.stage).or_insert(empty);
        summary.tasks += 1;
        summary.cached += u32::from(task.is_cached_for(job));
        if let TaskStatus::Done { elapsed_ms, made_for: Some(made_for), .. } = &task.status
            && made_for == job
        {
            summary.seconds += *elapsed_ms as f64 / 1000.0;
        }
    }
    stages.into_values().collect()
}

/// The fingerprint that most connected workers share, so that a job gets as many of them as it can.
fn commonest_fingerprint(state: &State) -> Option<String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for worker in state.workers.values().filter(|worker| worker.connected && !worker.fingerprint.is_empty()) {
        *counts.entry(&worker.fingerprint).or_default() += 1;
    }
    let most = counts.values().copied().max()?;
    counts.into_iter().find(|(_, count)| *count == most).map(|(fingerprint, _)| fingerprint.to_owned())
}

fn probe(state: &State, decision: &mut Decision) {
    let artifacts: Vec<_> = state
        .unprobed
        .iter()
        .filter_map(|id| state.tasks.get(id))
        .map(|record| record.task.output())
        .collect();
    if artifacts.is_empty() {
        return;
    }
    decision.facts.extend(artifacts.iter().map(|artifact| Fact::Probing { task: artifact.task }));
    decision.commands.push(Command::Probe(artifacts));
}

fn deal(state: &State, now_ms: u64, decision: &mut Decision) {
    for place::Placement { task, worker, job } in place::place(state, now_ms) {
        let Some(record) = state.tasks.get(&task) else { continue };
        let attempt = AttemptNumber(record.attempts + 1);
        decision.reason = format!("{} {task:?} goes to {worker}", record.stage);
        let members = cohort::first(state, record, &worker);
        decision.commands.push(cohort::run(record, task, attempt, &worker, &job, &members));
        decision.commands.extend(record.jobs.iter().cloned().map(Command::JobChanged));
        let at_ms = now_ms;
        decision.facts.push(Fact::Started { task, attempt, worker, job, cohort: members, at_ms });
    }
}
