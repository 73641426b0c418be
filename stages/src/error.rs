//! What can go wrong inside a stage, as fields that say which file or value is at fault.

use std::path::{Path, PathBuf};

/// Why a stage could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file was read, and its content is not what it should be.
    #[error("{}: {reason}", path.display())]
    Data {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The inputs or parameters do not make sense together.
    #[error("{0}")]
    Request(String),
    /// Images of a site could not be read.
    #[error(transparent)]
    Dataset(#[from] siteline_datasets::DatasetError),
    /// A results table could not be made.
    #[error(transparent)]
    Table(#[from] siteline_tables::TableError),
    /// libtorch refused an operation.
    #[error("libtorch: {0}")]
    Tensor(#[from] tch::TchError),
    /// The run was told to stop.
    #[error("cancelled")]
    Cancelled,
}

/// The result of a stage's work.
pub type Result<T> = std::result::Result<T, StageError>;

impl StageError {
    /// Wraps a system error with the file that it is about.
    pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }

    /// A file with unusable content.
    pub fn data(path: &Path, reason: impl ToString) -> Self {
        Self::Data { path: path.to_owned(), reason: reason.to_string() }
    }
}
