//! A very large file, mapped: hashed without the copy that reading it would cost.
//!
//! A mapped file that is cut short meanwhile ends the process that looks at it. So it is mapped only under a lease (`fcntl(2)`,
//! `F_SETLEASE`): whoever would open it for writing or cut it short then waits until the lease is given back, which happens at
//! the next piece. Where the kernel gives no lease (other people's files, network file systems, files that are being written),
//! the file is read.
#![allow(unsafe_code, reason = "a mapping and three calls of fcntl, which no library wraps")]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::time::Duration;

use memmap2::Mmap;

/// How long the kernel must leave a lease to its holder.
const ENOUGH: Duration = Duration::from_secs(10);

/// Which signal says that a lease is wanted back; Linux's number, which libc does not name.
const F_SETSIG: libc::c_int = 10;

/// A file under a read lease.
pub(super) struct Mapped<'f> {
    file: &'f File,
    bytes: Mmap,
}

impl Drop for Mapped<'_> {
    fn drop(&mut self) {
        // SAFETY: the descriptor is open as long as the file is borrowed.
        unsafe { libc::fcntl(self.file.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) };
    }
}

impl<'f> Mapped<'f> {
    /// Maps a file that was opened for reading alone, if it can be leased and has `length` bytes.
    pub(super) fn new(file: &'f File, length: u64) -> Option<Self> {
        let left = std::fs::read_to_string("/proc/sys/fs/lease-break-time").ok()?.trim().parse().ok()?;
        if Duration::from_secs(left) < ENOUGH {
            return None;
        }
        let descriptor = file.as_raw_fd();
        // SAFETY: the descriptor is open as long as the file is borrowed. SIGURG is ignored unless somebody asks for it, unlike the
        // signal that would otherwise say that the lease is wanted back.
        let leased = unsafe {
            libc::fcntl(descriptor, F_SETSIG, libc::SIGURG) == 0
                && libc::fcntl(descriptor, libc::F_SETLEASE, libc::F_RDLCK) == 0
        };
        if !leased {
            return None;
        }
        // SAFETY: nobody can change the file or cut it short before the lease is given back; `piece` sees when it is wanted.
        let bytes = unsafe { Mmap::map(file) };
        let Ok(bytes) = bytes else {
            // SAFETY: as above.
            unsafe { libc::fcntl(descriptor, libc::F_SETLEASE, libc::F_UNLCK) };
            return None;
        };
        let mapped = Self { file, bytes };
        (mapped.bytes.len() as u64 == length).then_some(mapped)
    }

    /// Some bytes; `None` once somebody waits for the file. They are to be looked at within the time that the kernel leaves.
    pub(super) fn piece(&self, start: u64, size: usize) -> Option<&[u8]> {
        // SAFETY: the descriptor is open as long as the file is borrowed.
        let lease = unsafe { libc::fcntl(self.file.as_raw_fd(), libc::F_GETLEASE) };
        (lease == libc::F_RDLCK).then(|| self.bytes.get(start as usize..start as usize + size))?
    }
}
