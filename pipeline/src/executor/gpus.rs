//! Leases on GPUs between runs on one machine, whoever's they are and whatever their stores.
//!
//! A lease is a lock on a file of a folder that everybody may write to. It is held by an open file and so ends with its process.
//! A GPU is known by its UUID where the driver's library tells it, as numbers mean other devices in other jobs of a scheduler.

use std::collections::HashMap;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nvml_wrapper::Nvml;

/// The leases of this process.
pub(crate) struct Leases {
    folder: PathBuf,
    names: HashMap<String, String>,
    held: HashMap<String, File>,
}

impl Leases {
    /// For the GPUs that a run may use.
    pub(crate) fn new(gpus: &[String]) -> Self {
        let shared = Path::new("/run/lock");
        let parent = if shared.is_dir() { shared.to_owned() } else { std::env::temp_dir() };
        let nvml = if gpus.is_empty() { None } else { Nvml::init().ok() };
        let uuid = |gpu: &String| nvml.as_ref()?.device_by_index(gpu.parse().ok()?).ok()?.uuid().ok();
        let name = |gpu: &String| {
            let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
            (gpu.clone(), uuid(gpu).unwrap_or_else(|| gpu.clone()).chars().map(plain).collect())
        };
        let names = gpus.iter().map(name).collect();
        Self { folder: parent.join("siteline-gpus"), names, held: HashMap::new() }
    }

    /// Leases `count` of `free`; none if there are not as many that no other run holds. Returns those that are leased.
    pub(crate) fn take<'g>(&mut self, free: impl Iterator<Item = &'g String>, count: usize) -> Option<Vec<String>> {
        let mut taken = Vec::with_capacity(count);
        for gpu in free {
            if taken.len() == count {
                break;
            }
            match self.lock(gpu) {
                Ok(Some(file)) => {
                    self.held.insert(gpu.clone(), file);
                    taken.push(gpu.clone());
                }
                Ok(None) => {}
                // Without a place for leases, runs on one machine are their user's to keep apart.
                Err(e) => {
                    tracing::warn!("GPUs are not leased between runs: {}: {e}", self.folder.display());
                    taken.push(gpu.clone());
                }
            }
        }
        if taken.len() < count {
            self.give(&taken);
            return None;
        }
        Some(taken)
    }

    /// Gives leases back.
    pub(crate) fn give(&mut self, gpus: &[String]) {
        gpus.iter().for_each(|gpu| {
            self.held.remove(gpu);
        });
    }

    /// The lock of a GPU, or nothing while another run holds it.
    fn lock(&self, gpu: &str) -> std::io::Result<Option<File>> {
        let everybody = std::fs::Permissions::from_mode(0o1777);
        match DirBuilder::new().mode(0o777).create(&self.folder) {
            Ok(()) => std::fs::set_permissions(&self.folder, everybody)?,
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
        let path = self.folder.join(&self.names[gpu]);
        let mut options = OpenOptions::new();
        // A link that somebody put there is not followed.
        options.read(true).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32);
        let file = options.open(&path).or_else(|_| {
            let file = options.clone().write(true).create(true).truncate(false).mode(0o666).open(&path)?;
            let _ = file.set_permissions(std::fs::Permissions::from_mode(0o666));
            Ok::<_, std::io::Error>(file)
        })?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(e),
        }
    }
}
