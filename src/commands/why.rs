//! `siteline why`

use std::collections::HashMap;
use std::process::ExitCode;

use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use siteline_cache::{Access, Hit};
use siteline_pipeline::plan::{Plan, Planner, State};
use siteline_pipeline::plan_json::{InstanceJson, StateJson};
use siteline_pipeline::why::{self, Change, Reason};
use siteline_pipeline::{NodeIndex, printable};

use super::Outcome;
use super::history::{self, FailedIn};
use crate::args::Common;
use crate::project::{Project, find_instances};

/// Say why instances would run, or that they would not: which part of the key differs from the last execution.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  siteline why 'train[method=mcdrl,held_out=C,seed=0]'\n  siteline why 'train[seed=*]' table"
)]
pub struct Why {
    /// The instances; axes that are left out may be anything
    #[arg(required = true, value_name = "PATTERN")]
    instances: Vec<String>,
    /// Show every difference, however many there are
    #[arg(short, long)]
    verbose: bool,
    /// As JSON on standard output; `siteline schema --json-of why` describes it
    #[arg(long)]
    json: bool,
}

/// Where an instance stands, and why.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Explanation {
    /// The instance, and its state.
    #[serde(flatten)]
    planned: InstanceJson,
    /// What it reads and what must be made first.
    waits_for: Vec<InstanceJson>,
    /// What would differ from its last execution if everything that it reads came out as it did then.
    own_changes: Vec<Change>,
    /// Where it has no result: the last run in which it failed.
    failed: Option<FailedIn>,
}

impl Why {
    pub fn run(self, common: &Common) -> Outcome {
        let project = Project::open(common, Access::Read)?;
        let mut planner = project.planner()?;
        let plan = planner.plan()?;
        let nodes = find_instances(&planner, &self.instances)?;
        let most = if self.verbose { usize::MAX } else { MOST };
        let is_new = |node: &NodeIndex| matches!(plan.state(*node), State::Stale { reason: Reason::New, .. });
        let name = |node: &NodeIndex| planner.graph.dag[*node].name.clone();
        let new: Vec<String> = nodes.iter().filter(|node| is_new(node)).map(name).collect();
        let mut outcomes = if new.is_empty() { HashMap::new() } else { history::outcomes_of(&project, &new) };
        let mut all = Vec::new();
        for node in nodes {
            let mut explanation = Explanation::of(&mut planner, &plan, node);
            let outcomes = outcomes.remove(&explanation.planned.instance);
            explanation.failed = outcomes.and_then(|of| of.failures.into_iter().next());
            match self.json {
                true => all.push(explanation),
                false => outln!("{}", explanation.text(most)),
            }
        }
        if self.json {
            outln!("{}", printable::json(&all, true));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// As many lines of a kind are shown of an instance where not all are asked for: a site may have thousands of images.
const MOST: usize = 20;

impl Explanation {
    fn of(planner: &mut Planner, plan: &Plan, node: NodeIndex) -> Self {
        let planned = InstanceJson::of(planner, plan, node);
        let (waits_for, own_changes) = match plan.state(node) {
            State::Waiting { on } => {
                let on = on.iter().map(|needed| InstanceJson::of(planner, plan, *needed)).collect();
                (on, own_changes(planner, node))
            }
            _ => (Vec::new(), Vec::new()),
        };
        Self { planned, waits_for, own_changes, failed: None }
    }

    fn text(&self, most: usize) -> String {
        let name = &self.planned.instance;
        match &self.planned.state {
            StateJson::Cached { key, run } => format!("{name} is up to date (key {}, made by run {run}).", &key[..12]),
            StateJson::Run { why, .. } => {
                let failed =
                    self.failed.as_ref().map(|FailedIn { run, message }| format!("; it failed in {run}: {message}"));
                format!("{name} must run: {}{}", spelled(why, most), failed.unwrap_or_default())
            }
            StateJson::Wait { .. } => {
                let mut lines = vec![format!("{name} waits for what it reads:")];
                let needed = self.waits_for.iter().map(|needed| match &needed.state {
                    StateJson::Run { why, .. } => format!("{} must run: {}", needed.instance, spelled(why, most)),
                    _ => format!("{} waits itself", needed.instance),
                });
                lines.extend(listed(needed, most, "instances"));
                if !self.own_changes.is_empty() {
                    lines.push("Apart from that, of its own:".to_owned());
                    lines.extend(listed(self.own_changes.iter().map(Change::to_string), most, "differences"));
                }
                lines.join("\n")
            }
            StateJson::NotSelected => format!("{name} is not part of the plan."),
        }
    }
}

fn spelled(reason: &Reason, most: usize) -> String {
    match reason {
        Reason::Changed { changes } => {
            let lines = listed(changes.iter().map(Change::to_string), most, "differences");
            let lines: Vec<_> = lines.map(|line| format!("\n{line}")).collect();
            format!("since its last execution{}", lines.concat())
        }
        other => other.to_string(),
    }
}

/// The first of a list, each on a line of its own, and a line that counts the `things` that are left.
fn listed(all: impl ExactSizeIterator<Item = String>, most: usize, things: &str) -> impl Iterator<Item = String> {
    let left = all.len().saturating_sub(most);
    // A line that says that there is one more line says less than that line.
    let shown = if left > 1 { most } else { all.len() };
    let more = (left > 1).then(|| format!("  and {left} more {things} (`-v` shows all)"));
    all.take(shown).map(|line| format!("  {line}")).chain(more)
}

/// Differences that do not come from upstream: what its key would say if it read what its last execution read.
fn own_changes(planner: &mut Planner, node: NodeIndex) -> Vec<Change> {
    let manifest = planner.loaded.manifest.name.clone();
    let name = planner.graph.dag[node].name.clone();
    let Ok(executions) = planner.store.executions_of(&manifest, &name) else { return Vec::new() };
    let Some(last) = executions.iter().find_map(|e| planner.store.record(&e.key)) else { return Vec::new() };
    let inputs: Vec<(String, Hit)> = last
        .inputs
        .iter()
        .filter_map(|i| planner.store.record(&i.key).map(|r| (i.instance.clone(), r.hit())))
        .collect();
    let graph = planner.graph.clone();
    let known =
        |needed: NodeIndex| inputs.iter().find(|(instance, _)| *instance == graph.dag[needed].name).map(|(_, hit)| hit);
    if graph.reads(node).any(|(_, needed)| known(needed).is_none()) {
        return Vec::new();
    }
    let Ok(parts) = planner.parts(node, &|needed| known(needed).expect("every input was looked up")) else {
        return Vec::new();
    };
    let Ok(parts) = parts.read() else { return Vec::new() };
    why::changes(&last, &parts)
}
