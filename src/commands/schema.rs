//! `siteline schema`

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::Outcome;
use crate::args::Common;
use crate::diagnostic::CommandError;
use crate::project::open_pack;

/// Print the JSON Schema of the manifest, for editors, or the parameters of a stage kind.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  siteline schema >siteline.schema.json\n  siteline schema --kinds\n  siteline schema --kind train"
)]
pub struct Schema {
    /// List the stage kinds
    #[arg(long, conflicts_with = "kind")]
    kinds: bool,
    /// The events of `siteline run --json`
    #[arg(long, conflicts_with_all = ["kind", "kinds"])]
    events: bool,
    /// The summary that a run leaves in its folder
    #[arg(long, conflicts_with_all = ["kind", "kinds", "events"])]
    summary: bool,
    /// What `siteline plan --json` prints
    #[arg(long, conflicts_with_all = ["kind", "kinds", "events", "summary"])]
    plan: bool,
    /// The inputs, outputs and parameters of one stage kind
    #[arg(long, value_name = "KIND")]
    kind: Option<String>,
}

impl Schema {
    pub fn run(self, common: &Common) -> Outcome {
        let show =
            |value: serde_json::Value| println!("{}", serde_json::to_string_pretty(&value).expect("a schema is JSON"));
        let described: [(bool, fn() -> serde_json::Value); 3] = [
            (self.events, siteline_pipeline::event::schema),
            (self.summary, siteline_pipeline::event::summary_schema),
            (self.plan, siteline_pipeline::plan_json::schema),
        ];
        if let Some((_, schema)) = described.into_iter().find(|(asked, _)| *asked) {
            show(schema());
            return Ok(ExitCode::SUCCESS);
        }
        if !self.kinds && self.kind.is_none() {
            // Without a worker it lacks the kinds, and is a schema all the same.
            let kinds = open_pack(common).map(|pack| pack.kinds).unwrap_or_default();
            show(siteline_pipeline::manifest::editor::schema(&kinds));
            return Ok(ExitCode::SUCCESS);
        }
        let pack = open_pack(common)?;
        if self.kinds {
            pack.kinds.iter().for_each(|kind| println!("{:24} {}", kind.name, kind.summary));
            return Ok(ExitCode::SUCCESS);
        }
        let name = self.kind.unwrap_or_default();
        let kind = pack.kinds.iter().find(|kind| kind.name == name).ok_or_else(|| {
            let known = pack.kinds.iter().map(|k| k.name.as_str());
            let hint = siteline_pipeline::diagnostic::suggest(&name, "the stage kinds are", known);
            CommandError::request(format!("there is no stage kind `{name}`"), hint)
        })?;
        show(
            json!({"kind": kind.name, "summary": kind.summary, "inputs": kind.inputs, "sources": kind.sources, "outputs": kind.outputs, "parameters": kind.params}),
        );
        Ok(ExitCode::SUCCESS)
    }
}
