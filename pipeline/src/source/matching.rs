//! Files by patterns.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Files that match a pattern, sorted. A name without wildcards matches itself.
pub(super) fn matches(pattern: &Path) -> Result<Vec<PathBuf>, String> {
    if let Some(path) = passed_over(pattern)? {
        return Err(format!("the name of {path:?} is not UTF-8, and it would be passed over; rename it"));
    }
    let mut found = expanded(pattern)?;
    // A link to nowhere is reported when it is read, not passed over.
    found.retain(|path| !path.is_dir());
    Ok(found)
}

/// Files and folders that match a pattern, sorted.
fn expanded(pattern: &Path) -> Result<Vec<PathBuf>, String> {
    let mut parts = pattern.components();
    let above: PathBuf = parts.by_ref().take_while(|part| part.as_os_str() != "**").collect();
    let rest = parts.as_path();
    let mut found = globbed(&above)?;
    if pattern.iter().any(|part| part == "**") {
        let mut folders = Vec::new();
        for folder in found.iter().filter(|path| path.is_dir()) {
            folders.extend(with_those_below(folder)?);
        }
        found = folders;
        if rest != Path::new("") {
            let below = found.iter().map(|folder| expanded(&escaped(folder).join(rest)));
            found = below.collect::<Result<Vec<_>, _>>()?.concat();
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// What matches a pattern without `**`.
fn globbed(pattern: &Path) -> Result<Vec<PathBuf>, String> {
    let text = pattern.to_string_lossy();
    let mut found = Vec::new();
    for entry in glob::glob(&text).map_err(|e| format!("`{text}` is no pattern: {e}"))? {
        let path = entry.map_err(|e| format!("{}: {}", e.path().display(), e.error()))?;
        is_text(&path)?;
        found.push(path);
    }
    Ok(found)
}

/// A folder and all folders below it. A link that leads back to a folder above it is not followed.
fn with_those_below(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let mut found = Vec::new();
    for entry in walkdir::WalkDir::new(folder).follow_links(true) {
        match entry {
            Ok(entry) if entry.file_type().is_dir() => {
                is_text(entry.path())?;
                found.push(entry.into_path());
            }
            Ok(_) => {}
            Err(e) if e.loop_ancestor().is_some() => {}
            // A link to nowhere, or to itself, is no folder.
            Err(e) if e.path().is_some_and(Path::is_symlink) => {}
            Err(e) => return Err(e.to_string()),
        }
    }
    Ok(found)
}

fn is_text(path: &Path) -> Result<(), String> {
    path.to_str().map(|_| ()).ok_or_else(|| format!("the name of {path:?} is not UTF-8; rename it"))
}

/// A path as the pattern that means it and nothing else.
fn escaped(path: &Path) -> PathBuf {
    glob::Pattern::escape(&path.to_string_lossy()).into()
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
fn passed_over(pattern: &Path) -> Result<Option<PathBuf>, String> {
    let mut above = PathBuf::new();
    let mut parts = pattern.components().peekable();
    while let Some(part) = parts.next() {
        let text = part.as_os_str().to_string_lossy();
        if is_wild(&text) && text != "**" {
            let Ok(wanted) = glob::Pattern::new(&text) else { return Ok(None) };
            let is_last = parts.peek().is_none();
            let odd = |path: &PathBuf| {
                let name = path.file_name().unwrap_or_default();
                let fits = name.to_str().is_none() && wanted.matches(&name.to_string_lossy());
                fits && (is_last || path.is_dir())
            };
            let entries = |folder: PathBuf| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
            let folders = if is_wild(&above.to_string_lossy()) { expanded(&above)? } else { vec![above.clone()] };
            if let Some(path) = folders.into_iter().flat_map(entries).find(odd) {
                return Ok(Some(path));
            }
        }
        above.push(part);
    }
    Ok(None)
}
