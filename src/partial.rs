//! The table so far: one cell for each score that the sweep asks for, filled as the scores come in, and a word for each that is
//! not there.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::Serialize;
use siteline_cache::{InstanceOutcome, Store};
use siteline_pipeline::NodeIndex;
use siteline_pipeline::leakage;
use siteline_pipeline::plan::{Plan, Planner, State};
use siteline_pipeline::protocol::{Purpose, Role};

/// The axis that tables put into columns, where there is one.
const COLUMNS: &str = "held_out";
/// The axis that tables take means over.
const OVER: &str = "seed";

/// A table of scores, some of which may be missing.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Partial {
    /// The metric that stands for a score; empty before the first is in.
    metric: String,
    /// The columns, in the manifest's order.
    columns: Vec<String>,
    /// Cells by row and column; what the sweep excludes has none.
    rows: BTreeMap<String, BTreeMap<String, Cell>>,
    /// The row and the column of each instance that scores.
    #[serde(skip)]
    places: BTreeMap<String, (String, String)>,
}

/// Scores by instance, and why others are not there.
#[derive(Debug, Default, Serialize, JsonSchema)]
struct Cell {
    /// The scores that are in, by instance.
    values: BTreeMap<String, f64>,
    /// Why others are not, by instance: `waiting`, `failed`, `blocked`, `not selected`, `no metric`.
    missing: BTreeMap<String, &'static str>,
}

impl Partial {
    /// The table of what a plan has; `outcomes` tells what became of the rest in the last run. `None` where the sweep scores nothing.
    pub fn of(planner: &Planner, plan: &Plan, store: &Store, outcomes: &[InstanceOutcome]) -> Option<Self> {
        let scorers = planner.graph.order.iter().copied().filter(|node| scores(planner, *node));
        let outcome: BTreeMap<&str, &str> =
            outcomes.iter().map(|outcome| (outcome.instance.as_str(), outcome.outcome.as_str())).collect();
        let mut table =
            Self { metric: String::new(), columns: Vec::new(), rows: BTreeMap::new(), places: BTreeMap::new() };
        let oracle = leakage::chosen_by_oracle(planner.loaded, &planner.graph);
        for node in scorers {
            let instance = &planner.graph.dag[node];
            let column = instance.point.get(COLUMNS).cloned().unwrap_or_else(|| "all".to_owned());
            if !table.columns.contains(&column) {
                table.columns.push(column.clone());
            }
            let row: Vec<&str> = instance
                .point
                .iter()
                .filter(|(axis, _)| ![COLUMNS, OVER].contains(&axis.as_str()))
                .map(|(_, value)| value.as_str())
                .collect();
            let mark = match (instance.in_domain, oracle[node.index()]) {
                (false, false) => "",
                (true, false) => " †",
                (false, true) => " ‡",
                (true, true) => " †‡",
            };
            table.places.insert(instance.name.clone(), (row.join(" ") + mark, column));
            table.lacks(&instance.name, cause(plan.state(node), outcome.get(instance.name.as_str()).copied()));
            if let State::Cached(hit) = plan.state(node)
                && let Some(record) = store.record(&hit.key)
            {
                table.scored(&instance.name, &record.metrics);
            }
        }
        (!table.places.is_empty()).then_some(table)
    }

    fn cell(&mut self, instance: &str) -> Option<&mut Cell> {
        let (row, column) = self.places.get(instance)?.clone();
        Some(self.rows.entry(row).or_default().entry(column).or_default())
    }

    /// Says why an instance's score is not there.
    pub fn lacks(&mut self, instance: &str, cause: &'static str) {
        if let Some(cell) = self.cell(instance) {
            cell.missing.insert(instance.to_owned(), cause);
        }
    }

