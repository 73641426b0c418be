//! `clip-features`: a site's images through a frozen CLIP image tower, kept as Parquet.
//!
//! One file a site and backbone: id, patient, class, split, pooled feature (d floats), dense features (grid x grid x d
//! floats, position by position), and the mask at working size, one bit a pixel. Floats are 32 bits, as the projection
//! gives them, not normalised. With `blocks_left` what the tower's last blocks are given stands in their place: a training of
//! those blocks reads no pixel. The metadata names the weights and the preprocessing.

mod encoder;

use std::path::Path;
use std::sync::mpsc::sync_channel;

use arrow::array::ArrayRef;
use arrow::datatypes::Schema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use siteline_datasets::raster::Rgb;
use siteline_pipeline::protocol::{Role, SourceFrom, SourceSpec, StageKind};

use super::context::Ctx;
use super::spec::{Spec, input, output};
use crate::error::{Result, StageError};
use crate::frame::{self, ROW_GROUP};
use crate::model::clip::{ClipConfig, Dense, IMAGE_MEAN, IMAGE_STD};
use crate::precision::Precision;
use encoder::Encoder;

/// Parameters of `clip-features`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// How dense features are taken from the last block: `values` is MaskCLIP's value path, `tokens` the whole block.
    pub dense: Dense,
    /// Stop in front of so many last blocks and keep what is there, for `train` with `encoder: finetune`: a ViT's tokens, the map of a
    /// ResNet, whose blocks are counted over its stages; 0 keeps features.
    #[schemars(range(min = 0))]
    pub blocks_left: i64,
    /// Images that go through the encoder at once on a GPU; on a CPU each thread takes four, or one for a ResNet.
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
    let encoder = Encoder::open(ctx, &params)?;
    let samples = ctx.input("samples")?;
    let rows = read_rows(Ctx::file(samples, "samples.parquet")?)?;
    let pixels = Ctx::file(samples, "pixels.parquet")?;
    let side = encoder.config().image_size as u32;
    let mask_side: u32 = frame::Reader::open(pixels, None)?.note("side")?;
    let columns = columns(encoder.config(), &params);
    let (schema, notes) = (schema(&columns, mask_side), notes(&encoder, &params, mask_side));
    let mut writer = frame::Writer::new(&ctx.output("features.parquet"), schema, &notes)?;
    // One thread reads and resizes while this one encodes; the channel keeps it two batches ahead, no more.
    let (sender, ready) = sync_channel::<Result<Ready>>(2);
    let (path, chunk) = (pixels.to_owned(), encoder.chunk(ROW_GROUP));
    let reader = std::thread::spawn(move || read_ahead(&path, side, mask_side, chunk, &sender));
    let (mut done, mut encoded) = (0, 0);
    for batch in ready {
        let batch = batch?;
        let count = batch.masks.len();
        let (features, computed) = encoder.features(&batch.pixels, count)?;
        encoded += computed;
        let of = rows
            .get(done..done + count)
            .ok_or_else(|| StageError::data(pixels, "it has more rows than samples.parquet"))?;
        writer.write(written(of, &features, &columns, &batch.masks)?)?;
        done += count;
        ctx.progress(done, rows.len(), "images");
    }
    reader.join().map_err(|_| StageError::Request("the reading thread panicked".into()))?;
    ctx.metric("images", done as f64);
    ctx.metric("images encoded", encoded as f64);
    writer.finish()
}

/// Columns of floats, each with its width.
type Columns = Vec<(&'static str, usize)>;

fn columns(config: &ClipConfig, params: &Params) -> Columns {
    let (d, positions) = (config.embed_dim as usize, (config.grid() * config.grid()) as usize);
    match params.blocks_left {
        0 => vec![("pooled", d), ("dense", positions * d)],
        left => {
            let (positions, channels) = config.shape_of_activations(left);
            vec![("tokens", (positions * channels) as usize)]
        }
    }
}

fn schema(columns: &Columns, mask_side: u32) -> Schema {
    let mut fields = vec![
        frame::text_field("id", false),
        frame::text_field("patient", false),
        frame::text_field("class", true),
        frame::text_field("prompt", true),
        frame::text_field("split", false),
    ];
    fields.extend(columns.iter().map(|(name, width)| frame::floats_field(name, *width)));
    fields.push(frame::bytes_field("mask", frame::packed_length(mask_side)));
    Schema::new(fields)
}

/// What the file says of itself.
fn notes(encoder: &Encoder, params: &Params, mask_side: u32) -> Vec<(&'static str, String)> {
    let config = encoder.config();
    let side = config.image_size;
    let (positions, channels) = config.shape_of_activations(params.blocks_left);
    let mut notes = encoder.notes().to_vec();
    notes.extend([
        ("grid", config.grid().to_string()),
        ("embed_dim", config.embed_dim.to_string()),
        ("mask_side", mask_side.to_string()),
        ("blocks_left", params.blocks_left.to_string()),
        ("positions", positions.to_string()),
        ("width", channels.to_string()),
        ("dense", serde_json::to_string(&params.dense).expect("a word is JSON")),
        (
            "preprocessing",
            format!(
                "whole image to {side} x {side}, bicubic (Catmull-Rom, antialiased); mean {IMAGE_MEAN:?}; std {IMAGE_STD:?}"
            ),
        ),
        ("float", "float32, not normalised".to_owned()),
        ("precision", serde_json::to_string(&params.precision).expect("a word is JSON")),
    ]);
    notes
}

/// One batch as Parquet columns, in the order of the schema.
fn written(of: &[Row], features: &[Vec<f32>], columns: &Columns, masks: &[Vec<u8>]) -> Result<Vec<ArrayRef>> {
    let mut written = vec![
        frame::texts(of.iter().map(|r| Some(&r.id))),
        frame::texts(of.iter().map(|r| Some(&r.patient))),
        frame::texts(of.iter().map(|r| r.class.as_ref())),
        frame::texts(of.iter().map(|r| r.prompt.as_ref())),
        frame::texts(of.iter().map(|r| Some(&r.split))),
    ];
    let mut from = 0;
    for (_, width) in columns {
        let values = features.iter().flat_map(|f| &f[from..from + width]).copied().collect();
        written.push(frame::floats(*width, values)?);
        from += width;
    }
    written.push(frame::bytes(masks.iter())?);
    Ok(written)
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
