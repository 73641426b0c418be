//! `siteline history`

use std::collections::HashMap;
use std::process::ExitCode;

use clap::Args;
use siteline_cache::Access;
use siteline_pipeline::why;

use super::{Outcome, time_of};
use crate::args::Common;
use crate::diagnostic::CommandError;
use crate::project::{Project, find_instances};

/// Show every execution of instances that the store remembers, with what changed from one to the next.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  siteline history 'train[method=mcdrl,held_out=C,seed=0]'\n  siteline history 'train[held_out=C]'"
)]
pub struct History {
    /// The instances; axes that are left out may be anything
    #[arg(required = true, value_name = "PATTERN")]
    instances: Vec<String>,
}

impl History {
    pub fn run(self, common: &Common) -> Outcome {
        let project = Project::open(common, Access::Read)?;
        let planner = project.planner()?;
        let found = find_instances(&planner, &self.instances)?;
        let failures = failures(&project);
        for (place, node) in found.iter().enumerate() {
            let name = &planner.graph.dag[*node].name;
            if found.len() > 1 {
                println!("{}{name}", if place > 0 { "\n" } else { "" });
            }
            executions(&project, &failures, name)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// By instance: the runs in which it failed, the latest first, and why.
type Failures = HashMap<String, Vec<(String, String)>>;

fn failures(project: &Project) -> Failures {
    let mut found = Failures::new();
    let manifest = &project.loaded.manifest.name;
    for run in project.store.runs().into_iter().filter(|run| run.manifest == *manifest) {
        for outcome in project.store.outcomes(&run.id).into_iter().filter(|outcome| outcome.outcome == "failed") {
            let message = outcome.message.unwrap_or_default();
            found.entry(outcome.instance).or_default().push((run.id.clone(), message));
        }
    }
    found
}

/// Prints the executions of an instance, the latest first.
fn executions(project: &Project, failures: &Failures, name: &str) -> Result<(), CommandError> {
    let executions = project.store.executions_of(&project.loaded.manifest.name, name)?;
    let failed = failures.get(name).map(Vec::as_slice).unwrap_or_default();
    for (run, message) in failed {
        println!("failed in run {run}: {message}");
    }
    if executions.is_empty() {
        if failed.is_empty() {
            println!("{name} was never executed in this store.");
        }
        return Ok(());
    }
    let records: Vec<_> = executions.iter().map(|execution| project.store.record(&execution.key)).collect();
    for (place, execution) in executions.iter().enumerate() {
        let took = execution.finished_ms.saturating_sub(execution.started_ms) as f64 / 1000.0;
        let finished = time_of(execution.finished_ms);
        println!("{finished}  key {}  took {took:.1} s  in run {}", execution.key.short(), execution.run);
        let Some(record) = &records[place] else {
            println!("  its record is gone");
            continue;
        };
        for (metric, value) in &record.metrics {
            println!("  {metric} = {value}");
        }
        let before = records[place + 1..].iter().flatten().next();
        if let (Some(before), Ok(parts)) = (before, record.parts.read()) {
            why::changes(before, &parts).iter().for_each(|change| println!("  {change}"));
        }
    }
    Ok(())
}
