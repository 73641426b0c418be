//! Two updates of each method that draws what it changes, and SWAD's mean, through the trainer itself, against autograd and AdamW in
//! Python: numbers made by tests/golden/baselines/make_drawn_updates.py from the same draws. Tolerances are those of
//! updates_golden.rs.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

mod formula;
mod updates;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use serde_json::{Value, json};
use siteline_stages::data::{Content, SiteData};
use siteline_stages::method::{MethodName, MethodParams, mixstyle};
use siteline_stages::model::clip::weights::ClipWeights;
use siteline_stages::model::clip::{ClipConfig, Dense};
use siteline_stages::sampler::Sampler;
use siteline_stages::segmenter::{self, Reads};
use siteline_stages::shared::EncoderConfig;
use siteline_stages::trainer::params::Params;
use tch::{Device, Kind, Tensor};

use updates::{D, IMAGES, SITES, agree, clip, folder, params, sites, tensor, updated_on, vit};

const ALL: i64 = SITES * IMAGES;

fn methods() -> MethodParams {
    let mut methods = MethodParams::default();
    for style in [&mut methods.mixstyle, &mut methods.mixstyle_feature] {
        (style.probability, style.alpha) = (1.0, 0.5);
    }
    (methods.fourier.teacher, methods.randconv.consistency) = (0.9995, 10.0);
    (methods.swad.converge, methods.swad.tolerance, methods.swad.ratio) = (2, 2, 1.01);
    methods
}

/// What is drawn in a step of the trainer.
fn drawn(name: MethodName, step: usize) -> Value {
    let methods = methods();
    let seed = siteline_cache::Digest::of_bytes(format!("augment\0{}\0{step}", Params::default().seed).as_bytes());
    let rng = &mut ChaCha8Rng::from_seed(*seed.as_bytes());
    let numbers = |x: &Tensor| Vec::<f64>::try_from(x.to_kind(Kind::Double)).unwrap();
    match name {
        MethodName::MixStyle | MethodName::MixStyleFeature => {
            let mix = mixstyle::draw(&methods.mixstyle, ALL, SITES, Device::Cpu, rng).unwrap();
            json!({"keeps": numbers(&mix.keeps), "partner": Vec::<i64>::try_from(&mix.partner).unwrap()})
        }
        MethodName::Fourier => {
            let partner = mixstyle::of_other_sites(ALL, SITES, rng);
            let shares: Vec<f32> = (0..ALL).map(|_| rng.random::<f64>() as f32).collect();
            json!({"partner": partner, "shares": shares})
        }
        _ => {
            let draws = (0..3).map(|_| {
                let side = methods.randconv.kernels[rng.random_range(0..methods.randconv.kernels.len())];
                let scale = ((side * side * 3) as f64).sqrt().recip();
                let normal = |_| (scale * <StandardNormal as Distribution<f64>>::sample(&StandardNormal, rng)) as f32;
                let kernel: Vec<f32> = (0..9 * side * side).map(normal).collect();
                json!({"side": side, "kernel": kernel, "keeps": rng.random::<f64>()})
            });
            json!({"draws": draws.collect::<Vec<_>>()})
        }
    }
}

/// Everything that the reference must be told: for each method and step the draws, and which images come in which order.
fn told() -> Value {
    let of = |name: MethodName| {
        let params = params(name, &methods());
        let sites = sites(&params, Reads::Features);
        let mut sampler = Sampler::new(&params, &sites).unwrap();
        let steps = (0..2).map(|step| {
            let chosen = sampler.next_batch();
            let number = |(site, rows): (&SiteData, &Vec<i64>)| -> Vec<i64> {
                rows.iter().map(|row| site.ids[*row as usize].trim_start_matches("image ").parse().unwrap()).collect()
            };
            let rows: Vec<i64> = sites.iter().zip(&chosen).flat_map(number).collect();
            let mut draw = drawn(name, step);
            draw["rows"] = rows.into();
            draw
        });
        steps.collect::<Vec<_>>()
    };
    let names = [MethodName::MixStyleFeature, MethodName::MixStyle, MethodName::Fourier, MethodName::RandConv];
    names.iter().map(|name| (name.word().to_owned(), Value::from(of(*name)))).collect::<serde_json::Map<_, _>>().into()
}

