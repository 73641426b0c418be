//! Where a file of weights came from: a small record beside it, which pins its content.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use siteline_cache::Digest;

/// What lies beside `NAME.safetensors` as `NAME.safetensors.origin.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// Where it was taken from.
    pub from: From,
    /// BLAKE3 of the content, as in keys and lineage.
    #[schemars(with = "String")]
    pub digest: Digest,
    /// SHA-256 of the content, as its publisher names it.
    pub sha256: String,
    /// Its length in bytes.
    pub size: u64,
    /// The published file that has this SHA-256, where one is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known_as: Option<String>,
}

/// A place that weights are taken from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum From {
    /// A repository of the Hugging Face Hub.
    Hub {
        /// OWNER/NAME.
        repository: String,
        /// The commit.
        revision: String,
        /// The file in it.
        file: String,
    },
    /// A file that was brought along.
    File {
        /// Its name, without its folder.
        name: String,
    },
}

impl Origin {
    /// The record's place.
    pub fn path_of(weights: &Path) -> PathBuf {
        let mut name = weights.file_name().unwrap_or_default().to_owned();
        name.push(".origin.json");
        weights.with_file_name(name)
    }

    /// The record beside a file; none without one.
    ///
    /// # Errors
    /// A record that cannot be read, in words.
    pub fn beside(weights: &Path) -> Result<Option<Self>, String> {
        match std::fs::read(Self::path_of(weights)) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| e.to_string()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e.to_string()),
        }
    }

    /// In words.
    pub fn words(&self) -> String {
        let from = match &self.from {
            From::Hub { repository, revision, file } => {
                format!("{file} of {repository} at {}", revision.get(..12).unwrap_or(revision))
            }
            From::File { name } => format!("the file {name}"),
        };
        let known = self.known_as.as_ref().map(|known| format!(", which is {known}")).unwrap_or_default();
        format!("{from}{known}; SHA-256 {}", self.sha256)
    }
}
