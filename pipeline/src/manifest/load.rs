//! Reads a manifest file: YAML, the command line's overrides, the schema, then the types.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Kinds, Loaded, Manifest, check, json_schema};
use crate::diagnostic::{Diagnostic, Diagnostics, suggest};
use crate::pack::{Home, Pack};
use crate::protocol::Role;
use crate::tree::{Entry, Node, NodeValue};

/// `--set stages.train.with.epochs=2`.
#[derive(Clone, Debug, PartialEq)]
pub struct Override {
    /// The keys down to the value.
    pub path: Vec<String>,
    /// The new value, as YAML.
    pub value: String,
}

impl std::fmt::Display for Override {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}", self.path.join("."), self.value)
    }
}

impl Override {
    /// Reads `KEY.KEY=VALUE`.
    ///
    /// # Errors
    /// A text without `=`, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (path, value) = text.split_once('=').ok_or_else(|| format!("`{text}` is not KEY.KEY=VALUE"))?;
        if path.contains('[') {
            let dotted = path.replace('[', ".").replace(']', "");
            return Err(format!("`{path}`: entries of lists are counted from 0 behind a dot, as in `{dotted}=...`"));
        }
        Ok(Self { path: path.split('.').map(str::to_owned).collect(), value: value.to_owned() })
    }
}

/// Reads a manifest and checks everything that can be checked without looking at its data.
///
/// # Errors
/// All that is wrong, each with its place.
pub fn load(path: &Path, overrides: &[Override], built_in: &Pack) -> Result<Loaded, Diagnostics> {
    let plain = |message: String, hint: Option<String>| Diagnostics {
        list: vec![Diagnostic { file: path.to_owned(), span: None, message, hint, detail: None }],
    };
    let text = std::fs::read_to_string(path).map_err(|e| {
        let hint = (e.kind() == std::io::ErrorKind::NotFound)
            .then(|| "`siteline init` writes a small working project; name a manifest with `-m FILE`".to_owned());
        plain(format!("failed to read the manifest {}: {e}", path.display()), hint)
    })?;
    let mut tree = Node::parse(&text).map_err(|bad| Diagnostics {
        list: vec![Diagnostic {
            file: path.to_owned(),
            span: bad.span,
            message: bad.message,
            hint: None,
            detail: None,
        }],
    })?;
    let written = axes_of(&tree);
    for change in overrides {
        apply(&mut tree, change).map_err(|message| plain(message, None))?;
    }
    let at = |span, message, hint| Diagnostic { file: path.to_owned(), span: Some(span), message, hint, detail: None };
    let misfits = crate::schema::check(&tree, &text, &json_schema(), "the manifest");
    if !misfits.is_empty() {
        return Err(sorted(misfits.into_iter().map(|m| at(m.span, m.message, m.hint)).collect()));
    }
    let mut manifest: Manifest = serde_json::from_value(tree.to_json())
        .map_err(|e| plain(format!("the manifest cannot be understood: {e}"), None))?;
    if let Some((message, hint)) = useless_axis(&written, &manifest, overrides) {
        return Err(plain(message, Some(hint)));
    }
    let root = root_of(path, manifest.root.as_deref())
        .map_err(|message| Diagnostics { list: vec![at(tree.nearest(&["root"]).span.clone(), message, None)] })?;
    if root.to_str().is_none() {
        return Err(plain(format!("the name of the project's folder {root:?} is not UTF-8; rename it"), None));
    }
    let one = |diagnostic| Diagnostics { list: vec![diagnostic] };
    let mut axes = super::axes::of(path, &tree, &manifest, &root).map_err(one)?;
    let added = super::selection::spell_out(path, &tree, &mut manifest, &mut axes).map_err(sorted)?;
    let (kinds, homes) = all_kinds(&manifest, built_in, &root).map_err(|(place, said)| {
        // A program that ends may say why in many lines.
        let (message, detail) = said.split_once('\n').map_or((&*said, None), |(first, rest)| (first, Some(rest)));
        let diagnostic = at(tree.nearest(&["packs", &place.to_string()]).span.clone(), message.to_owned(), None);
        one(Diagnostic { detail: detail.map(str::to_owned), ..diagnostic })
    })?;
    let overrides = overrides.to_vec();
    let loaded = Loaded { path: path.to_owned(), text, tree, manifest, root, overrides, kinds, homes, axes, added };
    let found = check::check(&loaded);
    if found.is_empty() { Ok(loaded) } else { Err(sorted(found)) }
}

/// The kinds of all packs, and one for each stage that runs a command. An error comes with the place of its pack.
fn all_kinds(manifest: &Manifest, built_in: &Pack, root: &Path) -> Result<(Kinds, Vec<Home>), (usize, String)> {
    let mut kinds: Kinds = built_in.kinds.iter().map(|kind| (kind.name.clone(), kind.clone())).collect();
    let mut homes = vec![Home::Pack(built_in.command.clone()); kinds.len()];
    for (place, text) in manifest.packs.iter().enumerate() {
        let pack = Pack::ask(text, root).map_err(|e| (place, e.to_string()))?;
        for kind in pack.kinds {
            if let Some(input) = kind.inputs.iter().find(|input| input.role == Role::Oracle) {
                let (kind, input) = (&kind.name, &input.name);
                return Err((
                    place,
                    format!("`{input}` of the stage kind `{kind}` has the role `oracle`, which is `select`'s"),
                ));
            }
            if kinds.contains_key(&kind.name) {
                return Err((place, format!("two packs have a stage kind `{}`", kind.name)));
            }
            kinds.insert(kind.name.clone(), kind);
            homes.push(Home::Pack(pack.command.clone()));
        }
    }
    for (name, stage) in manifest.stages.iter().filter(|(_, stage)| stage.run.is_some()) {
        kinds.insert(super::command::kind_name(name), super::command::kind(name, stage));
        homes.push(Home::Command);
    }
    Ok((kinds, homes))
}

