//! `siteline completions`

use std::process::ExitCode;

use clap::{Args, CommandFactory};

use super::Outcome;

/// Print completions for a shell.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  siteline completions bash >~/.local/share/bash-completion/completions/siteline\n  siteline completions zsh >~/.zfunc/_siteline"
)]
pub struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

impl Completions {
    pub fn run(self) -> Outcome {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut crate::args::Args::command(), "siteline", &mut script);
        out!("{}", String::from_utf8_lossy(&script));
        Ok(ExitCode::SUCCESS)
    }
}
