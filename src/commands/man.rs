//! `siteline man`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory};

use super::Outcome;
use crate::diagnostic::CommandError;

/// Write manual pages, one for each verb.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  siteline man ~/.local/share/man/man1 && man siteline-run")]
pub struct Man {
    /// The folder; it is made if need be
    folder: PathBuf,
}

impl Man {
    pub fn run(self) -> Outcome {
        std::fs::create_dir_all(&self.folder).map_err(CommandError::file("create", &self.folder))?;
        clap_mangen::generate_to(crate::args::Args::command(), &self.folder)
            .map_err(CommandError::file("write", &self.folder))?;
        Ok(ExitCode::SUCCESS)
    }
}
