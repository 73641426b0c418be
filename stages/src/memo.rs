//! Results of parts, kept across executions: a site with one changed image computes one image anew.
//!
//! An entry is found by everything that decides it: the code of the stage kind and what the stage names. It carries its own
//! digest; one that is damaged, or that another process is just writing, is not there. Entries are never part of an artifact's
//! identity: with or without them a stage makes the same bytes.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde_json::{Value, json};
use siteline_cache::{Canonical, Digest};
use siteline_pipeline::protocol::RunRequest;

/// The entries that a running stage may use.
pub struct Memo {
    folder: Option<PathBuf>,
    /// Of the kind and its code.
    context: Digest,
}

impl Memo {
    /// For the stage of a request; without a folder nothing is found and nothing kept.
    pub fn new(request: &RunRequest) -> Self {
        let code = json!({"kind": request.kind, "base": request.code.base, "variants": request.code.variants, "libraries": request.code.libraries});
        Self { folder: request.memo_dir.clone(), context: Canonical::new("siteline memo 1").value(&code).finish() }
    }

    /// What tells an entry from all others: `parts` must name everything else that decides it.
    pub fn key(&self, parts: &Value) -> Digest {
        Canonical::new("siteline memo entry 1").digest(&self.context).value(parts).finish()
    }

    fn path(&self, key: &Digest) -> Option<PathBuf> {
        let hex = key.to_string();
        self.folder.as_ref().map(|folder| folder.join(&hex[..2]).join(&hex[2..]))
    }

    /// What was kept under `key`.
    pub fn get(&self, key: &Digest) -> Option<Vec<u8>> {
        let mut bytes = std::fs::read(self.path(key)?).ok()?;
        let payload = bytes.split_off(bytes.len().min(32));
        (Digest::of_bytes(&payload).as_bytes()[..] == bytes[..]).then_some(payload)
    }

    /// Keeps `payload` under `key`. Best effort: what cannot be kept is computed again.
    pub fn put(&self, key: &Digest, payload: &[u8]) {
        let Some(path) = self.path(key) else { return };
        let Some(folder) = path.parent() else { return };
        let write = || -> std::io::Result<()> {
            std::fs::create_dir_all(folder)?;
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            std::io::Write::write_all(&mut file, Digest::of_bytes(payload).as_bytes())?;
            std::io::Write::write_all(&mut file, payload)?;
            // The store's folder says who may enter.
            file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
            file.persist(&path).map_err(|e| e.error)?;
            Ok(())
        };
        if let Err(e) = write() {
            tracing::debug!("a memo was not kept: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_holds_or_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let memo = Memo { folder: Some(dir.path().to_owned()), context: Digest::of_bytes(b"code") };
        let key = memo.key(&json!({"image": "a"}));
        assert_eq!(memo.get(&key), None);
        memo.put(&key, b"features");
        assert_eq!(memo.get(&key).as_deref(), Some(&b"features"[..]));
        let other = Memo { folder: Some(dir.path().to_owned()), context: Digest::of_bytes(b"other code") };
        assert_eq!(other.get(&other.key(&json!({"image": "a"}))), None);
        let path = memo.path(&key).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert_eq!(memo.get(&key), None, "cut at {length}");
        }
    }
}
