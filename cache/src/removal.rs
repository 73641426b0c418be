//! Removing what a run no longer needs, in bulk: a table's inputs are thousands of folders.

use std::fs::{self, File, FileType};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// From here on it is worth waking other threads.
const MANY: usize = 64;
/// More than there are processors: file systems wait for the disk while they free blocks.
const THREADS: usize = 8;

/// Removes a folder with all that is in it, folders that were closed to writing included. Of a link the link alone goes.
///
/// # Errors
/// A folder that is not there, or that belongs to somebody else.
pub fn remove_folder(folder: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(folder)?.is_dir() {
        return fs::remove_file(folder);
    }
    // A folder that cannot be written cannot be emptied either.
    let _ = fs::set_permissions(folder, fs::Permissions::from_mode(0o755));
    // Held open while it goes: a file system frees its blocks when nobody holds it any more, and in `remove_dir` that would be
    // while nobody else can touch the folder that it stood in.
    let held = File::open(folder);
    let entries = fs::read_dir(folder)?.map(|entry| entry.and_then(|entry| Ok((entry.path(), entry.file_type()?))));
    remove_all(&entries.collect::<io::Result<Vec<_>>>()?)?;
    let removed = fs::remove_dir(folder);
    drop(held);
    removed
}

/// Removes files, links, and folders with all that is in them.
///
/// # Errors
/// As [`remove_folder`].
pub fn remove_all(entries: &[(PathBuf, FileType)]) -> io::Result<()> {
    let remove = |(path, kind): &(PathBuf, FileType)| match kind.is_dir() {
        true => remove_folder(path),
        false => fs::remove_file(path),
    };
    if entries.len() < MANY {
        return entries.iter().try_for_each(remove);
    }
    std::thread::scope(|scope| {
        let chunks = entries.chunks(entries.len().div_ceil(THREADS));
        let threads: Vec<_> = chunks.map(|chunk| scope.spawn(move || chunk.iter().try_for_each(remove))).collect();
        let slip = |_| Err(io::Error::other("a thread that removed files panicked"));
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(slip))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_every_size_and_mode_go_and_what_links_lead_to_stays() {
        let root = tempfile::tempdir().unwrap();
        let (folder, beside) = (root.path().join("folder"), root.path().join("beside"));
        fs::create_dir_all(beside.join("kept")).unwrap();
        for number in 0..3 * MANY {
            let inner = folder.join(format!("inner{number}"));
            fs::create_dir_all(&inner).unwrap();
            fs::write(inner.join("file"), "text").unwrap();
            std::os::unix::fs::symlink(&beside, inner.join("link")).unwrap();
            fs::set_permissions(&inner, fs::Permissions::from_mode(0o555)).unwrap();
        }
        std::os::unix::fs::symlink(&beside, root.path().join("link")).unwrap();
        remove_folder(&root.path().join("link")).unwrap();
        remove_folder(&folder).unwrap();
        assert!(!folder.exists() && beside.join("kept").exists());
        assert!(remove_folder(&folder).is_err());
    }
}