fn sorted(mut list: Vec<Diagnostic>) -> Diagnostics {
    list.sort_by_key(|d| d.span.as_ref().map_or(0, |span| span.start));
    Diagnostics { list }
}

fn root_of(path: &Path, root: Option<&str>) -> Result<PathBuf, String> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let root = folder.join(root.unwrap_or("."));
    std::fs::canonicalize(&root).map_err(|e| format!("the project's folder {} cannot be read: {e}", root.display()))
}

/// The project's folder, as far as can be told of a manifest that may not hold: its own folder where it says nothing.
pub fn project_root(path: &Path, overrides: &[Override]) -> PathBuf {
    let mut tree = std::fs::read_to_string(path).ok().and_then(|text| Node::parse(&text).ok());
    if let Some(tree) = &mut tree {
        // One that does not fit the manifest is told of where the manifest is.
        overrides.iter().for_each(|change| drop(apply(tree, change)));
    }
    let written = tree.as_ref().and_then(|tree| match &tree.get("root")?.value.value {
        NodeValue::Text(text) => Some(text.as_str()),
        _ => None,
    });
    let here = || path.parent().unwrap_or(Path::new(".")).to_owned();
    root_of(path, written).or_else(|_| root_of(path, None)).unwrap_or_else(|_| here())
}

/// The axes that a tree has.
fn axes_of(tree: &Node) -> Vec<String> {
    match tree.get("axes").map(|entry| &entry.value.value) {
        Some(NodeValue::Map(entries)) => entries.keys().cloned().collect(),
        _ => Vec::new(),
    }
}

/// What is wrong with a change that adds an axis which no stage is repeated over, and which one may be meant: a slip, as it does nothing.
fn useless_axis(written: &[String], manifest: &Manifest, overrides: &[Override]) -> Option<(String, String)> {
    let is_used = |axis: &String| manifest.stages.values().any(|stage| stage.per.contains(axis));
    overrides.iter().find_map(|change| match change.path.as_slice() {
        [section, axis, ..] if section == "axes" && !written.contains(axis) && !is_used(axis) => {
            let message = format!("--set {}: no stage is repeated over an axis `{axis}`", change.path.join("."));
            Some((message, suggest(axis, "the axes are", written.iter().map(String::as_str))))
        }
        _ => None,
    })
}

/// Puts a value into the tree. A new value takes the place of the key that it stands under.
fn apply(tree: &mut Node, change: &Override) -> Result<(), String> {
    let shown = change.path.join(".");
    let value = Node::parse(&change.value).map_err(|bad| format!("--set {shown}: {}", bad.message))?;
    let mut node = tree;
    for (depth, key) in change.path.iter().enumerate() {
        if matches!(node.value, NodeValue::Null) {
            node.value = NodeValue::Map(indexmap::IndexMap::new());
        }
        let span = node.span.clone();
        let last = depth + 1 == change.path.len();
        node = match &mut node.value {
            NodeValue::Map(entries) => {
                let nothing = Node { span: span.clone(), value: NodeValue::Null };
                &mut entries.entry(key.clone()).or_insert(Entry { key_span: span, value: nothing }).value
            }
            NodeValue::List(items) => key
                .parse::<usize>()
                .ok()
                .and_then(|index| items.get_mut(index))
                .ok_or_else(|| format!("--set {shown}: the list has no entry `{key}`"))?,
            _ => return Err(format!("--set {shown}: `{}` holds no keys", change.path[..depth].join("."))),
        };
        if last {
            let span = node.span.clone();
            *node = moved(value.clone(), &span);
        }
    }
    Ok(())
}

/// Gives every part of a value from the command line the place in the file that it replaces.
fn moved(node: Node, span: &crate::tree::Span) -> Node {
    let value = match node.value {
        NodeValue::List(items) => NodeValue::List(items.into_iter().map(|item| moved(item, span)).collect()),
        NodeValue::Map(entries) => NodeValue::Map(
            entries
                .into_iter()
                .map(|(key, entry)| (key, Entry { key_span: span.clone(), value: moved(entry.value, span) }))
                .collect(),
        ),
        other => other,
    };
    Node { span: span.clone(), value }
}

/// Replaces `${name}` in a path by the manifest's parameters.
pub(crate) fn interpolate(text: &str, params: &indexmap::IndexMap<String, String>) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((head, tail)) = rest.split_once("${") {
        let (name, after) = tail.split_once('}').ok_or_else(|| format!("`{text}` lacks a closing bracket"))?;
        let value = params.get(name).ok_or_else(|| format!("`params` has no `{name}`"))?;
        out.push_str(head);
        out.push_str(value);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

/// A parameter's value as the `with` of some point gives it, for the schema check.
pub(crate) fn as_node<'a>(tree: &'a Node, path: &[&str]) -> Option<&'a Node> {
    let node = tree.nearest(&path[..path.len() - 1]);
    node.get(path[path.len() - 1]).map(|entry| &entry.value).filter(|n| !matches!(n.to_json(), Value::Null))
}
