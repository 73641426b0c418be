//! CPU slots as the working threads see them: a command waits for its slots with everything in place, and whoever gives slots
//! free starts it, then and there: neither the driver nor another thread has to wake up first. Who was let in first starts first.

use std::collections::BTreeMap;
use std::sync::mpsc::channel;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// Slots that are free, and who waits for some.
#[derive(Debug)]
pub(crate) struct Gate {
    state: Mutex<State>,
}

struct State {
    /// Below 0 for a moment where slots were counted free elsewhere first.
    free: isize,
    /// By the number of the job.
    waiting: BTreeMap<u64, Waiting>,
    /// Who was let in since the driver last asked. It need not wake up for this.
    begun: Vec<(u64, SystemTime)>,
}

/// What waits: the slots that it takes, and its start.
struct Waiting {
    slots: usize,
    start: Box<dyn FnOnce() + Send>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} free, waiting: {:?}", self.free, self.waiting.keys())
    }
}

impl Gate {
    pub(crate) fn new(slots: usize) -> Self {
        Self { state: Mutex::new(State { free: slots as isize, waiting: BTreeMap::new(), begun: Vec::new() }) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has `start` called once it has its slots, behind those with a lower number, and returns what it returned. It is called
    /// by whichever thread gives the slots, so it starts something and does not wait for its end.
    pub(crate) fn start<T: Send + 'static>(
        &self,
        number: u64,
        slots: usize,
        start: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let (sender, started) = channel();
        let start = Box::new(move || {
            let _ = sender.send(start());
        });
        self.lock().waiting.insert(number, Waiting { slots, start });
        self.let_in();
        started.recv().expect("whoever waits at the gate is let in")
    }

    /// Takes slots that are free.
    pub(crate) fn take(&self, slots: usize) {
        self.lock().free -= slots as isize;
    }

    pub(crate) fn give(&self, slots: usize) {
        self.lock().free += slots as isize;
        self.let_in();
    }

    /// Who was let in since the last call, and when.
    pub(crate) fn begun(&self) -> Vec<(u64, SystemTime)> {
        std::mem::take(&mut self.lock().begun)
    }

    fn let_in(&self) {
        loop {
            let mut state = self.lock();
            let free = state.free;
            let Some(first) = state.waiting.first_entry().filter(|entry| entry.get().slots as isize <= free) else {
                return;
            };
            let (number, Waiting { slots, start }) = first.remove_entry();
            state.free -= slots as isize;
            state.begun.push((number, SystemTime::now()));
            drop(state);
            start();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn never_more_at_once_than_slots_and_all_get_in() {
        let gate = Arc::new(Gate::new(3));
        let (inside, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        std::thread::scope(|scope| {
            for number in 0..64_u64 {
                let (gate, inside, most) = (gate.clone(), inside.clone(), most.clone());
                scope.spawn(move || {
                    let slots = 1 + (number % 3) as usize;
                    let entered = inside.clone();
                    let seen = gate.start(number, slots, move || entered.fetch_add(slots, Ordering::SeqCst) + slots);
                    most.fetch_max(seen, Ordering::SeqCst);
                    std::thread::yield_now();
                    inside.fetch_sub(slots, Ordering::SeqCst);
                    gate.give(slots);
                });
            }
        });
        assert!((1..=3).contains(&most.load(Ordering::SeqCst)));
        let state = gate.lock();
        assert_eq!((state.free, state.waiting.len()), (3, 0));
    }

    #[test]
    fn a_large_one_that_came_first_is_not_overtaken() {
        let gate = Arc::new(Gate::new(2));
        gate.take(1);
        let order = Arc::new(Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for (number, slots) in [(1, 2), (2, 1)] {
                let (gate, order) = (gate.clone(), order.clone());
                let waiting = move |gate: &Gate| gate.lock().waiting.len();
                let before = number as usize - 1;
                let here = gate.clone();
                scope.spawn(move || {
                    here.start(number, slots, move || order.lock().unwrap().push(number));
                    here.give(slots);
                });
                while waiting(&gate) <= before {
                    std::thread::yield_now();
                }
            }
            gate.give(1);
        });
        assert_eq!(*order.lock().unwrap(), [1, 2]);
    }
}
