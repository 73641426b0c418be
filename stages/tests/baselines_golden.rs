//! The domain-generalization baselines against autograd in Python: numbers made by tests/golden/baselines/make.py. Tolerance 1e-5.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::path::Path;

use siteline_stages::checkpoint::{self, Tensors};
use siteline_stages::method::contract::{At, Encoded, Forward, Given, Method, Represented, Seen, Sizes};
use siteline_stages::method::{self, MethodName, MethodParams};
use tch::{Device, Tensor, nn};

fn golden() -> Tensors {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/baselines/expected.safetensors");
    checkpoint::read(&path).unwrap()
}

fn agree(what: &str, found: &Tensor, expected: &Tensor) {
    assert_eq!(found.size(), expected.size(), "{what}");
    let difference = (found - expected).abs().max().double_value(&[]);
    let scale = expected.abs().max().double_value(&[]);
    assert!(difference < 1e-5 * scale.max(1e-3), "{what} differs by {difference} (largest value {scale})");
}

/// A batch of the golden file, or the part of it that is of its first site.
struct Batch {
    forward: Forward,
    masks: Tensor,
    sites: i64,
}

impl Batch {
    fn new(golden: &Tensors, sites: i64) -> Self {
        let rows = |name: &str| golden[name].narrow(0, 0, 4 * sites).copy();
        let features = rows("features").set_requires_grad(true);
        let encoded = Encoded { pooled: features.copy(), dense: features.copy() };
        let represented = Represented { map: features, intervened: None };
        let logits = rows("logits").set_requires_grad(true);
        Self {
            forward: Forward { logits, other: None, inner: Some((encoded, represented)) },
            masks: rows("masks"),
            sites,
        }
    }

    fn seen(&self, step: usize) -> Seen<'_> {
        Seen {
            forward: &self.forward,
            masks: &self.masks,
            labels: None,
            sites: self.sites,
            at: At { epoch: 1, step, update: 0 },
            teacher: None,
        }
    }

    fn map(&self) -> &Tensor {
        &self.forward.inner.as_ref().unwrap().1.map
    }

    /// Objective and weighted penalties, and the gradient in the logits.
    fn total(&self, method: &dyn Method, step: usize) -> (Tensor, Tensor) {
        let seen = self.seen(step);
        let penalties = method.penalties(&seen).into_iter().map(|penalty| penalty.value * penalty.weight);
        let total = penalties.fold(method.objective(&seen), |sum, penalty| sum + penalty);
        let gradient = Tensor::run_backward(&[&total], &[&self.forward.logits], true, false).remove(0);
        (total, gradient)
    }
}

fn build(name: MethodName, store: &nn::VarStore, sites: i64, params: &MethodParams) -> Box<dyn Method> {
    let sizes = Sizes { d: 16, side: 16, confounders: 0, classes: 0, sites };
    let given =
        Given { sizes, trains: true, dictionary: None, clip: None, weights: None, tokenizer: None, class_prompts: &[] };
    method::build(name, params, &store.root(), given).unwrap()
}

#[test]
fn losses_and_gradients_are_those_of_the_reference() {
    let golden = golden();
    let batch = Batch::new(&golden, 3);
    let store = nn::VarStore::new(Device::Cpu);
    let mut params = MethodParams::default();
    params.groupdro.eta = 0.5;
    let method = |name| build(name, &store, 3, &params);

    let (erm, gradient) = batch.total(method(MethodName::Erm).as_ref(), 0);
    agree("erm", &erm, &golden["erm"]);
    agree("erm's gradient", &gradient, &golden["erm_gradient"]);

    let groupdro = method(MethodName::GroupDro);
    for step in 0..2 {
        let (value, gradient) = batch.total(groupdro.as_ref(), step);
        agree("groupdro", &value, &golden[&format!("groupdro_{step}")]);
        agree("groupdro's gradient", &gradient, &golden[&format!("groupdro_gradient_{step}")]);
    }
    agree("groupdro's weights", &store.variables()["site_weights"], &golden["groupdro_weights"]);

    // Behind the annealing steps the penalties have their full weights.
    for (name, key, penalty) in [(MethodName::Vrex, "vrex", "variance"), (MethodName::Irm, "irm", "invariance")] {
        let method = method(name);
        let found = method.penalties(&batch.seen(0)).remove(0);
        assert_eq!((found.name, found.weight), (penalty, 1.0));
        agree(key, &found.value, &golden[key]);
        assert_eq!(method.starts_anew_at(), Some(500));
        agree(key, &batch.total(method.as_ref(), 500).1, &golden[&format!("{key}_gradient")]);
    }

    let found = method(MethodName::Coral).penalties(&batch.seen(0)).remove(0);
    agree("coral", &found.value, &golden["coral"]);
    let gradient = Tensor::run_backward(&[&found.value], &[batch.map()], false, false).remove(0);
    agree("coral's gradient", &gradient, &golden["coral_gradient"]);
}

/// With one training site there is nothing to be robust to.
#[test]
fn with_one_site_they_are_erm() {
    let golden = golden();
    let batch = Batch::new(&golden, 1);
    let store = nn::VarStore::new(Device::Cpu);
    let params = MethodParams::default();
    let (erm, expected) = batch.total(build(MethodName::Erm, &store, 1, &params).as_ref(), 1000);
    for name in [MethodName::GroupDro, MethodName::Vrex, MethodName::Coral] {
        let (value, gradient) = batch.total(build(name, &store, 1, &params).as_ref(), 1000);
        agree("the loss", &value, &erm);
        agree("the gradient", &gradient, &expected);
    }
}
