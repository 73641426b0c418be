//! `train`: features or pixels of the training sites to a segmentation model, by one of the registered methods.
//!
//! Writes `model.safetensors`, `config.json` (what the model is built by) and `history.parquet` (one row an epoch).

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema};
use siteline_pipeline::protocol::{Role, StageKind};
use tch::Device;

use super::context::Ctx;
use super::spec::{Spec, input, output};
use crate::data::{Content, Origin, SiteData};
use crate::dictionary::Dictionary;
use crate::error::{Result, StageError};
use crate::frame;
use crate::method::contract::{Sizes, Wants};
use crate::model::clip::weights::ClipWeights;
use crate::segmenter::{Reads, Segmenter, SegmenterConfig, frozen};
use crate::shared::{EncoderConfig, Frozen, SharedConfig};
use crate::trainer::params::{EncoderMode, Params};
use crate::trainer::{self, EpochRow};

/// The kind's specification.
pub fn kind() -> StageKind {
    Spec {
        name: "train",
        summary: "trains a segmentation method on the training sites, from cached features or from pixels",
        params: schemars::schema_for!(Params),
        inputs: vec![
            input("features", Role::Plain, &["features.parquet"]).gathered().optional(),
            input("samples", Role::Plain, &["samples.parquet", "pixels.parquet"]).gathered().optional(),
            input("encoder", Role::Plain, &["weights.safetensors", "clip.json"]).optional(),
            input("dictionary", Role::Plain, &["dictionary.safetensors", "prompts.json"]).optional(),
        ],
        sources: vec![],
        outputs: vec![output("model.safetensors"), output("config.json"), output("history.parquet")],
    }
    .into()
}

/// Trains.
///
/// # Errors
/// Data that do not fit each other, the method or the dictionary; a loss that is not a number.
pub fn run(ctx: &Ctx) -> Result<()> {
    let params: Params = ctx.params()?;
    let device = Device::cuda_if_available();
    let weights = encoder_weights(ctx)?;
    let sites = read_sites(ctx, &params, weights.as_ref())?;
    let dictionary = match ctx.inputs("dictionary").next() {
        None => None,
        Some(input) => {
            Some(Dictionary::read(Ctx::file(input, "dictionary.safetensors")?, Ctx::file(input, "prompts.json")?)?)
        }
    };
    let (config, frozen) = configure(&params, &sites, weights.as_ref(), dictionary.as_ref(), device)?;
    let mut model = Segmenter::new(config, dictionary.as_ref(), weights.as_ref(), frozen, Some(params.seed), device)?;
    freeze_early_blocks(&mut model, &params)?;
    let trained = model.store.variables().into_values().filter(tch::Tensor::requires_grad);
    let parameters: usize = trained.map(|variable| variable.numel()).sum();
    ctx.log(format!("{parameters} trainable parameters, {} sites", sites.len()));
    ctx.metric("trainable parameters", parameters as f64);
    let tell = |epoch: usize, row: Option<&EpochRow>| {
        ctx.progress(epoch, params.epochs, "epochs");
        match row {
            Some(row) => ctx.log(serde_json::to_string(row).expect("numbers are JSON")),
            None => ctx.log(format!("goes on in epoch {}, from the checkpoint of an interrupted execution", epoch + 1)),
        }
    };
    let (rows, epoch) = trainer::train(&mut model, &params, &sites, &mut ctx.checkpoints(), &tell)?;
    ctx.metric("selected epoch", epoch as f64);
    if let Some(dice) = rows[epoch - 1].validation_dice {
        ctx.metric("validation dice", dice);
    }
    if let Some(remark) = model.method.remark(epoch) {
        ctx.warn(remark);
    }
    model.save(&ctx.output("model.safetensors"), &ctx.output("config.json"))?;
    write_history(ctx, &rows)
}

/// CLIP's weights, where the stage needs `encoder`.
///
/// # Errors
/// Files that hold something else.
pub fn encoder_weights(ctx: &Ctx) -> Result<Option<ClipWeights>> {
    let read =
        |input| ClipWeights::read_written(Ctx::file(input, "weights.safetensors")?, Ctx::file(input, "clip.json")?);
    ctx.inputs("encoder").next().map(read).transpose()
}

