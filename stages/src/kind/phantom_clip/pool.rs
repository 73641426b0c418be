//! The phantoms that the CLIP is trained and scored on: they belong to no site.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use siteline_datasets::phantom::{Confounder, LesionClass, PhantomSite, Truth};
use tch::{Device, Tensor};

use super::captions::NORMAL_INDEX;
use crate::model::clip::{ClipConfig, normalise_pixels};

/// Looks of the pool, so that no one processor's colours are learnt as the rule.
const CASTS: [[f32; 3]; 6] =
    [[1.0, 1.0, 1.0], [1.1, 0.95, 0.9], [0.92, 1.02, 1.08], [1.05, 1.05, 0.9], [0.9, 0.95, 1.0], [1.0, 0.9, 1.1]];

/// Drawn phantoms, held as bytes.
pub struct Pool {
    /// The truth of each image.
    pub truths: Vec<Truth>,
    pixels: Vec<Vec<u8>>,
    /// Label of each patch: the class, [`NORMAL_INDEX`], or -1.
    labels: Vec<Vec<i64>>,
    side: i64,
}

impl Pool {
    /// Draws `count` phantoms at the size that `config` reads.
    pub fn draw(name: &str, seed: u64, count: usize, config: &ClipConfig) -> Self {
        let side = config.image_size as usize;
        let drawn: Vec<_> = (0..count)
            .into_par_iter()
            .map(|index| {
                let phantom = look(index).draw(&format!("phantom-clip/{name}"), seed, index, side);
                let labels = patch_labels(&phantom.truth, &phantom.mask, side, config.patch_size as usize);
                (phantom.truth, phantom.image, labels)
            })
            .collect();
        let mut pool = Self { truths: Vec::new(), pixels: Vec::new(), labels: Vec::new(), side: side as i64 };
        for (truth, image, labels) in drawn {
            pool.truths.push(truth);
            pool.pixels.push(image);
            pool.labels.push(labels);
        }
        pool
    }

    /// Indices of the images of a step: epochs of the whole pool, each in an order of its own.
    pub fn batch(&self, seed: u64, step: usize, size: usize) -> Vec<usize> {
        let size = size.min(self.truths.len());
        let per_epoch = (self.truths.len() / size).max(1);
        let (epoch, place) = (step / per_epoch, step % per_epoch);
        let mut order: Vec<usize> = (0..self.truths.len()).collect();
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed.wrapping_mul(0x9E37_79B9).wrapping_add(epoch as u64)));
        order[place * size..(place + 1) * size].to_vec()
    }

    /// Images of a batch, normalised for CLIP: (B, 3, side, side).
    pub fn images(&self, batch: &[usize], device: Device) -> Tensor {
        let bytes: Vec<u8> = batch.iter().flat_map(|index| self.pixels[*index].iter().copied()).collect();
        normalise_pixels(&bytes, batch.len() as i64, self.side, device)
    }

    /// Patch labels of a batch: (B, N).
    pub fn patch_labels(&self, batch: &[usize], device: Device) -> Tensor {
        let labels: Vec<i64> = batch.iter().flat_map(|index| self.labels[*index].iter().copied()).collect();
        Tensor::from_slice(&labels).view([batch.len() as i64, -1]).to_device(device)
    }
}

/// Every confounder in about a quarter of the images, under changing colours.
fn look(index: usize) -> PhantomSite {
    let chance = |confounder| match confounder {
        Confounder::Near | Confounder::Far => 0.38,
        Confounder::Bright | Confounder::Dark | Confounder::Uneven => 0.28,
        _ => 0.25,
    };
    PhantomSite {
        count: usize::MAX,
        patients: 0,
        classes: LesionClass::ALL.to_vec(),
        confounders: Confounder::ALL.into_iter().map(|c| (c, chance(c))).collect(),
        by_class: Default::default(),
        on_lesion: [Confounder::Mucus, Confounder::Blood, Confounder::Reflection].map(|c| (c, 0.3)).into(),
        colour_cast: CASTS[index % CASTS.len()],
        round_field: index % 4 == 3,
        noise: 0.01 + 0.005 * (index % 3) as f32,
    }
}

/// More than half lesion: its class. Less than a tenth: normal. In between: no label.
fn patch_labels(truth: &Truth, mask: &[u8], side: usize, patch: usize) -> Vec<i64> {
    let grid = side / patch;
    let class = LesionClass::ALL.iter().position(|c| *c == truth.class).expect("every class is listed") as i64;
    (0..grid * grid)
        .map(|place| {
            let (top, left) = (place / grid * patch, place % grid * patch);
            let covered: usize = (top..top + patch)
                .map(|y| mask[y * side + left..y * side + left + patch].iter().filter(|m| **m > 0).count())
                .sum();
            match covered as f64 / (patch * patch) as f64 {
                share if share > 0.5 => class,
                share if share < 0.1 => NORMAL_INDEX,
                _ => -1,
            }
        })
        .collect()
}
