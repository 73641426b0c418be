//! Score files to cells: images come to one value within a run, runs are averaged within a cell.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;

use polars::prelude::*;

use crate::{AVERAGE, Aggregate, By, Cell, Lacking, Layout, Marks, Metric, ResultsTable, ScoreFile, TableError, shown};

type Point = BTreeMap<String, String>;

/// What a table shows for the images that have no class.
const UNKNOWN: &str = "unknown";
/// The column of the surface Dice's tolerance.
const TOLERANCE: &str = "nsd_tolerance_px";
/// Columns of a table beside its axes.
const RESERVED: [&str; 8] = ["metric", "mean", "std", "runs", "images", "left_out", "in_domain", "oracle"];
/// Terciles of size in their order; images without a lesion come last.
const SIZES: [&str; 4] = ["small", "medium", "large", "none"];

/// The images of one score file that stand in one row, each metric as one value.
struct RunMean {
    row: Vec<String>,
    column: String,
    over: Vec<String>,
    values: Vec<RunValue>,
    images: usize,
    marks: Marks,
    selection: Option<String>,
    /// What of its method the model lacks.
    without: Option<String>,
    /// The tolerance of the surface Dice, in pixels; scores of other programs need not say it.
    tolerance: Option<f64>,
    point: Point,
}

/// A metric of one run.
#[derive(Clone, Copy)]
struct RunValue {
    /// None where no image has a finite value.
    value: Option<f64>,
    /// Images without one.
    left_out: usize,
}

/// Works out the table of some score files.
///
/// # Errors
/// Files that cannot be read, a layout whose axes the files do not have, or that asks for what has no meaning.
pub fn summarise(files: &[ScoreFile], layout: &Layout) -> Result<ResultsTable, TableError> {
    let axes: Vec<String> = files.first().map(|f| f.point.keys().cloned().collect()).unwrap_or_default();
    check_layout(layout, &axes)?;
    let mut row_axes: Vec<String> =
        axes.iter().filter(|a| **a != layout.columns && !layout.over.contains(a)).cloned().collect();
    let runs = files.iter().map(|file| run_means(file, layout, &row_axes)).collect::<Result<Vec<_>, _>>()?;
    let runs: Vec<RunMean> = runs.into_iter().flatten().collect();
    row_axes.extend(layout.by.map(|by| by.column().to_owned()));
    let rows: BTreeSet<Vec<String>> = runs.iter().map(|run| run.row.clone()).collect();
    let columns: BTreeSet<String> = runs.iter().map(|run| run.column.clone()).collect();
    let (mut rows, mut columns) = (Vec::from_iter(rows), Vec::from_iter(columns));
    if layout.by == Some(By::Size) {
        let rank = |row: &[String]| SIZES.iter().position(|size| row.last().is_some_and(|last| last == size));
        rows.sort_by_key(|row| (row[..row.len() - 1].to_vec(), rank(row)));
    }
    let mut cells = Vec::new();
    for (index, metric) in layout.metrics.iter().enumerate() {
        for row in &rows {
            for column in &columns {
                let members: Vec<&RunMean> = runs.iter().filter(|r| r.row == *row && r.column == *column).collect();
                let values = members.iter().filter_map(|run| run.values[index].value).collect();
                cells.extend(cell(layout, (index, *metric), row, column, values, &members)?);
            }
            cells.extend(average(layout, (index, *metric), row, &columns, &runs)?);
        }
    }
    columns.push(AVERAGE.to_owned());
    let mut table = ResultsTable {
        row_axes,
        column_axis: layout.columns.clone(),
        over: layout.over.clone(),
        rows,
        columns,
        metrics: layout.metrics.clone(),
        titles: titles(&layout.metrics, &runs)?,
        aggregate: layout.aggregate,
        decimals: layout.decimals,
        note: layout.note.clone(),
        selections: runs.iter().filter_map(|run| run.selection.clone()).collect::<BTreeSet<_>>().into_iter().collect(),
        lacking: lacking(&runs),
        caption: String::new(),
        cells,
    };
    table.caption = table.words();
    Ok(table)
}

