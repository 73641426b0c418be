//! A frozen image tower that remembers what it has encoded.

use rayon::prelude::*;
use serde_json::{Value, json};
use siteline_cache::Digest;
use tch::{Device, Kind, Tensor};

use super::Params;
use crate::error::{Result, StageError};
use crate::kind::backbone;
use crate::kind::context::Ctx;
use crate::memo::Memo;
use crate::model::clip::{Clip, ClipConfig, Dense, Tower, VisionTower, normalise_pixels, weights};
use crate::runtime;

/// The image tower of the stage's backbone.
pub struct Encoder {
    clip: Shared,
    params: Params,
    device: Device,
    memo: Memo,
    /// Everything but the pixels that decides an image's features.
    context: Value,
    /// What the weights are.
    notes: Vec<(&'static str, String)>,
}

/// A model that several threads run at once.
struct Shared(Clip);

// SAFETY: after loading nobody writes to the tensors; running a tower without gradients only reads them, and libtorch counts
// references atomically.
#[expect(unsafe_code, reason = "tch does not say that tensors which nobody writes to may be shared")]
unsafe impl Sync for Shared {}

impl Encoder {
    /// Loads the backbone's weights.
    ///
    /// # Errors
    /// Weights that are no CLIP, parameters that this one does not fit.
    pub fn open(ctx: &Ctx, params: &Params) -> Result<Self> {
        let (file, settings) = backbone::source(ctx)?;
        let device = Device::cuda_if_available();
        let antialias = settings.antialias;
        let (mut store, clip) = weights::load(&file.path, settings, device)?;
        if !params.precision.is_full() {
            store.set_kind(params.precision.kind());
        }
        if clip.config.resnet.is_some() && params.dense == Dense::Tokens {
            return Err(StageError::Request(
                "a ResNet has no tokens: `dense: values` is its one way to dense features".into(),
            ));
        }
        if params.blocks_left > clip.config.vision_layers {
            let message = format!("this backbone's image tower has no {} last blocks", params.blocks_left);
            return Err(StageError::Request(message));
        }
        if !device.is_cuda() {
            // Each thread takes images of its own; see `features`.
            runtime::set_threads(1);
        }
        let notes = vec![
            ("weights", file.digest.to_string()),
            ("model", serde_json::to_string(&clip.config).expect("a configuration is JSON")),
            ("positions", format!("interpolated with antialias {antialias}")),
        ];
        let params = Params { batch: at_once(&clip.vision, device, params.batch), ..params.clone() };
        let context = json!([notes, params, format!("{device:?}")]);
        Ok(Self { clip: Shared(clip), params, device, memo: ctx.memo(), context, notes })
    }

    /// The model's sizes.
    pub fn config(&self) -> &ClipConfig {
        &self.clip.0.config
    }

    /// What the weights are, for the metadata of what is made with them.
    pub fn notes(&self) -> &[(&'static str, String)] {
        &self.notes
    }

    /// Images that are worth handing over at once.
    pub fn chunk(&self, most: usize) -> usize {
        if self.device.is_cuda() { self.params.batch.min(most) } else { most }
    }

    /// Pooled and dense features, or tokens, of `count` images, one after the other in one list each, and how many were computed.
    ///
    /// An image's features must not depend on its neighbours, or one that was remembered would differ from one that is computed:
    /// there are always as many at once, filled up where need be. On a CPU each thread takes a group of its own, so that the
    /// number of threads changes no bit.
    pub fn features(&self, pixels: &[u8], count: usize) -> Result<(Vec<Vec<f32>>, usize)> {
        let length = pixels.len() / count.max(1);
        let images: Vec<&[u8]> = pixels.chunks(length.max(1)).collect();
        let key = |image: &&[u8]| self.memo.key(&json!([self.context, Digest::of_bytes(image)]));
        let keys: Vec<Digest> = images.par_iter().map(key).collect();
        let known = keys.par_iter().map(|key| self.memo.get(key).map(|bytes| floats(&bytes)));
        let mut features: Vec<Option<Vec<f32>>> = known.collect();
        let missing: Vec<usize> = (0..count).filter(|index| features[*index].is_none()).collect();
        let encode = |group: &[usize]| self.encode(&group.iter().map(|index| images[*index]).collect::<Vec<_>>());
        let encoded: Vec<Vec<Vec<f32>>> = if self.device.is_cuda() {
            missing.chunks(self.params.batch).map(encode).collect::<Result<_>>()?
        } else {
            missing.par_chunks(self.params.batch).map(encode).collect::<Result<_>>()?
        };
        for (index, values) in missing.iter().zip(encoded.into_iter().flatten()) {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            self.memo.put(&keys[*index], &bytes);
            features[*index] = Some(values);
        }
        Ok((features.into_iter().flatten().collect(), missing.len()))
    }

    /// The features of images that go through the tower at once; fewer than `batch` are filled up with the first.
    fn encode(&self, images: &[&[u8]]) -> Result<Vec<Vec<f32>>> {
        let at_once = self.params.batch;
        let padded = (0..at_once).map(|place| images[if place < images.len() { place } else { 0 }]);
        let bytes: Vec<u8> = padded.flatten().copied().collect();
        let clip = &self.clip.0;
        let batch = normalise_pixels(&bytes, at_once as i64, clip.config.image_size, self.device)
            .to_kind(self.params.precision.kind());
        let made = tch::no_grad(|| match (&clip.vision, self.params.blocks_left) {
            (tower, left) if left > 0 => vec![tower.activations(&batch, left)],
            (Tower::Vit(tower), _) if !self.device.is_cuda() => {
                let (pooled, dense) = forward_by_groups(tower, &batch, self.params.dense, images.len());
                vec![pooled, dense]
            }
            (tower, _) => {
                let (pooled, dense) = tower.forward(&batch, self.params.dense, None);
                vec![pooled, dense]
            }
        });
        let of = |place: usize| -> Result<Vec<f32>> {
            let parts = made.iter().map(|part| values(&part.get(place as i64)));
            Ok(parts.collect::<Result<Vec<_>>>()?.concat())
        };
        (0..images.len()).map(of).collect()
    }
}

/// How many images go through a tower at once: on a GPU what the parameter says. On a CPU one thread multiplies four images' tokens
/// in less time than four times one's (a tenth less for ViT-B/16), and is no quicker with more; a ResNet's convolutions gain nothing.
fn at_once(tower: &Tower, device: Device, batch: usize) -> usize {
    const GROUP: usize = 4;
    match tower {
        _ if device.is_cuda() => batch,
        Tower::Vit(_) => GROUP,
        Tower::ResNet(_) => 1,
    }
}

/// Pooled and dense features of the first `count` images. They go through the last block one by one: of it most is the class token's
/// alone, a single row, which is multiplied otherwise than several are, and gains nothing by company.
fn forward_by_groups(tower: &VisionTower, images: &Tensor, dense: Dense, count: usize) -> (Tensor, Tensor) {
    let tokens = tower.activations(images, 1);
    let last = |place: usize| tower.finish(&tokens.narrow(0, place as i64, 1), 1, dense);
    let (pooled, dense): (Vec<Tensor>, Vec<Tensor>) = (0..count).map(last).unzip();
    (Tensor::cat(&pooled, 0), Tensor::cat(&dense, 0))
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|chunk| f32::from_le_bytes(*chunk)).collect()
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    let flat = tensor.to_device(Device::Cpu).to_kind(Kind::Float).contiguous().view(-1);
    Ok(Vec::<f32>::try_from(flat)?)
}

#[cfg(test)]
mod tests {
    use tch::nn;

