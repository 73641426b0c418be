//! CLIPSeg (Lüddecke and Ecker, CVPR 2022; methods.md 3): a decoder on a frozen image tower, conditioned on a text.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, nn};

use super::contract::{At, Batch, Forward, Given, Method, Takes, Wants};
use crate::data::Content;
use crate::error::{Result, StageError};
use crate::loss;
use crate::model::clip::{Clip, Tower, normalise};
use crate::model::clipseg::{Decoder, HEADS};
use crate::model::start::Start;
use crate::precision::Autocast;
use crate::shared::Shared;

/// Parameters of CLIPSeg.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Blocks of the image tower whose tokens are read, counted from 0: 3, 7 and 9 in the authors' code.
    pub layers: Vec<usize>,
    /// Channels inside the decoder: 64 in the paper.
    #[schemars(range(min = 4))]
    pub width: i64,
}

impl Default for Params {
    fn default() -> Self {
        Self { layers: vec![3, 7, 9], width: 64 }
    }
}

/// What it has to be given.
pub const WANTS: Wants = Wants::of(Takes::PixelsForClip).with_dictionary().scored_with_encoder();

/// Builds the decoder and takes in the frozen CLIP, for evaluation as well: the model's file does not hold it.
///
/// # Errors
/// No CLIP with a ViT, layers that it does not have.
pub fn build(params: &Params, path: &nn::Path, given: Given) -> Result<Box<dyn Method>> {
    let clip = given.clip("clipseg")?.clone();
    let weights = given.weights.ok_or_else(|| {
        StageError::Request(
            "clipseg's encoder is frozen and not part of its model: give the stage `needs: {encoder: ...}`".into(),
        )
    })?;
    if params.width % HEADS != 0 || !params.layers.is_sorted_by(|a, b| a < b) {
        let message = format!("`clipseg.width` must be a multiple of {HEADS}, and `clipseg.layers` must grow");
        return Err(StageError::Request(message));
    }
    let there = |layer: &usize| (*layer as i64) < clip.vision_layers;
    if clip.resnet.is_some() || params.layers.is_empty() || !params.layers.iter().all(there) {
        let has = if clip.resnet.is_some() { "is a ResNet".to_owned() } else { format!("has {}", clip.vision_layers) };
        let layers = &params.layers;
        let message =
            format!("`clipseg.layers` are {layers:?}, blocks of a ViT counted from 0; this image tower {has}");
        return Err(StageError::Request(message));
    }
    let mut store = nn::VarStore::new(path.device());
    let frozen = Clip::new(&store.root(), &clip, weights.tokenizer(), Start::of(given.trains));
    weights.fill(&mut store, "")?;
    store.freeze();
    let texts = if given.class_prompts.is_empty() { vec!["lesion".to_owned()] } else { given.class_prompts.to_vec() };
    Ok(Box::new(ClipSeg {
        decoder: Decoder::new(&(path / "decoder"), &clip, params.layers.len(), params.width),
        texts: frozen.text_features(&texts)?,
        params: params.clone(),
        side: given.sizes.side,
        frozen,
        _store: store,
    }))
}

struct ClipSeg {
    decoder: Decoder,
    params: Params,
    side: i64,
    /// Class prompts: (K, d).
    texts: Tensor,
    frozen: Clip,
    _store: nn::VarStore,
}

impl ClipSeg {
    /// The mean of the class prompts' embeddings for images whose class is not to be known: (B, d). [I]
    fn condition(&self, batch: &Batch) -> Tensor {
        let images = batch.content.count();
        self.texts.mean_dim(Some([0i64].as_slice()), true, Kind::Float).expand([images, -1], false)
    }
}

impl Method for ClipSeg {
    fn forward(&self, _shared: &Shared, batch: &Batch, _at: Option<At>) -> Forward {
        let Content::Pixels(pixels) = &batch.content else { unreachable!("it asked for pixels") };
        let Tower::Vit(tower) = &self.frozen.vision else { unreachable!("it was built on a ViT") };
        // What is frozen stays in 32 bits, whatever precision the decoder is trained in.
        let tokens = Autocast::paused(|| tch::no_grad(|| tower.tokens_behind(&normalise(pixels), &self.params.layers)));
        let logits = self.decoder.forward(&tokens, &self.condition(batch));
        let logits = logits.upsample_bilinear2d([self.side, self.side], false, None, None);
        Forward { logits: loss::two_logits(&logits), other: None, inner: None }
    }
}
