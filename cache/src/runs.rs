//! Runs: a small file in each run's folder says what was asked for and how it ended.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Owner, Result, StoreError};

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

/// Writes a run's file, whole or not at all.
pub(crate) fn write(folder: &Path, row: &RunRow) -> Result<()> {
    let (fresh, path) = (folder.join(format!(".{FILE}")), folder.join(FILE));
    let json = serde_json::to_vec_pretty(row).expect("a run is JSON");
    fs::write(&fresh, json).and_then(|()| fs::rename(&fresh, &path)).map_err(StoreError::io("write", &path))
}

pub(crate) fn read(folder: &Path) -> Option<RunRow> {
    serde_json::from_slice(&fs::read(folder.join(FILE)).ok()?).ok()
}

/// All runs below a folder, the latest first.
pub(crate) fn all(folder: &Path) -> Vec<RunRow> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut runs: Vec<RunRow> = entries.filter_map(|entry| read(&entry.path())).collect();
    runs.sort_by(|a, b| (b.started_ms, &b.id).cmp(&(a.started_ms, &a.id)));
    runs
}
