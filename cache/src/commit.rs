//! Commits in groups: results become durable together, so that thousands of small ones cost few syncs.
//!
//! A result is handed over once its objects are in place; whoever reads it may start at once. The committing thread then syncs
//! the objects of a whole group, appends their records in one write, syncs that, and adds them to the ledger. Only then is a
//! result told to be done: what was told survives a power cut, and no record appears before its objects.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::journal::Writer;
use crate::{Claim, Digest, Output, Record, Result, Store, StoreError, object, sync_point};

/// How long a result may wait for others to be committed with it.
const WINDOW: Duration = Duration::from_millis(400);
/// A group of this size is committed at once.
const LARGEST: usize = 512;
/// Up to this many files are synced one by one; beyond, the file system as a whole.
const FEW: usize = 12;

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

/// What was handed over, and what came of it.
#[derive(Debug)]
pub struct Committed {
    /// The record.
    pub record: Arc<Record>,
    /// What became of its outputs, or why they are not kept.
    pub outcome: std::result::Result<Published, String>,
}

/// A record, and the lease that is given free once it is there.
type Kept = (Arc<Record>, Option<Claim>);

/// What waits to be committed.
#[derive(Default)]
struct Waiting {
    group: Vec<Kept>,
    /// When the first of the group came.
    since: Option<Instant>,
    /// Commit what is there without waiting for more.
    at_once: bool,
    /// Nothing more will come.
    over: bool,
}

