//! `ingest`: one site's raw files to samples and pixels at working size.
//!
//! Writes `samples.parquet` (one row a sample: id, patient, class, split, digests, original size), `pixels.parquet` (image and
//! mask at working size), `identities.json` (for leakage checks) and `left_out.csv` (files that could not be used).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::{ArrayRef, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use siteline_cache::Digest;
use siteline_datasets::adapter::{self, OnBadFile, Sample, SiteFiles, SiteSettings};
use siteline_datasets::decode;
use siteline_datasets::raster::{Mask, Rgb};
use siteline_datasets::{DatasetError, similar, split};
use siteline_pipeline::protocol::{
    Identities, Identity, OutputSpec, Purpose, RunSource, SourceFrom, SourceSpec, StageKind,
};

use super::context::Ctx;
use super::spec::{Spec, output};
use crate::error::{Result, StageError};
use crate::frame::{self, ROW_GROUP};

/// Parameters of `ingest`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Working size: images and masks are brought to this many pixels a side, the whole image, without a crop.
    #[schemars(range(min = 8, max = 4096))]
    pub size: u32,
    /// Share of each site's patients that validate (DomainBed's training-domain validation holds out 0.2).
    #[schemars(range(min = 0.0, max = 0.9))]
    pub validation: f64,
    /// Seed of the split.
    pub split_seed: u64,
}

impl Default for Params {
    fn default() -> Self {
        Self { size: 224, validation: 0.2, split_seed: 0 }
    }
}

/// The kind's specification.
pub fn kind() -> StageKind {
    Spec {
        name: "ingest",
        summary: "reads one site's images and masks, checks them, and brings them to working size",
        params: schemars::schema_for!(Params),
        inputs: vec![],
        sources: vec![SourceSpec { name: "raw".into(), from: SourceFrom::Site }],
        requires: vec![],
        outputs: vec![
            output("samples.parquet"),
            output("pixels.parquet"),
            output("left_out.csv"),
            OutputSpec { path: "identities.json".into(), purpose: Purpose::Identities },
        ],
    }
    .into()
}

/// A sample that could be read.
struct Read {
    sample: Sample,
    /// Perceptual hash, where images are compared.
    hash: Option<u64>,
    image: Rgb,
    mask: Mask,
    original: (u32, u32),
    pixels: Digest,
}

/// Reads, checks and resizes the site's files.
///
/// # Errors
/// A file that cannot be used, unless the site leaves such files out; a site without a single usable sample.
pub fn run(ctx: &Ctx) -> Result<()> {
    let params: Params = ctx.params()?;
    let raw = ctx.source("raw")?;
    let settings: SiteSettings = serde_json::from_value(raw.settings.clone())
        .map_err(|e| StageError::Request(format!("settings of the site `{}`: {e}", raw.name)))?;
    let samples = adapter::samples(&raw.name, &settings, &site_files(raw))?;
    let done = AtomicUsize::new(0);
    let total = samples.len();
    let read: Vec<std::result::Result<Read, (String, DatasetError)>> = samples
        .into_par_iter()
        .map(|sample| {
            let result = read(&sample, params.size, settings.similar.is_some());
            done.fetch_add(1, Ordering::Relaxed);
            result.map_err(|error| (sample.id, error))
        })
        .collect();
    ctx.progress(done.into_inner(), total, "images");
    let mut good = Vec::with_capacity(total);
    let mut bad = Vec::new();
    for result in read {
        match result {
            Ok(read) => good.push(read),
            Err((_, error)) if settings.on_bad_file == OnBadFile::Fail => return Err(error.into()),
            Err((id, error)) => {
                ctx.warn(format!("left out: {error}"));
                bad.push((id, error));
            }
        }
    }
    if good.is_empty() {
        return Err(StageError::Request(format!("the site `{}` has no usable sample", raw.name)));
    }
    if let Some(distance) = settings.similar {
        join_similar(ctx, &mut good, distance);
    }
    let validating = split::validation_patients(
        good.iter().map(|r| r.sample.patient.as_str()),
        params.validation,
        params.split_seed,
    );
    let splits: Vec<&str> =
        good.iter().map(|r| if validating.contains(&r.sample.patient) { "validation" } else { "training" }).collect();
    ctx.metric("samples", good.len() as f64);
    ctx.metric("left out", bad.len() as f64);
    write_samples(ctx, raw, &good, &splits)?;
    write_pixels(ctx, &params, &good)?;
    write_left_out(ctx, &bad)?;
    let identity = |r: &Read| Identity { id: r.sample.id.clone(), patient: r.sample.patient.clone(), pixels: r.pixels };
    let identities = Identities { samples: good.iter().map(identity).collect() };
    let path = ctx.output("identities.json");
    std::fs::write(&path, serde_json::to_vec(&identities).expect("identities are JSON")).map_err(StageError::io(&path))
}

