//! What a run was asked for, kept beside what came of it.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// What a run was asked for.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Request {
    /// The command as typed.
    pub command: String,
    /// What the command line changed in the manifest.
    pub set: Vec<String>,
    /// The patterns that chose instances, as in [`Settings::chosen`](super::Settings::chosen).
    pub chosen: BTreeMap<String, Vec<String>>,
    /// The manifest's file.
    pub manifest: String,
}

/// Its file in the run's folder.
pub(super) const FILE: &str = "request.json";

impl Request {
    /// What the run of this folder was asked for, if its file holds.
    pub fn read(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(folder.join(FILE)).ok()?).ok()
    }

    /// Whether it was not asked for the whole sweep.
    pub fn is_partial(&self) -> bool {
        ["only", "except", "from"].iter().any(|choice| self.chosen.contains_key(*choice))
    }
}
