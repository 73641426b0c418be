//! What the driver hears from workers, commands and the committing thread.

use super::*;
use crate::executor::command::how_it_ended;
use crate::printable::{on_one_line, printable};
use crate::protocol::Reply;

impl Driver<'_, '_, '_> {
    /// Commands that have got their slots and begun.
    pub(super) fn begun(&mut self) {
        for (number, when) in self.gate.begun() {
            if let Some(job) = self.jobs.get_mut(&number) {
                job.started = Instant::now() - when.elapsed().unwrap_or_default();
                job.started_ms = names::ms(when);
                let instance = self.planner.graph.dag[job.node].name.clone();
                (self.tell)(Event::Started { instance });
            }
        }
    }

    pub(super) fn listen(&mut self, message: Message) -> Result<(), StoreError> {
        self.begun();
        match message {
            Message::Line(worker, line) => {
                self.workers.heard(line.len());
                if let Some(log) = self.job_of(worker).and_then(|job| job.log.as_mut()) {
                    log.line(&line);
                }
                Ok(())
            }
            Message::Ended(worker) => self.worker_ended(worker),
            Message::Reply(worker, reply, bytes) => {
                self.workers.heard(bytes);
                match self.by_worker.get(&worker).copied() {
                    Some(number) => self.replied(number, worker, reply),
                    None => Ok(()),
                }
            }
            Message::Said(number, reply) => {
                self.said(number, reply);
                Ok(())
            }
            Message::Freed(number) => {
                if let Some(held) = self.jobs.get_mut(&number).map(|job| std::mem::take(&mut job.held)) {
                    self.give(held);
                }
                Ok(())
            }
            Message::Made(number, made) => self.made(number, made),
            Message::Committed(committed) => self.committed(committed),
        }
    }

    /// A worker's instance does not hold its resources any more.
    pub(super) fn release(&mut self, held: Held) {
        self.gate.give(held.cpu);
        self.give(held);
    }

    /// Gives resources back, leases on GPUs included.
    pub(super) fn give(&mut self, held: Held) {
        self.gpu_leases.give(&held.gpus);
        self.pool.give(held);
    }

    fn job_of(&mut self, worker: usize) -> Option<&mut Job> {
        let number = self.by_worker.get(&worker)?;
        self.jobs.get_mut(number)
    }

    fn worker_ended(&mut self, worker: usize) -> Result<(), StoreError> {
        let status = self.workers.ended(worker);
        let Some(job) = self.by_worker.remove(&worker).and_then(|number| self.jobs.remove(&number)) else {
            return Ok(());
        };
        self.release(job.held);
        let how = status.map_or_else(|| "it ended in an unknown way".to_owned(), how_it_ended);
        let message = job.ended_because.unwrap_or_else(|| format!("its worker died: {how}"));
        self.attempt_failed(job.node, Failure::new(message), Some(job.log_path))
    }

    fn replied(&mut self, number: u64, worker: usize, reply: Reply) -> Result<(), StoreError> {
        if let Reply::Done { instance: Some(told), .. } | Reply::Failed { instance: Some(told), .. } = &reply
            && let Some(job) = self.jobs.get_mut(&number)
            && *told != self.planner.graph.dag[job.node].name
        {
            let told = on_one_line(told);
            job.ended_because =
                Some(format!("its pack answered for `{told}` while it was at work on this; it was ended"));
            self.workers.kill_one(worker);
            return Ok(());
        }
        match reply {
            Reply::Done { environment, .. } => {
                self.by_worker.remove(&worker);
                self.workers.release(worker);
                let held = self.jobs.get_mut(&number).map(|job| {
                    job.worker = None;
                    let plain = |(name, value): (String, String)| (on_one_line(&name), on_one_line(&value));
                    job.environment = environment.into_iter().map(plain).collect();
                    std::mem::take(&mut job.held)
                });
                if let Some(held) = held {
                    self.release(held);
                }
                self.collect(number);
                Ok(())
            }
            Reply::Failed { message, .. } => {
                self.by_worker.remove(&worker);
                self.workers.release(worker);
                let Some(mut job) = self.jobs.remove(&number) else { return Ok(()) };
                let failure = Failure::new(message);
                if let Some(log) = &mut job.log {
                    log.note(&format!("failed: {}", failure.message));
                }
                self.release(job.held);
                self.attempt_failed(job.node, failure, Some(job.log_path))
            }
            other => {
                self.said(number, other);
                Ok(())
            }
        }
    }

    /// Progress, metrics, lines.
    fn said(&mut self, number: u64, reply: Reply) {
        let Some(job) = self.jobs.get_mut(&number) else { return };
        let instance = self.planner.graph.dag[job.node].name.clone();
        match reply {
            Reply::Progress { done, total, unit } => {
                (self.tell)(Event::Progress { instance, done, total, unit: on_one_line(&unit) });
            }
            Reply::Metric { name, value } => {
                job.metrics.insert(on_one_line(&name), value);
            }
            Reply::Log { warning, text } => {
                if let Some(log) = &mut job.log {
                    log.line(&format!("{}{text}", if warning { "warning: " } else { "" }));
                }
                if warning {
                    (self.tell)(Event::Warning { instance, text: printable(&text) });
                }
            }
            _ => {}
        }
    }
}
