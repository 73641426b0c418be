//! Worker processes: started when needed, kept for the next instance, replaced after a crash or a cancelled run.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use super::streams::{self, Heard};
use super::{Message, orphans, processes};
use crate::protocol::{Request, RunRequest};

/// A running worker process.
struct Worker {
    number: usize,
    child: Child,
    /// Lines for its standard input. A thread writes them: a pack that does not read must not hold up the driver.
    requests: Sender<String>,
    command: Vec<String>,
    gpus: Vec<String>,
    /// How many requests it was handed, and how many last words it has said.
    asked: usize,
    answered: Arc<AtomicUsize>,
}

/// The workers of a run.
pub(crate) struct Workers {
    run: String,
    outputs: Sender<Message>,
    idle: Vec<Worker>,
    busy: Vec<Worker>,
    started: usize,
    /// Bytes of lines that workers said and the driver has not looked at.
    unheard: Arc<AtomicUsize>,
}

/// A worker that says more than the driver can take waits.
const MOST_UNHEARD: usize = 64 << 20;
/// What a process that has ended said last is waited for so long: a child of its own may hold the pipe for ever.
const LAST_WORDS: Duration = Duration::from_secs(1);

impl Workers {
    /// For a run, whose id tells its processes from others.
    pub(crate) fn new(run: &str, outputs: Sender<Message>) -> Self {
        Self { run: run.to_owned(), outputs, idle: Vec::new(), busy: Vec::new(), started: 0, unheard: Arc::default() }
    }

