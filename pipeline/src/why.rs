//! Why an instance must run: the difference between the parts of its key and those of its last execution.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;
use siteline_cache::{Digest, Record, Store};

use crate::key::{KeyParts, Part};
use crate::printable::on_one_line;

/// Why an instance must run.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum Reason {
    /// It has never made a result.
    New,
    /// Parts of its key differ from those of its last execution.
    Changed {
        /// Each difference.
        changes: Vec<Change>,
    },
    /// It ran under this very key, but an output is missing or cut short.
    Damaged {
        /// The output.
        output: String,
    },
    /// It ran under this very key, but its record does not hold any more.
    RecordLost,
    /// The user asked for it.
    Forced,
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Change {
    /// What: `parameter epochs`, `image p03 of raw`, `code method=mcdrl`.
    pub what: String,
    /// What it was at the last execution, if it was there.
    pub before: Option<String>,
    /// What it is now, if it is there.
    pub after: Option<String>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match (&self.before, &self.after) {
            (Some(before), Some(after)) => format!("{}: {before} -> {after}", self.what),
            (None, Some(after)) => format!("{}: new, {after}", self.what),
            (Some(before), None) => format!("{}: gone, was {before}", self.what),
            (None, None) => self.what.clone(),
        };
        f.write_str(&on_one_line(&text))
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::New => f.write_str("it has no result yet"),
            Self::Changed { changes } => match changes.as_slice() {
                [one] => write!(f, "{one}"),
                [first, rest @ ..] => write!(f, "{first} (and {} more)", rest.len()),
                [] => f.write_str("its key changed"),
            },
            Self::Damaged { output } => write!(f, "its output {output} is missing or damaged"),
            Self::RecordLost => f.write_str("the record of its last execution is gone or damaged"),
            Self::Forced => f.write_str("it was asked for"),
        }
    }
}

/// The reason why an instance without a usable record must run.
pub fn reason(store: &Store, manifest: &str, instance: &str, parts: &KeyParts, key: &Digest) -> Reason {
    if let Some(record) = store.record(key)
        && let Some(output) = record.outputs.iter().find(|output| !store.is_there(output))
    {
        return Reason::Damaged { output: output.path.clone() };
    }
    let executions = store.executions_of(manifest, instance).unwrap_or_default();
    if executions.first().is_some_and(|execution| execution.key == *key) {
        return Reason::RecordLost;
    }
    match executions.iter().find_map(|execution| store.record(&execution.key)) {
        Some(record) => Reason::Changed { changes: changes(&record, parts) },
        None => Reason::New,
    }
}

/// The differences between the parts of a record and `now`.
pub fn changes(record: &Record, now: &KeyParts) -> Vec<Change> {
    let Ok(before) = record.parts.read::<KeyParts>() else { return Vec::new() };
    let (before, after) = (described(&before), described(now));
    let mut names: Vec<&String> = before.keys().chain(after.keys()).collect();
    names.sort();
    names.dedup();
    names
        .into_iter()
        .filter(|name| before.get(*name) != after.get(*name))
        .map(|name| Change { what: name.clone(), before: before.get(name).cloned(), after: after.get(name).cloned() })
        .collect()
}

/// Every part in words. Nested parameters are taken apart, so that one setting of a group shows as itself.
fn described(parts: &KeyParts) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    parts.walk(|path, part| match (path, part) {
        (["param", name], Part::Value(value)) => flatten(&format!("parameter {}", quoted(name)), value, &mut all),
        (["file", input, role, label, point @ ..], Part::Content(digest)) => {
            let at: Vec<_> = point.chunks(2).map(|pair| pair.join("=")).collect();
            let at = if at.is_empty() { String::new() } else { format!("[{}]", at.join(",")) };
            let what = match *role {
                "output" => format!("input {input}{at} {label}"),
                "code" => format!("code {label}"),
                role => format!("{role} {label} of {input}{at}"),
            };
            all.insert(what, digest.short());
        }
        (path, Part::Text(text)) => {
            let is_digest = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            let shown = if is_digest { text[..12].to_owned() } else { text.to_owned() };
            all.insert(path.join(" "), shown);
        }
        (path, Part::Value(value)) => flatten(&path.join(" "), value, &mut all),
        (path, Part::Content(digest)) => {
            all.insert(path.join(" "), digest.short());
        }
    });
    all
}

/// A name that reads like two stands in quotation marks.
fn quoted(name: &str) -> String {
    if name.contains(['.', '"']) { Value::from(name).to_string() } else { name.to_owned() }
}

/// Two values that differ are told by two texts: a text that reads like another value stands in quotation marks.
fn flatten(name: &str, value: &Value, into: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                flatten(&format!("{name}.{}", quoted(key)), value, into);
            }
        }
        Value::String(text) if serde_json::from_str::<Value>(text).is_err() => {
            into.insert(name.to_owned(), text.clone());
        }
        other => {
            into.insert(name.to_owned(), other.to_string());
        }
    }
}
