//! Writing journals: by the run that owns one, and anew by `gc`.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use super::{ENDING, index};
use crate::record::{DIFFERS, HEADING, Heading};
use crate::{Record, Result, StoreError};

/// A journal that is being written. The lock on it tells others that it may grow, and ends with this process.
pub(crate) struct Writer {
    pub(super) name: String,
    pub(super) file: File,
    pub(super) length: u64,
}

impl Writer {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Appends frames and syncs them. Returns the headings of those that may be used, each with the place of its body.
    pub(crate) fn append(&mut self, frames: &[(&Record, bool)]) -> Result<Vec<(Heading, u64)>> {
        let mut bytes = Vec::new();
        let mut found = Vec::new();
        for (record, used) in frames {
            let frame = record.to_frame(if *used { HEADING } else { DIFFERS });
            let line = frame.iter().position(|b| *b == b'\n').expect("a frame has a heading");
            let (heading, _) = Heading::parse(&frame[..line]).expect("it was just written");
            if *used {
                found.push((heading, self.length + (bytes.len() + line + 1) as u64));
            }
            bytes.extend_from_slice(&frame);
        }
        if let Err(e) = self.file.write_all(&bytes).and_then(|()| self.file.sync_data()) {
            // What was written of it is cut off, so that a later group does not stand behind a torn one.
            let _ = self.file.set_len(self.length);
            return Err(StoreError::io("write", Path::new(&self.name))(e));
        }
        self.length += bytes.len() as u64;
        Ok(found)
    }

    pub(super) fn create(folder: &Path, run: &str) -> Result<Self> {
        for attempt in 0..1000 {
            let name = if attempt == 0 { format!("{run}.{ENDING}") } else { format!("{run}-{attempt}.{ENDING}") };
            let path = folder.join(&name);
            if path.exists() {
                continue;
            }
            // It gets its name when it is locked already: others must never see a journal that looks finished and is not.
            let fresh = folder.join(format!(".{name}.{}", std::process::id()));
            let file =
                OpenOptions::new().append(true).create(true).open(&fresh).map_err(StoreError::io("write", &fresh))?;
            flock(&file, FlockOperation::LockExclusive).map_err(|e| StoreError::io("lock", &fresh)(e.into()))?;
            let placed = fs::hard_link(&fresh, &path);
            let _ = fs::remove_file(&fresh);
            match placed {
                Ok(()) => {
                    crate::object::sync_dir(folder)?;
                    return Ok(Self { name, file, length: 0 });
                }
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(StoreError::io("write", &path)(e)),
            }
        }
        Err(StoreError::io("write", folder)(std::io::ErrorKind::AlreadyExists.into()))
    }
}

/// Writes `records` as one journal, whole or not at all, and removes the others. For `gc`, which has the store for itself.
pub(crate) fn rewrite(folder: &Path, tmp: &Path, name: &str, records: &[&Record]) -> Result<()> {
    let mut bytes = Vec::new();
    records.iter().for_each(|record| bytes.extend_from_slice(&record.to_frame(HEADING)));
    let target = folder.join(format!("{name}.{ENDING}"));
    // It speaks of journals that are about to go.
    index::remove(folder)?;
    crate::object::write_whole(tmp, &target, &bytes)?;
    for entry in fs::read_dir(folder).map_err(StoreError::io("read", folder))? {
        let path = entry.map_err(StoreError::io("read", folder))?.path();
        if path != target && path.extension().is_some_and(|e| e == ENDING) {
            fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
        }
    }
    crate::object::sync_dir(folder)
}