/// With `SITELINE_WRITE_DRAWS` in the environment the file is written anew; then make_drawn_updates.py is to be run again.
#[test]
fn the_reference_was_told_what_is_drawn() {
    let path = folder().join("draws.json");
    if std::env::var_os("SITELINE_WRITE_DRAWS").is_some() {
        std::fs::write(&path, serde_json::to_string(&told()).unwrap() + "\n").unwrap();
    }
    let known: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert!(known == told(), "other draws than in draws.json");
}

fn through(method: MethodName, weights: &ClipWeights, side: i64) {
    let reads = Reads::Pixels(side);
    let config = EncoderConfig { clip: weights.config.clone(), dense: Dense::Values, blocks_left: 0 };
    let sites = sites(&params(method, &methods()), reads);
    agree(method.word(), &|kind| {
        let frozen = segmenter::frozen(weights, &config, Device::Cpu).unwrap();
        updated_on(method, methods(), Some(weights), reads, Some(frozen), &sites, kind)
    });
}

#[test]
fn two_updates_with_mixed_styles_are_the_references() {
    let (method, reads) = (MethodName::MixStyleFeature, Reads::Features);
    let on = sites(&params(method, &methods()), reads);
    agree(method.word(), &|kind| updated_on(method, methods(), None, reads, None, &on, kind));
    let resnet = ClipConfig {
        image_size: 64,
        patch_size: 32,
        vision_width: 8,
        resnet: Some([1, 1, 1, 1]),
        vocab_size: 8,
        ..vit(4)
    };
    through(MethodName::MixStyle, &clip(resnet, None), 64);
}

#[test]
fn two_updates_on_images_that_were_changed_are_the_references() {
    let weights = clip(ClipConfig { vocab_size: 8, ..vit(2) }, None);
    through(MethodName::Fourier, &weights, 32);
    through(MethodName::RandConv, &weights, 32);
}

#[test]
fn the_mean_over_the_valley_is_the_references() {
    let (method, reads) = (MethodName::Swad, Reads::Features);
    let held = tensor("validation dense", &[SITES * 2, 16, D]);
    let masks = tensor("validation masks", &[SITES * 2, 16, 16]).lt(0.2).to_kind(Kind::Uint8);
    let with_validation = |(site, s): (SiteData, i64)| {
        let Content::Features { pooled, dense } = &site.content else { unreachable!("features were asked for") };
        let of = |x: &Tensor| x.narrow(0, 2 * s, 2);
        let twice = |x: &Tensor| Tensor::cat(&[x, &x.narrow(0, 0, 2)], 0);
        let more = |names: &[String]| names.iter().cloned().chain((0..2).map(|n| format!("held {n}"))).collect();
        SiteData {
            ids: more(&site.ids),
            patients: more(&site.patients),
            classes: site.classes.iter().cloned().chain([None, None]).collect(),
            prompts: vec![None; site.prompts.len() + 2],
            validates: (0..IMAGES + 2).map(|row| row >= IMAGES).collect(),
            content: Content::Features { pooled: twice(pooled), dense: Tensor::cat(&[dense, &of(&held)], 0) },
            masks: Tensor::cat(&[&site.masks, &of(&masks)], 0),
            ..site
        }
    };
    let on = sites(&params(method, &methods()), reads);
    let on: Vec<SiteData> = on.into_iter().zip(0..).map(with_validation).collect();
    agree(method.word(), &|kind| updated_on(method, methods(), None, reads, None, &on, kind));
}
