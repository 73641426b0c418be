//! `siteline log --follow`

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use siteline_cache::Store;

use super::print_bytes;
use crate::commands::Outcome;
use crate::diagnostic::CommandError;

const PAUSE: Duration = Duration::from_millis(200);

/// Shows the log of an instance as it grows, in the latest run of a manifest.
pub(super) fn follow(store: &Store, manifest: &str, instance: &str) -> Outcome {
    let Some(run) = store.runs().into_iter().find(|run| run.manifest == *manifest) else {
        return Err(CommandError::refused(format!("`{manifest}` was never run"), "`siteline run` runs it".to_owned()));
    };
    let path = store.run_folder(&run.id).join(siteline_pipeline::run::log_name(instance));
    let mut log = Growing { path: &path, open: None, held_back: Vec::new() };
    let mut outcomes = store.follow_outcomes(&run.id);
    loop {
        // In this order: what the run has ended with is written by then, and so is what the instance has printed.
        let goes_on = store.run(&run.id).is_some_and(|run| run.state() == "running");
        let outcome = outcomes.news()?.into_iter().rfind(|outcome| outcome.instance == instance);
        log.show().map_err(CommandError::file("read", &path))?;
        if let Some(outcome) = outcome {
            log.finish();
            let message = outcome.message.map(|message| format!(": {message}")).unwrap_or_default();
            eprintln!("[{} in {}{message}]", outcome.outcome, run.id);
            let is_there = ["executed", "cached"].contains(&outcome.outcome.as_str());
            return Ok(if is_there { ExitCode::SUCCESS } else { ExitCode::from(1) });
        }
        if !goes_on {
            log.finish();
            let message = format!("the run {} ended, and `{instance}` came to no end in it", run.id);
            return Err(CommandError::refused(message, None));
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
    /// Shows the lines that were added, and goes over to the log of the next attempt where there is one.
    fn show(&mut self) -> std::io::Result<()> {
        self.read()?;
        let is_other = |file: &File| Ok::<bool, std::io::Error>(inode(self.path)? != Some(file.metadata()?.ino()));
        let other = self.open.as_ref().map(is_other).transpose()?.unwrap_or(true);
        if other && inode(self.path)?.is_some() {
            if self.open.is_some() {
                self.finish();
                eprintln!("[another attempt]");
            }
            self.open = File::open(self.path).ok();
            self.read()?;
        }
        Ok(())
    }

    fn read(&mut self) -> std::io::Result<()> {
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

/// What tells a file from the one that lay there before.
fn inode(path: &Path) -> std::io::Result<Option<u64>> {
    match std::fs::metadata(path) {
        Ok(meta) => Ok(Some(meta.ino())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}
