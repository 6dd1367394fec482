//! Newtypes for every id, so that no two kinds of id can be confused.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::str::FromStr;

/// An id that is empty, too long or has a character that could leave its folder or line.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{kind} {text:?} is not valid: use 1 to 128 letters, digits, '-', '_' or '.', not starting with '.'")]
pub struct InvalidId {
    kind: &'static str,
    text: String,
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
                let valid = !text.is_empty()
                    && text.len() <= 128
                    && !text.starts_with('.')
                    && text.chars().all(plain);
                if valid {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(InvalidId { kind: $kind, text: text.chars().take(140).collect() })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_id!(
    /// One submitted job.
    JobId,
    "job id"
);
text_id!(
    /// One worker process.
    WorkerId,
    "worker id"
);
text_id!(
    /// A client's name for one submit, which makes repeating it harmless.
    RequestId,
    "request id"
);

/// SHA-256 of some bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

/// A digest that is not 64 hexadecimal digits.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a digest: 64 lower-case hexadecimal digits are expected")]
pub struct InvalidDigest(String);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The digest of a value's canonical JSON: keys sorted, no white space.
    pub fn of_json(value: &impl Serialize) -> Self {
        // A Value keeps its keys in a sorted map, which makes the text canonical.
        let value = serde_json::to_value(value).expect("plain data has a JSON form");
        Self::of(value.to_string().as_bytes())
    }

    /// Wraps a finished SHA-256.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first 12 hexadecimal digits, for people.
    pub fn short(&self) -> String {
        self.to_string()[..12].to_owned()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let invalid = || InvalidDigest(text.chars().take(80).collect());
        let hex = |c: u8| match c {
            b'0'..=b'9' => Some(c - b'0'),
            b'a'..=b'f' => Some(c - b'a' + 10),
            _ => None,
        };
        if text.len() != 64 {
            return Err(invalid());
        }
        let mut bytes = [0u8; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = hex(pair[0]).zip(hex(pair[1])).map(|(high, low)| high * 16 + low).ok_or_else(invalid)?;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Digest {
    type Error = InvalidDigest;

    fn try_from(text: String) -> Result<Self, InvalidDigest> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

/// A running SHA-256, for streams.
#[derive(Clone, Default)]
pub struct Hasher(Sha256);

impl Hasher {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all bytes added.
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

/// Names a task: the digest of everything its output depends on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TaskId(pub Digest);

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// Number of a try of a task, from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AttemptNumber(pub u32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_could_leave_their_folder_are_refused() {
        for text in ["", "..", ".hidden", "a/b", "a b", "ä", &"x".repeat(129)] {
            assert!(text.parse::<JobId>().is_err(), "{text:?}");
        }
        assert_eq!("quickstart-3f9a".parse::<JobId>().unwrap().as_str(), "quickstart-3f9a");
    }

    #[test]
    fn a_digest_survives_its_text() {
        let digest = Digest::of(b"retort");
        assert_eq!(digest.to_string().parse::<Digest>(), Ok(digest));
        assert!("zz".repeat(32).parse::<Digest>().is_err());
        assert!("AB".repeat(32).parse::<Digest>().is_err());
    }

    #[test]
    fn the_digest_of_json_ignores_the_order_of_keys() {
        let a = serde_json::json!({"b": 1, "a": [1.5, "x"]});
        let b: serde_json::Value = serde_json::from_str(r#"{ "a": [1.5, "x"], "b": 1 }"#).unwrap();
        assert_eq!(Digest::of_json(&a), Digest::of_json(&b));
    }
}
