//! What an instance leaves: the files of its declared outputs, and how they come into the store.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use siteline_cache::{Output, Store};

use super::Failure;
use super::work_dir::Layout;

/// The files of the declared outputs, relative to the directory.
pub(crate) fn declared(dir: &Path, layout: &Layout) -> Result<Vec<String>, Failure> {
    let mut all = BTreeSet::new();
    for output in &layout.outputs {
        let path = dir.join(output.trim_end_matches('/'));
        let kind = fs::symlink_metadata(&path).map(|meta| meta.file_type());
        match kind {
            Ok(kind) if kind.is_dir() && output.ends_with('/') => {
                let below = output.trim_end_matches('/');
                all.extend(Store::files_below(dir, below).map_err(|e| Failure::new(e.to_string()))?);
            }
            Ok(kind) if kind.is_file() && !output.ends_with('/') => {
                all.insert(output.clone());
            }
            Ok(kind) => {
                let what = if kind.is_symlink() {
                    "a link"
                } else if kind.is_dir() {
                    "a folder"
                } else if kind.is_file() {
                    "no folder"
                } else {
                    "neither a file nor a folder"
                };
                let hint = if kind.is_dir() { "; write `/` behind a folder's name" } else { "" };
                return Err(Failure::new(format!("its output `{output}` is {what}{hint}")));
            }
            Err(_) => return Err(Failure::new(format!("it ended without its output `{output}`"))),
        }
    }
    let all: Vec<String> = all.into_iter().collect();
    check_names(&all)?;
    Ok(all)
}

/// Refuses outputs whose names could steer a terminal or stand for two lines.
pub(crate) fn check_names(files: &[String]) -> Result<(), Failure> {
    match files.iter().find(|name| name.chars().any(char::is_control)) {
        Some(bad) => Err(Failure::new(format!("it left a file whose name has control characters: {bad:?}"))),
        None => Ok(()),
    }
}

/// Puts the outputs of a directory into the store.
pub(crate) fn take_in(store: &Store, dir: &Path, files: &[String]) -> Result<Vec<Output>, Failure> {
    store.take_in(dir, files).map_err(|e| Failure::new(e.to_string()))
}