/// The training sites, as the method reads them.
fn read_sites(ctx: &Ctx, params: &Params, weights: Option<&ClipWeights>) -> Result<Vec<SiteData>> {
    let wants = params.method.wants();
    let has_features = ctx.inputs("features").next().is_some();
    let (name, what) = match wants {
        Wants::Shared if has_features => ("features", ""),
        Wants::Shared => ("samples", "`features`, or `samples` and an `encoder`"),
        Wants::SharedOnFeatures | Wants::Features => ("features", "`features`"),
        Wants::SharedOnPixels => ("samples", "`samples` and an `encoder`"),
        Wants::Pixels => ("samples", "`samples`"),
    };
    let word = params.method.word();
    if ctx.inputs(name).next().is_none() {
        let message = format!("{word} is trained on {what}: name them in the stage's `needs`");
        return Err(StageError::Request(message));
    }
    if params.encoder == EncoderMode::Finetune && !matches!(wants, Wants::Shared | Wants::SharedOnPixels) {
        let message = format!("{word} has no encoder that could be fine-tuned: leave `encoder: finetune` out");
        return Err(StageError::Request(message));
    }
    let side = weights.map(|weights| weights.config.image_size);
    let sites = ctx.inputs(name).map(|input| {
        let site = input.point.get("site").map_or("all", String::as_str);
        if name == "features" {
            return SiteData::features(site, Ctx::file(input, "features.parquet")?);
        }
        SiteData::pixels(site, Ctx::file(input, "samples.parquet")?, Ctx::file(input, "pixels.parquet")?, side)
    });
    let sites = sites.collect::<Result<Vec<_>>>()?;
    let first = sites.first().ok_or_else(|| StageError::Request("there is no site to train on".into()))?;
    let differs = |s: &&SiteData| {
        s.content.shapes() != first.content.shapes() || s.mask_side() != first.mask_side() || s.origin != first.origin
    };
    if let Some(other) = sites.iter().find(differs) {
        return Err(StageError::Request(format!(
            "the sites `{}` and `{}` have features of different encoders, or images of different sizes",
            first.site, other.site
        )));
    }
    Ok(sites)
}

/// What the model is built by, and the encoder that is run and not trained.
fn configure(
    params: &Params,
    sites: &[SiteData],
    weights: Option<&ClipWeights>,
    dictionary: Option<&Dictionary>,
    device: Device,
) -> Result<(SegmenterConfig, Option<Frozen>)> {
    let first = &sites[0];
    let side = first.mask_side();
    let needs_weights = |what: &str| {
        weights.ok_or_else(|| {
            StageError::Request(format!(
                "{what} cannot do without CLIP's weights: give the stage `needs: {{encoder: ...}}`, a stage of the kind `clip-weights`"
            ))
        })
    };
    let tower = |blocks_left: i64, what: &str| -> Result<EncoderConfig> {
        Ok(EncoderConfig { clip: needs_weights(what)?.config.clone(), dense: params.dense, blocks_left })
    };
    let shares = params.method.wants().shares();
    let image_size = weights.map_or(side, |weights| weights.config.image_size);
    let (encoder, frozen, d, reads) = match &first.content {
        Content::Pixels(_) if !shares => (None, None, 0, Reads::Pixels(image_size)),
        Content::Pixels(_) => {
            let config = tower(0, "an encoder that reads pixels")?;
            let d = config.clip.embed_dim;
            match params.encoder {
                EncoderMode::Finetune => (Some(config), None, d, Reads::Pixels(image_size)),
                EncoderMode::Frozen => {
                    let frozen = frozen(needs_weights("the encoder")?, &config, device)?;
                    // The encoder is what it was: cached features serve as well, and nothing of it need be kept.
                    (None, Some(frozen), d, Reads::Features)
                }
            }
        }
        Content::Activations { .. }
            if params.encoder == EncoderMode::Frozen || params.method.wants() != Wants::Shared =>
        {
            let message = "the features are activations in front of an encoder's last blocks: train a method that shares the encoder with `encoder: finetune`";
            return Err(StageError::Request(message.into()));
        }
        Content::Activations { blocks, .. } => {
            let same =
                |weights: &ClipWeights| first.origin.as_ref().map(|origin| &origin.weights) == weights.digest.as_ref();
            if !weights.is_some_and(same) {
                let message =
                    "the activations and the `encoder` are of different weights, or the stage has no `encoder`";
                return Err(StageError::Request(message.into()));
            }
            let config = tower(*blocks, "the last blocks of an encoder")?;
            let d = config.clip.embed_dim;
            (Some(config), None, d, Reads::Activations(*blocks))
        }
        Content::Features { .. } if params.encoder == EncoderMode::Finetune => {
            let message = "`encoder: finetune` reads pixels (`needs: {samples: ...}`) or activations (`clip-features` with `blocks_left`)";
            return Err(StageError::Request(message.into()));
        }
        Content::Features { pooled, .. } => (None, None, pooled.size()[1], Reads::Features),
    };
    // An encoder that is run frozen makes what `clip-features` would make with it.
    let origin = match (&first.origin, &frozen, weights.and_then(|weights| weights.digest.clone())) {
        (None, Some(frozen), Some(weights)) => Some(Origin {
            weights,
            model: serde_json::to_string(&frozen.encoder.config.clip).expect("sizes are JSON"),
            dense: serde_json::to_string(&params.dense).expect("a word is JSON"),
        }),
        (origin, ..) => origin.clone(),
    };
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
        shared: shares.then(|| SharedConfig {
            d,
            side,
            head_width: params.head_width,
            adapter: params.adapter && params.encoder == EncoderMode::Frozen,
            normalise: params.normalise,
            encoder,
        }),
        clip: weights.map(|weights| weights.config.clone()),
        token_ids: weights.and_then(|weights| weights.token_ids.clone()),
        classes: dictionary.map(|d| d.prompts.classes.clone()).unwrap_or_default(),
        class_prompts: dictionary.map(|d| d.prompts.class_prompts.clone()).unwrap_or_default(),
        origin,
        epoch: 0,
        kept_epoch: params.kept_epoch,
        selection: None,
    };
    Ok((config, frozen))
}

