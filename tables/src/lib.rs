//! Per-image scores to results tables: the only crate that depends on polars.
//!
//! [`summarise`] gathers score files into one frame and works out a [`ResultsTable`]; [`render`] writes it as Markdown, CSV,
//! LaTeX and Parquet; [`figure`] draws it. The same scores give the same bytes.

pub mod figure;
mod metric;
pub mod render;
mod summarise;

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use metric::Metric;
pub use summarise::summarise;

/// Name of the column that holds the mean over all others.
pub const AVERAGE: &str = "average";

/// How the images of a run come to one value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Aggregate {
    /// The mean over images.
    #[default]
    Image,
    /// The mean over patients of the mean over each one's images.
    Patient,
    /// From true and false positives and negatives summed over all images; for Dice, IoU and accuracy.
    Pooled,
}

/// What images are told apart by, each value a row of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// The lesion's class.
    Class,
    /// The tercile of the lesion's area within its site.
    Size,
}

impl By {
    /// The column of the score files, and the name of the row axis.
    pub fn column(self) -> &'static str {
        match self {
            Self::Class => "class",
            Self::Size => "size",
        }
    }
}

/// How a table is laid out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Layout {
    /// The metrics, one table each; the first is the one that figures show.
    #[schemars(length(min = 1))]
    pub metrics: Vec<Metric>,
    /// The axis whose values are columns.
    pub columns: String,
    /// The axes that are averaged over: each of their points is one run of the spread.
    pub over: Vec<String>,
    /// How the images of a run come to one value.
    #[serde(default)]
    pub aggregate: Aggregate,
    /// One row for each class of lesion, or each tercile of size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<By>,
    /// Digits behind the decimal point, of values in percent.
    #[schemars(range(max = 6))]
    pub decimals: usize,
    /// A sentence for the caption: what the images are, which weights, how splits were made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            metrics: vec![Metric::Dice, Metric::Iou, Metric::Accuracy],
            columns: "held_out".into(),
            over: vec!["seed".into()],
            aggregate: Aggregate::Image,
            by: None,
            decimals: 1,
            note: None,
        }
    }
}

/// One file of per-image scores and the point that it belongs to.
#[derive(Clone, Debug)]
pub struct ScoreFile {
    /// Axis to value.
    pub point: BTreeMap<String, String>,
    /// The Parquet file.
    pub path: PathBuf,
}

/// A results table, all metrics.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResultsTable {
    /// The axes that rows stand for.
    pub row_axes: Vec<String>,
    /// The axis of the columns.
    pub column_axis: String,
    /// The axes of the spread.
    pub over: Vec<String>,
    /// Rows, each by the values of its axes.
    pub rows: Vec<Vec<String>>,
    /// Columns, [`AVERAGE`] last.
    pub columns: Vec<String>,
    /// The metrics.
    pub metrics: Vec<Metric>,
    /// Their headings by their columns, with units and, where scores depend on one, the tolerance.
    pub titles: BTreeMap<String, String>,
    /// How the images of a run came to one value.
    pub aggregate: Aggregate,
    /// Digits behind the decimal point, as shown.
    pub decimals: usize,
    /// How models were selected: each way that occurs among the scores, in words.
    pub selections: Vec<String>,
    /// Models that lack something of their method.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lacking: Vec<Lacking>,
    /// What the layout adds to the caption.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// What the numbers are, in a few sentences for under a table.
    pub caption: String,
    /// The cells that have a value.
    pub cells: Vec<Cell>,
}

/// Models whose weights are of an epoch in which a part of their method did not work yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lacking {
    /// The part: `the intervention`.
    pub without: String,
    /// How many.
    pub models: usize,
    /// Models in the same rows.
    pub of: usize,
}

/// One number of a table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// The metric.
    pub metric: Metric,
    /// The row.
    pub row: Vec<String>,
    /// The column.
    pub column: String,
    /// Mean over the runs; 0 to 1, or pixels.
    pub mean: f64,
    /// Sample standard deviation over the runs (ddof 1); absent for a single run.
    pub std: Option<f64>,
    /// Runs.
    pub runs: usize,
    /// Images of each run.
    pub images: usize,
    /// Of all runs' images those that have no finite value, one mask being empty; they are left out of the mean.
    pub left_out: usize,
    /// Whether a model was scored on a site that it was trained on.
    pub in_domain: bool,
    /// Whether scores on the held-out site chose the model.
    pub oracle: bool,
    /// As every table and report shows it, in percent: `81.6 ± 0.4`, marked where it is in-domain or an oracle's.
    pub text: String,
    /// The points of the score files behind it.
    pub points: Vec<BTreeMap<String, String>>,
}

