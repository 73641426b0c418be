//! Names of runs and of their files, and the clock that records carry.

use std::time::{SystemTime, UNIX_EPOCH};

/// The file of an instance's log in a run's folder.
pub fn log_name(instance: &str) -> String {
    format!("{}.log", file_name(instance))
}

/// An instance's name as a file's.
pub(super) fn file_name(instance: &str) -> String {
    instance.replace('[', ".").replace(']', "").replace(',', "_").replace('/', "-")
}

/// An id that sorts by time and tells runs of the same second apart.
pub(super) fn run_id() -> String {
    let time = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string();
    format!("{time}-{:05}", std::process::id() % 100_000)
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    ms(SystemTime::now())
}

/// A time as milliseconds since 1970.
pub(super) fn ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}
