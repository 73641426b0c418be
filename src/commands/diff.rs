//! `siteline diff`

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::process::ExitCode;

use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use siteline_cache::{Access, InstanceOutcome, Record, RunRow, Store};
use siteline_pipeline::printable;
use siteline_pipeline::run::Request;
use siteline_pipeline::why::{self, Change};

use super::{Outcome, RunJson, count, runs_of_others};
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
    /// As JSON on standard output; `siteline schema --json-of diff` describes it
    #[arg(long)]
    json: bool,
}

/// What differs between two runs.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Difference {
    /// The earlier run.
    before: RunJson,
    /// The later run.
    after: RunJson,
    /// Instances that the later run did not have.
    gone: Vec<String>,
    /// Instances that are part of the sweep and that the later run was not asked for.
    not_asked_for: Vec<String>,
    /// Instances that the earlier run did not have.
    new: Vec<NewInstance>,
    /// Whether the earlier run was asked for a part of the sweep alone, so that what is new to it may have been there before.
    before_is_partial: bool,
    /// Instances whose key or outcome differs.
    changed: Vec<ChangedInstance>,
    /// How many instances are the same.
    same: usize,
}

/// An instance that only the later run has.
#[derive(Debug, Serialize, JsonSchema)]
struct NewInstance {
    /// Its name.
    instance: String,
    /// What became of it.
    outcome: String,
}

/// An instance that differs.
#[derive(Debug, Serialize, JsonSchema)]
struct ChangedInstance {
    /// Its name.
    instance: String,
    /// What became of it in the earlier run.
    before: String,
    /// What became of it in the later run.
    after: String,
    /// Why it failed or could not run in the later run.
    message: Option<String>,
    /// What differs in its key; nothing where the record of one of the two results is gone.
    changes: Vec<Change>,
    /// Whether the record of one of the two results is gone, so that what changed is not known.
    unknown: bool,
    /// What differs in what it measured.
    metrics: Vec<ChangedMetric>,
}

/// A metric that differs.
#[derive(Debug, Serialize, JsonSchema)]
struct ChangedMetric {
    /// Its name.
    name: String,
    /// What it was, if it was there.
    before: Option<f64>,
    /// What it is, if it is there.
    after: Option<f64>,
}

