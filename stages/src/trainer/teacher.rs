//! A teacher: a running mean of the weights, for methods that hold a model to it.

use tch::Tensor;

use crate::checkpoint::{self, Tensors};
use crate::segmenter::Segmenter;

/// The running mean of a model's trained variables (Tarvainen and Valpola, NeurIPS 2017).
pub struct Teacher {
    momentum: f64,
    weights: Tensors,
}

impl Teacher {
    /// Starts as the model is.
    pub fn new(model: &Segmenter, momentum: f64) -> Self {
        let trained = model.store.variables().into_iter().filter(|(_, variable)| variable.requires_grad());
        Self { momentum, weights: trained.map(|(name, variable)| (name, variable.copy().detach())).collect() }
    }

    /// What `forward` makes of a batch with its weights in the model, without gradients: logits (B, 2, S, S).
    pub fn logits(&self, model: &Segmenter, forward: &dyn Fn() -> Tensor) -> Tensor {
        tch::no_grad(|| {
            let variables = checkpoint::of_store(&model.store);
            let own: Tensors = self.weights.keys().map(|name| (name.clone(), variables[name].copy())).collect();
            put(&variables, &self.weights);
            let logits = forward();
            put(&variables, &own);
            logits
        })
    }

    /// Moves towards the model: m w + (1 - m) w', where m grows from 0 to the momentum, min(1 - 1/(t + 1), momentum) behind
    /// step t (which counts from 1), so that initial values are soon forgotten.
    pub fn follow(&mut self, model: &Segmenter, step: usize) {
        let momentum = self.momentum.min(1.0 - 1.0 / (step as f64 + 1.0));
        let variables = checkpoint::of_store(&model.store);
        tch::no_grad(|| {
            for (name, weight) in &mut self.weights {
                *weight = &*weight * momentum + &variables[name] * (1.0 - momentum);
            }
        });
    }

    /// Its weights, by the variables' names.
    pub fn weights(&self) -> &Tensors {
        &self.weights
    }

    /// Takes up weights, if they are of this very model. Returns whether they were.
    pub fn take_up(&mut self, weights: Tensors) -> bool {
        let fits = weights.len() == self.weights.len()
            && self.weights.iter().all(|(name, own)| weights.get(name).is_some_and(|new| new.size() == own.size()));
        if fits {
            self.weights = weights
                .into_iter()
                .map(|(name, new)| (name.clone(), new.to_device(self.weights[&name].device())))
                .collect();
        }
        fits
    }
}

fn put(variables: &Tensors, values: &Tensors) {
    for (name, value) in values {
        variables[name].shallow_clone().copy_(value);
    }
}
