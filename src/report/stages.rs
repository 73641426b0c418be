//! The stages as a drawing: columns by distance from the raw data, arrows for what reads what.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use siteline_pipeline::plan::Planner;

const BOX: (f64, f64) = (132.0, 40.0);
const GAP: (f64, f64) = (64.0, 22.0);

/// An SVG of the stages with the number of their instances.
pub fn drawing(planner: &Planner) -> String {
    let stages: Vec<&String> = planner.loaded.manifest.stages.keys().collect();
    let place = |name: &str| stages.iter().position(|stage| *stage == name).unwrap_or(0);
    let mut edges: Vec<(usize, usize, String)> = Vec::new();
    for (name, stage) in &planner.loaded.manifest.stages {
        edges.extend(stage.needs.iter().map(|(input, need)| (place(&need.join().stage), place(name), input.clone())));
    }
    let mut column = vec![0usize; stages.len()];
    // Stages are few and free of cycles: as many rounds as stages settle every column.
    for _ in 0..stages.len() {
        for (from, to, _) in &edges {
            column[*to] = column[*to].max(column[*from] + 1);
        }
    }
    let mut filled: BTreeMap<usize, usize> = BTreeMap::new();
    let spots: Vec<(f64, f64)> = column
        .iter()
        .map(|column| {
            let row = filled.entry(*column).or_default();
            let spot = (10.0 + *column as f64 * (BOX.0 + GAP.0), 10.0 + *row as f64 * (BOX.1 + GAP.1));
            *row += 1;
            spot
        })
        .collect();
    let width = spots.iter().map(|s| s.0 + BOX.0 + 10.0).fold(0.0, f64::max);
    let height = spots.iter().map(|s| s.1 + BOX.1 + 10.0).fold(0.0, f64::max) + 24.0;
    let mut svg = String::new();
    let mut put = |text: String| writeln!(svg, "{text}").expect("writing to a string");
    put(format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" font-family="system-ui, sans-serif" font-size="13" role="img" aria-label="stages">"#
    ));
    put(r##"<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="#7a8794"/></marker></defs>"##.to_owned());
    for (from, to, _) in &edges {
        let (a, b) = (spots[*from], spots[*to]);
        let (x1, y1, x2, y2) = (a.0 + BOX.0, a.1 + BOX.1 / 2.0, b.0 - 2.0, b.1 + BOX.1 / 2.0);
        // An arrow that passes over other columns runs below them.
        let sag = if column[*to] > column[*from] + 1 { height - 14.0 - y1.max(y2) } else { 0.0 };
        let (m1, m2) = (x1 + GAP.0 * 0.7, x2 - GAP.0 * 0.7);
        put(format!(
            r##"<path d="M{x1} {y1}C{m1} {:.1} {m2} {:.1} {x2} {y2}" fill="none" stroke="#7a8794" marker-end="url(#tip)"/>"##,
            y1 + sag * 1.3,
            y2 + sag * 1.3
        ));
    }
    for (index, stage) in stages.iter().enumerate() {
        let (x, y) = spots[index];
        let instances = planner.graph.dag.node_weights().filter(|i| *i.stage == ***stage).count();
        put(format!(
            r##"<rect x="{x}" y="{y}" width="{}" height="{}" rx="7" fill="#eef3f8" stroke="#9db2c7"/>"##,
            BOX.0, BOX.1
        ));
        put(format!(
            r#"<text x="{}" y="{}" text-anchor="middle" font-weight="600">{stage}</text>"#,
            x + BOX.0 / 2.0,
            y + 17.0
        ));
        put(format!(
            r##"<text x="{}" y="{}" text-anchor="middle" fill="#5b6875" font-size="11">× {instances}</text>"##,
            x + BOX.0 / 2.0,
            y + 32.0
        ));
    }
    put("</svg>".to_owned());
    svg
}
