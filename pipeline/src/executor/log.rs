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
    /// Makes the file, or goes on in that of an earlier attempt; `heading` stands on top of what this one says.
    pub(crate) fn create(path: &Path, heading: &str) -> std::io::Result<Self> {
        let mut file = File::options().append(true).create(true).open(path)?;
        if file.metadata()?.len() > 0 {
            file.write_all(b"\n[siteline: another attempt]\n")?;
        }
        file.write_all(heading.as_bytes())?;
        Ok(Self { file, length: 0 })
    }

    /// Adds a last line to the log of an attempt that printed something.
    pub(crate) fn conclude(path: &Path, text: &str) {
        if let Ok(mut file) = File::options().append(true).open(path) {
            let _ = writeln!(file, "[siteline: {text}]");
        }
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
