//! The values of the axes: from the manifest, from files, from the names of the sites.

use std::collections::BTreeMap;
use std::path::Path;

use super::{AxisValue, AxisValues, Manifest, NamedAxis};
use crate::diagnostic::Diagnostic;
use crate::tree::Node;

/// An axis of the sweep.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Axis {
    /// Its values; those that only `include` names stand behind the others.
    pub values: Vec<AxisValue>,
    /// How many of them the axis itself lists.
    pub listed: usize,
}

impl Axis {
    pub(super) fn new(values: Vec<AxisValue>) -> Self {
        Self { listed: values.len(), values }
    }
}

/// The axes by name, the implicit `site` included.
pub(super) fn of(
    path: &Path,
    tree: &Node,
    manifest: &Manifest,
    root: &Path,
) -> Result<BTreeMap<String, Axis>, Diagnostic> {
    let sites = || Axis::new(manifest.sites.keys().map(|name| AxisValue::Word(name.clone())).collect());
    let mut axes: BTreeMap<String, Axis> = BTreeMap::from([("site".to_owned(), sites())]);
    for (name, values) in &manifest.axes {
        let axis = match values {
            AxisValues::Named(NamedAxis::Sites) => sites(),
            AxisValues::List(list) => Axis::new(list.clone()),
            AxisValues::File(file) => Axis::new(from_file(&root.join(&file.from)).map_err(|message| Diagnostic {
                file: path.to_owned(),
                span: Some(tree.nearest(&["axes", name, "from"]).span.clone()),
                message,
                hint: Some(format!("the file is looked for in {}", root.display())),
                detail: None,
            })?),
        };
        axes.insert(name.clone(), axis);
    }
    for (axis, value) in manifest.include.iter().flatten() {
        // An axis that does not exist is refused by the checks.
        if let Some(axis) = axes.get_mut(axis)
            && axis.values.iter().all(|known| known.label() != value.label())
        {
            axis.values.push(value.clone());
        }
    }
    Ok(axes)
}

fn value_of_line(line: &str) -> &str {
    line.split('#').next().unwrap_or("").trim()
}

/// Where a value stands for the second time in a file with one in each line.
pub(super) fn second_line(path: &Path, label: &str) -> Option<usize> {
    let text = std::fs::read_to_string(path).ok()?;
    text.lines().enumerate().filter(|(_, line)| value_of_line(line) == label).nth(1).map(|(at, _)| at + 1)
}

fn from_file(path: &Path) -> Result<Vec<AxisValue>, String> {
    if path.metadata().is_ok_and(|meta| !meta.is_file()) {
        return Err(format!("{} is no plain file", path.display()));
    }
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    if path.extension().is_some_and(|e| ["yaml", "yml", "json"].iter().any(|known| e == *known)) {
        let node = Node::parse(&text).map_err(|bad| format!("{}: {}", path.display(), bad.message))?;
        return serde_json::from_value(node.to_json())
            .map_err(|_| format!("{} is no list of words, whole numbers or groups with a `name`", path.display()));
    }
    let lines = text.lines().map(value_of_line).filter(|line| !line.is_empty());
    let value = |line: &str| match line.parse::<i64>() {
        // `007` is a name: the number would be called otherwise.
        Ok(number) if number.to_string() == line => AxisValue::Number(number),
        Ok(_) => AxisValue::Word(line.to_owned()),
        Err(_) => match line.parse::<f64>() {
            Ok(fraction) if fraction.is_finite() && line.starts_with(|c: char| c.is_ascii_digit() || c == '-') => {
                AxisValue::Fraction(fraction)
            }
            _ => AxisValue::Word(line.to_owned()),
        },
    };
    Ok(lines.map(value).collect())
}
