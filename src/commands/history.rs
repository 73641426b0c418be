//! `siteline history`

use std::collections::{BTreeMap, HashMap};
use std::process::ExitCode;

use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use siteline_cache::{Access, Digest};
use siteline_pipeline::plan::State;
use siteline_pipeline::printable;
use siteline_pipeline::why::{self, Change};

use super::{Outcome, time_of};
use crate::args::Common;
use crate::diagnostic::CommandError;
use crate::project::{Project, find_past_instances};

/// Show every execution of instances that the store remembers, with what changed from one to the next.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  siteline history 'train[method=mcdrl,held_out=C,seed=0]'\n  siteline history 'train[held_out=C]'"
)]
pub struct History {
    /// The instances; axes that are left out may be anything
    #[arg(required = true, value_name = "PATTERN")]
    instances: Vec<String>,
    /// As JSON on standard output; `siteline schema --json-of history` describes it
    #[arg(long)]
    json: bool,
}

/// What the store remembers of an instance.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Past {
    /// The instance.
    instance: String,
    /// Whether the sweep has it still.
    in_sweep: bool,
    /// Runs in which it failed, the latest first.
    failures: Vec<FailedIn>,
    /// Runs that executed it once more under a key that had its result already; the earlier result counts.
    again: Vec<String>,
    /// Its executions, the latest first.
    executions: Vec<Execution>,
    /// Where it never ran itself: the instance and the run that made its result under the same key.
    result_of: Option<(String, String)>,
}

/// A run in which an instance failed.
#[derive(Debug, Serialize, JsonSchema)]
pub struct FailedIn {
    /// The run.
    pub run: String,
    /// What went wrong.
    pub message: String,
}

/// An execution that made a result.
#[derive(Debug, Serialize, JsonSchema)]
struct Execution {
    /// The key that it ran under.
    #[schemars(with = "String")]
    key: Digest,
    /// The run.
    run: String,
    /// Its end, in milliseconds since 1970.
    finished_ms: u64,
    /// How long it took.
    seconds: f64,
    /// Whether its record is gone, so that nothing more is known.
    gone: bool,
    /// What it measured.
    metrics: BTreeMap<String, f64>,
    /// What differs from the execution before.
    changes: Vec<Change>,
}

