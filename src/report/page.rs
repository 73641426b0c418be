//! `report.html`: one file without anything outside it.

use std::collections::BTreeMap;

use base64::Engine;
use minijinja::{Environment, context};
use serde_json::{Value, json};
use siteline_cache::{Hit, Store};
use siteline_pipeline::plan::{Plan, Planner, State};

use super::results::ResultsTable;
use super::{lineage, stages};
use crate::diagnostic::CommandError;

/// The page of some tables.
pub fn render(planner: &Planner, plan: &Plan, tables: &[ResultsTable]) -> Result<String, CommandError> {
    let store = planner.store;
    let mut executions: BTreeMap<String, Value> = BTreeMap::new();
    let mut numbers: Vec<Value> = Vec::new();
    let mut sections: Vec<Value> = Vec::new();
    for table in tables {
        lineage::collect(store, &table.record.key, &mut executions);
        let mut metrics = Vec::new();
        for metric in &table.cells.metrics {
            let rows: Vec<Value> = table
                .cells
                .rows
                .iter()
                .map(|row| {
                    let cells: Vec<Value> = table
                        .cells
                        .columns
                        .iter()
                        .map(|column| {
                            let found = table
                                .cells
                                .cells
                                .iter()
                                .find(|c| c.metric == *metric && c.row == *row && c.column == *column);
                            let Some(cell) = found else { return json!({"text": "–"}) };
                            let scores = table.scores(planner, plan, cell);
                            let address = table.cells.address(cell);
                            let title: Vec<_> = address.iter().map(|(axis, value)| format!("{axis}={value}")).collect();
                            numbers.push(json!({
                                "metric": metric,
                                "text": cell.text,
                                "address": title.join(", "),
                                "runs": cell.runs,
                                "images": cell.images,
                                "in_domain": cell.in_domain,
                                "oracle": cell.oracle,
                                "table": table.record.key.short(),
                                "scores": scores.iter().map(|(_, record)| record.key.short()).collect::<Vec<_>>(),
                            }));
                            json!({"text": cell.text, "number": numbers.len() - 1})
                        })
                        .collect();
                    json!({"labels": row, "cells": cells})
                })
                .collect();
            let title = table.cells.titles.get(metric).unwrap_or(metric);
            metrics.push(json!({"name": metric, "title": title, "rows": rows}));
        }
        let charts = figures(store, &table.record)?;
        sections.push(json!({
            "stage": table.stage,
            "axes": table.cells.row_axes,
            "columns": table.cells.columns,
            "metrics": metrics,
            "charts": charts,
            "caption": table.cells.caption,
        }));
    }
    for record in
        plan.states.iter().filter_map(|state| if let State::Cached(record) = state { Some(record) } else { None })
    {
        // Scores behind the numbers are collected with all that they came from; the rest of the plan is not on this page.
        if numbers
            .iter()
            .any(|n| n["scores"].as_array().is_some_and(|keys| keys.iter().any(|k| k == &record.key.short())))
        {
            lineage::collect(store, &record.key, &mut executions);
        }
    }
    let data = json!({"numbers": numbers, "executions": executions}).to_string().replace("</", "<\\/");
    let mut environment = Environment::new();
    environment
        .add_template("report.html", include_str!("template.html"))
        .map_err(|e| CommandError::refused(format!("the report's template: {e}"), None))?;
    let template = environment.get_template("report.html").expect("it was just added");
    template
        .render(context! {
            name => planner.loaded.manifest.name,
            sections => sections,
            stages => stages::drawing(planner),
            overlays => overlays(planner, plan)?,
            data => data,
            version => env!("CARGO_PKG_VERSION"),
        })
        .map_err(|e| CommandError::refused(format!("the report cannot be rendered: {e:#}"), None))
}

/// The charts of a table artifact, as SVG texts.
fn figures(store: &Store, record: &Hit) -> Result<Vec<String>, CommandError> {
    let files = record.outputs.iter().filter(|o| o.path.starts_with("figures/") && o.path.ends_with(".svg"));
    files.map(|o| Ok(String::from_utf8_lossy(&store.read(&o.digest)?).into_owned())).collect()
}

/// Pictures with their labels, by site and image.
type Pictures = BTreeMap<(String, String), Vec<(String, String)>>;

/// Overlays, of one seed: site by site, each image with what the methods predict for it.
fn overlays(planner: &Planner, plan: &Plan) -> Result<Vec<Value>, CommandError> {
    let mut by_image: Pictures = BTreeMap::new();
    for node in &planner.graph.order {
        let State::Cached(record) = plan.state(*node) else { continue };
        let instance = &planner.graph.dag[*node];
        let first_seed = planner.loaded.axes.get("seed").and_then(|seeds| seeds.values.first().map(|s| s.label()));
        if instance.point.get("seed").is_some_and(|seed| Some(seed) != first_seed.as_ref()) {
            continue;
        }
        for output in record.outputs.iter().filter(|o| o.path.starts_with("overlays/") && o.path.ends_with(".png")) {
            let file = output.path.trim_start_matches("overlays/").trim_end_matches(".png");
            let (site, id) = file.split_once('.').unwrap_or(("", file));
            let several = |axis: &str| planner.loaded.axes.get(axis).is_some_and(|axis| axis.values.len() > 1);
            let label: Vec<_> = instance
                .point
                .iter()
                .filter(|(axis, _)| several(axis) && !["held_out", "seed"].contains(&axis.as_str()))
                .map(|(_, v)| v.clone())
                .collect();
            let bytes = base64::engine::general_purpose::STANDARD.encode(planner.store.read(&output.digest)?);
            by_image.entry((site.to_owned(), id.to_owned())).or_default().push((label.join(" · "), bytes));
        }
    }
    Ok(by_image
        .into_iter()
        .map(|((site, id), pictures)| {
            let pictures: Vec<Value> =
                pictures.into_iter().map(|(label, png)| json!({"label": label, "png": png})).collect();
            json!({"site": site, "id": id, "pictures": pictures})
        })
        .collect())
}
