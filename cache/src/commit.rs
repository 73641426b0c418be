//! Commits in groups: results become durable together, so that thousands of small ones cost few syncs.
//!
//! A result is handed over once its objects are in place; whoever reads it may start at once. The committing thread then syncs
//! the objects of a whole group, appends their records in one write, syncs that, and adds them to the ledger. Only then is a
//! result told to be done: what was told survives a power cut, and no record appears before its objects.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::journal::Writer;
use crate::{Claim, Digest, Record, Result, Store, StoreError, object, sync_point};

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

enum Order {
    /// A record, and the lease that is given free once it is there.
    Keep(Arc<Record>, Option<Claim>),
    /// Commit what is there without waiting for more.
    Flush,
}

/// The committing thread of a run.
pub struct Committer {
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl Committer {
    /// Starts the thread. `journal` names the run's journal; `tell` hears of every record once it is durable.
    pub fn start(store: Arc<Store>, journal: String, tell: impl Fn(Committed) + Send + 'static) -> Self {
        let (orders, received) = channel();
        let thread = std::thread::spawn(move || work(&store, &journal, &received, &tell));
        Self { orders: Some(orders), thread: Some(thread) }
    }

    /// Hands over a record whose objects are in place.
    pub fn keep(&self, record: Arc<Record>, claim: Option<Claim>) {
        if let Some(orders) = &self.orders {
            // A thread that is gone has told of every record that it got; the run sees that this one is missing.
            let _ = orders.send(Order::Keep(record, claim));
        }
    }

    /// Asks for a commit without waiting for more.
    pub fn flush(&self) {
        if let Some(orders) = &self.orders {
            let _ = orders.send(Order::Flush);
        }
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn work(store: &Store, journal: &str, orders: &Receiver<Order>, tell: &impl Fn(Committed)) {
    let mut writer = None;
    let mut group: Vec<(Arc<Record>, Option<Claim>)> = Vec::new();
    let mut since = Instant::now();
    loop {
        let wait = if group.is_empty() { Duration::from_secs(3600) } else { WINDOW.saturating_sub(since.elapsed()) };
        let due = match orders.recv_timeout(wait) {
            Ok(Order::Keep(record, claim)) => {
                if group.is_empty() {
                    since = Instant::now();
                }
                group.push((record, claim));
                group.len() >= LARGEST
            }
            Ok(Order::Flush) | Err(RecvTimeoutError::Timeout) => true,
            Err(RecvTimeoutError::Disconnected) => {
                commit(store, journal, &mut writer, &mut group, tell);
                return;
            }
        };
        if due {
            commit(store, journal, &mut writer, &mut group, tell);
        }
    }
}

/// Commits a group and tells of each of its records.
fn commit(
    store: &Store,
    journal: &str,
    writer: &mut Option<Writer>,
    group: &mut Vec<(Arc<Record>, Option<Claim>)>,
    tell: &impl Fn(Committed),
) {
    if group.is_empty() {
        return;
    }
    let records: Vec<Arc<Record>> = group.iter().map(|(record, _)| record.clone()).collect();
    let outcomes = store.commit(journal, writer, &records);
    for (place, (record, claim)) in group.drain(..).enumerate() {
        let outcome = match &outcomes {
            Ok(outcomes) => Ok(outcomes[place].clone()),
            Err(error) => Err(error.to_string()),
        };
        drop(claim);
        tell(Committed { record, outcome });
    }
}

impl Store {
    /// Makes a group durable: objects, then records, then the ledger.
    fn commit(&self, name: &str, writer: &mut Option<Writer>, records: &[Arc<Record>]) -> Result<Vec<Published>> {
        if !self.is_writable() {
            return Err(StoreError::ReadOnly { path: self.root().to_owned() });
        }
        sync_point::reach("before-objects");
        self.sync_objects(records)?;
        sync_point::reach("after-objects");
        let journal = self.journal();
        let mut outcomes = Vec::with_capacity(records.len());
        let mut frames = Vec::with_capacity(records.len());
        for record in records {
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
            outcomes.push(outcome);
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
            File::open(&path).and_then(|file| file.sync_all()).map_err(StoreError::io("write", &path))?;
            folders.extend(path.parent().map(Path::to_owned));
        }
        folders.sort();
        folders.dedup();
        folders.iter().try_for_each(|folder| object::sync_dir(folder))
    }
}
