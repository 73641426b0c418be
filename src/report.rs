//! The results folder: the tables as files, and `report.html`, which shows them with charts, overlays, the stages, and the
//! lineage of every number. The same results give the same bytes.

mod lineage;
mod page;
pub mod results;
mod stages;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use siteline_cache::Digest;
use siteline_pipeline::NodeIndex;
use siteline_pipeline::plan::{Plan, Planner, State};
use siteline_pipeline::protocol::Purpose;

use crate::diagnostic::CommandError;
use crate::project::Project;

/// What was written.
pub struct Written {
    /// The first table, for the screen.
    pub table: Option<String>,
    /// Where the report lies.
    pub report: Option<PathBuf>,
    /// The results folder.
    pub folder: PathBuf,
    /// Whether anything that is up to date lies there.
    pub any: bool,
    /// Files there of an earlier run: out of date, or of instances that the sweep has no more.
    pub old: Vec<PathBuf>,
}

/// Puts every result that is up to date into the results folder, and the report where there is a table.
pub fn write(project: &Project, planner: &Planner, plan: &Plan) -> Result<Written, CommandError> {
    let folder = project.results();
    let (mut fresh, mut outdated, mut not_asked_for) = (BTreeSet::new(), Vec::<PathBuf>::new(), Vec::new());
    let has_results = |node: &NodeIndex| planner.kind(*node).outputs.iter().any(|o| o.purpose == Purpose::Result);
    let with_results: Vec<NodeIndex> = planner.graph.dag.node_indices().filter(has_results).collect();
    for node in with_results.iter().copied() {
        // The only instance with results has the folder to itself; several have one each.
        let target = if with_results.len() == 1 { folder.clone() } else { folder_of(planner, &folder, node) };
        let wanted = planner.kind(node).outputs.iter().filter(|output| output.purpose == Purpose::Result);
        let record = match plan.state(node) {
            State::Cached(record) => record,
            // Whether these are up to date was not asked.
            State::NotSelected => {
                not_asked_for.extend(wanted.map(|output| target.join(&output.path)));
                continue;
            }
            State::Stale { .. } | State::Waiting { .. } => {
                outdated.extend(wanted.map(|output| target.join(&output.path)));
                continue;
            }
        };
        for output in wanted {
            let of = |path: &str| path == output.path || (output.path.ends_with('/') && path.starts_with(&output.path));
            for file in record.outputs.iter().filter(|file| of(&file.path)) {
                let path = target.join(&file.path);
                put(&path, &project.store.read(&file.digest)?)?;
                fresh.insert(path);
            }
        }
    }
    let tables = results::find_tables(planner, plan)?;
    let report = folder.join("report.html");
    let any = !fresh.is_empty();
    let of_tables = |node: &NodeIndex| planner.kind(*node).outputs.iter().any(|o| o.purpose == Purpose::Cells);
    let mut with_tables = planner.graph.dag.node_indices().filter(of_tables).peekable();
    if with_tables.peek().is_none() || with_tables.any(|node| matches!(plan.state(node), State::NotSelected)) {
        not_asked_for.push(report.clone());
    }
    let mut written = Written { table: None, report: None, folder, any, old: Vec::new() };
    if let Some(first) = tables.first() {
        let html = page::render(planner, plan, &tables)?;
        put(&report, html.as_bytes())?;
        let markdown = first.read(&project.store, "table.md")?;
        written.table = Some(String::from_utf8_lossy(&markdown).into_owned());
        written.report = Some(report.clone());
        fresh.insert(report.clone());
    }
    // Of what nothing makes any more, what the store does not have may be somebody's own.
    let is_result = |path: &PathBuf| {
        *path == report
            || outdated.iter().any(|result| path.starts_with(result))
            || Digest::of_file(path).is_ok_and(|(digest, _)| project.store.object_path(&digest).exists())
    };
    let is_old = |path: &PathBuf| {
        !fresh.contains(path) && !not_asked_for.iter().any(|result| path.starts_with(result)) && is_result(path)
    };
    written.old = files_below(&written.folder).into_iter().filter(is_old).collect();
    Ok(written)
}

/// Plain files in a folder and those in it, as far as they can be read, sorted.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<_> = std::fs::read_dir(folder).into_iter().flatten().flatten().collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    let below = |entry: std::fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => files_below(&entry.path()),
        Ok(kind) if kind.is_file() => vec![entry.path()],
        _ => Vec::new(),
    };
    entries.into_iter().flat_map(below).collect()
}

fn folder_of(planner: &Planner, folder: &Path, node: NodeIndex) -> PathBuf {
    let instance = &planner.graph.dag[node];
    instance
        .point
        .iter()
        .fold(folder.join(instance.stage.as_ref()), |at, (axis, value)| at.join(format!("{axis}={value}")))
}

/// Writes a file whole, if it is not there with this very content.
fn put(path: &Path, bytes: &[u8]) -> Result<(), CommandError> {
    if std::fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(CommandError::file("create", folder))?;
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(CommandError::file("write", folder))?;
    std::io::Write::write_all(&mut file, bytes).map_err(CommandError::file("write", path))?;
    use std::os::unix::fs::PermissionsExt;
    file.as_file()
        .set_permissions(std::fs::Permissions::from_mode(0o644))
        .map_err(CommandError::file("write", path))?;
    file.persist(path).map_err(|e| CommandError::file("write", path)(e.error))?;
    Ok(())
}
