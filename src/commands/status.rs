//! `siteline status`

use std::collections::BTreeSet;
use std::process::ExitCode;

use clap::Args;
use siteline_cache::Access;
use siteline_pipeline::NodeIndex;

use super::{Outcome, count, plan};
use crate::args::Common;
use crate::partial::Partial;
use crate::project::{Project, find_instances};

/// Show how far the experiment is: by stage, the last runs, what failed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  siteline status\n  siteline status 'train[held_out=C]' evaluate")]
pub struct Status {
    /// Only these instances; axes that are left out may be anything
    #[arg(value_name = "PATTERN")]
    instances: Vec<String>,
}

impl Status {
    pub fn run(self, common: &Common) -> Outcome {
        let project = Project::open(common, Access::Read)?;
        let mut planner = project.planner()?;
        let plan = planner.plan()?;
        let shown: Option<BTreeSet<NodeIndex>> = match self.instances.is_empty() {
            true => None,
            false => Some(find_instances(&planner, &self.instances)?.into_iter().collect()),
        };
        print!("{}", plan::by_stage(&planner, &plan, shown.as_ref()));
        let name = &project.loaded.manifest.name;
        let runs: Vec<_> = project.store.runs().into_iter().filter(|run| run.manifest == *name).collect();
        match runs.first() {
            None => println!("\n`{name}` was never run."),
            Some(last) => {
                println!("\nLast of {}: {} ({}): {}", count(runs.len(), "run"), last.id, last.state(), last.command);
                let outcomes = project.store.outcomes(&last.id);
                let names: Option<BTreeSet<&str>> =
                    shown.as_ref().map(|shown| shown.iter().map(|n| planner.graph.dag[*n].name.as_str()).collect());
                let asked = |name: &str| names.as_ref().is_none_or(|names| names.contains(name));
                let failed: Vec<_> = outcomes.iter().filter(|o| o.outcome == "failed" && asked(&o.instance)).collect();
                for outcome in failed.iter().take(10) {
                    println!("  failed  {}: {}", outcome.instance, outcome.message.as_deref().unwrap_or("no word why"));
                }
                if failed.len() > 10 {
                    println!("  and {} more", failed.len() - 10);
                }
                if shown.is_none()
                    && let Some(partial) = Partial::of(&planner, &plan, &project.store, &outcomes)
                {
                    println!("\n{}", partial.text().trim_end());
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
