//! `siteline plan`

use std::collections::BTreeSet;
use std::process::ExitCode;

use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use siteline_cache::Access;
use siteline_pipeline::NodeIndex;
use siteline_pipeline::plan::{Plan as Planned, Planner, State};
use siteline_pipeline::plan_json::{PlanJson, SelectionCost};
use siteline_pipeline::printable;

use super::{Outcome, count};
use crate::args::{Chosen, Common};
use crate::project::Project;

/// Show what would run and why, without running anything.
///
/// Counts by stage: how many instances are cached, must run, or wait for one that runs. An instance that waits may turn out
/// cached after all: if what it reads comes out with the same bytes, the wave stops there. Leakage is refused here.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  siteline plan\n  siteline plan -v --only 'train[method=mcdrl]'\n  siteline plan --set stages.train.with.epochs=2 --json"
)]
pub struct Plan {
    #[command(flatten)]
    chosen: Chosen,
    /// Show each instance, with the reason why it runs
    #[arg(short, long)]
    verbose: bool,
    /// As JSON on standard output; `siteline schema --json-of plan` describes it
    #[arg(long)]
    json: bool,
}

impl Plan {
    pub fn run(self, common: &Common) -> Outcome {
        let project = Project::open(common, Access::Read)?;
        let mut planner = project.planner_of(&self.chosen)?;
        let plan = planner.plan()?;
        planner.refuse_contaminated(&plan)?;
        if self.json {
            let json = PlanJson::of(&planner, &plan);
            outln!("{}", printable::json(&json, true));
            return Ok(ExitCode::SUCCESS);
        }
        out!("{}", by_stage(&StageCount::of_all(&planner, &plan, None)));
        for cost in SelectionCost::of(&planner) {
            outln!("\n{}", cost.line());
        }
        if self.verbose {
            outln!();
            for node in planner.graph.order.iter().filter(|n| planner.selected.contains(n)) {
                outln!("{}", line(&planner, &plan, *node));
            }
        }
        let open = plan.open();
        std::mem::forget((planner, plan, project.graph.clone()));
        match open {
            0 => outln!("\nEverything is up to date."),
            open => outln!(
                "\n{} to run. `siteline run` runs them; `siteline plan -v` says why each.",
                count(open, "instance")
            ),
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn line(planner: &Planner, plan: &Planned, node: NodeIndex) -> String {
    let name = &planner.graph.dag[node].name;
    match plan.state(node) {
        State::Cached(record) => format!("  cached  {name}  ({})", record.key.short()),
        State::Stale { reason, .. } => format!("  run     {name}  because {reason}"),
        State::Waiting { on } => {
            let first = &planner.graph.dag[on[0]].name;
            let more = if on.len() > 1 { format!(" and {} more", on.len() - 1) } else { String::new() };
            format!("  wait    {name}  for {first}{more}")
        }
        State::NotSelected => format!("  -       {name}"),
    }
}

/// How many instances of a stage stand where.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub struct StageCount {
    /// The stage.
    stage: String,
    /// Instances in all.
    all: usize,
    /// Their results are in the store.
    cached: usize,
    /// They must run.
    run: usize,
    /// They read what is made anew.
    wait: usize,
}

impl StageCount {
    /// Counts all instances, or those that are `shown`; stages that have none of these are left out.
    pub fn of_all(planner: &Planner, plan: &Planned, shown: Option<&BTreeSet<NodeIndex>>) -> Vec<Self> {
        let stages = &planner.loaded.manifest.stages;
        let mut counts: Vec<Self> =
            stages.keys().map(|stage| Self { stage: stage.clone(), ..Self::default() }).collect();
        let asked = |node: &NodeIndex| shown.is_none_or(|shown| shown.contains(node));
        for node in planner.graph.dag.node_indices().filter(asked) {
            let place = stages.get_index_of(planner.graph.dag[node].stage.as_ref()).expect("instances are of stages");
            let count = &mut counts[place];
            match plan.state(node) {
                State::Cached(_) => count.cached += 1,
                State::Stale { .. } => count.run += 1,
                State::Waiting { .. } => count.wait += 1,
                State::NotSelected => continue,
            }
            count.all += 1;
        }
        counts.retain(|count| shown.is_none() || count.all > 0);
        counts
    }
}

/// A table of stages: cached, run, wait.
pub fn by_stage(counts: &[StageCount]) -> String {
    let mut text = format!("{:24} {:>8} {:>8} {:>8} {:>8}\n", "stage", "all", "cached", "run", "wait");
    for StageCount { stage, all, cached, run, wait } in counts {
        text.push_str(&format!("{stage:24} {all:>8} {cached:>8} {run:>8} {wait:>8}\n"));
    }
    text
}
