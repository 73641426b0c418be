//! `siteline log`

mod follow;

use std::cell::OnceCell;
use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use siteline_cache::{Access, InstanceOutcome, RunRow};
use siteline_pipeline::plan::State;
use siteline_pipeline::printable::printable;

use super::{Outcome, count};
use crate::args::Common;
use crate::diagnostic::CommandError;
use crate::project::{Project, find_instances, find_past_instances};

/// Show the logs of instances as of their last run: of what failed, or of the execution that made the result.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  siteline log 'train[method=mcdrl,held_out=C,seed=0]'\n  siteline log 'train[held_out=C]'\n  siteline log --path table\n  siteline log -f 'train[method=erm,held_out=A,seed=0]'"
)]
pub struct Log {
    /// The instances; axes that are left out may be anything
    #[arg(required = true, value_name = "PATTERN")]
    instances: Vec<String>,
    /// Print where the logs lie instead of what they say
    #[arg(long)]
    path: bool,
    /// Go on showing what one instance prints until it has ended; wait for it if it has not started. Exit code 1 if it fails
    #[arg(short, long, conflicts_with = "path")]
    follow: bool,
}

impl Log {
    pub fn run(self, common: &Common) -> Outcome {
        let project = Project::open(common, Access::Read)?;
        let mut planner = project.planner()?;
        if self.follow {
            let found = find_instances(&planner, &self.instances)?;
            let [node] = found.as_slice() else {
                let message = format!("{} fit, and one at a time can be followed", count(found.len(), "instance"));
                return Err(CommandError::request(message, "give every axis a value".to_owned()));
            };
            return follow::follow(&project.store, &project.loaded.manifest.name, &planner.graph.dag[*node].name);
        }
        let found = find_past_instances(&project, &planner, &self.instances)?;
        let logs = Logs::of(&project);
        let mut never = Vec::new();
        // Made when something has no execution of its own, for which it takes a plan to know more.
        let mut plan = None;
        for (place, (name, node)) in found.iter().enumerate() {
            if found.len() > 1 && !self.path {
                outln!("{}==> {name} <==", if place > 0 { "\n" } else { "" });
            }
            let mut last = logs.last(name)?;
            if let (Last::Never, Some(node)) = (&last, node) {
                let plan = match &mut plan {
                    Some(plan) => plan,
                    none => none.insert(planner.plan()?),
                };
                if let State::Cached(hit) = plan.state(*node) {
                    last = logs.of_another(name, &hit.instance, &hit.run);
                }
            }
            match last {
                Last::Kept(path) if self.path => outln!("{}", path.display()),
                Last::Kept(path) => show(&path)?,
                // Where paths are asked for, nothing but paths goes to standard output.
                Last::Told(words) if self.path => errln!("{words}"),
                Last::Told(words) => outln!("{words}"),
                Last::Never => never.push(name.clone()),
            }
        }
        match never.as_slice() {
            [] => Ok(ExitCode::SUCCESS),
            [first, rest @ ..] => {
                let more = if rest.is_empty() { String::new() } else { format!(", nor did {} more", rest.len()) };
                Err(CommandError::refused(format!("`{first}` never ran in this store{more}"), None))
            }
        }
    }
}

/// What is left of the last execution of an instance.
enum Last {
    /// Its log.
    Kept(PathBuf),
    /// No log; what became of it, in words.
    Told(String),
    /// There was none.
    Never,
}

/// The logs and outcomes of a manifest's runs, the latest first.
struct Logs<'p> {
    project: &'p Project,
    runs: Vec<RunRow>,
    /// Read when they are first asked for.
    outcomes: Vec<OnceCell<HashMap<String, InstanceOutcome>>>,
}

impl<'p> Logs<'p> {
    fn of(project: &'p Project) -> Self {
        let manifest = &project.loaded.manifest.name;
        let runs: Vec<_> = project.store.runs().into_iter().filter(|run| run.manifest == *manifest).collect();
        let outcomes = runs.iter().map(|_| OnceCell::new()).collect();
        Self { project, runs, outcomes }
    }

    fn last(&self, name: &str) -> Result<Last, CommandError> {
        let store = &self.project.store;
        for (run, outcomes) in self.runs.iter().zip(&self.outcomes) {
            // Found by its name, so that the log of a run that goes on, was killed or moved is found as well.
            let path = store.run_folder(&run.id).join(siteline_pipeline::run::log_name(name));
            if path.exists() {
                return Ok(Last::Kept(path));
            }
            // What prints nothing has no log; what became of it is known all the same.
            let read = || store.outcomes(&run.id).into_iter().map(|o| (o.instance.clone(), o)).collect();
            let outcome = outcomes.get_or_init(read).get(name);
            // What was there already may be older than what was executed last: the settings went back.
            let found = outcome.filter(|outcome| outcome.outcome == "cached").and_then(|outcome| outcome.key);
            if let Some(record) = found.and_then(|key| store.record(&key)) {
                return Ok(self.of_another(name, &record.instance, &record.run));
            }
            if let Some(outcome) = outcome.filter(|o| ["executed", "failed"].contains(&o.outcome.as_str())) {
                let message = outcome.message.as_ref().map(|message| format!(": {message}")).unwrap_or_default();
                return Ok(Last::Told(format!(
                    "`{name}` printed nothing ({} in {}{message})",
                    outcome.outcome, run.id
                )));
            }
        }
        let executions = store.executions_of(&self.project.loaded.manifest.name, name)?;
        Ok(match executions.first() {
            Some(last) => Last::Told(format!("`{name}` ran in {}, whose logs are gone", last.run)),
            None => Last::Never,
        })
    }
}

impl Logs<'_> {
    /// What is left of the execution that made an instance's result under another name.
    fn of_another(&self, name: &str, made_by: &str, run: &str) -> Last {
        let path = self.project.store.run_folder(run).join(siteline_pipeline::run::log_name(made_by));
        let is_own = made_by == name;
        let made = match is_own {
            true => format!("`{name}` ran in {run}, and left no log there"),
            false => format!("`{name}` has the result of `{made_by}`, which has the same key and ran in {run}"),
        };
        match path.exists() {
            true => {
                if !is_own {
                    errln!("{made}");
                }
                Last::Kept(path)
            }
            false => Last::Told(made),
        }
    }
}

fn show(path: &Path) -> Result<(), CommandError> {
    print_bytes(&std::fs::read(path).map_err(CommandError::file("read", path))?);
    Ok(())
}

/// A log must not steer a terminal; whoever passes it on gets it as it is.
fn print_bytes(bytes: &[u8]) {
    let mut out = std::io::stdout();
    // A reader that went away is no reason to fail.
    let _ = match out.is_terminal() {
        true => out.write_all(printable(&String::from_utf8_lossy(bytes)).as_bytes()),
        false => out.write_all(bytes),
    };
    let _ = out.flush();
}
