//! Runs: a small file in each run's folder says what was asked for and how it ended.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Digest, Owner, Result, StoreError};

const FILE: &str = "run.json";

/// One call of `siteline run`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRow {
    /// Its id, which sorts by time.
    pub id: String,
    /// The manifest's name.
    pub manifest: String,
    /// The arguments of the command.
    pub command: String,
    /// Start, in milliseconds since 1970.
    pub started_ms: u64,
    /// End, if it has ended.
    pub finished_ms: Option<u64>,
    /// `running`, `done`, `failed`, `cancelled`.
    pub status: String,
    /// How many lines tell what became of its instances, if it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcomes: Option<usize>,
    /// The process that runs it.
    pub owner: Option<Owner>,
}

impl RunRow {
    /// Its status in a word, `killed` for one that ended without a word.
    pub fn state(&self) -> &str {
        let gone = || self.owner.as_ref().and_then(Owner::runs) == Some(false);
        if self.finished_ms.is_none() && gone() { "killed" } else { &self.status }
    }
}

/// A run's file: the row, and a digest of it, as what it says decides what `gc` may remove.
#[derive(Serialize, Deserialize)]
struct Checked {
    #[serde(flatten)]
    row: RunRow,
    /// Absent in files of earlier builds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    digest: Option<Digest>,
}

fn digest_of(row: &RunRow) -> Digest {
    Digest::of_bytes(&serde_json::to_vec(row).expect("a run is JSON"))
}

/// Writes a run's file, whole or not at all.
pub(crate) fn write(folder: &Path, row: &RunRow) -> Result<()> {
    let (fresh, path) = (folder.join(format!(".{FILE}")), folder.join(FILE));
    let checked = Checked { digest: Some(digest_of(row)), row: row.clone() };
    let json = serde_json::to_vec_pretty(&checked).expect("a run is JSON");
    fs::write(&fresh, json).and_then(|()| fs::rename(&fresh, &path)).map_err(StoreError::io("write", &path))
}

pub(crate) fn read(folder: &Path) -> Option<RunRow> {
    let Checked { row, digest } = serde_json::from_slice(&fs::read(folder.join(FILE)).ok()?).ok()?;
    digest.is_none_or(|digest| digest == digest_of(&row)).then_some(row)
}

/// All runs below a folder, the latest first.
pub(crate) fn all(folder: &Path) -> Vec<RunRow> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut runs: Vec<RunRow> = entries.filter_map(|entry| read(&entry.path())).collect();
    runs.sort_by(|a, b| (b.started_ms, &b.id).cmp(&(a.started_ms, &a.id)));
    runs
}

/// Folders of runs of which something is there, but not what they were.
pub(crate) fn damaged(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    // A run that was killed as it began has left nothing but a file that it was writing.
    let is_one = |file: fs::DirEntry| !file.file_name().to_string_lossy().starts_with('.');
    let holds_something = |path: &PathBuf| fs::read_dir(path).is_ok_and(|files| files.flatten().any(is_one));
    let mut damaged: Vec<_> = entries.filter(|path| holds_something(path) && read(path).is_none()).collect();
    damaged.sort();
    damaged
}
