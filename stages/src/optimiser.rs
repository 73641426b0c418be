//! AdamW (Loshchilov and Hutter 2019, algorithm 2) with its state in plain tensors, so that training can be interrupted between
//! any two steps and go on with the same bits.

use std::collections::BTreeMap;

use tch::{Kind, Tensor, nn};

use crate::checkpoint::Tensors;

/// Decay rates of the two moments.
const BETAS: (f64, f64) = (0.9, 0.999);
/// Added to the denominator.
const EPS: f64 = 1e-8;

/// A trainable variable with its moments.
struct Variable {
    name: String,
    value: Tensor,
    first: Tensor,
    second: Tensor,
}

/// The optimiser of a model's trainable variables.
pub struct AdamW {
    variables: Vec<Variable>,
    weight_decay: f64,
    steps: i32,
}

impl AdamW {
    /// With moments of zero, for every variable that is trained.
    pub fn new(store: &nn::VarStore, weight_decay: f64) -> Self {
        let named: BTreeMap<String, Tensor> =
            store.variables().into_iter().filter(|(_, t)| t.requires_grad()).collect();
        let variable = |(name, value): (String, Tensor)| Variable {
            first: value.zeros_like().detach(),
            second: value.zeros_like().detach(),
            name,
            value,
        };
        Self { variables: named.into_iter().map(variable).collect(), weight_decay, steps: 0 }
    }

    /// One step down the gradient of `loss`, which is scaled to the Euclidean norm `clip_norm` where it is longer; 0 leaves it.
    pub fn step(&mut self, loss: &Tensor, lr: f64, clip_norm: f64) {
        self.variables.iter_mut().for_each(|variable| variable.value.zero_grad());
        loss.backward();
        self.steps += 1;
        tch::no_grad(|| {
            let scale = self.clip_factor(clip_norm);
            let (bias1, bias2) = (1.0 - BETAS.0.powi(self.steps), 1.0 - BETAS.1.powi(self.steps));
            for variable in &mut self.variables {
                let gradient = variable.value.grad();
                if !gradient.defined() {
                    continue;
                }
                let gradient = scale.as_ref().map_or_else(|| gradient.shallow_clone(), |scale| &gradient * scale);
                variable.first = &variable.first * BETAS.0 + &gradient * (1.0 - BETAS.0);
                variable.second = &variable.second * BETAS.1 + gradient.square() * (1.0 - BETAS.1);
                let denominator = variable.second.sqrt() / bias2.sqrt() + EPS;
                let _ = variable.value.g_mul_scalar_(1.0 - lr * self.weight_decay);
                let change = &variable.first / denominator * (lr / bias1);
                let _ = variable.value.g_sub_(&change);
            }
        });
    }

    /// What gradients are multiplied by, if they are longer than allowed.
    fn clip_factor(&self, clip_norm: f64) -> Option<Tensor> {
        if clip_norm <= 0.0 {
            return None;
        }
        let squares: Vec<Tensor> = self
            .variables
            .iter()
            .map(|variable| variable.value.grad())
            .filter(Tensor::defined)
            .map(|gradient| gradient.square().sum(Kind::Float))
            .collect();
        let norm = Tensor::stack(&squares, 0).sum(Kind::Float).sqrt();
        Some((clip_norm / (norm + 1e-6)).clamp_max(1.0))
    }

    /// Its moments, named by variable, and the steps that were made.
    pub fn state(&self) -> (Tensors, i32) {
        let moments = self.variables.iter().flat_map(|variable| {
            let copy = |kind: &str, tensor: &Tensor| (format!("{kind}.{}", variable.name), tensor.copy());
            [copy("first", &variable.first), copy("second", &variable.second)]
        });
        (moments.collect(), self.steps)
    }

    /// Takes up what [`AdamW::state`] gave. Returns whether all of it was there.
    pub fn take_up(&mut self, state: &Tensors, steps: i32) -> bool {
        self.steps = steps;
        self.variables.iter_mut().all(|variable| {
            let find = |kind: &str| state.get(&format!("{kind}.{}", variable.name));
            let (Some(first), Some(second)) = (find("first"), find("second")) else { return false };
            let device = variable.value.device();
            (variable.first, variable.second) = (first.to_device(device), second.to_device(device));
            true
        })
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, nn::OptimizerConfig};

    use super::*;

    /// Two steps on a small problem, by this optimiser or by libtorch's own.
    fn trained(own: bool, clip: f64) -> Vec<f32> {
        tch::manual_seed(5);
        let store = nn::VarStore::new(Device::Cpu);
        let layer = nn::linear(store.root() / "layer", 6, 3, nn::LinearConfig::default());
        let (x, y) =
            (Tensor::randn([20, 6], (Kind::Float, Device::Cpu)), Tensor::randn([20, 3], (Kind::Float, Device::Cpu)));
        let mut adam = AdamW::new(&store, 0.05);
        let mut theirs = nn::AdamW { wd: 0.05, ..Default::default() }.build(&store, 0.01).unwrap();
        for _ in 0..25 {
            let loss = (x.apply(&layer) - &y).square().mean(Kind::Float) * 30;
            match (own, clip > 0.0) {
                (true, _) => adam.step(&loss, 0.01, clip),
                (false, true) => theirs.backward_step_clip_norm(&loss, clip),
                (false, false) => theirs.backward_step(&loss),
            }
        }
        let flat = Tensor::cat(&[layer.ws.view(-1), layer.bs.unwrap().view(-1)], 0);
        Vec::<f32>::try_from(flat.detach()).unwrap()
    }

    #[test]
    fn steps_are_those_of_libtorch() {
        for clip in [0.0, 0.5] {
            let (own, theirs) = (trained(true, clip), trained(false, clip));
            let worst = own.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-6, "clip {clip}: differs by {worst}");
        }
    }
}
