//! The key of an instance: everything that decides whether it must run, and nothing else.
//!
//! | enters | as |
//! |---|---|
//! | the key format's version | the record type of the pre-image |
//! | the stage kind | its name |
//! | its code | the fingerprint of its sources, and of the variant that its parameters choose |
//! | libraries that shape numbers | name and version |
//! | parameters that the kind declares | canonical JSON, defaults filled in; a group of another variant is left out |
//! | each file that it reads | input name, role, axis point of the instance that made it, label, digest of the content |
//!
//! | never enters | because |
//! |---|---|
//! | paths, times of files | content decides; a project may move, a file may be touched |
//! | host, user, thread count, GPU index | where something runs is recorded, not compared |
//! | keys of upstream instances | early cutoff: equal bytes from another execution are equal inputs |
//! | names of stages and of the manifest | renaming changes no result |
//!
//! [`KeyParts::walk`] is the only way through the parts: the hash and the explanation (`why`) are both made by it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use siteline_cache::{Canonical, Digest};

use crate::protocol::{Point, StageKind};

/// Version of the pre-image. History: 1, the first.
const FORMAT: &str = "siteline key 1";

/// Everything that decides whether an instance must run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeyParts {
    /// The stage kind.
    pub kind: String,
    /// Fingerprints of its sources: `base`, and `method=mcdrl` for a variant.
    pub code: BTreeMap<String, String>,
    /// Versions of the libraries that shape its numbers.
    pub libraries: BTreeMap<String, String>,
    /// Parameters, defaults filled in.
    pub params: Map<String, Value>,
    /// Files that it reads, in order.
    pub files: Vec<KeyFile>,
}

/// A file that an instance reads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct KeyFile {
    /// The input's or source's name.
    pub input: String,
    /// What it is to the stage: `image`, `mask`, `output`.
    pub role: String,
    /// The point of the instance that made it; empty for a raw file.
    pub point: Point,
    /// What tells it from the others: a sample's stem, an output's path.
    pub label: String,
    /// Its content.
    pub digest: Digest,
}

/// One component of a key, as [`KeyParts::walk`] meets it.
pub enum Part<'a> {
    /// A text under a name.
    Text(&'a str),
    /// A parameter's value.
    Value(&'a Value),
    /// A file's content.
    Content(&'a Digest),
}

impl KeyParts {
    /// The parts of an instance of `kind` with whole `params` and `files`.
    pub fn new(kind: &StageKind, params: &Map<String, Value>, mut files: Vec<KeyFile>) -> Self {
        files.sort();
        let mut params = params.clone();
        let mut code = BTreeMap::from([("base".to_owned(), kind.code.base.clone())]);
        for (param, variants) in &kind.code.variants {
            let chosen = params.get(param).and_then(Value::as_str).unwrap_or_default().to_owned();
            // A group of parameters that is called like a variant belongs to that variant alone.
            params.retain(|name, _| *name == chosen || !variants.contains_key(&chosen) || !variants.contains_key(name));
            // Where the parameters choose no variant, any of them may be at work.
            let chosen_or_all = variants.iter().filter(|(name, _)| **name == chosen || !variants.contains_key(&chosen));
            code.extend(chosen_or_all.map(|(name, fingerprint)| (format!("{param}={name}"), fingerprint.clone())));
        }
        Self { kind: kind.name.clone(), code, libraries: kind.code.libraries.clone(), params, files }
    }

    /// Meets every part in a fixed order, each with a path that names it.
    pub fn walk<'a>(&'a self, mut meet: impl FnMut(&[&str], Part<'a>)) {
        meet(&["kind"], Part::Text(&self.kind));
        for (name, fingerprint) in &self.code {
            meet(&["code", name], Part::Text(fingerprint));
        }
        for (name, version) in &self.libraries {
            meet(&["library", name], Part::Text(version));
        }
        let mut params: Vec<_> = self.params.iter().collect();
        params.sort_by(|a, b| a.0.as_bytes().cmp(b.0.as_bytes()));
        for (name, value) in params {
            meet(&["param", name], Part::Value(value));
        }
        for file in &self.files {
            let mut path = vec!["file", file.input.as_str(), file.role.as_str(), file.label.as_str()];
            for (axis, value) in &file.point {
                path.extend([axis.as_str(), value.as_str()]);
            }
            meet(&path, Part::Content(&file.digest));
        }
    }

    /// The key.
    pub fn key(&self) -> Digest {
        let mut canonical = Canonical::new(FORMAT);
        self.walk(|path, part| {
            canonical.list(path.len());
            for step in path {
                canonical.text(step);
            }
            match part {
                Part::Text(text) => canonical.text(text),
                Part::Value(value) => canonical.value(value),
                Part::Content(digest) => canonical.digest(digest),
            };
        });
        canonical.finish()
    }
}
