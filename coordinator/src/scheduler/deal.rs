//! Who computes how many microbatches.

/// So many times slower than the fastest, a worker only holds up the others.
const HOPELESS: u64 = 8;

/// Shares of so many microbatches for workers with these costs, the time of one microbatch in whatever unit.
///
/// Everybody gets one, as far as they go, and each further one goes to the worker that would be done with it first.
/// An unknown cost counts as the middle of the known ones. Hopelessly slow workers get none.
pub fn shares(microbatches: u32, costs: &[Option<u64>]) -> Vec<u32> {
    let costs = filled(costs);
    let fastest = costs.iter().copied().min().unwrap_or(1);
    let mut shares = vec![0u32; costs.len()];
    let mut left = microbatches;
    for (share, cost) in shares.iter_mut().zip(&costs) {
        *share = u32::from(left > 0 && *cost < fastest.saturating_mul(HOPELESS));
        left -= *share;
    }
    for _ in 0..left {
        let done = |rank: usize| u64::from(shares[rank] + 1).saturating_mul(costs[rank]);
        if let Some(rank) = (0..costs.len()).min_by_key(|rank| (done(*rank), *rank)) {
            shares[rank] += 1;
        }
    }
    shares
}

/// The time of a step with these shares: that of the slowest.
pub fn step_cost(shares: &[u32], costs: &[Option<u64>]) -> u64 {
    let costs = filled(costs);
    shares.iter().zip(&costs).map(|(share, cost)| u64::from(*share).saturating_mul(*cost)).max().unwrap_or(0)
}

fn filled(costs: &[Option<u64>]) -> Vec<u64> {
    let mut known: Vec<u64> = costs.iter().flatten().copied().collect();
    known.sort_unstable();
    let middle = known.get(known.len() / 2).copied().unwrap_or(1);
    costs.iter().map(|cost| cost.unwrap_or(middle).max(1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_follow_speed() {
        let check = |microbatches, costs: &[u64], expected: &[u32]| {
            let costs: Vec<_> = costs.iter().map(|cost| Some(*cost).filter(|cost| *cost > 0)).collect();
            assert_eq!(shares(microbatches, &costs), expected, "{microbatches} {costs:?}");
        };
        check(4, &[0], &[4]);
        check(4, &[0, 0], &[2, 2]);
        check(4, &[0, 0, 0], &[2, 1, 1]);
        check(4, &[0, 0, 0, 0], &[1, 1, 1, 1]);
        check(2, &[0, 0, 0], &[1, 1, 0]);
        check(8, &[100, 300], &[6, 2]);
        check(8, &[300, 100], &[2, 6]);
        check(6, &[100, 0, 100], &[2, 2, 2]);
        check(2, &[100, 300], &[1, 1]);
        check(4, &[100, 1000], &[4, 0]);
        check(0, &[1], &[0]);
        assert_eq!(step_cost(&[6, 2], &[Some(100), Some(300)]), 600);
        assert_eq!(shares(3, &[Some(u64::MAX), None]).iter().sum::<u32>(), 3);
    }
}