/// What readers must know of a number.
#[derive(Clone, Copy, Debug, Default)]
struct Marks {
    in_domain: bool,
    oracle: bool,
}

/// A value with its spread, as shown: its marks, and in brackets how many images have none.
fn shown(metric: Metric, mean: f64, std: Option<f64>, marks: Marks, left_out: usize, digits: usize) -> String {
    let mark = match marks {
        Marks { in_domain: true, oracle: true } => "†‡",
        Marks { in_domain: true, .. } => "†",
        Marks { oracle: true, .. } => "‡",
        Marks { .. } => "",
    };
    let times = metric.shown_times();
    let spread = std.map(|std| format!(" ± {:.digits$}", std * times)).unwrap_or_default();
    let without = if left_out > 0 { format!(" [{left_out}]") } else { String::new() };
    format!("{:.digits$}{spread}{mark}{without}", mean * times)
}

impl ResultsTable {
    /// The heading of a metric, with its unit.
    pub fn title(&self, metric: Metric) -> &str {
        self.titles.get(metric.column()).map_or_else(|| metric.title(), String::as_str)
    }

    /// The cell of a metric, row and column.
    pub fn cell(&self, metric: Metric, row: &[String], column: &str) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.metric == metric && cell.row == row && cell.column == column)
    }

    /// What its numbers are, in words.
    fn words(&self) -> String {
        // Without a second run nothing spreads, whatever axis there is to repeat over.
        let once = self.cells.iter().all(|cell| cell.runs <= 1);
        let spread = match self.over.join(" and ") {
            over if over.is_empty() || once => "each of one run".to_owned(),
            over => format!("mean ± sample standard deviation (ddof 1) over {over}"),
        };
        let each = if self.metrics.iter().any(|metric| metric.is_distance()) {
            "Per-image values, distances in pixels and others in percent,"
        } else {
            "Per-image values in percent,"
        };
        let values = match self.aggregate {
            Aggregate::Image => format!("{each} averaged over the images of each run"),
            Aggregate::Patient => {
                format!("{each} averaged over each patient's images, then over the patients of each run")
            }
            Aggregate::Pooled => {
                "Values in percent, from counts of pixels summed over the images of each run".to_owned()
            }
        };
        let mut text =
            format!("{values}; {spread}; the column {AVERAGE} is the mean over the values of {}.", self.column_axis);
        if self.cells.iter().any(|cell| cell.left_out > 0) {
            text.push_str(" [n]: so many images of all runs have no such value, as one of the two masks is empty, and are left out.");
        }
        if !self.selections.is_empty() {
            text.push_str(&format!(" Model selection: {}.", self.selections.join("; or ")));
        }
        if !self.lacking.is_empty() {
            let each = self.lacking.iter().map(|l| format!("{} of {} models without {}", l.models, l.of, l.without));
            let each = each.collect::<Vec<_>>().join(", ");
            text.push_str(&format!(
                " Weights of an early epoch, in which a part of the method did not work yet: {each}."
            ));
        }
        if self.cells.iter().any(|cell| cell.oracle) {
            text.push_str(" ‡ oracle: chosen by its scores on the held-out site, an upper bound and no result.");
        }
        if self.cells.iter().any(|cell| cell.in_domain) {
            text.push_str(" † in-domain: the model was trained on the site that it is scored on.");
        }
        if let Some(note) = &self.note {
            text.push_str(&format!(" {}", note.trim()));
        }
        text
    }
}

/// Why a table cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// A score file cannot be read.
    #[error("{}: not a whole file of scores: {reason}", path.display())]
    Scores {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The layout does not fit the scores.
    #[error("{0}")]
    Layout(String),
    /// The data frame library refused an operation.
    #[error("data frame: {0}")]
    Frame(#[from] polars::error::PolarsError),
    /// A file cannot be written.
    #[error("{}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}
