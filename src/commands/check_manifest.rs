//! `siteline check-manifest`

use std::process::ExitCode;

use clap::Args;
use siteline_cache::Access;
use siteline_pipeline::lint;

use super::{Outcome, count};
use crate::args::Common;
use crate::diagnostic;
use crate::project::Project;

/// Check a manifest without looking at its data: errors as everywhere, and warnings for what is declared and never used.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  siteline check-manifest\n  siteline check-manifest -m manifests/demo.yaml --strict"
)]
pub struct CheckManifest {
    /// Fail on warnings too
    #[arg(long)]
    strict: bool,
}

impl CheckManifest {
    pub fn run(self, common: &Common) -> Outcome {
        let project = Project::open(common, Access::Read)?;
        let planner = project.planner()?;
        let warnings = lint::lint(&project.loaded, &project.graph);
        diagnostic::warn(&warnings);
        let instances = count(planner.graph.dag.node_count(), "instance");
        let stages = count(project.loaded.manifest.stages.len(), "stage");
        println!("{}: {stages}, {instances}, {}", project.loaded.path.display(), count(warnings.len(), "warning"));
        Ok(if self.strict && !warnings.is_empty() { ExitCode::from(1) } else { ExitCode::SUCCESS })
    }
}