    use super::*;
    use crate::model::clip::Activation;
    use crate::model::start::Start;
    use crate::precision::Precision;

    /// A ViT of three blocks with the sizes of one that was published.
    fn vit(patch_size: i64, vision_width: i64) -> (nn::VarStore, VisionTower) {
        let config = ClipConfig {
            embed_dim: 512,
            image_size: 224,
            patch_size,
            vision_width,
            vision_layers: 3,
            resnet: None,
            vision_head_width: 64,
            context_length: 77,
            vocab_size: 1,
            text_width: 64,
            text_layers: 1,
            activation: Activation::QuickGelu,
        };
        let mut store = nn::VarStore::new(Device::Cpu);
        tch::manual_seed(0);
        let tower = VisionTower::new(&store.root(), &config, Start::Drawn);
        store.freeze();
        (store, tower)
    }

    /// What is remembered of an image was computed in one place of a group, among some neighbours, and stands for all others: for the
    /// sizes of ViT-B/16, B/32 and L/14.
    #[test]
    fn an_image_has_the_same_features_in_each_place_of_each_group() {
        let images = Tensor::randn([8, 3, 224, 224], (Kind::Float, Device::Cpu));
        // The number of threads that an operation is divided among may change its sums; here it is one, as at work.
        runtime::set_threads(1);
        for (patch, width) in [(16, 768), (32, 768), (14, 1024)] {
            let (_store, tower) = vit(patch, width);
            let at = |place: i64, neighbours: i64, dense: Option<Dense>| {
                let group: Vec<Tensor> =
                    (0..4).map(|i| images.narrow(0, if i == place { 0 } else { neighbours + i }, 1)).collect();
                let group = Tensor::cat(&group, 0);
                let made = tch::no_grad(|| match dense {
                    Some(dense) => {
                        let (pooled, dense) = forward_by_groups(&tower, &group, dense, 4);
                        vec![pooled, dense]
                    }
                    None => vec![tower.activations(&group, 1)],
                });
                made.into_iter().map(|part| part.get(place)).collect::<Vec<_>>()
            };
            for dense in [Some(Dense::Values), Some(Dense::Tokens), None] {
                let first = at(0, 1, dense);
                for (place, neighbours) in [(0, 4), (1, 1), (2, 4), (3, 1)] {
                    let same = at(place, neighbours, dense).iter().zip(&first).all(|(other, first)| other.equal(first));
                    assert!(same, "patches of {patch}, {dense:?}: place {place} among {neighbours}");
                }
            }
        }
    }

    /// In 16 bits features are those of 32 but for rounding: 8 and 11 bits of a number are kept.
    #[test]
    fn features_in_16_bits_are_those_of_32_but_for_rounding() {
        let (mut store, tower) = vit(32, 768);
        let images = Tensor::randn([2, 3, 224, 224], (Kind::Float, Device::Cpu));
        let features = |tower: &VisionTower, kind: Kind| {
            let (pooled, dense) = tch::no_grad(|| tower.forward(&images.to_kind(kind), Dense::Values, None));
            [pooled, dense].map(|x| x.to_kind(Kind::Double))
        };
        let full = features(&tower, Kind::Float);
        for (precision, most) in [(Precision::Bf16, 3e-2), (Precision::Fp16, 4e-3)] {
            store.set_kind(precision.kind());
            for (own, full) in features(&tower, precision.kind()).iter().zip(&full) {
                let off = ((own - full).norm() / full.norm()).double_value(&[]);
                assert!(off > 0.0 && off < most, "{precision:?}: off by {off} of their length");
            }
            store.set_kind(Kind::Float);
        }
    }
}
