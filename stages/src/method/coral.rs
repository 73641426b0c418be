//! CORAL (Sun and Saenko, ECCV 2016 workshops; as in DomainBed; methods.md 3): features of the sites should have the same mean and
//! covariance.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, nn};

use super::contract::{Given, Method, Penalty, Seen, Takes, Wants};
use crate::error::Result;

/// Parameters of CORAL.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Weight of the penalty: 1 is DomainBed's default, its search 10^U(-1, 1).
    #[schemars(range(min = 0.0))]
    pub gamma: f64,
}

impl Default for Params {
    fn default() -> Self {
        Self { gamma: 1.0 }
    }
}

/// What it has to be given.
pub const WANTS: Wants = Wants::of(Takes::Shared);

/// There is nothing to build.
///
/// # Errors
/// None.
pub fn build(params: &Params, _path: &nn::Path, _given: Given) -> Result<Box<dyn Method>> {
    Ok(Box::new(Coral { params: params.clone() }))
}

/// CORAL has no state.
pub struct Coral {
    /// Its parameters.
    pub params: Params,
}

impl Method for Coral {
    /// Features are pooled over positions, one vector an image [I].
    fn penalties(&self, seen: &Seen) -> Vec<Penalty> {
        let Some(pooled) = seen.pooled_map() else { return Vec::new() };
        let value = alignment(&pooled.chunk(seen.sites, 0));
        vec![Penalty { name: "alignment", weight: self.params.gamma, value }]
    }
}

/// For each pair of sites the mean squared difference of the features' means plus that of their covariances (n - 1), averaged
/// over pairs. Each of `sites`: (n, d). 0 for one site; sites of one image have no covariance and compare means alone.
pub fn alignment(sites: &[Tensor]) -> Tensor {
    let mean = |x: &Tensor| x.mean_dim(Some([0i64].as_slice()), true, None::<Kind>);
    let covariance = |x: &Tensor| {
        let centred = x - mean(x);
        centred.tr().matmul(&centred) / (x.size()[0] - 1).max(1) as f64
    };
    let mut sum = Tensor::zeros([], sites.first().map_or((Kind::Float, tch::Device::Cpu), |x| (x.kind(), x.device())));
    let mut pairs = 0;
    for (place, a) in sites.iter().enumerate() {
        for b in &sites[place + 1..] {
            sum += (mean(a) - mean(b)).square().mean(None::<Kind>);
            sum += (covariance(a) - covariance(b)).square().mean(None::<Kind>);
            pairs += 1;
        }
    }
    sum / f64::from(pairs.max(1))
}
