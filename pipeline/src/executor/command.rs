//! One command: its working directory, its process group, its log, its outputs.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::gate::Gate;
use super::log::LogFile;
use super::sandbox::Sandbox;
use super::work_dir::{Layout, WorkDir, Workshop};
use super::{Failure, Made, Message, orphans, outputs, processes};
use crate::protocol::Reply;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Process groups at work, by job: whoever stops a run ends them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Groups(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    leaders: BTreeMap<u64, u32>,
    stopped: bool,
}

impl Groups {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends every group, and refuses further ones.
    pub(crate) fn stop(&self) {
        let mut state = self.lock();
        state.stopped = true;
        state.leaders.values().for_each(|leader| processes::kill_group(*leader));
    }
}

/// A command to carry out.
pub(crate) struct Job {
    pub(crate) number: u64,
    pub(crate) run: String,
    pub(crate) workshop: Arc<Workshop>,
    pub(crate) layout: Layout,
    /// The program and its arguments.
    pub(crate) words: Vec<String>,
    /// The declared environment; `None` where a variable that is passed on does not exist.
    pub(crate) env: Vec<(String, Option<String>)>,
    pub(crate) threads: usize,
    pub(crate) gate: Arc<Gate>,
    pub(crate) gpus: Vec<String>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) sandbox: Option<Sandbox>,
    pub(crate) log: PathBuf,
    pub(crate) heading: String,
    pub(crate) groups: Groups,
    pub(crate) tell: Sender<Message>,
}

/// A process at work, and what it prints.
struct Started {
    child: Child,
    output: OwnedFd,
}

impl Job {
    /// Carries it out and tells what came of it.
    pub(crate) fn carry_out(self) {
        // A slip in here must not leave the run waiting for ever.
        let work = std::panic::AssertUnwindSafe(|| self.work());
        let slip = |_| Err(Failure::new("a bug in Siteline: the thread that saw to it panicked"));
        let made = std::panic::catch_unwind(work).unwrap_or_else(slip);
        let _ = self.tell.send(Message::Made(self.number, made));
    }

    fn work(&self) -> Result<Made, Failure> {
        let unable = |e| Failure::new(format!("its working directory cannot be used: {e}"));
        let dir = self.workshop.set_up(&self.layout).map_err(unable)?;
        let made = self.work_in(&dir);
        // Before anybody is told: a run that is over leaves nothing.
        self.workshop.clear(dir);
        made
    }

    fn work_in(&self, dir: &WorkDir) -> Result<Made, Failure> {
        let start = self.prepare(&dir.path)?;
        let set_up = SystemTime::now();
        let started = self.gate.start(self.number, self.threads, start);
        let executed = started.and_then(|started| self.attend(started)).map_err(|failure| match is_full(&dir.path) {
            true => Failure::new(format!("{}; the disk is full: `siteline gc` shows what could go", failure.message)),
            false => failure,
        });
        self.gate.give(self.threads);
        executed?;
        siteline_cache::sync_point::reach("after-stage");
        let files = outputs::declared(&dir.path, &self.layout)?;
        if !is_little(&dir.path, &files) {
            let _ = self.tell.send(Message::Freed(self.number));
        }
        if let Some(message) = self.workshop.altered(dir, &self.layout, set_up) {
            return Err(Failure::new(message));
        }
        let outputs = outputs::take_in(&self.workshop.store, &dir.path, &files)?;
        let environment = BTreeMap::from([("threads".to_owned(), self.threads.to_string())]);
        Ok(Made { outputs, environment })
    }

    fn command(&self, dir: &Path) -> Command {
        let visible = self.layout.files.iter().map(|(_, path)| path.as_path()).chain([self.workshop.root()]);
        let front = self.sandbox.as_ref().map(|sandbox| sandbox.words(dir, visible)).unwrap_or_default();
        let mut words = front.into_iter().map(PathBuf::into_os_string).chain(self.words.iter().map(Into::into));
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words).current_dir(dir).env_clear();
        for name in ["PATH"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        let threads = self.threads.to_string();
        command
            .env("TMPDIR", if self.sandbox.is_some() { Path::new("/tmp") } else { dir })
            .env("OMP_NUM_THREADS", &threads)
            .env("SITELINE_THREADS", threads)
            // By slot, as the driver's tools count them: CUDA would put the fastest first.
            .env("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
            .env("CUDA_VISIBLE_DEVICES", self.gpus.join(","))
            .env("PYTHONPATH", dir)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("PYTHONUNBUFFERED", "1")
            .env(processes::RUN_VARIABLE, &self.run)
            .env(orphans::JOB_VARIABLE, self.number.to_string());
        // As `LANG` with this value does, and programs open one file for it instead of a dozen; it would go before a declared one.
        if !self.env.iter().any(|(name, _)| ["LANG", "LC_ALL"].contains(&name.as_str())) {
            command.env("LC_CTYPE", "C.UTF-8");
        }
        for (name, value) in &self.env {
            if let Some(value) = value {
                command.env(name, value);
            }
        }
        command
    }

    /// Everything that can be done before there are slots. What is returned starts the process.
    fn prepare(&self, dir: &Path) -> Result<impl FnOnce() -> Result<Started, Failure> + Send + 'static, Failure> {
        let program = self.words[0].clone();
        let no_start = move |e: std::io::Error| Failure::new(format!("`{program}` cannot be started: {e}"));
        let (read, write) = std::io::pipe().map_err(&no_start)?;
        let mut command = self.command(dir);
        command.stdin(Stdio::null()).stdout(write.try_clone().map_err(&no_start)?).stderr(write).process_group(0);
        let (groups, number) = (self.groups.clone(), self.number);
        Ok(move || {
            if groups.lock().stopped {
                return Err(Failure::new("the run was stopped"));
            }
            let child = command.spawn().map_err(no_start)?;
            let mut state = groups.lock();
            state.leaders.insert(number, child.id());
            if state.stopped {
                processes::kill_group(child.id());
            }
            // The writing ends go with the command: with them this process would keep the pipe open for ever.
            Ok(Started { child, output: read.into() })
        })
    }

