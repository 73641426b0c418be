//! Leases on keys: two processes want one key, one computes, the other waits and takes the result.
//!
//! A lease is a small file that says whose it is. Only the same boot of the same machine may judge an owner by its process
//! id; another machine judges by age, which the owner's heartbeat keeps young. So no lock outlives its owner, and nobody
//! ever unlocks by hand.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::{Digest, Result, StoreError};

/// A lease of another machine that was not renewed for this long has no owner any more.
const STALE_AFTER: Duration = Duration::from_secs(120);

/// Who holds a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Host name.
    pub host: String,
    /// The kernel's id of this boot.
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
}

impl Drop for Claim {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Claim {
    /// Shows other machines that the owner is alive.
    ///
    /// # Errors
    /// A lease that cannot be touched.
    pub fn renew(&self) -> Result<()> {
        File::open(&self.path)
            .and_then(|file| file.set_modified(SystemTime::now()))
            .map_err(StoreError::io("write", &self.path))
    }
}

impl Owner {
    /// This process.
    pub fn this_process() -> Self {
        Self {
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            boot: boot_id(),
            pid: std::process::id(),
            started: start_of(std::process::id()).unwrap_or(0),
        }
    }

    fn lives(&self, lease: &Path) -> bool {
        if self.boot == boot_id() {
            return start_of(self.pid) == Some(self.started);
        }
        if self.host == rustix::system::uname().nodename().to_string_lossy() {
            // The same machine, booted since.
            return false;
        }
        let age = fs::metadata(lease).and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
        age.is_none_or(|age| age < STALE_AFTER)
    }
}

/// Tries to take the lease on `key` below `leases`.
pub(crate) fn claim(leases: &Path, key: &Digest) -> Result<ClaimOutcome> {
    // Held for microseconds, and let go by the kernel whatever happens to its holder.
    let guard_path = leases.join(".guard");
    let guard = File::create(&guard_path).map_err(StoreError::io("write", &guard_path))?;
    flock(&guard, FlockOperation::LockExclusive).map_err(|e| StoreError::io("lock", &guard_path)(e.into()))?;
    let path = leases.join(key.to_string());
    let owner = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Owner>(&bytes).ok());
    match owner {
        Some(owner) if owner.lives(&path) => return Ok(ClaimOutcome::Held(owner)),
        _ => {}
    }
    let bytes = serde_json::to_vec(&Owner::this_process()).expect("an owner is JSON");
    let fresh = leases.join(format!(".new-{}", std::process::id()));
    fs::write(&fresh, bytes).and_then(|()| fs::rename(&fresh, &path)).map_err(StoreError::io("write", &path))?;
    Ok(ClaimOutcome::Claimed(Claim { path }))
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
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
        let key = Digest::of_bytes(b"k");
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let owner = Owner { pid: child.id(), started: start_of(child.id()).unwrap(), ..Owner::this_process() };
        fs::write(dir.path().join(key.to_string()), serde_json::to_vec(&owner).unwrap()).unwrap();
        assert!(matches!(claim(dir.path(), &key).unwrap(), ClaimOutcome::Held(held) if held == owner));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(matches!(claim(dir.path(), &key).unwrap(), ClaimOutcome::Claimed(_)));
    }

    #[test]
    fn a_lease_cut_short_is_free_and_a_dropped_one_too() {
        let dir = tempfile::tempdir().unwrap();
        let key = Digest::of_bytes(b"k");
        fs::write(dir.path().join(key.to_string()), b"{\"host\":").unwrap();
        let ClaimOutcome::Claimed(held) = claim(dir.path(), &key).unwrap() else { panic!("it was free") };
        assert!(matches!(claim(dir.path(), &key).unwrap(), ClaimOutcome::Held(_)));
        drop(held);
        assert!(matches!(claim(dir.path(), &key).unwrap(), ClaimOutcome::Claimed(_)));
    }
}
