//! The table so far: one cell for each score that the sweep asks for, filled as the scores come in, and a word for each that is
//! not there.

use std::collections::{BTreeMap, BTreeSet};

use siteline_cache::{InstanceOutcome, Store};
use siteline_pipeline::NodeIndex;
use siteline_pipeline::plan::{Plan, Planner, State};
use siteline_pipeline::protocol::{Purpose, Role};

/// The axis that tables put into columns, where there is one.
const COLUMNS: &str = "held_out";
/// The axis that tables take means over.
const OVER: &str = "seed";

/// A table of scores, some of which may be missing.
pub struct Partial {
    metric: String,
    columns: Vec<String>,
    rows: BTreeMap<String, BTreeMap<String, Cell>>,
    /// Scores that are in, and all.
    pub there: usize,
    /// Scores in all.
    pub all: usize,
}

#[derive(Default)]
struct Cell {
    values: Vec<f64>,
    planned: usize,
    causes: BTreeSet<&'static str>,
}

impl Partial {
    /// The table of what a plan has; `outcomes` tells what became of the rest in the last run. `None` where the sweep scores nothing.
    pub fn of(planner: &Planner, plan: &Plan, store: &Store, outcomes: &[InstanceOutcome]) -> Option<Self> {
        let scorers: Vec<NodeIndex> =
            planner.graph.order.iter().copied().filter(|node| scores(planner, *node)).collect();
        let outcome: BTreeMap<&str, &str> =
            outcomes.iter().map(|outcome| (outcome.instance.as_str(), outcome.outcome.as_str())).collect();
        let mut table = Self { metric: String::new(), columns: Vec::new(), rows: BTreeMap::new(), there: 0, all: 0 };
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
            let cell = table.rows.entry(row.join(" ")).or_default().entry(column).or_default();
            cell.planned += 1;
            table.all += 1;
            let metrics = match plan.state(node) {
                State::Cached(hit) => store.record(&hit.key).map(|record| record.metrics),
                _ => None,
            };
            let found = metrics.and_then(|metrics| {
                if table.metric.is_empty() {
                    table.metric = chosen(&metrics)?;
                }
                metrics.get(&table.metric).copied()
            });
            match found {
                Some(value) => {
                    cell.values.push(value);
                    table.there += 1;
                }
                None => {
                    cell.causes.insert(cause(plan.state(node), outcome.get(instance.name.as_str()).copied()));
                }
            }
        }
        (table.all > 0).then_some(table)
    }

    /// As text: means over the seeds that are in.
    pub fn text(&self) -> String {
        let name = if self.metric.is_empty() { "score" } else { &self.metric };
        let mut text = format!("{name}, {} of {} scores are in\n", self.there, self.all);
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
        text
    }
}

impl Cell {
    fn text(&self) -> String {
        if self.values.is_empty() {
            return self.causes.iter().copied().collect::<Vec<_>>().join("/");
        }
        let mean = self.values.iter().sum::<f64>() / self.values.len() as f64;
        match self.values.len() == self.planned {
            true => format!("{mean:.3}"),
            false => format!("{mean:.3} ({}/{})", self.values.len(), self.planned),
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
