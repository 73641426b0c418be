//! AdamW (Loshchilov and Hutter 2019, algorithm 2) with its state in plain tensors, so that training can be interrupted between
//! any two steps and go on with the same bits.

use std::collections::BTreeMap;

use tch::{Kind, Tensor, nn};

use crate::checkpoint::Tensors;

mod fused;

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
    /// Steps in which it had a gradient: a part of the model may join in later.
    steps: i32,
    /// Its value before SAM's climb.
    before: Option<Tensor>,
    /// Of the loss that was differentiated last, where it depends on this variable.
    gradient: Option<Tensor>,
}

/// What an update does to every number of a variable.
struct Change {
    /// What gradients are multiplied by.
    scale: Option<Tensor>,
    lr: f64,
    weight_decay: f64,
    /// How far the moments are from their expectation, as they began at zero.
    bias: (f64, f64),
}

/// Variables that take no part in an update. They do again when this is dropped.
pub struct Held(Vec<Tensor>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.iter().for_each(|value| drop(value.set_requires_grad(true)));
    }
}

/// The optimiser of a model's trainable variables.
pub struct AdamW {
    variables: Vec<Variable>,
    weight_decay: f64,
}

impl AdamW {
    /// With moments of zero, for every variable that is trained.
    pub fn new(store: &nn::VarStore, weight_decay: f64) -> Self {
        let named: BTreeMap<String, Tensor> =
            store.variables().into_iter().filter(|(_, t)| t.requires_grad()).collect();
        let variable = |(name, value): (String, Tensor)| Variable {
            first: value.zeros_like().detach(),
            second: value.zeros_like().detach(),
            steps: 0,
            before: None,
            gradient: None,
            name,
            value,
        };
        Self { variables: named.into_iter().map(variable).collect(), weight_decay }
    }

    /// Takes the variables whose `factor` is 0 out of what is computed next: nothing is kept for their gradients, and where nothing in
    /// front of them moves either, nothing goes back that far.
    pub fn hold(&self, factor: &dyn Fn(&str) -> f64) -> Held {
        let held = self.variables.iter().filter(|variable| factor(&variable.name) == 0.0);
        Held(held.map(|variable| variable.value.set_requires_grad(false)).collect())
    }

    /// One step down the gradient of `loss`, which is scaled to the Euclidean norm `clip_norm` where it is longer; 0 leaves it. A
    /// variable that the loss does not depend on stays as it is. `factor` is what the learning rate is multiplied by for a variable; 0 leaves it alone.
    pub fn step(&mut self, loss: &Tensor, lr: f64, clip_norm: f64, factor: &dyn Fn(&str) -> f64) {
        self.differentiate(loss);
        self.move_along(lr, clip_norm, factor);
    }

    fn differentiate(&mut self, loss: &Tensor) {
        assert!(loss.requires_grad(), "the loss depends on nothing that is trained");
        let mut moved: Vec<&mut Variable> = self.variables.iter_mut().filter(|v| v.value.requires_grad()).collect();
        if moved.is_empty() {
            return;
        }
        // Handed over as they are made: nothing is zeroed before and added to.
        let values: Vec<&Tensor> = moved.iter().map(|variable| &variable.value).collect();
        let gradients = Tensor::run_backward(&[loss], &values, false, false);
        for (variable, gradient) in moved.iter_mut().zip(gradients) {
            variable.gradient = gradient.defined().then(|| laid_out_as(&variable.value, gradient));
        }
    }

    /// SAM's first half (Foret et al., ICLR 2021, equation 2): goes up the gradient of `loss` by the distance `rho`.
    pub fn climb(&mut self, loss: &Tensor, rho: f64) {
        self.differentiate(loss);
        tch::no_grad(|| {
            let Some(norm) = self.gradient_norm(&|_| 1.0) else { return };
            for variable in &mut self.variables {
                variable.before = Some(variable.value.copy());
                if let Some(gradient) = variable.gradient.take() {
                    let _ = variable.value.g_add_(&(gradient * (rho / (&norm + 1e-12))));
                }
            }
        });
    }

