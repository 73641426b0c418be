//! Leases on keys: two processes want one key, one computes, the other waits and takes the result.
//!
//! A lease is a small file that says whose it is. Only the same boot of the same machine may judge an owner by its process
//! id; another machine judges by age, which the owner's heartbeat keeps young. Ages are differences of times that the file
//! system itself has set, so that no machine's wrong clock takes part. So no lock outlives its owner, and nobody ever unlocks by
//! hand.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{FlockOperation, Timespec, Timestamps, UTIME_NOW, flock, futimens};
use serde::{Deserialize, Serialize};

use crate::{Digest, Result, StoreError};

/// A lease of another machine that was not renewed for this long has no owner any more.
const STALE_AFTER: Duration = Duration::from_secs(120);

/// Who holds a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Host name.
    pub host: String,
    /// The kernel's id of this boot, and the namespace of process ids: containers on one machine have their own.
    pub boot: String,
    /// Process id.
    pub pid: u32,
    /// Start of the process in clock ticks since boot: a reused pid is told from its predecessor.
    pub started: u64,
}

/// What became of an attempt to claim a key.
#[derive(Debug)]
pub enum ClaimOutcome {
    /// It is ours until the claim is dropped.
    Claimed(Claim),
    /// Somebody else is at work on it.
    Held(Owner),
}

/// A held lease; dropping it gives the key free.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    /// The file that the lease is a link to.
    inode: u64,
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Somebody else's lease is left alone: this one may have been taken over as its owner seemed dead.
        if fs::metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Owner {
    /// This process.
    pub fn this_process() -> Self {
        Self {
            host: host(),
            boot: boot_id().to_owned(),
            pid: std::process::id(),
            started: start_of(std::process::id()).unwrap_or(0),
        }
    }

    /// Whether the process still runs, as far as this machine can tell: `None` for another machine's.
    pub fn runs(&self) -> Option<bool> {
        if self.boot == boot_id() {
            return Some(start_of(self.pid) == Some(self.started));
        }
        // The same machine, booted since; of another container on it nothing is known.
        let namespace = |boot: &str| boot.split_once(' ').map(|(_, namespace)| namespace.to_owned());
        (self.host == host() && namespace(&self.boot) == namespace(boot_id())).then_some(false)
    }

    /// `now` is the file system's; without it another machine's lease is taken to hold.
    fn lives(&self, lease: &Path, now: impl FnOnce() -> Option<SystemTime>) -> bool {
        self.runs().unwrap_or_else(|| {
            let renewed = fs::metadata(lease).and_then(|meta| meta.modified()).ok();
            let (Some(renewed), Some(now)) = (renewed, now()) else { return true };
            // A time to come was set by a clock that was wrong, and nobody has set it right since.
            let apart = now.duration_since(renewed).unwrap_or_else(|ahead| ahead.duration());
            apart < STALE_AFTER
        })
    }
}

/// The leases of a store, as one process takes them: every lease that it holds is a link to one file that says whose it is, so
/// taking one is a single step, and one touch shows other machines that the owner of all of them is alive.
#[derive(Debug)]
pub(crate) struct Leases {
    folder: PathBuf,
    own: OnceLock<Own>,
    /// The file system's time, when it was last asked, and when that was.
    asked: Mutex<Option<(SystemTime, Instant)>>,
}

/// The file that says whose the leases are.
#[derive(Debug)]
struct Own {
    path: PathBuf,
    inode: u64,
}

impl Drop for Leases {
    fn drop(&mut self) {
        if let Some(own) = self.own.get() {
            let _ = fs::remove_file(&own.path);
        }
    }
}

