//! `evaluate`: a model on the held-out site, image by image.
//!
//! Writes `scores.parquet` (one row an image) and `overlays/`: the truth's outline in green and the prediction's in magenta, on the
//! images when the stage also needs `samples`.

mod scores;

use std::collections::HashMap;
use std::path::Path;

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Map;
use siteline_datasets::decode;
use siteline_pipeline::protocol::{InputCount, Requirement, Role, RunInput, StageKind};
use tch::Device;

use self::scores::Row;
use super::backbone;
use super::context::Ctx;
use super::spec::{Spec, input, output};
use crate::data::{Content, SiteData};
use crate::error::{Result, StageError};
use crate::frame;
use crate::method::MethodName;
use crate::metric::calibration::calibration;
use crate::metric::{Counts, surface};
use crate::segmenter::{Reads, Segmenter};
use crate::trainer::batch::{AT_ONCE, Facts, Samples};

/// Parameters of `evaluate`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Images of each site to draw, spread evenly over the site.
    #[schemars(range(max = 1000))]
    pub overlays: usize,
    /// The method of the model, given by the axis of that name: it says whose code predicts.
    pub method: Option<MethodName>,
    /// Tolerance of the NSD in pixels of the working size.
    #[schemars(range(min = 0.0))]
    pub nsd_tolerance: f64,
    /// Seed by which sentences are shuffled, for a method that asks for that.
    pub shuffle_seed: u64,
    /// Set by the stage's own `in_domain`: the model may have been trained on the site that it is scored on.
    pub in_domain: bool,
}

impl Default for Params {
    fn default() -> Self {
        Self { overlays: 4, method: None, nsd_tolerance: 2.0, shuffle_seed: 0, in_domain: false }
    }
}

/// The kind's specification.
pub fn kind() -> StageKind {
    Spec {
        name: "evaluate",
        summary: "scores a model on the features or the pixels of a site, image by image",
        params: schemars::schema_for!(Params),
        inputs: vec![
            input("model", Role::Model, &["model.safetensors", "config.json"]),
            input("features", Role::Scored, &["features.parquet"]).gathered().optional(),
            input("samples", Role::Scored, &["samples.parquet", "pixels.parquet"]).gathered().optional(),
            input("encoder", Role::Plain, &["weights.safetensors", "clip.json"]).optional(),
        ],
        sources: vec![],
        requires: MethodName::ALL.iter().map(|method| required(*method)).collect(),
        outputs: vec![output("scores.parquet"), output("overlays/")],
    }
    .into()
}

/// What a method's models are scored on.
fn required(method: MethodName) -> Requirement {
    let wants = method.wants();
    let encoder = wants.scored_with_encoder.then_some("encoder");
    let sets: Vec<Vec<&str>> =
        wants.data.scored_inputs().iter().map(|input| std::iter::once(*input).chain(encoder).collect()).collect();
    let of = |input: &&str| InputCount { input: (*input).to_owned(), least: 1 };
    let told = |set: &Vec<&str>| set.iter().map(|input| format!("`{input}`")).collect::<Vec<_>>().join(" and ");
    let words: Vec<String> = sets.iter().map(told).collect();
    Requirement {
        when: Map::from_iter([("method".to_owned(), method.word().into())]),
        any: sets.iter().map(|set| set.iter().map(of).collect()).collect(),
        message: format!("models of {} are scored on {}", method.word(), words.join(" or ")),
    }
}

/// Scores the model.
///
/// # Errors
/// A model or data that cannot be read, or that do not fit each other.
pub fn run(ctx: &Ctx) -> Result<()> {
    let params: Params = ctx.params()?;
    let input = ctx.input("model")?;
    let (file, config) = (Ctx::file(input, "model.safetensors")?, Ctx::file(input, "config.json")?);
    let weights = backbone::encoder(ctx)?;
    let model = Segmenter::load(file, config, weights.as_ref(), Device::cuda_if_available())?;
    if let Some(method) = params.method.filter(|method| *method != model.config.method) {
        let (trained, asked) = (model.config.method.word(), method.word());
        return Err(StageError::Request(format!("the model was trained with {trained}, not with {asked}")));
    }
    let overlays = ctx.output("overlays");
    std::fs::create_dir_all(&overlays).map_err(StageError::io(&overlays))?;
    let mut rows = Vec::new();
    let name = if matches!(model.config.reads, Reads::Pixels(_)) { "samples" } else { "features" };
    for input in ctx.inputs(name) {
        let site = read_site(&model, input)?;
        let samples = Samples::new(&site, Facts::to_predict(&model, &site, params.shuffle_seed)?);
        let all: Vec<i64> = (0..site.ids.len() as i64).collect();
        let predictions = predict(&model, &samples, &all)?;
        let found = score_site(&site, &predictions, &params);
        let pixels = ctx.inputs("samples").find(|samples| samples.point.get("site") == input.point.get("site"));
        let pixels = pixels.map(|samples| Ctx::file(samples, "pixels.parquet")).transpose()?;
        draw(&params, &predictions, &site, pixels, &overlays)?;
        rows.extend(found);
        ctx.progress(rows.len(), rows.len(), "images");
    }
    if rows.is_empty() {
        let message = format!("the model reads {name}: give the stage `needs: {{{name}: ...}}`");
        return Err(StageError::Request(message));
    }
    let mean = rows.iter().map(|row| row.counts.dice()).sum::<f64>() / rows.len() as f64;
    ctx.metric("mean dice", mean);
    let without = model.method.lacks(model.config.epoch);
    scores::write(&ctx.output("scores.parquet"), &rows, &params, &model.config, without)
}

