//! `siteline log --follow`

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use siteline_cache::{RunRow, Store};

use super::print_bytes;
use crate::commands::Outcome;
use crate::diagnostic::CommandError;

const PAUSE: Duration = Duration::from_millis(200);

/// Shows the log of an instance as it grows, in the run that is at work on it, or else the latest.
pub(super) fn follow(store: &Store, manifest: &str, instance: &str) -> Outcome {
    let name = siteline_pipeline::run::log_name(instance);
    let run = wait_for_run(store, manifest, &name);
    let path = store.run_folder(&run).join(&name);
    let mut log = Growing { path: &path, open: None, held_back: Vec::new() };
    let mut outcomes = store.follow_outcomes(&run);
    loop {
        // In this order: what the run has ended with is written by then, and so is what the instance has printed.
        let goes_on = store.run(&run).is_some_and(|run| run.state() == "running");
        let outcome = outcomes.news()?.into_iter().rfind(|outcome| outcome.instance == instance);
        log.show().map_err(CommandError::file("read", &path))?;
        // Of two runs at once the one that was found first may be waiting for the other.
        if outcome.is_none() && log.open.is_none() && at_work(store, manifest, &name).is_some_and(|other| other != run)
        {
            return follow(store, manifest, instance);
        }
        if let Some(outcome) = outcome {
            log.finish();
            let message = outcome.message.map(|message| format!(": {message}")).unwrap_or_default();
            errln!("[{} in {run}{message}]", outcome.outcome);
            let is_there = ["executed", "cached"].contains(&outcome.outcome.as_str());
            return Ok(if is_there { ExitCode::SUCCESS } else { ExitCode::from(1) });
        }
        if !goes_on {
            log.finish();
            let message = format!("the run {run} ended, and `{instance}` came to no end in it");
            return Err(CommandError::refused(message, None));
        }
        std::thread::sleep(PAUSE);
    }
}

/// The run that is at work on the instance with this log.
fn at_work(store: &Store, manifest: &str, log: &str) -> Option<String> {
    let works = |run: &RunRow| run.manifest == *manifest && run.state() == "running";
    store.runs().into_iter().find(|run| works(run) && store.run_folder(&run.id).join(log).exists()).map(|run| run.id)
}

/// The run to follow: of those that go on the one in which the instance has a log, or the latest; waits for a first one.
fn wait_for_run(store: &Store, manifest: &str, log: &str) -> String {
    let mut told = false;
    loop {
        let latest = || store.runs().into_iter().find(|run| run.manifest == *manifest).map(|run| run.id);
        if let Some(run) = at_work(store, manifest, log).or_else(latest) {
            return run;
        }
        if !told {
            errln!("[`{manifest}` was never run; waiting for a run]");
            told = true;
        }
        std::thread::sleep(PAUSE);
    }
}

/// A log that is still written to.
struct Growing<'p> {
    path: &'p PathBuf,
    open: Option<File>,
    /// The beginning of a line: half a letter is none.
    held_back: Vec<u8>,
}

impl Growing<'_> {
    /// Shows the lines that were added.
    fn show(&mut self) -> std::io::Result<()> {
        if self.open.is_none() {
            self.open = File::open(self.path).ok();
        }
        let Some(file) = &mut self.open else { return Ok(()) };
        file.read_to_end(&mut self.held_back)?;
        let whole = self.held_back.iter().rposition(|byte| b"\n\r".contains(byte)).map_or(0, |end| end + 1);
        print_bytes(&self.held_back.drain(..whole).collect::<Vec<_>>());
        Ok(())
    }

    /// Shows what is held back, too.
    fn finish(&mut self) {
        print_bytes(&std::mem::take(&mut self.held_back));
    }
}
