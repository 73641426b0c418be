//! `siteline log`

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Args;
use siteline_cache::{Access, InstanceOutcome};
use siteline_pipeline::printable::printable;

use super::Outcome;
use crate::args::Common;
use crate::diagnostic::CommandError;
use crate::project::{Project, find_instance};

/// Show the log of an instance's last execution, failed ones included.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  siteline log 'train[method=mcdrl,held_out=C,seed=0]'\n  siteline log --path table"
)]
pub struct Log {
    /// The instance
    instance: String,
    /// Print where the log lies instead of what it says
    #[arg(long)]
    path: bool,
}

impl Log {
    pub fn run(self, common: &Common) -> Outcome {
        let project = Project::open(common, Access::Read)?;
        let planner = project.planner()?;
        let node = find_instance(&planner, &self.instance)?;
        let name = &planner.graph.dag[node].name;
        let manifest = &project.loaded.manifest.name;
        for run in project.store.runs().into_iter().filter(|run| run.manifest == *manifest) {
            // Found by its name, so that the log of a run that goes on, was killed or moved is found as well.
            let path = project.store.run_folder(&run.id).join(siteline_pipeline::run::log_name(name));
            if !path.exists() {
                continue;
            }
            if self.path {
                println!("{}", path.display());
            } else {
                let bytes = std::fs::read(&path).map_err(CommandError::file("read", &path))?;
                let text = String::from_utf8_lossy(&bytes);
                // A log must not steer a terminal; whoever passes it on gets it as it is.
                let shown = if std::io::stdout().is_terminal() { printable(&text) } else { text.into_owned() };
                print!("{shown}");
            }
            return Ok(ExitCode::SUCCESS);
        }
        // What prints nothing has no log; what became of it is known all the same.
        for run in project.store.runs().into_iter().filter(|run| run.manifest == *manifest) {
            let outcomes = project.store.outcomes(&run.id);
            let ran = |outcome: &&InstanceOutcome| ["executed", "failed"].contains(&outcome.outcome.as_str());
            if let Some(outcome) = outcomes.iter().filter(ran).find(|outcome| outcome.instance == *name) {
                let message = outcome.message.as_ref().map(|message| format!(": {message}")).unwrap_or_default();
                println!("`{name}` printed nothing ({} in {}{message})", outcome.outcome, run.id);
                return Ok(ExitCode::SUCCESS);
            }
        }
        if let Some(last) = project.store.executions_of(manifest, name)?.first() {
            println!("`{name}` ran in {}, whose logs are gone", last.run);
            return Ok(ExitCode::SUCCESS);
        }
        Err(CommandError::refused(format!("`{name}` never ran in this store"), None))
    }
}
