//! The metrics of the score files: their columns, titles and units.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A metric of the score files, by its column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// 2 TP / (2 TP + FP + FN).
    Dice,
    /// TP / (TP + FP + FN).
    Iou,
    /// Share of pixels that are right.
    Accuracy,
    /// 95th percentile of both directed lists of surface distances, joined, as MedPy; in pixels.
    #[serde(rename = "hd95_joined_px")]
    Hd95JoinedPx,
    /// Mean of both directed lists of surface distances, joined, as MedPy; in pixels.
    AssdJoinedPx,
    /// Normalised surface Dice at the tolerance of `evaluate`, as MONAI.
    #[serde(rename = "nsd_monai")]
    Nsd,
    /// Mean squared error of the probability of lesion, pixel by pixel.
    Brier,
    /// Expected calibration error of the probability of lesion, 15 bins of equal width.
    Ece,
    /// Brier near the truth's outline.
    BrierBoundary,
    /// Expected calibration error near the truth's outline.
    EceBoundary,
}

impl Metric {
    /// The column of the score files.
    pub fn column(self) -> &'static str {
        match self {
            Self::Dice => "dice",
            Self::Iou => "iou",
            Self::Accuracy => "accuracy",
            Self::Hd95JoinedPx => "hd95_joined_px",
            Self::AssdJoinedPx => "assd_joined_px",
            Self::Nsd => "nsd_monai",
            Self::Brier => "brier",
            Self::Ece => "ece",
            Self::BrierBoundary => "brier_boundary",
            Self::EceBoundary => "ece_boundary",
        }
    }

    /// As a heading, with the unit and, where tools differ, the definition.
    pub fn title(self) -> &'static str {
        match self {
            Self::Dice => "Dice (%)",
            Self::Iou => "IoU (%)",
            Self::Accuracy => "Accuracy (%)",
            Self::Hd95JoinedPx => "HD95 (pixels; both directed lists joined, as MedPy)",
            Self::AssdJoinedPx => "ASSD (pixels; both directed lists joined, as MedPy)",
            Self::Nsd => "NSD (%; as MONAI)",
            Self::Brier => "Brier score (%)",
            Self::Ece => "ECE (%)",
            Self::BrierBoundary => "Brier score near the outline (%)",
            Self::EceBoundary => "ECE near the outline (%)",
        }
    }

    /// As a short heading, with the unit.
    pub fn heading(self) -> &'static str {
        match self {
            Self::Hd95JoinedPx => "HD95 (pixels)",
            Self::AssdJoinedPx => "ASSD (pixels)",
            Self::Nsd => "NSD (%)",
            Self::BrierBoundary => "Brier, outline (%)",
            Self::EceBoundary => "ECE, outline (%)",
            other => other.title(),
        }
    }

    /// What values are multiplied by to be shown: 100 for percent, 1 for pixels.
    pub fn shown_times(self) -> f64 {
        match self {
            Self::Hd95JoinedPx | Self::AssdJoinedPx => 1.0,
            _ => 100.0,
        }
    }

    /// Whether it is a distance.
    pub(crate) fn is_distance(self) -> bool {
        self.shown_times() == 1.0
    }

    /// From counts summed over many images, where that has a meaning. No lesion anywhere and none found is 1.
    pub(crate) fn pooled(self, [tp, fp, r#fn, tn]: [f64; 4]) -> Option<f64> {
        let share = |part: f64, whole: f64| if whole == 0.0 { 1.0 } else { part / whole };
        match self {
            Self::Dice => Some(share(2.0 * tp, 2.0 * tp + fp + r#fn)),
            Self::Iou => Some(share(tp, tp + fp + r#fn)),
            Self::Accuracy => Some(share(tp + tn, tp + fp + r#fn + tn)),
            _ => None,
        }
    }
}
