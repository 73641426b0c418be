//! `siteline check-manifest`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use siteline_pipeline::diagnostic::Diagnostic;
use siteline_pipeline::{lint, printable};

use super::{Outcome, count};
use crate::args::Common;
use crate::diagnostic::{self, CommandError, Remark};
use crate::project::Sweep;

/// Check a manifest without looking at its data: errors as everywhere, and warnings for what is declared and never used.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  siteline check-manifest\n  siteline check-manifest -m manifests/demo.yaml --strict"
)]
pub struct CheckManifest {
    /// Fail on warnings too
    #[arg(long)]
    strict: bool,
    /// As JSON on standard output, errors as well; `siteline schema --json-of check-manifest` describes it
    #[arg(long)]
    json: bool,
}

/// What there is to say of a manifest.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub struct Checked {
    /// The manifest; nothing where it has errors.
    manifest: Option<PathBuf>,
    /// Its stages.
    stages: usize,
    /// The instances that they come to.
    instances: usize,
    /// Errors and warnings, in the order of the file.
    remarks: Vec<Remark>,
}

impl CheckManifest {
    pub fn run(self, common: &Common) -> Outcome {
        let sweep = match Sweep::load(common) {
            Err(CommandError::Manifest(errors)) if self.json => {
                let remarks = errors.list.iter().map(Remark::error).collect();
                outln!("{}", printable::json(&Checked { remarks, ..Checked::default() }, true));
                return Ok(ExitCode::from(2));
            }
            sweep => sweep?,
        };
        let warnings = lint::lint(&sweep.loaded, &sweep.graph);
        if self.json {
            outln!("{}", printable::json(&Checked::of(&sweep, &warnings), true));
        } else {
            diagnostic::warn(&warnings);
            let instances = count(sweep.graph.dag.node_count(), "instance");
            let stages = count(sweep.loaded.manifest.stages.len(), "stage");
            outln!("{}: {stages}, {instances}, {}", sweep.loaded.path.display(), count(warnings.len(), "warning"));
        }
        Ok(if self.strict && !warnings.is_empty() { ExitCode::from(1) } else { ExitCode::SUCCESS })
    }
}

impl Checked {
    fn of(sweep: &Sweep, warnings: &[Diagnostic]) -> Self {
        Self {
            manifest: Some(sweep.loaded.path.clone()),
            stages: sweep.loaded.manifest.stages.len(),
            instances: sweep.graph.dag.node_count(),
            remarks: warnings.iter().map(Remark::warning).collect(),
        }
    }
}
