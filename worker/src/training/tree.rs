//! The canonical binary tree in which gradients are summed, whoever computed them.
//!
//! Its leaves are the microbatches 0..n. A node over more than one leaf splits after the largest power of two
//! below its number of leaves, so that every aligned block of 2^k leaves is a subtree. Floating-point addition is
//! not associative; fixing the tree fixes the bits.

use std::ops::Range;

/// In which format sums travel, and so where they are rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wire {
    /// Nothing is rounded.
    #[default]
    F32,
    /// Every node at or above a level, the root included, is rounded to the nearest bf16 (ties to even), whether or
    /// not it crosses the wire. So the bits do not depend on who held what; no deal may cut a block of that level.
    Bf16 {
        /// Blocks of 2^level microbatches are the lowest nodes that are rounded.
        level: u32,
    },
}

impl Wire {
    /// Microbatches that must not be dealt to different members.
    pub fn block(self) -> u32 {
        match self {
            Self::F32 => 1,
            Self::Bf16 { level } => 1 << level.min(30),
        }
    }

    /// Bytes of a value.
    pub fn value_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 { .. } => 2,
        }
    }

    /// Whether the sum of a node of a tree with so many leaves is rounded: it is made of whole blocks.
    pub fn rounds(self, node: &Range<u32>, leaves: u32) -> bool {
        let whole = |at: u32| at.is_multiple_of(self.block());
        self != Self::F32 && whole(node.start) && (whole(node.end) || node.end == leaves)
    }

    /// Rounds a node's sum where it must be.
    pub fn round(self, node: &Range<u32>, leaves: u32, sum: &mut [f32]) {
        if self.rounds(node, leaves) {
            sum.iter_mut().for_each(|value| *value = f32::from_bits(u32::from(to_bf16(*value)) << 16));
        }
    }
}

/// The nearest bf16, ties to even; its bits are the upper half of an f32's. NaN stays NaN.
pub fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    // Rounding could carry a NaN's bits into another number.
    let bits = if value.is_nan() { bits | 0x0040_0000 } else { rounded };
    (bits >> 16) as u16
}

/// Where a node's right child begins.
pub fn split(node: &Range<u32>) -> u32 {
    node.start + (node.end - node.start).next_power_of_two() / 2
}

/// The largest nodes within a range of the leaves, from left to right: what the range's owner can sum alone.
pub fn subtrees(range: Range<u32>, leaves: u32) -> Vec<Range<u32>> {
    let mut found = Vec::new();
    let mut open = vec![0..leaves];
    while let Some(node) = open.pop() {
        if node.is_empty() || node.end <= range.start || range.end <= node.start {
            continue;
        }
        if range.start <= node.start && node.end <= range.end {
            found.push(node);
        } else {
            let middle = split(&node);
            open.extend([middle..node.end, node.start..middle]);
        }
    }
    found
}

/// Sums vectors that arrive in leaf order, holding one partial sum a level.
#[derive(Debug, Default)]
pub struct TreeSum {
    /// The next leaf.
    next: u32,
    /// Leaves of the whole tree.
    leaves: u32,
    wire: Wire,
    /// Complete subtrees from left to right; their numbers of leaves fall strictly.
    partial: Vec<(Range<u32>, Vec<f32>)>,
}

impl TreeSum {
    /// The sum of one node of a tree with so many leaves.
    pub fn of(node: &Range<u32>, leaves: u32, wire: Wire) -> Self {
        Self { next: node.start, leaves, wire, partial: Vec::new() }
    }

    /// Adds the next leaf.
    pub fn push(&mut self, mut leaf: Vec<f32>) {
        let node = self.next..self.next + 1;
        self.next += 1;
        self.wire.round(&node, self.leaves, &mut leaf);
        self.partial.push((node, leaf));
        // Each sum that the leaf completes is of twice as many leaves as the one before.
        let whole = |(at, (node, _)): (usize, &(Range<u32>, Vec<f32>))| node.len() == 1 << at;
        let lefts = self.partial.iter().rev().skip(1).enumerate();
        let joins = lefts.take_while(|left| whole(*left)).count();
        self.join(joins);
    }

    /// The sum over all leaves; nothing where there were none.
    pub fn finish(mut self) -> Option<Vec<f32>> {
        self.join(self.partial.len().saturating_sub(1));
        self.partial.pop().map(|(_, sum)| sum)
    }

