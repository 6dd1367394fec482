//! A trained student as an artifact: its shape, its weights, its tokenizer, its loss curve.

use super::bench::{TaskError, Workbench};
use crate::model::{ParamLayout, TowerConfig, read_parameters};
use crate::report::StepPoint;
use retort_common::task::ArtifactId;
use serde::{Deserialize, Serialize};

/// The part that holds the shape.
pub const SHAPE: &str = "student.json";
/// The part that holds the weights.
pub const WEIGHTS: &str = "weights.safetensors";
/// The part that holds the tokenizer of a student that reads text.
pub const TOKENIZER: &str = "tokenizer.json";
/// The part that holds the optimiser's moments and the loss's own parameters, where a next part of the phase needs them.
pub const STATE: &str = "state.safetensors";
pub use retort_common::metrics::CURVE;

/// What a student is, beside its weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StudentShape {
    /// Its tower.
    pub tower: TowerConfig,
}

/// A student with its weights in the flat order of its layout.
pub struct Student {
    /// What it is.
    pub shape: StudentShape,
    /// Its layout.
    pub layout: ParamLayout,
    /// Its weights.
    pub params: Vec<f32>,
}

impl Student {
    /// Loads a student's artifact.
    pub fn load(bench: &Workbench<'_>, artifact: &ArtifactId) -> Result<Self, TaskError> {
        let shape: StudentShape = bench.json(artifact, SHAPE)?;
        shape.tower.validate().map_err(TaskError::input)?;
        let layout = shape.tower.layout();
        let params = read_parameters(&bench.part(artifact, WEIGHTS)?, &layout).map_err(TaskError::input)?;
        Ok(Self { shape, layout, params })
    }
}

/// The loss curve of a phase.
pub fn curve(bench: &Workbench<'_>, artifact: &ArtifactId) -> Result<Vec<StepPoint>, TaskError> {
    bench.json(artifact, CURVE)
}
