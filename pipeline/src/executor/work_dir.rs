//! The private working directory of a command: inputs as links, parameters as a file, outputs taken from declared places only.
//!
//! ```text
//! inputs/NAME/FILE                    what the instance reads by NAME
//! inputs/NAME/AXIS=VALUE,.../FILE     the same where several are gathered
//! params.json                         `with`, after substitution
//! PATH/OF/SCRIPT, PATH/OF/DATA        the project's files that the stage lists
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use siteline_cache::{Digest, Output, Store};

use super::Failure;

/// What a command finds and leaves.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layout {
    /// Folder below `inputs`, file in it, and the object.
    pub(crate) inputs: Vec<(String, String, Digest)>,
    /// Data: path in the working directory and where the file lies.
    pub(crate) files: Vec<(String, PathBuf)>,
    /// Code, likewise. It is copied: a script that is a link would import its neighbours from the project, declared or not.
    pub(crate) code: Vec<(String, PathBuf)>,
    /// Content of `params.json`.
    pub(crate) params: Option<String>,
    /// Declared outputs; a name ending in `/` is a folder.
    pub(crate) outputs: Vec<String>,
}

/// Fills an empty directory.
pub(crate) fn fill(store: &Store, dir: &Path, layout: &Layout) -> io::Result<()> {
    let mut made: BTreeSet<PathBuf> = BTreeSet::new();
    let mut folder = |path: &Path| -> io::Result<()> {
        if let Some(parent) = path.parent()
            && parent != dir
            && made.insert(parent.to_owned())
        {
            fs::create_dir_all(parent)?;
        }
        Ok(())
    };
    for (place, name, digest) in &layout.inputs {
        let path = dir.join("inputs").join(place).join(name);
        folder(&path)?;
        symlink(store.object_path(digest), &path)?;
    }
    for (name, file) in &layout.files {
        let path = dir.join(name);
        folder(&path)?;
        symlink(file, &path)?;
    }
    for (name, file) in &layout.code {
        let path = dir.join(name);
        folder(&path)?;
        fs::copy(file, &path)?;
    }
    for output in &layout.outputs {
        // A folder is there already, and so is the folder of a file: `>results/a.txt` just works.
        let path = dir.join(output);
        folder(&path)?;
        if output.ends_with('/') {
            fs::create_dir_all(path)?;
        }
    }
    if let Some(params) = &layout.params {
        fs::write(dir.join("params.json"), params)?;
    }
    Ok(())
}

/// The files of the declared outputs, relative to the directory.
pub(crate) fn outputs(dir: &Path, layout: &Layout) -> Result<Vec<String>, Failure> {
    let mut all = BTreeSet::new();
    for output in &layout.outputs {
        let path = dir.join(output.trim_end_matches('/'));
        let kind = fs::symlink_metadata(&path).map(|meta| meta.file_type());
        match kind {
            Ok(kind) if kind.is_dir() && output.ends_with('/') => {
                let files = Store::files_below(&path).map_err(|e| Failure::new(e.to_string()))?;
                all.extend(files.into_iter().map(|file| format!("{output}{file}")));
            }
            Ok(kind) if kind.is_file() && !output.ends_with('/') => {
                all.insert(output.clone());
            }
            Ok(kind) => {
                let what = if kind.is_symlink() {
                    "a link"
                } else if kind.is_dir() {
                    "a folder"
                } else {
                    "no folder"
                };
                let hint = if kind.is_dir() { "; write `/` behind a folder's name" } else { "" };
                return Err(Failure::new(format!("its output `{output}` is {what}{hint}")));
            }
            Err(_) => return Err(Failure::new(format!("it ended without its output `{output}`"))),
        }
    }
    if let Some(bad) = all.iter().find(|name| name.chars().any(char::is_control)) {
        return Err(Failure::new(format!("it left a file whose name has control characters: {bad:?}")));
    }
    Ok(all.into_iter().collect())
}

/// The first input object that was written to since `started`, though it is read-only: as root a program can.
pub(crate) fn altered_input(store: &Store, layout: &Layout, started: SystemTime) -> Option<String> {
    let objects: BTreeMap<&Digest, &String> = layout.inputs.iter().map(|(_, name, digest)| (digest, name)).collect();
    objects.into_iter().find_map(|(digest, name)| {
        let modified = fs::metadata(store.object_path(digest)).and_then(|meta| meta.modified());
        let untouched = modified.is_ok_and(|time| time < started);
        let damaged = !untouched && store.check_object(digest).map_or(true, |checked| checked.is_err());
        damaged.then(|| name.clone())
    })
}

/// Puts the outputs of a directory into the store.
pub(crate) fn take_in(store: &Store, dir: &Path, files: &[String]) -> Result<Vec<Output>, Failure> {
    store.take_in(dir, files).map_err(|e| Failure::new(e.to_string()))
}
