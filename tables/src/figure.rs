//! Bar charts of a results table as SVG: one chart a column, one bar a row, whiskers for the spread.

use std::fmt::Write as _;

use crate::ResultsTable;

/// Fill colours of the rows, told apart also without colour vision (after Okabe and Ito 2008).
pub const COLOURS: [&str; 8] = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#777777"];

const WIDTH: f64 = 380.0;
const BAR: f64 = 26.0;
const GAP: f64 = 8.0;
const LEFT: f64 = 120.0;
const RIGHT: f64 = 60.0;
const TOP: f64 = 30.0;

/// A chart of one column, of the table's first metric; the axis runs from 0 to 100 percent, or to a round number of pixels.
pub fn bars(table: &ResultsTable, column: &str) -> String {
    let metric = table.metrics[0];
    let height = TOP + table.rows.len() as f64 * (BAR + GAP) + 24.0;
    let times = metric.shown_times();
    let most = if times == 100.0 { 100.0 } else { longest(table) };
    let scale = (WIDTH - LEFT - RIGHT) / most;
    let mut svg = String::new();
    let mut put = |text: String| writeln!(svg, "{text}").expect("writing to a string");
    put(format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" font-family="system-ui, sans-serif" font-size="12" role="img" aria-label="{} of {}">"#,
        table.title(metric),
        xml(column)
    ));
    put(format!(r#"<text x="{LEFT}" y="18" font-weight="600">{} · {}</text>"#, xml(column), metric.heading()));
    for tick in [0.0, 0.25, 0.5, 0.75, 1.0].map(|part| part * most) {
        let x = LEFT + tick * scale;
        put(format!(r##"<line x1="{x:.1}" x2="{x:.1}" y1="{TOP}" y2="{:.1}" stroke="#ddd"/>"##, height - 22.0));
        put(format!(
            r##"<text x="{x:.1}" y="{:.1}" text-anchor="middle" fill="#666" font-size="10">{tick}</text>"##,
            height - 8.0
        ));
    }
    for (index, row) in table.rows.iter().enumerate() {
        let y = TOP + index as f64 * (BAR + GAP) + GAP / 2.0;
        let middle = y + BAR / 2.0;
        put(format!(
            r#"<text x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
            LEFT - 8.0,
            middle + 4.0,
            xml(&label(table, row))
        ));
        let Some(cell) = table.cell(metric, row, column) else { continue };
        let (mean, std) = (cell.mean * times, cell.std.unwrap_or(0.0) * times);
        let end = LEFT + mean * scale;
        let colour = COLOURS[index % COLOURS.len()];
        put(format!(
            r#"<rect x="{LEFT}" y="{y:.1}" width="{:.1}" height="{BAR}" fill="{colour}" rx="2"/>"#,
            mean * scale
        ));
        let (low, high) = (LEFT + (mean - std).max(0.0) * scale, LEFT + (mean + std).min(most) * scale);
        if cell.std.is_some() {
            put(format!(
                r##"<path d="M{low:.1} {middle:.1}H{high:.1}M{low:.1} {:.1}v8M{high:.1} {:.1}v8" stroke="#222" fill="none"/>"##,
                middle - 4.0,
                middle - 4.0
            ));
        }
        put(format!(
            r#"<text x="{:.1}" y="{:.1}">{mean:.digits$}</text>"#,
            end.max(high) + 6.0,
            middle + 4.0,
            digits = table.decimals
        ));
    }
    put("</svg>".to_owned());
    svg
}

/// The end of an axis of pixels: what the longest whisker of all columns needs, rounded up to 20.
fn longest(table: &ResultsTable) -> f64 {
    let first = table.cells.iter().filter(|cell| cell.metric == table.metrics[0]);
    let end = first.map(|cell| cell.mean + cell.std.unwrap_or(0.0)).fold(0.0, f64::max);
    ((end / 20.0).ceil() * 20.0).max(20.0)
}

/// A row's label: the axes that tell rows apart, shortened from the front if need be.
fn label(table: &ResultsTable, row: &[String]) -> String {
    const LONGEST: usize = 17;
    let telling = |place: usize| table.rows.len() == 1 || table.rows.iter().any(|other| other[place] != row[place]);
    let parts: Vec<&str> =
        row.iter().enumerate().filter(|(place, _)| telling(*place)).map(|(_, v)| v.as_str()).collect();
    let text = parts.join(" · ");
    match text.chars().count() {
        count if count > LONGEST => format!("…{}", text.chars().skip(count - LONGEST).collect::<String>()),
        _ => text,
    }
}

fn xml(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