impl Leases {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder, own: OnceLock::new(), asked: Mutex::default() }
    }

    fn own(&self) -> Result<&Own> {
        if let Some(own) = self.own.get() {
            return Ok(own);
        }
        let bytes = serde_json::to_vec(&Owner::this_process()).expect("an owner is JSON");
        let file = tempfile::Builder::new()
            .prefix(".owner-")
            .tempfile_in(&self.folder)
            .map_err(StoreError::io("write", &self.folder))?;
        fs::write(file.path(), bytes).map_err(StoreError::io("write", file.path()))?;
        // Others must be able to read whose it is; the folder says who may enter.
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o644))
            .map_err(StoreError::io("write", file.path()))?;
        let path = file.path().to_owned();
        // From here on it is removed with the leases.
        let (file, path) = file.keep().map_err(|e| StoreError::io("write", &path)(e.error))?;
        let inode = file.metadata().map_err(StoreError::io("read", &path))?.ino();
        Ok(self.own.get_or_init(|| Own { path, inode }))
    }

    /// Shows other machines that the owner is alive.
    pub(crate) fn renew(&self) -> Result<()> {
        let Some(Own { path, .. }) = self.own.get() else { return Ok(()) };
        File::open(path).and_then(|file| touch(&file)).map_err(StoreError::io("write", path))
    }

    /// The file system's time. It is asked now and then, by a file that is gone at once; nobody's clock is looked at in between, only
    /// how much time has passed. `None` where nothing can be written.
    fn now(&self) -> Option<SystemTime> {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((time, since)) = *asked
            && since.elapsed() < STALE_AFTER / 10
        {
            return Some(time + since.elapsed());
        }
        let file = tempfile::tempfile_in(&self.folder).ok()?;
        touch(&file).ok()?;
        let time = file.metadata().ok()?.modified().ok()?;
        *asked = Some((time, Instant::now()));
        Some(time)
    }

    /// Tries to take the lease on `key`.
    pub(crate) fn claim(&self, key: &Digest) -> Result<ClaimOutcome> {
        let path = self.folder.join(key.to_string());
        let Own { path: own, inode } = self.own()?;
        let inode = *inode;
        let take = || match fs::hard_link(own, &path) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(StoreError::io("write", &path)(e)),
        };
        if take()? {
            return Ok(ClaimOutcome::Claimed(Claim { path, inode }));
        }
        // Held, or left by somebody who is gone. One process at a time looks which, so that nobody removes a lease that
        // another has just taken over.
        let guard_path = self.folder.join(".guard");
        let guard = File::create(&guard_path).map_err(StoreError::io("write", &guard_path))?;
        flock(&guard, FlockOperation::LockExclusive).map_err(|e| StoreError::io("lock", &guard_path)(e.into()))?;
        let held = |owner: Owner| Ok(ClaimOutcome::Held(owner));
        match fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice::<Owner>(&bytes) {
                Ok(owner) if owner.lives(&path, || self.now()) => return held(owner),
                _ => {
                    let _ = fs::remove_file(&path);
                }
            },
            // Its owner has just let go of it: whoever is first has it, and nobody's is removed.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(StoreError::io("read", &path)(e)),
        }
        if take()? { Ok(ClaimOutcome::Claimed(Claim { path, inode })) } else { held(Owner::this_process()) }
    }

    /// Every lease: the key's text, its owner if that can be read, and whether the owner lives.
    pub(crate) fn all(&self) -> Vec<(String, Option<Owner>, bool)> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let mut all: Vec<_> = entries
            .filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
            .map(|entry| {
                let owner = fs::read(entry.path()).ok().and_then(|bytes| serde_json::from_slice::<Owner>(&bytes).ok());
                let lives = owner.as_ref().is_some_and(|owner| owner.lives(&entry.path(), || self.now()));
                (entry.file_name().to_string_lossy().into_owned(), owner, lives)
            })
            .collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }
}

/// Has the file system set the times of a file to its own now; over a network that is the server's.
fn touch(file: &File) -> std::io::Result<()> {
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    Ok(futimens(file, &Timestamps { last_access: now, last_modification: now })?)
}

fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn boot_id() -> &'static str {
    static ID: OnceLock<String> = OnceLock::new();
    ID.get_or_init(|| {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        format!("{} {}", boot.trim(), namespace.display())
    })
}

