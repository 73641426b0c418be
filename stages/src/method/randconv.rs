//! RandConv (Xu et al., ICLR 2021; methods.md 3): training images pass a random convolution, which changes textures and keeps shapes.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Tensor, nn};

use super::contract::{Batch, Given, Method, Wants};
use crate::data::Content;
use crate::error::Result;

/// Parameters of RandConv.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Sides of the kernels, one of which is drawn for each batch: 1, 3, 5 and 7 in the paper.
    pub kernels: Vec<i64>,
    /// Whether a part of the image itself is mixed in, its share drawn from U(0, 1).
    pub mix: bool,
}

impl Default for Params {
    fn default() -> Self {
        Self { kernels: vec![1, 3, 5, 7], mix: true }
    }
}

/// What it has to be given.
pub const WANTS: Wants = Wants::SharedOnPixels;

/// There is nothing to build.
///
/// # Errors
/// Kernels that have no centre.
pub fn build(params: &Params, _path: &nn::Path, _given: Given) -> Result<Box<dyn Method>> {
    if params.kernels.is_empty() || params.kernels.iter().any(|side| !(1..=31).contains(side) || side % 2 == 0) {
        return Err(crate::error::StageError::Request("`randconv.kernels` must be odd numbers up to 31".into()));
    }
    Ok(Box::new(RandConv { params: params.clone() }))
}

struct RandConv {
    params: Params,
}

impl Method for RandConv {
    fn augment(&self, batch: Batch, _sites: i64, rng: &mut ChaCha8Rng) -> Batch {
        let Content::Pixels(pixels) = &batch.content else { return batch };
        let side = self.params.kernels[rng.random_range(0..self.params.kernels.len())];
        // Kaiming: the variance is one over the kernel's inputs.
        let scale = ((side * side * 3) as f64).sqrt().recip();
        let draw = |_| (scale * <StandardNormal as Distribution<f64>>::sample(&StandardNormal, rng)) as f32;
        let kernel: Vec<f32> = (0..3 * 3 * side * side).map(draw).collect();
        let kernel = Tensor::from_slice(&kernel).view([3, 3, side, side]).to_device(pixels.device());
        let centred = pixels / 127.5 - 1.0;
        let changed = centred.conv2d(&kernel, None::<&Tensor>, [1i64, 1], [side / 2, side / 2], [1i64, 1], 1);
        let keeps = if self.params.mix { rng.random::<f64>() } else { 0.0 };
        let content = Content::Pixels(((centred * keeps + changed * (1.0 - keeps)) + 1.0) * 127.5);
        Batch { content, ..batch }
    }
}
