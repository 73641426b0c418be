//! Folders of links to what several instances read, made once in a run.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::SystemTime;

use rayon::prelude::*;
use siteline_cache::modified_in;

use super::CLOCK_STEP;

/// A folder of links, shared by everything that reads the same.
#[derive(Debug)]
pub(super) struct View {
    pub(super) path: PathBuf,
    /// A symbolic link to the folder as it stands in the `inputs` of a working directory. Whoever shows the view gets a hard link
    /// to it, which costs no inode; a relative one is quick to follow.
    link: OnceLock<PathBuf>,
    folders: Vec<Folder>,
}

impl View {
    /// Shows the view as `place`, in the `inputs` of a working directory.
    pub(super) fn show(&self, place: &Path) -> io::Result<()> {
        if self.link.get().is_none() {
            let link = self.path.with_extension("link");
            match symlink(Path::new("../../..").join(self.path.file_name().unwrap_or_default()), &link) {
                // Somebody else was first.
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
            let _ = self.link.set(link);
        }
        let link = self.link.get().ok_or(io::ErrorKind::NotFound)?;
        fs::hard_link(link, place).or_else(|_| symlink(fs::read_link(link)?, place))
    }

    /// Whether nobody has put anything into it since `started`: as root a program can.
    pub(super) fn is_untouched(&self, root: &Root, started: SystemTime) -> bool {
        let same = |folder: &Folder| {
            let modified = modified_in(&root.dir, &folder.path).ok();
            // Times move in steps: right after it was made a folder may have changed without its time doing so.
            let settled = folder.made + CLOCK_STEP < started;
            modified == Some(folder.made) && (settled || root.entries(folder) == Some(folder.entries))
        };
        self.folders.iter().all(same)
    }
}

/// A folder of a view as it was made.
#[derive(Debug)]
struct Folder {
    /// Below the workshop's root.
    path: PathBuf,
    made: SystemTime,
    entries: usize,
}

/// The folder that holds all views.
#[derive(Debug)]
pub(super) struct Root {
    folder: tempfile::TempDir,
    dir: File,
}

impl Root {
    pub(super) fn open(folder: tempfile::TempDir) -> io::Result<Self> {
        Ok(Self { dir: File::open(folder.path())?, folder })
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    fn entries(&self, folder: &Folder) -> Option<usize> {
        fs::read_dir(self.path().join(&folder.path)).ok().map(Iterator::count)
    }

    /// Notes the times of a finished view's folders and takes the right to write away.
    pub(super) fn seal(&self, path: PathBuf, mut folders: Vec<PathBuf>) -> io::Result<View> {
        folders.push(path.clone());
        let stamp = |folder: PathBuf| -> io::Result<Folder> {
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o555))?;
            let path = folder.strip_prefix(self.path()).map_err(io::Error::other)?.to_owned();
            let made = modified_in(&self.dir, &path)?;
            let folder = Folder { path, made, entries: 0 };
            Ok(Folder { entries: self.entries(&folder).unwrap_or(0), ..folder })
        };
        let folders = folders.into_par_iter().with_min_len(16).map(stamp).collect::<io::Result<_>>()?;
        Ok(View { path, link: OnceLock::new(), folders })
    }
}
