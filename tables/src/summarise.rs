//! Score files to cells: images are averaged within a run, runs within a cell.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;

use polars::prelude::*;

use crate::{AVERAGE, Cell, Layout, Marks, Metric, ResultsTable, ScoreFile, TableError, percent};

type Point = BTreeMap<String, String>;

/// One run: the images of one score file, averaged.
struct RunMean {
    row: Vec<String>,
    column: String,
    over: Vec<String>,
    values: Vec<f64>,
    images: usize,
    marks: Marks,
    selection: Option<String>,
    point: Point,
}

/// Works out the table of some score files.
///
/// # Errors
/// Files that cannot be read, a layout whose axes the files do not have.
pub fn summarise(files: &[ScoreFile], layout: &Layout) -> Result<ResultsTable, TableError> {
    let axes: Vec<String> = files.first().map(|f| f.point.keys().cloned().collect()).unwrap_or_default();
    let missing = std::iter::once(&layout.columns).chain(&layout.over).find(|axis| !axes.contains(axis));
    if let Some(axis) = missing {
        return Err(TableError::Layout(format!(
            "the scores have no axis `{axis}`; their axes are {}",
            axes.join(", ")
        )));
    }
    let row_axes: Vec<String> =
        axes.iter().filter(|a| **a != layout.columns && !layout.over.contains(a)).cloned().collect();
    let runs = files.iter().map(|file| run_mean(file, layout, &row_axes)).collect::<Result<Vec<_>, _>>()?;
    let in_order = |mut all: Vec<Vec<String>>| {
        let mut seen = std::collections::HashSet::new();
        all.retain(|item| seen.insert(item.clone()));
        all
    };
    // Files come in the order of their points, so rows and columns are sorted.
    let rows = in_order(runs.iter().map(|run| run.row.clone()).collect());
    let mut columns: Vec<String> = in_order(runs.iter().map(|r| vec![r.column.clone()]).collect()).concat();
    columns.sort();
    let mut cells = Vec::new();
    for (index, metric) in layout.metrics.iter().enumerate() {
        for row in &rows {
            for column in &columns {
                let members: Vec<&RunMean> = runs.iter().filter(|r| r.row == *row && r.column == *column).collect();
                let values = members.iter().map(|run| run.values[index]).collect();
                cells.extend(cell(layout, *metric, row, column, values, &members)?);
            }
            cells.extend(average(layout, *metric, index, row, &columns, &runs)?);
        }
    }
    columns.push(AVERAGE.to_owned());
    Ok(ResultsTable {
        row_axes,
        column_axis: layout.columns.clone(),
        over: layout.over.clone(),
        rows,
        columns,
        metrics: layout.metrics.clone(),
        decimals: layout.decimals,
        note: layout.note.clone(),
        selections: runs.iter().filter_map(|run| run.selection.clone()).collect::<BTreeSet<_>>().into_iter().collect(),
        cells,
    })
}

fn run_mean(file: &ScoreFile, layout: &Layout, row_axes: &[String]) -> Result<RunMean, TableError> {
    let bad = |reason: String| TableError::Scores { path: file.path.clone(), reason };
    let open = File::open(&file.path).map_err(|e| bad(e.to_string()))?;
    let frame = ParquetReader::new(open).finish().map_err(|e| bad(e.to_string()))?;
    if frame.height() == 0 {
        return Err(bad("it has no rows".into()));
    }
    let column = |name: &str| frame.column(name).map(Column::as_materialized_series).map_err(|e| bad(e.to_string()));
    let mean = |metric: &Metric| -> Result<f64, TableError> {
        column(metric.column())?.mean().ok_or_else(|| bad(format!("`{}` has no mean", metric.column())))
    };
    let values = layout.metrics.iter().map(mean).collect::<Result<_, _>>()?;
    let in_domain = column("in_domain")?.bool().map_err(|e| bad(e.to_string()))?.any();
    // Scores of other programs than `evaluate` need not say how their models were selected.
    let oracle = column("oracle").ok().and_then(|values| values.bool().ok().map(ChunkedArray::any)).unwrap_or(false);
    let selection = column("selection").ok().and_then(|values| values.str().ok()?.first().map(str::to_owned));
    let of = |axes: &[String]| axes.iter().map(|axis| file.point.get(axis).cloned().unwrap_or_default()).collect();
    Ok(RunMean {
        row: of(row_axes),
        column: file.point[&layout.columns].clone(),
        over: of(&layout.over),
        values,
        images: frame.height(),
        marks: Marks { in_domain, oracle },
        selection,
        point: file.point.clone(),
    })
}

/// Mean and spread of some runs; no cell without a run.
fn cell(
    layout: &Layout,
    metric: Metric,
    row: &[String],
    column: &str,
    values: Vec<f64>,
    members: &[&RunMean],
) -> Result<Option<Cell>, TableError> {
    if values.is_empty() {
        return Ok(None);
    }
    let runs = values.len();
    let series = Series::new("value".into(), values);
    let std = if runs > 1 { series.std(1) } else { None };
    let mean = series.mean().ok_or_else(|| TableError::Layout("a cell has no mean".into()))?;
    let marks = Marks {
        in_domain: members.iter().any(|run| run.marks.in_domain),
        oracle: members.iter().any(|run| run.marks.oracle),
    };
    Ok(Some(Cell {
        metric,
        row: row.to_vec(),
        column: column.to_owned(),
        text: percent(mean, std, marks, layout.decimals),
        mean,
        std,
        runs,
        images: members.iter().map(|run| run.images).sum::<usize>() / runs,
        in_domain: marks.in_domain,
        oracle: marks.oracle,
        points: members.iter().map(|run| run.point.clone()).collect(),
    }))
}

/// The mean over all columns, run by run. A row that lacks a column has no average: it would be one over other sites.
fn average(
    layout: &Layout,
    metric: Metric,
    index: usize,
    row: &[String],
    columns: &[String],
    runs: &[RunMean],
) -> Result<Option<Cell>, TableError> {
    let members: Vec<&RunMean> = runs.iter().filter(|run| run.row == row).collect();
    let mut by_over: BTreeMap<&[String], Vec<f64>> = BTreeMap::new();
    for run in &members {
        by_over.entry(&run.over).or_default().push(run.values[index]);
    }
    if by_over.values().any(|values| values.len() != columns.len()) {
        return Ok(None);
    }
    let values = by_over.values().map(|values| values.iter().sum::<f64>() / values.len() as f64).collect();
    cell(layout, metric, row, AVERAGE, values, &members)
}
