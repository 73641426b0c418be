//! The store: a directory, opened.
//!
//! ```text
//! objects/ab/cdef...          immutable bytes under their digest
//! records/ab/cdef....record   what ran under a key, and what came of it
//! ledger.db                   the index of the records, the runs, the stat cache
//! runs/ID/                    logs of one run
//! leases/                     who is at work on which key
//! tmp/                        what is being written
//! damaged/                    objects that were found altered
//! ```

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::fs::{FlockOperation, flock};

use crate::claim::{self, ClaimOutcome};
use crate::ledger::{Execution, InstanceOutcome, Ledger, RunRow};
use crate::object;
use crate::record::{Output, Record};
use crate::stat::Stamp;
use crate::{Digest, Result, StoreError};

/// What a store is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing on disk is changed; an absent store is an empty one.
    Read,
    /// The directory is made if need be. Any number of writers may share a store.
    Write,
}

/// A store, opened.
pub struct Store {
    root: PathBuf,
    access: Access,
    ledger: Ledger,
    stamps: Mutex<Vec<(PathBuf, Stamp, Digest)>>,
    /// Shared while the store is open for writing; `gc` wants it alone.
    _in_use: Option<File>,
}

/// What became of the outputs that were published.
#[derive(Clone, Debug, PartialEq)]
pub enum Published {
    /// They are in the store under their key.
    Stored,
    /// The key had a record already, with the same outputs.
    Confirmed,
    /// The key had a record already, with other outputs: the stage is not deterministic. Both are kept; the earlier one counts.
    Differs {
        /// The record that counts.
        earlier: Box<Record>,
    },
}

impl Store {
    /// Opens the store in `root`.
    ///
    /// # Errors
    /// A directory or ledger that cannot be read or, for [`Access::Write`], written.
    pub fn open(root: &Path, access: Access) -> Result<Self> {
        let ledger_path = root.join("ledger.db");
        if access == Access::Read {
            let ledger = Ledger::open_read_only(&ledger_path)?;
            return Ok(Self { root: root.to_owned(), access, ledger, stamps: Mutex::default(), _in_use: None });
        }
        for folder in ["objects", "records", "runs", "leases", "tmp"] {
            let path = root.join(folder);
            fs::create_dir_all(&path).map_err(StoreError::io("create", &path))?;
        }
        let lock_path = root.join("lock");
        let in_use = File::create(&lock_path).map_err(StoreError::io("write", &lock_path))?;
        flock(&in_use, FlockOperation::LockShared).map_err(|e| StoreError::io("lock", &lock_path)(e.into()))?;
        // One opens at a time: a ledger that is being made or changed to a write-ahead log can be shared with nobody.
        let guard_path = root.join("leases/.ledger");
        let guard = File::create(&guard_path).map_err(StoreError::io("write", &guard_path))?;
        flock(&guard, FlockOperation::LockExclusive).map_err(|e| StoreError::io("lock", &guard_path)(e.into()))?;
        let (ledger, refill) = Ledger::open(&ledger_path)?;
        let store = Self { root: root.to_owned(), access, ledger, stamps: Mutex::default(), _in_use: Some(in_use) };
        if refill {
            store.rebuild_ledger()?;
            store.ledger.is_filled()?;
        }
        Ok(store)
    }

    /// The store's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Stamps that are not written yet.
    pub(crate) fn fresh_stamps(&self) -> std::sync::MutexGuard<'_, Vec<(PathBuf, Stamp, Digest)>> {
        self.stamps.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(crate) fn is_writable(&self) -> bool {
        self.access == Access::Write
    }

    pub(crate) fn objects(&self) -> PathBuf {
        self.root.join("objects")
    }

    /// Takes the whole store for itself, if nobody else uses it; others wait until the file is dropped.
    pub(crate) fn alone(&self) -> Result<()> {
        let Some(lock) = &self._in_use else { return Err(StoreError::ReadOnly { path: self.root.clone() }) };
        flock(lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| StoreError::InUse { path: self.root.clone() })
    }

    /// Where an object lies, whether or not it is there.
    pub fn object_path(&self, digest: &Digest) -> PathBuf {
        object::path_of(&self.objects(), digest)
    }

    /// Reads an object and checks that its bytes are those of its name.
    ///
    /// # Errors
    /// A missing or damaged object.
    pub fn read(&self, digest: &Digest) -> Result<Vec<u8>> {
        let path = self.object_path(digest);
        let bytes = fs::read(&path).map_err(StoreError::io("read", &path))?;
        let found = Digest::of_bytes(&bytes);
        if found != *digest {
            return Err(StoreError::Damaged { expected: *digest, found });
        }
        Ok(bytes)
    }

    pub(crate) fn record_path(&self, key: &Digest) -> PathBuf {
        let hex = key.to_string();
        self.root.join("records").join(&hex[..2]).join(format!("{}.record", &hex[2..]))
    }

