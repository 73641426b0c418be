//! Stages that run a command: their stage kind, made from what the manifest declares, and the words of their command.

use serde_json::{Map, Value, json};

use super::{CommandLine, Manifest, Need, Stage};
use crate::pattern::Condition;
use crate::protocol::{
    CodeFingerprint, InputSpec, OutputSpec, Purpose, Resources, Role, SourceFrom, SourceSpec, StageKind,
};

/// What records and keys call every command.
pub const KIND: &str = "run";

/// The name of a stage's own kind. No pack's kind has a space in its name.
pub fn kind_name(stage: &str) -> String {
    format!("{KIND} {stage}")
}

/// Whether a kind is a command's.
pub fn is_command(kind: &StageKind) -> bool {
    kind.name.strip_prefix(KIND).is_some_and(|rest| rest.starts_with(' '))
}

/// The kind of a stage that runs a command.
pub(super) fn kind(name: &str, stage: &Stage) -> StageKind {
    let input = |(name, need): (&String, &super::Need)| InputSpec {
        name: name.clone(),
        role: need.join().role.unwrap_or(Role::Plain),
        files: vec!["*".to_owned()],
        many: true,
        optional: false,
    };
    let output = |path: &String| {
        let purpose = if stage.results.contains(path) { Purpose::Result } else { Purpose::Data };
        OutputSpec { path: path.clone(), purpose }
    };
    let source = |which: &str| SourceSpec { name: which.to_owned(), from: SourceFrom::Stage(which.to_owned()) };
    StageKind {
        requires: Vec::new(),
        name: kind_name(name),
        summary: "runs a command".to_owned(),
        params: json!({"type": "object"}),
        inputs: stage.needs.iter().map(input).collect(),
        sources: ["code", "files"].into_iter().map(source).collect(),
        outputs: stage.outputs.iter().map(output).collect(),
        resources: Resources::default(),
        scales: false,
        code: CodeFingerprint::default(),
    }
}

/// The axes of a needed stage by which a command tells gathered artifacts apart: those that it does not have itself and that
/// `where` does not tie to one that it has.
pub fn gathered_axes(manifest: &Manifest, stage: &Stage, need: &Need) -> Vec<String> {
    let join = need.join();
    let filter = join.filter.as_ref().and_then(|text| Condition::parse(text).ok());
    let equal = filter.as_ref().map(Condition::equalities).unwrap_or_default();
    let own = |axis: &str| stage.per.iter().any(|known| known == axis);
    let tied = |axis: &str| equal.iter().any(|(l, r)| (*l == axis && own(r)) || (*r == axis && own(l)));
    let mut axes: Vec<String> = manifest
        .stages
        .get(&join.stage)
        .map(|needed| needed.per.iter().filter(|axis| !own(axis) && !tied(axis)).cloned().collect())
        .unwrap_or_default();
    axes.sort();
    axes
}

/// All that decides what a command does, as the parameters of its instance: `with` as it is after substitution, the words,
/// the declared environment, the outputs.
///
/// # Errors
/// A `${NAME}` that is neither an axis of the stage, nor a parameter, nor an input.
pub fn params<'v>(
    stage: &Stage,
    with: &Map<String, Value>,
    axis: &impl Fn(&str) -> Option<&'v str>,
) -> Result<Map<String, Value>, String> {
    let from_axes = |name: &str| axis(name).map(str::to_owned);
    // Of other parameters those that are what they are: a group's on an axis, say.
    let given = |name: &str| {
        let plain = |value: &&Value| !value.to_string().contains("${");
        from_axes(name).or_else(|| with.get(name).filter(plain).map(shown))
    };
    let mut whole = Map::new();
    for (name, value) in with {
        whole.insert(name.clone(), substitute_in(value, &given)?);
    }
    let all = |name: &str| {
        from_axes(name).or_else(|| match name.split_once('.') {
            Some(("input", input)) if stage.needs.contains_key(input) => Some(format!("inputs/{input}")),
            _ => whole.get(name).map(shown),
        })
    };
    let command = match &stage.run {
        Some(CommandLine::Shell(text)) => Value::String(substitute(text, &|name| all(name).map(|v| quoted(&v)))?),
        Some(CommandLine::Words(words)) => {
            Value::Array(words.iter().map(|word| Ok(substitute(word, &all)?.into())).collect::<Result<_, String>>()?)
        }
        None => Value::Null,
    };
    let mut env = Map::new();
    for (name, value) in &stage.env {
        let value = match value {
            Some(text) => Value::String(substitute(text, &all)?),
            None => std::env::var(name).map_or(Value::Null, Value::String),
        };
        env.insert(name.clone(), value);
    }
    let mut params = Map::from_iter([("command".to_owned(), command)]);
    if !whole.is_empty() {
        params.insert("with".to_owned(), Value::Object(whole));
    }
    if !env.is_empty() {
        params.insert("env".to_owned(), Value::Object(env));
    }
    params.insert("outputs".to_owned(), json!(stage.outputs));
    Ok(params)
}

fn substitute_in(value: &Value, of: &impl Fn(&str) -> Option<String>) -> Result<Value, String> {
    Ok(match value {
        Value::String(text) => Value::String(substitute(text, of)?),
        Value::Array(items) => items.iter().map(|item| substitute_in(item, of)).collect::<Result<_, _>>()?,
        Value::Object(map) => Value::Object(
            map.iter().map(|(k, v)| Ok((k.clone(), substitute_in(v, of)?))).collect::<Result<_, String>>()?,
        ),
        other => other.clone(),
    })
}

/// Replaces each `${NAME}`; `$${` stands for `${` itself.
pub(crate) fn substitute(text: &str, of: &impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(place) = rest.find("${") {
        if rest[..place].ends_with('$') {
            out.push_str(&rest[..place]);
            out.push('{');
            rest = &rest[place + 2..];
            continue;
        }
        let (name, after) = rest[place + 2..].split_once('}').ok_or("`${` lacks a closing bracket")?;
        let value = of(name).ok_or_else(|| {
            format!("`${{{name}}}` is no axis of this stage, no parameter in `with` and no `input.NAME`; write `$${{{name}}}` for a variable of the shell")
        })?;
        out.push_str(&rest[..place]);
        out.push_str(&value);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A value as one word of a shell command.
fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    match !value.is_empty() && value.chars().all(plain) {
        true => value.to_owned(),
        false => format!("'{}'", value.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(run: &str, with: Value) -> Result<Value, String> {
        let stage = Stage { run: Some(CommandLine::Shell(run.to_owned())), ..Stage::default() };
        let axis = |name: &str| (name == "seed").then_some("7");
        params(&stage, with.as_object().unwrap(), &axis).map(|mut p| p.remove("command").unwrap())
    }

    #[test]
    fn names_are_replaced_and_quoted() {
        assert_eq!(command("fit --seed ${seed} --lr ${lr}", json!({"lr": 0.5})).unwrap(), "fit --seed 7 --lr 0.5");
        assert_eq!(command("echo ${text}", json!({"text": "a b'; rm *"})).unwrap(), r"echo 'a b'\''; rm *'");
        assert_eq!(command("echo $${HOME} $x", json!({})).unwrap(), "echo ${HOME} $x");
        assert!(command("echo ${sed}", json!({})).unwrap_err().contains("${sed}"));
    }
}
