//! RandConv (Xu et al., ICLR 2021; methods.md 3): training images pass a random convolution, which changes textures and keeps shapes.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Tensor, nn};

use super::contract::{Augment, Batch, Given, Method, Penalty, Seen, Takes, Wants};
use crate::data::Content;
use crate::error::Result;
use crate::loss;

/// Parameters of RandConv.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Sides of the kernels, one of which is drawn for each batch: 1, 3, 5 and 7 in the paper.
    pub kernels: Vec<i64>,
    /// Whether a part of the image itself is mixed in, its share drawn from U(0, 1).
    pub mix: bool,
    /// Weight of the agreement between what the model says of three draws of each image: 10 in the paper; 0 is one draw alone.
    #[schemars(range(min = 0.0))]
    pub consistency: f64,
}

impl Default for Params {
    fn default() -> Self {
        Self { kernels: vec![1, 3, 5, 7], mix: true, consistency: 0.0 }
    }
}

/// What it has to be given.
pub const WANTS: Wants = Wants::of(Takes::SharedOnPixels);

/// Draws of each image whose predictions are held to agree.
const DRAWS: i64 = 3;

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

#[derive(Clone)]
struct RandConv {
    params: Params,
}

impl RandConv {
    /// Images (B, 3, s, s), 0 to 255, through one random convolution.
    fn changed(&self, pixels: &Tensor, rng: &mut ChaCha8Rng) -> Tensor {
        let side = self.params.kernels[rng.random_range(0..self.params.kernels.len())];
        // Kaiming: the variance is one over the kernel's inputs.
        let scale = ((side * side * 3) as f64).sqrt().recip();
        let draw = |_| (scale * <StandardNormal as Distribution<f64>>::sample(&StandardNormal, rng)) as f32;
        let kernel: Vec<f32> = (0..3 * 3 * side * side).map(draw).collect();
        let kernel = Tensor::from_slice(&kernel).view([3, 3, side, side]);
        let kernel = kernel.to_device(pixels.device()).to_kind(pixels.kind());
        let centred = pixels / 127.5 - 1.0;
        let changed = centred.conv2d(&kernel, None::<&Tensor>, [1i64, 1], [side / 2, side / 2], [1i64, 1], 1);
        let keeps = if self.params.mix { rng.random::<f64>() } else { 0.0 };
        ((centred * keeps + changed * (1.0 - keeps)) + 1.0) * 127.5
    }

    fn draws(&self) -> i64 {
        if self.params.consistency > 0.0 { DRAWS } else { 1 }
    }
}

impl Method for RandConv {
    fn augmentation(&self) -> Option<Box<dyn Augment>> {
        Some(Box::new(self.clone()))
    }

    /// The segmentation loss of the first draw.
    fn objective(&self, seen: &Seen) -> Tensor {
        let first = |x: &Tensor| x.narrow(0, 0, x.size()[0] / self.draws());
        loss::segmentation(&first(&seen.forward.logits), &first(seen.masks))
    }

    fn penalties(&self, seen: &Seen) -> Vec<Penalty> {
        if self.draws() == 1 {
            return Vec::new();
        }
        let value = loss::disagreement(&seen.forward.logits.chunk(self.draws(), 0));
        vec![Penalty { name: "consistency", weight: self.params.consistency, value }]
    }
}

impl Augment for RandConv {
    fn augment(&self, batch: Batch, _sites: i64, rng: &mut ChaCha8Rng) -> Batch {
        let Content::Pixels(pixels) = &batch.content else { return batch };
        let draws: Vec<Tensor> = (0..self.draws()).map(|_| self.changed(pixels, rng)).collect();
        let repeated = |x: &Tensor| Tensor::cat(&vec![x; draws.len()], 0);
        Batch {
            content: Content::Pixels(Tensor::cat(&draws, 0)),
            masks: repeated(&batch.masks),
            labels: batch.labels.as_ref().map(repeated),
            texts: vec![batch.texts; draws.len()].concat(),
            mix: batch.mix,
        }
    }
}
