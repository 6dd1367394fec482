//! Whether two runs differ: a paired randomisation test and a bootstrap interval over the queries.
//!
//! Both draw from a counter-based generator: the same seed gives the same result on every machine and in
//! whatever order the samples are taken.

/// A two-sided paired randomisation test (Smucker, Allan and Carterette, CIKM 2007).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Randomization {
    /// Mean of the differences, first minus second.
    pub mean_difference: f64,
    /// Probability of a mean difference at least as far from zero if the runs were exchangeable.
    pub p_value: f64,
}

/// A mean difference with the bounds of its confidence interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// Mean of the differences, first minus second.
    pub mean_difference: f64,
    /// Lower bound.
    pub low: f64,
    /// Upper bound.
    pub high: f64,
}

/// Why values cannot be compared.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SignificanceError {
    /// Values of different queries.
    #[error("cannot pair {first} values with {second}: give both runs' values of the same queries")]
    Unpaired {
        /// Values of the first run.
        first: usize,
        /// Values of the second run.
        second: usize,
    },
    /// No query, or no sample.
    #[error("nothing to compare: give at least one query and one sample")]
    Empty,
    /// A value that is not finite.
    #[error("the values of query {0} are not finite")]
    NotFinite(usize),
    /// A confidence outside its range.
    #[error("confidence {0} is not between 0 and 1")]
    Confidence(f64),
}

/// Tests whether the means of `first` and `second`, values of the same queries in the same order, differ:
/// `permutations` times (10,000 or more for a report) every pair is exchanged with probability one half.
/// The p-value is `(1 + reached) / (1 + permutations)`, so it is never 0.
///
/// # Errors
/// When the values are not paired, not finite or none, or there is no permutation.
pub fn randomization_test(
    first: &[f64],
    second: &[f64],
    permutations: u32,
    seed: u64,
) -> Result<Randomization, SignificanceError> {
    let differences = differences(first, second, permutations)?;
    let observed: f64 = differences.iter().sum();
    // Sums of the same values with other signs may round below the observed one.
    let tolerance = 1e-12 * differences.iter().map(|d| d.abs()).sum::<f64>();
    let words = differences.len().div_ceil(64) as u64;
    let reached = (0..u64::from(permutations)).filter(|permutation| {
        let mut sum = 0.0;
        for (word, chunk) in differences.chunks(64).enumerate() {
            let bits = draw(seed, permutation * words + word as u64);
            for (bit, difference) in chunk.iter().enumerate() {
                sum += if bits >> bit & 1 == 0 { *difference } else { -*difference };
            }
        }
        sum.abs() >= observed.abs() - tolerance
    });
    let p_value = (1 + reached.count()) as f64 / (1.0 + f64::from(permutations));
    Ok(Randomization { mean_difference: observed / differences.len() as f64, p_value })
}

/// The percentile bootstrap interval of the mean difference at `confidence` (0.95 for 95 %), from `samples`
/// draws of the queries with replacement.
///
/// # Errors
/// When the values are not paired, not finite or none, there is no sample or the confidence is not between
/// 0 and 1.
pub fn bootstrap_interval(
    first: &[f64],
    second: &[f64],
    samples: u32,
    confidence: f64,
    seed: u64,
) -> Result<Interval, SignificanceError> {
    if !(confidence > 0.0 && confidence < 1.0) {
        return Err(SignificanceError::Confidence(confidence));
    }
    let differences = differences(first, second, samples)?;
    let queries = differences.len() as u64;
    let mean = |sample: u64| {
        let pick =
            |at| ((u128::from(draw(seed, sample * queries + at)) * u128::from(queries)) >> 64) as usize;
        (0..queries).map(|at| differences[pick(at)]).sum::<f64>() / queries as f64
    };
    let mut means: Vec<f64> = (0..u64::from(samples)).map(mean).collect();
    means.sort_unstable_by(f64::total_cmp);
    let tail = (1.0 - confidence) / 2.0;
    Ok(Interval {
        mean_difference: differences.iter().sum::<f64>() / queries as f64,
        low: quantile(&means, tail),
        high: quantile(&means, 1.0 - tail),
    })
}