/// Makes images that look alike one patient's.
fn join_similar(ctx: &Ctx, read: &mut [Read], distance: u32) {
    let images: Vec<(&str, u64)> =
        read.iter().map(|r| (r.sample.patient.as_str(), r.hash.unwrap_or_default())).collect();
    let joined = similar::patients(&images, distance);
    let count = |patients: &mut dyn Iterator<Item = &String>| patients.collect::<BTreeSet<_>>().len();
    let before = count(&mut read.iter().map(|r| &r.sample.patient));
    let after = count(&mut joined.iter());
    ctx.metric("patients", after as f64);
    ctx.log(format!("{before} patients before images that look alike were joined, {after} after"));
    for (r, patient) in read.iter_mut().zip(joined) {
        r.sample.patient = patient;
    }
}

fn site_files(raw: &RunSource) -> SiteFiles {
    let mut files = SiteFiles::default();
    for file in &raw.files {
        match file.role.as_str() {
            "image" => files.images.insert(file.label.clone(), file.path.clone()),
            "mask" => files.masks.insert(file.label.clone(), file.path.clone()),
            _ => files.table.replace(file.path.clone()),
        };
    }
    files
}

fn read(sample: &Sample, size: u32, hashes: bool) -> std::result::Result<Read, DatasetError> {
    let image = decode::read_image(&sample.image)?;
    let mask = decode::read_mask(&sample.mask)?;
    let original = (image.width, image.height);
    if (mask.width, mask.height) != original {
        return Err(DatasetError::Content {
            path: sample.mask.clone(),
            reason: format!(
                "the mask has {} x {} pixels, its image {} x {}",
                mask.width, mask.height, original.0, original.1
            ),
        });
    }
    let pixels = image.digest();
    let hash = hashes.then(|| similar::hash(&image));
    Ok(Read { sample: sample.clone(), hash, image: image.resized(size), mask: mask.resized(size), original, pixels })
}

fn write_samples(ctx: &Ctx, raw: &RunSource, read: &[Read], splits: &[&str]) -> Result<()> {
    let digests: std::collections::HashMap<(&str, &str), Digest> =
        raw.files.iter().map(|f| ((f.role.as_str(), f.label.as_str()), f.digest)).collect();
    let digest = |role: &str, r: &Read| digests.get(&(role, r.sample.id.as_str())).map(Digest::to_string);
    let size = |name| Field::new(name, DataType::UInt32, false);
    let schema = Schema::new(vec![
        frame::text_field("id", false),
        frame::text_field("patient", false),
        frame::text_field("class", true),
        frame::text_field("prompt", true),
        frame::text_field("split", false),
        frame::text_field("image_digest", true),
        frame::text_field("mask_digest", true),
        frame::text_field("pixels_digest", false),
        size("width"),
        size("height"),
    ]);
    let numbers = |of: fn(&Read) -> u32| -> ArrayRef { Arc::new(read.iter().map(of).collect::<UInt32Array>()) };
    let mut writer = frame::Writer::new(&ctx.output("samples.parquet"), schema, &[("site", raw.name.clone())])?;
    writer.write(vec![
        frame::texts(read.iter().map(|r| Some(&r.sample.id))),
        frame::texts(read.iter().map(|r| Some(&r.sample.patient))),
        frame::texts(read.iter().map(|r| r.sample.class.as_ref())),
        frame::texts(read.iter().map(|r| r.sample.prompt.as_ref())),
        frame::texts(splits.iter().map(Some)),
        frame::texts(read.iter().map(|r| digest("image", r))),
        frame::texts(read.iter().map(|r| digest("mask", r))),
        frame::texts(read.iter().map(|r| Some(r.pixels.to_string()))),
        numbers(|r| r.original.0),
        numbers(|r| r.original.1),
    ])?;
    writer.finish()
}

fn write_pixels(ctx: &Ctx, params: &Params, read: &[Read]) -> Result<()> {
    let area = (params.size * params.size) as usize;
    let schema = Schema::new(vec![
        frame::text_field("id", false),
        frame::bytes_field("image", area * 3),
        frame::bytes_field("mask", area),
    ]);
    let notes = [
        ("side", params.size.to_string()),
        ("resize", "whole image, bicubic (Catmull-Rom, antialiased); mask nearest".to_owned()),
    ];
    let mut writer = frame::Writer::new(&ctx.output("pixels.parquet"), schema, &notes)?;
    for rows in read.chunks(ROW_GROUP) {
        writer.write(vec![
            frame::texts(rows.iter().map(|r| Some(&r.sample.id))),
            frame::bytes(rows.iter().map(|r| &r.image.bytes))?,
            frame::bytes(rows.iter().map(|r| &r.mask.bytes))?,
        ])?;
    }
    writer.finish()
}

fn write_left_out(ctx: &Ctx, bad: &[(String, DatasetError)]) -> Result<()> {
    let path = ctx.output("left_out.csv");
    let mut text = String::from("id,reason\n");
    for (id, error) in bad {
        // Only the reason: a path would make the artifact depend on where the project lies.
        let reason = match error {
            DatasetError::Content { reason, .. } => reason.clone(),
            DatasetError::Io { source, .. } => source.to_string(),
            DatasetError::Settings(text) => text.clone(),
        };
        text.push_str(&format!("{id},\"{}\"\n", reason.replace('"', "'")));
    }
    std::fs::write(&path, text).map_err(StageError::io(&path))
}
