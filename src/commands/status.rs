//! `siteline status`

use std::collections::{BTreeSet, HashSet};
use std::process::ExitCode;

use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use siteline_cache::Access;
use siteline_pipeline::plan::{Plan, Planner, State};
use siteline_pipeline::{NodeIndex, printable};

use super::plan::{self, StageCount};
use super::{Outcome, RunJson, count, runs_of_others};
use crate::args::Common;
use crate::partial::Partial;
use crate::project::{Project, find_instances};

/// Show how far the experiment is: by stage, the last runs, what is at work, what failed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  siteline status\n  siteline status 'train[held_out=C]' evaluate")]
pub struct Status {
    /// Only these instances; axes that are left out may be anything
    #[arg(value_name = "PATTERN")]
    instances: Vec<String>,
    /// As JSON on standard output; `siteline schema --json-of status` describes it
    #[arg(long)]
    json: bool,
}

/// How far an experiment is.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Standing {
    /// The manifest's name.
    manifest: String,
    /// Its stages, in the manifest's order.
    stages: Vec<StageCount>,
    /// Instances that somebody is at work on at this moment.
    at_work: Vec<String>,
    /// How many runs the store knows.
    runs: usize,
    /// Whose runs the store has where it has none of this manifest's.
    of_others: Option<String>,
    /// The last of them.
    last: Option<RunJson>,
    /// What failed in the last run.
    failed: Vec<Failed>,
    /// The scores so far; none where the sweep scores nothing or only some instances were asked for.
    table: Option<Partial>,
}

/// An instance that failed.
#[derive(Debug, Serialize, JsonSchema)]
struct Failed {
    /// Its name.
    instance: String,
    /// Why.
    message: Option<String>,
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
        let standing = Standing::of(&project, &planner, &plan, shown.as_ref());
        if self.json {
            outln!("{}", printable::json(&standing, true));
        } else {
            standing.show();
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Standing {
    fn of(project: &Project, planner: &Planner, plan: &Plan, shown: Option<&BTreeSet<NodeIndex>>) -> Self {
        let name = project.loaded.manifest.name.clone();
        let asked = |node: NodeIndex| shown.is_none_or(|shown| shown.contains(&node));
        let name_of = |node: NodeIndex| planner.graph.dag[node].name.clone();
        let runs: Vec<_> = project.store.runs().into_iter().filter(|run| run.manifest == name).collect();
        let outcomes = runs.first().map(|last| project.store.outcomes(&last.id)).unwrap_or_default();
        let leases = project.store.leases().into_iter().filter(|(_, _, lives)| *lives);
        let held: HashSet<String> = leases.map(|(key, _, _)| key).collect();
        // Of what is at work all inputs are there, so that its key is known; one that runs again on purpose has its result already.
        // What a run was told by `--set` is not known here: its keys are others.
        let is_at_work = |node: &NodeIndex| match plan.state(*node) {
            _ if held.is_empty() => false,
            State::Stale { key, .. } => held.contains(&key.to_string()),
            State::Cached(hit) => held.contains(&hit.key.to_string()),
            State::Waiting { .. } | State::NotSelected => false,
        };
        let order = || planner.graph.order.iter().copied().filter(|node| asked(*node));
        let names: Option<HashSet<String>> = shown.map(|shown| shown.iter().copied().map(name_of).collect());
        let failed = outcomes.iter().filter(|o| o.outcome == "failed");
        let failed = failed.filter(|o| names.as_ref().is_none_or(|names| names.contains(&o.instance)));
        let table = shown.is_none().then(|| Partial::of(planner, plan, &project.store, &outcomes)).flatten();
        Self {
            stages: StageCount::of_all(planner, plan, shown),
            at_work: order().filter(is_at_work).map(name_of).collect(),
            runs: runs.len(),
            of_others: runs.is_empty().then(|| runs_of_others(&project.store, &name)).flatten(),
            last: runs.first().map(RunJson::of),
            failed: failed.map(|o| Failed { instance: o.instance.clone(), message: o.message.clone() }).collect(),
            table,
            manifest: name,
        }
    }

    fn show(&self) {
        out!("{}", plan::by_stage(&self.stages));
        let Some(last) = &self.last else {
            outln!("\n`{}` was never run.", self.manifest);
            self.of_others.iter().for_each(|others| outln!("{others}"));
            return;
        };
        outln!("\nLast of {}: {} ({}): {}", count(self.runs, "run"), last.id, last.state, last.command);
        show_first(&self.at_work, |instance| outln!("  at work {instance}"));
        show_first(&self.failed, |Failed { instance, message }| {
            outln!("  failed  {instance}: {}", message.as_deref().unwrap_or("no word why"));
        });
        if let Some(table) = &self.table {
            outln!("\n{}", table.text().trim_end());
        }
    }
}

/// Shows the first of a list that may be long, and how many there are besides.
fn show_first<T>(all: &[T], show: impl Fn(&T)) {
    const MOST: usize = 10;
    all.iter().take(MOST).for_each(show);
    if all.len() > MOST {
        outln!("  and {} more", all.len() - MOST);
    }
}
