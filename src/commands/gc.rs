//! `siteline gc`

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use siteline_cache::{Access, Digest, GcPlan, Keep, Store};
use siteline_pipeline::plan::State;
use siteline_pipeline::printable;

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
    /// As JSON on standard output; `siteline schema --json-of gc` describes it
    #[arg(long)]
    json: bool,
}

/// What is no longer needed.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Superfluous {
    /// Whether it was removed.
    removed: bool,
    /// Executions whose results nothing needs.
    executions: Vec<OldExecution>,
    /// Files: the objects of those executions, and leftovers of killed runs.
    files: usize,
    /// Folders of leftovers, and of commands that are kept for the next run.
    folders: usize,
    /// Bytes that the files take.
    bytes: u64,
    /// Executions that stay.
    kept: usize,
    /// Runs that cannot be read any more, so that no result is removed.
    damaged_runs: Vec<PathBuf>,
}

/// An execution whose result nothing needs.
#[derive(Debug, Serialize, JsonSchema)]
struct OldExecution {
    /// The key that it ran under.
    #[schemars(with = "String")]
    key: Digest,
    /// The instance.
    instance: String,
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
        if self.yes {
            store.apply_gc(&plan, &format!("gc-{now}"))?;
        }
        let found = Superfluous::of(&plan, self.yes);
        if self.json {
            outln!("{}", printable::json(&found, true));
        } else {
            found.show();
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Superfluous {
    fn of(plan: &GcPlan, removed: bool) -> Self {
        let executions = plan.records.iter();
        Self {
            removed,
            executions: executions
                .map(|record| OldExecution { key: record.key, instance: record.instance.clone() })
                .collect(),
            files: plan.files.len(),
            folders: plan.folders.len(),
            bytes: plan.bytes(),
            kept: plan.kept.len(),
            damaged_runs: plan.damaged_runs.clone(),
        }
    }

    fn show(&self) {
        for run in &self.damaged_runs {
            outln!(
                "  {} cannot be read, so no result is removed; remove it if nobody needs what it tells",
                run.display()
            );
        }
        for execution in &self.executions {
            outln!("  {}  {}", execution.key.short(), execution.instance);
        }
        let (executions, files) = (count(self.executions.len(), "execution"), count(self.files, "file"));
        let what = match self.folders {
            0 => format!("{executions} and {files}"),
            folders => format!("{executions}, {files} and {}", count(folders, "folder")),
        };
        let what = format!("{what} ({:.1} MB)", self.bytes as f64 / 1e6);
        match self.removed {
            true => outln!("Removed {what}; {} kept.", count(self.kept, "execution")),
            false => {
                outln!("{what} would go, {} stay. `siteline gc --yes` removes them.", count(self.kept, "execution"));
            }
        }
    }
}
