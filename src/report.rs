//! The results folder: the tables as files, and `report.html`, which shows them with charts, overlays, the stages, and the
//! lineage of every number. The same results give the same bytes.

mod lineage;
mod page;
pub mod results;
mod stages;

use std::path::{Path, PathBuf};

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
    /// Files there of an earlier run, which are out of date: the first, and their number.
    pub old: Option<(PathBuf, usize)>,
}

/// Puts every result that is up to date into the results folder, and the report where there is a table.
pub fn write(project: &Project, planner: &Planner, plan: &Plan) -> Result<Written, CommandError> {
    let folder = project.results();
    let (mut any, mut old) = (false, Old::default());
    let has_results = |node: &NodeIndex| planner.kind(*node).outputs.iter().any(|o| o.purpose == Purpose::Result);
    let with_results: Vec<NodeIndex> = planner.graph.dag.node_indices().filter(has_results).collect();
    for node in with_results.iter().copied() {
        // The only instance with results has the folder to itself; several have one each.
        let target = if with_results.len() == 1 { folder.clone() } else { folder_of(planner, &folder, node) };
        let wanted = planner.kind(node).outputs.iter().filter(|output| output.purpose == Purpose::Result);
        let record = match plan.state(node) {
            State::Cached(record) => record,
            State::Stale { .. } | State::Waiting { .. } => {
                wanted.for_each(|output| old.look_at(target.join(&output.path)));
                continue;
            }
            State::NotSelected => continue,
        };
        for output in wanted {
            let of = |path: &str| path == output.path || (output.path.ends_with('/') && path.starts_with(&output.path));
            for file in record.outputs.iter().filter(|file| of(&file.path)) {
                any = true;
                put(&target.join(&file.path), &project.store.read(&file.digest)?)?;
            }
        }
    }
    let tables = results::find_tables(planner, plan)?;
    let report = folder.join("report.html");
    let Some(first) = tables.first() else {
        if old.found.is_some() {
            old.look_at(report);
        }
        return Ok(Written { table: None, report: None, folder, any, old: old.found });
    };
    let html = page::render(planner, plan, &tables)?;
    put(&report, html.as_bytes())?;
    let markdown = first.read(&project.store, "table.md")?;
    Ok(Written {
        table: Some(String::from_utf8_lossy(&markdown).into_owned()),
        report: Some(report),
        folder,
        any,
        old: old.found,
    })
}

/// Files that are there and out of date.
#[derive(Default)]
struct Old {
    found: Option<(PathBuf, usize)>,
}

impl Old {
    fn look_at(&mut self, path: PathBuf) {
        if path.exists() {
            let (first, others) = self.found.take().unwrap_or((path, 0));
            self.found = Some((first, others + 1));
        }
    }
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
