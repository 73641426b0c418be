//! The two streams of a worker. Whatever it printed to standard error before an answer is heard before that answer.
//!
//! A worker that prints and then answers expects the print in the log of that instance, and the two come through different
//! pipes; so one thread reads both, and takes what standard error holds before it passes on what standard output said.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, ioctl_fionread};

use crate::protocol::Reply;

/// What a worker said.
#[derive(Debug)]
pub(super) enum Heard {
    /// A reply.
    Reply(Box<Reply>),
    /// A line for the log: of standard error, or something that is no reply.
    Line(String),
}

/// Calls `take` with whatever comes and its length in bytes, until it says no or both streams have ended, and `closed` once, when
/// standard output has ended or nobody listens any more. Bytes that are no UTF-8 are replaced, and a line without end is cut.
pub(super) fn listen(
    stdout: OwnedFd,
    stderr: OwnedFd,
    mut take: impl FnMut(Heard, usize) -> bool,
    closed: impl FnOnce(),
) {
    let (mut out, mut err) = (Lines::of(stdout), Lines::of(stderr));
    let mut closed = Some(closed);
    let mut buffer = vec![0; 64 << 10];
    while let Ok((answers, prints)) = ready(&out, &err) {
        let said = if answers { out.read(&mut buffer, usize::MAX) } else { Vec::new() };
        let mut printed = if prints { err.read(&mut buffer, usize::MAX) } else { Vec::new() };
        printed.append(&mut err.read_what_is_there(&mut buffer));
        let mut heard: Vec<(Heard, usize)> = printed.into_iter().map(line).collect();
        for text in said {
            let bytes = text.len();
            match serde_json::from_str::<Reply>(&text) {
                Ok(reply) => {
                    // The instance ends here, and a line that it did not end is its own all the same.
                    if reply.is_last() && !err.begun.is_empty() {
                        heard.push(line(err.line()));
                    }
                    heard.push((Heard::Reply(Box::new(reply)), bytes));
                }
                Err(_) => heard.push(line(text)),
            }
        }
        let goes_on = heard.into_iter().all(|(heard, bytes)| take(heard, bytes));
        if out.file.is_none()
            && let Some(closed) = closed.take()
        {
            closed();
        }
        if !goes_on || out.file.is_none() && err.file.is_none() {
            break;
        }
    }
    if let Some(closed) = closed.take() {
        closed();
    }
}

fn line(text: String) -> (Heard, usize) {
    let bytes = text.len();
    (Heard::Line(text), bytes)
}

/// Waits until there is something to read. Which of the two have it.
fn ready(out: &Lines, err: &Lines) -> Result<(bool, bool), Errno> {
    let watched = |lines: &Lines| lines.file.is_some();
    loop {
        let files = out.file.iter().chain(&err.file);
        let mut fds: Vec<PollFd> = files.map(|file| PollFd::new(file, PollFlags::IN)).collect();
        match poll(&mut fds, None) {
            Err(Errno::INTR) => continue,
            Err(e) => return Err(e),
            Ok(_) => {}
        }
        let mut happened = fds.iter().map(|fd| !fd.revents().is_empty());
        let mut next = |watched| watched && happened.next().unwrap_or(false);
        return Ok((next(watched(out)), next(watched(err))));
    }
}

/// A stream that is read line by line; none once it has ended.
struct Lines {
    file: Option<File>,
    /// The beginning of a line whose end has not come.
    begun: Vec<u8>,
}

impl Lines {
    /// A reply with the description of a whole pack is far below this.
    const LONGEST: usize = 1 << 20;

    fn of(stream: OwnedFd) -> Self {
        Self { file: Some(stream.into()), begun: Vec::new() }
    }