/// Leaves all but the last blocks of a fine-tuned image tower as they are, where so many are named.
fn freeze_early_blocks(model: &mut Segmenter, params: &Params) -> Result<()> {
    let blocks = params.encoder_blocks;
    let Some(encoder) = model.config.shared.as_ref().and_then(|shared| shared.encoder.as_ref()) else {
        return if blocks == 0 {
            Ok(())
        } else {
            Err(StageError::Request("`encoder_blocks` counts for `encoder: finetune` alone".into()))
        };
    };
    let there = if encoder.blocks_left > 0 { encoder.blocks_left } else { encoder.clip.vision_layers };
    if blocks > there {
        return Err(StageError::Request(format!("`encoder_blocks` is {blocks}; there are {there} blocks")));
    }
    if blocks == 0 {
        return Ok(());
    }
    let clip = &encoder.clip;
    for (name, mut variable) in model.store.variables() {
        if let Some(name) = name.strip_prefix("encoder.visual.")
            && !clip.is_in_last_blocks(name, params.encoder_blocks)
        {
            let _ = variable.requires_grad_(false);
        }
    }
    Ok(())
}

fn write_history(ctx: &Ctx, rows: &[EpochRow]) -> Result<()> {
    let number = |name, nullable| Field::new(name, DataType::Float64, nullable);
    let penalties: BTreeSet<&String> = rows.iter().flat_map(|row| row.penalties.keys()).collect();
    let mut fields = vec![Field::new("epoch", DataType::UInt32, false), number("segmentation_loss", false)];
    fields.extend(penalties.iter().map(|name| Field::new(format!("{name}_loss"), DataType::Float64, true)));
    fields.push(number("validation_dice", true));
    let schema = Schema::new(fields);
    let column =
        |of: &dyn Fn(&EpochRow) -> Option<f64>| -> ArrayRef { Arc::new(rows.iter().map(of).collect::<Float64Array>()) };
    let mut writer = frame::Writer::new(&ctx.output("history.parquet"), schema, &[])?;
    let mut columns: Vec<ArrayRef> = vec![
        Arc::new(rows.iter().map(|row| row.epoch as u32).collect::<UInt32Array>()),
        column(&|row| Some(row.segmentation)),
    ];
    columns.extend(penalties.iter().map(|name| column(&|row| row.penalties.get(*name).copied())));
    columns.push(column(&|row| row.validation_dice));
    writer.write(columns)?;
    writer.finish()
}
