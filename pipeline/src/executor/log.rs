//! Logs of instances, which no runaway program can fill the disk with.

use std::fs::File;
use std::io::Write;
use std::path::Path;

/// A log is cut here.
const LONGEST: u64 = 64 << 20;

/// A log that is cut where it becomes too long.
pub(crate) struct LogFile {
    file: File,
    length: u64,
}

impl LogFile {
    /// Makes the file; `heading` stands on top.
    pub(crate) fn create(path: &Path, heading: &str) -> std::io::Result<Self> {
        // A file of its own for each attempt: whoever follows the log of the one before sees that it has ended.
        let _ = std::fs::remove_file(path);
        let mut file = File::create(path)?;
        file.write_all(heading.as_bytes())?;
        Ok(Self { file, length: 0 })
    }

    /// Adds to it. A log that cannot be written is no reason to lose the work.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        if self.length > LONGEST {
            return;
        }
        self.length += bytes.len() as u64;
        let _ = self.file.write_all(bytes);
        if self.length > LONGEST {
            let _ = self.file.write_all(b"\n[siteline: the log is cut here; it went on]\n");
        }
    }

    /// Adds a line of Siteline's own, however long the log is already.
    pub(crate) fn note(&mut self, text: &str) {
        let _ = writeln!(self.file, "{text}");
    }

    /// Adds a line.
    pub(crate) fn line(&mut self, text: &str) {
        self.write(text.as_bytes());
        self.write(b"\n");
    }
}
