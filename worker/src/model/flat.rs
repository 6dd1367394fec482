//! The flat parameter vector: which parameter lies where.
//!
//! Parameters are kept in the layout that training wants: the weight of a linear layer is [input, output], as burn
//! multiplies with it. Hugging Face stores [output, input]; [`super::weights`] transposes when it reads and writes
//! files, and nothing else does.

use std::ops::Range;

/// One parameter of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamEntry {
    /// Hugging Face's name, such as `encoder.layer.0.attention.self.query.weight`.
    pub path: String,
    /// Shape in the flat vector.
    pub shape: Vec<usize>,
    /// Where it begins in the flat vector.
    pub offset: usize,
    /// Whether weight decay applies: not to biases and layer norms.
    pub decay: bool,
    /// Whether files hold it transposed: the weights of linear layers.
    pub transposed: bool,
}

impl ParamEntry {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where its values lie in the flat vector.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.len()
    }

    /// The shape in files.
    pub fn file_shape(&self) -> Vec<usize> {
        if self.transposed { self.shape.iter().rev().copied().collect() } else { self.shape.clone() }
    }
}

/// All parameters of a model, sorted by path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParamLayout {
    entries: Vec<ParamEntry>,
    len: usize,
}

impl ParamLayout {
    /// Lays out parameters of the given specifications, in any order.
    ///
    /// # Panics
    /// When two have the same path.
    pub(super) fn new(mut specs: Vec<ParamSpec>) -> Self {
        specs.sort_by(|a, b| a.path.cmp(&b.path));
        let mut layout = Self::default();
        for spec in specs {
            assert!(
                layout.entries.last().is_none_or(|last| last.path != spec.path),
                "parameter {} is there twice",
                spec.path
            );
            let transposed = spec.kind == ParamKind::Linear;
            let decay = matches!(spec.kind, ParamKind::Linear | ParamKind::Embedding);
            let entry =
                ParamEntry { path: spec.path, shape: spec.shape, offset: layout.len, decay, transposed };
            layout.len += entry.len();
            layout.entries.push(entry);
        }
        layout
    }

    /// The parameters, sorted by path.
    pub fn entries(&self) -> &[ParamEntry] {
        &self.entries
    }

    /// Length of the flat vector.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no parameters.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The parameter named `path`.
    pub fn get(&self, path: &str) -> Option<&ParamEntry> {
        let index = self.entries.binary_search_by(|entry| entry.path.as_str().cmp(path)).ok()?;
        Some(&self.entries[index])
    }
}

/// What a parameter is, which decides its initial value, its decay and its layout in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ParamKind {
    /// Weight of a linear layer, [input, output].
    Linear,
    /// Table of embeddings, [rows, hidden].
    Embedding,
    /// Bias of a linear layer or a layer norm; starts at zero.
    Bias,
    /// Scale of a layer norm; starts at one.
    Scale,
    /// Centroids of codes, [codebooks * 256, part]: decay would draw them away from the vectors they stand for.
    Codebook,
}

/// A parameter before it has a place.
#[derive(Clone, Debug)]
pub(super) struct ParamSpec {
    pub path: String,
    pub shape: Vec<usize>,
    pub kind: ParamKind,
}

impl ParamSpec {
    pub fn new(path: impl Into<String>, shape: &[usize], kind: ParamKind) -> Self {
        Self { path: path.into(), shape: shape.to_vec(), kind }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_is_sorted_and_without_gaps() {
        let layout = ParamLayout::new(vec![
            ParamSpec::new("b.weight", &[3, 2], ParamKind::Linear),
            ParamSpec::new("b.bias", &[2], ParamKind::Bias),
            ParamSpec::new("a.table", &[4, 2], ParamKind::Embedding),
        ]);
        let found: Vec<_> =
            layout.entries().iter().map(|e| (e.path.as_str(), e.range(), e.decay, e.file_shape())).collect();
        assert_eq!(
            found,
            [
                ("a.table", 0..8, true, vec![4, 2]),
                ("b.bias", 8..10, false, vec![2]),
                ("b.weight", 10..16, true, vec![2, 3])
            ]
        );
        assert_eq!(layout.len(), 16);
        assert_eq!(layout.get("b.bias").unwrap().offset, 8);
        assert!(layout.get("c").is_none());
    }
}
