//! Places at which a test may have the process killed: between any two steps that make a result durable.

use std::sync::OnceLock;

/// The variable that names a point; `POINT:N` means the N-th time that it is reached. For tests alone.
const VARIABLE: &str = "SITELINE_TEST_KILL_AT";

/// Every point, in the order in which a result passes them.
pub const POINTS: [&str; 8] = [
    "after-claim",
    "after-stage",
    "before-objects",
    "after-objects",
    "after-records",
    "after-ledger",
    "before-end",
    "after-end",
];

/// Ends the process, as a power cut would, if a test asks for it here.
pub fn reach(point: &str) {
    static WANTED: OnceLock<Option<(String, std::sync::atomic::AtomicUsize)>> = OnceLock::new();
    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var(VARIABLE).ok()?;
        let (name, times) = text.split_once(':').unwrap_or((&text, "1"));
        Some((name.to_owned(), times.parse::<usize>().ok()?.into()))
    });
    let Some((name, left)) = wanted else { return };
    if name == point && left.fetch_sub(1, std::sync::atomic::Ordering::SeqCst) == 1 {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        // The signal takes effect on the way back from the call; nothing may happen in between.
        loop {
            std::thread::park();
        }
    }
}