fn differences(first: &[f64], second: &[f64], samples: u32) -> Result<Vec<f64>, SignificanceError> {
    if first.len() != second.len() {
        return Err(SignificanceError::Unpaired { first: first.len(), second: second.len() });
    }
    if first.is_empty() || samples == 0 {
        return Err(SignificanceError::Empty);
    }
    let differences: Vec<f64> = first.iter().zip(second).map(|(a, b)| a - b).collect();
    match differences.iter().position(|difference| !difference.is_finite()) {
        Some(query) => Err(SignificanceError::NotFinite(query)),
        None => Ok(differences),
    }
}

/// The quantile of sorted values, linear between neighbours.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let (low, high) = (place.floor() as usize, place.ceil() as usize);
    sorted[low] + (sorted[high] - sorted[low]) * (place - low as f64)
}

/// The output of SplitMix64 at position `counter` of the stream of `seed` (Steele, Lea and Flood, OOPSLA
/// 2014).
fn draw(seed: u64, counter: u64) -> u64 {
    // The seed is mixed on its own first, so that neighbouring seeds do not give shifted streams.
    mix(mix(seed ^ 0x6a09_e667_f3bc_c908).wrapping_add((counter + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_p_value_nears_the_exact_one() {
        // Of the 2^5 sign patterns only two reach a sum of five equal differences; of 2^4 with values
        // 1, 1, 1, 0.5 also two; of 0.5, 0.5, 0.25 every one reaches 0.25.
        for (first, exact) in [
            (vec![1.0; 5], 2.0 / 32.0),
            (vec![1.0, 1.0, 1.0, 0.5], 2.0 / 16.0),
            (vec![0.5, -0.5, 0.25], 1.0),
            (vec![0.0; 7], 1.0),
        ] {
            let second = vec![0.0; first.len()];
            let test = randomization_test(&first, &second, 20_000, 7).unwrap();
            assert!((test.p_value - exact).abs() < 0.01, "{first:?}: {} for {exact}", test.p_value);
            assert_eq!(randomization_test(&first, &second, 20_000, 7).unwrap(), test);
            let swapped = randomization_test(&second, &first, 20_000, 7).unwrap();
            assert_eq!(swapped.p_value, test.p_value);
            assert_eq!(swapped.mean_difference, -test.mean_difference);
        }
    }

    #[test]
    fn the_p_value_is_never_zero() {
        let test = randomization_test(&[1.0; 200], &[0.0; 200], 10_000, 1).unwrap();
        assert_eq!(test.p_value, 1.0 / 10_001.0);
    }

    #[test]
    fn the_interval_nears_that_of_the_normal_distribution() {
        // 400 differences of 0 or 1: the mean's standard error is 0.5 / 20.
        let first: Vec<f64> = (0..400).map(|i| f64::from(i % 2)).collect();
        let interval = bootstrap_interval(&first, &[0.0; 400], 10_000, 0.95, 3).unwrap();
        assert_eq!(interval.mean_difference, 0.5);
        assert!((interval.low - (0.5 - 1.96 * 0.025)).abs() < 0.003, "{interval:?}");
        assert!((interval.high - (0.5 + 1.96 * 0.025)).abs() < 0.003, "{interval:?}");
        let other = bootstrap_interval(&first, &[0.0; 400], 10_000, 0.95, 4).unwrap();
        assert_ne!((other.low, other.high), (0.0, 0.0));
    }

    #[test]
    fn what_cannot_be_compared_is_refused() {
        let check = |first: &[f64], second: &[f64], samples, expected| {
            assert_eq!(randomization_test(first, second, samples, 0).unwrap_err(), expected);
            assert_eq!(bootstrap_interval(first, second, samples, 0.9, 0).unwrap_err(), expected);
        };
        check(&[1.0], &[], 10, SignificanceError::Unpaired { first: 1, second: 0 });
        check(&[], &[], 10, SignificanceError::Empty);
        check(&[1.0], &[1.0], 0, SignificanceError::Empty);
        check(&[1.0, f64::NAN], &[1.0, 1.0], 10, SignificanceError::NotFinite(1));
        let confidence = bootstrap_interval(&[1.0], &[1.0], 10, 1.0, 0).unwrap_err();
        assert_eq!(confidence, SignificanceError::Confidence(1.0));
    }
}
