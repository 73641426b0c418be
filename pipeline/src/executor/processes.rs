//! Process groups, and the processes of a run: none of them outlives it.
//!
//! Every process that a run starts carries the run's id in its environment, and so does whatever that starts, in whichever
//! group or session. A watcher of its own ends them all once the driver is gone, however the driver ended.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};

/// The variable that holds the run's id.
pub const RUN_VARIABLE: &str = "SITELINE_RUN";
/// The hidden verb that watches a run.
pub const WATCH: &str = "watch-run";

/// Ends a process group at once.
pub(crate) fn kill_group(leader: u32) {
    if let Some(group) = Pid::from_raw(leader as i32) {
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
}

/// Waits until a child of this process has ended, for so long at most. Whether it has. It is not waited for in the kernel's sense: its
/// number stays its own.
pub(crate) fn wait_for_end(pid: u32, most: Option<Duration>) -> bool {
    let deadline = most.map(|most| Instant::now() + most);
    let left = || deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    let Some(handle) = Pid::from_raw(pid as i32).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else {
        // A kernel without such handles, or a process that is gone.
        while has_not_ended(pid) {
            if left().is_some_and(|left| left.is_zero()) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        return true;
    };
    loop {
        let left = left();
        let wait = left.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) });
        match poll(&mut [PollFd::new(&handle, PollFlags::IN)], wait.as_ref()) {
            Ok(0) => return false,
            Err(rustix::io::Errno::INTR) => {}
            _ => return true,
        }
    }
}

fn has_not_ended(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// Ends every process of a run but this one. Processes may start others meanwhile, so it looks until there are none.
pub fn end_all_of(run: &str) {
    let wanted = format!("{RUN_VARIABLE}={run}");
    for _ in 0..50 {
        let found = carrying(wanted.as_bytes());
        if found.is_empty() {
            return;
        }
        for pid in found {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Living processes with `variable` in their environment.
fn carrying(variable: &[u8]) -> Vec<Pid> {
    let own = std::process::id() as i32;
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != own)
        .filter(|pid| {
            // A process that has ended and was not waited for has an empty environment.
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|entry| entry == variable)
        })
        .filter_map(Pid::from_raw)
        .collect()
}

/// Ends the processes of a run as soon as the process that holds the other end of standard input is gone. The body of the
/// hidden verb [`WATCH`].
pub fn watch(run: &str) {
    let mut nothing = [0; 64];
    while matches!(std::io::Read::read(&mut std::io::stdin(), &mut nothing), Ok(read) if read > 0) {}
    end_all_of(run);
}

/// The watcher of a run. Dropping it lets it do its work and waits for that.
#[derive(Debug)]
pub(crate) struct Watcher {
    child: Option<Child>,
}

impl Watcher {
    /// Starts this very program as a watcher. Without one a run goes on: only a kill of the driver could leave a process.
    pub(crate) fn start(run: &str) -> Self {
        use std::os::unix::process::CommandExt;
        let started = std::env::current_exe().and_then(|program| {
            let mut command = Command::new(program);
            command.args([WATCH, run]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
            // Ctrl-C in the terminal is for the driver.
            command.process_group(0).spawn()
        });
        Self { child: started.map_err(|e| tracing::warn!("no process watches this run: {e}")).ok() }
    }

    /// Its number, where there is one.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.stdin.take());
            let _ = child.wait();
        }
    }
}
