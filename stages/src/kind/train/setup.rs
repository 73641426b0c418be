//! From a training's inputs and parameters to what its model is built by: which site data it reads, and which encoder is cached, run
//! frozen or fine-tuned.

use tch::Device;

use crate::data::{Content, Origin, SiteData};
use crate::dictionary::Dictionary;
use crate::error::{Result, StageError};
use crate::kind::context::Ctx;
use crate::method::contract::{Sizes, Takes};
use crate::model::clip::weights::ClipWeights;
use crate::precision::Precision;
use crate::segmenter::{Reads, Segmenter, SegmenterConfig, frozen};
use crate::shared::{EncoderConfig, Frozen, SharedConfig};
use crate::trainer::params::{EncoderMode, Params};

fn refused<T>(message: impl Into<String>) -> Result<T> {
    Err(StageError::Request(message.into()))
}

/// The training sites, as the method reads them.
///
/// # Errors
/// An input that the method cannot do without; sites that do not fit each other.
pub fn read_sites(ctx: &Ctx, params: &Params, weights: Option<&ClipWeights>) -> Result<Vec<SiteData>> {
    let takes = params.method.wants().data;
    let name = match takes {
        Takes::Shared if ctx.inputs("features").next().is_some() => "features",
        Takes::SharedOnFeatures | Takes::Features => "features",
        Takes::Shared | Takes::SharedOnPixels | Takes::Pixels | Takes::PixelsForClip => "samples",
    };
    let word = params.method.word();
    if params.encoder == EncoderMode::Finetune && !matches!(takes, Takes::Shared | Takes::SharedOnPixels) {
        return refused(format!("{word} has no encoder that could be fine-tuned: leave `encoder: finetune` out"));
    }
    // CLIP sees images at its own size; other networks at the working size.
    let side = weights.filter(|_| takes != Takes::Pixels).map(|weights| weights.config.image_size);
    let sites = ctx.inputs(name).map(|input| {
        let site = input.point.get("site").map_or("all", String::as_str);
        if name == "features" {
            return SiteData::features(site, Ctx::file(input, "features.parquet")?);
        }
        SiteData::pixels(site, Ctx::file(input, "samples.parquet")?, Ctx::file(input, "pixels.parquet")?, side)
    });
    let sites = sites.collect::<Result<Vec<_>>>()?;
    let Some(first) = sites.first() else { return refused("there is no site to train on") };
    let least = params.method.wants().sites;
    if sites.len() < least {
        return refused(format!(
            "{word} has a meaning for {least} training sites or more; `{name}` holds {}",
            sites.len()
        ));
    }
    let differs = |s: &&SiteData| {
        s.content.shapes() != first.content.shapes() || s.mask_side() != first.mask_side() || s.origin != first.origin
    };
    if let Some(other) = sites.iter().find(differs) {
        return refused(format!(
            "the sites `{}` and `{}` have features of different encoders or precisions, or images of different sizes",
            first.site, other.site
        ));
    }
    Ok(sites)
}

/// What the model is built by, and the encoder that is run and not trained.
///
/// # Errors
/// Data, weights and parameters that do not fit each other.
pub fn configure(
    params: &Params,
    sites: &[SiteData],
    weights: Option<&ClipWeights>,
    dictionary: Option<&Dictionary>,
    device: Device,
) -> Result<(SegmenterConfig, Option<Frozen>)> {
    let first = &sites[0];
    let side = first.mask_side();
    let Chosen { encoder, frozen, d, reads } = Chosen::of(params, first, weights, device)?;
    let shared = params.method.wants().shares().then(|| SharedConfig {
        d,
        side,
        head_width: params.head_width,
        adapter: params.adapter && params.encoder == EncoderMode::Frozen,
        normalise: params.normalise,
        encoder,
    });
    let config = SegmenterConfig {
        method: params.method,
        params: params.methods.clone(),
        sizes: Sizes {
            d,
            side,
            confounders: dictionary.map_or(0, |d| d.z.size()[0]),
            classes: dictionary.map_or(0, |d| d.classes.size()[0]),
            sites: sites.len() as i64,
        },
        reads,
        shared,
        clip: weights.map(|weights| weights.config.clone()),
        token_ids: weights.and_then(|weights| weights.token_ids.clone()),
        classes: dictionary.map(|d| d.prompts.classes.clone()).unwrap_or_default(),
        class_prompts: dictionary.map(|d| d.prompts.class_prompts.clone()).unwrap_or_default(),
        origin: origin(params, first, frozen.as_ref(), weights),
        epoch: 0,
        averaged: None,
        validation_dice: None,
        kept_epoch: params.kept_epoch,
        selection: None,
    };
    Ok((config, frozen))
}