/// The data of one site, as the model reads them.
fn read_site(model: &Segmenter, input: &RunInput) -> Result<SiteData> {
    let name = input.point.get("site").map_or("all", String::as_str);
    let site = match model.config.reads {
        Reads::Pixels(side) => {
            let (samples, pixels) = (Ctx::file(input, "samples.parquet")?, Ctx::file(input, "pixels.parquet")?);
            SiteData::pixels(name, samples, pixels, Some(side))?
        }
        _ => SiteData::features(name, Ctx::file(input, "features.parquet")?)?,
    };
    if site.origin != model.config.origin && !matches!(site.content, Content::Pixels(_)) {
        return Err(StageError::Request(format!(
            "the features of the site `{name}` are of another encoder, or taken from it in another way (`dense`, `precision`), than those of the training"
        )));
    }
    let fits = match (model.config.reads, &site.content) {
        (Reads::Features, Content::Features { .. }) | (Reads::Pixels(_), Content::Pixels(_)) => true,
        (Reads::Activations(left), Content::Activations { blocks, .. }) => left == *blocks,
        _ => false,
    };
    if !fits {
        return Err(StageError::Request(format!(
            "the model reads {:?}, and the data of the site `{name}` are something else: `clip-features` with the same `blocks_left` makes activations",
            model.config.reads
        )));
    }
    let (has, wants) = (site.mask_side(), model.config.sizes.side);
    if has != wants {
        return Err(StageError::Request(format!(
            "the masks of the site `{name}` have {has} pixels a side, those of the training {wants}"
        )));
    }
    Ok(site)
}

/// Probabilities of lesion for each image, pixel by pixel.
fn predict(model: &Segmenter, samples: &Samples, rows: &[i64]) -> Result<Vec<Vec<f32>>> {
    let mut all = Vec::with_capacity(rows.len());
    for chunk in rows.chunks(AT_ONCE) {
        let batch = samples.batch(chunk, model.store.device());
        let probabilities = model.probabilities(&batch).to_device(Device::Cpu).contiguous();
        for place in 0..chunk.len() as i64 {
            all.push(Vec::<f32>::try_from(probabilities.get(place).view(-1))?);
        }
    }
    Ok(all)
}

fn score_site(site: &SiteData, predictions: &[Vec<f32>], params: &Params) -> Vec<Row> {
    let side = site.mask_side() as usize;
    // Tensors stay in this thread; what follows is shared out.
    let truths: Vec<Vec<bool>> = (0..site.ids.len()).map(|row| site.mask(row)).collect();
    let SiteData { site: name, ids, patients, classes, .. } = site;
    let mut rows: Vec<Row> = truths
        .into_par_iter()
        .enumerate()
        .map(|(row, truth)| {
            let probabilities = &predictions[row];
            let predicted: Vec<bool> = probabilities.iter().map(|p| *p > 0.5).collect();
            let near = scores::band(&truth, side);
            Row {
                id: ids[row].clone(),
                patient: patients[row].clone(),
                class: classes[row].clone(),
                site: name.clone(),
                size: "",
                counts: Counts::of(&predicted, &truth),
                surface: surface::compare(&predicted, &truth, side, params.nsd_tolerance),
                calibration: calibration(probabilities, &truth, |_| true),
                at_boundary: calibration(probabilities, &truth, |place| near[place]),
            }
        })
        .collect();
    scores::name_sizes(&mut rows);
    rows
}

/// Draws some images of a site with both outlines.
fn draw(
    params: &Params,
    predictions: &[Vec<f32>],
    site: &SiteData,
    pixels: Option<&Path>,
    folder: &Path,
) -> Result<()> {
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
        let predicted: Vec<bool> = predictions[row].iter().map(|p| *p > 0.5).collect();
        let truth = site.mask(row);
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
