//! The metrics of a job's trainings: from memory while they are in work, from their artifacts once they are done.

use super::status;
use crate::driver::Handle;
use crate::scheduler::INCARNATION;
use crate::scheduler::metrics::{self, StepRecord, TrainingView};
use retort_common::artifact;
use retort_common::ids::{Digest, JobId, WorkerId};
use retort_common::metrics::{CURVE, StepPoint, StepTiming};
use retort_common::proto;
use retort_common::store::Store;
use retort_common::task::ArtifactId;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::Status;

/// How often trainings in work are looked at.
const PAUSE: Duration = Duration::from_millis(200);
/// Steps taken from the driver at one time.
const STEPS_AT_ONCE: usize = 500;
/// Largest curve that is read.
const MAX_CURVE_BYTES: u64 = 256 << 20;

type Sender = mpsc::Sender<Result<proto::MetricsResponse, Status>>;

/// Why nothing more is sent.
enum End {
    /// The client has gone.
    Gone,
    /// It is to hear this.
    Failed(Status),
}

/// Sends every step of a job's trainings once, training after training; with `follow` until the job has ended.
pub async fn send(handle: Handle, store: Store, job: JobId, follow: bool, sender: Sender) {
    let mut sent = BTreeMap::new();
    loop {
        match round(&handle, &store, &job, &mut sent, &sender).await {
            Ok(ended) if ended || !follow => return,
            Ok(_) => {}
            Err(End::Gone) => return,
            Err(End::Failed(error)) => return drop(sender.send(Err(error)).await),
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = sender.closed() => return,
        }
    }
}

/// Sends what is new; whether the job has ended.
async fn round(
    handle: &Handle,
    store: &Store,
    job: &JobId,
    sent: &mut BTreeMap<(String, ArtifactId, String), u64>,
    sender: &Sender,
) -> Result<bool, End> {
    let stopped = |stopped| End::Failed(status(stopped));
    let id = job.clone();
    let survey = handle.ask(move |desk| {
        let ended = desk.state.jobs.get(&id).is_none_or(|job| job.end.is_some());
        let trainings = metrics::trainings(&desk.state, &id).into_iter();
        let named = trainings.map(|one| (metrics::lineages(&desk.state, one.artifact.task), one));
        (named.collect::<Vec<_>>(), ended)
    });
    let (trainings, ended) = survey.await.map_err(stopped)?;
    for (lineages, training) in trainings {
        // Students may share a training, and each is told of.
        let key = |lineage: &String| (training.student.clone(), training.artifact.clone(), lineage.clone());
        for lineage in &lineages {
            let after = sent.entry(key(lineage)).or_insert(training.first);
            loop {
                let (one, name, from) = (training.clone(), lineage.clone(), *after);
                let steps = handle.ask(move |desk| {
                    metrics::steps(&desk.state, desk.now_ms, &one, &name, from, STEPS_AT_ONCE)
                });
                let steps = steps.await.map_err(stopped)?;
                let Some((last, _)) = steps.last_key_value() else { break };
                *after = *last;
                for StepRecord { point, timings, .. } in steps.into_values() {
                    let Some((point, _)) = point else { continue };
                    say(sender, &training, lineage, point, timings).await?;
                }
            }
        }
        // What this process was not told, or tells no more, is in the artifact.
        let (Some(last), Some(lineage)) = (training.last, lineages.last()) else { continue };
        let after = sent.entry(key(lineage)).or_insert(training.first);
        if *after < last {
            let from = std::mem::replace(after, last);
            send_curve(handle, store, &training, lineage, from, sender).await?;
        }
    }
    Ok(ended)
}

/// Sends the rest of a finished training's curve.
async fn send_curve(
    handle: &Handle,
    store: &Store,
    training: &TrainingView,
    lineage: &str,
    from: u64,
    sender: &Sender,
) -> Result<(), End> {
    let curve = curve(store, &training.artifact).await.map_err(|cause| {
        End::Failed(Status::internal(format!("the curve of {} cannot be read: {cause}", training.artifact)))
    })?;
    let rest: Vec<_> = curve.into_iter().filter(|point| point.step > from).collect();
    let (task, name) = (training.artifact.task, lineage.to_owned());
    let timings = handle.ask(move |desk| metrics::timings(&desk.state, task, &name));
    let mut timings = timings.await.map_err(|stopped| End::Failed(status(stopped)))?;
    for point in rest {
        let timings = timings.remove(&point.step).unwrap_or_default();
        say(sender, training, lineage, point, timings).await?;
    }
    Ok(())
}

async fn curve(store: &Store, artifact: &ArtifactId) -> Result<Vec<StepPoint>, String> {
    let found = artifact::find(store, artifact, INCARNATION).await.map_err(|error| error.to_string())?;
    let manifest = found.ok_or("its manifest is gone")?;
    let part = manifest.parts.iter().find(|part| part.name == CURVE).ok_or("it has none")?;
    if part.bytes > MAX_CURVE_BYTES {
        return Err(format!("it is larger than {MAX_CURVE_BYTES} bytes"));
    }
    let bytes = store.get(&part.path).await.map_err(|error| error.to_string())?;
    if Digest::of(&bytes) != part.sha256 {
        return Err(format!("{} is not what its digest says", part.path));
    }
    serde_json::from_slice(&bytes).map_err(|error| error.to_string())
}

async fn say(
    sender: &Sender,
    training: &TrainingView,
    lineage: &str,
    point: StepPoint,
    timings: BTreeMap<WorkerId, StepTiming>,
) -> Result<(), End> {
    let TrainingView { artifact, student, phase, batch, first: _, last: _ } = training;
    // A step is over when the slowest worker is done with it.
    let slowest_us = timings.values().map(|timing| timing.step_us).max().filter(|us| *us > 0);
    let message = proto::MetricsResponse {
        task: artifact.task.to_string(),
        lineage: lineage.to_owned(),
        student: student.clone(),
        phase: *phase,
        step: point.step,
        samples_per_second: slowest_us.map(|us| f64::from(*batch) * 1e6 / us as f64),
        workers: timings.into_iter().map(encode_worker).collect(),
        point: Some(point.into()),
    };
    sender.send(Ok(message)).await.map_err(|_| End::Gone)
}

fn encode_worker((worker, timing): (WorkerId, StepTiming)) -> proto::WorkerTiming {
    proto::WorkerTiming { worker: worker.to_string(), timing: Some(timing.into()) }
}
