//! Threads that carry out what blocks: kept for the next task, as a thread costs more than many a command.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

type Task = Box<dyn FnOnce() + Send>;

/// As many threads as there were ever tasks at once.
pub(crate) struct Crew(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    tasks: VecDeque<Task>,
    idle: usize,
    over: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries out tasks until there are to be no more.
    fn serve(&self) {
        let mut state = self.lock();
        loop {
            if let Some(task) = state.tasks.pop_front() {
                drop(state);
                task();
                state = self.lock();
                continue;
            }
            if state.over {
                return;
            }
            state.idle += 1;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }
}

impl Crew {
    pub(crate) fn new() -> Self {
        Self(Arc::default())
    }

    /// Has a task carried out, by an idle thread or a new one.
    pub(crate) fn carry_out(&self, task: impl FnOnce() + Send + 'static) {
        let mut state = self.0.lock();
        state.tasks.push_back(Box::new(task));
        if state.tasks.len() <= state.idle {
            drop(state);
            self.0.changed.notify_one();
        } else {
            drop(state);
            let shared = self.0.clone();
            std::thread::spawn(move || shared.serve());
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.0.lock().over = true;
        self.0.changed.notify_all();
    }
}