    /// Sees a started command through to its end.
    fn attend(&self, started: Started) -> Result<(), Failure> {
        let Started { mut child, output } = started;
        let listened = self.listen(output, child.id());
        // Whatever it started and did not wait for ends with it.
        processes::kill_group(child.id());
        self.groups.lock().leaders.remove(&self.number);
        let status = child.wait().map_err(|e| Failure::new(format!("it cannot be waited for: {e}")))?;
        orphans::end_those_of(&self.run, Some(&self.number.to_string()));
        match listened {
            Ok(()) if status.success() => Ok(()),
            Ok(()) => {
                let how = how_it_ended(status);
                LogFile::conclude(&self.log, &how);
                Err(Failure::new(how))
            }
            Err(failure) => Err(failure),
        }
    }

    /// Keeps what the command prints until its first process has ended.
    fn listen(&self, output: OwnedFd, pid: u32) -> Result<(), Failure> {
        let deadline = self.timeout.map(|timeout| Instant::now() + timeout);
        let ended = Pid::from_raw(pid as i32).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        let mut log = Log::new(self);
        let mut output = Some(File::from(output));
        // Most commands print little, and a large buffer is zeroed for each of them.
        let mut buffer = [0; 4 << 10];
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                let limit = self.timeout.map(in_words).unwrap_or_default();
                let text = format!("it took longer than {limit} and was ended");
                log.note(&text);
                return Err(Failure::new(text));
            }
            let wait =
                left.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) });
            let printing = output.as_ref().map(|file| PollFd::new(file, PollFlags::IN));
            let ending = ended.as_ref().map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN));
            let prints = usize::from(printing.is_some());
            let mut watched: Vec<PollFd> = printing.into_iter().chain(ending).collect();
            match poll(&mut watched, wait.as_ref()) {
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(Failure::new(format!("its output cannot be read: {e}"))),
                Ok(_) => {}
            }
            let happened: Vec<bool> = watched.iter().map(|fd| !fd.revents().is_empty()).collect();
            if happened.get(prints).copied().unwrap_or(false) {
                // It has ended. What its children may still print belongs to nobody; what is in the pipe is its own.
                processes::kill_group(pid);
                if let Some(file) = &mut output {
                    drain(file, &mut buffer, &mut log);
                }
                break;
            }
            let Some(file) = output.as_mut().filter(|_| happened[0]) else { continue };
            match file.read(&mut buffer) {
                // It closed its output; where its end can be seen, that is waited for.
                Ok(0) if ended.is_none() => break,
                Ok(0) => output = None,
                Ok(read) => log.take(&buffer[..read]),
                Err(e) => return Err(Failure::new(format!("its output cannot be read: {e}"))),
            }
        }
        log.finish();
        Ok(())
    }
}

/// Reads what a pipe holds and no more: somebody may go on writing to it.
fn drain(file: &mut File, buffer: &mut [u8], log: &mut Log) {
    /// More than any pipe holds.
    const MOST: usize = 4 << 20;
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut taken = 0;
    while taken < MOST {
        let mut watched = [PollFd::new(file, PollFlags::IN)];
        if !matches!(poll(&mut watched, Some(&now)), Ok(ready) if ready > 0) {
            return;
        }
        match file.read(buffer) {
            Ok(read) if read > 0 => {
                log.take(&buffer[..read]);
                taken += read;
            }
            _ => return,
        }
    }
}

/// Whether files are taken into the store in no time.
fn is_little(dir: &Path, files: &[String]) -> bool {
    const FEW: usize = 16;
    const SMALL: u64 = 1 << 20;
    let small = |file: &String| dir.join(file).metadata().is_ok_and(|meta| meta.len() < SMALL);
    files.len() <= FEW && files.iter().all(small)
}