    /// The driver has looked at a line of a worker's, of so many bytes.
    pub(crate) fn heard(&self, bytes: usize) {
        self.unheard.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Hands a request to an idle worker of the pack that `command` starts, or to a new one. Returns the worker's number.
    pub(crate) fn send(&mut self, command: &[String], request: RunRequest) -> std::io::Result<usize> {
        let line = serde_json::to_string(&Request::Run(Box::new(request.clone())))?;
        while let Some(place) =
            self.idle.iter().position(|worker| worker.command == command && worker.gpus == request.gpus)
        {
            let mut worker = self.idle.swap_remove(place);
            let says_too_much = worker.answered.load(Ordering::SeqCst) > worker.asked;
            if says_too_much {
                tracing::warn!("`{}` answered more often than it was asked, and was ended", command.join(" "));
            }
            worker.asked += 1;
            // One that died while idle is passed over; its end is reported under its own number.
            if !says_too_much
                && matches!(worker.child.try_wait(), Ok(None))
                && worker.requests.send(line.clone()).is_ok()
            {
                let number = worker.number;
                self.busy.push(worker);
                return Ok(number);
            }
            processes::kill_group(worker.child.id());
            let _ = worker.child.wait();
        }
        let worker = self.start(command, &request.gpus)?;
        // A worker that has ended already is reported as ended.
        let _ = worker.requests.send(line);
        let number = worker.number;
        self.busy.push(worker);
        Ok(number)
    }

    /// Starts a worker that is asked at once.
    fn start(&mut self, words: &[String], gpus: &[String]) -> std::io::Result<Worker> {
        let (program, arguments) =
            words.split_first().ok_or_else(|| std::io::Error::other("the pack has no program"))?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env(processes::RUN_VARIABLE, &self.run)
            .env(orphans::JOB_VARIABLE, format!("worker {}", self.started + 1))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own: Ctrl-C in the terminal reaches the driver alone, which then stops the workers in order.
            .process_group(0)
            // An instance sees the GPUs that are leased to it and no others; without a lease, none.
            // By slot, as the driver's tools count them: CUDA would put the fastest first.
            .env("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
            .env("CUDA_VISIBLE_DEVICES", gpus.join(","));
        let mut child = command.spawn()?;
        self.started += 1;
        let number = self.started;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = (stdin, stdout, stderr) else {
            return Err(std::io::Error::other("the worker's standard streams are not there"));
        };
        let pid = child.id();
        let requests = written_to(stdin, pid);
        let say = {
            let (outputs, unheard) = (self.outputs.clone(), self.unheard.clone());
            move |bytes: usize, message| {
                while unheard.load(Ordering::Relaxed) > MOST_UNHEARD {
                    thread::sleep(Duration::from_millis(1));
                }
                unheard.fetch_add(bytes, Ordering::Relaxed);
                outputs.send(message).is_ok()
            }
        };
        // Dropped when both streams have been read to their ends.
        let (reading, read) = channel::<()>();
        let answered: Arc<AtomicUsize> = Arc::default();
        let answers = answered.clone();
        thread::spawn(move || {
            let take = |heard, bytes| {
                let message = match heard {
                    Heard::Reply(reply) => {
                        answers.fetch_add(usize::from(reply.is_last()), Ordering::SeqCst);
                        Message::Reply(number, *reply, bytes)
                    }
                    Heard::Line(line) => Message::Line(number, line),
                };
                say(bytes, message)
            };
            streams::listen(stdout.into(), stderr.into(), take, || end_soon(pid));
            drop(reading);
        });
        let (outputs, run) = (self.outputs.clone(), self.run.clone());
        thread::spawn(move || {
            processes::wait_for_end(pid, None);
            processes::kill_group(pid);
            orphans::end_those_of(&run, Some(&format!("worker {number}")));
            // What it said last belongs in front of its end.
            let _ = read.recv_timeout(LAST_WORDS);
            let _ = outputs.send(Message::Ended(number));
        });
        Ok(Worker { number, child, requests, command: words.to_vec(), gpus: gpus.to_vec(), asked: 1, answered })
    }

    /// A worker has answered: it may take the next request. One that has GPUs is ended, as it would go on to occupy their memory
    /// while nobody holds a lease on them.
    pub(crate) fn release(&mut self, number: usize) {
        let Some(place) = self.busy.iter().position(|worker| worker.number == number) else { return };
        let mut worker = self.busy.swap_remove(place);
        if worker.gpus.is_empty() {
            self.idle.push(worker);
        } else {
            processes::kill_group(worker.child.id());
            let _ = worker.child.wait();
        }
    }

    /// A worker has ended. Returns how, if it was at work.
    pub(crate) fn ended(&mut self, number: usize) -> Option<ExitStatus> {
        self.idle.retain_mut(|worker| worker.number != number || worker.child.wait().is_err());
        let place = self.busy.iter().position(|worker| worker.number == number)?;
        let mut worker = self.busy.swap_remove(place);
        worker.child.wait().ok()
    }

    /// Ends one worker and everything that it started; that it ended is reported as of any other.
    pub(crate) fn kill_one(&mut self, number: usize) {
        if let Some(worker) = self.busy.iter().find(|worker| worker.number == number) {
            processes::kill_group(worker.child.id());
        }
    }

    /// Ends every worker at once.
    pub(crate) fn kill(&mut self) {
        self.busy.iter().chain(&self.idle).for_each(|worker| processes::kill_group(worker.child.id()));
        for mut worker in self.busy.drain(..).chain(self.idle.drain(..)) {
            let _ = worker.child.wait();
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A thread that writes lines to a worker for as long as somebody has more for it.
fn written_to(mut stdin: ChildStdin, pid: u32) -> Sender<String> {
    let (requests, lines) = channel::<String>();
    thread::spawn(move || {
        for line in lines {
            // A worker that hears nothing more is none, whether it lives or not; its end is reported.
            if writeln!(stdin, "{line}").is_err() {
                processes::kill_group(pid);
                return;
            }
        }
    });
    requests
}

/// Ends a worker that can answer no more, whatever else it does.
fn end_soon(pid: u32) {
    thread::spawn(move || {
        if !processes::wait_for_end(pid, Some(LAST_WORDS)) {
            processes::kill_group(pid);
        }
    });
}
