//! The results folder: the tables as files, and `report.html`, which shows them with charts, overlays, the stages, and the
//! lineage of every number. The same results give the same bytes.

mod lineage;
mod page;
pub mod results;
mod stages;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use siteline_cache::{Digest, Store};
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
    let mut results = Results::put(project, planner, plan)?;
    let any = !results.fresh.is_empty();
    let mut written = Written { table: None, report: None, folder, any, old: Vec::new() };
    let report = written.folder.join("report.html");
    let tables = results::find_tables(planner, plan)?;
    if let Some(first) = tables.first() {
        let html = page::render(planner, plan, &tables)?;
        put(&report, html.as_bytes())?;
        let markdown = first.read(&project.store, "table.md")?;
        written.table = Some(String::from_utf8_lossy(&markdown).into_owned());
        results.fresh.insert(report.clone());
        written.report = Some(report);
    } else if has_tables_and_asks_for_all(planner, plan) {
        results.outdated.push(report);
    }
    written.old = results.old_in(&written.folder, &project.store);
    Ok(written)
}

/// Whether a plan has tables and leaves none of them out.
fn has_tables_and_asks_for_all(planner: &Planner, plan: &Plan) -> bool {
    let makes_table = |node: &NodeIndex| planner.kind(*node).outputs.iter().any(|o| o.purpose == Purpose::Cells);
    let mut tables = planner.graph.dag.node_indices().filter(makes_table).peekable();
    tables.peek().is_some() && tables.all(|node| !matches!(plan.state(node), State::NotSelected))
}

/// Where results lie, by what is known of them.
#[derive(Default)]
struct Results {
    /// Files that are up to date.
    fresh: BTreeSet<PathBuf>,
    /// Files and folders that are not.
    outdated: Vec<PathBuf>,
    /// Files and folders of which that was not asked.
    not_asked_for: Vec<PathBuf>,
}

impl Results {
    /// Puts those that are up to date where they belong.
    fn put(project: &Project, planner: &Planner, plan: &Plan) -> Result<Self, CommandError> {
        let mut results = Self::default();
        let has_results = |node: &NodeIndex| planner.kind(*node).outputs.iter().any(|o| o.purpose == Purpose::Result);
        let with_results: Vec<NodeIndex> = planner.graph.dag.node_indices().filter(has_results).collect();
        for node in with_results.iter().copied() {
            let folder = project.results();
            // The only instance with results has the folder to itself; several have one each.
            let target = if with_results.len() == 1 { folder } else { folder_of(planner, &folder, node) };
            for output in planner.kind(node).outputs.iter().filter(|output| output.purpose == Purpose::Result) {
                match plan.state(node) {
                    State::Cached(record) => {
                        for file in record.outputs.iter().filter(|file| is_of(&file.path, &output.path)) {
                            let path = target.join(&file.path);
                            put(&path, &project.store.read(&file.digest)?)?;
                            results.fresh.insert(path);
                        }
                    }
                    State::NotSelected => results.not_asked_for.push(target.join(&output.path)),
                    State::Stale { .. } | State::Waiting { .. } => results.outdated.push(target.join(&output.path)),
                }
            }
        }
        Ok(results)
    }

    /// The files in the results folder that are of an earlier run.
    fn old_in(&self, folder: &Path, store: &Store) -> Vec<PathBuf> {
        let is_among = |path: &Path, results: &[PathBuf]| results.iter().any(|result| path.starts_with(result));
        // Of what nothing makes any more, what the store does not have may be somebody's own.
        let is_stored =
            |path: &PathBuf| Digest::of_file(path).is_ok_and(|(digest, _)| store.object_path(&digest).exists());
        let is_old = |path: &PathBuf| {
            let left = !self.fresh.contains(path) && !is_among(path, &self.not_asked_for);
            left && (is_among(path, &self.outdated) || is_stored(path))
        };
        files_below(folder).into_iter().filter(is_old).collect()
    }
}

/// Whether a file is an output or lies in one.
fn is_of(file: &str, output: &str) -> bool {
    file == output || (output.ends_with('/') && file.starts_with(output))
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
