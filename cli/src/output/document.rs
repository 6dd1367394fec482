//! The JSON documents that are more than what the client returns.

use retort_common::checkpoint::CheckpointManifest;
use retort_common::ids::Digest;
use retort_common::spec::JobSpec;
use retort_common::spec::inputs::JobInputs;
use retort_common::view::CheckpointView;
use serde_json::{Value, json};

/// A checkpoint with what its manifest says beyond the list.
pub fn checkpoint_details(
    checkpoint: &CheckpointView,
    manifest: &CheckpointManifest,
) -> serde_json::Result<Value> {
    let mut value = serde_json::to_value(checkpoint)?;
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
    Ok(value)
}

/// What a submit would send.
pub fn dry_run(spec: &JobSpec, inputs: &JobInputs, digest: Digest) -> Value {
    json!({ "spec_digest": digest, "spec": spec, "inputs": inputs })
}
