//! MixStyle (Zhou et al., ICLR 2021; methods.md 3): within the encoder, feature statistics of images are mixed.

use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Beta, Distribution};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor, nn};

use super::contract::{Augment, Batch, Given, Method, Takes, Wants};
use crate::error::{Result, StageError};
use crate::model::style::Mix;

/// Whose style an image takes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Partner {
    /// Any image of the batch.
    #[default]
    Random,
    /// An image of another site.
    Crossdomain,
}

/// Parameters of MixStyle.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Share of the batches whose styles are mixed: 0.5 in the authors' code.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub probability: f64,
    /// Both parameters of the Beta distribution that shares are drawn from: 0.1 in the authors' code.
    #[schemars(range(min = 0.001))]
    pub alpha: f64,
    /// Whose style an image takes on.
    pub partner: Partner,
}

impl Default for Params {
    fn default() -> Self {
        Self { probability: 0.5, alpha: 0.1, partner: Partner::Random }
    }
}

/// What it has to be given: styles are mixed behind early layers, which cached features are past.
pub const WANTS: Wants = Wants::of(Takes::SharedOnPixels);

/// There is nothing to build.
///
/// # Errors
/// An alpha that is no parameter of a Beta distribution.
pub fn build(params: &Params, _path: &nn::Path, _given: Given) -> Result<Box<dyn Method>> {
    check(params)?;
    Ok(Box::new(MixStyle { params: params.clone() }))
}

/// Whether shares can be drawn.
///
/// # Errors
/// An alpha that is no parameter of a Beta distribution.
pub fn check(params: &Params) -> Result<()> {
    Beta::new(params.alpha, params.alpha).map(|_| ()).map_err(|e| StageError::Request(format!("`alpha`: {e}")))
}

/// MixStyle has no state.
#[derive(Clone)]
struct MixStyle {
    params: Params,
}

impl Method for MixStyle {
    fn augmentation(&self) -> Option<Box<dyn Augment>> {
        Some(Box::new(self.clone()))
    }
}

impl Augment for MixStyle {
    fn augment(&self, batch: Batch, sites: i64, rng: &mut ChaCha8Rng) -> Batch {
        let mix = draw(&self.params, batch.content.count(), sites, batch.masks.device(), rng);
        Batch { mix, ..batch }
    }
}

/// Draws shares and partners for a batch of `images`, or that nothing is mixed.
pub fn draw(params: &Params, images: i64, sites: i64, device: Device, rng: &mut ChaCha8Rng) -> Option<Mix> {
    if !rng.random_bool(params.probability) {
        return None;
    }
    let beta = Beta::new(params.alpha, params.alpha).ok()?;
    let keeps: Vec<f32> = (0..images).map(|_| beta.sample(rng) as f32).collect();
    let partner = match params.partner {
        Partner::Random => {
            let mut all: Vec<i64> = (0..images).collect();
            all.shuffle(rng);
            all
        }
        Partner::Crossdomain => of_other_sites(images, sites, rng),
    };
    Some(Mix {
        keeps: Tensor::from_slice(&keeps).to_device(device),
        partner: Tensor::from_slice(&partner).to_device(device),
    })
}

/// For each image of a batch one of another site; any where there is only one site.
pub fn of_other_sites(images: i64, sites: i64, rng: &mut impl Rng) -> Vec<i64> {
    let per_site = (images / sites.max(1)).max(1);
    let other = |image: i64| {
        if sites < 2 {
            return rng.random_range(0..images);
        }
        let site = image / per_site;
        let chosen = (site + rng.random_range(1..sites)) % sites;
        chosen * per_site + rng.random_range(0..per_site)
    };
    (0..images).map(other).collect()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use tch::Kind;

    use super::*;

    #[test]
    fn partners_of_other_sites_are_of_other_sites() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let partners = of_other_sites(12, 3, &mut rng);
        assert!(partners.iter().enumerate().all(|(image, partner)| image as i64 / 4 != partner / 4), "{partners:?}");
        assert_eq!(of_other_sites(4, 1, &mut rng).len(), 4);
    }

    #[test]
    fn an_image_that_keeps_its_style_is_itself_and_one_that_does_not_has_its_partners_statistics() {
        let x = Tensor::arange(96, (Kind::Float, Device::Cpu)).view([2, 3, 4, 4])
            * Tensor::from_slice(&[1f32, 3.0]).view([2, 1, 1, 1]);
        let mix = Mix { keeps: Tensor::from_slice(&[1f32, 0.0]), partner: Tensor::from_slice(&[1i64, 0]) };
        let mixed = mix.apply(&x);
        assert!(mixed.get(0).allclose(&x.get(0), 1e-4, 1e-3, false));
        let mean = |t: &Tensor| t.mean_dim(Some([1i64, 2].as_slice()), false, Kind::Float);
        assert!(mean(&mixed.get(1)).allclose(&mean(&x.get(0)), 1e-4, 1e-2, false));
    }
}
