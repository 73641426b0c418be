//! Threads that carry out what blocks: kept for the next task, as a thread costs more than many a command.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

type Task = Box<dyn FnOnce() + Send>;

/// As many threads as there were ever tasks at once.
pub(crate) struct Crew {
    tasks: Sender<Task>,
    waiting: Arc<Mutex<Receiver<Task>>>,
    idle: Arc<AtomicUsize>,
}

impl Crew {
    pub(crate) fn new() -> Self {
        let (tasks, waiting) = channel();
        Self { tasks, waiting: Arc::new(Mutex::new(waiting)), idle: Arc::default() }
    }

    /// Has a task carried out, by an idle thread or a new one.
    pub(crate) fn carry_out(&self, task: impl FnOnce() + Send + 'static) {
        let take_one = |idle: usize| idle.checked_sub(1);
        if self.idle.fetch_update(Ordering::AcqRel, Ordering::Acquire, take_one).is_err() {
            let (waiting, idle) = (self.waiting.clone(), self.idle.clone());
            std::thread::spawn(move || {
                loop {
                    let task = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(task) = task else { return };
                    task();
                    idle.fetch_add(1, Ordering::AcqRel);
                }
            });
        }
        // The receiver lives as long as the crew.
        let _ = self.tasks.send(Box::new(task));
    }
}
