//! `scores.parquet`: one row an image.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Float64Array, Int64Array};
use arrow::datatypes::{Field, Schema};

use super::Params;
use crate::error::Result;
use crate::frame;
use crate::metric::Counts;
use crate::metric::calibration::Calibration;
use crate::metric::surface::{Surface, outline};
use crate::segmenter::SegmenterConfig;

/// Pixels from the truth's outline that the calibration near it takes in.
const BAND: i32 = 5;

/// The scores of one image.
pub(super) struct Row {
    pub(super) id: String,
    pub(super) patient: String,
    pub(super) class: Option<String>,
    pub(super) site: String,
    /// The tercile of the lesion's area within the site.
    pub(super) size: &'static str,
    pub(super) counts: Counts,
    pub(super) surface: Surface,
    pub(super) calibration: Option<Calibration>,
    pub(super) at_boundary: Option<Calibration>,
}

/// Names the tercile that each lesion's area falls into among those of its site; images without a lesion are `none`.
pub(super) fn name_sizes(rows: &mut [Row]) {
    let area = |row: &Row| row.counts.tp + row.counts.r#fn;
    let mut order: Vec<usize> = (0..rows.len()).filter(|row| area(&rows[*row]) > 0).collect();
    order.sort_by_key(|row| (area(&rows[*row]), rows[*row].id.clone()));
    rows.iter_mut().for_each(|row| row.size = "none");
    for (rank, row) in order.iter().enumerate() {
        rows[*row].size = ["small", "medium", "large"][rank * 3 / order.len()];
    }
}

/// The pixels within [`BAND`] of the truth's outline.
pub(super) fn band(truth: &[bool], side: usize) -> Vec<bool> {
    let mut near = vec![false; truth.len()];
    for (x, y) in outline(truth, side) {
        for dy in -BAND..=BAND {
            for dx in -BAND..=BAND {
                let (x, y) = (x + dx, y + dy);
                if dx * dx + dy * dy <= BAND * BAND && x >= 0 && y >= 0 && x < side as i32 && y < side as i32 {
                    near[y as usize * side + x as usize] = true;
                }
            }
        }
    }
    near
}

/// Writes the rows, and what each of their numbers means. `without`: what of its method the model lacks.
pub(super) fn write(
    path: &Path,
    rows: &[Row],
    params: &Params,
    config: &SegmenterConfig,
    without: Option<&str>,
) -> Result<()> {
    let texts = |of: &dyn Fn(&Row) -> Option<String>| frame::texts(rows.iter().map(of));
    let counts =
        |of: fn(&Counts) -> i64| -> ArrayRef { Arc::new(rows.iter().map(|r| of(&r.counts)).collect::<Int64Array>()) };
    let numbers =
        |of: &dyn Fn(&Row) -> Option<f64>| -> ArrayRef { Arc::new(rows.iter().map(of).collect::<Float64Array>()) };
    let finite = |value: f64| value.is_finite().then_some(value);
    let flag = |value: bool| -> ArrayRef { Arc::new(BooleanArray::from(vec![value; rows.len()])) };
    let selection = config.selection_words();
    let oracle = config.selection.as_ref().is_some_and(|selected| selected.oracle);
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("id", texts(&|r| Some(r.id.clone()))),
        ("patient", texts(&|r| Some(r.patient.clone()))),
        ("class", texts(&|r| r.class.clone())),
        ("site", texts(&|r| Some(r.site.clone()))),
        ("size", texts(&|r| Some(r.size.to_owned()))),
        ("tp", counts(|c| c.tp)),
        ("fp", counts(|c| c.fp)),
        ("fn", counts(|c| c.r#fn)),
        ("tn", counts(|c| c.tn)),
        ("dice", numbers(&|r| Some(r.counts.dice()))),
        ("iou", numbers(&|r| Some(r.counts.iou()))),
        ("accuracy", numbers(&|r| Some(r.counts.accuracy()))),
        ("hd95_joined_px", numbers(&|r| finite(r.surface.hd95))),
        ("assd_joined_px", numbers(&|r| finite(r.surface.assd))),
        ("nsd_monai", numbers(&|r| Some(r.surface.nsd))),
        ("nsd_tolerance_px", numbers(&|_| Some(params.nsd_tolerance))),
        ("brier", numbers(&|r| r.calibration.map(|c| c.brier))),
        ("ece", numbers(&|r| r.calibration.map(|c| c.ece))),
        ("brier_boundary", numbers(&|r| r.at_boundary.map(|c| c.brier))),
        ("ece_boundary", numbers(&|r| r.at_boundary.map(|c| c.ece))),
        ("in_domain", flag(params.in_domain)),
        ("selection", texts(&|_| Some(selection.clone()))),
        ("oracle", flag(oracle)),
        ("without", texts(&|_| without.map(str::to_owned))),
    ];
    let nullable = |name: &str| {
        ["class", "without"].contains(&name) || name.contains("_px") || name.contains("brier") || name.contains("ece")
    };
    let field = |(name, values): &(&str, ArrayRef)| Field::new(*name, values.data_type().clone(), nullable(name));
    let schema = Schema::new(columns.iter().map(field).collect::<Vec<_>>());
    let notes = [
        (
            "empty masks",
            "both empty: overlap 1, distance 0; one empty: overlap 0, distance infinite and therefore null".to_owned(),
        ),
        (
            "hd95_joined_px, assd_joined_px",
            "as MedPy 0.5.2: both directed lists joined; pixels of the working size".to_owned(),
        ),
        ("nsd_monai", format!("as MONAI 1.6, within {} pixels of the working size", params.nsd_tolerance)),
        ("size", "tercile of the lesion's area among the images of the site".to_owned()),
        ("without", "what of the method did not work yet in the epoch whose weights were kept".to_owned()),
        ("boundary", format!("pixels within {BAND} of the truth's outline")),
    ];
    let mut writer = frame::Writer::new(path, schema, &notes)?;
    writer.write(columns.into_iter().map(|(_, values)| values).collect())?;
    writer.finish()
}
