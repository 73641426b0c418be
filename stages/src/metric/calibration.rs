//! How far predicted probabilities are from how often they are right.

/// Bins of the expected calibration error, of equal width.
const BINS: usize = 15;

/// Calibration of one image's probabilities of lesion.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Calibration {
    /// Mean squared difference of probability and truth.
    pub brier: f64,
    /// Expected calibration error: over bins of the probability, the mean of |share of lesion - mean probability|, weighted by
    /// pixels (Naeini et al. 2015, with the probability of lesion in place of the confidence).
    pub ece: f64,
}

/// Of pixels that `counts` says to count; `None` where it counts none.
pub fn calibration(probabilities: &[f32], truth: &[bool], counts: impl Fn(usize) -> bool) -> Option<Calibration> {
    let mut bins = [(0usize, 0.0f64, 0usize); BINS];
    let (mut squares, mut pixels) = (0.0, 0usize);
    let counted = probabilities.iter().zip(truth).enumerate().filter(|(place, _)| counts(*place));
    for (p, lesion) in counted.map(|(_, pixel)| pixel) {
        let p = f64::from(*p);
        let bin = ((p * BINS as f64).ceil() as usize).clamp(1, BINS) - 1;
        squares += (p - f64::from(u8::from(*lesion))).powi(2);
        pixels += 1;
        let (count, sum, lesions) = &mut bins[bin];
        *count += 1;
        *sum += p;
        *lesions += usize::from(*lesion);
    }
    let gap = |(_, sum, lesions): &(usize, f64, usize)| (*lesions as f64 - sum).abs() / pixels as f64;
    (pixels > 0).then(|| Calibration { brier: squares / pixels as f64, ece: bins.iter().map(gap).sum() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certainty_that_is_right_costs_nothing_and_that_is_wrong_all() {
        let of = |p: &[f32], t: &[bool]| calibration(p, t, |_| true).unwrap();
        assert_eq!(of(&[1.0, 0.0], &[true, false]), Calibration { brier: 0.0, ece: 0.0 });
        assert_eq!(of(&[0.0, 1.0], &[true, false]), Calibration { brier: 1.0, ece: 1.0 });
        // Half of the pixels at 0.5 are lesions: calibrated, and not sharp.
        let half = of(&[0.5, 0.5], &[true, false]);
        assert!((half.brier - 0.25).abs() < 1e-9 && half.ece < 1e-9);
        assert!(calibration(&[0.5], &[true], |_| false).is_none());
    }
}
