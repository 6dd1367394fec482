//! A row-major `f32` matrix: how vectors travel between tasks, losses and models.

/// A dense row-major matrix of shape [rows, dim].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Matrix {
    rows: usize,
    dim: usize,
    data: Vec<f32>,
}

impl Matrix {
    /// Wraps `data`, which must hold `rows * dim` values.
    ///
    /// # Panics
    /// When the length does not fit the shape: callers check sizes of outside data first.
    pub fn new(rows: usize, dim: usize, data: Vec<f32>) -> Self {
        assert_eq!(data.len(), rows * dim, "a [{rows}, {dim}] matrix needs {} values", rows * dim);
        Self { rows, dim, data }
    }

    /// A matrix of zeros.
    pub fn zeros(rows: usize, dim: usize) -> Self {
        Self { rows, dim, data: vec![0.0; rows * dim] }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// All values, row after row.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// All values, row after row, mutable.
    pub fn data_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }

    /// The values themselves.
    pub fn into_data(self) -> Vec<f32> {
        self.data
    }

    /// Row `i`, of length `dim`.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.data[i * self.dim..(i + 1) * self.dim]
    }

    /// Row `i`, mutable.
    pub fn row_mut(&mut self, i: usize) -> &mut [f32] {
        &mut self.data[i * self.dim..(i + 1) * self.dim]
    }

    /// Scales every row to unit length; a zero row stays zero.
    pub fn normalize_rows(&mut self) {
        for row in self.data.chunks_exact_mut(self.dim.max(1)) {
            let norm = row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
            if norm > 0.0 {
                let scale = (1.0 / norm) as f32;
                row.iter_mut().for_each(|x| *x *= scale);
            }
        }
    }
}
