//! The stat cache: (path, size, times, inode) to the digest of a raw file's content.
//!
//! An accelerator and never a judge: it only says "this is the very file that was hashed before". A file whose
//! times changed is hashed again, and what counts is its digest.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, statat};
use rustix::path::Arg;

use crate::{Digest, Result, Store, StoreError, object};

/// What `stat` says of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub size: i64,
    pub modified_ns: i64,
    /// The time of the last change of the inode: it moves even when a program sets the modification time back.
    pub changed_ns: i64,
    pub inode: i64,
}

/// A file that changed this recently may change again without its times moving, so its stamp is not kept.
const SETTLED_NS: i64 = 2_000_000_000;

impl Stamp {
    pub(crate) fn of(path: &Path) -> Result<Self> {
        let meta = std::fs::metadata(path).map_err(StoreError::io("read", path))?;
        // To read a pipe would be to wait for whoever writes to it.
        if !meta.is_file() {
            return Err(StoreError::NotPlain { path: path.to_owned() });
        }
        Ok(Self {
            size: meta.size() as i64,
            modified_ns: meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec()),
            changed_ns: meta.ctime().saturating_mul(1_000_000_000).saturating_add(meta.ctime_nsec()),
            inode: meta.ino() as i64,
        })
    }

    /// Whether the file has been at rest for long enough, by a clock that may be wrong.
    fn settled(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i64);
        now - self.changed_ns.max(self.modified_ns) > SETTLED_NS
    }
}

/// When a file below an opened folder was last modified: the way to the folder is looked up once and not for each of many files.
///
/// # Errors
/// A file that cannot be found.
pub fn modified_in(folder: &File, path: impl Arg) -> io::Result<SystemTime> {
    let stat = statat(folder, path, AtFlags::empty())?;
    let seconds = Duration::from_secs(stat.st_mtime.unsigned_abs());
    // A clock may have been wrong by decades.
    let whole = if stat.st_mtime < 0 { UNIX_EPOCH.checked_sub(seconds) } else { UNIX_EPOCH.checked_add(seconds) };
    let time = whole.and_then(|time| time.checked_add(Duration::from_nanos(stat.st_mtime_nsec as u64)));
    time.ok_or_else(|| io::Error::other("a time that cannot be"))
}

impl Store {
    /// When an object was last modified.
    ///
    /// # Errors
    /// An object that is not there.
    pub fn object_modified(&self, digest: &Digest) -> io::Result<SystemTime> {
        let objects = self.objects_dir().ok_or(io::ErrorKind::NotFound)?;
        modified_in(objects, object::name_of(digest))
    }

    /// Digest and size of a raw file: from the stat cache if this very file was hashed before, else by reading it.
    ///
    /// # Errors
    /// A file that cannot be read, and what is no plain file.
    pub fn digest_of_raw(&self, path: &Path) -> Result<(Digest, u64)> {
        let stamp = Stamp::of(path)?;
        if let Some(digest) = self.ledger().stat_get(path, &stamp)? {
            return Ok((digest, stamp.size as u64));
        }
        let (digest, size) = Digest::of_file(path).map_err(StoreError::io("read", path))?;
        let after = Stamp::of(path)?;
        if after == stamp && stamp.settled() && self.is_writable() {
            self.fresh_stamps().push((path.to_owned(), stamp, digest));
        }
        Ok((digest, size))
    }

    /// Writes the stamps of files that were hashed since the last call.
    ///
    /// # Errors
    /// A ledger that cannot be written.
    pub fn keep_stamps(&self) -> Result<()> {
        let stamps = std::mem::take(&mut *self.fresh_stamps());
        if stamps.is_empty() { Ok(()) } else { self.ledger().stat_put(&stamps) }
    }
}
