//! Places at which a test may have the process killed: between any two steps that make a result durable.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Pid, Signal, getpid, kill_process, kill_process_group};

/// The variable that names a point; `POINT:N` means the N-th time that it is reached. `POINT:N:children` ends whatever this process
/// started, in place of the process itself. For tests alone.
const VARIABLE: &str = "SITELINE_TEST_KILL_AT";

/// Every point, in the order in which a result passes them.
pub const POINTS: [&str; 9] = [
    "after-claim",
    "after-stage",
    "before-objects",
    "after-objects",
    "after-records",
    "after-ledger",
    "before-index",
    "before-end",
    "after-end",
];

/// Every point that `gc` passes.
pub const POINTS_OF_GC: [&str; 3] = ["gc-before-records", "gc-after-records", "gc-before-file"];

/// What a test asks for.
struct Wanted {
    point: String,
    /// Passages that are left.
    left: AtomicUsize,
    children: bool,
}

impl Wanted {
    fn read() -> Option<Self> {
        let text = std::env::var(VARIABLE).ok()?;
        let mut parts = text.split(':');
        let point = parts.next()?.to_owned();
        let left = parts.next().unwrap_or("1").parse::<usize>().ok()?.into();
        Some(Self { point, left, children: parts.next() == Some("children") })
    }
}

/// Ends the process, as a power cut would, if a test asks for it here.
pub fn reach(point: &str) {
    static WANTED: OnceLock<Option<Wanted>> = OnceLock::new();
    let Some(wanted) = WANTED.get_or_init(Wanted::read) else { return };
    if wanted.point != point || wanted.left.fetch_sub(1, Ordering::SeqCst) != 1 {
        return;
    }
    if wanted.children {
        return groups_of_children().into_iter().for_each(|group| {
            let _ = kill_process_group(group, Signal::KILL);
        });
    }
    let _ = kill_process(getpid(), Signal::KILL);
    // The signal takes effect on the way back from the call; nothing may happen in between.
    loop {
        std::thread::park();
    }
}

/// The process groups that this process has started and that do its work: the one that only watches it is none of them.
fn groups_of_children() -> Vec<Pid> {
    let own = getpid().as_raw_nonzero().get().to_string();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let leads = |entry: std::fs::DirEntry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        // Behind the name: state, parent, group.
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').take(3).collect();
        let words = std::fs::read(entry.path().join("cmdline")).ok()?;
        let watches = words.split(|byte| *byte == 0).any(|word| word == b"watch-run");
        (fields.get(1) == Some(&own.as_str()) && fields.get(2) == Some(&pid.to_string().as_str()) && !watches)
            .then(|| Pid::from_raw(pid))?
    };
    entries.filter_map(leads).collect()
}
