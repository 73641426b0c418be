//! Checks a YAML tree against a JSON Schema and says what is wrong in words, with the place.
//!
//! The schemas come from the types that read the values (`schemars`), for the manifest as for the parameters of a stage
//! kind, so that `siteline schema`, the checks and the program cannot disagree. Only what those schemas use is understood.

use serde_json::{Map, Value};

use crate::diagnostic::{nearest, suggest};
use crate::tree::{Node, NodeValue, Span};

/// Something that does not fit.
#[derive(Clone, Debug, PartialEq)]
pub struct Misfit {
    /// Where.
    pub span: Span,
    /// What is wrong.
    pub message: String,
    /// What would mend it.
    pub hint: Option<String>,
}

/// Everything in `node`, which was read from `text`, that does not fit `schema`. `what` names the thing for messages: `stage kind
/// \`train\``.
pub fn check(node: &Node, text: &str, schema: &Value, what: &str) -> Vec<Misfit> {
    let mut checker = Checker { root: schema, text, misfits: Vec::new() };
    checker.node(node, schema, what);
    checker.misfits
}

/// The largest whole numbers that every reader of JSON keeps exactly.
const EXACT: f64 = (1u64 << 53) as f64;

struct Checker<'a> {
    root: &'a Value,
    text: &'a str,
    misfits: Vec<Misfit>,
}

impl<'a> Checker<'a> {
    fn add(&mut self, span: &Span, message: String, hint: Option<String>) {
        self.misfits.push(Misfit { span: span.clone(), message, hint });
    }

    fn resolve(&self, schema: &'a Value) -> &'a Value {
        match schema.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix('#')) {
            Some(pointer) => self.root.pointer(pointer).map_or(schema, |target| self.resolve(target)),
            None => schema,
        }
    }

    fn node(&mut self, node: &Node, schema: &'a Value, what: &str) {
        let schema = self.resolve(schema);
        if let Some(choices) = ["anyOf", "oneOf"].iter().find_map(|key| schema.get(*key)).and_then(Value::as_array) {
            return self.choice(node, choices, what);
        }
        if let Some(all) = schema.get("allOf").and_then(Value::as_array) {
            all.iter().for_each(|part| self.node(node, part, what));
        }
        if let Some(allowed) = schema.get("enum").and_then(Value::as_array) {
            return self.allowed(node, allowed, what);
        }
        if let Some(only) = schema.get("const") {
            return self.allowed(node, std::slice::from_ref(only), what);
        }
        if !self.has_type(node, schema) {
            let wanted = type_words(schema);
            let found = match &node.value {
                NodeValue::Number(number) => node.written(self.text).map_or_else(|| number.to_string(), str::to_owned),
                _ => node.what().to_owned(),
            };
            let hint = self.how_to_write(node, &[schema], &wanted);
            return self.add(&node.span, format!("{what} must be {wanted}, not {found}"), hint);
        }
        match &node.value {
            NodeValue::Map(_) => self.map(node, schema, what),
            NodeValue::List(items) => {
                if let Some(of) = schema.get("items") {
                    items.iter().for_each(|item| self.node(item, of, what));
                }
                let count = |key: &str| schema.get(key).and_then(Value::as_u64);
                let short = count("minItems").is_some_and(|n| (items.len() as u64) < n);
                if short || count("maxItems").is_some_and(|n| items.len() as u64 > n) {
                    let wanted = count("minItems").or(count("maxItems")).unwrap_or(0);
                    self.add(&node.span, format!("{what} has {} entries; {wanted} are needed", items.len()), None);
                }
            }
            NodeValue::Number(number) => self.range(node, number.as_f64().unwrap_or(f64::NAN), schema, what),
            _ => {}
        }
    }

