//! Who sends what to whom: a pure function of the deals, the gradient's length and the tree.
//!
//! A gradient is cut into buckets of a fixed number of values. Each member owns a run of buckets; the runs differ in
//! length by at most one. A member sums the largest subtrees within its deal and sends, for every bucket, one partial
//! sum for each to the bucket's owner, who finishes the sum in tree order and sends it back.

use super::fold::Fold;
use crate::training::tree::{Wire, subtrees};
use std::ops::Range;

/// Values of a bucket: 256 KiB of f32, which fit a core's cache twice.
pub const BUCKET_VALUES: usize = 64 << 10;

/// The transfers of one reduction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    length: usize,
    leaves: u32,
    wire: Wire,
    bucket: usize,
    /// By rank.
    nodes: Vec<Vec<Range<u32>>>,
}

/// One partial sum on its way to an owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Whose partial sum.
    pub from: usize,
    /// The bucket's owner.
    pub to: usize,
    /// Over which microbatches.
    pub node: Range<u32>,
    /// Of which values.
    pub values: Range<usize>,
}

impl Plan {
    /// The plan for deals that were checked: contiguous, in rank order, none empty.
    pub fn new(deals: &[Range<u32>], length: usize, wire: Wire, bucket: usize) -> Self {
        let leaves = deals.last().map_or(0, |deal| deal.end);
        let nodes = deals.iter().map(|deal| subtrees(deal.clone(), leaves)).collect();
        Self { length, leaves, wire, bucket: bucket.max(1), nodes }
    }

    /// Members.
    pub fn members(&self) -> usize {
        self.nodes.len()
    }

    /// Values of the whole gradient.
    pub fn length(&self) -> usize {
        self.length
    }

    /// In which format values travel.
    pub fn wire(&self) -> Wire {
        self.wire
    }

    /// All microbatches.
    pub fn root(&self) -> Range<u32> {
        0..self.leaves
    }

    /// The nodes that a member sums alone, from left to right.
    pub fn nodes(&self, rank: usize) -> &[Range<u32>] {
        &self.nodes[rank]
    }

    /// The values that a member owns.
    pub fn owned(&self, rank: usize) -> Range<usize> {
        let buckets = self.length.div_ceil(self.bucket);
        let edge = |rank: usize| ((buckets * rank).div_ceil(self.members()) * self.bucket).min(self.length);
        edge(rank)..edge(rank + 1)
    }

    /// The buckets that a member owns.
    pub fn buckets(&self, rank: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let (owned, bucket) = (self.owned(rank), self.bucket);
        let end = owned.end;
        owned.step_by(bucket).map(move |start| start..(start + bucket).min(end))
    }

    /// Every node with the rank that sums it, in the order of the leaves.
    pub fn sources(&self) -> Vec<(usize, Range<u32>)> {
        let of = |(rank, nodes): (usize, &Vec<Range<u32>>)| {
            nodes.iter().map(move |node| (rank, node.clone())).collect::<Vec<_>>()
        };
        self.nodes.iter().enumerate().flat_map(of).collect()
    }

    /// The additions that finish a sum of [`Plan::sources`].
    pub fn fold(&self) -> Fold {
        let nodes: Vec<_> = self.nodes.iter().flatten().cloned().collect();
        Fold::new(&nodes, self.leaves, self.wire).expect("subtrees of deals that cover the tree cover it too")
    }

