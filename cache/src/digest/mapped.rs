//! A very large file, mapped: hashed without the copy that reading it would cost.
//!
//! A mapped file that is cut short meanwhile ends the process that looks at it. So it is mapped only under a lease (`fcntl(2)`,
//! `F_SETLEASE`): whoever would open it for writing or cut it short then waits until the lease is given back, which happens as soon
//! as no piece is looked at any more. A page that cannot be read would end the process as well: each piece is brought into memory
//! by a call that can fail. Where the kernel gives no lease (other people's files, network file systems, files that are being
//! written) or no such call (before 5.14), the file is read.
#![allow(unsafe_code, reason = "a mapping and calls of fcntl, which no library wraps")]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use memmap2::{Advice, Mmap};

/// How long the kernel must leave a lease to its holder.
const ENOUGH: Duration = Duration::from_secs(10);

/// Which signal says that a lease is wanted back; Linux's number, which libc does not name.
const F_SETSIG: libc::c_int = 10;

/// A file under a read lease.
pub(super) struct Mapped<'f> {
    file: &'f File,
    bytes: Mmap,
    /// Pieces that are being looked at; once the lease is wanted back, a number that never is 0 again.
    looking: AtomicUsize,
}

/// Added to `looking` when the lease is wanted back.
const WANTED: usize = 1 << 32;

impl Drop for Mapped<'_> {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl<'f> Mapped<'f> {
    /// Maps a file that was opened for reading alone, if it can be leased and has `length` bytes.
    pub(super) fn new(file: &'f File, length: u64) -> Option<Self> {
        let left = std::fs::read_to_string("/proc/sys/fs/lease-break-time").ok()?.trim().parse().ok()?;
        if Duration::from_secs(left) < ENOUGH {
            return None;
        }
        lease(file).ok()?;
        // SAFETY: nobody can change the file or cut it short before the lease is given back; `piece` sees when it is wanted.
        let bytes = unsafe { Mmap::map(file) };
        let Ok(bytes) = bytes else {
            end_lease(file);
            return None;
        };
        let mapped = Self { file, bytes, looking: AtomicUsize::new(0) };
        (mapped.bytes.len() as u64 == length).then_some(mapped)
    }

    /// Looks at some bytes, for less than the time that the kernel leaves; `None` once somebody waits for the file, and where it
    /// cannot be read.
    pub(super) fn piece<T>(&self, start: u64, size: usize, look: impl FnOnce(&[u8]) -> T) -> Option<T> {
        let enter = |n: usize| (n < WANTED).then_some(n + 1);
        self.looking.fetch_update(Ordering::AcqRel, Ordering::Acquire, enter).ok()?;
        // SAFETY: the descriptor is open as long as the file is borrowed.
        let leased = unsafe { libc::fcntl(self.file.as_raw_fd(), libc::F_GETLEASE) } == libc::F_RDLCK;
        let start = start as usize;
        let there = || self.bytes.advise_range(Advice::PopulateRead, start, size).is_ok();
        let seen = (leased && there()).then(|| self.bytes.get(start..start + size).map(look)).flatten();
        if !leased {
            // Once is enough: nobody comes in any more.
            let _ =
                self.looking.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < WANTED).then_some(n + WANTED));
        }
        if self.looking.fetch_sub(1, Ordering::AcqRel) == WANTED + 1 {
            self.give_back();
        }
        seen
    }

    fn give_back(&self) {
        end_lease(self.file);
    }
}

/// Takes a read lease on a file that was opened for reading alone.
fn lease(file: &File) -> std::io::Result<()> {
    let descriptor = file.as_raw_fd();
    // SAFETY: the descriptor is open as long as the file is borrowed. SIGURG is ignored unless somebody asks for it, unlike the
    // signal that would otherwise say that the lease is wanted back.
    let leased = unsafe {
        libc::fcntl(descriptor, F_SETSIG, libc::SIGURG) == 0
            && libc::fcntl(descriptor, libc::F_SETLEASE, libc::F_RDLCK) == 0
    };
    if leased { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

fn end_lease(file: &File) {
    // SAFETY: the descriptor is open as long as the file is borrowed.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) };
}

/// Whether somebody has a file open for writing, or mapped so; what is opened for reading alone can be asked about. Of other people's
/// files and on some file systems it cannot be told.
pub(crate) fn is_being_written(file: &File) -> bool {
    match lease(file) {
        Ok(()) => {
            end_lease(file);
            false
        }
        Err(e) => e.kind() == std::io::ErrorKind::WouldBlock,
    }
}
