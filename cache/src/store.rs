//! The store: a directory, opened.
//!
//! ```text
//! objects/ab/cdef...     immutable bytes under their digest
//! records/RUN.records    what ran under which key, and what came of it: a journal for each run
//! records/index          a copy of what planning needs of them
//! ledger.db              the index of the records by instance, the stat cache
//! runs/ID/               what was asked for, how it ended, manifest, logs, outcomes of one run
//! leases/                who is at work on which key
//! memo/                  results of parts, which stages keep for themselves
//! resume/KEY/            checkpoints of work that was interrupted
//! tmp/                   what is being written
//! tmp/idle/              emptied folders that commands worked in, for a later run
//! damaged/               objects that were found altered
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock};

use rayon::prelude::*;
use rustix::fs::{AtFlags, FileType, FlockOperation, flock};

use crate::claim::{ClaimOutcome, Leases, Owner};
use crate::journal::Journal;
use crate::layout::{self, Sharing};
use crate::ledger::{Execution, Ledger};
use crate::object;
use crate::outcomes::{InstanceOutcome, OutcomeFollower, OutcomeWriter};
use crate::record::{Hit, Output, Record};
use crate::runs::{self, RunRow};
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
    journal: Mutex<Journal>,
    ledger: Ledger,
    leases: Leases,
    stamps: Mutex<Vec<(PathBuf, Stamp, Digest)>>,
    objects_dir: OnceLock<File>,
    /// Shared while the store is open for writing; `gc` wants it alone.
    _in_use: Option<File>,
}

impl Store {
    /// Opens the store in `root`; one that is made is private to its user.
    ///
    /// # Errors
    /// A directory or ledger that cannot be read or, for [`Access::Write`], written.
    pub fn open(root: &Path, access: Access) -> Result<Self> {
        Self::open_shared(root, access, Sharing::default())
    }

