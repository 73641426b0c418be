//! The results folder: the tables as files, and `report.html`, which shows them with charts, overlays, the stages, and the
//! lineage of every number. The same results give the same bytes.

mod lineage;
mod page;
pub mod results;
mod stages;

use std::path::{Path, PathBuf};

use siteline_pipeline::plan::Planner;
use siteline_pipeline::protocol::Purpose;

use crate::diagnostic::CommandError;
use crate::project::Project;

/// What was written.
pub struct Written {
    /// The first table, for the screen.
    pub table: String,
    /// Where the report lies.
    pub report: PathBuf,
}

/// Writes the results of all tables that are up to date; nothing if there is none.
pub fn write(project: &Project, planner: &Planner) -> Result<Option<Written>, CommandError> {
    // Looked up anew: the run has just changed what is in the store.
    let mut planner = Planner::new(planner.loaded, planner.kinds, planner.store, &[])?;
    let plan = planner.plan()?;
    let tables = results::find_tables(&planner, &plan)?;
    let Some(first) = tables.first() else { return Ok(None) };
    let folder = project.results();
    for table in &tables {
        let target = if tables.len() == 1 { folder.clone() } else { folder.join(&table.stage) };
        let wanted = planner.kind(table.node).outputs.iter().filter(|output| output.purpose == Purpose::Result);
        for output in wanted {
            let of = |path: &str| path == output.path || (output.path.ends_with('/') && path.starts_with(&output.path));
            for file in table.record.outputs.iter().filter(|file| of(&file.path)) {
                put(&target.join(&file.path), &project.store.read(&file.digest)?)?;
            }
        }
    }
    let html = page::render(&planner, &plan, &tables)?;
    let report = folder.join("report.html");
    put(&report, html.as_bytes())?;
    let markdown = first.read(&project.store, "table.md")?;
    Ok(Some(Written { table: String::from_utf8_lossy(&markdown).into_owned(), report }))
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
    file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644)).map_err(CommandError::file("write", path))?;
    file.persist(path).map_err(|e| CommandError::file("write", path)(e.error))?;
    Ok(())
}
