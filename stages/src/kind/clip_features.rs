//! `clip-features`: a site's images through a frozen CLIP image tower, kept as Parquet.
//!
//! One file a site and backbone: id, patient, class, split, pooled feature (d floats), dense features (grid x grid x d
//! floats, position by position), and the mask at working size, one bit a pixel. Floats are 32 bits, as the projection
//! gives them, not normalised. With `blocks_left` the tokens in front of a ViT's last blocks stand in their place: a training of
//! those blocks reads no pixel. The metadata names the weights and the preprocessing.

use std::path::Path;
use std::sync::mpsc::sync_channel;

use arrow::datatypes::Schema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use siteline_cache::Digest;
use siteline_datasets::raster::Rgb;
use siteline_pipeline::protocol::{Role, SourceFrom, SourceSpec, StageKind};
use tch::{Device, Kind, Tensor};

use super::backbone;
use super::context::Ctx;
use super::spec::{Spec, input, output};
use crate::error::{Result, StageError};
use crate::frame::{self, ROW_GROUP};
use crate::memo::Memo;
use crate::model::clip::{Clip, Dense, IMAGE_MEAN, IMAGE_STD, Tower, normalise_pixels, weights};
use crate::precision::Precision;

/// Parameters of `clip-features`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// How dense features are taken from the last block: `values` is MaskCLIP's value path, `tokens` the whole block.
    pub dense: Dense,
    /// Stop in front of so many last blocks of a ViT and keep the tokens there, for `train` with `encoder: finetune`; 0 keeps
    /// features.
    #[schemars(range(min = 0))]
    pub blocks_left: i64,
    /// Images that go through the encoder at once on a GPU; a CPU takes them one by one.
    #[schemars(range(min = 1, max = 4096))]
    pub batch: usize,
    /// Floats that the encoder is run in; features are kept in 32 bits.
    pub precision: Precision,
}

impl Default for Params {
    fn default() -> Self {
        Self { dense: Dense::Values, blocks_left: 0, batch: 32, precision: Precision::Fp32 }
    }
}

/// The kind's specification.
pub fn kind() -> StageKind {
    Spec {
        name: "clip-features",
        summary: "encodes a site's images with a frozen CLIP and keeps pooled and dense features",
        params: schemars::schema_for!(Params),
        inputs: vec![input("samples", Role::Plain, &["samples.parquet", "pixels.parquet"])],
        sources: vec![SourceSpec { name: "weights".into(), from: SourceFrom::Backbone }],
        requires: vec![],
        outputs: vec![output("features.parquet")],
    }
    .into()
}

/// One row of `samples.parquet`, as far as it is passed on.
struct Row {
    id: String,
    patient: String,
    class: Option<String>,
    prompt: Option<String>,
    split: String,
}

/// Pixels of some samples, ready for the encoder.
struct Ready {
    /// B x side x side x 3 bytes at the encoder's size.
    pixels: Vec<u8>,
    /// B masks, one bit a pixel.
    masks: Vec<Vec<u8>>,
}