    /// The record of `key`, if it holds and every object exists with its size.
    pub fn lookup(&self, key: &Digest) -> Option<Record> {
        let record = self.record(key)?;
        let whole = |output: &Output| {
            fs::metadata(self.object_path(&output.digest)).is_ok_and(|meta| meta.is_file() && meta.len() == output.size)
        };
        record.outputs.iter().all(whole).then_some(record)
    }

    /// The record of `key`, if it holds, whether or not its objects are still there.
    pub fn record(&self, key: &Digest) -> Option<Record> {
        Record::read(&self.record_path(key)).filter(|record| record.key == *key)
    }

    /// Every record that holds, in the order of their keys.
    pub fn records(&self) -> Result<Vec<Record>> {
        let root = self.root.join("records");
        let mut records = Vec::new();
        if !root.exists() {
            return Ok(records);
        }
        for folder in fs::read_dir(&root).map_err(StoreError::io("read", &root))? {
            let folder = folder.map_err(StoreError::io("read", &root))?.path();
            for entry in fs::read_dir(&folder).map_err(StoreError::io("read", &folder))? {
                let path = entry.map_err(StoreError::io("read", &folder))?.path();
                if path.extension().is_some_and(|e| e == "record") {
                    records.extend(Record::read(&path));
                }
            }
        }
        records.sort_by_key(|record| record.key);
        Ok(records)
    }

    /// An empty directory on the store's file system, to be filled and published.
    ///
    /// # Errors
    /// A store that cannot be written.
    pub fn scratch(&self) -> Result<tempfile::TempDir> {
        let tmp = self.root.join("tmp");
        tempfile::tempdir_in(&tmp).map_err(StoreError::io("write", &tmp))
    }

    /// Publishes what a stage left in `dir` under `record.key`, whose outputs are filled in here. Objects become durable
    /// first, then the record appears, then the ledger knows of it.
    ///
    /// # Errors
    /// Outputs that cannot be stored; then no record exists.
    pub fn publish(&self, record: &mut Record, dir: &Path) -> Result<Published> {
        if !self.is_writable() {
            return Err(StoreError::ReadOnly { path: self.root.clone() });
        }
        record.outputs = object::take_in(&self.objects(), dir)?;
        let path = self.record_path(&record.key);
        let tmp = self.root.join("tmp");
        match self.lookup(&record.key) {
            Some(earlier) if earlier.outputs == record.outputs => return Ok(Published::Confirmed),
            Some(earlier) => {
                let aside = path.with_extension(format!("differs-{}", record.tree().short()));
                object::write_whole(&tmp, &aside, &record.to_bytes())?;
                return Ok(Published::Differs { earlier: Box::new(earlier) });
            }
            None => object::write_whole(&tmp, &path, &record.to_bytes())?,
        }
        self.ledger.add(record)?;
        Ok(Published::Stored)
    }

    /// Tries to take the lease on `key`.
    ///
    /// # Errors
    /// A store that cannot be written.
    pub fn claim(&self, key: &Digest) -> Result<ClaimOutcome> {
        claim::claim(&self.root.join("leases"), key)
    }

    /// Executions of an instance, the latest first.
    ///
    /// # Errors
    /// A ledger that cannot be read.
    pub fn executions_of(&self, manifest: &str, instance: &str) -> Result<Vec<Execution>> {
        self.ledger.executions_of(manifest, instance)
    }

    /// Starts a run: its row in the ledger and its folder, which is returned.
    ///
    /// # Errors
    /// A store that cannot be written.
    pub fn begin_run(&self, row: &RunRow) -> Result<PathBuf> {
        self.ledger.begin_run(row)?;
        let folder = self.run_folder(&row.id);
        fs::create_dir_all(&folder).map_err(StoreError::io("create", &folder))?;
        Ok(folder)
    }

    /// Where the logs of a run lie.
    pub fn run_folder(&self, id: &str) -> PathBuf {
        self.root.join("runs").join(id)
    }

    /// Notes the end of a run.
    ///
    /// # Errors
    /// A ledger that cannot be written.
    pub fn end_run(&self, id: &str, status: &str, finished_ms: u64, outcomes: &[InstanceOutcome]) -> Result<()> {
        self.keep_stamps()?;
        self.ledger.end_run(id, status, finished_ms, outcomes)
    }

    /// Runs, the latest first.
    ///
    /// # Errors
    /// A ledger that cannot be read.
    pub fn runs(&self) -> Result<Vec<RunRow>> {
        self.ledger.runs()
    }

    /// What became of the instances of a run.
    ///
    /// # Errors
    /// A ledger that cannot be read.
    pub fn outcomes(&self, run: &str) -> Result<Vec<InstanceOutcome>> {
        self.ledger.outcomes(run)
    }

    /// Makes the ledger's executions anew from the records and returns their number.
    ///
    /// # Errors
    /// Records that cannot be read, a ledger that cannot be written.
    pub fn rebuild_ledger(&self) -> Result<usize> {
        let records = self.records()?;
        self.ledger.rebuild(&records)?;
        Ok(records.len())
    }
}
