//! The ledger: a SQLite index of what ran. It can be made anew from the records at any time.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use crate::stat::Stamp;
use crate::{Digest, Record, Result, StoreError};

const VERSION: i64 = 3;

/// One time that an instance was executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Execution {
    /// The key that it ran under.
    pub key: Digest,
    /// The instance.
    pub instance: String,
    /// The run.
    pub run: String,
    /// Start, in milliseconds since 1970.
    pub started_ms: u64,
    /// End, in milliseconds since 1970.
    pub finished_ms: u64,
}

pub(crate) struct Ledger {
    connection: Mutex<Connection>,
    path: PathBuf,
}

impl Ledger {
    /// Opens the ledger for writing and brings it to the present version. What lies there and is no ledger is set aside.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        match Self::try_open(path) {
            Ok(opened) => Ok(opened),
            Err(StoreError::Ledger { source, .. }) if is_corrupt(&source) => {
                let aside = path.with_extension("db.damaged");
                std::fs::rename(path, &aside).map_err(StoreError::io("write", &aside))?;
                for suffix in ["db-wal", "db-shm"] {
                    let _ = std::fs::remove_file(path.with_extension(suffix));
                }
                tracing::warn!(
                    "the ledger was damaged; it was set aside as {} and is made anew from the records",
                    aside.display()
                );
                Self::try_open(path)
            }
            Err(other) => Err(other),
        }
    }

    fn try_open(path: &Path) -> Result<Self> {
        let wrap = Self::wrap(path);
        // SQLite would make it writable for its owner alone, whatever the store's folders say; its other files follow this one.
        // One that is there is not opened here: to close it would take SQLite's locks with it.
        let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o666).open(path);
        if let Err(e) = made.as_ref()
            && e.kind() != std::io::ErrorKind::AlreadyExists
        {
            return Err(StoreError::io("write", path)(e.kind().into()));
        }
        drop(made);
        let connection = Connection::open(path).map_err(&wrap)?;
        connection.busy_timeout(Duration::from_secs(60)).map_err(&wrap)?;
        // The write-ahead log lets readers go on while a run writes. What a power cut may take is made anew from the records.
        connection.pragma_update(None, "journal_mode", "WAL").map_err(&wrap)?;
        connection.pragma_update(None, "synchronous", "NORMAL").map_err(&wrap)?;
        let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(&wrap)?;
        if version != VERSION {
            connection.execute_batch(include_str!("ledger.sql")).map_err(&wrap)?;
        }
        Ok(Self { connection: Mutex::new(connection), path: path.to_owned() })
    }

    /// Opens the ledger without changing anything on disk; an absent one is an empty one.
    pub(crate) fn open_read_only(path: &Path) -> Result<Self> {
        let wrap = Self::wrap(path);
        if path.exists() {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
            let plain = Connection::open_with_flags(path, flags).and_then(|c| {
                c.busy_timeout(Duration::from_secs(60))?;
                c.query_row("SELECT count(*) FROM journals", [], |_| Ok(()))?;
                Ok(c)
            });
            // In a folder that cannot be written SQLite cannot share a write-ahead log; nobody can be writing there either.
            let opened = plain.or_else(|_| {
                let uri = format!(
                    "file:{}?immutable=1",
                    path.display().to_string().replace('%', "%25").replace('?', "%3f").replace('#', "%23")
                );
                Connection::open_with_flags(uri, flags).and_then(|c| {
                    c.query_row("SELECT count(*) FROM journals", [], |_| Ok(()))?;
                    Ok(c)
                })
            });
            if let Ok(connection) = opened {
                return Ok(Self { connection: Mutex::new(connection), path: path.to_owned() });
            }
        }
        let connection = Connection::open_in_memory().map_err(&wrap)?;
        connection.execute_batch(include_str!("ledger.sql")).map_err(&wrap)?;
        Ok(Self { connection: Mutex::new(connection), path: path.to_owned() })
    }

    fn wrap(path: &Path) -> impl Fn(rusqlite::Error) -> StoreError + use<> {
        let path = path.to_owned();
        move |source| StoreError::Ledger { path: path.clone(), source }
    }

    fn run<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        // A panic elsewhere leaves SQLite's own state whole: an unfinished transaction was rolled back.
        let connection = self.connection.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        work(&connection).map_err(Self::wrap(&self.path))
    }

    /// Adds the rows of records, and notes up to where their journal is in the ledger.
    pub(crate) fn add(&self, records: &[&Record], journal: &str, length: u64) -> Result<()> {
        self.run(|c| {
            let transaction = c.unchecked_transaction()?;
            records.iter().try_for_each(|record| insert(&transaction, record))?;
            transaction
                .prepare_cached("INSERT OR REPLACE INTO journals (name, length) VALUES (?1, ?2)")?
                .execute(params![journal, length as i64])?;
            transaction.commit()
        })
    }

    /// Up to where each journal is in the ledger.
    pub(crate) fn journals(&self) -> Result<BTreeMap<String, u64>> {
        self.run(|c| {
            let mut statement = c.prepare("SELECT name, length FROM journals")?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)? as u64)))?;
            rows.collect()
        })
    }

    /// Forgets all executions, so that they are taken in anew.
    pub(crate) fn forget_executions(&self) -> Result<()> {
        self.run(|c| {
            let transaction = c.unchecked_transaction()?;
            transaction.execute_batch("DELETE FROM executions; DELETE FROM journals;")?;
            transaction.commit()
        })
    }

    /// Executions of an instance of a manifest, the latest first.
    pub(crate) fn executions_of(&self, manifest: &str, instance: &str) -> Result<Vec<Execution>> {
        self.run(|c| {
            let mut statement = c.prepare_cached(
                "SELECT key, instance, run, started_ms, finished_ms FROM executions WHERE manifest = ?1 AND instance = ?2 ORDER BY finished_ms DESC, seq DESC",
            )?;
            let rows = statement.query_map(params![manifest, instance], |row| {
                Ok(Execution {
                    key: digest_at(row, 0)?,
                    instance: row.get(1)?,
                    run: row.get(2)?,
                    started_ms: row.get::<_, i64>(3)? as u64,
                    finished_ms: row.get::<_, i64>(4)? as u64,
                })
            })?;
            rows.collect()
        })
    }

    /// Every instance of a manifest that was ever executed, sorted.
    pub(crate) fn instances_of(&self, manifest: &str) -> Result<Vec<String>> {
        self.run(|c| {
            let mut statement =
                c.prepare("SELECT DISTINCT instance FROM executions WHERE manifest = ?1 ORDER BY instance")?;
            let rows = statement.query_map([manifest], |row| row.get(0))?;
            rows.collect()
        })
    }

    /// The time that executions of a stage kind took, in milliseconds: their number and sum, by stage name.
    pub(crate) fn durations(&self, manifest: &str) -> Result<BTreeMap<String, (u64, u64)>> {
        self.run(|c| {
            let mut statement = c.prepare(
                "SELECT CASE instr(instance, '[') WHEN 0 THEN instance ELSE substr(instance, 1, instr(instance, '[') - 1) END, count(*), sum(finished_ms - started_ms) FROM executions WHERE manifest = ?1 GROUP BY 1",
            )?;
            let rows = statement.query_map([manifest], |row| {
                Ok((row.get(0)?, (row.get::<_, i64>(1)? as u64, row.get::<_, i64>(2)?.max(0) as u64)))
            })?;
            rows.collect()
        })
    }

    pub(crate) fn stat_get(&self, path: &Path, stamp: &Stamp) -> Result<Option<Digest>> {
        self.run(|c| {
            c.prepare_cached(
                "SELECT digest FROM stat WHERE path = ?1 AND size = ?2 AND modified_ns = ?3 AND changed_ns = ?4 AND inode = ?5",
            )?
            .query_row(
                params![path.as_os_str().as_bytes(), stamp.size, stamp.modified_ns, stamp.changed_ns, stamp.inode],
                |row| digest_at(row, 0),
            )
            .optional()
        })
    }

    /// Keeps stamps, all in one transaction: thousands of small writes cost one sync.
    pub(crate) fn stat_put(&self, stamps: &[(PathBuf, Stamp, Digest)]) -> Result<()> {
        self.run(|c| {
            let transaction = c.unchecked_transaction()?;
            for (path, stamp, digest) in stamps {
                transaction.prepare_cached("INSERT OR REPLACE INTO stat VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?.execute(
                    params![
                        path.as_os_str().as_bytes(),
                        stamp.size,
                        stamp.modified_ns,
                        stamp.changed_ns,
                        stamp.inode,
                        digest.to_string()
                    ],
                )?;
            }
            transaction.commit()
        })
    }
}

fn insert(c: &Connection, record: &Record) -> rusqlite::Result<()> {
    c.prepare_cached(
        "INSERT OR IGNORE INTO executions (key, instance, manifest, kind, run, started_ms, finished_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?
    .execute(params![
        record.key.to_string(),
        record.instance,
        record.manifest,
        record.kind,
        record.run,
        record.started_ms as i64,
        record.finished_ms as i64
    ])
    .map(|_| ())
}

fn digest_at(row: &rusqlite::Row, column: usize) -> rusqlite::Result<Digest> {
    let text: String = row.get(column)?;
    text.parse()
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(e)))
}

fn is_corrupt(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase))
}
