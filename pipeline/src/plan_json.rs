//! A plan as `siteline plan --json` prints it; [`schema`] describes it.

use std::collections::BTreeMap;

use petgraph::graph::NodeIndex;
use schemars::JsonSchema;
use serde::Serialize;

use crate::manifest::selection::{self, Protocol};
use crate::plan::{Plan, Planner, State};
use crate::why::Reason;

/// What would run and why.
#[derive(Debug, Serialize, JsonSchema)]
pub struct PlanJson {
    /// The manifest's name.
    pub manifest: String,
    /// What model selection costs, stage by stage.
    pub selections: Vec<SelectionCost>,
    /// The instances that were chosen, each behind what it needs.
    pub instances: Vec<InstanceJson>,
}

/// What a stage's model selection costs, all of its sweep counted.
#[derive(Debug, Serialize, JsonSchema)]
pub struct SelectionCost {
    /// The stage.
    pub stage: String,
    /// How it chooses.
    pub protocols: Vec<Protocol>,
    /// The axes whose values are the candidates.
    pub among: Vec<String>,
    /// Trainings without the held-out site.
    pub without_one: usize,
    /// Trainings without each pair of sites, for leave-one-domain-out.
    pub without_two: usize,
    /// Held-out sites.
    pub sites: usize,
    /// Pairs of them, where any protocol needs them.
    pub pairs: usize,
}

/// One instance.
#[derive(Debug, Serialize, JsonSchema)]
pub struct InstanceJson {
    /// `train[method=mcdrl,seed=0]`.
    pub instance: String,
    /// Its stage.
    pub stage: String,
    /// Its values by axis.
    pub point: BTreeMap<String, String>,
    /// Where it stands.
    #[serde(flatten)]
    pub state: StateJson,
}

/// Where an instance stands.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum StateJson {
    /// Its result is in the store.
    Cached {
        /// Its key, 64 hexadecimal digits.
        key: String,
        /// The run that made it.
        run: String,
    },
    /// It must run.
    Run {
        /// The key of the result that it will make.
        key: String,
        /// Why, part by part.
        why: Reason,
        /// Why, in words.
        because: String,
    },
    /// It reads what is made anew; it runs unless that comes out as before.
    Wait {
        /// The instances that it waits for.
        on: Vec<String>,
    },
    /// It was not chosen.
    NotSelected,
}

/// The JSON Schema of what `siteline plan --json` prints.
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(PlanJson).to_value()
}

impl PlanJson {
    /// A plan of the instances that were chosen.
    pub fn of(planner: &Planner, plan: &Plan) -> Self {
        let chosen = planner.graph.order.iter().filter(|node| planner.selected.contains(node));
        Self {
            manifest: planner.loaded.manifest.name.clone(),
            selections: SelectionCost::of(planner),
            instances: chosen.map(|node| InstanceJson::of(planner, plan, *node)).collect(),
        }
    }
}

impl InstanceJson {
    /// An instance as it was planned.
    pub fn of(planner: &Planner, plan: &Plan, node: NodeIndex) -> Self {
        let instance = &planner.graph.dag[node];
        let state = match plan.state(node) {
            State::Cached(hit) => StateJson::Cached { key: hit.key.to_string(), run: hit.run.clone() },
            State::Stale { key, reason } => {
                StateJson::Run { key: key.to_string(), because: reason.to_string(), why: reason.clone() }
            }
            State::Waiting { on } => {
                StateJson::Wait { on: on.iter().map(|node| planner.graph.dag[*node].name.clone()).collect() }
            }
            State::NotSelected => StateJson::NotSelected,
        };
        let point = instance.point.iter().map(|(axis, value)| (axis.clone(), value.clone())).collect();
        Self { instance: instance.name.clone(), stage: instance.stage.to_string(), point, state }
    }
}

impl SelectionCost {
    /// Of every stage that selects.
    pub fn of(planner: &Planner) -> Vec<Self> {
        let counts = planner.graph.by_stage();
        let values = |axis: &str| planner.loaded.axes.get(axis).map_or(0, |axis| axis.listed);
        let cost = |(name, stage): (&String, &crate::manifest::Stage)| {
            let selection = stage.selection.as_ref()?;
            let pairs = selection::pairs_of(name);
            let without_two = counts.get(pairs.as_str()).copied().unwrap_or(0);
            Some(Self {
                stage: name.clone(),
                protocols: selection.protocol.list().to_vec(),
                among: selection.among.clone(),
                without_one: counts.get(name.as_str()).copied().unwrap_or(0),
                without_two,
                sites: values(&selection.held_out),
                pairs: if without_two > 0 { values(selection::LEFT_OUT) } else { 0 },
            })
        };
        planner.loaded.manifest.stages.iter().filter_map(cost).collect()
    }

    /// In words.
    pub fn line(&self) -> String {
        let protocols: Vec<&str> = self.protocols.iter().map(|protocol| protocol.name()).collect();
        let each = match self.pairs {
            0 => format!("{} trainings for each candidate", self.sites),
            pairs => format!("{} + {pairs} trainings for each candidate", self.sites),
        };
        let all = self.without_one + self.without_two;
        let (stage, among) = (&self.stage, self.among.join(", "));
        format!("{stage} chooses among {among} by {}: {each} and repetition, {all} in all", protocols.join(", "))
    }
}