    fn choice(&mut self, node: &Node, choices: &'a [Value], what: &str) {
        let tries: Vec<Vec<Misfit>> = choices.iter().map(|choice| self.attempt(node, choice, what)).collect();
        if tries.iter().any(Vec::is_empty) {
            return;
        }
        // Words that each stand for themselves: one list of them says more than one complaint a word.
        let words: Vec<Value> = choices.iter().flat_map(|choice| self.words(choice)).collect();
        let resolved: Vec<&'a Value> = choices.iter().map(|choice| self.resolve(choice)).collect();
        let types = resolved.iter().map(|choice| type_words(choice));
        let types: Vec<String> = types.filter(|words| words != "nothing" && words != "something else").collect();
        let is_text = matches!(node.value, NodeValue::Text(_));
        let is_scalar = !matches!(node.value, NodeValue::Map(_) | NodeValue::List(_));
        if !words.is_empty() && is_scalar && (is_text || types.iter().all(|words| words == "a text")) {
            return self.allowed(node, &words, what);
        }
        if let (true, Some(hint)) = (is_scalar, self.as_list(node, &resolved)) {
            let words = words.iter().filter_map(Value::as_str).map(|word| format!("`{word}`"));
            let wanted: Vec<String> = words.chain(types).collect();
            let shown = node.written(self.text).unwrap_or_else(|| node.what());
            return self.add(&node.span, format!("{what} must be {}, not {shown}", wanted.join(" or ")), Some(hint));
        }
        // The complaint of the choice whose type fits is the one that helps.
        let tried = || choices.iter().zip(&tries).map(|(choice, misfits)| (self.resolve(choice), misfits));
        let fits = |(choice, _): &(&Value, _)| self.has_type(node, choice);
        // One that names no type fits everything, and helps least.
        let typed = |(choice, _): &(&Value, _)| choice.get("type").is_some() && self.has_type(node, choice);
        let fitting = tried().find(typed).or_else(|| tried().find(fits));
        match fitting {
            Some((_, misfits)) => self.misfits.extend(misfits.iter().cloned()),
            None => {
                let wanted = types.join(" or ");
                let hint = self.how_to_write(node, &resolved, &wanted);
                self.add(&node.span, format!("{what} must be {wanted}, not {}", node.what()), hint);
            }
        }
    }

    fn attempt(&self, node: &Node, schema: &'a Value, what: &str) -> Vec<Misfit> {
        let mut attempt = Checker { root: self.root, text: self.text, misfits: Vec::new() };
        attempt.node(node, schema, what);
        attempt.misfits
    }

    /// The words that a choice consists of.
    fn words(&self, choice: &'a Value) -> Vec<Value> {
        let choice = self.resolve(choice);
        let one = choice.get("const").cloned().into_iter();
        let several = choice.get("enum").and_then(Value::as_array).into_iter().flatten().cloned();
        let nested = choice.get("oneOf").and_then(Value::as_array).into_iter().flatten();
        one.chain(several).chain(nested.filter_map(|one| one.get("const").cloned())).collect()
    }