impl History {
    pub fn run(self, common: &Common) -> Outcome {
        let project = Project::open(common, Access::Read)?;
        let mut planner = project.planner()?;
        let found = find_past_instances(&project, &planner, &self.instances)?;
        let names: Vec<String> = found.iter().map(|(name, _)| name.clone()).collect();
        let mut outcomes = outcomes_of(&project, &names);
        let mut all = Vec::new();
        for (instance, node) in found.iter().cloned() {
            let executions = executions(&project, &instance)?;
            let Outcomes { failures, executed } = outcomes.remove(&instance).unwrap_or_default();
            // Under a key that another run has its result under, and still has.
            let repeats = |(run, key): &(String, Digest)| {
                let same = executions.iter().filter(|execution| execution.key == *key && !execution.gone);
                same.clone().next().is_some() && same.clone().all(|execution| execution.run != *run)
            };
            let again = executed.into_iter().filter(repeats).map(|(run, _)| run).collect();
            let in_sweep = node.is_some();
            all.push(Past { instance, in_sweep, failures, again, executions, result_of: None });
        }
        if all.iter().any(|past| past.executions.is_empty()) {
            let plan = planner.plan()?;
            for (past, (_, node)) in all.iter_mut().zip(&found).filter(|(past, _)| past.executions.is_empty()) {
                if let Some(State::Cached(hit)) = node.map(|node| plan.state(node)) {
                    past.result_of = Some((hit.instance.clone(), hit.run.clone()));
                }
            }
        }
        if self.json {
            outln!("{}", printable::json(&all, true));
            return Ok(ExitCode::SUCCESS);
        }
        for (place, past) in all.iter().enumerate() {
            if all.len() > 1 {
                outln!("{}{}", if place > 0 { "\n" } else { "" }, past.instance);
            }
            past.show();
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// What became of an instance in the runs, the latest first.
#[derive(Default)]
pub struct Outcomes {
    /// Runs in which it failed.
    pub failures: Vec<FailedIn>,
    /// The run, and the key of the result.
    executed: Vec<(String, Digest)>,
}

/// What became of some instances in all runs of the manifest. Each run is read once.
pub fn outcomes_of(project: &Project, names: &[String]) -> HashMap<String, Outcomes> {
    let mut all: HashMap<String, Outcomes> = names.iter().map(|name| (name.clone(), Outcomes::default())).collect();
    let manifest = &project.loaded.manifest.name;
    for run in project.store.runs().into_iter().filter(|run| run.manifest == *manifest) {
        for outcome in project.store.outcomes(&run.id) {
            let Some(of) = all.get_mut(&outcome.instance) else { continue };
            match (outcome.outcome.as_str(), outcome.key) {
                ("failed", _) => {
                    let message = outcome.message.unwrap_or_default();
                    of.failures.push(FailedIn { run: run.id.clone(), message });
                }
                ("executed", Some(key)) => of.executed.push((run.id.clone(), key)),
                _ => {}
            }
        }
    }
    all
}

/// The executions of an instance, the latest first.
fn executions(project: &Project, instance: &str) -> Result<Vec<Execution>, CommandError> {
    let executions = project.store.executions_of(&project.loaded.manifest.name, instance)?;
    let records: Vec<_> = executions.iter().map(|execution| project.store.record(&execution.key)).collect();
    let mut all = Vec::new();
    for (place, execution) in executions.into_iter().enumerate() {
        let record = records[place].as_ref();
        let before = records[place + 1..].iter().flatten().next();
        let parts = record.and_then(|record| record.parts.read().ok());
        let changes = before.zip(parts).map(|(before, parts)| why::changes(before, &parts)).unwrap_or_default();
        all.push(Execution {
            key: execution.key,
            run: execution.run,
            finished_ms: execution.finished_ms,
            seconds: execution.finished_ms.saturating_sub(execution.started_ms) as f64 / 1000.0,
            gone: record.is_none(),
            metrics: record.map(|record| record.metrics.clone()).unwrap_or_default(),
            changes,
        });
    }
    Ok(all)
}

impl Past {
    fn show(&self) {
        if !self.in_sweep {
            outln!("{} is no part of the sweep any more.", self.instance);
        }
        match &self.result_of {
            Some((instance, run)) => {
                let own = &self.instance;
                if instance == own {
                    // Before the manifest was renamed, or the ledger does not tell.
                    outln!("{own} has the result that was made in {run}.");
                } else {
                    outln!(
                        "{own} never ran itself: it has the result of {instance}, which has the same key and ran in {run}."
                    );
                }
            }
            None if self.executions.is_empty() && self.failures.is_empty() => {
                outln!("{} was never executed in this store.", self.instance);
            }
            None => {}
        }
        // Ids of runs begin with the time.
        let failed = self.failures.iter().map(|failed| (failed.run.as_str(), Met::Failed(failed)));
        let again = self.again.iter().map(|run| (run.as_str(), Met::Again));
        let done = self.executions.iter().map(|execution| (execution.run.as_str(), Met::Executed(execution)));
        let mut all: Vec<(&str, Met)> = failed.chain(again).chain(done).collect();
        all.sort_by(|(one, _), (other, _)| other.cmp(one));
        all.into_iter().for_each(|(run, met)| met.show(run));
    }
}

/// What became of an instance in a run.
enum Met<'p> {
    Failed(&'p FailedIn),
    Again,
    Executed(&'p Execution),
}

impl Met<'_> {
    fn show(&self, run: &str) {
        match self {
            Self::Failed(failed) => outln!("failed in run {run}: {}", failed.message),
            Self::Again => outln!("executed once more in run {run}; the earlier result counts"),
            Self::Executed(execution) => execution.show(),
        }
    }
}

impl Execution {
    fn show(&self) {
        let Self { key, run, finished_ms, seconds, .. } = self;
        outln!("{}  key {}  took {seconds:.1} s  in run {run}", time_of(*finished_ms), key.short());
        if self.gone {
            outln!("  its record is gone");
        }
        for (metric, value) in &self.metrics {
            outln!("  {metric} = {value}");
        }
        self.changes.iter().for_each(|change| outln!("  {change}"));
    }
}
