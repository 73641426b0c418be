//! Scores of one predicted mask against the truth.

pub mod calibration;
pub mod surface;

use serde::{Deserialize, Serialize};

/// Pixels by prediction and truth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Lesion in both.
    pub tp: i64,
    /// Predicted only.
    pub fp: i64,
    /// Missed.
    pub r#fn: i64,
    /// Background in both.
    pub tn: i64,
}

impl Counts {
    /// Counts two masks of the same length, true for lesion.
    pub fn of(predicted: &[bool], truth: &[bool]) -> Self {
        let mut counts = Self::default();
        for (p, t) in predicted.iter().zip(truth) {
            match (p, t) {
                (true, true) => counts.tp += 1,
                (true, false) => counts.fp += 1,
                (false, true) => counts.r#fn += 1,
                (false, false) => counts.tn += 1,
            }
        }
        counts
    }

    /// 2 TP / (2 TP + FP + FN); 1 where both masks are empty.
    pub fn dice(&self) -> f64 {
        ratio(2 * self.tp, 2 * self.tp + self.fp + self.r#fn)
    }

    /// TP / (TP + FP + FN); 1 where both masks are empty.
    pub fn iou(&self) -> f64 {
        ratio(self.tp, self.tp + self.fp + self.r#fn)
    }

    /// Share of pixels that are right.
    pub fn accuracy(&self) -> f64 {
        ratio(self.tp + self.tn, self.tp + self.fp + self.r#fn + self.tn)
    }
}

fn ratio(part: i64, whole: i64) -> f64 {
    if whole == 0 { 1.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn dice_is_2j_over_1_plus_j_and_asks_for_no_order(
            a in proptest::collection::vec(any::<bool>(), 24),
            b in proptest::collection::vec(any::<bool>(), 24),
        ) {
            let (counts, turned) = (Counts::of(&a, &b), Counts::of(&b, &a));
            prop_assert!((counts.dice() - 2.0 * counts.iou() / (1.0 + counts.iou())).abs() < 1e-12);
            prop_assert_eq!((counts.dice(), counts.iou(), counts.accuracy()), (turned.dice(), turned.iou(), turned.accuracy()));
            let mirrored = |mask: &[bool]| mask.iter().rev().copied().collect::<Vec<_>>();
            prop_assert_eq!(Counts::of(&mirrored(&a), &mirrored(&b)), counts);
        }
    }

    #[test]
    fn dice_and_iou_follow_their_definitions() {
        let counts = Counts::of(&[true, true, false, false, true], &[true, false, true, false, true]);
        assert_eq!(counts, Counts { tp: 2, fp: 1, r#fn: 1, tn: 1 });
        assert!((counts.dice() - 4.0 / 6.0).abs() < 1e-12);
        assert!((counts.dice() - 2.0 * counts.iou() / (1.0 + counts.iou())).abs() < 1e-12);
        assert_eq!(Counts::of(&[false], &[false]).dice(), 1.0);
        assert_eq!(Counts::of(&[true], &[false]).dice(), 0.0);
    }
}
