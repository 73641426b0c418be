//! The walk back from a result to everything that it depends on, over the records.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};
use siteline_cache::{Digest, Record, Store};

use crate::key::Recipe;
use crate::origin::Origin;

/// An execution and what it was made from.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Lineage {
    /// The instance.
    pub instance: String,
    /// The stage kind.
    pub kind: String,
    /// The key.
    #[schemars(with = "String")]
    pub key: Digest,
    /// The run that executed it.
    pub run: String,
    /// When it ended, in milliseconds since 1970.
    pub finished_ms: u64,
    /// Parameters, defaults included.
    pub params: Map<String, Value>,
    /// Fingerprints of its code.
    pub code: BTreeMap<String, String>,
    /// Versions of the libraries that shape its numbers.
    pub libraries: BTreeMap<String, String>,
    /// Where and with what it ran.
    pub environment: BTreeMap<String, String>,
    /// Numbers that it reported.
    pub metrics: BTreeMap<String, f64>,
    /// What it made.
    pub outputs: Vec<FileFact>,
    /// Files from outside the store.
    pub sources: Vec<SourceFact>,
    /// What it read, by input.
    pub inputs: Vec<InputFact>,
}

/// A file in the store.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct FileFact {
    /// Its path in the artifact.
    pub path: String,
    /// Its content.
    #[schemars(with = "String")]
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
}

/// A file from outside the store.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct SourceFact {
    /// The source: `raw`, `weights`.
    pub source: String,
    /// What it is: `image`, `mask`.
    pub role: String,
    /// What tells it from others.
    pub label: String,
    /// Where it lay.
    pub path: String,
    /// What it held.
    #[schemars(with = "String")]
    pub digest: Digest,
    /// Where that very content came from, where a record beside the file says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

/// An input: the name that the stage gives it, and the execution that made it.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct InputFact {
    /// The input's name.
    pub input: String,
    /// The execution's key.
    #[schemars(with = "String")]
    pub key: Digest,
    /// The execution, unless it was shown before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub made_by: Option<Box<Lineage>>,
}

impl Lineage {
    /// The whole walk back from a record. Each execution is spelled out where it is first met, and named by its key
    /// after that.
    pub fn of(store: &Store, record: &Record) -> Self {
        let mut seen = std::collections::BTreeSet::new();
        Self::walk(store, record, &mut seen)
    }

    fn walk(store: &Store, record: &Record, seen: &mut std::collections::BTreeSet<Digest>) -> Self {
        seen.insert(record.key);
        let recipe: Option<Recipe> = record.parts.read().ok();
        let inputs = record
            .inputs
            .iter()
            .map(|input| {
                let fresh = !seen.contains(&input.key);
                let made_by = fresh.then(|| store.record(&input.key)).flatten();
                InputFact {
                    input: input.name.clone(),
                    key: input.key,
                    made_by: made_by.map(|record| Box::new(Self::walk(store, &record, seen))),
                }
            })
            .collect();
        Self {
            instance: record.instance.clone(),
            kind: record.kind.clone(),
            key: record.key,
            run: record.run.clone(),
            finished_ms: record.finished_ms,
            params: recipe.as_ref().map(|r| r.params.clone()).unwrap_or_default(),
            code: recipe.as_ref().map(|r| r.code.clone()).unwrap_or_default(),
            libraries: recipe.map(|r| r.libraries).unwrap_or_default(),
            environment: record.environment.clone(),
            metrics: record.metrics.clone(),
            outputs: record
                .outputs
                .iter()
                .map(|o| FileFact { path: o.path.clone(), digest: o.digest, size: o.size })
                .collect(),
            sources: record
                .sources
                .iter()
                .map(|s| SourceFact {
                    source: s.source.clone(),
                    role: s.role.clone(),
                    label: s.label.clone(),
                    path: s.path.display().to_string(),
                    digest: s.digest,
                    origin: Origin::beside(&s.path).ok().flatten().filter(|origin| origin.digest == s.digest),
                })
                .collect(),
            inputs,
        }
    }
}
