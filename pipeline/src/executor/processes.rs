//! Process groups, and the processes of a run: none of them outlives it.
//!
//! Every process that a run starts carries the run's id in its environment, and so does whatever that starts, in whichever
//! group or session. A watcher of its own ends them all once the driver is gone, however the driver ended.

use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal};

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
        std::thread::sleep(std::time::Duration::from_millis(10));
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
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.stdin.take());
            let _ = child.wait();
        }
    }
}
