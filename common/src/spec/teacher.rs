//! The teacher: its keys, and what holds where they are silent.

use super::inputs::{JobInputs, ModelDefaults};
use super::{JobSpec, StudentSpec};
use crate::task::{Side, TextInput};
use serde::{Deserialize, Serialize};

/// Longest question where neither spec nor model says otherwise.
const QUERY_TOKENS: u32 = 64;
/// Longest passage where neither spec nor model says otherwise.
const PASSAGE_TOKENS: u32 = 128;

/// A pre-trained model to learn from, or one for questions and one for passages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherSpec {
    /// A folder relative to the spec, a URL or `hf:org/name@revision`: a Hugging Face or sentence-transformers model.
    pub model: Option<String>,
    /// Another model for the questions, as in DPR; then `passage_model` stands instead of `model`.
    pub query_model: Option<String>,
    /// The model for the passages beside `query_model`.
    pub passage_model: Option<String>,
    /// How token vectors become one vector.
    pub pooling: Option<Pooling>,
    /// Scale vectors to unit length, so that the dot product is the cosine.
    pub normalize: Option<bool>,
    /// Longest question in tokens, special tokens included.
    pub query_max_tokens: Option<u32>,
    /// Longest passage in tokens, special tokens included.
    pub passage_max_tokens: Option<u32>,
    /// Put before every question.
    pub query_prefix: Option<String>,
    /// Put before every passage ("title text").
    pub passage_prefix: Option<String>,
    /// Most tokens in an embedding batch, padding included. Part of the result's identity.
    #[serde(default = "default_batch_tokens")]
    pub batch_tokens: u32,
}

/// How token vectors become one vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// Mean over the tokens that are not padding.
    #[default]
    Mean,
    /// The first token's vector.
    Cls,
    /// The largest value of each dimension over the tokens that are not padding.
    Max,
    /// Sum over the tokens that are not padding, divided by the square root of their number.
    MeanSqrtLen,
    /// Mean with weights 1, 2, 3, … by position.
    WeightedMean,
    /// The last token's vector.
    LastToken,
}

impl TeacherSpec {
    /// The model that reads passages, and questions where those have none of their own.
    pub fn passage_reference(&self) -> &str {
        self.passage_model.as_deref().or(self.model.as_deref()).unwrap_or_default()
    }

    /// The model that reads questions, where it is another.
    pub fn query_reference(&self) -> Option<&str> {
        self.query_model.as_deref()
    }
}

/// What the spec says, and where it is silent what the models' own folders say.
impl JobSpec {
    fn teacher_defaults<'a>(&self, inputs: &'a JobInputs, side: Side) -> &'a ModelDefaults {
        match (&inputs.teacher_query, side) {
            (Some(query), Side::Query) => &query.defaults,
            _ => &inputs.teacher.defaults,
        }
    }

    /// The teacher's pooling of one side.
    pub fn teacher_pooling(&self, inputs: &JobInputs, side: Side) -> Pooling {
        self.teacher.pooling.or(self.teacher_defaults(inputs, side).pooling).unwrap_or_default()
    }

    /// Whether all vectors of the job are scaled to unit length.
    pub fn normalizes(&self, inputs: &JobInputs) -> bool {
        self.teacher.normalize.or(inputs.teacher.defaults.normalize).unwrap_or(true)
    }

    /// How the teacher's texts become tokens.
    pub fn teacher_input(&self, inputs: &JobInputs, side: Side) -> TextInput {
        let defaults = self.teacher_defaults(inputs, side);
        let (tokens, fallback, prefix, own) = match side {
            Side::Query => {
                let spec = &self.teacher;
                (spec.query_max_tokens, QUERY_TOKENS, &spec.query_prefix, &defaults.query_prefix)
            }
            Side::Passage => {
                let spec = &self.teacher;
                (spec.passage_max_tokens, PASSAGE_TOKENS, &spec.passage_prefix, &defaults.passage_prefix)
            }
        };
        TextInput {
            max_tokens: tokens.or(defaults.max_tokens).unwrap_or(fallback),
            prefix: prefix.as_ref().or(own.as_ref()).cloned().unwrap_or_default(),
        }
    }

    /// How an encoder student's texts become tokens: by its own keys, else as the teacher's, but no longer than a
    /// model of its own allows and with that model's prompts.
    pub fn student_input(&self, inputs: &JobInputs, student: &StudentSpec, side: Side) -> TextInput {
        let teacher = self.teacher_input(inputs, side);
        let own = inputs.students.get(&student.name).map(|model| &model.defaults);
        let (tokens, given, default) = match side {
            Side::Query => (
                student.query_max_tokens,
                &self.teacher.query_prefix,
                own.and_then(|own| own.query_prefix.clone()),
            ),
            Side::Passage => (
                student.passage_max_tokens,
                &self.teacher.passage_prefix,
                own.and_then(|own| own.passage_prefix.clone()),
            ),
        };
        let most = own.and_then(|own| own.max_tokens).unwrap_or(u32::MAX);
        let prefix = match (given, own) {
            (None, Some(_)) => default.unwrap_or_default(),
            _ => teacher.prefix,
        };
        TextInput { max_tokens: tokens.unwrap_or_else(|| teacher.max_tokens.min(most)), prefix }
    }

    /// An encoder student's pooling.
    pub fn student_pooling(&self, inputs: &JobInputs, student: &StudentSpec) -> Pooling {
        let own = inputs.students.get(&student.name).and_then(|model| model.defaults.pooling);
        student.pooling.or(own).unwrap_or_else(|| self.teacher_pooling(inputs, Side::Passage))
    }
}

fn default_batch_tokens() -> u32 {
    4096
}
