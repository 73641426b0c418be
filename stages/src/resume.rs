//! Checkpoints of interrupted work: training goes on where it was, with the bits that it would have had.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use siteline_cache::Digest;
use tch::Kind;

use crate::checkpoint::{self, Tensors};
use crate::error::{Result, StageError};

const ENDING: &str = "checkpoint";
/// How often a checkpoint is written; the variable is for tests.
const EVERY: Duration = Duration::from_secs(120);
const VARIABLE: &str = "SITELINE_TEST_CHECKPOINT_SECONDS";

/// Where checkpoints of one instance's work lie.
pub struct Checkpoints {
    folder: Option<PathBuf>,
    every: Duration,
    last: Instant,
}

impl Checkpoints {
    /// In `folder`, which belongs to the very key of the work; without one none are kept.
    pub fn new(folder: Option<PathBuf>) -> Self {
        let every = std::env::var(VARIABLE).ok().and_then(|text| text.parse().ok());
        Self { folder, every: every.map_or(EVERY, Duration::from_secs_f64), last: Instant::now() }
    }

    /// Whether it is time for another one.
    pub fn is_due(&self) -> bool {
        self.folder.is_some() && self.last.elapsed() >= self.every
    }

    /// Writes a checkpoint, whole or not at all.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn keep(&mut self, state: &impl Serialize, tensors: &Tensors) -> Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        let text = serde_json::to_string(state).expect("a state is JSON");
        let notes = BTreeMap::from([("state".to_owned(), text)]);
        std::fs::create_dir_all(folder).map_err(StageError::io(folder))?;
        let fresh = tempfile::NamedTempFile::new_in(folder).map_err(StageError::io(folder))?;
        checkpoint::write(fresh.path(), tensors, Kind::Float, &notes)?;
        // The name says what the bytes are: a checkpoint that was damaged is not one.
        let (digest, _) = Digest::of_file(fresh.path()).map_err(StageError::io(folder))?;
        fresh.as_file().sync_all().map_err(StageError::io(folder))?;
        let path = folder.join(format!("{digest}.{ENDING}"));
        fresh.persist(&path).map_err(|e| StageError::io(&path)(e.error))?;
        for older in self.all().into_iter().filter(|older| *older != path) {
            let _ = std::fs::remove_file(older);
        }
        self.last = Instant::now();
        Ok(())
    }

    fn all(&self) -> Vec<PathBuf> {
        let entries = self.folder.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == ENDING)).collect()
    }

    /// The last checkpoint, if there is one that holds.
    pub fn last<S: DeserializeOwned>(&self) -> Option<(S, Tensors)> {
        let holds = |path: &PathBuf| {
            let named = path.file_stem().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
            Digest::of_file(path).ok().map(|(digest, _)| digest) == named
        };
        let path = self.all().into_iter().find(holds)?;
        let notes = checkpoint::notes(&path).ok()?;
        let state = serde_json::from_str(notes.get("state")?).ok()?;
        Some((state, checkpoint::read(&path).ok()?))
    }
}
