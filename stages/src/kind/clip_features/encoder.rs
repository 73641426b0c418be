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
use crate::model::clip::{Clip, ClipConfig, Dense, Tower, normalise_pixels, weights};
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
        if params.blocks_left > 0 && (clip.config.resnet.is_some() || params.blocks_left > clip.config.vision_layers) {
            let message = format!("this backbone's image tower has no {} last blocks", params.blocks_left);
            return Err(StageError::Request(message));
        }
        if !device.is_cuda() {
            // Threads take an image each; see `features`.
            runtime::set_threads(1);
        }
        let notes = vec![
            ("weights", file.digest.to_string()),
            ("model", serde_json::to_string(&clip.config).expect("a configuration is JSON")),
            ("positions", format!("interpolated with antialias {antialias}")),
        ];
        let decides = Params { batch: if device.is_cuda() { params.batch } else { 1 }, ..params.clone() };
        let context = json!([notes, decides, format!("{device:?}")]);
        Ok(Self { clip: Shared(clip), params: params.clone(), device, memo: ctx.memo(), context, notes })
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
    /// a GPU always encodes as many as `batch` says, filled up where need be; a CPU encodes them one by one, a thread each, so
    /// that the number of threads changes no bit.
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
            missing.par_chunks(1).map(encode).collect::<Result<_>>()?
        };
        for (index, values) in missing.iter().zip(encoded.into_iter().flatten()) {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            self.memo.put(&keys[*index], &bytes);
            features[*index] = Some(values);
        }
        Ok((features.into_iter().flatten().collect(), missing.len()))
    }

    /// The features of images that go through the tower at once; on a GPU fewer than `batch` are filled up with the first.
    fn encode(&self, images: &[&[u8]]) -> Result<Vec<Vec<f32>>> {
        let at_once = if self.device.is_cuda() { self.params.batch } else { images.len() };
        let padded = (0..at_once).map(|place| images[if place < images.len() { place } else { 0 }]);
        let bytes: Vec<u8> = padded.flatten().copied().collect();
        let clip = &self.clip.0;
        let batch = normalise_pixels(&bytes, at_once as i64, clip.config.image_size, self.device)
            .to_kind(self.params.precision.kind());
        let made = tch::no_grad(|| match (&clip.vision, self.params.blocks_left) {
            (Tower::Vit(tower), left) if left > 0 => vec![tower.activations(&batch, left)],
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

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|chunk| f32::from_le_bytes(*chunk)).collect()
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    let flat = tensor.to_device(Device::Cpu).to_kind(Kind::Float).contiguous().view(-1);
    Ok(Vec::<f32>::try_from(flat)?)
}
