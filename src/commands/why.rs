//! `siteline why`

use std::process::ExitCode;

use clap::Args;
use siteline_cache::{Access, Hit};
use siteline_pipeline::NodeIndex;
use siteline_pipeline::plan::{Plan, Planner, State};
use siteline_pipeline::why::{self, Reason};

use super::Outcome;
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
}

impl Why {
    pub fn run(self, common: &Common) -> Outcome {
        let project = Project::open(common, Access::Read)?;
        let mut planner = project.planner()?;
        let plan = planner.plan()?;
        for node in find_instances(&planner, &self.instances)? {
            explain(&mut planner, &plan, node);
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn explain(planner: &mut Planner, plan: &Plan, node: NodeIndex) {
    let name = planner.graph.dag[node].name.clone();
    match plan.state(node) {
        State::Cached(hit) => println!("{name} is up to date (key {}, made by run {}).", hit.key.short(), hit.run),
        State::Stale { reason } => println!("{name} must run: {}", spelled(reason)),
        State::Waiting { on } => {
            println!("{name} waits for what it reads:");
            for needed in on {
                let needed_name = &planner.graph.dag[*needed].name;
                match plan.state(*needed) {
                    State::Stale { reason } => println!("  {needed_name} must run: {}", spelled(reason)),
                    _ => println!("  {needed_name} waits itself"),
                }
            }
            let own = own_changes(planner, node);
            if !own.is_empty() {
                println!("Apart from that, of its own:\n{}", own.join("\n"));
            }
        }
        State::NotSelected => println!("{name} is not part of the plan."),
    }
}

fn spelled(reason: &Reason) -> String {
    match reason {
        Reason::Changed { changes } => {
            let lines: Vec<_> = changes.iter().map(|change| format!("\n  {change}")).collect();
            format!("since its last execution{}", lines.concat())
        }
        other => other.to_string(),
    }
}

/// Differences that do not come from upstream: what its key would say if it read what its last execution read.
fn own_changes(planner: &mut Planner, node: NodeIndex) -> Vec<String> {
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
    why::changes(&last, &parts).iter().map(|change| format!("  {change}")).collect()
}
