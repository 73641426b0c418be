//! Removing what a run no longer needs, in bulk: a table's inputs are thousands of folders.

use std::fs::{self, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
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
    // Held open while it goes: a file system frees its blocks when nobody holds it any more, and in `rmdir` that would be while
    // nobody else can touch the folder that it stood in.
    let held = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(folder);
    let removed = fs::remove_dir_all(folder).or_else(|_| {
        open_up(folder);
        fs::remove_dir_all(folder)
    });
    drop(held);
    removed
}

/// A folder that cannot be written cannot be emptied either.
fn open_up(folder: &Path) {
    let mut waiting = vec![folder.to_owned()];
    while let Some(path) = waiting.pop() {
        // Not behind a link.
        if fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir()) {
            let _ = fs::set_permissions(&path, Permissions::from_mode(0o700));
            waiting.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        }
    }
}

/// Removes files, links, and folders with all that is in them; what can go goes, whatever cannot.
///
/// # Errors
/// The first that could not be removed.
pub fn remove_all(paths: &[PathBuf]) -> io::Result<()> {
    let each = |paths: &[PathBuf]| paths.iter().map(|path| remove(path)).fold(Ok(()), io::Result::and);
    if paths.len() < MANY {
        return each(paths);
    }
    std::thread::scope(|scope| {
        let mut waiting = Vec::new();
        let mut removed = Ok(());
        for chunk in paths.chunks(paths.len().div_ceil(THREADS)) {
            // Where there may be no more threads, this one does it.
            match std::thread::Builder::new().spawn_scoped(scope, move || each(chunk)) {
                Ok(thread) => waiting.push(thread),
                Err(_) => removed = removed.and(each(chunk)),
            }
        }
        let slip = |_| Err(io::Error::other("a thread that removed files panicked"));
        waiting.into_iter().map(|thread| thread.join().unwrap_or_else(slip)).fold(removed, io::Result::and)
    })
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::IsADirectory => remove_folder(path),
        removed => removed,
    }
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
            fs::create_dir_all(inner.join("deep")).unwrap();
            fs::write(inner.join("deep/file"), "text").unwrap();
            std::os::unix::fs::symlink(&beside, inner.join("link")).unwrap();
            fs::set_permissions(inner.join("deep"), Permissions::from_mode(0o555)).unwrap();
            fs::set_permissions(&inner, Permissions::from_mode(0o555)).unwrap();
        }
        std::os::unix::fs::symlink(&beside, root.path().join("link")).unwrap();
        remove_folder(&root.path().join("link")).unwrap();
        // One that is not there keeps none of the others.
        let mut paths: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.insert(0, folder.join("nothing"));
        assert!(remove_all(&paths).is_err());
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        remove_folder(&folder).unwrap();
        assert!(!folder.exists() && beside.join("kept").exists());
        assert!(remove_folder(&folder).is_err());
    }
}