/// Encodes the site's images.
///
/// # Errors
/// Weights that are no CLIP, pixels that cannot be read.
pub fn run(ctx: &Ctx) -> Result<()> {
    let params: Params = ctx.params()?;
    let (file, settings) = backbone::source(ctx)?;
    let device = Device::cuda_if_available();
    let (mut store, clip) = weights::load(&file.path, settings, device)?;
    if !params.precision.is_full() {
        store.set_kind(params.precision.kind());
    }
    let samples = ctx.input("samples")?;
    let rows = read_rows(Ctx::file(samples, "samples.parquet")?)?;
    let pixels = Ctx::file(samples, "pixels.parquet")?;
    let side = clip.config.image_size;
    let mask_side: u32 = frame::Reader::open(pixels, None)?.note("side")?;
    let (d, positions) = (clip.config.embed_dim as usize, (clip.config.grid() * clip.config.grid()) as usize);
    let columns = match params.blocks_left {
        0 => vec![("pooled", d), ("dense", positions * d)],
        _ => vec![("tokens", (positions + 1) * clip.config.vision_width as usize)],
    };
    if clip.config.resnet.is_some() && params.dense == Dense::Tokens {
        return Err(StageError::Request(
            "a ResNet has no tokens: `dense: values` is its one way to dense features".into(),
        ));
    }
    if params.blocks_left > 0 && (clip.config.resnet.is_some() || params.blocks_left > clip.config.vision_layers) {
        let message = format!("this backbone's image tower has no {} last blocks", params.blocks_left);
        return Err(StageError::Request(message));
    }
    let mut fields = vec![
        frame::text_field("id", false),
        frame::text_field("patient", false),
        frame::text_field("class", true),
        frame::text_field("prompt", true),
        frame::text_field("split", false),
    ];
    fields.extend(columns.iter().map(|(name, width)| frame::floats_field(name, *width)));
    fields.push(frame::bytes_field("mask", frame::packed_length(mask_side)));
    let schema = Schema::new(fields);
    let notes = [
        ("weights", file.digest.to_string()),
        ("model", serde_json::to_string(&clip.config).expect("a configuration is JSON")),
        ("grid", clip.config.grid().to_string()),
        ("embed_dim", d.to_string()),
        ("mask_side", mask_side.to_string()),
        ("blocks_left", params.blocks_left.to_string()),
        ("width", clip.config.vision_width.to_string()),
        ("dense", serde_json::to_string(&params.dense).expect("a word is JSON")),
        (
            "preprocessing",
            format!(
                "whole image to {side} x {side}, bicubic (Catmull-Rom, antialiased); mean {IMAGE_MEAN:?}; std {IMAGE_STD:?}"
            ),
        ),
        ("positions", format!("interpolated with antialias {}", settings.antialias)),
        ("float", "float32, not normalised".to_owned()),
        ("precision", serde_json::to_string(&params.precision).expect("a word is JSON")),
    ];
    let mut writer = frame::Writer::new(&ctx.output("features.parquet"), schema, &notes)?;
    // One thread reads and resizes while this one encodes; the channel keeps it two batches ahead, no more.
    let (sender, ready) = sync_channel::<Result<Ready>>(2);
    let (path, chunk) = (pixels.to_owned(), params.batch.min(ROW_GROUP));
    let reader = std::thread::spawn(move || read_ahead(&path, side as u32, mask_side, chunk, &sender));
    let encoder = Encoder {
        clip,
        params: params.clone(),
        device,
        memo: ctx.memo(),
        context: json!([notes, format!("{device:?}"), if device.is_cuda() { params.batch } else { 1 }]),
    };
    let (mut done, mut encoded) = (0, 0);
    for batch in ready {
        let batch = batch?;
        let count = batch.masks.len();
        let (features, computed) = encoder.features(&batch.pixels, count)?;
        encoded += computed;
        let of = rows
            .get(done..done + count)
            .ok_or_else(|| StageError::data(pixels, "it has more rows than samples.parquet"))?;
        let mut written = vec![
            frame::texts(of.iter().map(|r| Some(&r.id))),
            frame::texts(of.iter().map(|r| Some(&r.patient))),
            frame::texts(of.iter().map(|r| r.class.as_ref())),
            frame::texts(of.iter().map(|r| r.prompt.as_ref())),
            frame::texts(of.iter().map(|r| Some(&r.split))),
        ];
        let mut from = 0;
        for (_, width) in &columns {
            let values = features.iter().flat_map(|f| &f[from..from + width]).copied().collect();
            written.push(frame::floats(*width, values)?);
            from += width;
        }
        written.push(frame::bytes(batch.masks.iter())?);
        writer.write(written)?;
        done += count;
        ctx.progress(done, rows.len(), "images");
    }
    reader.join().map_err(|_| StageError::Request("the reading thread panicked".into()))?;
    ctx.metric("images", done as f64);
    ctx.metric("images encoded", encoded as f64);
    writer.finish()
}

/// A CLIP image tower that remembers what it has encoded.
struct Encoder {
    clip: Clip,
    params: Params,
    device: Device,
    memo: Memo,
    /// Everything but the pixels that decides an image's features.
    context: Value,
}

