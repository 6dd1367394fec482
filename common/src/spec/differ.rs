//! The keys in which two specs differ.

use super::JobSpec;
use serde_json::Value;
use std::fmt;

/// Keys of a phase that change no result: how often checkpoints are written, and how long they are kept.
pub const KEEPING_KEYS: [&str; 2] = ["checkpoint_every", "keep_last"];

/// A key with two values.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// The key, its parts joined by dots; elements of lists by number.
    pub key: String,
    /// As it was; nothing where it was not given.
    pub old: Option<Value>,
    /// As it is to be.
    pub new: Option<Value>,
}

impl Difference {
    /// Whether it may change what comes out.
    pub fn changes_results(&self) -> bool {
        let last = self.key.rsplit('.').next().unwrap_or_default();
        !(self.key.starts_with("student.") && KEEPING_KEYS.contains(&last))
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let say = |value: &Option<Value>| value.as_ref().map_or("not given".to_owned(), Value::to_string);
        write!(f, "{} ({}, was {})", self.key, say(&self.new), say(&self.old))
    }
}

/// Every key in which `new` differs from `old`, in the order of keys.
pub fn differences(old: &JobSpec, new: &JobSpec) -> Vec<Difference> {
    let json = |spec: &JobSpec| serde_json::to_value(spec).expect("a spec has a JSON form");
    let mut found = Vec::new();
    differ("", Some(&json(old)), Some(&json(new)), &mut found);
    found
}

fn differ(key: &str, old: Option<&Value>, new: Option<&Value>, found: &mut Vec<Difference>) {
    if old == new {
        return;
    }
    let inner = |part: &str| if key.is_empty() { part.to_owned() } else { format!("{key}.{part}") };
    match (old, new) {
        (Some(Value::Object(old)), Some(Value::Object(new))) => {
            let mut keys: Vec<_> = old.keys().chain(new.keys()).collect();
            keys.sort();
            keys.dedup();
            keys.into_iter().for_each(|part| differ(&inner(part), old.get(part), new.get(part), found));
        }
        // A list of one kind of things, such as names, is one value.
        (Some(Value::Array(old)), Some(Value::Array(new))) if old.iter().chain(new).all(Value::is_object) => {
            for at in 0..old.len().max(new.len()) {
                differ(&inner(&at.to_string()), old.get(at), new.get(at), found);
            }
        }
        _ => found.push(Difference { key: key.to_owned(), old: old.cloned(), new: new.cloned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: &str = r#"
name = "j"
[corpus]
path = "data"
[sets]
train = ["train"]
dev = ["dev"]
test = ["test"]
[teacher]
model = "teacher"
[[student]]
name = "h"
kind = "head"
dim = 4
[[student.phase]]
data = "queries"
steps = 10
batch = 4
learning_rate = 0.1
loss = [{ kind = "kl" }]
"#;

    #[test]
    fn every_differing_key_is_named_and_judged() {
        let parse = |sets: &[(&str, &str)]| {
            let sets: Vec<_> = sets.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
            super::super::parse(SPEC, "spec.toml", &sets).unwrap()
        };
        let check = |sets: &[(&str, &str)], expected: &[(&str, bool)]| {
            let found = differences(&parse(&[]), &parse(sets));
            let found: Vec<_> = found.iter().map(|one| (one.key.as_str(), one.changes_results())).collect();
            assert_eq!(found, expected, "{sets:?}");
        };
        check(&[], &[]);
        check(&[("student.h.phase.0.keep_last", "5")], &[("student.0.phase.0.keep_last", false)]);
        check(
            &[("student.h.phase.0.checkpoint_every", "7"), ("seed", "2")],
            &[("seed", true), ("student.0.phase.0.checkpoint_every", false)],
        );
        check(&[("sets.dev", "[]")], &[("sets.dev", true)]);
        check(
            &[("student.h.phase.0.loss", "[{ kind = 'kl', weight = 0.5 }]"), ("evaluate.depth", "200")],
            &[("evaluate.depth", true), ("student.0.phase.0.loss.0.weight", true)],
        );
        let text = differences(&parse(&[]), &parse(&[("student.h.phase.0.batch", "8")]))[0].to_string();
        assert_eq!(text, "student.0.phase.0.batch (8, was 4)");
    }
}
