//! V-REx (Krueger et al., ICML 2021, equation 8; as in DomainBed; methods.md 3): losses of the sites should not differ.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, nn};

use super::contract::{Given, Method, Penalty, Seen, Takes, Wants};
use crate::error::Result;

/// Parameters of V-REx.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Weight of the variance: 10 is DomainBed's default, its search 10^U(-1, 5).
    #[schemars(range(min = 0.0))]
    pub beta: f64,
    /// So many steps have weight 1; then the optimiser starts anew. DomainBed's default is 500, its search 10^U(0, 4).
    pub anneal_steps: usize,
}

impl Default for Params {
    fn default() -> Self {
        Self { beta: 10.0, anneal_steps: 500 }
    }
}

/// What it has to be given.
pub const WANTS: Wants = Wants::of(Takes::Shared);

/// There is nothing to build.
///
/// # Errors
/// None.
pub fn build(params: &Params, _path: &nn::Path, _given: Given) -> Result<Box<dyn Method>> {
    Ok(Box::new(Vrex { params: params.clone() }))
}

/// V-REx has no state.
pub struct Vrex {
    /// Its parameters.
    pub params: Params,
}

impl Method for Vrex {
    /// The mean over sites of (loss_m - mean)^2: divided by their number, not by one less.
    fn penalties(&self, seen: &Seen) -> Vec<Penalty> {
        let losses = seen.losses_by_site();
        let variance = (&losses - losses.mean(None::<Kind>)).square().mean(None::<Kind>);
        let weight = if seen.at.step < self.params.anneal_steps { 1.0 } else { self.params.beta };
        vec![Penalty { name: "variance", weight, value: variance }]
    }

    fn starts_anew_at(&self) -> Option<usize> {
        Some(self.params.anneal_steps)
    }
}
