//! SWAD (Cha et al., NeurIPS 2021; methods.md 3): ERM whose weights are averaged over every step of the valley of the validation loss.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::nn;

use super::contract::{Given, Method, Takes, ValleyRule, Wants};
use crate::error::Result;

/// Parameters of SWAD. Losses are those at the end of each epoch.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The valley begins where the first of so many losses in a row is their least: 3 in the paper.
    #[schemars(range(min = 1))]
    pub converge: usize,
    /// It ends in front of so many losses in a row above the threshold: 6 in the paper.
    #[schemars(range(min = 1))]
    pub tolerance: usize,
    /// The threshold as a multiple of the mean of the valley's first losses: 1.3 in the paper.
    #[schemars(range(min = 1.0))]
    pub ratio: f64,
}

impl Default for Params {
    fn default() -> Self {
        Self { converge: 3, tolerance: 6, ratio: 1.3 }
    }
}

/// What it has to be given.
pub const WANTS: Wants = Wants::of(Takes::Shared);

/// There is nothing to build.
///
/// # Errors
/// None.
pub fn build(params: &Params, _path: &nn::Path, _given: Given) -> Result<Box<dyn Method>> {
    let Params { converge, tolerance, ratio } = *params;
    Ok(Box::new(Swad { rule: ValleyRule { converge, tolerance, ratio } }))
}

struct Swad {
    rule: ValleyRule,
}

impl Method for Swad {
    fn valley(&self) -> Option<ValleyRule> {
        Some(self.rule)
    }
}
