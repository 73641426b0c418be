//! The folders of a store and who may enter them.

use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

use crate::{Result, StoreError};

/// The folders that every store has.
pub(crate) const FOLDERS: [&str; 7] = ["objects", "records", "runs", "leases", "tmp", "memo", "resume"];

/// Who may enter a store that is being made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sharing {
    /// Its user alone: images of patients may lie in it.
    #[default]
    Private,
    /// Everybody in the folder's group.
    Group,
}

/// Makes the store's folders where they are missing. What exists keeps its permissions: they are the user's choice.
pub(crate) fn make(root: &Path, sharing: Sharing) -> Result<()> {
    let new = !root.exists();
    if new {
        if let Some(parent) = root.parent() {
            fs::create_dir_all(parent).map_err(StoreError::io("create", parent))?;
        }
        make_folder(root, sharing == Sharing::Group)?;
    }
    let shared = is_shared(root);
    for path in FOLDERS.iter().map(|name| root.join(name)).filter(|path| !path.exists()) {
        make_folder(&path, shared)?;
        if path.ends_with("tmp") {
            spread(&path);
        }
    }
    Ok(())
}

/// Asks the file system to put each folder in this one somewhere else, where it can. Runs fill and empty folders of thousands of
/// entries, and ext4 spends its time on passing over inodes that were freed a moment ago in the same place.
fn spread(folder: &Path) {
    let asked = fs::File::open(folder).map_err(drop).and_then(|folder| {
        let flags = ioctl_getflags(&folder).map_err(drop)?;
        ioctl_setflags(&folder, flags | IFlags::TOPDIR).map_err(drop)
    });
    // Other file systems have no such flag, and no such need.
    if asked.is_err() {
        tracing::debug!("{} has no flag for folders that are spread", folder.display());
    }
}

/// Whether a folder of a store is open to its group.
pub(crate) fn is_shared(folder: &Path) -> bool {
    fs::metadata(folder).is_ok_and(|meta| meta.permissions().mode() & 0o070 == 0o070)
}

/// Makes one folder; one that is there already will do.
pub(crate) fn make_folder(path: &Path, shared: bool) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) if shared => {
            // What is made inside belongs to the same group.
            fs::set_permissions(path, Permissions::from_mode(0o2770)).map_err(StoreError::io("create", path))
        }
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => Err(StoreError::io("create", path)(e)),
        _ => Ok(()),
    }
}
