//! The ledger: a SQLite index of what ran. It can be made anew from the records at any time.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use crate::stat::Stamp;
use crate::{Digest, Record, Result, StoreError};

const VERSION: i64 = 1;

/// One time that an instance was executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Execution {
    /// The key that it ran under.
    pub key: Digest,
    /// The instance.
    pub instance: String,
    /// The run.
    pub run: String,
    /// End, in milliseconds since 1970.
    pub finished_ms: u64,
}

/// One call of `siteline run`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunRow {
    /// Its id, which sorts by time.
    pub id: String,
    /// The manifest's name.
    pub manifest: String,
    /// The arguments of the command.
    pub command: String,
    /// Start, in milliseconds since 1970.
    pub started_ms: u64,
    /// End, if it has ended.
    pub finished_ms: Option<u64>,
    /// `running`, `done`, `failed`, `cancelled`.
    pub status: String,
}

/// What became of an instance in a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceOutcome {
    /// The instance.
    pub instance: String,
    /// `cached`, `executed`, `failed`, `blocked`, `cancelled`.
    pub outcome: String,
    /// Its key, if it got one.
    pub key: Option<Digest>,
    /// Its log, if it ran.
    pub log: Option<PathBuf>,
}

pub(crate) struct Ledger {
    connection: Mutex<Connection>,
    path: PathBuf,
}

