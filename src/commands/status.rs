//! `siteline status`

use std::process::ExitCode;

use clap::Args;
use siteline_cache::Access;

use super::{Outcome, count, plan};
use crate::args::Common;
use crate::partial::Partial;
use crate::project::Project;

/// Show how far the experiment is: by stage, the last runs, what failed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  siteline status\n  siteline status -m manifests/demo.yaml")]
pub struct Status {}

impl Status {
    pub fn run(self, common: &Common) -> Outcome {
        let project = Project::open(common, Access::Read)?;
        let mut planner = project.planner()?;
        let plan = planner.plan()?;
        print!("{}", plan::by_stage(&planner, &plan));
        let name = &project.loaded.manifest.name;
        let runs: Vec<_> = project.store.runs().into_iter().filter(|run| run.manifest == *name).collect();
        match runs.first() {
            None => println!("\n`{name}` was never run."),
            Some(last) => {
                println!("\nLast of {}: {} ({})", count(runs.len(), "run"), last.id, last.state());
                let outcomes = project.store.outcomes(&last.id);
                let failed: Vec<_> = outcomes.iter().filter(|o| o.outcome == "failed").collect();
                for outcome in failed.iter().take(10) {
                    println!("  failed  {}: {}", outcome.instance, outcome.message.as_deref().unwrap_or("no word why"));
                }
                if failed.len() > 10 {
                    println!("  and {} more", failed.len() - 10);
                }
                if let Some(partial) = Partial::of(&planner, &plan, &project.store, &outcomes) {
                    println!("\n{}", partial.text().trim_end());
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
