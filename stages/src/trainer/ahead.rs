//! Batches, each prepared while the step before it is still at work.

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::Device;

use super::batch::Samples;
use crate::method::contract::{Augment, Batch};
use crate::sampler::{OrderState, Sampler};

/// A batch, and where the sampler stood behind it.
pub struct Prepared {
    /// Gathered, on the device, augmented.
    pub batch: Batch,
    /// What a checkpoint behind this batch's step must hold.
    pub orders: Vec<OrderState>,
}

/// A thread that gathers and augments one batch ahead of training. What it makes depends on seed and step alone.
pub struct Ahead {
    receiver: Option<Receiver<Prepared>>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread works with.
pub struct Supply {
    /// The training sites' samples.
    pub samples: Vec<Samples>,
    /// Draws samples.
    pub sampler: Sampler,
    /// What the method does to a training batch.
    pub augment: Option<Box<dyn Augment>>,
    /// Seed of what augmentations draw.
    pub seed: u64,
    /// Where batches go.
    pub device: Device,
}

impl Ahead {
    /// Prepares the batches of the steps from `from` to before `until`.
    pub fn start(mut supply: Supply, from: usize, until: usize) -> Self {
        let (sender, receiver) = sync_channel(1);
        let thread = std::thread::spawn(move || {
            for step in from..until {
                let prepared = supply.prepare(step);
                // Whoever trains may have stopped.
                if sender.send(prepared).is_err() {
                    return;
                }
            }
        });
        Self { receiver: Some(receiver), thread: Some(thread) }
    }

    /// The batch of the next step.
    ///
    /// # Panics
    /// Where libtorch did while it was prepared, or behind the last step.
    pub fn next(&mut self) -> Prepared {
        if let Some(prepared) = self.receiver.as_ref().and_then(|receiver| receiver.recv().ok()) {
            return prepared;
        }
        match self.thread.take().map(JoinHandle::join) {
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            _ => unreachable!("there are as many batches as steps"),
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        // The thread sees that nobody waits, and ends.
        self.receiver = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Supply {
    fn prepare(&mut self, step: usize) -> Prepared {
        let chosen = self.sampler.next_batch();
        let batch = super::batch::gather(&self.samples, &chosen, self.device);
        let sites = self.samples.len() as i64;
        let batch = match &self.augment {
            None => batch,
            Some(augment) => augment.augment(batch, sites, &mut step_rng(self.seed, step)),
        };
        Prepared { batch, orders: self.sampler.state() }
    }
}

/// What is drawn in a step is its own: a training that was interrupted draws the same.
fn step_rng(seed: u64, step: usize) -> ChaCha8Rng {
    let name = format!("augment\0{seed}\0{step}");
    ChaCha8Rng::from_seed(*siteline_cache::Digest::of_bytes(name.as_bytes()).as_bytes())
}