/// How many models lack something of their method, of those in the same rows.
fn lacking(runs: &[RunMean]) -> Vec<Lacking> {
    // A model stands in several rows where they are split by images.
    let mut models: BTreeMap<&str, BTreeSet<&Point>> = BTreeMap::new();
    for run in runs {
        if let Some(without) = &run.without {
            models.entry(without).or_default().insert(&run.point);
        }
    }
    let all = |models: &BTreeSet<&Point>| {
        let rows: BTreeSet<_> = runs.iter().filter(|run| models.contains(&run.point)).map(|run| &run.row).collect();
        let beside: BTreeSet<_> = runs.iter().filter(|run| rows.contains(&run.row)).map(|run| &run.point).collect();
        beside.len()
    };
    let one = |(without, models): (&str, &BTreeSet<&Point>)| Lacking {
        without: without.to_owned(),
        models: models.len(),
        of: all(models),
    };
    models.iter().map(|(without, models)| one((without, models))).collect()
}

/// The metrics' headings. A surface Dice says its tolerance, of which there must be one.
fn titles(metrics: &[Metric], runs: &[RunMean]) -> Result<BTreeMap<String, String>, TableError> {
    let each = runs.iter().map(|run| run.tolerance.map_or_else(|| "unknown".to_owned(), |px| px.to_string()));
    let tolerances = Vec::from_iter(each.collect::<BTreeSet<_>>());
    let of = |metric: &Metric| {
        let title = match (metric, tolerances.as_slice()) {
            (Metric::Nsd, [px]) if px != "unknown" => format!("NSD at {px} px (%; as MONAI)"),
            (Metric::Nsd, [_, _, ..]) => {
                let all = tolerances.join(", ");
                return Err(TableError::Layout(format!(
                    "`{}` of these scores has several tolerances ({all} pixels): give `evaluate` one `nsd_tolerance`, or the table one of them",
                    metric.column()
                )));
            }
            _ => metric.title().to_owned(),
        };
        Ok((metric.column().to_owned(), title))
    };
    metrics.iter().map(of).collect()
}

/// Refuses what has no meaning for scores of these axes.
fn check_layout(layout: &Layout, axes: &[String]) -> Result<(), TableError> {
    let missing = std::iter::once(&layout.columns).chain(&layout.over).find(|axis| !axes.contains(axis));
    if let Some(axis) = missing {
        return Err(TableError::Layout(format!(
            "the scores have no axis `{axis}`; their axes are {}",
            axes.join(", ")
        )));
    }
    if let Some(by) = layout.by.filter(|by| axes.iter().any(|axis| axis == by.column())) {
        let axis = by.column();
        return Err(TableError::Layout(format!("`by: {axis}` beside an axis `{axis}`: give the axis another name")));
    }
    if layout.over.contains(&layout.columns) {
        let axis = &layout.columns;
        return Err(TableError::Layout(format!("the axis `{axis}` cannot be both the columns and averaged over")));
    }
    if let Some(axis) = axes.iter().find(|axis| RESERVED.contains(&axis.as_str())) {
        return Err(TableError::Layout(format!("an axis cannot be called `{axis}`, as a column of the table is")));
    }
    check_pooled(layout)
}

fn check_pooled(layout: &Layout) -> Result<(), TableError> {
    let cannot = |metric: &&Metric| metric.pooled([1.0; 4]).is_none();
    match layout.metrics.iter().find(cannot).filter(|_| layout.aggregate == Aggregate::Pooled) {
        None => Ok(()),
        Some(metric) => Err(TableError::Layout(format!(
            "`{}` cannot be pooled over images: `aggregate: pooled` is for dice, iou and accuracy",
            metric.column()
        ))),
    }
}

/// One score file, read.
struct Scores<'a> {
    file: &'a ScoreFile,
    frame: DataFrame,
}

