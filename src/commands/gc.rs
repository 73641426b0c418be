//! `siteline gc`

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use siteline_cache::{Access, Keep, Store};
use siteline_pipeline::plan::State;

use super::{Outcome, count};
use crate::args::Common;
use crate::project::Project;

/// Show what of the store is no longer needed, and with `--yes` remove it.
///
/// Kept are the results of this manifest that are up to date, those of each manifest's latest finished run, those of the last
/// days, and whatever they were made from. A store that a run is using is left alone.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  siteline gc\n  siteline gc --keep-days 0 --yes")]
pub struct Gc {
    /// Keep executions of the last N days
    #[arg(long, value_name = "N", default_value_t = 7)]
    keep_days: u64,
    /// Remove it
    #[arg(long)]
    yes: bool,
}

impl Gc {
    pub fn run(self, common: &Common) -> Outcome {
        let project = Project::open(common, Access::Read)?;
        let mut planner = project.planner()?;
        let plan = planner.plan()?;
        let current = plan.states.iter().filter_map(|state| match state {
            State::Cached(record) => Some(record.key),
            _ => None,
        });
        let store = Store::open(project.store.root(), Access::Write)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
        let keep = Keep {
            finished_after_ms: now.saturating_sub(self.keep_days.saturating_mul(86_400_000)),
            keys: current.collect(),
        };
        let plan = store.plan_gc(&keep)?;
        for run in &plan.damaged_runs {
            println!(
                "  {} cannot be read, so no result is removed; remove it if nobody needs what it tells",
                run.display()
            );
        }
        for record in &plan.records {
            println!("  {}  {}", record.key.short(), record.instance);
        }
        let size = plan.bytes() as f64 / 1e6;
        let what = format!(
            "{} and {} ({size:.1} MB)",
            count(plan.records.len(), "execution"),
            count(plan.files.len(), "file")
        );
        if self.yes {
            store.apply_gc(&plan, &format!("gc-{now}"))?;
            println!("Removed {what}; {} kept.", count(plan.kept.len(), "execution"));
        } else {
            println!(
                "{what} would go, {} stay. `siteline gc --yes` removes them.",
                count(plan.kept.len(), "execution")
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}
