//! ERM (methods.md 3): the head on the encoder's features, the segmentation loss, sources pooled with equal samples a site.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::nn;

use super::contract::{Given, Method, Takes, Wants};
use crate::error::Result;

/// ERM has no parameters.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {}

/// What it has to be given.
pub const WANTS: Wants = Wants::of(Takes::Shared);

/// There is nothing to build.
///
/// # Errors
/// None.
pub fn build(_params: &Params, _path: &nn::Path, _given: Given) -> Result<Box<dyn Method>> {
    Ok(Box::new(Erm))
}

/// Empirical risk minimisation.
pub struct Erm;

impl Method for Erm {}
