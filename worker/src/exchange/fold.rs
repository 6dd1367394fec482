//! The order of additions in which partial sums become the sum, and the additions themselves.

use super::wire::{Operand, Pool, add_into, sum_of};
use crate::training::tree::{Wire, split};
use std::ops::Range;

/// Additions on a stack: operands are taken in the order of the leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fold {
    steps: Vec<Step>,
    leaves: u32,
    wire: Wire,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// Puts the next operand on the stack.
    Take,
    /// Adds the upper two; their sum is this node's.
    Join(Range<u32>),
}

enum Term<'a> {
    Given(Operand<'a>),
    Sum(Vec<f32>),
}

impl Fold {
    /// The additions for nodes that cover the tree once, from left to right. Nothing if they do not.
    pub fn new(nodes: &[Range<u32>], leaves: u32, wire: Wire) -> Option<Self> {
        let mut fold = Self { steps: Vec::new(), leaves, wire };
        let mut rest = nodes.iter().peekable();
        // A node is opened; once both children are done, it is joined.
        let mut open = vec![(0..leaves, false)];
        while let Some((node, done)) = open.pop() {
            if done {
                fold.steps.push(Step::Join(node));
            } else if rest.next_if_eq(&&node).is_some() {
                fold.steps.push(Step::Take);
            } else if node.len() > 1 {
                let middle = split(&node);
                open.push((node.clone(), true));
                open.extend([(middle..node.end, false), (node.start..middle, false)]);
            } else {
                return None;
            }
        }
        rest.next().is_none().then_some(fold)
    }

    /// The sum of one bucket's operands, which are all of one length, in a buffer of the pool.
    pub fn run(&self, operands: &[Operand<'_>], pool: &Pool) -> Vec<f32> {
        let mut operands = operands.iter();
        let mut stack: Vec<Term<'_>> = Vec::with_capacity(34);
        for step in &self.steps {
            match step {
                Step::Take => {
                    stack.push(Term::Given(*operands.next().expect("an operand for each node")));
                }
                Step::Join(node) => {
                    let (right, left) = (stack.pop(), stack.pop());
                    let (Some(right), Some(left)) = (right, left) else {
                        unreachable!("a join follows two terms")
                    };
                    // Addition commutes bit for bit, so the sum may be built where there is room already.
                    let mut sum = match (left, right) {
                        (Term::Given(left), Term::Given(right)) => sum_of(left, right, pool.take()),
                        (Term::Sum(mut sum), Term::Given(other))
                        | (Term::Given(other), Term::Sum(mut sum)) => {
                            add_into(&mut sum, other);
                            sum
                        }
                        (Term::Sum(mut sum), Term::Sum(other)) => {
                            add_into(&mut sum, Operand::Values(&other));
                            pool.put(other);
                            sum
                        }
                    };
                    self.wire.round(node, self.leaves, &mut sum);
                    stack.push(Term::Sum(sum));
                }
            }
        }
        match stack.pop() {
            Some(Term::Sum(sum)) => sum,
            Some(Term::Given(only)) => only.to_vec(),
            None => Vec::new(),
        }
    }
}
