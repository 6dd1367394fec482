//! The table `baselines`: rows of the report that learn without a label.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Unsupervised rows of the report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BaselinesSpec {
    /// Whose vectors they are fitted to: "teacher", or students by name.
    pub on: Vec<String>,
    /// Dimensions to reduce vectors to by PCA. Students' dimensions are always added for the teacher.
    pub pca: Vec<u32>,
    /// Bytes of product quantisers.
    pub pq: Vec<u32>,
    /// Bytes of product quantisers after a learnt rotation.
    pub opq: Vec<u32>,
    /// Bytes of residual quantisers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub residual: Vec<u32>,
    /// PCA, then a product quantiser: "128x16" for 128 dimensions in 16 bytes.
    pub pca_pq: Vec<ReducedCode>,
    /// PCA, then a rotation and a product quantiser.
    pub pca_opq: Vec<ReducedCode>,
    /// Whether a byte for each dimension gets a row.
    pub int8: bool,
    /// Whether a bit for each dimension gets a row.
    pub binary: bool,
    /// Rows known from the literature.
    pub presets: Vec<Preset>,
    /// Whether BM25 gets a row.
    pub bm25: bool,
    /// BM25's k1.
    pub bm25_k1: f64,
    /// BM25's b.
    pub bm25_b: f64,
}

impl Default for BaselinesSpec {
    fn default() -> Self {
        Self {
            on: vec!["teacher".to_owned()],
            pca: Vec::new(),
            pq: Vec::new(),
            opq: Vec::new(),
            residual: Vec::new(),
            pca_pq: Vec::new(),
            pca_opq: Vec::new(),
            int8: false,
            binary: false,
            presets: Vec::new(),
            bm25: true,
            bm25_k1: 0.9,
            bm25_b: 0.4,
        }
    }
}

/// Dimensions after PCA and bytes of the code, written "128x16".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ReducedCode {
    /// Dimensions after PCA.
    pub dim: u32,
    /// Bytes of the code.
    pub bytes: u32,
}

impl fmt::Display for ReducedCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.dim, self.bytes)
    }
}

impl From<ReducedCode> for String {
    fn from(code: ReducedCode) -> Self {
        code.to_string()
    }
}

impl TryFrom<String> for ReducedCode {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not DIMxBYTES, e.g. \"128x16\" for 128 dimensions in 16 bytes");
        let (dim, bytes) = text.split_once('x').ok_or_else(wrong)?;
        let number = |text: &str| text.parse().map_err(|_| wrong());
        Ok(Self { dim: number(dim)?, bytes: number(bytes)? })
    }
}

/// Baselines by the names that papers gave them (Ma et al., "Simple and effective unsupervised redundancy elimination
/// to compress dense vectors for passage retrieval", EMNLP 2021).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Preset {
    /// PCA to 256 dimensions.
    #[serde(rename = "DPR-PCA256")]
    DprPca256,
    /// PCA to 256 dimensions, then two bits for each: 64 sub-quantisers of eight bits.
    #[serde(rename = "DPR-PCA256-PQ2")]
    DprPca256Pq2,
}

impl Preset {
    /// Its row.
    pub fn name(self) -> &'static str {
        match self {
            Preset::DprPca256 => "DPR-PCA256",
            Preset::DprPca256Pq2 => "DPR-PCA256-PQ2",
        }
    }
}

/// What a row is made by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Principal components.
    Pca {
        /// Dimensions kept.
        dim: u32,
    },
    /// Product quantisation, after PCA and a rotation where those are asked for.
    Product {
        /// Dimensions after PCA; none without it.
        pca: Option<u32>,
        /// Whether a rotation is learnt.
        rotation: bool,
        /// Bytes of a code.
        bytes: u32,
    },
    /// Residual quantisation.
    Residual {
        /// Bytes of a code.
        bytes: u32,
    },
    /// A byte for each dimension.
    Int8,
    /// A bit for each dimension.
    Binary,
}

impl BaselinesSpec {
    /// The rows asked for beside BM25, by name without that of their source, in the order of the report.
    pub fn rows(&self) -> Vec<(String, Method)> {
        let mut rows: Vec<(String, Method)> =
            self.pca.iter().map(|dim| (format!("pca-{dim}"), Method::Pca { dim: *dim })).collect();
        for (kind, rotation, plain, reduced) in
            [("pq", false, &self.pq, &self.pca_pq), ("opq", true, &self.opq, &self.pca_opq)]
        {
            rows.extend(plain.iter().map(|bytes| {
                (format!("{kind}-{bytes}"), Method::Product { pca: None, rotation, bytes: *bytes })
            }));
            rows.extend(reduced.iter().map(|ReducedCode { dim, bytes }| {
                let method = Method::Product { pca: Some(*dim), rotation, bytes: *bytes };
                (format!("pca{dim}-{kind}{bytes}"), method)
            }));
        }
        let residual = |bytes: &u32| (format!("residual-{bytes}"), Method::Residual { bytes: *bytes });
        rows.extend(self.residual.iter().map(residual));
        rows.extend(self.int8.then(|| ("int8".to_owned(), Method::Int8)));
        rows.extend(self.binary.then(|| ("binary".to_owned(), Method::Binary)));
        rows.extend(self.presets.iter().map(|preset| {
            let method = match preset {
                Preset::DprPca256 => Method::Pca { dim: 256 },
                Preset::DprPca256Pq2 => Method::Product { pca: Some(256), rotation: false, bytes: 64 },
            };
            (preset.name().to_owned(), method)
        }));
        rows
    }
}

/// The name of a baseline's row on the vectors of `source`.
pub fn row_name(source: &str, name: &str) -> String {
    if source == "teacher" { name.to_owned() } else { format!("{source}-{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_the_names_and_methods_that_were_asked_for() {
        let spec: BaselinesSpec = toml::from_str(
            "pca = [64]\npq = [8]\nopq = [32]\npca_pq = [\"128x16\"]\npca_opq = [\"64x8\"]\nint8 = true\n\
             residual = [16]\nbinary = true\npresets = [\"DPR-PCA256-PQ2\"]",
        )
        .unwrap();
        let names: Vec<_> = spec.rows().into_iter().map(|(name, _)| name).collect();
        let expected = "pca-64 pq-8 pca128-pq16 opq-32 pca64-opq8 residual-16 int8 binary DPR-PCA256-PQ2";
        assert_eq!(names.join(" "), expected);
        let dpr = Method::Product { pca: Some(256), rotation: false, bytes: 64 };
        assert_eq!(spec.rows().last().unwrap().1, dpr);
        assert_eq!(toml::from_str::<BaselinesSpec>(&toml::to_string(&spec).unwrap()).unwrap(), spec);
        for wrong in ["pca_pq = [\"128\"]", "pca_pq = [\"ax8\"]", "presets = [\"DPR\"]", "pqq = [8]"] {
            assert!(toml::from_str::<BaselinesSpec>(wrong).is_err(), "{wrong}");
        }
        assert_eq!(
            (row_name("teacher", "pq-8"), row_name("head", "pq-8")),
            ("pq-8".into(), "head-pq-8".into())
        );
    }
}