    /// Joins the last sum with the one before it, that with the one before, and so on. All additions to a value are
    /// made while it is in the cache, so that long vectors are read and written once.
    fn join(&mut self, joins: usize) {
        let first = self.partial.len().saturating_sub(1 + joins);
        let ended = self.partial.split_off((first + 1).min(self.partial.len()));
        let (Some((target_node, target)), Some(((last_node, last), lefts))) =
            (self.partial.last_mut(), ended.split_last())
        else {
            return;
        };
        let mut sum = [0.0; JOIN_VALUES];
        for (at, target) in target.chunks_mut(JOIN_VALUES).enumerate() {
            let place = at * JOIN_VALUES..at * JOIN_VALUES + target.len();
            let sum = &mut sum[..target.len()];
            sum.copy_from_slice(&last[place.clone()]);
            for (node, left) in lefts.iter().rev() {
                left[place.clone()].iter().zip(&mut *sum).for_each(|(left, sum)| *sum += left);
                self.wire.round(&(node.start..last_node.end), self.leaves, sum);
            }
            target.iter_mut().zip(&*sum).for_each(|(left, sum)| *left += sum);
            self.wire.round(&(target_node.start..last_node.end), self.leaves, target);
        }
        target_node.end = last_node.end;
    }
}

/// Values whose additions are made together.
const JOIN_VALUES: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn definition(node: Range<u32>, leaves: &[f32], wire: Wire) -> f32 {
        let sum = match node.len() {
            1 => leaves[node.start as usize],
            _ => {
                let middle = split(&node);
                definition(node.start..middle, leaves, wire) + definition(middle..node.end, leaves, wire)
            }
        };
        let mut sum = [sum];
        wire.round(&node, leaves.len() as u32, &mut sum);
        sum[0]
    }

    fn wires() -> impl Strategy<Value = Wire> {
        prop_oneof![Just(Wire::F32), (0u32..4).prop_map(|level| Wire::Bf16 { level })]
    }

    proptest! {
        #[test]
        fn the_running_sum_follows_the_definition(
            values in proptest::collection::vec(-1e3f32..1e3, 1..70),
            wire in wires(),
            (from, to) in (0u32..70, 0u32..70),
        ) {
            let leaves = values.len() as u32;
            for node in subtrees(from.min(to)..from.max(to).min(leaves), leaves).into_iter().chain([0..leaves]) {
                let mut sum = TreeSum::of(&node, leaves, wire);
                values[node.start as usize..node.end as usize].iter().for_each(|leaf| sum.push(vec![*leaf]));
                prop_assert_eq!(sum.finish().unwrap()[0].to_bits(), definition(node, &values, wire).to_bits());
            }
        }

        #[test]
        fn subtrees_cover_a_range_and_are_maximal(leaves in 1u32..300, from in 0u32..300, to in 0u32..300) {
            let range = from.min(to)..from.max(to).min(leaves);
            let found = subtrees(range.clone(), leaves);
            let covered: Vec<u32> = found.iter().cloned().flatten().collect();
            prop_assert_eq!(covered, range.collect::<Vec<_>>());
            // Two neighbours that are one node's children would not be maximal.
            for pair in found.windows(2) {
                let parent = pair[0].start..pair[1].end;
                prop_assert!(subtrees(parent.clone(), leaves) != vec![parent], "{pair:?}");
            }
        }

        #[test]
        fn bf16_is_the_nearest(bits in any::<u32>()) {
            let value = f32::from_bits(bits);
            prop_assume!(value.is_finite());
            let near = |half: u16| f64::from(f32::from_bits(u32::from(half) << 16));
            let half = to_bf16(value);
            let distance = |half: u16| (near(half) - f64::from(value)).abs();
            if near(half).is_finite() {
                for other in [half.wrapping_sub(1), half.wrapping_add(1)] {
                    let tie = distance(other) == distance(half) && half & 1 == 0;
                    prop_assert!(!near(other).is_finite() || distance(other) > distance(half) || tie);
                }
            }
        }
    }

    #[test]
    fn the_default_sum_is_of_a_whole_tree_in_f32() {
        let mut sum = TreeSum::default();
        [1e8, 1.0, -1e8, 1.0].iter().for_each(|leaf| sum.push(vec![*leaf]));
        assert_eq!(sum.finish(), Some(vec![(1e8f32 + 1.0) + (-1e8f32 + 1.0)]));
        assert_eq!(TreeSum::default().finish(), None);
        assert!(f32::from_bits(u32::from(to_bf16(f32::from_bits(0x7fff_ffff))) << 16).is_nan());
    }
}
