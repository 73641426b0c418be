//! CPU slots as the working threads see them: a command waits for its slots with everything in place, so that it starts the moment
//! that another ends, without a way round by the driver.

use std::sync::{Condvar, Mutex, PoisonError};

/// Slots that are free.
#[derive(Debug)]
pub(crate) struct Gate {
    free: Mutex<usize>,
    changed: Condvar,
}

impl Gate {
    pub(crate) fn new(slots: usize) -> Self {
        Self { free: Mutex::new(slots), changed: Condvar::new() }
    }

    /// Waits for slots and takes them.
    pub(crate) fn take(&self, slots: usize) {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let enough = |free: &mut usize| *free < slots;
        *self.changed.wait_while(free, enough).unwrap_or_else(PoisonError::into_inner) -= slots;
    }

    pub(crate) fn give(&self, slots: usize) {
        *self.free.lock().unwrap_or_else(PoisonError::into_inner) += slots;
        self.changed.notify_all();
    }
}
