//! CPU slots as the working threads see them: a command waits for its slots with everything in place, so that it starts the moment
//! that another ends, without a way round by the driver. Who was let in first starts first.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Slots that are free, and who waits for some.
#[derive(Debug)]
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// Below 0 for a moment where slots were counted free elsewhere first.
    free: isize,
    /// Numbers of jobs.
    waiting: BTreeSet<u64>,
}

impl Gate {
    pub(crate) fn new(slots: usize) -> Self {
        Self { state: Mutex::new(State { free: slots as isize, waiting: BTreeSet::new() }), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for slots, behind those with a lower number, and takes them.
    pub(crate) fn wait(&self, number: u64, slots: usize) {
        let mut state = self.lock();
        state.waiting.insert(number);
        let not_yet = |state: &mut State| state.free < slots as isize || state.waiting.first() != Some(&number);
        state = self.changed.wait_while(state, not_yet).unwrap_or_else(PoisonError::into_inner);
        state.waiting.remove(&number);
        state.free -= slots as isize;
        drop(state);
        // The next one may fit as well.
        self.changed.notify_all();
    }

    /// Takes slots that are free.
    pub(crate) fn take(&self, slots: usize) {
        self.lock().free -= slots as isize;
    }

    pub(crate) fn give(&self, slots: usize) {
        self.lock().free += slots as isize;
        self.changed.notify_all();
    }
}
