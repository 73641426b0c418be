//! What was typed, nothing resolved.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand};
use siteline_pipeline::select::Selection;
use tracing::level_filters::LevelFilter;

use crate::commands;
use crate::diagnostic::CommandError;
use crate::project::pattern;

/// Runs multi-site experiments as content-hashed stages: only what changed reruns, and every number can be traced to the
/// images, prompts, weights, code and seeds behind it.
#[derive(Debug, Parser)]
#[command(name = "siteline", version, max_term_width = 110, after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  siteline init my-study                 a small project that runs as it stands
  siteline plan                          what would run, and why
  siteline run                           run it
  siteline run --only 'train[seed=0]'    a part of it, and what that needs
  siteline why 'train[method=mcdrl,held_out=C,seed=0]'
  siteline trace method=mcdrl,held_out=C one number, back to the raw images

Exit codes: 0 done; 1 what was asked failed or was refused; 2 the request was wrong; 101 a bug.";

/// Options that every command takes.
#[derive(Debug, ClapArgs)]
pub struct Common {
    /// The manifest [default: siteline.yaml here or in a folder above]
    #[arg(short, long, global = true, value_name = "FILE", env = "SITELINE_MANIFEST")]
    pub manifest: Option<PathBuf>,
    /// The store [default: .siteline in the project's folder]
    #[arg(long, global = true, value_name = "DIR", env = "SITELINE_STORE")]
    pub store: Option<PathBuf>,
    /// Change a value of the manifest: `--set stages.train.with.epochs=2`; may be repeated
    #[arg(long = "set", global = true, value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// A store that is made is open to the folder's group instead of its user alone
    #[arg(long, global = true, env = "SITELINE_SHARED_STORE", hide_env_values = true)]
    pub shared_store: bool,
    /// The program that holds the stage kinds [default: siteline-worker beside this program]
    #[arg(long, global = true, value_name = "FILE", env = "SITELINE_WORKER", hide_env_values = true)]
    pub worker: Option<PathBuf>,
    /// Say more of how decisions are made; twice for all
    #[arg(long, global = true, action = clap::ArgAction::Count)]
    pub debug: u8,
}

/// Options that choose instances.
#[derive(Debug, Default, ClapArgs)]
pub struct Chosen {
    /// Only instances that fit, and what they need: `train[seed=0]`; may be repeated
    #[arg(long, value_name = "PATTERN")]
    pub only: Vec<String>,
    /// Not the instances that fit, nor what is made from them; may be repeated
    #[arg(long, value_name = "PATTERN")]
    pub except: Vec<String>,
    /// The instances that fit, and what is made from them, run again, cached or not; may be repeated
    #[arg(long, value_name = "PATTERN")]
    pub from: Vec<String>,
    /// Everything selected runs again, cached or not; differing bytes are reported
    #[arg(long)]
    pub force: bool,
}

impl Common {
    /// The options that say which project it is, to be put behind another verb.
    pub fn words(&self) -> String {
        let word =
            |name: &str, path: &PathBuf| format!(" {name} '{}'", path.display().to_string().replace('\'', r"'\''"));
        let manifest = self.manifest.iter().map(|path| word("-m", path));
        manifest.chain(self.store.iter().map(|path| word("--store", path))).collect()
    }
}

impl Chosen {
    /// The options as they were given, by name, for the record of a run.
    pub fn words(&self) -> BTreeMap<String, Vec<String>> {
        let of = |name: &str, patterns: &[String]| (name.to_owned(), patterns.to_vec());
        let mut words = BTreeMap::from([of("only", &self.only), of("except", &self.except), of("from", &self.from)]);
        words.retain(|_, patterns| !patterns.is_empty());
        if self.force {
            words.insert("force".into(), vec!["*".into()]);
        }
        words
    }

    /// The patterns, read.
    pub fn selection(&self) -> Result<Selection, CommandError> {
        let read = |texts: &[String]| texts.iter().map(|text| pattern(text)).collect::<Result<Vec<_>, _>>();
        Ok(Selection {
            only: read(&self.only)?,
            except: read(&self.except)?,
            from: read(&self.from)?,
            force: self.force,
        })
    }
}

impl Args {
    /// How much is logged.
    pub fn level(&self) -> LevelFilter {
        match self.common.debug {
            0 => LevelFilter::WARN,
            1 => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        }
    }
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    Init(commands::init::Init),
    Phantoms(commands::phantoms::Phantoms),
    Plan(commands::plan::Plan),
    Run(commands::run::Run),
    Status(commands::status::Status),
    Why(commands::why::Why),
    Trace(commands::trace::Trace),
    Audit(commands::audit::Audit),
    Table(commands::table::Table),
    Log(commands::log::Log),
    Graph(commands::graph::Graph),
    Verify(commands::verify::Verify),
    Gc(commands::gc::Gc),
    Diff(commands::diff::Diff),
    History(commands::history::History),
    CheckManifest(commands::check_manifest::CheckManifest),
    Doctor(commands::doctor::Doctor),
    Weights(commands::weights::Weights),
    Schema(commands::schema::Schema),
    Completions(commands::completions::Completions),
    Man(commands::man::Man),
    /// Ends the processes of a run whose driver is gone. Started by `run` itself.
    #[command(hide = true)]
    WatchRun {
        /// The run's id
        run: String,
    },
}

impl Command {
    /// Whether the verb writes to processes of its own.
    pub fn starts_workers(&self) -> bool {
        matches!(self, Self::Run(_) | Self::Phantoms(_) | Self::Init(_))
            || matches!(self, Self::Weights(verb) if verb.starts_workers())
    }
}