    /// SAM's second half: takes the gradient of `loss`, and goes back to where it climbed from.
    pub fn descend_from_there(&mut self, loss: &Tensor) {
        self.differentiate(loss);
        tch::no_grad(|| {
            for variable in &mut self.variables {
                if let Some(before) = variable.before.take() {
                    variable.value.copy_(&before);
                }
            }
        });
    }

    /// Moves along the gradients that there are, and uses them up; as [`AdamW::step`].
    pub fn move_along(&mut self, lr: f64, clip_norm: f64, factor: &dyn Fn(&str) -> f64) {
        tch::no_grad(|| {
            let scale = self.clip_factor(clip_norm, factor);
            for variable in &mut self.variables {
                let Some(gradient) = variable.gradient.take() else { continue };
                let lr = lr * factor(&variable.name);
                if factor(&variable.name) == 0.0 {
                    continue;
                }
                variable.steps += 1;
                let bias = (1.0 - BETAS.0.powi(variable.steps), 1.0 - BETAS.1.powi(variable.steps));
                let scale = scale.as_ref().map(Tensor::shallow_clone);
                let change = Change { scale, lr, weight_decay: self.weight_decay, bias };
                let Variable { value, first, second, .. } = variable;
                if !fused::step(value, first, second, &gradient, &change) {
                    step_by_step(value, first, second, &gradient, &change);
                }
            }
        });
    }

    /// What gradients are multiplied by, if they are longer than allowed.
    fn clip_factor(&self, clip_norm: f64, factor: &dyn Fn(&str) -> f64) -> Option<Tensor> {
        if clip_norm <= 0.0 {
            return None;
        }
        Some((clip_norm / (self.gradient_norm(factor)? + 1e-6)).clamp_max(1.0))
    }

    /// Euclidean norm of the gradients of those variables that are moved; none without any.
    fn gradient_norm(&self, factor: &dyn Fn(&str) -> f64) -> Option<Tensor> {
        let moved = self.variables.iter().filter(|variable| factor(&variable.name) != 0.0);
        let squares: Vec<Tensor> = moved
            .filter_map(|variable| variable.gradient.as_ref())
            .map(|gradient| gradient.square().sum(gradient.kind()))
            .collect();
        (!squares.is_empty()).then(|| Tensor::stack(&squares, 0).sum(None::<Kind>).sqrt())
    }

    /// Its moments, and the steps of each variable, by the variables' names.
    pub fn state(&self) -> (Tensors, BTreeMap<String, i32>) {
        let moments = self.variables.iter().flat_map(|variable| {
            let copy = |kind: &str, tensor: &Tensor| (format!("{kind}.{}", variable.name), tensor.copy());
            [copy("first", &variable.first), copy("second", &variable.second)]
        });
        (moments.collect(), self.variables.iter().map(|v| (v.name.clone(), v.steps)).collect())
    }

    /// Takes up what [`AdamW::state`] gave, if all of it is there. Returns whether it was.
    pub fn take_up(&mut self, state: &Tensors, steps: &BTreeMap<String, i32>) -> bool {
        let find = |kind: &str, variable: &Variable| {
            let found = state.get(&format!("{kind}.{}", variable.name))?;
            (found.size() == variable.value.size()).then(|| found.to_device(variable.value.device()))
        };
        let of = |variable: &Variable| {
            Some((find("first", variable)?, find("second", variable)?, *steps.get(&variable.name)?))
        };
        let Some(found) = self.variables.iter().map(of).collect::<Option<Vec<_>>>() else { return false };
        for (variable, (first, second, steps)) in self.variables.iter_mut().zip(found) {
            (variable.first, variable.second) =
                (laid_out_as(&variable.value, first), laid_out_as(&variable.value, second));
            variable.steps = steps;
        }
        true
    }
}

