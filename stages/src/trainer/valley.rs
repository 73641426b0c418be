//! SWAD (Cha et al., NeurIPS 2021, algorithm 1): the mean of the weights of every step from where the validation loss reaches its
//! valley to where it leaves it.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::checkpoint::Tensors;
use crate::method::contract::ValleyRule;
use crate::segmenter::Averaged;

/// A running mean of weights.
#[derive(Default)]
struct Mean {
    count: f64,
    weights: Tensors,
}

impl Mean {
    /// Takes in the mean of `count` more.
    fn add(&mut self, weights: &Tensors, count: f64) {
        self.count += count;
        let share = count / self.count;
        for (name, new) in weights {
            // In 32 bits, as a checkpoint keeps it: an interruption must not round.
            let new = new.detach().to_kind(Kind::Float);
            let next = match self.weights.get(name) {
                None => new.copy(),
                Some(mean) => mean + (new - mean) * share,
            };
            self.weights.insert(name.clone(), next);
        }
    }
}

/// The steps between two validations.
struct Segment {
    loss: f64,
    mean: Mean,
}

/// Where the search stands, tensors left out.
#[derive(Serialize, Deserialize)]
pub struct ValleyState {
    threshold: Option<f64>,
    left: bool,
    included: f64,
    running: f64,
    recent: Vec<(f64, f64)>,
    pending: usize,
}

/// The search for the valley, and the mean over it.
pub struct Valley {
    rule: ValleyRule,
    /// The steps since the last validation.
    running: Mean,
    /// The last segments, the latest last; as many as the rule looks back on.
    recent: VecDeque<Segment>,
    /// Of those, so many at the end are in the valley and not yet in the mean.
    pending: usize,
    included: Mean,
    /// Known from where the valley begins.
    threshold: Option<f64>,
    left: bool,
}

impl Valley {
    /// In front of the first step.
    pub fn new(rule: ValleyRule) -> Self {
        Self {
            rule,
            running: Mean::default(),
            recent: VecDeque::new(),
            pending: 0,
            included: Mean::default(),
            threshold: None,
            left: false,
        }
    }

    /// Takes in the weights behind a step.
    pub fn step(&mut self, weights: &Tensors) {
        if !self.left {
            self.running.add(weights, 1.0);
        }
    }

    /// Takes in the validation loss behind the steps since the last one.
    pub fn validated(&mut self, loss: f64) {
        if self.left || self.running.count == 0.0 {
            return;
        }
        let ValleyRule { converge, tolerance, ratio } = self.rule;
        self.recent.push_back(Segment { loss, mean: std::mem::take(&mut self.running) });
        let last = |count: usize| self.recent.iter().rev().take(count).map(|segment| segment.loss);
        let least = |count: usize| last(count).fold(f64::INFINITY, f64::min);
        match self.threshold {
            None => {
                let first = last(converge).nth(converge - 1);
                if first.is_some_and(|first| first <= least(converge)) {
                    self.threshold = Some(ratio * last(converge).sum::<f64>() / converge as f64);
                    self.pending = converge;
                }
            }
            Some(threshold) => {
                self.pending += 1;
                self.left = self.recent.len() >= tolerance && least(tolerance) > threshold;
                if self.left {
                    // The last `tolerance` segments lie behind the valley.
                    self.pending = self.pending.saturating_sub(tolerance);
                    self.recent.truncate(self.recent.len() - tolerance);
                    self.include(self.pending);
                }
            }
        }
        // A segment that no later losses can shut out any more is in the mean.
        self.include(self.pending.saturating_sub(tolerance));
        let looked_at = converge.max(tolerance);
        while self.recent.len() > looked_at && self.recent.len() > self.pending {
            self.recent.pop_front();
        }
    }

    /// Puts the oldest pending segments into the mean.
    fn include(&mut self, count: usize) {
        let first = self.recent.len() - self.pending;
        for segment in self.recent.iter().skip(first).take(count) {
            self.included.add(&segment.mean.weights, segment.mean.count);
        }
        self.pending -= count;
    }

