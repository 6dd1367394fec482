//! The loss's own parameters as one flat slice: distillation projections and learnt temperatures.

use crate::mining::counter;
use std::ops::Range;

/// What a parameter is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThetaRole {
    /// The logarithm of a temperature, [1, 1].
    Temperature,
    /// A map from this many leading components of student vectors to teacher vectors.
    Projection {
        /// Components of the student's vectors.
        dim: usize,
    },
}

/// One parameter of the loss: a row-major [rows, cols] block of the flat slice.
#[derive(Clone, Debug, PartialEq)]
pub struct ThetaEntry {
    /// Its path among a job's parameters.
    pub name: String,
    /// The term of the objective that owns it.
    pub term: usize,
    /// What it is for.
    pub role: ThetaRole,
    /// Where it starts in the slice.
    pub offset: usize,
    /// Rows, for a projection the teacher's dimension.
    pub rows: usize,
    /// Columns, for a projection the student's dimension.
    pub cols: usize,
    /// What it starts from where that is not random.
    pub initial: Option<f64>,
    /// Lowest and highest value.
    pub bounds: Option<(f64, f64)>,
}

impl ThetaEntry {
    /// The projection of a term from `cols` components to `rows`.
    pub fn projection(term: usize, rows: usize, cols: usize) -> Self {
        let name = format!("loss/term_{term:03}/projection_{cols:05}");
        let role = ThetaRole::Projection { dim: cols };
        Self { name, term, role, offset: 0, rows, cols, initial: None, bounds: None }
    }

    /// The learnt temperature of a term.
    pub fn temperature(term: usize, value: f64, (low, high): (f64, f64)) -> Self {
        Self {
            name: format!("loss/term_{term:03}/temperature"),
            term,
            role: ThetaRole::Temperature,
            offset: 0,
            rows: 1,
            cols: 1,
            initial: Some(value.ln()),
            bounds: Some((low.ln(), high.ln())),
        }
    }

    /// Where its values lie in the flat slice.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.rows * self.cols
    }

    /// A value brought within the bounds; NaN stays one.
    pub fn clamped(&self, value: f64) -> f64 {
        match self.bounds {
            Some((low, _)) if value < low => low,
            Some((_, high)) if value > high => high,
            _ => value,
        }
    }

    /// Whether weight decay applies: to projections, like to any linear layer's weight.
    pub fn decay(&self) -> bool {
        matches!(self.role, ThetaRole::Projection { .. })
    }
}

/// Where each parameter of the loss lies.
#[derive(Clone, Debug, Default, PartialEq)]
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

    /// The entry of a term with that role, if it has one.
    pub fn find(&self, term: usize, role: ThetaRole) -> Option<&ThetaEntry> {
        self.entries.iter().find(|entry| entry.term == term && entry.role == role)
    }

    /// Consecutive ranges and whether weight decay applies to them.
    pub fn decayed(&self) -> impl Iterator<Item = (Range<usize>, bool)> {
        self.entries.iter().map(|entry| (entry.range(), entry.decay()))
    }

    /// Brings every value within its bounds, after each step of the optimiser (as CLIP clamps its temperature).
    pub fn clamp(&self, theta: &mut [f32]) {
        for entry in self.entries.iter().filter(|entry| entry.bounds.is_some()) {
            theta[entry.range()]
                .iter_mut()
                .for_each(|value| *value = entry.clamped(f64::from(*value)) as f32);
        }
    }

    /// Starting values: a temperature's own, a projection's uniform in ±1/√cols, drawn by (seed, position), so
    /// the same on every worker.
    pub fn initial(&self, seed: u64) -> Vec<f32> {
        let value = |entry: &ThetaEntry, at: usize| match entry.initial {
            Some(value) => value as f32,
            None => {
                let bound = 1.0 / (entry.cols as f64).sqrt();
                ((2.0 * counter::unit(counter::hash(seed, &[at as u64])) - 1.0) * bound) as f32
            }
        };
        self.entries.iter().flat_map(|entry| entry.range().map(move |at| value(entry, at))).collect()
    }
}