    /// Takes in the metrics of an instance. Returns whether they are in the table.
    pub fn scored(&mut self, instance: &str, metrics: &BTreeMap<String, f64>) -> bool {
        if !self.places.contains_key(instance) {
            return false;
        }
        if self.metric.is_empty() {
            self.metric = chosen(metrics).unwrap_or_default();
        }
        let Some(value) = metrics.get(&self.metric).copied() else { return false };
        let Some(cell) = self.cell(instance) else { return false };
        cell.missing.remove(instance);
        cell.values.insert(instance.to_owned(), value);
        true
    }

    /// Scores that are in, and all.
    pub fn count(&self) -> (usize, usize) {
        let cells = self.rows.values().flat_map(BTreeMap::values);
        (cells.map(|cell| cell.values.len()).sum(), self.places.len())
    }

    /// As text: means over the seeds that are in.
    pub fn text(&self) -> String {
        let name = if self.metric.is_empty() { "score" } else { &self.metric };
        let (there, all) = self.count();
        let mut text = format!("{name}, {there} of {all} scores are in\n");
        let width = self.rows.keys().map(|row| row.chars().count()).max().unwrap_or(0).max(8);
        let cells = |row: &BTreeMap<String, Cell>| -> Vec<String> {
            self.columns.iter().map(|column| row.get(column).map_or("excluded".to_owned(), Cell::text)).collect()
        };
        let wide = self.rows.values().flat_map(cells).map(|c| c.chars().count());
        let cell = wide.chain(self.columns.iter().map(|c| c.chars().count())).max().unwrap_or(0);
        let line = |head: &str, cells: &[String]| {
            let cells: Vec<_> = cells.iter().map(|text| format!("{text:>cell$}")).collect();
            format!("  {head:width$}  {}\n", cells.join("  "))
        };
        text.push_str(&line("", &self.columns));
        self.rows.iter().for_each(|(name, row)| text.push_str(&line(name, &cells(row))));
        for (mark, words) in [("†", "in-domain"), ("‡", "chosen by an oracle")] {
            if self.rows.keys().any(|name| name.contains(mark)) {
                text.push_str(&format!("  {mark} {words}\n"));
            }
        }
        text
    }
}

impl Cell {
    fn text(&self) -> String {
        let causes: BTreeSet<&str> = self.missing.values().copied().collect();
        let causes = causes.into_iter().collect::<Vec<_>>().join("/");
        if self.values.is_empty() {
            return causes;
        }
        let mean = self.values.values().sum::<f64>() / self.values.len() as f64;
        match self.missing.len() {
            0 => format!("{mean:.3}"),
            missing => format!("{mean:.3} ({}/{}, {causes})", self.values.len(), self.values.len() + missing),
        }
    }
}

/// Whether an instance's metrics are what a results table shows.
fn scores(planner: &Planner, node: NodeIndex) -> bool {
    let kind = planner.kind(node);
    // Scores that only choose between candidates are no results.
    let chooses = planner.loaded.added.contains_key(planner.graph.dag[node].stage.as_ref());
    let scored = !chooses && kind.inputs.iter().any(|input| input.role == Role::Scored);
    let makes_table = |reader: NodeIndex| planner.kind(reader).outputs.iter().any(|o| o.purpose == Purpose::Cells);
    scored || planner.graph.readers(node).any(makes_table)
}

/// The metric that stands for a score.
fn chosen(metrics: &BTreeMap<String, f64>) -> Option<String> {
    let usual = ["dice", "iou", "accuracy"];
    let named = usual.iter().find_map(|usual| metrics.keys().find(|name| name.contains(usual)));
    named.or_else(|| metrics.keys().next()).cloned()
}

/// Why a score is not there.
fn cause(state: &State, outcome: Option<&str>) -> &'static str {
    match (state, outcome) {
        (State::Cached(_), _) => "no metric",
        (_, Some("failed")) => "failed",
        (_, Some("blocked")) => "blocked",
        (State::NotSelected, _) => "not selected",
        _ => "waiting",
    }
}