/// Whether next to nothing can be written below a folder.
fn is_full(folder: &Path) -> bool {
    const LITTLE: u64 = 128 << 10;
    rustix::fs::statvfs(folder).is_ok_and(|stat| stat.f_bavail.saturating_mul(stat.f_frsize) < LITTLE)
}

fn in_words(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 120.0 { format!("{seconds} s") } else { format!("{:.1} min", seconds / 60.0) }
}

/// How a process ended, for people.
pub(crate) fn how_it_ended(status: ExitStatus) -> String {
    /// What a shell adds to the signal that ended its program.
    const BY_SIGNAL: i32 = 128;
    match (status.code(), status.signal()) {
        (Some(127), _) => "it ended with exit code 127: the shell did not find a program".to_owned(),
        (Some(code), _) => match name_of(code - BY_SIGNAL) {
            Some(name) => format!(
                "it ended with exit code {code}: a program of it was ended by signal {}{name}",
                code - BY_SIGNAL
            ),
            None => format!("it ended with exit code {code}"),
        },
        (None, Some(signal)) => format!("it was ended by signal {signal}{}", name_of(signal).unwrap_or_default()),
        _ => status.to_string(),
    }
}

/// What a signal is called, and what it is mostly for.
fn name_of(signal: i32) -> Option<&'static str> {
    Some(match signal {
        4 => " (SIGILL: an instruction that this processor does not have)",
        6 => " (SIGABRT: it gave up by itself)",
        7 => " (SIGBUS: a bug in the program, or a full disk)",
        8 => " (SIGFPE: a bug in the program)",
        9 => " (SIGKILL: ended from outside, perhaps for want of memory)",
        11 => " (SIGSEGV: a bug in the program)",
        15 => " (SIGTERM)",
        _ => return None,
    })
}

/// The log of a command, made when it first prints something.
struct Log<'j> {
    job: &'j Job,
    file: Option<LogFile>,
    line: Vec<u8>,
}

impl<'j> Log<'j> {
    fn new(job: &'j Job) -> Self {
        Self { job, file: None, line: Vec::new() }
    }

    fn take(&mut self, bytes: &[u8]) {
        if let Some(file) = self.file() {
            file.write(bytes);
        }
        for byte in bytes {
            if *byte == b'\n' {
                self.end_of_line();
            } else if self.line.len() < 4096 {
                self.line.push(*byte);
            }
        }
    }

    fn file(&mut self) -> Option<&mut LogFile> {
        if self.file.is_none() {
            self.file = LogFile::create(&self.job.log, &self.job.heading).ok();
        }
        self.file.as_mut()
    }

    fn note(&mut self, text: &str) {
        self.finish();
        if let Some(file) = self.file() {
            file.note(&format!("[siteline: {text}]"));
        }
    }

    fn end_of_line(&mut self) {
        if self.line.starts_with(b"::") {
            let text = String::from_utf8_lossy(&self.line);
            if let Some(reply) = spoken(text.trim_end()) {
                let _ = self.job.tell.send(Message::Said(self.job.number, reply));
            }
        }
        self.line.clear();
    }

    fn finish(&mut self) {
        self.end_of_line();
    }
}

/// `::progress 3/10 epochs`, `::metric NAME VALUE`, `::warning TEXT`: how a command says more than its exit code does.
fn spoken(line: &str) -> Option<Reply> {
    let (word, rest) = line.strip_prefix("::")?.split_once(' ')?;
    let rest = rest.trim();
    let unclear = || Reply::Log { warning: true, text: format!("`{line}` says nothing that could be kept") };
    let spoken = match word {
        "progress" => {
            let (count, unit) = rest.split_once(' ').unwrap_or((rest, ""));
            let number = |text: &str| text.parse().ok();
            let counted = count.split_once('/').and_then(|(done, total)| Some((number(done)?, number(total)?)));
            counted.map(|(done, total)| Reply::Progress { done, total, unit: unit.to_owned() })
        }
        "metric" => rest.rsplit_once([' ', '=']).and_then(|(name, value)| {
            let value = value.parse().ok().filter(|value: &f64| value.is_finite())?;
            Some(Reply::Metric { name: name.trim().to_owned(), value })
        }),
        "warning" => Some(Reply::Log { warning: true, text: rest.to_owned() }),
        _ => return None,
    };
    Some(spoken.unwrap_or_else(unclear))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_speaks_by_lines() {
        assert!(
            matches!(spoken("::progress 3/10 epochs"), Some(Reply::Progress { done: 3, total: 10, unit }) if unit == "epochs")
        );
        assert!(
            matches!(spoken("::metric test dice 0.5"), Some(Reply::Metric { name, value }) if name == "test dice" && value == 0.5)
        );
        assert!(matches!(spoken("::metric dice=0.5"), Some(Reply::Metric { name, .. }) if name == "dice"));
        for unclear in ["::metric dice nan", "::metric dice much", "::progress many"] {
            assert!(matches!(spoken(unclear), Some(Reply::Log { warning: true, text }) if text.contains(unclear)));
        }
        assert!(spoken("std::move x").is_none() && spoken("::else x").is_none());
    }
}
