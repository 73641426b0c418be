//! The lineage of all numbers as one table of executions, for the page: each once, by key.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use siteline_cache::{Digest, Store};
use siteline_pipeline::key::Recipe;

/// Adds a record and everything that it was made from.
pub fn collect(store: &Store, key: &Digest, into: &mut BTreeMap<String, Value>) {
    if into.contains_key(&key.short()) {
        return;
    }
    let Some(record) = store.record(key) else { return };
    let parts: Option<Recipe> = record.parts.read().ok();
    let short = |text: &String| text.get(..12).unwrap_or(text).to_owned();
    let code: BTreeMap<_, _> = parts.iter().flat_map(|p| &p.code).map(|(name, f)| (name.clone(), short(f))).collect();
    let sources: Vec<Value> = record.sources.iter().map(|s| json!([s.role, s.label, s.digest.to_string()])).collect();
    let outputs: Vec<Value> = record.outputs.iter().map(|o| json!([o.path, o.digest.to_string(), o.size])).collect();
    // When and in which run it happened is left to `siteline trace`: this page is the same for the same results.
    let entry = json!({
        "instance": record.instance,
        "kind": record.kind,
        "key": record.key.to_string(),
        "params": parts.as_ref().map(|p| p.params.clone()),
        "code": code,
        "libraries": parts.as_ref().map(|p| p.libraries.clone()),
        "environment": record.environment,
        "metrics": record.metrics,
        "outputs": outputs,
        "sources": sources,
        "inputs": record.inputs.iter().map(|i| json!([i.name, i.key.short()])).collect::<Vec<_>>(),
    });
    into.insert(key.short(), entry);
    for input in &record.inputs {
        collect(store, &input.key, into);
    }
}
