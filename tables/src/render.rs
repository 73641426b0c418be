//! A results table as Markdown, CSV, LaTeX and Parquet.

use std::fmt::Write as _;
use std::fs::File;
use std::path::Path;

use polars::prelude::*;

use crate::{Metric, ResultsTable, TableError};

/// Markdown: one table a metric, with a caption.
pub fn markdown(table: &ResultsTable) -> String {
    let mut text = String::new();
    for metric in &table.metrics {
        writeln!(text, "### {}\n", table.title(*metric)).expect("writing to a string");
        let heads: Vec<String> = table.row_axes.iter().chain(&table.columns).cloned().collect();
        let mut lines = vec![heads.clone()];
        lines.extend(body(table, *metric, "–"));
        let widths: Vec<usize> = (0..heads.len())
            .map(|i| lines.iter().map(|line| line[i].chars().count()).max().unwrap_or(0).max(3))
            .collect();
        for (index, line) in lines.iter().enumerate() {
            let padded: Vec<String> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            writeln!(text, "| {} |", padded.join(" | ")).expect("writing to a string");
            if index == 0 {
                let rules: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
                writeln!(text, "| {} |", rules.join(" | ")).expect("writing to a string");
            }
        }
        text.push('\n');
    }
    text.push_str(&table.caption);
    text.push('\n');
    text
}

/// LaTeX with `booktabs`: one `tabular` a metric.
pub fn latex(table: &ResultsTable) -> String {
    let mut text = String::from("% needs \\usepackage{booktabs}\n");
    for metric in &table.metrics {
        let columns = format!("{}{}", "l".repeat(table.row_axes.len()), "r".repeat(table.columns.len()));
        writeln!(text, "% {}\n\\begin{{tabular}}{{{columns}}}\n\\toprule", table.title(*metric))
            .expect("writing to a string");
        let heads: Vec<String> = table.row_axes.iter().chain(&table.columns).map(|h| escape(h)).collect();
        writeln!(text, "{} \\\\\n\\midrule", heads.join(" & ")).expect("writing to a string");
        for line in body(table, *metric, "--") {
            let cells: Vec<String> = line.iter().map(|cell| escape(cell)).collect();
            writeln!(text, "{} \\\\", cells.join(" & ")).expect("writing to a string");
        }
        text.push_str("\\bottomrule\n\\end{tabular}\n\n");
    }
    writeln!(text, "% {}", table.caption).expect("writing to a string");
    text
}

fn escape(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '_' | '&' | '%' | '#' | '$' | '{' | '}' => {
                out.push('\\');
                out.push(c);
            }
            '±' => out.push_str("$\\pm$"),
            '†' => out.push_str("$^\\dagger$"),
            '‡' => out.push_str("$^\\ddagger$"),
            other => out.push(other),
        }
    }
    out
}

/// The lines of a metric: the row's labels, then the cells.
fn body(table: &ResultsTable, metric: Metric, blank: &str) -> Vec<Vec<String>> {
    table
        .rows
        .iter()
        .map(|row| {
            let cells = table.columns.iter().map(|column| {
                table.cell(metric, row, column).map_or_else(|| blank.to_owned(), |cell| cell.text.clone())
            });
            row.iter().cloned().chain(cells).collect()
        })
        .collect()
}

/// All cells as a frame, one row each, in the table's order.
fn frame(table: &ResultsTable) -> Result<DataFrame, TableError> {
    let cells = &table.cells;
    let text = |name: &str, of: &dyn Fn(usize) -> String| -> Column {
        Column::new(name.into(), (0..cells.len()).map(of).collect::<Vec<_>>())
    };
    let mut columns = vec![text("metric", &|i| cells[i].metric.column().to_owned())];
    for (place, axis) in table.row_axes.iter().enumerate() {
        columns.push(text(axis, &|i| cells[i].row[place].clone()));
    }
    columns.push(text(&table.column_axis, &|i| cells[i].column.clone()));
    columns.push(Column::new("mean".into(), cells.iter().map(|c| c.mean).collect::<Vec<_>>()));
    columns.push(Column::new("std".into(), cells.iter().map(|c| c.std).collect::<Vec<_>>()));
    columns.push(Column::new("runs".into(), cells.iter().map(|c| c.runs as u32).collect::<Vec<_>>()));
    columns.push(Column::new("images".into(), cells.iter().map(|c| c.images as u32).collect::<Vec<_>>()));
    columns.push(Column::new("left_out".into(), cells.iter().map(|c| c.left_out as u32).collect::<Vec<_>>()));
    columns.push(Column::new("in_domain".into(), cells.iter().map(|c| c.in_domain).collect::<Vec<_>>()));
    columns.push(Column::new("oracle".into(), cells.iter().map(|c| c.oracle).collect::<Vec<_>>()));
    Ok(DataFrame::new(cells.len(), columns)?)
}

/// Writes all cells, one row each, as CSV; values from 0 to 1 with all their digits.
///
/// # Errors
/// A file that cannot be written.
pub fn csv(table: &ResultsTable, path: &Path) -> Result<(), TableError> {
    let file = File::create(path).map_err(|source| TableError::Write { path: path.to_owned(), source })?;
    Ok(CsvWriter::new(file).finish(&mut frame(table)?)?)
}

/// Writes all cells, one row each, as Parquet.
///
/// # Errors
/// A file that cannot be written.
pub fn parquet(table: &ResultsTable, path: &Path) -> Result<(), TableError> {
    let file = File::create(path).map_err(|source| TableError::Write { path: path.to_owned(), source })?;
    ParquetWriter::new(file).finish(&mut frame(table)?)?;
    Ok(())
}
