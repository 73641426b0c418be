//! `table`: all scores to results tables and figures.
//!
//! Writes `table.md`, `table.csv`, `table.tex`, `table.parquet`, `figures/COLUMN.svg`, and `cells.json`, which says for each number
//! which instances it comes from.

use siteline_pipeline::protocol::{OutputSpec, Purpose, Role, StageKind};
use siteline_tables::{Layout, ScoreFile, figure, render, summarise};

use super::context::Ctx;
use super::spec::{Spec, input};
use crate::error::{Result, StageError};

/// The kind's specification.
pub fn kind() -> StageKind {
    let result = |path: &str, purpose| OutputSpec { path: path.into(), purpose };
    Spec {
        name: "table",
        summary: "gathers per-image scores into results tables and figures",
        params: schemars::schema_for!(Layout),
        inputs: vec![input("scores", Role::Plain, &["scores.parquet"]).gathered()],
        sources: vec![],
        requires: vec![],
        outputs: vec![
            result("table.md", Purpose::Result),
            result("table.csv", Purpose::Result),
            result("table.tex", Purpose::Result),
            result("table.parquet", Purpose::Result),
            result("figures/", Purpose::Result),
            result("cells.json", Purpose::Cells),
        ],
    }
    .into()
}

/// Makes the tables.
///
/// # Errors
/// Scores that cannot be read, a layout whose axes they do not have.
pub fn run(ctx: &Ctx) -> Result<()> {
    let layout: Layout = ctx.params()?;
    let files = ctx
        .inputs("scores")
        .map(|input| Ok(ScoreFile { point: input.point.clone(), path: Ctx::file(input, "scores.parquet")?.to_owned() }))
        .collect::<Result<Vec<_>>>()?;
    let table = summarise(&files, &layout)?;
    let write = |name: &str, text: String| {
        let path = ctx.output(name);
        std::fs::write(&path, text).map_err(StageError::io(&path))
    };
    write("table.md", render::markdown(&table))?;
    write("table.tex", render::latex(&table))?;
    render::csv(&table, &ctx.output("table.csv"))?;
    render::parquet(&table, &ctx.output("table.parquet"))?;
    let figures = ctx.output("figures");
    std::fs::create_dir_all(&figures).map_err(StageError::io(&figures))?;
    for column in &table.columns {
        write(&format!("figures/{column}.svg"), figure::bars(&table, column))?;
    }
    write("cells.json", serde_json::to_string_pretty(&table).expect("a table is JSON") + "\n")
}
