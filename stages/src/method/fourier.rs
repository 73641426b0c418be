//! Fourier amplitude mixing (methods.md 3): images keep their phase and take on the amplitudes of images of other sites.
//! `fact`: FACT's amplitude mix (Xu et al., CVPR 2021), with its teacher where `teacher` says so. `fda`: FDA (Yang and Soatto, CVPR
//! 2020).

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, nn};

use super::contract::{Augment, Batch, Given, Method, Penalty, Seen, Takes, Wants};
use super::mixstyle::of_other_sites;
use crate::data::Content;
use crate::error::Result;
use crate::loss;

/// Which amplitudes are taken on, and how far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Variant {
    /// All of them, in a share that is drawn for each image from U(0, `most`).
    #[default]
    Fact,
    /// Those of the lowest frequencies, wholly.
    Fda,
}

/// Parameters of Fourier amplitude mixing.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Which amplitudes are taken on.
    pub variant: Variant,
    /// The largest share in `fact`: 1 in the authors' code.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub most: f64,
    /// L of `fda`: half the window's side as a share of the image's; 0.01, 0.05 and 0.09 in the paper.
    #[schemars(range(min = 0.0, max = 0.5))]
    pub window: f64,
    /// Momentum of FACT's teacher, a running mean of the weights that the other half of each pair is held to: 0.9995 in the authors'
    /// code; 0 is no teacher.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub teacher: f64,
    /// Weight of the consistency with the teacher: 2 in the authors' code.
    #[schemars(range(min = 0.0))]
    pub consistency: f64,
    /// Epochs over which that weight rises, w exp(-5 (1 - e/n)^2): 5 in the authors' code.
    pub ramp_up: usize,
    /// Temperature of what is compared: 10 in the authors' code.
    #[schemars(range(min = 0.001))]
    pub temperature: f64,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            variant: Variant::Fact,
            most: 1.0,
            window: 0.01,
            teacher: 0.0,
            consistency: 2.0,
            ramp_up: 5,
            temperature: 10.0,
        }
    }
}

/// What it has to be given.
pub const WANTS: Wants = Wants::of(Takes::SharedOnPixels);

/// There is nothing to build.
///
/// # Errors
/// None.
pub fn build(params: &Params, _path: &nn::Path, _given: Given) -> Result<Box<dyn Method>> {
    Ok(Box::new(Fourier { params: params.clone() }))
}

#[derive(Clone)]
struct Fourier {
    params: Params,
}

impl Method for Fourier {
    fn augmentation(&self) -> Option<Box<dyn Augment>> {
        Some(Box::new(self.clone()))
    }

    fn teacher(&self) -> Option<f64> {
        (self.params.teacher > 0.0).then_some(self.params.teacher)
    }

    /// Each half of the pairs against what the teacher says of the other half.
    fn penalties(&self, seen: &Seen) -> Vec<Penalty> {
        let Some(teacher) = seen.teacher else { return Vec::new() };
        let halves = |logits: &Tensor| logits.chunk(2, 0);
        let (own, taught) = (halves(&seen.forward.logits), halves(teacher));
        let between = |student: &Tensor, teacher: &Tensor| loss::divergence(student, teacher, self.params.temperature);
        let value = between(&own[1], &taught[0]) + between(&own[0], &taught[1]);
        vec![Penalty { name: "consistency", weight: self.consistency(seen.at.epoch), value }]
    }
}

impl Fourier {
    /// The weight of the consistency in an epoch, which counts from 1.
    fn consistency(&self, epoch: usize) -> f64 {
        let done = (epoch - 1) as f64 / self.params.ramp_up.max(1) as f64;
        let behind = 1.0 - done.min(1.0);
        let rises = self.params.ramp_up > 0;
        self.params.consistency * if rises { (-5.0 * behind * behind).exp() } else { 1.0 }
    }
}

impl Augment for Fourier {
    /// The batch and its mixed twin: both are trained on.
    fn augment(&self, batch: Batch, sites: i64, rng: &mut ChaCha8Rng) -> Batch {
        let Content::Pixels(pixels) = &batch.content else { return batch };
        let images = pixels.size()[0];
        let partner = Tensor::from_slice(&of_other_sites(images, sites, rng)).to_device(pixels.device());
        let other = pixels.index_select(0, &partner);
        let mixed = match self.params.variant {
            Variant::Fact => {
                let shares: Vec<f32> = (0..images).map(|_| (rng.random::<f64>() * self.params.most) as f32).collect();
                mix_amplitudes(pixels, &other, &Tensor::from_slice(&shares).to_device(pixels.device()))
            }
            Variant::Fda => replace_low(pixels, &other, self.params.window),
        };
        let twice = |x: &Tensor| Tensor::cat(&[x, x], 0);
        Batch {
            content: Content::Pixels(Tensor::cat(&[pixels, &mixed], 0)),
            masks: twice(&batch.masks),
            labels: batch.labels.as_ref().map(twice),
            texts: [batch.texts.clone(), batch.texts].concat(),
            mix: None,
        }
    }
}

/// `images`, `others`: (B, 3, s, s), 0 to 255; `shares`: (B). Amplitudes share * other + (1 - share) * own, own phase.
pub fn mix_amplitudes(images: &Tensor, others: &Tensor, shares: &Tensor) -> Tensor {
    let (own, other) = (spectrum(images), spectrum(others));
    let shares = shares.view([-1, 1, 1, 1]);
    let amplitude = other.abs() * &shares + own.abs() * (1.0 - &shares);
    image(&amplitude, &own.angle(), images)
}

/// FDA: in a square window around frequency 0, of half side floor(`window` * s), the amplitude is the other's.
pub fn replace_low(images: &Tensor, others: &Tensor, window: f64) -> Tensor {
    let (own, other) = (spectrum(images), spectrum(others));
    let (height, width) = (images.size()[2], images.size()[3]);
    let half = (height.min(width) as f64 * window).floor() as i64;
    let near = |count: i64| {
        let places = Tensor::arange(count, (Kind::Int64, images.device()));
        let distance = places.minimum(&(-&places + count));
        distance.le(half)
    };
    let low = near(height).view([-1, 1]).logical_and(&near(width).view([1, -1]));
    image(&other.abs().where_self(&low, &own.abs()), &own.angle(), images)
}

fn spectrum(images: &Tensor) -> Tensor {
    images.fft_fft2(None::<&[i64]>, [-2i64, -1].as_slice(), "backward")
}

fn image(amplitude: &Tensor, phase: &Tensor, like: &Tensor) -> Tensor {
    let spectrum = Tensor::polar(amplitude, phase);
    spectrum.fft_ifft2(None::<&[i64]>, [-2i64, -1].as_slice(), "backward").real().clamp(0.0, 255.0).to_kind(like.kind())
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn nothing_of_another_image_leaves_it_as_it_is() {
        let images = Tensor::rand([2, 3, 16, 16], (Kind::Float, Device::Cpu)) * 255.0;
        let others = images.flip([0]);
        let none = mix_amplitudes(&images, &others, &Tensor::from_slice(&[0f32, 0.0]));
        assert!(none.allclose(&images, 1e-4, 1e-2, false));
        // Frequency 0 alone is the mean: FDA with an empty window moves images to the other's brightness.
        let moved = replace_low(&(&images * 0.2 + 100.0), &(&others * 0.2 + 120.0), 0.0);
        let mean = |x: &Tensor| x.mean(Kind::Float).double_value(&[]);
        assert!((mean(&moved) - mean(&(&others * 0.2 + 120.0))).abs() < 0.1);
    }
}
