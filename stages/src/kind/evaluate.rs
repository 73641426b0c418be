//! `evaluate`: a model on the held-out site, image by image.
//!
//! Writes `scores.parquet` (one row an image) and `overlays/`: the truth's outline in green and the prediction's in magenta, on the
//! images when the stage also needs `samples`.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Float64Array, Int64Array};
use arrow::datatypes::{DataType, Field, Schema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use siteline_datasets::decode;
use siteline_pipeline::protocol::{Role, StageKind};
use tch::{Device, Kind, Tensor};

use super::context::Ctx;
use super::spec::{Spec, input, output};
use crate::error::{Result, StageError};
use crate::features::FeatureSet;
use crate::frame;
use crate::method::MethodName;
use crate::metric::Counts;
use crate::segmenter::{Segmenter, SegmenterConfig};
use crate::trainer::score;

/// Parameters of `evaluate`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Images of each site to draw, spread evenly over the site.
    #[schemars(range(max = 1000))]
    pub overlays: usize,
    /// The method of the model, given by the axis of that name: it says whose code predicts.
    pub method: Option<MethodName>,
    /// Set by the stage's own `in_domain`: the model may have been trained on the site that it is scored on.
    pub in_domain: bool,
}

impl Default for Params {
    fn default() -> Self {
        Self { overlays: 4, method: None, in_domain: false }
    }
}

/// The kind's specification.
pub fn kind() -> StageKind {
    Spec {
        name: "evaluate",
        summary: "scores a model on the features of a site, image by image",
        params: schemars::schema_for!(Params),
        inputs: vec![
            input("model", Role::Model, &["model.safetensors", "config.json"]),
            input("features", Role::Scored, &["features.parquet"]).gathered(),
            input("samples", Role::Scored, &["pixels.parquet"]).gathered().optional(),
        ],
        sources: vec![],
        outputs: vec![output("scores.parquet"), output("overlays/")],
    }
    .into()
}

/// Scores the model.
///
/// # Errors
/// A model or features that cannot be read, or that do not fit each other.
pub fn run(ctx: &Ctx) -> Result<()> {
    let params: Params = ctx.params()?;
    let input = ctx.input("model")?;
    let weights = Ctx::file(input, "model.safetensors")?;
    let model = Segmenter::load(weights, Ctx::file(input, "config.json")?, Device::cuda_if_available())?;
    if let Some(method) = params.method.filter(|method| *method != model.config.method) {
        return Err(StageError::Request(format!(
            "the model was trained with {:?}, not with {method:?}",
            model.config.method
        )));
    }
    let overlays = ctx.output("overlays");
    std::fs::create_dir_all(&overlays).map_err(StageError::io(&overlays))?;
    let mut rows = Vec::new();
    for input in ctx.inputs("features") {
        let name = input.point.get("site").map_or("all", String::as_str);
        let site = FeatureSet::read(name, Ctx::file(input, "features.parquet")?)?;
        if site.d() != model.config.sizes.d || site.mask_side() != model.config.side {
            return Err(StageError::Request(format!(
                "the features of the site `{name}` have another size than those of the training"
            )));
        }
        let all: Vec<i64> = (0..site.ids.len() as i64).collect();
        let counts = score(&model, &site, &all);
        let pixels = ctx.inputs("samples").find(|samples| samples.point.get("site") == input.point.get("site"));
        let pixels = pixels.map(|samples| Ctx::file(samples, "pixels.parquet")).transpose()?;
        draw(&params, &model, &site, pixels, &overlays)?;
        rows.extend(counts.into_iter().enumerate().map(|(row, counts)| Row {
            id: site.ids[row].clone(),
            patient: site.patients[row].clone(),
            class: site.classes[row].clone(),
            site: name.to_owned(),
            counts,
        }));
        ctx.progress(rows.len(), rows.len(), "images");
    }
    let mean = rows.iter().map(|row| row.counts.dice()).sum::<f64>() / rows.len().max(1) as f64;
    ctx.metric("mean dice", mean);
    write_scores(ctx, &rows, params.in_domain, &model.config)
}

struct Row {
    id: String,
    patient: String,
    class: Option<String>,
    site: String,
    counts: Counts,
}

