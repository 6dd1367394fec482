//! The names of tensors in the files of each architecture.
//!
//! Inside Retort every encoder has BERT's names; files have the names that transformers gives them.

use serde::{Deserialize, Serialize};

/// A family of encoders. They differ in names, positions and token types; MPNet also in relative positions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Architecture {
    /// Devlin et al., 2019.
    #[default]
    Bert,
    /// Liu et al., 2019: positions begin behind the padding id.
    Roberta,
    /// Conneau et al., 2020: RoBERTa with another vocabulary.
    XlmRoberta,
    /// Sanh et al., 2019: BERT without token types.
    Distilbert,
    /// Song et al., 2020: RoBERTa's positions, no token types, and a bias by relative position.
    Mpnet,
}

/// Names of a layer's parts in the layout and in DistilBERT's files.
const DISTILBERT: [(&str, &str); 8] = [
    ("attention.self.query", "attention.q_lin"),
    ("attention.self.key", "attention.k_lin"),
    ("attention.self.value", "attention.v_lin"),
    ("attention.output.dense", "attention.out_lin"),
    ("attention.output.LayerNorm", "sa_layer_norm"),
    ("intermediate.dense", "ffn.lin1"),
    ("output.dense", "ffn.lin2"),
    ("output.LayerNorm", "output_layer_norm"),
];
/// Names of a layer's parts in the layout and in MPNet's files, where they differ.
const MPNET: [(&str, &str); 5] = [
    ("attention.self.query", "attention.attn.q"),
    ("attention.self.key", "attention.attn.k"),
    ("attention.self.value", "attention.attn.v"),
    ("attention.output.dense", "attention.attn.o"),
    ("attention.output.LayerNorm", "attention.LayerNorm"),
];
/// What comes before the encoder's names in files of models with a task of their own.
const PREFIXES: [&str; 6] =
    ["bert.", "roberta.", "distilbert.", "mpnet.", "question_encoder.bert_model.", "ctx_encoder.bert_model."];
/// Tensors that retrieval does not use: poolers, language-model heads, and counters that hold no weights.
const UNUSED: [&str; 6] =
    ["pooler.", "cls.", "lm_head.", "vocab_transform.", "vocab_layer_norm.", "vocab_projector."];

impl Architecture {
    /// The name in the layout of a file's tensor, or nothing for one that retrieval does not use.
    pub(super) fn layout_name(self, name: &str) -> Option<String> {
        let name = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
        let counter = matches!(name, "embeddings.position_ids" | "embeddings.token_type_ids");
        if counter || UNUSED.iter().any(|prefix| name.starts_with(prefix)) {
            return None;
        }
        // TensorFlow's names of layer norms, as the first checkpoints have them.
        let name =
            name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias");
        let Some((layer, part, value)) = layer_part(&name, self.layers()) else { return Some(name) };
        let part = self.parts().iter().find(|(_, file)| *file == part).map_or(part, |(layout, _)| layout);
        Some(format!("encoder.layer.{layer}.{part}.{value}"))
    }

    /// The name in the file of a parameter of the layout.
    pub(super) fn file_name(self, path: &str) -> String {
        let Some((layer, part, value)) = layer_part(path, "encoder.layer.") else { return path.to_owned() };
        let part = self.parts().iter().find(|(layout, _)| *layout == part).map_or(part, |(_, file)| file);
        format!("{}{layer}.{part}.{value}", self.layers())
    }

    /// Whether the first token's position is the one behind the padding id, as in fairseq.
    pub(super) fn positions_follow_padding(self) -> bool {
        matches!(self, Self::Roberta | Self::XlmRoberta | Self::Mpnet)
    }

    fn layers(self) -> &'static str {
        if self == Self::Distilbert { "transformer.layer." } else { "encoder.layer." }
    }

    fn parts(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Distilbert => &DISTILBERT,
            Self::Mpnet => &MPNET,
            Self::Bert | Self::Roberta | Self::XlmRoberta => &[],
        }
    }
}

/// The number, the part and the last word of a layer's parameter.
fn layer_part<'a>(name: &'a str, layers: &str) -> Option<(&'a str, &'a str, &'a str)> {
    let (layer, rest) = name.strip_prefix(layers)?.split_once('.')?;
    let (part, value) = rest.rsplit_once('.')?;
    Some((layer, part, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        let check = |architecture: Architecture, path: &str, file: &str| {
            assert_eq!(architecture.file_name(path), file);
            assert_eq!(architecture.layout_name(file).as_deref(), Some(path));
        };
        let query = "encoder.layer.11.attention.self.query.weight";
        check(Architecture::Bert, query, query);
        check(Architecture::Roberta, query, query);
        check(Architecture::Distilbert, query, "transformer.layer.11.attention.q_lin.weight");
        check(Architecture::Mpnet, query, "encoder.layer.11.attention.attn.q.weight");
        let norm = "encoder.layer.0.attention.output.LayerNorm.bias";
        check(Architecture::Distilbert, norm, "transformer.layer.0.sa_layer_norm.bias");
        check(Architecture::Mpnet, norm, "encoder.layer.0.attention.LayerNorm.bias");
        let output = "encoder.layer.0.output.dense.bias";
        check(Architecture::Distilbert, output, "transformer.layer.0.ffn.lin2.bias");
        check(Architecture::Mpnet, output, output);
        check(Architecture::Mpnet, "embeddings.LayerNorm.bias", "embeddings.LayerNorm.bias");
        let relative = "encoder.relative_attention_bias.weight";
        check(Architecture::Mpnet, relative, relative);
    }

    #[test]
    fn prefixes_and_unused_tensors_are_left_out() {
        let name = |text: &str| Architecture::Bert.layout_name(text);
        assert_eq!(name("bert.embeddings.LayerNorm.gamma").unwrap(), "embeddings.LayerNorm.weight");
        assert_eq!(
            name("question_encoder.bert_model.embeddings.LayerNorm.bias").unwrap(),
            "embeddings.LayerNorm.bias"
        );
        for unused in [
            "bert.pooler.dense.weight",
            "cls.predictions.bias",
            "roberta.embeddings.position_ids",
            "lm_head.bias",
        ] {
            assert_eq!(name(unused), None, "{unused}");
        }
        assert_eq!(name("classifier.weight").unwrap(), "classifier.weight");
    }
}