    /// Reads once, `most` bytes at most. The lines that have come to their end.
    fn read(&mut self, buffer: &mut [u8], most: usize) -> Vec<String> {
        let Some(file) = &mut self.file else { return Vec::new() };
        let most = most.min(buffer.len());
        let mut lines = Vec::new();
        match file.read(&mut buffer[..most]) {
            Ok(read) if read > 0 => {
                for part in buffer[..read].split_inclusive(|byte| *byte == b'\n') {
                    self.begun.extend_from_slice(part);
                    if part.ends_with(b"\n") || self.begun.len() >= Self::LONGEST {
                        lines.push(self.line());
                    }
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            _ => {
                self.file = None;
                if !self.begun.is_empty() {
                    lines.push(self.line());
                }
            }
        }
        lines
    }

    /// Reads what the pipe holds at this moment and no more: the worker may go on printing.
    fn read_what_is_there(&mut self, buffer: &mut [u8]) -> Vec<String> {
        let there = self.file.as_ref().and_then(|file| ioctl_fionread(file).ok()).unwrap_or(0);
        let mut left = usize::try_from(there).unwrap_or(0);
        let mut lines = Vec::new();
        while left > 0 && self.file.is_some() {
            let most = left.min(buffer.len());
            lines.append(&mut self.read(buffer, most));
            left -= most;
        }
        lines
    }

    fn line(&mut self) -> String {
        let line = String::from_utf8_lossy(&self.begun).trim_end().to_owned();
        self.begun.clear();
        line
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Whatever was printed before an answer comes before it, while both are written.
    #[test]
    fn what_is_printed_comes_before_the_answer_that_followed_it() {
        const ROUNDS: usize = 20_000;
        let (out, mut answer) = std::io::pipe().unwrap();
        let (err, mut print) = std::io::pipe().unwrap();
        let writer = std::thread::spawn(move || {
            for round in 0..ROUNDS {
                print.write_all(format!("printed {round}\n").as_bytes()).unwrap();
                answer.write_all(format!("answered {round}\n").as_bytes()).unwrap();
            }
            print.write_all(b"\xff without end").unwrap();
            answer.write_all(b"{\"reply\": \"failed\", \"message\": \"no\"}\nthe last").unwrap();
        });
        let (mut printed, mut answered, mut closed) = (0, 0, 0);
        let mut last = Vec::new();
        let take = |heard, _| {
            match heard {
                Heard::Line(line) if line.contains("printed") => printed += 1,
                Heard::Line(line) if line.starts_with("answered") => {
                    answered += 1;
                    assert!(printed >= answered, "{line} came before what was printed in front of it");
                }
                other => last.push(format!("{other:?}")),
            }
            true
        };
        listen(out.into(), err.into(), take, || closed += 1);
        writer.join().unwrap();
        assert_eq!((printed, answered, closed), (ROUNDS, ROUNDS, 1));
        assert_eq!(last.len(), 3, "{last:?}");
        assert!(last[0].contains("\u{fffd} without end") && last[1].contains("Failed"), "{last:?}");
        assert!(last[2].contains("the last"), "{last:?}");
    }

    /// Answers come while the other stream is open and silent, and a line without end comes in parts.
    #[test]
    fn a_silent_stream_holds_up_nobody_and_a_line_without_end_is_cut() {
        let (out, mut answer) = std::io::pipe().unwrap();
        let (err, print) = std::io::pipe().unwrap();
        let writer = std::thread::spawn(move || {
            answer.write_all(&vec![b'x'; Lines::LONGEST + 100_000]).unwrap();
            drop(answer);
        });
        let (said, hears) = std::sync::mpsc::channel();
        let reader = std::thread::spawn(move || {
            listen(out.into(), err.into(), |_, bytes| said.send(bytes).is_ok(), || {});
        });
        let parts: Vec<usize> = hears.iter().take(2).collect();
        assert_eq!(parts.iter().sum::<usize>(), Lines::LONGEST + 100_000);
        drop(print);
        writer.join().unwrap();
        reader.join().unwrap();
    }
}
