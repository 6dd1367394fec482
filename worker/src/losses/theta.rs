//! The loss's own parameters as one flat slice: distillation projections today, and whatever a loss
//! learns later (a temperature is an entry of [1, 1]).

use crate::mining::counter;

/// One parameter of the loss: a row-major [rows, cols] block of the flat slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThetaEntry {
    /// Its path among a job's parameters; paths sort in the order of entries.
    pub name: String,
    /// The term of the objective that owns it.
    pub term: usize,
    /// Where it starts in the slice.
    pub offset: usize,
    /// Rows, for a projection the teacher's dimension.
    pub rows: usize,
    /// Columns, for a projection the student's dimension.
    pub cols: usize,
}

impl ThetaEntry {
    /// Where its values lie in the flat slice.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.rows * self.cols
    }
}

/// Where each parameter of the loss lies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ThetaLayout {
    entries: Vec<ThetaEntry>,
}

impl ThetaLayout {
    /// Lays entries out one after another; their offsets are set here.
    pub fn new(entries: impl IntoIterator<Item = ThetaEntry>) -> Self {
        let mut offset = 0;
        let place = |mut entry: ThetaEntry| {
            entry.offset = offset;
            offset = entry.range().end;
            entry
        };
        Self { entries: entries.into_iter().map(place).collect() }
    }

    /// All entries, in order of offset.
    pub fn entries(&self) -> &[ThetaEntry] {
        &self.entries
    }

    /// Length of the flat slice.
    pub fn len(&self) -> usize {
        self.entries.last().map_or(0, |entry| entry.range().end)
    }

    /// Whether the loss has no parameters.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The entry of a term, if it has one.
    pub fn of_term(&self, term: usize) -> Option<&ThetaEntry> {
        self.entries.iter().find(|entry| entry.term == term)
    }

    /// Starting values: uniform in ±1/√cols, drawn by (seed, position), so the same on every worker.
    pub fn initial(&self, seed: u64) -> Vec<f32> {
        let value = |entry: &ThetaEntry, at: usize| {
            let bound = 1.0 / (entry.cols as f64).sqrt();
            ((2.0 * counter::unit(counter::hash(seed, &[at as u64])) - 1.0) * bound) as f32
        };
        self.entries.iter().flat_map(|entry| entry.range().map(move |at| value(entry, at))).collect()
    }
}
