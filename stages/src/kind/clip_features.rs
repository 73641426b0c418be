//! `clip-features`: a site's images through a frozen CLIP image tower, kept as Parquet.
//!
//! One file a site and backbone: id, patient, class, split, pooled feature (d floats), dense features (grid x grid x d
//! floats, position by position), and the mask at working size, one bit a pixel. Floats are 32 bits, as the projection
//! gives them, not normalised. The metadata names the weights and the preprocessing.

use std::path::Path;
use std::sync::mpsc::sync_channel;

use arrow::datatypes::Schema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use siteline_datasets::decode::Rgb;
use siteline_pipeline::protocol::{Role, SourceFrom, SourceSpec, StageKind};
use tch::{Device, Kind, Tensor};

use super::context::Ctx;
use super::spec::{Spec, input, output};
use crate::error::{Result, StageError};
use crate::frame::{self, ROW_GROUP};
use crate::model::clip::{Dense, IMAGE_MEAN, IMAGE_STD, normalise_pixels, weights};

/// Parameters of `clip-features`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// How dense features are taken from the last block: `values` is MaskCLIP's value path, `tokens` the whole block.
    pub dense: Dense,
    /// Images that go through the encoder at once.
    #[schemars(range(min = 1, max = 4096))]
    pub batch: usize,
}

impl Default for Params {
    fn default() -> Self {
        Self { dense: Dense::Values, batch: 32 }
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
        outputs: vec![output("features.parquet")],
    }
    .into()
}

/// One row of `samples.parquet`, as far as it is passed on.
struct Row {
    id: String,
    patient: String,
    class: Option<String>,
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
    let source = ctx.source("weights")?;
    let file = source.files.first().ok_or_else(|| StageError::Request("the backbone has no weights".into()))?;
    let settings: weights::Settings = serde_json::from_value(source.settings.clone())
        .map_err(|e| StageError::Request(format!("the backbone `{}`: {e}", source.name)))?;
    let device = Device::cuda_if_available();
    let (_store, clip) = weights::load(&file.path, settings, device)?;
    let samples = ctx.input("samples")?;
    let rows = read_rows(Ctx::file(samples, "samples.parquet")?)?;
    let pixels = Ctx::file(samples, "pixels.parquet")?;
    let side = clip.config.image_size;
    let mask_side: u32 = frame::Reader::open(pixels, None)?.note("side")?;
    let (d, positions) = (clip.config.embed_dim as usize, (clip.config.grid() * clip.config.grid()) as usize);
    let schema = Schema::new(vec![
        frame::text_field("id", false),
        frame::text_field("patient", false),
        frame::text_field("class", true),
        frame::text_field("split", false),
        frame::floats_field("pooled", d),
        frame::floats_field("dense", positions * d),
        frame::bytes_field("mask", frame::packed_length(mask_side)),
    ]);
    let notes = [
        ("weights", file.digest.to_string()),
        ("model", serde_json::to_string(&clip.config).expect("a configuration is JSON")),
        ("grid", clip.config.grid().to_string()),
        ("embed_dim", d.to_string()),
        ("mask_side", mask_side.to_string()),
        ("dense", serde_json::to_string(&params.dense).expect("a word is JSON")),
        (
            "preprocessing",
            format!(
                "whole image to {side} x {side}, bicubic (Catmull-Rom, antialiased); mean {IMAGE_MEAN:?}; std {IMAGE_STD:?}"
            ),
        ),
        ("float", "float32, not normalised".to_owned()),
    ];
    let mut writer = frame::Writer::new(&ctx.output("features.parquet"), schema, &notes)?;
    // One thread reads and resizes while this one encodes; the channel keeps it two batches ahead, no more.
    let (sender, ready) = sync_channel::<Result<Ready>>(2);
    let (path, chunk) = (pixels.to_owned(), params.batch.min(ROW_GROUP));
    let reader = std::thread::spawn(move || read_ahead(&path, side as u32, mask_side, chunk, &sender));
    let mut done = 0;
    for batch in ready {
        let batch = batch?;
        let count = batch.masks.len();
        let images = normalise_pixels(&batch.pixels, count as i64, side, device);
        let (pooled, dense) = tch::no_grad(|| clip.vision.forward(&images, params.dense));
        let of = rows
            .get(done..done + count)
            .ok_or_else(|| StageError::data(pixels, "it has more rows than samples.parquet"))?;
        writer.write(vec![
            frame::texts(of.iter().map(|r| Some(&r.id))),
            frame::texts(of.iter().map(|r| Some(&r.patient))),
            frame::texts(of.iter().map(|r| r.class.as_ref())),
            frame::texts(of.iter().map(|r| Some(&r.split))),
            frame::floats(d, values(&pooled)?)?,
            frame::floats(positions * d, values(&dense)?)?,
            frame::bytes(batch.masks.iter())?,
        ])?;
        done += count;
        ctx.progress(done, rows.len(), "images");
    }
    reader.join().map_err(|_| StageError::Request("the reading thread panicked".into()))?;
    ctx.metric("images", done as f64);
    writer.finish()
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    let flat = tensor.to_device(Device::Cpu).to_kind(Kind::Float).contiguous().view(-1);
    Ok(Vec::<f32>::try_from(flat)?)
}

fn read_rows(path: &Path) -> Result<Vec<Row>> {
    let mut reader = frame::Reader::open(path, None)?;
    let mut rows = Vec::new();
    while let Some(batch) = reader.next_batch()? {
        let columns = [batch.texts("id")?, batch.texts("patient")?, batch.texts("class")?, batch.texts("split")?];
        let [ids, patients, classes, splits] = columns;
        for (((id, patient), class), split) in ids.into_iter().zip(patients).zip(classes).zip(splits) {
            let text = |value: Option<String>| value.ok_or_else(|| StageError::data(path, "a text is missing"));
            rows.push(Row { id: text(id)?, patient: text(patient)?, class, split: text(split)? });
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
