//! Per-image scores to results tables: the only crate that depends on polars.
//!
//! [`summarise`] gathers score files into one frame and works out a [`ResultsTable`]; [`render`] writes it as Markdown, CSV,
//! LaTeX and Parquet; [`figure`] draws it. The same scores give the same bytes.

pub mod figure;
pub mod render;
mod summarise;

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use summarise::summarise;

/// Name of the column that holds the mean over all others.
pub const AVERAGE: &str = "average";

/// A metric of the score files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// 2 TP / (2 TP + FP + FN), per image.
    Dice,
    /// TP / (TP + FP + FN), per image.
    Iou,
    /// Share of pixels that are right, per image.
    Accuracy,
}

impl Metric {
    /// The column of the score files.
    pub fn column(self) -> &'static str {
        match self {
            Self::Dice => "dice",
            Self::Iou => "iou",
            Self::Accuracy => "accuracy",
        }
    }

    /// As a heading.
    pub fn title(self) -> &'static str {
        match self {
            Self::Dice => "Dice",
            Self::Iou => "IoU",
            Self::Accuracy => "Accuracy",
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
    /// Digits behind the decimal point, in percent.
    pub decimals: usize,
    /// How models were selected: each way that occurs among the scores, in words.
    pub selections: Vec<String>,
    /// What the layout adds to the caption.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The cells that have a value.
    pub cells: Vec<Cell>,
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
    /// Mean over the runs, each the mean over its images; 0 to 1.
    pub mean: f64,
    /// Sample standard deviation over the runs (ddof 1); absent for a single run.
    pub std: Option<f64>,
    /// Runs.
    pub runs: usize,
    /// Images of each run.
    pub images: usize,
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

/// A value in percent with its spread.
fn percent(mean: f64, std: Option<f64>, marks: Marks, digits: usize) -> String {
    let mark = match marks {
        Marks { in_domain: true, oracle: true } => "†‡",
        Marks { in_domain: true, .. } => "†",
        Marks { oracle: true, .. } => "‡",
        Marks { .. } => "",
    };
    match std {
        Some(std) => format!("{:.digits$} ± {:.digits$}{mark}", mean * 100.0, std * 100.0),
        None => format!("{:.digits$}{mark}", mean * 100.0),
    }
}

impl ResultsTable {
    /// The cell of a metric, row and column.
    pub fn cell(&self, metric: Metric, row: &[String], column: &str) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.metric == metric && cell.row == row && cell.column == column)
    }

    /// What the numbers are, in one sentence for under a table.
    pub fn caption(&self) -> String {
        let over = self.over.join(" and ");
        let mut text = format!(
            "Per-image values in percent, averaged over the images of each run; mean ± sample standard deviation (ddof 1) over {over}; `{AVERAGE}` is the mean over the values of {}.",
            self.column_axis
        );
        if !self.selections.is_empty() {
            text.push_str(&format!(" Model selection: {}.", self.selections.join("; or ")));
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