    /// What would mend a value of the wrong type: a list, the example of a description, quotation marks.
    fn how_to_write(&self, node: &Node, schemas: &[&'a Value], wanted: &str) -> Option<String> {
        let about = schemas.iter().find_map(|schema| schema.get("description").and_then(Value::as_str));
        let example = about.map(first_sentence).filter(|sentence| sentence.contains('`'));
        let is_number = matches!(&node.value, NodeValue::Number(_) | NodeValue::Bool(_));
        let quoted = || match node.written(self.text) {
            Some(text) => format!("write it in quotation marks: `\"{text}\"`"),
            None => "write it in quotation marks".to_owned(),
        };
        let as_text = || (is_number && wanted == "a text").then(quoted);
        self.as_list(node, schemas).or(example).or_else(as_text)
    }

    /// How one value is written as a list, where a list of such values is wanted.
    fn as_list(&self, node: &Node, schemas: &[&'a Value]) -> Option<String> {
        let mut items = schemas.iter().filter_map(|schema| schema.get("items"));
        let fits = items.any(|of| self.attempt(node, of, "").is_empty());
        let text = node.written(self.text).filter(|text| !text.contains('\n'));
        let shown = text.map(|text| format!(": `[{text}]`")).unwrap_or_default();
        fits.then(|| format!("write it as a list{shown}"))
    }

    fn allowed(&mut self, node: &Node, allowed: &[Value], what: &str) {
        let value = node.to_json();
        if allowed.contains(&value) {
            return;
        }
        let words: Vec<String> = allowed
            .iter()
            .map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
            .filter(|w| w != "null")
            .collect();
        let shown = value.as_str().map_or_else(|| node.what().to_owned(), |text| format!("`{text}`"));
        let hint = suggest(value.as_str().unwrap_or(""), "it can be", words.iter().map(String::as_str));
        self.add(&node.span, format!("{what} cannot be {shown}"), Some(hint));
    }

    fn has_type(&self, node: &Node, schema: &Value) -> bool {
        let Some(types) = schema.get("type") else { return true };
        let fits = |name: &str| match (name, &node.value) {
            ("null", NodeValue::Null)
            | ("boolean", NodeValue::Bool(_))
            | ("string", NodeValue::Text(_))
            | ("array", NodeValue::List(_))
            | ("object", NodeValue::Map(_))
            | ("number", NodeValue::Number(_)) => true,
            // Beyond that a number of YAML is no whole one any more.
            ("integer", NodeValue::Number(n)) => n.as_f64().is_some_and(|x| x.fract() == 0.0 && x.abs() < EXACT),
            _ => false,
        };
        match types {
            Value::String(name) => fits(name),
            Value::Array(names) => names.iter().filter_map(Value::as_str).any(fits),
            _ => true,
        }
    }

    fn map(&mut self, node: &Node, schema: &'a Value, what: &str) {
        let NodeValue::Map(entries) = &node.value else { return };
        static NONE: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);
        let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&NONE);
        let further = schema.get("additionalProperties");
        for (key, entry) in entries {
            if let Some(property) = properties.get(key) {
                self.node(&entry.value, property, &format!("`{key}`"));
            } else if let Some(of) = further.filter(|f| f.is_object()) {
                self.node(&entry.value, of, &format!("`{key}`"));
            } else if further == Some(&Value::Bool(false)) {
                let known = properties.keys().map(String::as_str);
                let list: Vec<_> = properties.keys().map(|k| format!("`{k}`")).collect();
                let takes = format!("{what} takes {}", list.join(", "));
                let hint = match nearest(key, known) {
                    Some(close) => format!("did you mean `{close}`? {takes}"),
                    None => takes,
                };
                self.add(&entry.key_span, format!("{what} has no `{key}`"), Some(hint));
            }
        }
        for name in schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
            if !entries.contains_key(name) {
                let about =
                    properties.get(name).and_then(|p| self.resolve(p).get("description").or(p.get("description")));
                let hint = about.and_then(Value::as_str).map(|d| format!("`{name}`: {}", first_sentence(d)));
                self.add(&node.span, format!("{what} needs `{name}`"), hint);
            }
        }
    }

    fn range(&mut self, node: &Node, number: f64, schema: &Value, what: &str) {
        let bound = |key: &str| schema.get(key).and_then(Value::as_f64);
        let complaint = match (bound("minimum"), bound("maximum"), bound("exclusiveMinimum"), bound("exclusiveMaximum"))
        {
            (Some(low), ..) if number < low => format!("at least {low}"),
            (_, Some(high), ..) if number > high => format!("at most {high}"),
            (_, _, Some(low), _) if number <= low => format!("more than {low}"),
            (_, _, _, Some(high)) if number >= high => format!("less than {high}"),
            _ => return,
        };
        self.add(&node.span, format!("{what} must be {complaint}"), None);
    }
}

/// The first sentence of a description, its lines joined.
fn first_sentence(text: &str) -> String {
    let joined = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match joined.find(". ") {
        Some(end) => joined[..=end].to_owned(),
        None => joined,
    }
}

