//! The execution record: what ran, from what, to what. Written once, carrying its own digest.
//!
//! On disk a record is one line, `siteline-record 1 DIGEST`, and then JSON whose digest that is. A record that is cut
//! short or altered does not hold, and so does not exist.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Canonical, Digest};

const HEADING: &str = "siteline-record 1 ";

/// What ran, from what, to what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The key under which the outputs may be used again.
    pub key: Digest,
    /// The parts that the key was made of, as the pipeline wrote them.
    pub parts: Value,
    /// The instance: `train[held_out=C,method=mcdrl]`.
    pub instance: String,
    /// The manifest's name.
    pub manifest: String,
    /// The stage kind.
    pub kind: String,
    /// The run that executed it.
    pub run: String,
    /// Start, in milliseconds since 1970.
    pub started_ms: u64,
    /// End, in milliseconds since 1970.
    pub finished_ms: u64,
    /// The executions whose outputs it read.
    pub inputs: Vec<RecordInput>,
    /// The files from outside the store that it read.
    pub sources: Vec<RecordSource>,
    /// What it made.
    pub outputs: Vec<Output>,
    /// Numbers that it reported.
    pub metrics: BTreeMap<String, f64>,
    /// Where and with what it ran; never part of the key.
    pub environment: BTreeMap<String, String>,
}

/// An input of an execution: the execution that made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordInput {
    /// The input's name.
    pub name: String,
    /// The instance that made it.
    pub instance: String,
    /// That instance's key.
    pub key: Digest,
    /// The files that were read.
    pub files: Vec<Output>,
}

/// A file from outside the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordSource {
    /// The source's name: `raw`, `weights`.
    pub source: String,
    /// What it is: `image`, `mask`.
    pub role: String,
    /// What tells it from others of its role.
    pub label: String,
    /// Where it lay.
    pub path: PathBuf,
    /// What it held.
    pub digest: Digest,
}

/// A file that an execution made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Output {
    /// Its path in the output directory, with `/`.
    pub path: String,
    /// Its content.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
}

impl Record {
    /// The digest of all outputs as a tree: paths and contents.
    pub fn tree(&self) -> Digest {
        tree_digest(&self.outputs)
    }

    /// The bytes of the record's file.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let body = serde_json::to_string(self).expect("a record is JSON");
        format!("{HEADING}{}\n{body}\n", Digest::of_bytes(body.as_bytes())).into_bytes()
    }

    /// Reads a record's file; `None` if it does not hold.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let (digest, body) = text.strip_prefix(HEADING)?.split_once('\n')?;
        let body = body.strip_suffix('\n')?;
        let digest: Digest = digest.parse().ok()?;
        if Digest::of_bytes(body.as_bytes()) != digest {
            return None;
        }
        serde_json::from_str(body).ok()
    }

    /// Reads the record of `path`; `None` if there is none that holds.
    pub(crate) fn read(path: &Path) -> Option<Self> {
        Self::from_bytes(&std::fs::read(path).ok()?)
    }
}

/// The digest of files as a tree.
pub(crate) fn tree_digest(outputs: &[Output]) -> Digest {
    let mut sorted: Vec<_> = outputs.iter().collect();
    sorted.sort();
    let mut canonical = Canonical::new("tree");
    canonical.list(sorted.len());
    for output in sorted {
        canonical.text(&output.path).digest(&output.digest);
    }
    canonical.finish()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample() -> Record {
        Record {
            key: Digest::of_bytes(b"key"),
            parts: serde_json::json!({"kind": "train"}),
            instance: "train[seed=0]".into(),
            manifest: "m".into(),
            kind: "train".into(),
            run: "r".into(),
            started_ms: 1,
            finished_ms: 2,
            inputs: vec![],
            sources: vec![],
            outputs: vec![Output { path: "a/b".into(), digest: Digest::of_bytes(b"x"), size: 1 }],
            metrics: BTreeMap::from([("dice".into(), 0.1 + 0.2)]),
            environment: BTreeMap::new(),
        }
    }

    #[test]
    fn a_record_survives_the_way_to_disk_and_back() {
        assert_eq!(Record::from_bytes(&sample().to_bytes()), Some(sample()));
    }

    #[test]
    fn a_record_cut_at_any_length_or_with_any_bit_flipped_does_not_exist() {
        let bytes = sample().to_bytes();
        for length in 0..bytes.len() {
            assert!(Record::from_bytes(&bytes[..length]).is_none(), "cut at {length}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Record::from_bytes(&damaged).is_none(), "bit {bit}");
        }
    }
}
