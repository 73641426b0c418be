//! `siteline diff`

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use clap::Args;
use siteline_cache::{Access, InstanceOutcome, Record, RunRow, Store};
use siteline_pipeline::why;

use super::{Outcome, count};
use crate::args::Common;
use crate::diagnostic::CommandError;
use crate::project::{Project, pattern};

/// Show what differs between two runs: instances that came or went, what changed in their keys, their metrics.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  siteline diff 20261121-120000-00042 20261122-090000-00099\n  siteline diff previous last --only 'train[held_out=C]'"
)]
pub struct Diff {
    /// The earlier run, by its id or the beginning of it; `last` and `previous` are the latest two
    #[arg(default_value = "previous")]
    before: String,
    /// The later run
    #[arg(default_value = "last")]
    after: String,
    /// Only instances that fit; may be repeated
    #[arg(long, value_name = "PATTERN")]
    only: Vec<String>,
}

impl Diff {
    pub fn run(self, common: &Common) -> Outcome {
        let project = Project::open(common, Access::Read)?;
        let name = &project.loaded.manifest.name;
        let runs: Vec<RunRow> = project.store.runs().into_iter().filter(|run| run.manifest == *name).collect();
        let (before, after) = (find(&runs, &self.before)?, find(&runs, &self.after)?);
        let only = self.only.iter().map(|text| pattern(text)).collect::<Result<Vec<_>, _>>()?;
        let (old, new) = (by_instance(&project.store, &before.id), by_instance(&project.store, &after.id));
        let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        if let Some(idle) = only.iter().find(|only| !names.iter().any(|name| only.fits_name(name))) {
            return Err(CommandError::request(
                format!("neither run has an instance that fits `{idle}`"),
                "`siteline plan -v` shows the instances of the manifest".to_owned(),
            ));
        }
        println!("before  {} ({}): {}", before.id, before.state(), before.command);
        println!("after   {} ({}): {}", after.id, after.state(), after.command);
        let mut same = 0;
        for instance in names.into_iter().filter(|name| only.is_empty() || only.iter().any(|o| o.fits_name(name))) {
            match (old.get(instance), new.get(instance)) {
                (Some(_), None) => println!("- {instance}"),
                (None, Some(now)) => println!("+ {instance}  {}", now.outcome),
                (Some(was), Some(now)) if was.key == now.key && (was.outcome == now.outcome || now.key.is_some()) => {
                    same += 1;
                }
                (Some(was), Some(now)) => changed(&project.store, instance, was, now),
                (None, None) => {}
            }
        }
        println!("{} the same.", count(same, "instance"));
        Ok(ExitCode::SUCCESS)
    }
}

fn by_instance(store: &Store, run: &str) -> BTreeMap<String, InstanceOutcome> {
    store.outcomes(run).into_iter().map(|outcome| (outcome.instance.clone(), outcome)).collect()
}

fn changed(store: &Store, instance: &str, was: &InstanceOutcome, now: &InstanceOutcome) {
    println!("~ {instance}  {} -> {}", was.outcome, now.outcome);
    if let Some(message) = &now.message {
        println!("    {message}");
    }
    let record = |outcome: &InstanceOutcome| outcome.key.and_then(|key| store.record(&key));
    let (Some(before), Some(after)) = (record(was), record(now)) else { return };
    if let Ok(parts) = after.parts.read() {
        why::changes(&before, &parts).iter().for_each(|change| println!("    {change}"));
    }
    metrics(&before, &after);
}

fn metrics(before: &Record, after: &Record) {
    for (name, value) in &after.metrics {
        match before.metrics.get(name) {
            Some(old) if old == value => {}
            Some(old) => println!("    metric {name}: {old} -> {value} ({:+.4})", value - old),
            None => println!("    metric {name}: new, {value}"),
        }
    }
}

fn find<'r>(runs: &'r [RunRow], wanted: &str) -> Result<&'r RunRow, CommandError> {
    let place = match wanted {
        "last" => Some(0),
        "previous" => Some(1),
        _ => None,
    };
    let found: Vec<&RunRow> = match place {
        Some(place) => runs.get(place).into_iter().collect(),
        None => runs.iter().filter(|run| run.id.starts_with(wanted)).collect(),
    };
    match found.as_slice() {
        [one] => Ok(one),
        others => {
            let what = if others.is_empty() { "there is no run" } else { "several runs begin with" };
            let known: Vec<_> = runs.iter().take(5).map(|run| run.id.as_str()).collect();
            Err(CommandError::request(
                format!("{what} `{wanted}`"),
                format!("the latest runs are {}", known.join(", ")),
            ))
        }
    }
}
