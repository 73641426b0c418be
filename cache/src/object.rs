//! Objects: immutable bytes under their digest, and the only way in.
//!
//! ```text
//! objects/ab/cdef...   one file, read-only, named by the digest of its content
//! tmp/                 what is being written; anything here belongs to nobody after a crash
//! ```

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::record::Output;
use crate::{Digest, Result, StoreError};

/// The file of an object.
pub(crate) fn path_of(objects: &Path, digest: &Digest) -> PathBuf {
    let hex = digest.to_string();
    objects.join(&hex[..2]).join(&hex[2..])
}

/// Makes every file below `dir` an object, durably, and lists them in the order of their paths. The files are moved, not
/// copied: `dir` must be on the store's file system.
pub(crate) fn take_in(objects: &Path, dir: &Path) -> Result<Vec<Output>> {
    let mut files = Vec::new();
    collect(dir, dir, &mut files)?;
    files.sort();
    let outputs = files
        .par_iter()
        .map(|relative| {
            let path = dir.join(relative);
            let (digest, size) = Digest::of_file(&path).map_err(StoreError::io("read", &path))?;
            place(objects, &path, &digest)?;
            Ok(Output { path: relative.clone(), digest, size })
        })
        .collect::<Result<Vec<_>>>()?;
    let mut folders: Vec<_> =
        outputs.iter().filter_map(|o| path_of(objects, &o.digest).parent().map(Path::to_owned)).collect();
    folders.sort();
    folders.dedup();
    folders.iter().try_for_each(|folder| sync_dir(folder))?;
    Ok(outputs)
}

fn collect(root: &Path, dir: &Path, files: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(StoreError::io("read", dir))? {
        let entry = entry.map_err(StoreError::io("read", dir))?;
        let (path, kind) = (entry.path(), entry.file_type().map_err(StoreError::io("read", dir))?);
        if kind.is_dir() {
            collect(root, &path, files)?;
        } else if kind.is_file() {
            let relative = path.strip_prefix(root).expect("entries lie below their folder");
            let text = relative.to_str().ok_or_else(|| StoreError::NotAFile { path: path.clone() })?;
            files.push(text.to_owned());
        } else {
            return Err(StoreError::NotAFile { path });
        }
    }
    Ok(())
}

/// Syncs a file, makes it read-only and renames it to its place. Whatever stood there had the same name and is replaced:
/// these bytes were just hashed, those were not.
fn place(objects: &Path, file: &Path, digest: &Digest) -> Result<()> {
    let target = path_of(objects, digest);
    let folder = target.parent().expect("an object lies in a folder");
    fs::create_dir_all(folder).map_err(StoreError::io("write", folder))?;
    File::open(file).and_then(|f| f.sync_all()).map_err(StoreError::io("write", file))?;
    fs::set_permissions(file, Permissions::from_mode(0o444)).map_err(StoreError::io("write", file))?;
    fs::rename(file, &target).map_err(StoreError::io("write", &target))
}

/// Writes `bytes` to `target` so that it is there whole or not at all, also after a power cut.
pub(crate) fn write_whole(tmp: &Path, target: &Path, bytes: &[u8]) -> Result<()> {
    let folder = target.parent().expect("a target lies in a folder");
    fs::create_dir_all(folder).map_err(StoreError::io("write", folder))?;
    let mut file = tempfile::NamedTempFile::new_in(tmp).map_err(StoreError::io("write", tmp))?;
    std::io::Write::write_all(&mut file, bytes).map_err(StoreError::io("write", target))?;
    file.as_file().sync_all().map_err(StoreError::io("write", target))?;
    file.as_file().set_permissions(Permissions::from_mode(0o444)).map_err(StoreError::io("write", target))?;
    file.persist(target).map_err(|e| StoreError::io("write", target)(e.error))?;
    sync_dir(folder)
}

fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(StoreError::io("write", dir))
}
