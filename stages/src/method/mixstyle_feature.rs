//! MixStyle on cached feature maps: statistics over positions are mixed behind the encoder. It is another method than the published
//! one, which works behind early layers, and has a name of its own (methods.md 3).

use rand_chacha::ChaCha8Rng;
use tch::nn;

use super::contract::{Augment, Batch, Given, Method, Takes, Wants};
use super::mixstyle;
use crate::data::Content;
use crate::error::Result;

/// Its parameters are MixStyle's.
pub type Params = mixstyle::Params;

/// What it has to be given.
pub const WANTS: Wants = Wants::of(Takes::SharedOnFeatures);

/// There is nothing to build.
///
/// # Errors
/// An alpha that is no parameter of a Beta distribution.
pub fn build(params: &Params, _path: &nn::Path, _given: Given) -> Result<Box<dyn Method>> {
    mixstyle::check(params)?;
    Ok(Box::new(MixStyleFeature { params: params.clone() }))
}

#[derive(Clone)]
struct MixStyleFeature {
    params: Params,
}

impl Method for MixStyleFeature {
    fn augmentation(&self) -> Option<Box<dyn Augment>> {
        Some(Box::new(self.clone()))
    }
}

impl Augment for MixStyleFeature {
    fn augment(&self, batch: Batch, sites: i64, rng: &mut ChaCha8Rng) -> Batch {
        let mix = mixstyle::draw(&self.params, batch.content.count(), sites, batch.masks.device(), rng);
        let content = match (batch.content, mix) {
            (Content::Features { pooled, dense }, Some(mix)) => Content::Features { pooled, dense: mix.apply(&dense) },
            (content, _) => content,
        };
        Batch { content, ..batch }
    }
}
