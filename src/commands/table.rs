//! `siteline table`

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use siteline_cache::Access;

use super::Outcome;
use crate::args::Common;
use crate::diagnostic::CommandError;
use crate::project::Project;
use crate::report::results::{find_tables, no_table};

/// Print the results table, if it is up to date.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  siteline table\n  siteline table --format tex >table.tex")]
pub struct Table {
    /// The format
    #[arg(long, value_enum, default_value_t = Format::Md)]
    format: Format,
    /// The stage, where several make tables
    #[arg(long)]
    stage: Option<String>,
}

/// A format of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Markdown.
    Md,
    /// Comma-separated values, one row a number.
    Csv,
    /// LaTeX with booktabs.
    Tex,
}

impl Table {
    pub fn run(self, common: &Common) -> Outcome {
        let project = Project::open(common, Access::Read)?;
        let mut planner = project.planner()?;
        let plan = planner.plan()?;
        let tables = find_tables(&planner, &plan)?;
        let found = tables.iter().find(|table| self.stage.as_ref().is_none_or(|stage| *stage == table.stage));
        let Some(table) = found else {
            let stages = &planner.loaded.manifest.stages;
            if let Some(stage) = self.stage.filter(|stage| !stages.contains_key(stage)) {
                let names = stages.keys().map(String::as_str);
                let hint = siteline_pipeline::diagnostic::suggest(&stage, "the stages are", names);
                return Err(CommandError::request(format!("there is no stage `{stage}`"), hint));
            }
            return Err(no_table(&planner));
        };
        let file = match self.format {
            Format::Md => "table.md",
            Format::Csv => "table.csv",
            Format::Tex => "table.tex",
        };
        out!("{}", String::from_utf8_lossy(&table.read(&project.store, file)?));
        let others: Vec<&str> =
            tables.iter().map(|other| other.stage.as_str()).filter(|other| *other != table.stage).collect();
        if !others.is_empty() && self.stage.is_none() {
            errln!("There are more tables: --stage {}", others.join(", --stage "));
        }
        Ok(ExitCode::SUCCESS)
    }
}