fn write_scores(ctx: &Ctx, rows: &[Row], in_domain: bool, config: &SegmenterConfig) -> Result<()> {
    let whole = |name| Field::new(name, DataType::Int64, false);
    let number = |name| Field::new(name, DataType::Float64, false);
    let schema = Schema::new(vec![
        frame::text_field("id", false),
        frame::text_field("patient", false),
        frame::text_field("class", true),
        frame::text_field("site", false),
        whole("tp"),
        whole("fp"),
        whole("fn"),
        whole("tn"),
        number("dice"),
        number("iou"),
        number("accuracy"),
        Field::new("in_domain", DataType::Boolean, false),
        frame::text_field("selection", false),
        Field::new("oracle", DataType::Boolean, false),
    ]);
    let counts =
        |of: fn(&Counts) -> i64| -> ArrayRef { Arc::new(rows.iter().map(|r| of(&r.counts)).collect::<Int64Array>()) };
    let scores = |of: fn(&Counts) -> f64| -> ArrayRef {
        Arc::new(Float64Array::from_iter_values(rows.iter().map(|r| of(&r.counts))))
    };
    let selection = config.selection_words();
    let oracle = config.selection.as_ref().is_some_and(|selected| selected.oracle);
    let mut writer =
        frame::Writer::new(&ctx.output("scores.parquet"), schema, &[("empty masks", "both empty: overlap 1".into())])?;
    writer.write(vec![
        frame::texts(rows.iter().map(|r| Some(&r.id))),
        frame::texts(rows.iter().map(|r| Some(&r.patient))),
        frame::texts(rows.iter().map(|r| r.class.as_ref())),
        frame::texts(rows.iter().map(|r| Some(&r.site))),
        counts(|c| c.tp),
        counts(|c| c.fp),
        counts(|c| c.r#fn),
        counts(|c| c.tn),
        scores(Counts::dice),
        scores(Counts::iou),
        scores(Counts::accuracy),
        Arc::new(BooleanArray::from(vec![in_domain; rows.len()])),
        frame::texts(rows.iter().map(|_| Some(&selection))),
        Arc::new(BooleanArray::from(vec![oracle; rows.len()])),
    ])?;
    writer.finish()
}

/// Draws some images of a site with both outlines.
fn draw(params: &Params, model: &Segmenter, site: &FeatureSet, pixels: Option<&Path>, folder: &Path) -> Result<()> {
    let count = params.overlays.min(site.ids.len());
    let rows: Vec<usize> = (0..count).map(|i| i * site.ids.len() / count.max(1)).collect();
    let side = site.mask_side() as usize;
    let wanted: HashMap<&str, ()> = rows.iter().map(|row| (site.ids[*row].as_str(), ())).collect();
    let images = match pixels {
        None => HashMap::new(),
        Some(path) => read_images(path, &wanted)?,
    };
    for row in rows {
        let id = &site.ids[row];
        let index = Tensor::from_slice(&[row as i64]);
        let of = |tensor: &Tensor| tensor.index_select(0, &index).to_device(model.store.device());
        let predicted = mask_of(&model.predict(&of(&site.pooled), &of(&site.dense)))?;
        let truth = mask_of(&site.masks.index_select(0, &index))?;
        let grey = vec![96u8; side * side * 3];
        let image = images.get(id.as_str()).unwrap_or(&grey);
        if image.len() != side * side * 3 {
            return Err(StageError::Request(format!("the pixels of `{id}` have another size than its mask")));
        }
        let (bytes, large) = outlined(image, &truth, &predicted, side);
        decode::write_png(&folder.join(format!("{}.{id}.png", site.site)), (large, large), &bytes, false)?;
    }
    Ok(())
}

fn mask_of(mask: &Tensor) -> Result<Vec<bool>> {
    let bytes = Vec::<u8>::try_from(mask.to_device(Device::Cpu).to_kind(Kind::Uint8).contiguous().view(-1))?;
    Ok(bytes.into_iter().map(|b| b > 0).collect())
}

fn read_images(path: &Path, wanted: &HashMap<&str, ()>) -> Result<HashMap<String, Vec<u8>>> {
    let mut reader = frame::Reader::open(path, Some(&["id", "image"]))?;
    let mut images = HashMap::new();
    while let Some(batch) = reader.next_batch()? {
        let bytes = batch.bytes("image")?;
        let width = bytes.len() / batch.rows().max(1);
        for (id, image) in batch.texts("id")?.into_iter().zip(bytes.chunks(width.max(1))) {
            if let Some(id) = id.filter(|id| wanted.contains_key(id.as_str())) {
                images.insert(id, image.to_vec());
            }
        }
    }
    Ok(images)
}

/// The image at twice to four times its size, so that outlines of one pixel are thin against it. Returns RGB bytes and the side.
fn outlined(image: &[u8], truth: &[bool], predicted: &[bool], side: usize) -> (Vec<u8>, u32) {
    let factor = (384 / side).clamp(1, 4);
    let large = side * factor;
    let mut bytes = vec![0; large * large * 3];
    let edge = |mask: &[bool], x: usize, y: usize| {
        let at = |x: usize, y: usize| mask[(y / factor) * side + x / factor];
        at(x, y)
            && (x == 0
                || y == 0
                || x + 1 == large
                || y + 1 == large
                || !at(x - 1, y)
                || !at(x + 1, y)
                || !at(x, y - 1)
                || !at(x, y + 1))
    };
    for y in 0..large {
        for x in 0..large {
            let source = ((y / factor) * side + x / factor) * 3;
            let colour = match (edge(truth, x, y), edge(predicted, x, y)) {
                (true, true) => [255, 255, 255],
                (true, false) => [60, 255, 90],
                (false, true) => [255, 40, 220],
                (false, false) => [image[source], image[source + 1], image[source + 2]],
            };
            bytes[(y * large + x) * 3..][..3].copy_from_slice(&colour);
        }
    }
    (bytes, large as u32)
}
