//! What a model's `config.json` says of its use as a cross-encoder. Pure: JSON in, what is wrong out.

use serde_json::Value;

/// How transformers' classes of models that end in a classifier are called.
const CLASSIFIER: &str = "ForSequenceClassification";

/// Why a model gives no score for a pair of texts, and what would; nothing where its configuration does not say so.
pub fn objection(config: &Value) -> Option<String> {
    let labels =
        config["id2label"].as_object().map(|labels| labels.len() as u64).or(config["num_labels"].as_u64());
    if let Some(labels) = labels.filter(|labels| *labels != 1) {
        return Some(format!("has {labels} labels; name a cross-encoder with one label, which is its score"));
    }
    let classes: Vec<&str> =
        config["architectures"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let classifies = classes.is_empty() || classes.iter().any(|class| class.ends_with(CLASSIFIER));
    (!classifies).then(|| {
        let class = classes.join(", ");
        format!("is a {class}, which reads one text; name a cross-encoder, a Bert{CLASSIFIER} or its like with one label")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn one_label_and_a_classifier_make_a_cross_encoder() {
        let one = json!({ "0": "LABEL_0" });
        for (config, expected) in [
            (json!({ "architectures": ["BertForSequenceClassification"], "id2label": one }), None),
            (json!({ "num_labels": 1 }), None),
            (json!({}), None),
            (json!({ "num_labels": 2 }), Some("2 labels")),
            (
                json!({ "id2label": { "0": "no", "1": "yes", "2": "maybe" }, "num_labels": 1 }),
                Some("3 labels"),
            ),
            (json!({ "architectures": ["BertModel"] }), Some("is a BertModel")),
            (json!({ "architectures": ["BertForMaskedLM"], "id2label": one }), Some("is a BertForMaskedLM")),
        ] {
            let found = objection(&config);
            assert_eq!(found.is_some(), expected.is_some(), "{config}: {found:?}");
            assert!(found.unwrap_or_default().contains(expected.unwrap_or_default()), "{config}");
        }
    }
}
