//! Processes that get out of their group: in a session of their own, by a second fork, with another environment.
//!
//! Whatever loses its parent becomes a child of the driver, which so sees it as soon as the command or worker that started it has ended,
//! and ends it before anybody looks at what was made: it could go on writing to an output that is in the store.

use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, getpid, getsid, kill_process, set_child_subreaper, waitpid};

use super::processes::RUN_VARIABLE;

/// The variable that tells what a process was started for.
pub(crate) const JOB_VARIABLE: &str = "SITELINE_JOB";

/// The process that watches this run: a child that is none of these, and always there.
static WATCHER: AtomicI32 = AtomicI32::new(0);

/// From now on orphans become children of this process.
pub(crate) fn adopt(watcher: Option<u32>) {
    WATCHER.store(watcher.map_or(0, |pid| pid as i32), Ordering::Relaxed);
    if let Err(e) = set_child_subreaper(Some(getpid())) {
        tracing::warn!("processes that leave their group cannot be followed: {e}");
    }
}

/// Ends what a job of a run left behind; without a job whatever any of them did. They may start others meanwhile, so it looks until
/// there are none.
pub(crate) fn end_those_of(run: &str, job: Option<&str>) {
    const LOOKS: usize = 200;
    let mut ended: Vec<Pid> = Vec::new();
    for _ in 0..LOOKS {
        let left: Vec<Pid> =
            children().into_iter().filter(|pid| !ended.contains(pid) && is_left(*pid, run, job)).collect();
        for pid in &left {
            let _ = kill_process(*pid, Signal::KILL);
        }
        ended.extend(left);
        ended.retain(|pid| matches!(waitpid(Some(*pid), WaitOptions::NOHANG), Ok(None)));
        if ended.is_empty() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The children of this process's first thread: its orphans, and what that thread has started itself.
fn children() -> Vec<Pid> {
    let own = getpid().as_raw_nonzero();
    let list = std::fs::read_to_string(format!("/proc/self/task/{own}/children")).unwrap_or_default();
    let watcher = WATCHER.load(Ordering::Relaxed);
    let pids = list.split_whitespace().filter_map(|pid| pid.parse().ok()).filter(|pid| *pid != watcher);
    pids.filter_map(Pid::from_raw).collect()
}

/// Whether a child of this process was left behind by the job. What this process has started itself is in its own session, and carries
/// the run's id from its first moment as another program on.
fn is_left(pid: Pid, run: &str, job: Option<&str>) -> bool {
    let read = |what: &str| std::fs::read(format!("/proc/{}/{what}", pid.as_raw_nonzero()));
    let elsewhere = || getsid(Some(pid)).is_ok_and(|session| getsid(None) != Ok(session));
    let stat = read("stat").unwrap_or_default();
    let behind_name = stat.iter().rposition(|byte| *byte == b')').map_or(0, |place| place + 2);
    if matches!(stat.get(behind_name), None | Some(b'Z' | b'X')) {
        // Nobody else waits for it.
        return elsewhere();
    }
    let Ok(environment) = read("environ") else { return false };
    let value = |name: &str| {
        let entries = environment.split(|byte| *byte == 0);
        entries.into_iter().find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
    };
    match value(RUN_VARIABLE) {
        Some(its_run) => its_run == run.as_bytes() && job.is_none_or(|job| value(JOB_VARIABLE) == Some(job.as_bytes())),
        // Of whom it is cannot be told. It has lost its parent, its session and its environment: nobody waits for it.
        None => elsewhere(),
    }
}