/// Field 22 of `/proc/PID/stat`; the command in field 2 may hold spaces, so fields are counted behind its bracket.
fn start_of(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    // A zombie has died; only its parent has not looked yet.
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_of_a_dead_process_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let leases = Leases::new(dir.path().to_owned());
        let key = Digest::of_bytes(b"k");
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let owner = Owner { pid: child.id(), started: start_of(child.id()).unwrap(), ..Owner::this_process() };
        fs::write(dir.path().join(key.to_string()), serde_json::to_vec(&owner).unwrap()).unwrap();
        assert!(matches!(leases.claim(&key).unwrap(), ClaimOutcome::Held(held) if held == owner));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(matches!(leases.claim(&key).unwrap(), ClaimOutcome::Claimed(_)));
    }

    /// Another machine's owner is judged by when the file system saw it last, not by anybody's clock.
    #[test]
    fn a_lease_of_another_machine_holds_while_it_is_renewed() {
        let dir = tempfile::tempdir().unwrap();
        let leases = Leases::new(dir.path().to_owned());
        let key = Digest::of_bytes(b"k");
        let path = dir.path().join(key.to_string());
        let owner = Owner { host: "elsewhere".into(), boot: "another".into(), ..Owner::this_process() };
        let day = Duration::from_secs(86_400);
        for (set, held) in [
            (None, true),
            (Some(SystemTime::now() - day), false),
            (Some(SystemTime::now() + day), false),
            (Some(SystemTime::now() - STALE_AFTER / 2), true),
            (Some(SystemTime::now() - STALE_AFTER * 2), false),
        ] {
            fs::write(&path, serde_json::to_vec(&owner).unwrap()).unwrap();
            if let Some(time) = set {
                File::open(&path).unwrap().set_modified(time).unwrap();
            }
            assert_eq!(leases.all()[0].2, held, "{set:?}");
            assert_eq!(matches!(leases.claim(&key).unwrap(), ClaimOutcome::Held(_)), held, "{set:?}");
        }
        // Whoever is late and still alive takes its time from the file system.
        fs::write(&path, serde_json::to_vec(&owner).unwrap()).unwrap();
        File::open(&path).unwrap().set_modified(SystemTime::now() - day).unwrap();
        touch(&File::open(&path).unwrap()).unwrap();
        assert!(matches!(leases.claim(&key).unwrap(), ClaimOutcome::Held(_)));
    }

    #[test]
    fn a_lease_cut_short_is_free_and_a_dropped_one_too() {
        let dir = tempfile::tempdir().unwrap();
        let leases = Leases::new(dir.path().to_owned());
        let key = Digest::of_bytes(b"k");
        fs::write(dir.path().join(key.to_string()), b"{\"host\":").unwrap();
        let ClaimOutcome::Claimed(held) = leases.claim(&key).unwrap() else { panic!("it was free") };
        assert!(matches!(leases.claim(&key).unwrap(), ClaimOutcome::Held(_)));
        drop(held);
        assert!(matches!(leases.claim(&key).unwrap(), ClaimOutcome::Claimed(_)));
    }

    #[test]
    fn of_many_that_want_a_lease_at_once_one_gets_it() {
        let dir = tempfile::tempdir().unwrap();
        for round in 0..50u8 {
            let key = Digest::of_bytes(&[round]);
            if round % 2 == 0 {
                fs::write(dir.path().join(key.to_string()), b"left by nobody").unwrap();
            }
            let claimed: Vec<bool> = std::thread::scope(|scope| {
                let folder = dir.path().to_owned();
                let take = move || {
                    let leases = Leases::new(folder);
                    let outcome = leases.claim(&key).unwrap();
                    let got = matches!(outcome, ClaimOutcome::Claimed(_));
                    std::mem::forget(outcome);
                    got
                };
                let threads: Vec<_> = (0..8).map(|_| scope.spawn(take.clone())).collect();
                threads.into_iter().map(|t| t.join().unwrap()).collect()
            });
            assert_eq!(claimed.iter().filter(|got| **got).count(), 1, "round {round}");
        }
    }
}
