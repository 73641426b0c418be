//! GroupDRO (Sagawa et al., ICLR 2020, algorithm 1; as in DomainBed; methods.md 3): the sites where the loss is high count for more.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, nn};

use super::contract::{Given, Method, Seen, Takes, Wants};
use crate::error::Result;

/// Parameters of GroupDRO.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Step size of the sites' weights: DomainBed's default is 0.01, its search 10^U(-3, -1).
    #[schemars(range(min = 0.0))]
    pub eta: f64,
}

impl Default for Params {
    fn default() -> Self {
        Self { eta: 0.01 }
    }
}

/// What it has to be given.
pub const WANTS: Wants = Wants::of(Takes::Shared);

/// Starts with equal weights.
///
/// # Errors
/// None.
pub fn build(params: &Params, path: &nn::Path, given: Given) -> Result<Box<dyn Method>> {
    Ok(Box::new(GroupDro::new(params, path, given.sizes.sites)))
}

/// The weights of the training sites.
pub struct GroupDro {
    eta: f64,
    /// q: (M), sums to 1. Part of the model's state, so that an interrupted training goes on with it.
    weights: Tensor,
}

impl GroupDro {
    /// Starts with equal weights.
    pub fn new(params: &Params, path: &nn::Path, sites: i64) -> Self {
        let equal = Tensor::full([sites], 1.0 / sites.max(1) as f64, (Kind::Float, path.device()));
        Self { eta: params.eta, weights: path.add("site_weights", equal, false) }
    }
}

impl Method for GroupDro {
    /// q_m grows by exp(eta loss_m) and is normalised; then the sum of q_m loss_m.
    fn objective(&self, seen: &Seen) -> Tensor {
        let losses = seen.losses_by_site();
        tch::no_grad(|| {
            let grown = &self.weights * (losses.detach() * self.eta).exp();
            self.weights.shallow_clone().copy_(&(&grown / grown.sum(Kind::Float)));
        });
        // A copy: the weights change in place before gradients are worked out in the next step.
        (self.weights.copy() * losses).sum(None::<Kind>)
    }
}
