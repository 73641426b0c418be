//! The tables of an experiment as they lie in the store, and the instances behind each number.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use siteline_cache::{Hit, Store};
use siteline_pipeline::NodeIndex;
use siteline_pipeline::plan::{Plan, Planner, State};
use siteline_pipeline::protocol::{Point, Purpose};

use crate::diagnostic::CommandError;

/// `cells.json` of a table artifact.
#[derive(Clone, Debug, Deserialize)]
pub struct Cells {
    /// The axes that rows stand for.
    pub row_axes: Vec<String>,
    /// The axis of the columns.
    pub column_axis: String,
    /// Rows.
    pub rows: Vec<Vec<String>>,
    /// Columns.
    pub columns: Vec<String>,
    /// Metrics.
    pub metrics: Vec<String>,
    /// Their headings, with units.
    #[serde(default)]
    pub titles: BTreeMap<String, String>,
    /// What the numbers are, in words.
    #[serde(default)]
    pub caption: String,
    /// The numbers.
    pub cells: Vec<Cell>,
}

/// One number.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
pub struct Cell {
    /// The metric.
    pub metric: String,
    /// The row.
    pub row: Vec<String>,
    /// The column.
    pub column: String,
    /// Mean over the runs; 0 to 1, or pixels.
    pub mean: f64,
    /// Sample standard deviation over the runs.
    pub std: Option<f64>,
    /// Runs.
    pub runs: usize,
    /// Images of each run.
    pub images: usize,
    /// Images of all runs that have no finite value.
    #[serde(default)]
    pub left_out: usize,
    /// Whether a model was scored on a site that it was trained on.
    pub in_domain: bool,
    /// Whether scores on the held-out site chose the model.
    #[serde(default)]
    pub oracle: bool,
    /// As the table shows it.
    pub text: String,
    /// The points of the scores behind it.
    pub points: Vec<Point>,
}

impl Cells {
    /// Row axes and the column of a cell, by axis.
    pub fn address(&self, cell: &Cell) -> BTreeMap<String, String> {
        let mut address: BTreeMap<_, _> = self.row_axes.iter().cloned().zip(cell.row.iter().cloned()).collect();
        address.insert(self.column_axis.clone(), cell.column.clone());
        address
    }
}

/// A results table that is up to date.
pub struct ResultsTable {
    /// The stage that makes it.
    pub stage: String,
    /// Its instance.
    pub node: NodeIndex,
    /// Its record.
    pub record: Arc<Hit>,
    /// Its numbers.
    pub cells: Cells,
}

impl ResultsTable {
    /// A file of the artifact.
    pub fn read(&self, store: &Store, file: &str) -> Result<Vec<u8>, CommandError> {
        let output = self.record.outputs.iter().find(|output| output.path == file);
        let output =
            output.ok_or_else(|| CommandError::refused(format!("`{}` has no {file}", self.record.instance), None))?;
        Ok(store.read(&output.digest)?)
    }

    /// The records of the scores behind a cell.
    pub fn scores<'p>(&self, planner: &Planner, plan: &'p Plan, cell: &Cell) -> Vec<(NodeIndex, &'p Arc<Hit>)> {
        let reads = planner.graph.reads(self.node);
        let behind = reads.filter(|(_, node)| cell.points.contains(&planner.graph.dag[*node].point));
        behind
            .filter_map(|(_, node)| match plan.state(node) {
                State::Cached(record) => Some((node, record)),
                _ => None,
            })
            .collect()
    }
}

/// Why there is no table that is up to date.
pub fn no_table(planner: &Planner) -> CommandError {
    let makes_cells =
        |node: NodeIndex| planner.kind(node).outputs.iter().any(|output| output.purpose == Purpose::Cells);
    match planner.graph.dag.node_indices().any(makes_cells) {
        true => CommandError::refused(
            "there is no results table that is up to date",
            "`siteline run` makes it; `siteline plan` shows what is missing".to_owned(),
        ),
        false => CommandError::refused(
            "no stage of this manifest makes a results table",
            "`table: {uses: table, needs: {scores: evaluate}}` makes one of scores".to_owned(),
        ),
    }
}

/// Every results table of the plan that is up to date.
pub fn find_tables(planner: &Planner, plan: &Plan) -> Result<Vec<ResultsTable>, CommandError> {
    let mut tables = Vec::new();
    for node in planner.graph.order.iter().copied() {
        let cells = planner.kind(node).outputs.iter().find(|output| output.purpose == Purpose::Cells);
        let (Some(cells), State::Cached(record)) = (cells, plan.state(node)) else { continue };
        let Some(output) = record.outputs.iter().find(|o| o.path == cells.path) else { continue };
        let bytes = planner.store.read(&output.digest)?;
        let cells = serde_json::from_slice(&bytes)
            .map_err(|e| CommandError::refused(format!("`{}` has unusable cells: {e}", record.instance), None))?;
        let stage = planner.graph.dag[node].stage.to_string();
        tables.push(ResultsTable { stage, node, record: record.clone(), cells });
    }
    Ok(tables)
}
