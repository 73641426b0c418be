//! Objects: immutable bytes under their digest, and the only way in.
//!
//! ```text
//! objects/ab/cdef...   one file, read-only, named by the digest of its content
//! tmp/                 what is being written; anything here belongs to nobody after a crash
//! ```

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::record::Output;
use crate::{Digest, Result, StoreError};

/// From here on files are hashed side by side.
const MANY: usize = 8;

/// The file of an object.
pub(crate) fn path_of(objects: &Path, digest: &Digest) -> PathBuf {
    objects.join(name_of(digest))
}

/// The same below the folder of objects: `ab/cdef...`.
pub(crate) fn name_of(digest: &Digest) -> String {
    let mut name = digest.to_string();
    name.insert(2, '/');
    name
}

/// Makes the files of `dir` objects and lists them in the order of their paths. The files are moved, not copied: `dir` must be
/// on the store's file system. They are not durable yet: a commit sees to that.
pub(crate) fn take_in(objects: &Path, dir: &Path, files: &[String]) -> Result<Vec<Output>> {
    let one = |relative: &String| {
        let path = dir.join(relative);
        let digest = own(&path).and_then(|mut file| Digest::of_open(&mut file));
        let (digest, size) = digest.map_err(StoreError::io("read", &path))?;
        place(objects, &path, &digest)?;
        Ok(Output { path: relative.clone(), digest, size })
    };
    let mut outputs = match files.len() {
        0..MANY => files.iter().map(one).collect::<Result<Vec<_>>>()?,
        _ => files.par_iter().map(one).collect::<Result<Vec<_>>>()?,
    };
    outputs.sort();
    Ok(outputs)
}

/// Opens a file that is to become an object. One that has another name as well, or that somebody still has open for writing, is
/// replaced by a copy: an object is nobody else's.
fn own(path: &Path) -> std::io::Result<File> {
    let mut file = File::open(path)?;
    if file.metadata()?.nlink() == 1 && !crate::digest::is_being_written(&file) {
        return Ok(file);
    }
    let folder = path.parent().expect("an output lies in a folder");
    let mut copy = tempfile::NamedTempFile::new_in(folder)?;
    std::io::copy(&mut file, &mut copy)?;
    copy.persist(path)?;
    File::open(path)
}

/// The plain files below the folder `below` of `dir`, relative to `dir`, sorted.
///
/// # Errors
/// Links, sockets, devices; names that are no text.
pub(crate) fn files_below(dir: &Path, below: &str) -> Result<Vec<String>> {
    let mut files = Vec::new();
    collect(&dir.join(below), below, &mut files)?;
    files.sort();
    Ok(files)
}

fn collect(dir: &Path, prefix: &str, files: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(StoreError::io("read", dir))? {
        let entry = entry.map_err(StoreError::io("read", dir))?;
        let (path, kind) = (entry.path(), entry.file_type().map_err(StoreError::io("read", dir))?);
        // Named as whoever made it knows it: the folder is one for the time being.
        let known_as = || Path::new(prefix).join(entry.file_name());
        let name = entry.file_name().into_string().map_err(|_| StoreError::NotText { path: known_as() })?;
        let relative = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        if kind.is_dir() {
            collect(&path, &relative, files)?;
        } else if kind.is_file() {
            files.push(relative);
        } else {
            return Err(StoreError::NotAFile { path: known_as() });
        }
    }
    Ok(())
}

/// Makes a file read-only and renames it to its place. Whatever stood there had the same name and is replaced: these bytes
/// were just hashed, those were not.
fn place(objects: &Path, file: &Path, digest: &Digest) -> Result<()> {
    let target = path_of(objects, digest);
    fs::set_permissions(file, Permissions::from_mode(0o444)).map_err(StoreError::io("write", file))?;
    if target.exists() {
        // What stands there may be durable already, and what takes its place must be.
        File::open(file).and_then(|file| file.sync_all()).map_err(StoreError::io("write", file))?;
    }
    match fs::rename(file, &target) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let folder = target.parent().expect("an object lies in a folder");
            crate::layout::make_folder(folder, crate::layout::is_shared(objects))?;
            fs::rename(file, &target).map_err(StoreError::io("write", &target))
        }
        other => other.map_err(StoreError::io("write", &target)),
    }
}

/// Writes `bytes` to `target` so that it is there whole or not at all, also after a power cut.
pub(crate) fn write_whole(tmp: &Path, target: &Path, bytes: &[u8]) -> Result<()> {
    let folder = target.parent().expect("a target lies in a folder");
    let mut file = tempfile::NamedTempFile::new_in(tmp).map_err(StoreError::io("write", tmp))?;
    std::io::Write::write_all(&mut file, bytes).map_err(StoreError::io("write", target))?;
    file.as_file().set_permissions(Permissions::from_mode(0o644)).map_err(StoreError::io("write", target))?;
    file.as_file().sync_all().map_err(StoreError::io("write", target))?;
    file.persist(target).map_err(|e| StoreError::io("write", target)(e.error))?;
    sync_dir(folder)
}

pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(StoreError::io("write", dir))
}
