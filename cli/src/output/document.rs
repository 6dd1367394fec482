//! The JSON forms of what the client returns. Names are the protocol's; durations are in seconds.

use super::timestamp;
use retort_common::checkpoint::CheckpointManifest;
use retort_common::client::{CheckpointView, JobView, LogLine, StageView, WorkerView};
use retort_common::ids::Digest;
use retort_common::spec::JobSpec;
use retort_common::spec::inputs::JobInputs;
use serde_json::{Value, json};

/// A job with its stages.
pub fn job_json(job: &JobView) -> Value {
    let JobView {
        id,
        name,
        state,
        stage,
        reason,
        spec_digest,
        submitted_unix_ms,
        elapsed,
        stages,
        report_url,
        fingerprint,
    } = job;
    json!({
        "id": id,
        "name": name,
        "state": state.name(),
        "stage": stage,
        "reason": reason,
        "spec_digest": spec_digest,
        "submitted_at": timestamp(*submitted_unix_ms),
        "elapsed_seconds": elapsed.as_secs_f64(),
        "stages": stages.iter().map(stage_json).collect::<Vec<_>>(),
        "report_url": report_url,
        "fingerprint": fingerprint,
    })
}

fn stage_json(stage: &StageView) -> Value {
    let StageView {
        name,
        tasks,
        done,
        cached,
        running,
        seconds,
        fraction,
        eta_seconds,
        detail,
        complete_plan,
    } = stage;
    json!({
        "name": name,
        "tasks": tasks,
        "done": done,
        "cached": cached,
        "running": running,
        "seconds": seconds,
        "fraction": fraction,
        "eta_seconds": eta_seconds,
        "detail": detail,
        "complete_plan": complete_plan,
    })
}

/// A worker.
pub fn worker_json(worker: &WorkerView) -> Value {
    let WorkerView {
        id,
        connected,
        device,
        kernels,
        memory_bytes,
        fingerprint,
        version,
        task,
        threads,
        tasks_done,
    } = worker;
    json!({
        "id": id,
        "connected": connected,
        "device": device,
        "kernels": kernels,
        "memory_bytes": memory_bytes,
        "fingerprint": fingerprint,
        "version": version,
        "task": task,
        "threads": threads,
        "tasks_done": tasks_done,
    })
}

/// A checkpoint.
pub fn checkpoint_json(checkpoint: &CheckpointView) -> Value {
    let CheckpointView { task, lineage, step, weights_sha256, loss, bytes, is_final, url } = checkpoint;
    json!({
        "task": task,
        "lineage": lineage,
        "step": step,
        "weights_sha256": weights_sha256,
        "loss": loss,
        "bytes": bytes,
        "final": is_final,
        "url": url,
    })
}

/// A checkpoint with what its manifest says beyond the list.
pub fn checkpoint_details(checkpoint: &CheckpointView, manifest: &CheckpointManifest) -> Value {
    let mut value = checkpoint_json(checkpoint);
    let CheckpointManifest { schema_version, sha256, curve, .. } = manifest;
    let last = curve.as_array().and_then(|points| points.last());
    let field = |name: &str| last.map_or(Value::Null, |point| point[name].clone());
    if let Value::Object(fields) = &mut value {
        fields.insert("sha256".to_owned(), json!(sha256.to_string()));
        fields.insert("manifest_version".to_owned(), json!(schema_version));
        for name in ["learning_rate", "gradient_norm", "terms"] {
            fields.insert(name.to_owned(), field(name));
        }
    }
    value
}

/// A log line.
pub fn log_json(log: &LogLine) -> Value {
    let LogLine { sequence, unix_ms, level, worker, stage, message } = log;
    json!({
        "sequence": sequence,
        "time": timestamp(*unix_ms),
        "level": level,
        "worker": worker,
        "stage": stage,
        "message": message,
    })
}

/// What a submit would send.
pub fn dry_run(spec: &JobSpec, inputs: &JobInputs, digest: Digest) -> Value {
    json!({ "spec_digest": digest, "spec": spec, "inputs": inputs })
}
