//! The verbs, one file each: its arguments and help text, then what it does.

pub mod audit;
pub mod check_manifest;
pub mod completions;
pub mod diff;
pub mod doctor;
pub mod gc;
pub mod graph;
pub mod history;
pub mod init;
pub mod log;
pub mod man;
pub mod phantoms;
pub mod plan;
pub mod run;
pub mod schema;
pub mod status;
pub mod table;
pub mod trace;
pub mod verify;
pub mod weights;
pub mod why;

use std::collections::BTreeSet;
use std::process::ExitCode;

use schemars::JsonSchema;
use serde::Serialize;
use siteline_cache::{RunRow, Store};
use siteline_pipeline::printable::on_one_line;

use crate::args::{Args, Command};
use crate::diagnostic::CommandError;

/// What a verb comes to.
pub type Outcome = Result<ExitCode, CommandError>;

/// Carries out what was typed.
pub fn run(args: Args) -> Outcome {
    let common = &args.common;
    match args.command {
        Command::Init(verb) => verb.run(common),
        Command::Phantoms(verb) => verb.run(common),
        Command::Plan(verb) => verb.run(common),
        Command::Run(verb) => verb.run(common),
        Command::Status(verb) => verb.run(common),
        Command::Why(verb) => verb.run(common),
        Command::Trace(verb) => verb.run(common),
        Command::Audit(verb) => verb.run(common),
        Command::Table(verb) => verb.run(common),
        Command::Log(verb) => verb.run(common),
        Command::Graph(verb) => verb.run(common),
        Command::Verify(verb) => verb.run(common),
        Command::Gc(verb) => verb.run(common),
        Command::Weights(verb) => verb.run(common),
        Command::Schema(verb) => verb.run(common),
        Command::CheckManifest(verb) => verb.run(common),
        Command::Diff(verb) => verb.run(common),
        Command::History(verb) => verb.run(common),
        Command::Doctor(verb) => verb.run(common),
        Command::Man(verb) => verb.run(),
        Command::Completions(verb) => verb.run(),
        Command::WatchRun { run } => {
            siteline_pipeline::processes::watch(&run);
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// A run, as verbs tell of it in JSON.
#[derive(Debug, Serialize, JsonSchema)]
pub struct RunJson {
    /// Its id.
    pub id: String,
    /// `running`, `done`, `failed`, `cancelled`, `killed`.
    pub state: String,
    /// The arguments of the command.
    pub command: String,
}

impl RunJson {
    /// A run of the store's.
    pub fn of(run: &RunRow) -> Self {
        Self { id: run.id.clone(), state: run.state().to_owned(), command: run.command.clone() }
    }
}

/// Whose runs a store has, where it has none of this manifest's: it may have been renamed.
pub fn runs_of_others(store: &Store, name: &str) -> Option<String> {
    let others: BTreeSet<String> = store.runs().into_iter().map(|run| run.manifest).filter(|of| of != name).collect();
    let list: Vec<String> = others.iter().take(5).map(|name| format!("`{}`", on_one_line(name))).collect();
    (!list.is_empty()).then(|| format!("the store has runs of {}: they go by the manifest's `name`", list.join(", ")))
}

/// A time in milliseconds since 1970, for people.
pub fn time_of(milliseconds: u64) -> String {
    let time = jiff::Timestamp::from_millisecond(milliseconds as i64);
    time.map_or_else(|_| "an unknown time".to_owned(), |time| time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string())
}

/// `1 instance`, `2 instances`.
pub fn count(number: usize, thing: &str) -> String {
    if number == 1 { format!("1 {thing}") } else { format!("{number} {thing}s") }
}