impl<'a> Scores<'a> {
    fn read(file: &'a ScoreFile) -> Result<Self, TableError> {
        let bad = |reason: String| TableError::Scores { path: file.path.clone(), reason };
        let open = File::open(&file.path).map_err(|e| bad(e.to_string()))?;
        let frame = ParquetReader::new(open).finish().map_err(|e| bad(e.to_string()))?;
        if frame.height() == 0 {
            return Err(bad("it has no rows".into()));
        }
        Ok(Self { file, frame })
    }

    fn column(&self, name: &str) -> Result<&Series, TableError> {
        let column = self.frame.column(name).map(Column::as_materialized_series);
        column.map_err(|e| self.bad(e))
    }

    fn bad(&self, reason: impl std::fmt::Display) -> TableError {
        TableError::Scores { path: self.file.path.clone(), reason: reason.to_string() }
    }

    /// Numbers of a column, null where there is none.
    fn numbers(&self, name: &str) -> Result<Vec<Option<f64>>, TableError> {
        let column = self.column(name)?.cast(&DataType::Float64).map_err(|e| self.bad(e))?;
        Ok(column.f64().map_err(|e| self.bad(e))?.iter().collect())
    }

    fn texts(&self, name: &str) -> Result<Vec<String>, TableError> {
        let texts = self.column(name)?.str().map_err(|e| self.bad(e))?.iter();
        Ok(texts.map(|text| text.unwrap_or(UNKNOWN).to_owned()).collect())
    }
}

/// The runs of one score file: one, or one for each value of what the layout splits by.
fn run_means(file: &ScoreFile, layout: &Layout, row_axes: &[String]) -> Result<Vec<RunMean>, TableError> {
    let scores = Scores::read(file)?;
    let in_domain = scores.column("in_domain")?.bool().map_err(|e| scores.bad(e))?.any();
    // Scores of other programs than `evaluate` need not say how their models were selected.
    let oracle =
        scores.column("oracle").ok().and_then(|values| values.bool().ok().map(ChunkedArray::any)).unwrap_or(false);
    let selection = scores.column("selection").ok().and_then(|values| values.str().ok()?.first().map(str::to_owned));
    let without = scores.column("without").ok().and_then(|values| values.str().ok()?.first().map(str::to_owned));
    let tolerance = scores.numbers(TOLERANCE).ok().and_then(|values| values.first().copied().flatten());
    let of = |axes: &[String]| -> Vec<String> {
        axes.iter().map(|axis| file.point.get(axis).cloned().unwrap_or_default()).collect()
    };
    let mut parts: BTreeMap<Option<String>, Vec<usize>> = BTreeMap::new();
    match layout.by {
        None => drop(parts.insert(None, (0..scores.frame.height()).collect())),
        Some(by) => {
            for (row, value) in scores.texts(by.column())?.into_iter().enumerate() {
                parts.entry(Some(value)).or_default().push(row);
            }
        }
    }
    let mut runs = Vec::with_capacity(parts.len());
    for (value, images) in parts {
        let values = layout.metrics.iter().map(|metric| run_value(&scores, *metric, layout.aggregate, &images));
        runs.push(RunMean {
            row: of(row_axes).into_iter().chain(value).collect(),
            column: file.point[&layout.columns].clone(),
            over: of(&layout.over),
            values: values.collect::<Result<_, _>>()?,
            images: images.len(),
            marks: Marks { in_domain, oracle },
            selection: selection.clone(),
            without: without.clone(),
            tolerance,
            point: file.point.clone(),
        });
    }
    Ok(runs)
}

