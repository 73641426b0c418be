-- The ledger, version 3: an index of the records by instance, and the stat cache.
-- History: 1, the first; 2, journals instead of a file for each record, outcomes in the runs' folders; 3, runs there as well.
DROP TABLE IF EXISTS run_instances;
DROP TABLE IF EXISTS inputs;
DROP TABLE IF EXISTS outputs;
DROP TABLE IF EXISTS metrics;
DROP TABLE IF EXISTS executions;
DROP TABLE IF EXISTS runs;
CREATE TABLE executions (
    seq INTEGER PRIMARY KEY,
    key TEXT NOT NULL,
    instance TEXT NOT NULL,
    manifest TEXT NOT NULL,
    kind TEXT NOT NULL,
    run TEXT NOT NULL,
    started_ms INTEGER NOT NULL,
    finished_ms INTEGER NOT NULL,
    UNIQUE (key, started_ms)
);
CREATE INDEX executions_by_instance ON executions (manifest, instance, finished_ms);
-- Up to where each journal is in `executions`.
CREATE TABLE IF NOT EXISTS journals (name TEXT PRIMARY KEY, length INTEGER NOT NULL) WITHOUT ROWID;
DELETE FROM journals;
CREATE TABLE IF NOT EXISTS stat (
    path BLOB PRIMARY KEY,
    size INTEGER NOT NULL,
    modified_ns INTEGER NOT NULL,
    changed_ns INTEGER NOT NULL,
    inode INTEGER NOT NULL,
    digest TEXT NOT NULL
) WITHOUT ROWID;
PRAGMA user_version = 3;