impl Encoder {
    /// Pooled and dense features, or tokens, of `count` images, one after the other in one list each, and how many were computed.
    ///
    /// An image's features must not depend on its neighbours, or one that was remembered would differ from one that is computed:
    /// a CPU encodes images one by one, which costs it nothing; a GPU always encodes as many as `batch` says.
    fn features(&self, pixels: &[u8], count: usize) -> Result<(Vec<Vec<f32>>, usize)> {
        let length = pixels.len() / count.max(1);
        let images: Vec<&[u8]> = pixels.chunks(length.max(1)).collect();
        let key = |image: &&[u8]| self.memo.key(&json!([self.context, Digest::of_bytes(image)]));
        let keys: Vec<Digest> = images.iter().map(key).collect();
        let mut features: Vec<Option<Vec<f32>>> =
            keys.iter().map(|key| self.memo.get(key).map(|b| floats_of(&b))).collect();
        let missing: Vec<usize> = (0..count).filter(|index| features[*index].is_none()).collect();
        let at_once = if self.device.is_cuda() { self.params.batch } else { 1 };
        for group in missing.chunks(at_once) {
            let padded = (0..at_once).map(|place| images[group.get(place).copied().unwrap_or(group[0])]);
            let bytes: Vec<u8> = padded.flatten().copied().collect();
            let batch = normalise_pixels(&bytes, at_once as i64, self.clip.config.image_size, self.device)
                .to_kind(self.params.precision.kind());
            let made = tch::no_grad(|| match (&self.clip.vision, self.params.blocks_left) {
                (Tower::Vit(tower), left) if left > 0 => vec![tower.activations(&batch, left)],
                (tower, _) => {
                    let (pooled, dense) = tower.forward(&batch, self.params.dense, None);
                    vec![pooled, dense]
                }
            });
            for (place, index) in group.iter().enumerate() {
                let parts = made.iter().map(|part| values(&part.get(place as i64)));
                let values = parts.collect::<Result<Vec<_>>>()?.concat();
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                self.memo.put(&keys[*index], &bytes);
                features[*index] = Some(values);
            }
        }
        Ok((features.into_iter().flatten().collect(), missing.len()))
    }
}

fn floats_of(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|chunk| f32::from_le_bytes(*chunk)).collect()
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    let flat = tensor.to_device(Device::Cpu).to_kind(Kind::Float).contiguous().view(-1);
    Ok(Vec::<f32>::try_from(flat)?)
}

fn read_rows(path: &Path) -> Result<Vec<Row>> {
    let mut reader = frame::Reader::open(path, None)?;
    let mut rows = Vec::new();
    while let Some(batch) = reader.next_batch()? {
        let columns = ["id", "patient", "class", "prompt", "split"].map(|name| batch.texts(name));
        let [ids, patients, classes, prompts, splits] = columns;
        let rest = classes?.into_iter().zip(prompts?).zip(splits?);
        for ((id, patient), ((class, prompt), split)) in ids?.into_iter().zip(patients?).zip(rest) {
            let text = |value: Option<String>| value.ok_or_else(|| StageError::data(path, "a text is missing"));
            rows.push(Row { id: text(id)?, patient: text(patient)?, class, prompt, split: text(split)? });
        }
    }
    Ok(rows)
}

fn read_ahead(
    path: &Path,
    side: u32,
    mask_side: u32,
    chunk: usize,
    sender: &std::sync::mpsc::SyncSender<Result<Ready>>,
) {
    let work = || -> Result<()> {
        let mut reader = frame::Reader::open(path, None)?;
        let area = (mask_side * mask_side) as usize;
        while let Some(batch) = reader.next_batch()? {
            let (images, masks) = (batch.bytes("image")?, batch.bytes("mask")?);
            for (images, masks) in images.chunks(chunk * area * 3).zip(masks.chunks(chunk * area)) {
                let resized = images.chunks(area * 3).flat_map(|bytes| {
                    Rgb { width: mask_side, height: mask_side, bytes: bytes.to_vec() }.resized(side).bytes
                });
                let ready = Ready { pixels: resized.collect(), masks: masks.chunks(area).map(frame::pack).collect() };
                if sender.send(Ok(ready)).is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    };
    if let Err(error) = work() {
        let _ = sender.send(Err(error));
    }
}
