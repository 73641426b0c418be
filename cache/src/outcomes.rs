//! What became of the instances of a run: a file of lines, written as it happens, so that a run that was killed can be told of.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{Digest, Result, StoreError};

const FILE: &str = "instances.jsonl";

/// What became of an instance in a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceOutcome {
    /// The instance.
    pub instance: String,
    /// `cached`, `executed`, `failed`, `blocked`, `cancelled`.
    pub outcome: String,
    /// Its key, if it got one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Digest>,
    /// Why it failed or could not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Writes the outcomes of a run.
#[derive(Debug)]
pub struct OutcomeWriter {
    path: PathBuf,
    file: BufWriter<File>,
    lines: usize,
}

impl OutcomeWriter {
    pub(crate) fn create(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(StoreError::io("write", &path))?;
        Ok(Self { path, file: BufWriter::with_capacity(1 << 16, file), lines: 0 })
    }

    /// Adds a line.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn add(&mut self, outcome: &InstanceOutcome) -> Result<()> {
        let mut line = Vec::new();
        write_line(&mut line, outcome);
        self.lines += 1;
        self.file.write_all(&line).map_err(StoreError::io("write", &self.path))
    }

    /// Adds a line for each of thousands, in their order.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn add_all<T: Sync>(&mut self, all: &[T], outcome: impl Fn(&T) -> InstanceOutcome + Sync) -> Result<()> {
        let lines = |part: &[T]| {
            let mut lines = Vec::new();
            part.iter().for_each(|one| write_line(&mut lines, &outcome(one)));
            lines
        };
        self.lines += all.len();
        let parts: Vec<Vec<u8>> = all.par_chunks(512).map(lines).collect();
        parts.iter().try_for_each(|part| self.file.write_all(part)).map_err(StoreError::io("write", &self.path))
    }

    /// How many lines were added.
    pub fn lines(&self) -> usize {
        self.lines
    }

    /// Hands what was added to the system.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn flush(&mut self) -> Result<()> {
        self.file.flush().map_err(StoreError::io("write", &self.path))
    }
}

fn write_line(lines: &mut Vec<u8>, outcome: &InstanceOutcome) {
    serde_json::to_writer(&mut *lines, outcome).expect("an outcome is JSON");
    lines.push(b'\n');
}

/// Reads on where it stopped.
#[derive(Debug)]
pub struct OutcomeFollower {
    path: PathBuf,
    file: Option<File>,
    /// The beginning of a line whose end is not written yet.
    begun: Vec<u8>,
}

impl OutcomeFollower {
    pub(crate) fn of(folder: &Path) -> Self {
        Self { path: folder.join(FILE), file: None, begun: Vec::new() }
    }

    /// What was added since it was last asked.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn news(&mut self) -> Result<Vec<InstanceOutcome>> {
        if self.file.is_none() {
            match File::open(&self.path) {
                Ok(file) => self.file = Some(file),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
                Err(e) => return Err(StoreError::io("read", &self.path)(e)),
            }
        }
        if let Some(file) = &mut self.file {
            file.read_to_end(&mut self.begun).map_err(StoreError::io("read", &self.path))?;
        }
        let whole = self.begun.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        Ok(lines_of(&self.begun.drain(..whole).collect::<Vec<_>>()))
    }
}

/// Reads the lines in a run's folder that hold.
pub(crate) fn read(folder: &Path) -> Vec<InstanceOutcome> {
    let bytes = std::fs::read(folder.join(FILE)).unwrap_or_default();
    lines_of(&bytes)
}

fn lines_of(bytes: &[u8]) -> Vec<InstanceOutcome> {
    // The last line of a killed run may be torn, and one that is damaged says nothing of the others.
    bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

/// The last word on each instance, in the order of their names.
pub(crate) fn by_name(lines: Vec<InstanceOutcome>) -> Vec<InstanceOutcome> {
    let by_name: std::collections::BTreeMap<String, InstanceOutcome> =
        lines.into_iter().map(|outcome| (outcome.instance.clone(), outcome)).collect();
    by_name.into_values().collect()
}
