//! DANN (Ganin et al., JMLR 2016; as in DomainBed; methods.md 3): a discriminator learns to tell sites by their features, and the
//! features learn to give it no hold.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::nn::{self, Module};
use tch::{Kind, Reduction, Tensor};

use super::contract::{Given, Method, Penalty, Seen, Takes, Wants};
use crate::error::Result;
use crate::loss;

/// Parameters of DANN.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Weight of what the features win from the discriminator: 1 is DomainBed's default, its search 10^U(-2, 2).
    #[schemars(range(min = 0.0))]
    pub lambda: f64,
    /// Width of the discriminator's hidden layers.
    #[schemars(range(min = 1))]
    pub width: i64,
}

impl Default for Params {
    fn default() -> Self {
        Self { lambda: 1.0, width: 256 }
    }
}

/// What it has to be given.
pub const WANTS: Wants = Wants::of(Takes::Shared).of_two_sites();

/// Variables of the discriminator begin with this.
const DISCRIMINATOR: &str = "method.discriminator.";
/// The step's update that moves the discriminator, behind the one that moves all else.
const DISCRIMINATES: usize = 1;

/// Builds the discriminator.
///
/// # Errors
/// None.
pub fn build(params: &Params, path: &nn::Path, given: Given) -> Result<Box<dyn Method>> {
    let path = &(path / "discriminator");
    let layer = |name: &str, input: i64, output: i64| nn::linear(path / name, input, output, Default::default());
    let layers = [
        layer("input", given.sizes.d, params.width),
        layer("hidden", params.width, params.width),
        layer("output", params.width, given.sizes.sites),
    ];
    Ok(Box::new(Dann { lambda: params.lambda, layers }))
}

/// The discriminator: three linear layers with ReLU between them.
struct Dann {
    lambda: f64,
    layers: [nn::Linear; 3],
}

impl Dann {
    /// Cross-entropy of the discriminator on pooled features (B, d), site by site.
    fn confusion(&self, pooled: &Tensor, sites: i64) -> Tensor {
        let [input, hidden, output] = &self.layers;
        let logits = output.forward(&hidden.forward(&input.forward(pooled).relu()).relu());
        let per_site = pooled.size()[0] / sites.max(1);
        let site = Tensor::arange(sites, (Kind::Int64, pooled.device())).repeat_interleave_self_int(per_site, 0, None);
        logits.cross_entropy_loss(&site, None::<&Tensor>, Reduction::Mean, -100, 0.0)
    }
}

impl Method for Dann {
    fn updates(&self, _epoch: usize) -> usize {
        2
    }

    fn moves(&self, update: usize, variable: &str) -> bool {
        variable.starts_with(DISCRIMINATOR) == (update == DISCRIMINATES)
    }

    fn objective(&self, seen: &Seen) -> Tensor {
        match seen.pooled_map().filter(|_| seen.at.update == DISCRIMINATES) {
            Some(pooled) => self.confusion(&pooled.detach(), seen.sites),
            None => loss::segmentation(&seen.forward.logits, seen.masks),
        }
    }

    fn penalties(&self, seen: &Seen) -> Vec<Penalty> {
        let Some(pooled) = seen.pooled_map().filter(|_| seen.at.update != DISCRIMINATES) else { return Vec::new() };
        vec![Penalty { name: "confusion", weight: -self.lambda, value: self.confusion(&pooled, seen.sites) }]
    }
}