/// Some images of a file as one value.
fn run_value(scores: &Scores, metric: Metric, aggregate: Aggregate, images: &[usize]) -> Result<RunValue, TableError> {
    let mean = |values: &[f64]| (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64);
    if aggregate == Aggregate::Pooled {
        let mut sums = [0.0; 4];
        for (sum, name) in sums.iter_mut().zip(["tp", "fp", "fn", "tn"]) {
            let counts = scores.numbers(name)?;
            *sum = images.iter().filter_map(|row| counts[*row]).sum();
        }
        return Ok(RunValue { value: metric.pooled(sums), left_out: 0 });
    }
    let all = scores.numbers(metric.column())?;
    let there = images.iter().filter(|row| all[**row].is_some_and(f64::is_finite));
    let left_out = images.len() - there.clone().count();
    let value = match aggregate {
        Aggregate::Patient => {
            let patients = scores.texts("patient")?;
            if patients.iter().any(|patient| patient == UNKNOWN) {
                return Err(scores.bad("an image has no `patient`, which `aggregate: patient` needs"));
            }
            let mut each: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
            there.for_each(|row| each.entry(&patients[*row]).or_default().extend(all[*row]));
            mean(&each.values().filter_map(|values| mean(values)).collect::<Vec<_>>())
        }
        _ => mean(&there.filter_map(|row| all[*row]).collect::<Vec<_>>()),
    };
    Ok(RunValue { value, left_out })
}

/// Mean and spread of some runs; no cell without a value.
fn cell(
    layout: &Layout,
    (index, metric): (usize, Metric),
    row: &[String],
    column: &str,
    values: Vec<f64>,
    members: &[&RunMean],
) -> Result<Option<Cell>, TableError> {
    if values.is_empty() {
        return Ok(None);
    }
    let series = Series::new("value".into(), &values);
    let std = if values.len() > 1 { series.std(1) } else { None };
    let mean = series.mean().ok_or_else(|| TableError::Layout("a cell has no mean".into()))?;
    let marks = Marks {
        in_domain: members.iter().any(|run| run.marks.in_domain),
        oracle: members.iter().any(|run| run.marks.oracle),
    };
    let left_out = members.iter().map(|run| run.values[index].left_out).sum();
    Ok(Some(Cell {
        metric,
        row: row.to_vec(),
        column: column.to_owned(),
        text: shown(metric, mean, std, marks, left_out, layout.decimals),
        mean,
        std,
        runs: values.len(),
        images: members.iter().map(|run| run.images).sum::<usize>() / members.len().max(1),
        left_out,
        in_domain: marks.in_domain,
        oracle: marks.oracle,
        points: members.iter().map(|run| run.point.clone()).collect(),
    }))
}

