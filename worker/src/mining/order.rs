//! The order of training examples: a seeded permutation that is computed, not stored.
//!
//! A Feistel network is a bijection of the numbers below a power of four, whatever its round function;
//! numbers outside 0..n are encrypted again until they fall inside (cycle walking; Black and Rogaway
//! 2002). The domain is less than four times n, so a look-up takes under four tries on average. For
//! tiny n not every permutation can come out; for training order that does not matter.

use super::counter;

/// Rounds of the network; four already make a pseudo-random permutation (Luby and Rackoff 1988), and
/// small halves want more.
const ROUNDS: usize = 8;

/// Most rows that can be permuted.
pub const MAX_ROWS: u64 = 1 << 62;

/// A permutation of 0..n, the same for the same (n, seed, epoch), in constant memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permutation {
    rows: u64,
    half_bits: u32,
    keys: [u64; ROUNDS],
}

impl Permutation {
    /// The permutation of `rows` rows for an epoch.
    ///
    /// # Panics
    /// With more than [`MAX_ROWS`] rows, which no data set has.
    pub fn new(rows: u64, seed: u64, epoch: u64) -> Self {
        assert!(rows <= MAX_ROWS, "{rows} rows are more than a permutation can hold");
        let bits = u64::BITS - rows.saturating_sub(1).leading_zeros();
        let keys = std::array::from_fn(|round| counter::hash(seed, &[epoch, round as u64]));
        Self { rows, half_bits: bits.div_ceil(2).max(1), keys }
    }

    /// Number of rows.
    pub fn len(&self) -> u64 {
        self.rows
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// The row at `position`, or `None` beyond the last.
    pub fn row(&self, position: u64) -> Option<u64> {
        if position >= self.rows {
            return None;
        }
        // Every cycle of a bijection returns to where it began, inside 0..n, so the walk ends.
        let mut at = self.encrypt(position);
        while at >= self.rows {
            at = self.encrypt(at);
        }
        Some(at)
    }

    fn encrypt(&self, x: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (x >> self.half_bits, x & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (counter::hash(key, &[right]) & mask));
        }
        (left << self.half_bits) | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_row_comes_once(rows in 0u64..3000, seed: u64, epoch: u64) {
            let permutation = Permutation::new(rows, seed, epoch);
            let mut met: Vec<u64> = (0..rows).filter_map(|at| permutation.row(at)).collect();
            met.sort_unstable();
            prop_assert!(met.into_iter().eq(0..rows));
            prop_assert_eq!(permutation.row(rows), None);
        }

        #[test]
        fn large_data_stays_in_range(rows in 1u64..=MAX_ROWS, seed: u64, at: u64) {
            let row = Permutation::new(rows, seed, 0).row(at % rows);
            prop_assert!(row.is_some_and(|row| row < rows));
        }
    }

    #[test]
    fn seed_and_epoch_change_the_order() {
        let order = |seed, epoch| {
            let permutation = Permutation::new(1000, seed, epoch);
            (0..1000).filter_map(|at| permutation.row(at)).collect::<Vec<_>>()
        };
        assert_eq!(order(1, 0), order(1, 0));
        assert_ne!(order(1, 0), order(2, 0));
        assert_ne!(order(1, 0), order(1, 1));
        // Rows come from everywhere: the mean displacement of a random order is a third of its length.
        let moved: u64 = order(1, 0).iter().enumerate().map(|(at, row)| row.abs_diff(at as u64)).sum();
        assert!((250..420).contains(&(moved / 1000)), "{moved}");
    }

    #[test]
    fn the_order_is_part_of_a_students_name() {
        // Pinned: another order under the same seed would give another student.
        let permutation = Permutation::new(10, 7, 0);
        let order: Vec<u64> = (0..10).filter_map(|at| permutation.row(at)).collect();
        assert_eq!(order, PINNED);
    }

    const PINNED: [u64; 10] = [0, 8, 1, 5, 6, 9, 3, 7, 2, 4];
}