/// What made the features that the model reads: an encoder that is run frozen makes what `clip-features` would make with it.
fn origin(params: &Params, first: &SiteData, frozen: Option<&Frozen>, weights: Option<&ClipWeights>) -> Option<Origin> {
    let (None, Some(frozen)) = (&first.origin, frozen) else { return first.origin.clone() };
    Some(Origin {
        weights: weights?.digest.clone()?,
        model: serde_json::to_string(&frozen.encoder.config.clip).expect("sizes are JSON"),
        dense: serde_json::to_string(&params.dense).expect("a word is JSON"),
        precision: serde_json::to_string(&Precision::Fp32).expect("a word is JSON"),
    })
}

/// The encoder that goes with the sites' data and `encoder`.
struct Chosen {
    /// Trained with the rest.
    encoder: Option<EncoderConfig>,
    /// Run and not trained.
    frozen: Option<Frozen>,
    /// Dimension of the features; 0 for a network of its own.
    d: i64,
    reads: Reads,
}

impl Chosen {
    fn of(params: &Params, first: &SiteData, weights: Option<&ClipWeights>, device: Device) -> Result<Self> {
        let finetune = params.encoder == EncoderMode::Finetune;
        match &first.content {
            Content::Pixels(pixels) if !params.method.wants().shares() => {
                Ok(Self { encoder: None, frozen: None, d: 0, reads: Reads::Pixels(pixels.size()[2]) })
            }
            Content::Pixels(pixels) => {
                let (config, weights) = tower(params, weights, 0)?;
                let d = config.clip.embed_dim;
                if finetune {
                    return Ok(Self { encoder: Some(config), frozen: None, d, reads: Reads::Pixels(pixels.size()[2]) });
                }
                // The encoder stays what it was: cached features serve as well later, and nothing of it need be kept.
                Ok(Self { encoder: None, frozen: Some(frozen(weights, &config, device)?), d, reads: Reads::Features })
            }
            Content::Activations { .. } if !finetune || params.method.wants().data != Takes::Shared => refused(
                "the features are activations in front of an encoder's last blocks: train a method that shares the encoder with `encoder: finetune`",
            ),
            Content::Activations { blocks, .. } => {
                let (config, weights) = tower(params, weights, *blocks)?;
                if first.origin.as_ref().map(|origin| &origin.weights) != weights.digest.as_ref() {
                    return refused("the activations and the `encoder` are of different weights");
                }
                let d = config.clip.embed_dim;
                Ok(Self { encoder: Some(config), frozen: None, d, reads: Reads::Activations(*blocks) })
            }
            Content::Features { .. } if finetune => refused(
                "`encoder: finetune` reads pixels (`needs: {samples: ...}`) or activations (`clip-features` with `blocks_left`)",
            ),
            Content::Features { pooled, .. } => {
                Ok(Self { encoder: None, frozen: None, d: pooled.size()[1], reads: Reads::Features })
            }
        }
    }
}

/// An image tower, or its last blocks, and the weights that it starts from.
fn tower<'a>(
    params: &Params,
    weights: Option<&'a ClipWeights>,
    blocks_left: i64,
) -> Result<(EncoderConfig, &'a ClipWeights)> {
    let Some(weights) = weights else {
        return refused(
            "an image encoder cannot do without CLIP's weights: give the stage `needs: {encoder: ...}`, a stage of the kind `clip-weights`",
        );
    };
    Ok((EncoderConfig { clip: weights.config.clone(), dense: params.dense, blocks_left }, weights))
}

/// Leaves all but the last blocks of a fine-tuned image tower as they are, where so many are named.
///
/// # Errors
/// More blocks than there are; blocks without a fine-tuned tower.
pub fn freeze_early_blocks(model: &mut Segmenter, params: &Params) -> Result<()> {
    let blocks = params.encoder_blocks;
    if blocks == 0 {
        return Ok(());
    }
    let Some(encoder) = model.config.shared.as_ref().and_then(|shared| shared.encoder.as_ref()) else {
        return refused("`encoder_blocks` counts for `encoder: finetune` alone");
    };
    let there = if encoder.blocks_left > 0 { encoder.blocks_left } else { encoder.clip.vision_layers };
    if blocks > there {
        return refused(format!("`encoder_blocks` is {blocks}; there are {there} blocks"));
    }
    for (name, variable) in model.store.variables() {
        let early = |name: &str| !encoder.clip.is_in_last_blocks(name, blocks);
        if name.strip_prefix("encoder.visual.").is_some_and(early) {
            let _ = variable.set_requires_grad(false);
        }
    }
    Ok(())
}
