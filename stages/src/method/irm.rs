//! IRM (Arjovsky et al., 2019, IRMv1; as in DomainBed; methods.md 3): one classifier should be the best at every site.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, nn};

use super::contract::{Given, Method, Penalty, Seen, Takes, Wants};
use crate::error::Result;

/// Parameters of IRM.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Weight of the penalty: 100 is DomainBed's default, its search 10^U(-1, 5).
    #[schemars(range(min = 0.0))]
    pub lambda: f64,
    /// So many steps have weight 1; then the optimiser starts anew. DomainBed's default is 500, its search 10^U(0, 4).
    pub anneal_steps: usize,
}

impl Default for Params {
    fn default() -> Self {
        Self { lambda: 100.0, anneal_steps: 500 }
    }
}

/// What it has to be given.
pub const WANTS: Wants = Wants::of(Takes::Shared);

/// There is nothing to build.
///
/// # Errors
/// None.
pub fn build(params: &Params, _path: &nn::Path, _given: Given) -> Result<Box<dyn Method>> {
    Ok(Box::new(Irm { params: params.clone() }))
}

/// IRM has no state.
pub struct Irm {
    /// Its parameters.
    pub params: Params,
}

impl Method for Irm {
    /// For each site the product of d/dw CE(w logits) at w = 1 on every other image and on the rest; their mean. Halves are
    /// images, not pixels [I].
    fn penalties(&self, seen: &Seen) -> Vec<Penalty> {
        let per_site = seen.forward.logits.size()[0] / seen.sites;
        let slopes = slope(&seen.forward.logits, seen.masks).view([seen.sites, per_site]);
        let half =
            |first: i64| slopes.slice(1, first, per_site, 2).mean_dim(Some([1i64].as_slice()), false, None::<Kind>);
        // A site with one image a step has no second half: both are that image.
        let product = half(0) * if per_site > 1 { half(1) } else { half(0) };
        let weight = if seen.at.step < self.params.anneal_steps { 1.0 } else { self.params.lambda };
        vec![Penalty { name: "invariance", weight, value: product.mean(None::<Kind>) }]
    }

    fn starts_anew_at(&self) -> Option<usize> {
        Some(self.params.anneal_steps)
    }
}

/// d/dw of the cross-entropy of w z at w = 1, for each image the mean over its pixels: sum_k softmax(z)_k z_k - z_y.
/// `logits`: (B, 2, S, S); `masks`: (B, S, S), whole numbers. Returns (B).
pub fn slope(logits: &Tensor, masks: &Tensor) -> Tensor {
    let expected = (logits.softmax(1, None::<Kind>) * logits).sum_dim_intlist([1i64].as_slice(), false, None::<Kind>);
    let right = logits.gather(1, &masks.unsqueeze(1), false).squeeze_dim(1);
    (expected - right).mean_dim(Some([1i64, 2].as_slice()), false, None::<Kind>)
}