    /// Every transfer to an owner; each is answered with the finished sums of its values.
    pub fn transfers(&self) -> Vec<Transfer> {
        let mut transfers = Vec::new();
        for to in 0..self.members() {
            for values in self.buckets(to) {
                for (from, node) in self.sources().into_iter().filter(|(from, _)| *from != to) {
                    transfers.push(Transfer { from, to, node, values: values.clone() });
                }
            }
        }
        transfers
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::{Operand, Pool};
    use super::*;
    use crate::training::tree::TreeSum;
    use proptest::prelude::*;
    use proptest::sample::Index;

    /// Contiguous deals of whole blocks, one for each member.
    fn deals(leaves: u32, block: u32, cuts: &[Index]) -> Vec<Range<u32>> {
        let blocks = leaves.div_ceil(block);
        let mut edges: Vec<u32> = match blocks {
            1 => Vec::new(),
            _ => cuts.iter().map(|cut| (1 + cut.index(blocks as usize - 1) as u32) * block).collect(),
        };
        edges.extend([0, leaves]);
        edges.sort_unstable();
        edges.dedup();
        edges.windows(2).map(|pair| pair[0]..pair[1]).collect()
    }

    fn wires() -> impl Strategy<Value = Wire> {
        prop_oneof![Just(Wire::F32), (0u32..4).prop_map(|level| Wire::Bf16 { level })]
    }

    fn tree_sum(node: &Range<u32>, leaves: &[Vec<f32>], wire: Wire) -> Vec<f32> {
        let mut sum = TreeSum::of(node, leaves.len() as u32, wire);
        leaves[node.start as usize..node.end as usize].iter().for_each(|leaf| sum.push(leaf.clone()));
        sum.finish().unwrap()
    }

    proptest! {
        #[test]
        fn every_microbatch_of_every_value_is_summed_once(
            leaves in 1u32..100,
            cuts in proptest::collection::vec(any::<Index>(), 0..8),
            (length, bucket) in (0usize..60, 1usize..9),
            wire in wires(),
        ) {
            let deals = deals(leaves, wire.block(), &cuts);
            let plan = Plan::new(&deals, length, wire, bucket);
            let mut summed = vec![vec![0; length]; leaves as usize];
            for rank in 0..plan.members() {
                // The owner's own partial sums go nowhere.
                for node in plan.nodes(rank) {
                    node.clone().for_each(|leaf| plan.owned(rank).for_each(|at| summed[leaf as usize][at] += 1));
                }
                let covered: Vec<usize> = plan.buckets(rank).flatten().collect();
                prop_assert_eq!(covered, plan.owned(rank).collect::<Vec<_>>());
            }
            for Transfer { from, to, node, values } in plan.transfers() {
                prop_assert!(from != to && plan.nodes(from).contains(&node) && values.len() <= bucket);
                node.for_each(|leaf| values.clone().for_each(|at| summed[leaf as usize][at] += 1));
            }
            prop_assert!(summed.iter().flatten().all(|count| *count == 1));
            let sizes = (0..plan.members()).map(|rank| plan.buckets(rank).count());
            let (least, most) = sizes.fold((usize::MAX, 0), |(least, most), size| (least.min(size), most.max(size)));
            prop_assert!(most - least <= 1);
        }

        #[test]
        fn sums_are_those_of_the_sequential_tree(
            values in proptest::collection::vec(proptest::collection::vec(-1e3f32..1e3, 5), 1..40),
            cuts in proptest::collection::vec(any::<Index>(), 0..8),
            wire in wires(),
        ) {
            let deals = deals(values.len() as u32, wire.block(), &cuts);
            let plan = Plan::new(&deals, 5, wire, 64);
            let partials: Vec<_> = plan.sources().iter().map(|(_, node)| tree_sum(node, &values, wire)).collect();
            let pool = Pool::default();
            let bytes: Vec<_> = partials.iter().map(|values| pool.encode(wire, values.clone())).collect();
            let bits = |values: Vec<f32>| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            let expected = bits(tree_sum(&(0..values.len() as u32), &values, wire));
            for owner in 0..plan.members() {
                let operands: Vec<_> = plan.sources().iter().enumerate().map(|(at, (rank, _))| {
                    if *rank == owner { Operand::Values(&partials[at]) } else { Operand::of(wire, &bytes[at]) }
                }).collect();
                prop_assert_eq!(&bits(plan.fold().run(&operands, &pool)), &expected);
            }
        }

        #[test]
        fn nodes_that_do_not_cover_the_tree_once_are_refused(
            leaves in 2u32..60,
            cuts in proptest::collection::vec(any::<Index>(), 1..5),
            victim in any::<Index>(),
        ) {
            let plan = Plan::new(&deals(leaves, 1, &cuts), 1, Wire::F32, 1);
            let nodes: Vec<_> = plan.sources().into_iter().map(|(_, node)| node).collect();
            prop_assert!(Fold::new(&nodes, leaves, Wire::F32).is_some());
            let at = victim.index(nodes.len());
            let mut twice = nodes.clone();
            twice.insert(at, nodes[at].clone());
            prop_assert!(Fold::new(&twice, leaves, Wire::F32).is_none());
            let mut missing = nodes.clone();
            missing.remove(at);
            prop_assert!(Fold::new(&missing, leaves, Wire::F32).is_none());
        }
    }
}