    /// The mean over the valley, of the kinds of `like`, and whether there was one: else it is that of the last segment, as in the
    /// authors' code. None without any step.
    pub fn mean(mut self, like: &Tensors) -> Option<(Tensors, Averaged)> {
        let averaged = if self.threshold.is_some() { Averaged::Valley } else { Averaged::LastEpoch };
        match self.threshold {
            // Training ended within the valley: what follows a last good loss is left out.
            Some(threshold) => {
                let pending = self.recent.iter().rev().take(self.pending);
                let behind = pending.take_while(|segment| segment.loss > threshold).count();
                self.include(self.pending - behind);
            }
            None => self.included = self.recent.pop_back()?.mean,
        }
        let kind = |(name, mean): (String, Tensor)| {
            let kind = like.get(&name).map_or(Kind::Float, Tensor::kind);
            (name, mean.to_kind(kind))
        };
        (self.included.count > 0.0).then(|| (self.included.weights.into_iter().map(kind).collect(), averaged))
    }

    /// What a checkpoint must hold.
    pub fn state(&self) -> (ValleyState, Tensors) {
        let state = ValleyState {
            threshold: self.threshold,
            left: self.left,
            included: self.included.count,
            running: self.running.count,
            recent: self.recent.iter().map(|segment| (segment.loss, segment.mean.count)).collect(),
            pending: self.pending,
        };
        let mut all = Tensors::new();
        let mut put = |prefix: String, mean: &Mean| {
            all.extend(mean.weights.iter().map(|(name, t)| (format!("{prefix}.{name}"), t.copy())));
        };
        put("included".into(), &self.included);
        put("running".into(), &self.running);
        self.recent.iter().enumerate().for_each(|(place, segment)| put(format!("recent-{place}"), &segment.mean));
        (state, all)
    }

    /// Takes up what [`Valley::state`] gave, on the device of the model.
    pub fn take_up(&mut self, state: ValleyState, tensors: &Tensors, device: Device) {
        let mean = |prefix: String, count: f64| {
            let named = |(name, t): (&String, &Tensor)| {
                Some((name.strip_prefix(&prefix)?.strip_prefix('.')?.to_owned(), t.to_device(device)))
            };
            Mean { count, weights: tensors.iter().filter_map(named).collect() }
        };
        self.included = mean("included".into(), state.included);
        self.running = mean("running".into(), state.running);
        let segments = state.recent.iter().enumerate();
        self.recent = segments
            .map(|(place, (loss, count))| Segment { loss: *loss, mean: mean(format!("recent-{place}"), *count) })
            .collect();
        (self.threshold, self.left, self.pending) = (state.threshold, state.left, state.pending);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One step a validation, its weight the step's number: the mean names the steps that were in it.
    fn mean_of(losses: &[f64], interrupted_at: Option<usize>) -> f64 {
        let rule = ValleyRule { converge: 3, tolerance: 2, ratio: 1.3 };
        let mut valley = Valley::new(rule);
        let weights = |value: f64| Tensors::from([("w".to_owned(), Tensor::from(value).to_kind(Kind::Float))]);
        for (place, loss) in losses.iter().enumerate() {
            if interrupted_at == Some(place) {
                let (state, tensors) = valley.state();
                let text = serde_json::to_string(&state).unwrap();
                valley = Valley::new(rule);
                valley.take_up(serde_json::from_str(&text).unwrap(), &tensors, Device::Cpu);
            }
            valley.step(&weights(place as f64));
            valley.validated(*loss);
        }
        valley.mean(&weights(0.0)).unwrap().0["w"].double_value(&[])
    }

    #[test]
    fn it_begins_at_the_least_loss_and_ends_before_losses_that_stay_high() {
        // 2 is the least of three; the threshold is 1.3 times the mean of 1, 1.2, 1.1: losses of 9 are behind the valley.
        let losses = [5.0, 3.0, 1.0, 1.2, 1.1, 1.2, 9.0, 9.0, 1.0, 1.0];
        assert_eq!(mean_of(&losses, None), (2.0 + 3.0 + 4.0 + 5.0) / 4.0);
        // One high loss alone is tolerated; one at the very end is not waited for.
        assert_eq!(mean_of(&[1.0, 1.1, 1.2, 9.0, 1.1, 9.0], None), (0.0 + 1.0 + 2.0 + 3.0 + 4.0) / 5.0);
        // Losses that only fall have no valley: the last weights.
        assert_eq!(mean_of(&[5.0, 4.0, 3.0, 2.0], None), 3.0);
    }

    #[test]
    fn an_interruption_changes_nothing() {
        let losses = [5.0, 3.0, 1.0, 1.2, 1.1, 1.2, 9.0, 9.0, 1.0, 1.0];
        for place in 0..losses.len() {
            assert_eq!(mean_of(&losses, Some(place)), mean_of(&losses, None), "{place}");
        }
    }
}