impl Ledger {
    /// Opens the ledger for writing and brings it to the present version. Returns whether it has to be filled from the
    /// records: because it is new, or because what lay there was no ledger and was set aside.
    pub(crate) fn open(path: &Path) -> Result<(Self, bool)> {
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
                Ok((Self::try_open(path)?.0, true))
            }
            Err(other) => Err(other),
        }
    }

    fn try_open(path: &Path) -> Result<(Self, bool)> {
        let wrap = Self::wrap(path);
        let connection = Connection::open(path).map_err(&wrap)?;
        connection.busy_timeout(Duration::from_secs(60)).map_err(&wrap)?;
        // The write-ahead log lets readers go on while a run writes. What a power cut may take is made anew from the records.
        connection.pragma_update(None, "journal_mode", "WAL").map_err(&wrap)?;
        connection.pragma_update(None, "synchronous", "NORMAL").map_err(&wrap)?;
        let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(&wrap)?;
        if version != VERSION {
            connection.execute_batch(include_str!("ledger.sql")).map_err(&wrap)?;
        }
        Ok((Self { connection: Mutex::new(connection), path: path.to_owned() }, version != VERSION))
    }

    /// Opens the ledger without changing anything on disk; an absent one is an empty one.
    pub(crate) fn open_read_only(path: &Path) -> Result<Self> {
        let wrap = Self::wrap(path);
        if path.exists() {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
            let plain = Connection::open_with_flags(path, flags).and_then(|c| {
                c.busy_timeout(Duration::from_secs(60))?;
                c.query_row("SELECT count(*) FROM runs", [], |_| Ok(()))?;
                Ok(c)
            });
            // In a folder that cannot be written SQLite cannot share a write-ahead log; nobody can be writing there either.
            let opened = plain.or_else(|_| {
                let uri = format!(
                    "file:{}?immutable=1",
                    path.display().to_string().replace('%', "%25").replace('?', "%3f").replace('#', "%23")
                );
                Connection::open_with_flags(uri, flags).and_then(|c| {
                    c.query_row("SELECT count(*) FROM runs", [], |_| Ok(()))?;
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

    /// Adds the rows of one record; a record that is there already is left alone.
    pub(crate) fn add(&self, record: &Record) -> Result<()> {
        self.run(|c| {
            let transaction = c.unchecked_transaction()?;
            insert(&transaction, record)?;
            transaction.commit()
        })
    }

    /// Forgets all executions and takes in `records` instead.
    pub(crate) fn rebuild(&self, records: &[Record]) -> Result<()> {
        self.run(|c| {
            let transaction = c.unchecked_transaction()?;
            for table in ["executions", "inputs", "outputs", "metrics"] {
                transaction.execute(&format!("DELETE FROM {table}"), [])?;
            }
            records.iter().try_for_each(|record| insert(&transaction, record))?;
            transaction.commit()
        })
    }

    /// Notes that the ledger is filled: from here on it is trusted.
    pub(crate) fn is_filled(&self) -> Result<()> {
        self.run(|c| c.pragma_update(None, "user_version", VERSION))
    }

    /// Executions of an instance of a manifest, the latest first.
    pub(crate) fn executions_of(&self, manifest: &str, instance: &str) -> Result<Vec<Execution>> {
        self.run(|c| {
            let mut statement = c.prepare_cached(
                "SELECT key, instance, run, finished_ms FROM executions WHERE manifest = ?1 AND instance = ?2 ORDER BY finished_ms DESC, seq DESC",
            )?;
            let rows = statement.query_map(params![manifest, instance], |row| {
                Ok(Execution {
                    key: digest_at(row, 0)?,
                    instance: row.get(1)?,
                    run: row.get(2)?,
                    finished_ms: row.get::<_, i64>(3)? as u64,
                })
            })?;
            rows.collect()
        })
    }

    pub(crate) fn begin_run(&self, row: &RunRow) -> Result<()> {
        self.run(|c| {
            c.execute(
                "INSERT OR REPLACE INTO runs (id, manifest, command, started_ms, finished_ms, status) VALUES (?1, ?2, ?3, ?4, NULL, ?5)",
                params![row.id, row.manifest, row.command, row.started_ms as i64, row.status],
            )
            .map(|_| ())
        })
    }

    pub(crate) fn end_run(&self, id: &str, status: &str, finished_ms: u64, outcomes: &[InstanceOutcome]) -> Result<()> {
        self.run(|c| {
            let transaction = c.unchecked_transaction()?;
            transaction.execute(
                "UPDATE runs SET status = ?2, finished_ms = ?3 WHERE id = ?1",
                params![id, status, finished_ms as i64],
            )?;
            for outcome in outcomes {
                transaction.execute(
                    "INSERT OR REPLACE INTO run_instances (run, instance, outcome, key, log) VALUES (?1, ?2, ?3, ?4, ?5)",
                    params![
                        id,
                        outcome.instance,
                        outcome.outcome,
                        outcome.key.map(|k| k.to_string()),
                        outcome.log.as_ref().map(|p| p.display().to_string())
                    ],
                )?;
            }
            transaction.commit()
        })
    }

    /// Runs, the latest first.
    pub(crate) fn runs(&self) -> Result<Vec<RunRow>> {
        self.run(|c| {
            let mut statement =
                c.prepare("SELECT id, manifest, command, started_ms, finished_ms, status FROM runs ORDER BY started_ms DESC, id DESC")?;
            let rows = statement.query_map([], |row| {
                Ok(RunRow {
                    id: row.get(0)?,
                    manifest: row.get(1)?,
                    command: row.get(2)?,
                    started_ms: row.get::<_, i64>(3)? as u64,
                    finished_ms: row.get::<_, Option<i64>>(4)?.map(|n| n as u64),
                    status: row.get(5)?,
                })
            })?;
            rows.collect()
        })
    }

    pub(crate) fn outcomes(&self, run: &str) -> Result<Vec<InstanceOutcome>> {
        self.run(|c| {
            let mut statement =
                c.prepare("SELECT instance, outcome, key, log FROM run_instances WHERE run = ?1 ORDER BY instance")?;
            let rows = statement.query_map([run], |row| {
                let key: Option<String> = row.get(2)?;
                Ok(InstanceOutcome {
                    instance: row.get(0)?,
                    outcome: row.get(1)?,
                    key: key.and_then(|k| k.parse().ok()),
                    log: row.get::<_, Option<String>>(3)?.map(PathBuf::from),
                })
            })?;
            rows.collect()
        })
    }

    pub(crate) fn forget(&self, keys: &[Digest]) -> Result<()> {
        self.run(|c| {
            let transaction = c.unchecked_transaction()?;
            for key in keys {
                let key = key.to_string();
                for table in ["inputs", "outputs", "metrics"] {
                    transaction.execute(
                        &format!("DELETE FROM {table} WHERE seq IN (SELECT seq FROM executions WHERE key = ?1)"),
                        [&key],
                    )?;
                }
                transaction.execute("DELETE FROM executions WHERE key = ?1", [&key])?;
            }
            transaction.commit()
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
    let added = c
        .prepare_cached(
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
        ])?;
    if added == 0 {
        return Ok(());
    }
    let seq = c.last_insert_rowid();
    for input in &record.inputs {
        c.prepare_cached("INSERT INTO inputs VALUES (?1, ?2, ?3, ?4)")?.execute(params![
            seq,
            input.name,
            input.instance,
            input.key.to_string()
        ])?;
    }
    for output in &record.outputs {
        c.prepare_cached("INSERT INTO outputs VALUES (?1, ?2, ?3, ?4)")?.execute(params![
            seq,
            output.path,
            output.digest.to_string(),
            output.size as i64
        ])?;
    }
    for (name, value) in &record.metrics {
        c.prepare_cached("INSERT INTO metrics VALUES (?1, ?2, ?3)")?.execute(params![seq, name, value])?;
    }
    Ok(())
}

fn digest_at(row: &rusqlite::Row, column: usize) -> rusqlite::Result<Digest> {
    let text: String = row.get(column)?;
    text.parse()
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(e)))
}

fn is_corrupt(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase))
}
