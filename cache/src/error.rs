//! What can go wrong in a store, always with the file that it is about.

use std::path::{Path, PathBuf};

use crate::Digest;

/// Why a store operation failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file of the store could not be read or written.
    #[error("failed to {action} {}: {source}", path.display())]
    Io {
        /// What was tried: `write`, `read`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The ledger could not be used.
    #[error("failed to use the ledger {}: {source}", path.display())]
    Ledger {
        /// The database file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// An object's bytes are not those of its name.
    #[error("object {} is damaged: its content has digest {}", expected.short(), found.short())]
    Damaged {
        /// The digest in its name.
        expected: Digest,
        /// The digest of its bytes.
        found: Digest,
    },
    /// A stage left something that cannot be stored.
    #[error("{}: only plain files and folders can be stored", path.display())]
    NotAFile {
        /// The link, socket or device.
        path: PathBuf,
    },
    /// A stage left something whose name is no text.
    #[error("the name of {} is not UTF-8", path.display())]
    NotText {
        /// The file or folder.
        path: PathBuf,
    },
    /// A folder, pipe or device where a file is to be read.
    #[error("{} is no plain file", path.display())]
    NotPlain {
        /// What it is.
        path: PathBuf,
    },
    /// Another process holds the whole store.
    #[error("the store {} is in use by another run", path.display())]
    InUse {
        /// The store.
        path: PathBuf,
    },
    /// The store was opened for reading.
    #[error("the store {} is open for reading only", path.display())]
    ReadOnly {
        /// The store.
        path: PathBuf,
    },
}

impl StoreError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}
