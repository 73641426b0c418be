//! `siteline schema`

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use schemars::schema_for;
use serde_json::json;
use siteline_pipeline::manifest;
use siteline_pipeline::pack::Home;
use siteline_pipeline::protocol::StageKind;

use super::{Outcome, audit, check_manifest, diff, doctor, gc, history, status, trace, verify, why};
use crate::args::Common;
use crate::diagnostic::CommandError;
use crate::project::{manifest_path, open_pack, overrides};

/// Print the JSON Schema of the manifest, for editors, or the parameters of a stage kind.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  siteline schema >siteline.schema.json\n  siteline schema --kinds\n  siteline schema --kind train\n  siteline schema --json-of status"
)]
pub struct Schema {
    /// List the stage kinds
    #[arg(long, conflicts_with = "kind")]
    kinds: bool,
    /// What a verb says with `--json`, or a run's summary.json
    #[arg(long, value_name = "VERB", conflicts_with_all = ["kind", "kinds"])]
    json_of: Option<Answer>,
    /// The inputs, outputs and parameters of one stage kind
    #[arg(long, value_name = "KIND")]
    kind: Option<String>,
}

/// What is said in JSON.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Answer {
    /// Each event of `run --json`
    Run,
    /// The summary.json that a run leaves in its folder
    Summary,
    Plan,
    Status,
    Why,
    History,
    Audit,
    Diff,
    /// One number, or one instance
    Trace,
    Doctor,
    CheckManifest,
    Verify,
    Gc,
}

impl Answer {
    fn schema(self) -> serde_json::Value {
        match self {
            Self::Run => siteline_pipeline::event::schema(),
            Self::Summary => siteline_pipeline::event::summary_schema(),
            Self::Plan => siteline_pipeline::plan_json::schema(),
            Self::Status => schema_for!(status::Standing).to_value(),
            Self::Why => schema_for!(Vec<why::Explanation>).to_value(),
            Self::History => schema_for!(Vec<history::Past>).to_value(),
            Self::Audit => schema_for!(audit::Audited).to_value(),
            Self::Diff => schema_for!(diff::Difference).to_value(),
            Self::Trace => schema_for!(trace::Traced).to_value(),
            Self::Doctor => schema_for!(Vec<doctor::Finding>).to_value(),
            Self::CheckManifest => schema_for!(check_manifest::Checked).to_value(),
            Self::Verify => schema_for!(verify::Verification).to_value(),
            Self::Gc => schema_for!(gc::Superfluous).to_value(),
        }
    }
}

impl Schema {
    pub fn run(self, common: &Common) -> Outcome {
        let show =
            |value: serde_json::Value| outln!("{}", serde_json::to_string_pretty(&value).expect("a schema is JSON"));
        if let Some(answer) = self.json_of {
            show(answer.schema());
            return Ok(ExitCode::SUCCESS);
        }
        if !self.kinds && self.kind.is_none() {
            // Without a worker it lacks the kinds, and is a schema all the same.
            show(siteline_pipeline::manifest::editor::schema(&kinds(common).unwrap_or_default()));
            return Ok(ExitCode::SUCCESS);
        }
        let kinds = kinds(common)?;
        if self.kinds {
            kinds.iter().for_each(|kind| outln!("{:24} {}", kind.name, kind.summary));
            return Ok(ExitCode::SUCCESS);
        }
        let name = self.kind.unwrap_or_default();
        let kind = kinds.iter().find(|kind| kind.name == name).ok_or_else(|| {
            let known = kinds.iter().map(|k| k.name.as_str());
            let hint = siteline_pipeline::diagnostic::suggest(&name, "the stage kinds are", known);
            CommandError::request(format!("there is no stage kind `{name}`"), hint)
        })?;
        show(
            json!({"kind": kind.name, "summary": kind.summary, "inputs": kind.inputs, "sources": kind.sources, "outputs": kind.outputs, "parameters": kind.params}),
        );
        Ok(ExitCode::SUCCESS)
    }
}

/// The built-in kinds, and where there is a manifest those of its packs.
fn kinds(common: &Common) -> Result<Vec<StageKind>, CommandError> {
    let pack = open_pack(common)?;
    let Some(path) = manifest_path(common) else { return Ok(pack.kinds) };
    match manifest::load(&path, &overrides(common)?, &pack) {
        Ok(loaded) => {
            let all = loaded.kinds.into_values().zip(loaded.homes);
            Ok(all.filter(|(_, home)| *home != Home::Command).map(|(kind, _)| kind).collect())
        }
        Err(e) => {
            let path = path.display();
            tracing::warn!("{path} cannot be used ({e}), so that kinds of its packs are not among these");
            Ok(pack.kinds)
        }
    }
}