/// The mean over all columns, run by run. A row that lacks a column has no average: it would be one over other sites.
fn average(
    layout: &Layout,
    (index, metric): (usize, Metric),
    row: &[String],
    columns: &[String],
    runs: &[RunMean],
) -> Result<Option<Cell>, TableError> {
    let members: Vec<&RunMean> = runs.iter().filter(|run| run.row == row).collect();
    let mut by_over: BTreeMap<&[String], Vec<f64>> = BTreeMap::new();
    for run in &members {
        by_over.entry(&run.over).or_default().extend(run.values[index].value);
    }
    if by_over.values().any(|values| values.len() != columns.len()) {
        return Ok(None);
    }
    let values = by_over.values().map(|values| values.iter().sum::<f64>() / values.len() as f64).collect();
    cell(layout, (index, metric), row, AVERAGE, values, &members)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::By;

    /// Four images of two patients: one of a patient alone, one without a finite distance.
    fn scores(folder: &std::path::Path) -> ScoreFile {
        let path = folder.join("scores.parquet");
        let mut frame = DataFrame::new(
            4,
            vec![
                Column::new("patient".into(), ["a", "a", "a", "b"]),
                Column::new("class".into(), [Some("polyp"), Some("polyp"), None, Some("cyst")]),
                Column::new("size".into(), ["small", "small", "large", "large"]),
                Column::new("dice".into(), [0.2, 0.4, 0.6, 1.0]),
                Column::new("hd95_joined_px".into(), [Some(4.0), None, Some(8.0), Some(6.0)]),
                Column::new("tp".into(), [1i64, 2, 3, 4]),
                Column::new("fp".into(), [1i64, 1, 1, 0]),
                Column::new("fn".into(), [1i64, 1, 1, 0]),
                Column::new("tn".into(), [7i64, 6, 5, 6]),
                Column::new("in_domain".into(), [false; 4]),
            ],
        )
        .unwrap();
        ParquetWriter::new(File::create(&path).unwrap()).finish(&mut frame).unwrap();
        let point = [("held_out", "A"), ("seed", "0"), ("method", "erm")];
        ScoreFile { point: point.map(|(axis, value)| (axis.to_owned(), value.to_owned())).into(), path }
    }

    fn table(layout: Layout) -> ResultsTable {
        let folder = tempfile::tempdir().unwrap();
        summarise(&[scores(folder.path())], &layout).unwrap()
    }

    fn of(metrics: Vec<Metric>) -> Layout {
        Layout { metrics, ..Layout::default() }
    }

    #[test]
    fn images_patients_and_pools_come_to_different_values() {
        let mean = |aggregate| table(Layout { aggregate, ..of(vec![Metric::Dice]) }).cells[0].mean;
        assert!((mean(Aggregate::Image) - 2.2 / 4.0).abs() < 1e-12);
        assert!((mean(Aggregate::Patient) - (0.4 + 1.0) / 2.0).abs() < 1e-12);
        assert!((mean(Aggregate::Pooled) - 20.0 / (20.0 + 6.0)).abs() < 1e-12);
    }

    #[test]
    fn what_has_no_finite_value_is_left_out_and_counted() {
        let found = table(of(vec![Metric::Hd95JoinedPx]));
        assert_eq!((found.cells[0].mean, found.cells[0].left_out, found.cells[0].text.as_str()), (6.0, 1, "6.0 [1]"));
        assert!(found.caption.contains("[n]: so many images"), "{}", found.caption);
    }

    #[test]
    fn rows_are_split_by_class_or_size() {
        let by = |by| table(Layout { by: Some(by), ..of(vec![Metric::Dice]) });
        let rows = |table: &ResultsTable| table.rows.iter().map(|row| row.join(" ")).collect::<Vec<_>>();
        let classes = by(By::Class);
        assert_eq!(rows(&classes), ["erm cyst", "erm polyp", "erm unknown"]);
        assert_eq!(classes.row_axes, ["method", "class"]);
        let polyps = classes.cell(Metric::Dice, &classes.rows[1], "A").unwrap();
        assert!((polyps.mean - 0.3).abs() < 1e-12 && polyps.images == 2);
        assert_eq!(rows(&by(By::Size)), ["erm small", "erm large"]);
    }

    #[test]
    fn distances_are_not_pooled() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout { aggregate: Aggregate::Pooled, ..of(vec![Metric::Nsd]) };
        let error = summarise(&[scores(folder.path())], &layout).unwrap_err().to_string();
        assert!(error.contains("`nsd_monai` cannot be pooled"), "{error}");
    }

    #[test]
    fn a_surface_dice_says_its_tolerance_and_two_do_not_mix() {
        let folder = tempfile::tempdir().unwrap();
        let scores = |seed: &str, px: f64| {
            let path = folder.path().join(seed);
            let columns = vec![
                Column::new("nsd_monai".into(), [0.5]),
                Column::new("nsd_tolerance_px".into(), [px]),
                Column::new("in_domain".into(), [false]),
            ];
            ParquetWriter::new(File::create(&path).unwrap()).finish(&mut DataFrame::new(1, columns).unwrap()).unwrap();
            let point = [("held_out", "A"), ("seed", seed), ("method", "erm")];
            ScoreFile { point: point.map(|(axis, value)| (axis.to_owned(), value.to_owned())).into(), path }
        };
        let of = |files: &[ScoreFile]| summarise(files, &of(vec![Metric::Nsd]));
        let one = of(&[scores("0", 1.5), scores("1", 1.5)]).unwrap();
        assert_eq!(one.title(Metric::Nsd), "NSD at 1.5 px (%; as MONAI)");
        assert!(crate::render::markdown(&one).starts_with("### NSD at 1.5 px (%; as MONAI)"));
        let error = of(&[scores("0", 1.5), scores("1", 2.0)]).unwrap_err().to_string();
        assert!(error.contains("several tolerances (1.5, 2 pixels)"), "{error}");
    }
}
