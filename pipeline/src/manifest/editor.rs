//! The manifest's JSON Schema as editors want it: with the stage kinds, and the parameters of each.

use serde_json::{Map, Value, json};

use crate::protocol::StageKind;

/// The schema, with what each of `kinds` takes in `with`. What is required there is left to `plan`: an axis may give it.
pub fn schema(kinds: &[StageKind]) -> Value {
    let mut schema = super::json_schema();
    let mut definitions = Map::new();
    let rules: Vec<Value> = kinds.iter().map(|kind| rule(kind, &mut definitions)).collect();
    let names: Vec<&str> = kinds.iter().map(|kind| kind.name.as_str()).collect();
    if let Some(all) = schema.get_mut("$defs").and_then(Value::as_object_mut) {
        if let Some(stage) = all.get_mut("Stage").and_then(Value::as_object_mut) {
            let about = stage["properties"]["uses"]["description"].clone();
            stage["properties"]["uses"] =
                json!({"description": about, "anyOf": [{"enum": names}, {"type": ["string", "null"]}]});
            stage.insert("allOf".into(), rules.into());
        }
        all.extend(definitions);
    }
    schema
}

/// `with` of the stages that use a kind. The kind's own definitions go beside the manifest's, under the kind's name.
fn rule(kind: &StageKind, definitions: &mut Map<String, Value>) -> Value {
    let mut params = kind.params.clone();
    refer(&mut params, &kind.name);
    if let Some(map) = params.as_object_mut() {
        for word in ["$schema", "title", "required"] {
            map.remove(word);
        }
        if let Some(Value::Object(own)) = map.remove("$defs") {
            definitions.extend(own.into_iter().map(|(name, value)| (format!("{}.{name}", kind.name), value)));
        }
    }
    json!({
        "if": {"properties": {"uses": {"const": kind.name}}, "required": ["uses"]},
        "then": {"properties": {"with": params}}
    })
}

/// Makes every reference to a definition one to that of the kind.
fn refer(value: &mut Value, kind: &str) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match value.as_str().and_then(|text| text.strip_prefix("#/$defs/")).filter(|_| key == "$ref") {
                    Some(name) => *value = format!("#/$defs/{kind}.{name}").into(),
                    None => refer(value, kind),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| refer(item, kind)),
        _ => {}
    }
}