fn type_words(schema: &Value) -> String {
    let word = |name: &str| {
        match name {
            "null" => "nothing",
            "boolean" => "true or false",
            "string" => "a text",
            "array" => "a list",
            "object" => "a map",
            "integer" => "a whole number",
            _ => "a number",
        }
        .to_owned()
    };
    match schema.get("type") {
        Some(Value::String(name)) => word(name),
        Some(Value::Array(names)) => {
            let words: Vec<_> = names.iter().filter_map(Value::as_str).filter(|n| *n != "null").map(word).collect();
            words.join(" or ")
        }
        _ => "something else".to_owned(),
    }
}

/// Fills the defaults that a schema states into a map of parameters, in the schema's order.
pub fn with_defaults(schema: &Value, given: &Map<String, Value>) -> Map<String, Value> {
    fill(schema, schema, given)
}

fn fill(root: &Value, schema: &Value, given: &Map<String, Value>) -> Map<String, Value> {
    let mut filled = Map::new();
    let properties = schema.get("properties").and_then(Value::as_object);
    for (name, property) in properties.into_iter().flatten() {
        let target = property
            .get("$ref")
            .and_then(Value::as_str)
            .and_then(|r| r.strip_prefix('#'))
            .and_then(|pointer| root.pointer(pointer))
            .unwrap_or(property);
        let value = given.get(name).or_else(|| property.get("default")).or_else(|| target.get("default"));
        let Some(value) = value else { continue };
        let nested = target.get("properties").is_some();
        let value = match (nested, value, property.get("default")) {
            (true, Value::Object(map), default) => {
                // What is not given of a group comes from the group's own default first.
                let mut whole = default.and_then(Value::as_object).cloned().unwrap_or_default();
                whole.extend(map.iter().map(|(k, v)| (k.clone(), v.clone())));
                Value::Object(fill(root, target, &whole))
            }
            _ => value.clone(),
        };
        filled.insert(name.clone(), value);
    }
    for (name, value) in given {
        filled.entry(name.clone()).or_insert_with(|| value.clone());
    }
    filled
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn complaints(yaml: &str, schema: &Value) -> Vec<String> {
        let misfits = check(&Node::parse(yaml).unwrap(), yaml, schema, "stage kind `train`");
        misfits
            .into_iter()
            .map(|m| format!("{} @ {} ({})", m.message, &yaml[m.span], m.hint.unwrap_or_default()))
            .collect()
    }

    #[test]
    fn an_unknown_key_is_answered_with_the_nearest_one() {
        let schema = json!({"type": "object", "additionalProperties": false, "properties": {"epochs": {"type": "integer", "minimum": 1}}});
        assert_eq!(
            complaints("epocs: 20", &schema),
            ["stage kind `train` has no `epocs` @ epocs (did you mean `epochs`? stage kind `train` takes `epochs`)"]
        );
        assert_eq!(complaints("epochs: 0", &schema), ["`epochs` must be at least 1 @ 0 ()"]);
        assert_eq!(complaints("epochs: many", &schema), ["`epochs` must be a whole number, not a text @ many ()"]);
        let schema = json!({"properties": {"name": {"type": "string"}, "timeout": {"type": ["string", "null"], "description": "At most so long: `2h`. More."}}});
        assert_eq!(
            complaints("name: 1\ntimeout: 20", &schema),
            [
                "`name` must be a text, not 1 @ 1 (write it in quotation marks: `\"1\"`)",
                "`timeout` must be a text, not 20 @ 20 (At most so long: `2h`.)"
            ]
        );
    }

    #[test]
    fn defaults_reach_into_groups() {
        let schema = json!({
            "properties": {"lr": {"default": 0.1}, "group": {"$ref": "#/$defs/G", "default": {"a": 1, "b": 2}}},
            "$defs": {"G": {"type": "object", "properties": {"a": {"default": 1}, "b": {"default": 2}}}}
        });
        let given = json!({"group": {"b": 5}});
        let filled = with_defaults(&schema, given.as_object().unwrap());
        assert_eq!(Value::Object(filled), json!({"lr": 0.1, "group": {"a": 1, "b": 5}}));
    }
}
