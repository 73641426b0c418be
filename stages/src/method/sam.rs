//! SAM (Foret et al., ICLR 2021; methods.md 3): the gradient counts that is found where the loss is worst nearby.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::nn;

use super::contract::{Given, Method, Takes, Wants};
use crate::error::Result;

/// Parameters of SAM.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// How far weights are moved up the gradient first: 0.05 in the paper.
    #[schemars(range(min = 0.0))]
    pub rho: f64,
}

impl Default for Params {
    fn default() -> Self {
        Self { rho: 0.05 }
    }
}

/// What it has to be given.
pub const WANTS: Wants = Wants::of(Takes::Shared);

/// There is nothing to build.
///
/// # Errors
/// None.
pub fn build(params: &Params, _path: &nn::Path, _given: Given) -> Result<Box<dyn Method>> {
    Ok(Box::new(Sam { rho: params.rho }))
}

struct Sam {
    rho: f64,
}

impl Method for Sam {
    fn sharpness(&self) -> f64 {
        self.rho
    }
}
