//! Exponential and error function as polynomials that the compiler vectorises.

/// The exponential; within 2 units in the last place where the result is a normal number, and 0 below.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts, so that x - n ln 2 is exact enough.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding and taking away 1.5 * 2^23 rounds to the nearest integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.3, 88.3);
    let shifted = x.mul_add(LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let p = 1.987_569_1e-4f32
        .mul_add(r, 1.398_199_9e-3)
        .mul_add(r, 8.333_452e-3)
        .mul_add(r, 4.166_579_6e-2)
        .mul_add(r, 1.666_666_5e-1)
        .mul_add(r, 0.5);
    let p = (r * r).mul_add(p, r) + 1.0;
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    p * scale
}

/// The error function; within 4e-7. A rational minimax approximation (as in Eigen and XLA).
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let s = x * x;
    let p = (-2.726_142_3e-10f32)
        .mul_add(s, 2.770_681_5e-8)
        .mul_add(s, -2.101_024e-6)
        .mul_add(s, -5.692_506_4e-5)
        .mul_add(s, -7.349_906_3e-4)
        .mul_add(s, -2.954_6e-3)
        .mul_add(s, -1.609_603_3e-2);
    let q = (-1.456_607_2e-5f32)
        .mul_add(s, -2.133_740_6e-4)
        .mul_add(s, -1.682_827e-3)
        .mul_add(s, -7.373_329e-3)
        .mul_add(s, -1.426_473_9e-2);
    // Where it rounds to 1 it is 1, so that GELU is exactly 0 far below.
    if x.abs() >= 4.0 { 1f32.copysign(x) } else { x * p / q }
}

/// Gaussian error linear unit: x times the normal distribution function at x.
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// The derivative of [`gelu`].
#[inline(always)]
pub fn gelu_slope(x: f32) -> f32 {
    /// 1 / sqrt(2 pi).
    const DENSITY: f32 = 0.398_942_3;
    let below = 0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2));
    (x * DENSITY).mul_add(exp(-0.5 * x * x), below)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// erf by its Taylor series, good for |x| <= 4.
    fn erf_reference(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        (sum * 2.0 / std::f64::consts::PI.sqrt()).clamp(-1.0, 1.0)
    }

    #[test]
    fn the_exponential_is_close_everywhere() {
        for i in -8800..8800 {
            let x = i as f32 / 100.0;
            let (found, wanted) = (f64::from(exp(x)), f64::from(x).exp());
            if (-87.3..=88.3).contains(&x) {
                assert!((found / wanted - 1.0).abs() < 3e-7, "exp({x}) = {found}, not {wanted}");
            }
        }
        assert!(exp(-1e30) < 2e-38 && exp(f32::NEG_INFINITY) < 2e-38 && exp(0.0) == 1.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn erf_and_gelu_are_close_everywhere() {
        for i in -4000..=4000 {
            let x = i as f32 / 1000.0;
            let wanted = erf_reference(f64::from(x));
            assert!((f64::from(erf(x)) - wanted).abs() < 4e-7, "erf({x})");
        }
        for i in -9000..=9000 {
            let x = f64::from(i) / 1000.0;
            let phi = 0.5 * (1.0 + erf_reference((x / 2f64.sqrt()).clamp(-4.0, 4.0)));
            let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
            assert!((f64::from(gelu(x as f32)) - x * phi).abs() < 2e-6, "gelu({x})");
            assert!((f64::from(gelu_slope(x as f32)) - (phi + x * density)).abs() < 2e-6, "slope at {x}");
        }
        assert!(gelu(f32::NAN).is_nan() && gelu(100.0) == 100.0 && gelu(-100.0) == 0.0);
    }
}
