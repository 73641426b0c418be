//! What Python files import from the project: found by parsing them, so that nobody lists modules by hand.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tree_sitter::{Node, Parser};

/// The files below `root` that `files` import, directly or by way of others, without `files` themselves. What lies outside the
/// project (the standard library, installed packages) is not followed.
pub(super) fn of<'p>(root: &Path, files: impl Iterator<Item = &'p PathBuf>) -> BTreeSet<PathBuf> {
    let mut parser = Parser::new();
    let mut waiting: Vec<PathBuf> = files.filter(|path| is_python(path)).cloned().collect();
    if waiting.is_empty() || parser.set_language(&tree_sitter_python::LANGUAGE.into()).is_err() {
        return BTreeSet::new();
    }
    // A script's own folder is where Python looks first; the project's root is on the path of every command.
    let mut roots: BTreeSet<PathBuf> = waiting.iter().filter_map(|path| path.parent().map(Path::to_owned)).collect();
    roots.insert(root.to_owned());
    let given: BTreeSet<PathBuf> = waiting.iter().cloned().collect();
    let mut found = BTreeSet::new();
    while let Some(path) = waiting.pop() {
        let Ok(text) = std::fs::read(&path) else { continue };
        let Some(tree) = parser.parse(&text, None) else { continue };
        let mut names = Vec::new();
        collect(tree.root_node(), &text, &mut names);
        for import in names {
            for file in resolve(&import, &path, &roots).into_iter().filter(|file| file.starts_with(root)) {
                if !given.contains(&file) && found.insert(file.clone()) {
                    waiting.push(file);
                }
            }
        }
    }
    found
}

fn is_python(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "py")
}

/// A module as an import names it: leading dots, then its parts.
#[derive(Debug, PartialEq)]
struct Import {
    dots: usize,
    parts: Vec<String>,
}

fn collect(node: Node, text: &[u8], into: &mut Vec<Import>) {
    let module = |node: Node| {
        let name = node.utf8_text(text).unwrap_or_default();
        let dots = name.chars().take_while(|c| *c == '.').count();
        let parts = name[dots..].split('.').map(|part| part.trim().to_owned()).filter(|p| !p.is_empty()).collect();
        Import { dots, parts }
    };
    // `import a as b`: the module is the first of the two names.
    fn plain(node: Node) -> Node {
        node.child_by_field_name("name").unwrap_or(node)
    }
    let mut cursor = node.walk();
    match node.kind() {
        "import_statement" => {
            into.extend(node.children_by_field_name("name", &mut cursor).map(|name| module(plain(name))));
        }
        "import_from_statement" => {
            let Some(from) = node.child_by_field_name("module_name").map(module) else { return };
            // What is imported may be a module of the package itself.
            for name in node.children_by_field_name("name", &mut cursor) {
                let mut parts = from.parts.clone();
                parts.extend(module(plain(name)).parts);
                into.push(Import { dots: from.dots, parts });
            }
            into.push(from);
        }
        _ => node.children(&mut cursor).for_each(|child| collect(child, text, into)),
    }
}

/// The files that importing a module runs: the packages on the way, and the module.
fn resolve(import: &Import, from: &Path, roots: &BTreeSet<PathBuf>) -> Vec<PathBuf> {
    let bases: Vec<PathBuf> = match import.dots {
        0 => roots.iter().cloned().collect(),
        dots => from.ancestors().nth(dots).map(Path::to_owned).into_iter().collect(),
    };
    let mut files = Vec::new();
    for base in bases {
        let mut folder = base;
        for part in &import.parts {
            let module = folder.join(format!("{part}.py"));
            folder = folder.join(part);
            let package = folder.join("__init__.py");
            files.extend([module, package].into_iter().filter(|path| path.is_file()));
        }
        if import.parts.is_empty() {
            files.extend(Some(folder.join("__init__.py")).filter(|path| path.is_file()));
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imports_below_the_project_are_found_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            path
        };
        let script =
            "import os, numpy as np\nfrom lib import (\n    losses as l,\n)\nimport near\ntext = 'import unused'\n";
        let script = put("scripts/fit.py", script);
        put("scripts/near.py", "def f():\n    from lib.deep import thing\n");
        put("lib/__init__.py", "");
        put("lib/losses.py", "from . import sums\nfrom .deep.inner import x\n");
        put("lib/sums.py", "");
        put("lib/deep/__init__.py", "");
        put("lib/deep/inner.py", "");
        put("unused.py", "");
        let found = of(dir.path(), [script].iter());
        let names: Vec<_> = found.iter().map(|p| p.strip_prefix(dir.path()).unwrap().display().to_string()).collect();
        let lib = ["__init__", "deep/__init__", "deep/inner", "losses", "sums"].map(|name| format!("lib/{name}.py"));
        assert_eq!(names, [&lib[..], &["scripts/near.py".to_owned()]].concat());
    }
}
