-- The ledger, version 1. An index of the records, plus what records do not hold: runs and the stat cache.
-- History: 1, the first.
CREATE TABLE IF NOT EXISTS executions (
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
CREATE INDEX IF NOT EXISTS executions_by_instance ON executions (manifest, instance, finished_ms);
CREATE TABLE IF NOT EXISTS inputs (seq INTEGER NOT NULL, name TEXT NOT NULL, instance TEXT NOT NULL, key TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS inputs_by_key ON inputs (key);
CREATE TABLE IF NOT EXISTS outputs (seq INTEGER NOT NULL, path TEXT NOT NULL, digest TEXT NOT NULL, size INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS outputs_by_digest ON outputs (digest);
CREATE TABLE IF NOT EXISTS metrics (seq INTEGER NOT NULL, name TEXT NOT NULL, value REAL);
CREATE TABLE IF NOT EXISTS runs (
    id TEXT PRIMARY KEY,
    manifest TEXT NOT NULL,
    command TEXT NOT NULL,
    started_ms INTEGER NOT NULL,
    finished_ms INTEGER,
    status TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS run_instances (
    run TEXT NOT NULL,
    instance TEXT NOT NULL,
    outcome TEXT NOT NULL,
    key TEXT,
    log TEXT,
    PRIMARY KEY (run, instance)
);
CREATE TABLE IF NOT EXISTS stat (
    path BLOB PRIMARY KEY,
    size INTEGER NOT NULL,
    modified_ns INTEGER NOT NULL,
    changed_ns INTEGER NOT NULL,
    inode INTEGER NOT NULL,
    digest TEXT NOT NULL
) WITHOUT ROWID;