impl Waiting {
    /// How long to go on waiting; `None` if a commit is due.
    fn wait(&self) -> Option<Duration> {
        let Some(since) = self.since else { return Some(Duration::from_secs(3600)) };
        let left = WINDOW.saturating_sub(since.elapsed());
        let due = self.at_once || self.over || self.group.len() >= LARGEST || left.is_zero();
        (!due).then_some(left)
    }
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next group; `None` once there will be no more.
    fn next(&self) -> Option<Vec<Kept>> {
        let mut waiting = self.lock();
        while let Some(wait) = waiting.wait() {
            if waiting.over {
                return None;
            }
            waiting = self.changed.wait_timeout(waiting, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
        (waiting.since, waiting.at_once) = (None, false);
        Some(std::mem::take(&mut waiting.group))
    }
}

/// The committing thread of a run.
pub struct Committer {
    queue: Arc<Queue>,
    thread: Option<JoinHandle<()>>,
}

impl Committer {
    /// Starts the thread. `journal` names the run's journal; `tell` hears of every record once it is durable.
    pub fn start(store: Arc<Store>, journal: String, tell: impl Fn(Committed) + Send + 'static) -> Self {
        let queue: Arc<Queue> = Arc::default();
        let groups = queue.clone();
        let thread = std::thread::spawn(move || {
            let mut writer = None;
            while let Some(group) = groups.next() {
                commit(&store, &journal, &mut writer, group, &tell);
            }
        });
        Self { queue, thread: Some(thread) }
    }

    /// Hands over a record whose objects are in place.
    pub fn keep(&self, record: Arc<Record>, claim: Option<Claim>) {
        let mut waiting = self.queue.lock();
        waiting.group.push((record, claim));
        // The thread is woken for the first of a group and for the last, not for each.
        let wakes = waiting.since.is_none() || waiting.group.len() == LARGEST;
        waiting.since.get_or_insert_with(Instant::now);
        drop(waiting);
        if wakes {
            self.queue.changed.notify_one();
        }
    }

    /// Asks for a commit without waiting for more.
    pub fn flush(&self) {
        let mut waiting = self.queue.lock();
        if waiting.since.is_some() && !waiting.at_once {
            waiting.at_once = true;
            drop(waiting);
            self.queue.changed.notify_one();
        }
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        self.queue.lock().over = true;
        self.queue.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Commits a group and tells of each of its records.
fn commit(store: &Store, journal: &str, writer: &mut Option<Writer>, group: Vec<Kept>, tell: &impl Fn(Committed)) {
    let records: Vec<Arc<Record>> = group.iter().map(|(record, _)| record.clone()).collect();
    let outcomes = store.commit(journal, writer, &records);
    for (place, (record, claim)) in group.into_iter().enumerate() {
        let outcome = match &outcomes {
            Ok(outcomes) => outcomes[place].clone(),
            Err(error) => Err(error.to_string()),
        };
        drop(claim);
        tell(Committed { record, outcome });
    }
}

impl Store {
    /// Makes a group durable: objects, then records, then the ledger. A record whose objects are gone again is not kept, and says so;
    /// the others of its group are.
    fn commit(
        &self,
        name: &str,
        writer: &mut Option<Writer>,
        records: &[Arc<Record>],
    ) -> Result<Vec<std::result::Result<Published, String>>> {
        if !self.is_writable() {
            return Err(StoreError::ReadOnly { path: self.root().to_owned() });
        }
        sync_point::reach("before-objects");
        self.sync_objects(records)?;
        let lost: Vec<Option<&Output>> =
            records.iter().map(|record| record.outputs.iter().find(|output| !self.is_there(output))).collect();
        sync_point::reach("after-objects");
        let journal = self.journal();
        let mut outcomes = Vec::with_capacity(records.len());
        let mut frames = Vec::with_capacity(records.len());
        for (record, lost) in records.iter().zip(lost) {
            if let Some(output) = lost {
                outcomes
                    .push(Err(format!("`{}` was damaged or taken away before it could be made durable", output.path)));
                continue;
            }
            let earlier = self.lookup_in(&journal, &record.key).and_then(|_| journal.record(&record.key));
            let outcome = match earlier {
                None => Published::Stored,
                Some(earlier) if earlier.outputs == record.outputs => Published::Confirmed,
                Some(earlier) => Published::Differs { earlier: Box::new(earlier) },
            };
            match outcome {
                Published::Confirmed => {}
                ref other => frames.push((record.as_ref(), *other == Published::Stored)),
            }
            outcomes.push(Ok(outcome));
        }
        if frames.is_empty() {
            return Ok(outcomes);
        }
        // Others look keys up while this is written: nobody else appends here, and the keys are leased.
        drop(journal);
        let writer = match writer {
            Some(writer) => writer,
            None => writer.insert(self.journal().begin(name)?),
        };
        let entries = writer.append(&frames)?;
        self.journal().appended(writer, entries);
        sync_point::reach("after-records");
        let stored: Vec<&Record> = frames.iter().filter(|(_, used)| *used).map(|(record, _)| *record).collect();
        if let Err(e) = self.ledger().add(&stored, writer.name(), writer.length()) {
            // The records are what counts; whoever opens the store next brings the ledger up to them.
            tracing::warn!("{e}");
        }
        sync_point::reach("after-ledger");
        Ok(outcomes)
    }

    fn sync_objects(&self, records: &[Arc<Record>]) -> Result<()> {
        let digests: Vec<&Digest> = records.iter().flat_map(|r| r.outputs.iter().map(|o| &o.digest)).collect();
        let objects = self.objects();
        if digests.len() > FEW {
            let root = File::open(&objects).map_err(StoreError::io("read", &objects))?;
            return rustix::fs::syncfs(&root).map_err(|e| StoreError::io("write", &objects)(e.into()));
        }
        let mut folders: Vec<PathBuf> = vec![objects.clone()];
        for digest in digests {
            let path = object::path_of(&objects, digest);
            match File::open(&path).and_then(|file| file.sync_all()) {
                // It was set aside meanwhile; its record is not kept.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                synced => synced.map_err(StoreError::io("write", &path))?,
            }
            folders.extend(path.parent().map(Path::to_owned));
        }
        folders.sort();
        folders.dedup();
        folders.iter().try_for_each(|folder| object::sync_dir(folder))
    }
}
