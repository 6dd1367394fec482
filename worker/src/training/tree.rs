//! The canonical binary tree in which gradients are summed, whoever computed them.
//!
//! Its leaves are the microbatches 0..n. A node over more than one leaf splits after the largest power of two
//! below its number of leaves, so that every aligned block of 2^k leaves is a subtree. Floating-point addition is
//! not associative; fixing the tree fixes the bits.

/// Sums vectors that arrive in leaf order, holding one partial sum a level.
#[derive(Debug, Default)]
pub struct TreeSum {
    /// Complete subtrees from left to right with their numbers of leaves, which fall strictly.
    partial: Vec<(u64, Vec<f32>)>,
}

impl TreeSum {
    /// Adds the next leaf.
    pub fn push(&mut self, leaf: Vec<f32>) {
        self.partial.push((1, leaf));
        while let [.., (left, _), (right, _)] = self.partial[..]
            && left == right
        {
            self.join();
        }
    }

    /// The sum over all leaves; nothing where there were none.
    pub fn finish(mut self) -> Option<Vec<f32>> {
        while self.partial.len() > 1 {
            self.join();
        }
        self.partial.pop().map(|(_, sum)| sum)
    }

    fn join(&mut self) {
        if let (Some((right_leaves, right)), Some((left_leaves, left))) =
            (self.partial.pop(), self.partial.last_mut())
        {
            left.iter_mut().zip(right).for_each(|(a, b)| *a += b);
            *left_leaves += right_leaves;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn definition(leaves: &[f32]) -> f32 {
        match leaves {
            [one] => *one,
            _ => {
                let split = leaves.len().next_power_of_two() / 2;
                definition(&leaves[..split]) + definition(&leaves[split..])
            }
        }
    }

    proptest! {
        #[test]
        fn the_running_sum_follows_the_definition(leaves in proptest::collection::vec(-1e3f32..1e3, 1..70)) {
            let mut sum = TreeSum::default();
            leaves.iter().for_each(|leaf| sum.push(vec![*leaf]));
            prop_assert_eq!(sum.finish().unwrap()[0].to_bits(), definition(&leaves).to_bits());
        }
    }
}
