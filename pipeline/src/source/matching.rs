//! Files by patterns.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Files that match a pattern, sorted. A name without wildcards matches itself.
pub(super) fn matches(pattern: &Path) -> Result<Vec<PathBuf>, String> {
    if let Some(path) = passed_over(pattern) {
        return Err(format!("the name of {path:?} is not UTF-8, and it would be passed over; rename it"));
    }
    let text = pattern.to_string_lossy();
    let mut found = Vec::new();
    for entry in glob::glob(&text).map_err(|e| format!("`{text}` is no pattern: {e}"))? {
        let path = entry.map_err(|e| format!("{}: {}", e.path().display(), e.error()))?;
        if path.to_str().is_none() {
            return Err(format!("the name of {path:?} is not UTF-8; rename it"));
        }
        // A link to nowhere is reported when it is read, not passed over.
        if !path.is_dir() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Why a pattern matches nothing: the first folder on the way that is not there.
pub(super) fn empty_hint(pattern: &Path) -> String {
    let mut known = PathBuf::new();
    for part in pattern.components() {
        let text = part.as_os_str().to_string_lossy();
        if is_wild(&text) {
            let endings: BTreeSet<String> = std::fs::read_dir(&known)
                .into_iter()
                .flatten()
                .flatten()
                .filter_map(|e| e.path().extension().map(|x| format!("*.{}", x.to_string_lossy())))
                .collect();
            let list: Vec<_> = endings.into_iter().collect();
            return match list.is_empty() {
                true if text == "**" => {
                    format!("`**` is for folders; files in them are `{}`", pattern.join("*").display())
                }
                true => format!("the folder {} has no files with an ending", known.display()),
                false => format!("the folder {} has {}", known.display(), list.join(", ")),
            };
        }
        let next = known.join(part);
        if !next.exists() {
            return format!("{} does not exist", next.display());
        }
        known = next;
    }
    format!("{} is not a file", known.display())
}

/// Whether a part of a pattern stands for more than itself.
fn is_wild(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

/// A file or folder that a pattern would match if its name were text.
fn passed_over(pattern: &Path) -> Option<PathBuf> {
    let mut above = PathBuf::new();
    let mut parts = pattern.components().peekable();
    while let Some(part) = parts.next() {
        let text = part.as_os_str().to_string_lossy();
        if is_wild(&text) && text != "**" {
            let wanted = glob::Pattern::new(&text).ok()?;
            let is_last = parts.peek().is_none();
            let odd = |path: &PathBuf| {
                let name = path.file_name().unwrap_or_default();
                let fits = name.to_str().is_none() && wanted.matches(&name.to_string_lossy());
                fits && (is_last || path.is_dir())
            };
            let entries = |folder: PathBuf| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
            if let Some(path) = folders(&above).into_iter().flat_map(entries).find(odd) {
                return Some(path);
            }
        }
        above.push(part);
    }
    None
}

/// The folders that a pattern means.
fn folders(pattern: &Path) -> Vec<PathBuf> {
    let text = pattern.to_string_lossy();
    if !is_wild(&text) {
        return vec![pattern.to_owned()];
    }
    let mut all: Vec<PathBuf> =
        glob::glob(&text).into_iter().flatten().flatten().filter(|path| path.is_dir()).collect();
    // `**` stands for no folder at all as well.
    if let (true, Some(above)) = (pattern.ends_with("**"), pattern.parent()) {
        all.extend(folders(above));
    }
    all
}
