//! `siteline plan`

use std::collections::BTreeSet;
use std::process::ExitCode;

use clap::Args;
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
    /// As JSON on standard output; `siteline schema --plan` describes it
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
            println!("{}", printable::json(&json, true));
            return Ok(ExitCode::SUCCESS);
        }
        print!("{}", by_stage(&planner, &plan, None));
        for cost in SelectionCost::of(&planner) {
            println!("\n{}", cost.line());
        }
        if self.verbose {
            println!();
            for node in planner.graph.order.iter().filter(|n| planner.selected.contains(n)) {
                println!("{}", line(&planner, &plan, *node));
            }
        }
        let open = plan.open();
        std::mem::forget((planner, plan, project.graph.clone()));
        match open {
            0 => println!("\nEverything is up to date."),
            open => println!(
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
        State::Stale { reason } => format!("  run     {name}  because {reason}"),
        State::Waiting { on } => {
            let first = &planner.graph.dag[on[0]].name;
            let more = if on.len() > 1 { format!(" and {} more", on.len() - 1) } else { String::new() };
            format!("  wait    {name}  for {first}{more}")
        }
        State::NotSelected => format!("  -       {name}"),
    }
}

/// A table of stages: cached, run, wait; of some instances, if only they are `shown`.
pub fn by_stage(planner: &Planner, plan: &Planned, shown: Option<&BTreeSet<NodeIndex>>) -> String {
    let mut text = format!("{:24} {:>8} {:>8} {:>8} {:>8}\n", "stage", "all", "cached", "run", "wait");
    for stage in planner.loaded.manifest.stages.keys() {
        let (mut cached, mut stale, mut waiting) = (0, 0, 0);
        let asked = |node: &NodeIndex| shown.is_none_or(|shown| shown.contains(node));
        for node in planner.graph.dag.node_indices().filter(|n| *planner.graph.dag[*n].stage == **stage).filter(asked) {
            match plan.state(node) {
                State::Cached(_) => cached += 1,
                State::Stale { .. } => stale += 1,
                State::Waiting { .. } => waiting += 1,
                State::NotSelected => {}
            }
        }
        let all = cached + stale + waiting;
        if shown.is_some() && all == 0 {
            continue;
        }
        text.push_str(&format!("{stage:24} {all:>8} {cached:>8} {stale:>8} {waiting:>8}\n"));
    }
    text
}