    /// Opens the store in `root`; `sharing` says who may enter one that is made.
    ///
    /// # Errors
    /// A directory or ledger that cannot be read or, for [`Access::Write`], written.
    pub fn open_shared(root: &Path, access: Access, sharing: Sharing) -> Result<Self> {
        let ledger_path = root.join("ledger.db");
        let leases = Leases::new(root.join("leases"));
        let (stamps, objects_dir) = (Mutex::default(), OnceLock::new());
        if access == Access::Read {
            // A store that is there and cannot be entered is no empty one.
            if let Err(e) = fs::metadata(root.join("records"))
                && e.kind() != std::io::ErrorKind::NotFound
            {
                return Err(StoreError::io("read", root)(e));
            }
            let ledger = Ledger::open_read_only(&ledger_path)?;
            let journal = Mutex::new(Journal::open(&root.join("records"))?);
            return Ok(Self {
                root: root.to_owned(),
                access,
                journal,
                ledger,
                leases,
                stamps,
                objects_dir,
                _in_use: None,
            });
        }
        layout::make(root, sharing)?;
        if layout::is_shared(root) {
            // Whatever this process and its workers make is for the group as well.
            rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o007));
        }
        let lock_path = root.join("lock");
        let in_use = File::create(&lock_path).map_err(StoreError::io("write", &lock_path))?;
        flock(&in_use, FlockOperation::LockShared).map_err(|e| StoreError::io("lock", &lock_path)(e.into()))?;
        let journal = Mutex::new(Journal::open(&root.join("records"))?);
        // One opens at a time: a ledger that is being made or changed to a write-ahead log can be shared with nobody.
        let guard_path = root.join("leases/.ledger");
        let guard = File::create(&guard_path).map_err(StoreError::io("write", &guard_path))?;
        flock(&guard, FlockOperation::LockExclusive).map_err(|e| StoreError::io("lock", &guard_path)(e.into()))?;
        let ledger = Ledger::open(&ledger_path)?;
        let store =
            Self { root: root.to_owned(), access, journal, ledger, leases, stamps, objects_dir, _in_use: Some(in_use) };
        // The ledger is an index: what it lacks costs an explanation, not a result.
        if let Err(e) = store.catch_up() {
            tracing::warn!("{e}");
        }
        Ok(store)
    }

    /// Adds to the ledger what the journals have and it lacks: records of a run that was killed in front of that step, or all
    /// of them where the ledger is new.
    fn catch_up(&self) -> Result<()> {
        let journal = self.journal();
        let known = self.ledger.journals()?;
        for (name, length) in journal.lengths() {
            let from = known.get(name).copied().unwrap_or(0);
            if from < length {
                let records = journal.records_behind(name, from);
                self.ledger.add(&records.iter().collect::<Vec<_>>(), name, length)?;
            }
        }
        Ok(())
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

    /// Reads an object and checks that its bytes are those of its name. A damaged one is set aside, so that what made it runs again.
    ///
    /// # Errors
    /// A missing or damaged object.
    pub fn read(&self, digest: &Digest) -> Result<Vec<u8>> {
        let path = self.object_path(digest);
        let bytes = fs::read(&path).map_err(StoreError::io("read", &path))?;
        let found = Digest::of_bytes(&bytes);
        if found != *digest {
            let _ = self.check_object(digest)?;
            return Err(StoreError::Damaged { expected: *digest, found });
        }
        Ok(bytes)
    }

    pub(crate) fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(crate) fn lookup_in(&self, journal: &Journal, key: &Digest) -> Option<Hit> {
        journal.hit(key, |hit| hit.outputs.iter().all(|output| self.is_there(output)))
    }

    /// The folder of the objects, opened: the way to it is looked up once and not for each of thousands of objects.
    pub(crate) fn objects_dir(&self) -> Option<&File> {
        if self.objects_dir.get().is_none() {
            let _ = self.objects_dir.set(File::open(self.objects()).ok()?);
        }
        self.objects_dir.get()
    }

    /// Whether an object exists with its size.
    pub fn is_there(&self, output: &Output) -> bool {
        let Some(objects) = self.objects_dir() else { return false };
        let stat = rustix::fs::statat(objects, object::name_of(&output.digest), AtFlags::SYMLINK_NOFOLLOW);
        stat.is_ok_and(|stat| {
            FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_size as u64 == output.size
        })
    }

    /// What is stored under `key`, if its record holds and every object exists with its size.
    pub fn lookup(&self, key: &Digest) -> Option<Hit> {
        self.lookup_in(&self.journal(), key)
    }

    /// What is stored under each of the keys; as [`Store::lookup`], side by side.
    pub fn lookup_all(&self, keys: &[Digest]) -> Vec<Option<Hit>> {
        let journal = self.journal();
        let journal = &*journal;
        keys.par_iter().with_min_len(64).map(|key| self.lookup_in(journal, key)).collect()
    }

    /// Takes in what other processes have added since the store was opened.
    ///
    /// # Errors
    /// Journals that cannot be read.
    pub fn refresh(&self) -> Result<()> {
        self.journal().refresh()
    }

    /// The record of `key`, if it holds, whether or not its objects are still there.
    pub fn record(&self, key: &Digest) -> Option<Record> {
        self.journal().record(key)
    }

    /// Every record that holds, in the order of their keys.
    pub fn records(&self) -> Vec<Record> {
        self.journal().records()
    }

    /// An empty directory on the store's file system, to be filled and published.
    ///
    /// # Errors
    /// A store that cannot be written.
    pub fn scratch(&self) -> Result<tempfile::TempDir> {
        let tmp = self.root.join("tmp");
        tempfile::tempdir_in(&tmp).map_err(StoreError::io("write", &tmp))
    }

    /// A place where an emptied folder waits for a later run that wants the like again; `gc` removes it.
    pub fn idle(&self, name: &str) -> PathBuf {
        self.root.join("tmp/idle").join(name)
    }

    /// Makes the files of `dir` objects; they become durable with the record that names them.
    ///
    /// # Errors
    /// Files that cannot be read or moved.
    pub fn take_in(&self, dir: &Path, files: &[String]) -> Result<Vec<Output>> {
        object::take_in(&self.objects(), dir, files)
    }

    /// The plain files below the folder `below` of `dir`, which a stage filled, relative to `dir`.
    ///
    /// # Errors
    /// Links, sockets, devices; names that are no text.
    pub fn files_below(dir: &Path, below: &str) -> Result<Vec<String>> {
        object::files_below(dir, below)
    }

    /// Tries to take the lease on `key`.
    ///
    /// # Errors
    /// A store that cannot be written.
    pub fn claim(&self, key: &Digest) -> Result<ClaimOutcome> {
        let outcome = self.leases.claim(key)?;
        if matches!(outcome, ClaimOutcome::Claimed(_)) {
            crate::sync_point::reach("after-claim");
        }
        Ok(outcome)
    }

    /// Shows other machines that the owner of this process's leases is alive.
    ///
    /// # Errors
    /// A store that cannot be written.
    pub fn renew_leases(&self) -> Result<()> {
        self.leases.renew()
    }

    /// Every lease: the key's text, its owner, and whether the owner lives.
    pub fn leases(&self) -> Vec<(String, Option<Owner>, bool)> {
        self.leases.all()
    }

    /// Where stages keep results of parts, across executions.
    pub fn memo_folder(&self) -> PathBuf {
        self.root.join("memo")
    }

    /// Where the work under `key` may keep what it needs to go on after an interruption. Made by whoever uses it.
    pub fn resume_folder(&self, key: &Digest) -> PathBuf {
        self.root.join("resume").join(key.to_string())
    }

    /// Executions of an instance, the latest first.
    ///
    /// # Errors
    /// A ledger that cannot be read.
    pub fn executions_of(&self, manifest: &str, instance: &str) -> Result<Vec<Execution>> {
        self.ledger.executions_of(manifest, instance)
    }

    /// Every instance of a manifest that was ever executed, sorted, whether or not its sweep has it still.
    ///
    /// # Errors
    /// A ledger that cannot be read.
    pub fn instances_of(&self, manifest: &str) -> Result<Vec<String>> {
        self.ledger.instances_of(manifest)
    }

    /// How long executions of each stage of a manifest took: their number and their sum in milliseconds.
    ///
    /// # Errors
    /// A ledger that cannot be read.
    pub fn durations(&self, manifest: &str) -> Result<BTreeMap<String, (u64, u64)>> {
        self.ledger.durations(manifest)
    }

    /// Starts a run: its folder, where what becomes of its instances is written as it happens.
    ///
    /// # Errors
    /// A store that cannot be written.
    pub fn begin_run(&self, row: &RunRow) -> Result<OutcomeWriter> {
        let folder = self.run_folder(&row.id);
        layout::make_folder(&folder, layout::is_shared(&self.root))?;
        runs::write(&folder, row)?;
        OutcomeWriter::create(&folder)
    }

    /// Where the logs of a run lie.
    pub fn run_folder(&self, id: &str) -> PathBuf {
        self.root.join("runs").join(id)
    }

    /// Notes the end of a run, of whose instances so many lines tell.
    ///
    /// # Errors
    /// A ledger that cannot be written.
    pub fn end_run(&self, id: &str, status: &str, finished_ms: u64, outcomes: usize) -> Result<()> {
        self.keep_stamps()?;
        crate::sync_point::reach("before-index");
        // It only spares the next run some reading.
        if let Err(e) = self.journal().index(&self.root.join("tmp")) {
            tracing::warn!("{e}");
        }
        crate::sync_point::reach("before-end");
        let folder = self.run_folder(id);
        if let Some(row) = runs::read(&folder) {
            let (status, finished_ms, outcomes) = (status.to_owned(), Some(finished_ms), Some(outcomes));
            runs::write(&folder, &RunRow { status, finished_ms, outcomes, ..row })?;
        }
        crate::sync_point::reach("after-end");
        Ok(())
    }

    /// Runs, the latest first.
    pub fn runs(&self) -> Vec<RunRow> {
        runs::all(&self.root.join("runs"))
    }

    /// A run, if its own file holds.
    pub fn run(&self, id: &str) -> Option<RunRow> {
        runs::read(&self.run_folder(id))
    }

    /// Whether all is there that tells what became of a run's instances.
    pub fn is_whole(&self, run: &RunRow) -> bool {
        self.results_of(run).is_some()
    }

    /// Folders of runs whose own file does not hold.
    pub fn damaged_runs(&self) -> Vec<PathBuf> {
        runs::damaged(&self.root.join("runs"))
    }

    /// What became of the instances of a run, as far as it got.
    pub fn outcomes(&self, run: &str) -> Vec<InstanceOutcome> {
        crate::outcomes::by_name(crate::outcomes::read(&self.run_folder(run)))
    }

    /// What becomes of the instances of a run while it goes on.
    pub fn follow_outcomes(&self, run: &str) -> OutcomeFollower {
        OutcomeFollower::of(&self.run_folder(run))
    }

    /// The keys of a run's results, if nothing of what tells of them is missing.
    pub(crate) fn results_of(&self, run: &RunRow) -> Option<Vec<Digest>> {
        // Every line counts, whatever it says of the name: one letter that is another makes two instances one.
        let lines = crate::outcomes::read(&self.run_folder(&run.id));
        let has_result = |outcome: &&InstanceOutcome| ["executed", "cached"].contains(&outcome.outcome.as_str());
        let whole = run.outcomes.is_none_or(|written| written == lines.len())
            && lines.iter().filter(has_result).all(|outcome| outcome.key.is_some());
        whole.then(|| lines.into_iter().filter_map(|outcome| outcome.key).collect())
    }

    /// Makes the ledger's executions anew from the records and returns their number.
    ///
    /// # Errors
    /// A ledger that cannot be written.
    pub fn rebuild_ledger(&self) -> Result<usize> {
        self.ledger.forget_executions()?;
        self.catch_up()?;
        Ok(self.records().len())
    }
}