impl Diff {
    pub fn run(self, common: &Common) -> Outcome {
        let project = Project::open(common, Access::Read)?;
        let name = &project.loaded.manifest.name;
        let runs: Vec<RunRow> = project.store.runs().into_iter().filter(|run| run.manifest == *name).collect();
        let others = || runs_of_others(&project.store, name);
        let (before, after) = (find(&runs, &self.before, others)?, find(&runs, &self.after, others)?);
        let only = self.only.iter().map(|text| pattern(text)).collect::<Result<Vec<_>, _>>()?;
        let (old, new) = (by_instance(&project.store, &before.id), by_instance(&project.store, &after.id));
        let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        if let Some(idle) = only.iter().find(|only| !names.iter().any(|name| only.fits_name(name))) {
            return Err(CommandError::request(
                format!("neither run has an instance that fits `{idle}`"),
                "`siteline plan -v` shows the instances of the manifest".to_owned(),
            ));
        }
        let is_partial = |run: &RunRow| {
            Request::read(&project.store.run_folder(&run.id)).is_some_and(|request| request.is_partial())
        };
        let mut found = Difference {
            before: RunJson::of(before),
            after: RunJson::of(after),
            gone: Vec::new(),
            not_asked_for: Vec::new(),
            new: Vec::new(),
            before_is_partial: is_partial(before),
            changed: Vec::new(),
            same: 0,
        };
        for run in [before, after] {
            if !project.store.is_whole(run) {
                errln!("warning: what became of the instances of {} is not all there: its files are damaged", run.id);
            }
        }
        let asked_for_some = is_partial(after);
        let sweep: HashSet<&str> = project.graph.dag.node_weights().map(|instance| instance.name.as_str()).collect();
        for instance in names.into_iter().filter(|name| only.is_empty() || only.iter().any(|o| o.fits_name(name))) {
            match (old.get(instance), new.get(instance)) {
                (Some(_), None) if asked_for_some && sweep.contains(instance.as_str()) => {
                    found.not_asked_for.push(instance.clone());
                }
                (Some(_), None) => found.gone.push(instance.clone()),
                (None, Some(now)) => {
                    found.new.push(NewInstance { instance: instance.clone(), outcome: now.outcome.clone() });
                }
                (Some(was), Some(now)) if was.key == now.key && (was.outcome == now.outcome || now.key.is_some()) => {
                    found.same += 1;
                }
                (Some(was), Some(now)) => found.changed.push(ChangedInstance::of(&project.store, was, now)),
                (None, None) => {}
            }
        }
        if self.json {
            outln!("{}", printable::json(&found, true));
        } else {
            found.show();
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn by_instance(store: &Store, run: &str) -> BTreeMap<String, InstanceOutcome> {
    store.outcomes(run).into_iter().map(|outcome| (outcome.instance.clone(), outcome)).collect()
}

impl Difference {
    fn show(&self) {
        outln!("before  {} ({}): {}", self.before.id, self.before.state, self.before.command);
        outln!("after   {} ({}): {}", self.after.id, self.after.state, self.after.command);
        let gone = self.gone.iter().map(|instance| (instance, format!("- {instance}")));
        let new = self.new.iter().map(|new| (&new.instance, format!("+ {}  {}", new.instance, new.outcome)));
        let changed = self.changed.iter().map(|changed| (&changed.instance, changed.text()));
        // By name, whichever way they differ.
        let mut lines: Vec<_> = gone.chain(new).chain(changed).collect();
        lines.sort();
        lines.iter().for_each(|(_, line)| outln!("{line}"));
        outln!("{} the same.", count(self.same, "instance"));
        if !self.not_asked_for.is_empty() {
            outln!("{} that the later run was not asked for.", count(self.not_asked_for.len(), "instance"));
        }
        if self.before_is_partial && !self.new.is_empty() {
            outln!("The earlier run was asked for a part of the sweep: what is new to it may have been there before.");
        }
    }
}

impl ChangedInstance {
    fn of(store: &Store, was: &InstanceOutcome, now: &InstanceOutcome) -> Self {
        let record = |outcome: &InstanceOutcome| outcome.key.and_then(|key| store.record(&key));
        let mut found = Self {
            instance: now.instance.clone(),
            before: was.outcome.clone(),
            after: now.outcome.clone(),
            message: now.message.clone(),
            changes: Vec::new(),
            unknown: false,
            metrics: Vec::new(),
        };
        match (record(was), record(now)) {
            (Some(before), Some(after)) => {
                let parts = after.parts.read();
                found.unknown = parts.is_err();
                found.changes = parts.map(|parts| why::changes(&before, &parts)).unwrap_or_default();
                found.metrics = metrics(&before, &after);
            }
            // What failed has no key.
            _ => found.unknown = was.key.is_some() && now.key.is_some(),
        }
        found
    }

    fn text(&self) -> String {
        let mut lines = vec![format!("~ {}  {} -> {}", self.instance, self.before, self.after)];
        lines.extend(self.message.iter().map(|message| format!("    {message}")));
        lines.extend(self.changes.iter().map(|change| format!("    {change}")));
        if self.unknown {
            lines.push(
                "    what changed is not known: the record of one of the two is gone (as after `siteline gc`)"
                    .to_owned(),
            );
        }
        lines.extend(self.metrics.iter().map(|metric| {
            let name = &metric.name;
            match (metric.before, metric.after) {
                (Some(old), Some(value)) => format!("    metric {name}: {old} -> {value} ({:+.4})", value - old),
                (None, Some(value)) => format!("    metric {name}: new, {value}"),
                (Some(old), None) => format!("    metric {name}: gone, was {old}"),
                (None, None) => format!("    metric {name}: gone"),
            }
        }));
        lines.join("\n")
    }
}

fn metrics(before: &Record, after: &Record) -> Vec<ChangedMetric> {
    let names: BTreeSet<&String> = before.metrics.keys().chain(after.metrics.keys()).collect();
    let both = |name: &String| (before.metrics.get(name).copied(), after.metrics.get(name).copied());
    let differing = names.into_iter().filter(|name| both(name).0 != both(name).1);
    differing.map(|name| ChangedMetric { name: name.clone(), before: both(name).0, after: both(name).1 }).collect()
}

fn find<'r>(
    runs: &'r [RunRow],
    wanted: &str,
    runs_of_others: impl Fn() -> Option<String>,
) -> Result<&'r RunRow, CommandError> {
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
            if runs.len() < 2 && place.is_some() {
                let there = if runs.is_empty() { "there was no run yet" } else { "there was one run only" };
                let others = if runs.is_empty() { runs_of_others() } else { None };
                let hint = others.unwrap_or_else(|| "`siteline diff` compares two".to_owned());
                return Err(CommandError::request(there.to_owned(), hint));
            }
            let what = if others.is_empty() { "there is no run" } else { "several runs begin with" };
            let known: Vec<_> = runs.iter().take(5).map(|run| run.id.as_str()).collect();
            Err(CommandError::request(
                format!("{what} `{wanted}`"),
                format!("the latest runs are {}", known.join(", ")),
            ))
        }
    }
}