/// A tensor that lies in memory as another does, which is of the same shape.
fn laid_out_as(other: &Tensor, tensor: Tensor) -> Tensor {
    if tensor.stride() == other.stride() {
        return tensor;
    }
    let mut copy = other.detach().empty_like();
    copy.copy_(&tensor);
    copy
}

/// Moves a variable and its moments along its gradient, an operation at a time.
fn step_by_step(value: &mut Tensor, first: &mut Tensor, second: &mut Tensor, gradient: &Tensor, change: &Change) {
    let gradient = change.scale.as_ref().map_or_else(|| gradient.shallow_clone(), |scale| gradient * scale);
    // In place wherever it can be: what a step costs here is the memory that it goes through.
    let _ = first.g_mul_scalar_(BETAS.0).g_add_(&(&gradient * (1.0 - BETAS.0)));
    let squares = gradient.square().g_mul_scalar_(1.0 - BETAS.1);
    let _ = second.g_mul_scalar_(BETAS.1).g_add_(&squares);
    let denominator = second.sqrt().g_div_scalar_(change.bias.1.sqrt()).g_add_scalar_(EPS);
    let _ = value.g_mul_scalar_(1.0 - change.lr * change.weight_decay);
    let moved = (&*first / denominator).g_mul_scalar_(change.lr / change.bias.0);
    let _ = value.g_sub_(&moved);
}

#[cfg(test)]
mod tests {
    use tch::{Device, nn::OptimizerConfig};

    use super::*;

    /// A small problem: samples, targets and initial values, drawn once. The generator is the process's, and other tests
    /// draw from it at the same time.
    struct Problem {
        x: Tensor,
        y: Tensor,
        initial: Vec<Tensor>,
    }

    impl Problem {
        fn new() -> Self {
            let draw = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
            let initial = [[3, 6].as_slice(), &[3], &[3, 6], &[3]].map(draw);
            Self { x: draw(&[20, 6]), y: draw(&[20, 3]), initial: initial.into() }
        }

        /// The values after some steps by this optimiser or by libtorch's own.
        fn trained(&self, own: bool, clip: f64) -> Vec<f32> {
            let store = nn::VarStore::new(Device::Cpu);
            let layer = nn::linear(store.root() / "layer", 6, 3, nn::LinearConfig::default());
            let late = nn::linear(store.root() / "late", 6, 3, nn::LinearConfig::default());
            let values = [&layer.ws, layer.bs.as_ref().unwrap(), &late.ws, late.bs.as_ref().unwrap()];
            tch::no_grad(|| {
                values.iter().zip(&self.initial).for_each(|(to, from)| to.shallow_clone().copy_(from));
            });
            let mut adam = AdamW::new(&store, 0.05);
            let mut theirs = nn::AdamW { wd: 0.05, ..Default::default() }.build(&store, 0.01).unwrap();
            for step in 0..25 {
                // A part of the model that joins in later has its own count of steps.
                let joined = if step < 12 { self.x.apply(&layer) } else { self.x.apply(&layer) + self.x.apply(&late) };
                let loss = (joined - &self.y).square().mean(Kind::Float) * 30;
                match (own, clip > 0.0) {
                    (true, _) => adam.step(&loss, 0.01, clip, &|_| 1.0),
                    (false, true) => theirs.backward_step_clip_norm(&loss, clip),
                    (false, false) => theirs.backward_step(&loss),
                }
            }
            let flat = Tensor::cat(&values.map(|value| value.view(-1)), 0);
            Vec::<f32>::try_from(flat.detach()).unwrap()
        }
    }

    #[test]
    fn steps_are_those_of_libtorch() {
        let problem = Problem::new();
        for clip in [0.0, 0.5] {
            let (own, theirs) = (problem.trained(true, clip), problem.trained(false, clip));
            let worst = own.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-5, "clip {clip}: differs by {worst}");
        }
    }
}
