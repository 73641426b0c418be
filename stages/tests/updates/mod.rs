//! Two updates of a method through the trainer, from weights and data by the formula, held to a reference's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use siteline_stages::checkpoint::{self, Tensors};
use siteline_stages::data::{Content, SiteData};
use siteline_stages::dictionary::{Dictionary, Prompts};
use siteline_stages::method::contract::Sizes;
use siteline_stages::method::{MethodName, MethodParams};
use siteline_stages::model::clip::weights::ClipWeights;
use siteline_stages::model::clip::{Activation, Clip, ClipConfig};
use siteline_stages::model::start::Start;
use siteline_stages::model::transformer::l2_normalise;
use siteline_stages::resume::Checkpoints;
use siteline_stages::sampler::Sampler;
use siteline_stages::segmenter::{Reads, Segmenter, SegmenterConfig};
use siteline_stages::shared::{Frozen, SharedConfig};
use siteline_stages::trainer;
use siteline_stages::trainer::params::{KeptEpoch, LrSchedule, Params};
use tch::{Device, Kind, Tensor, nn};

use crate::formula;

pub const SITES: i64 = 2;
pub const IMAGES: i64 = 4;
const POSITIONS: i64 = 16;
pub const D: i64 = 64;
const SIDE: i64 = 16;
const LR: f64 = 0.01;
/// Values of a variable that the reference tells, where it does not tell all.
const MOST: usize = 512;
const CLASSES: [&str; 3] = ["polyp", "tumor", "cyst"];

/// The references' numbers.
pub fn golden() -> Tensors {
    let files = ["updates.safetensors", "pixel_updates.safetensors", "drawn_updates.safetensors"];
    files.iter().flat_map(|name| checkpoint::read(&folder().join(name)).unwrap()).collect()
}

/// Where they lie.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/baselines")
}

/// Numbers by the formula.
pub fn tensor(name: &str, shape: &[i64]) -> Tensor {
    let count = shape.iter().product::<i64>() as usize;
    Tensor::from_slice(&formula::uniform(name, count).map(|value| value as f32).collect::<Vec<_>>()).view(shape)
}

fn dictionary() -> Dictionary {
    let unit = |name: &str, shape: &[i64]| l2_normalise(&tensor(name, shape));
    let classes: Vec<String> = CLASSES.map(str::to_owned).into();
    Dictionary {
        z: unit("z", &[12, D]),
        classes: unit("classes", &[3, D]),
        class_domain: unit("class_domain", &[3, 12, D]),
        prompts: Prompts { class_prompts: classes.clone(), classes, ..Prompts::default() },
    }
}

/// The sites, their samples in such an order that the trainer's first batch is that of the reference.
pub fn sites(params: &Params, reads: Reads) -> Vec<SiteData> {
    let all = SITES * IMAGES;
    let shift = (Tensor::arange(all, (Kind::Float, Device::Cpu)) / IMAGES as f64).floor() * 0.3;
    let content = match reads {
        Reads::Pixels(side) => {
            let bytes = (tensor("pixels", &[all, 3, side, side]) + 1.0) * 127.5;
            Content::Pixels(bytes.round().to_kind(Kind::Uint8))
        }
        _ => Content::Features {
            pooled: tensor("pooled", &[all, D]) + shift.view([all, 1]),
            dense: tensor("dense", &[all, POSITIONS, D]) + shift.view([all, 1, 1]),
        },
    };
    let side = side_of(reads);
    let masks = tensor("masks", &[all, side, side]).gt(0.2).to_kind(Kind::Uint8);
    let site = |s: i64, order: &[i64]| {
        let rows: Vec<i64> = (0..IMAGES).map(|row| s * IMAGES + order[row as usize]).collect();
        let take = |x: &Tensor| x.index_select(0, &Tensor::from_slice(&rows));
        SiteData {
            site: format!("site {s}"),
            ids: rows.iter().map(|row| format!("image {row}")).collect(),
            patients: rows.iter().map(|row| format!("patient {row}")).collect(),
            classes: rows.iter().map(|row| Some(CLASSES[*row as usize % 3].to_owned())).collect(),
            prompts: vec![None; rows.len()],
            validates: vec![false; rows.len()],
            content: match &content {
                Content::Features { pooled, dense } => Content::Features { pooled: take(pooled), dense: take(dense) },
                Content::Pixels(pixels) => Content::Pixels(take(pixels)),
                Content::Activations { .. } => unreachable!("there are none here"),
            },
            masks: take(&masks),
            origin: None,
        }
    };
    let plain: Vec<SiteData> = (0..SITES).map(|s| site(s, &[0, 1, 2, 3])).collect();
    let drawn = Sampler::new(params, &plain).unwrap().next_batch();
    let reordered = drawn.iter().zip(0..).map(|(drawn, s)| {
        let mut order = [0; IMAGES as usize];
        drawn.iter().zip(0..).for_each(|(row, place)| order[*row as usize] = place);
        site(s, &order)
    });
    reordered.collect()
}

fn side_of(reads: Reads) -> i64 {
    if let Reads::Pixels(side) = reads { side } else { SIDE }
}

/// CausalCLIPSeg is deep, with a norm behind every convolution: after larger steps the second gradient is another one wherever the
/// first was next to nothing.
fn lr_of(method: MethodName) -> f64 {
    if method == MethodName::CausalClipSeg { 1e-4 } else { LR }
}

/// How the trainer is set up.
pub fn params(method: MethodName, methods: &MethodParams) -> Params {
    Params {
        method,
        epochs: match method {
            // IRM's halves depend on the order of images, which the second epoch draws anew.
            MethodName::Irm => 1,
            MethodName::Swad => 12,
            _ => 2,
        },
        lr_schedule: LrSchedule::Constant,
        batch: (SITES * IMAGES) as usize,
        lr: lr_of(method),
        head_width: 16,
        kept_epoch: KeptEpoch::Last,
        methods: methods.clone(),
        ..Params::default()
    }
}

/// The variables behind the steps; `frozen` is an encoder that is run and not trained.
pub fn updated_on(
    method: MethodName,
    methods: MethodParams,
    weights: Option<&ClipWeights>,
    reads: Reads,
    frozen: Option<Frozen>,
    sites: &[SiteData],
) -> Tensors {
    let params = params(method, &methods);
    let dictionary = dictionary();
    let config = SegmenterConfig {
        method,
        params: methods,
        sizes: Sizes { d: D, side: side_of(reads), confounders: 12, classes: 3, sites: SITES },
        reads,
        shared: method.wants().shares().then_some(SharedConfig {
            d: D,
            side: side_of(reads),
            head_width: 16,
            adapter: true,
            normalise: true,
            encoder: None,
        }),
        clip: weights.map(|weights| weights.config.clone()),
        token_ids: weights.and_then(|weights| weights.token_ids.clone()),
        classes: CLASSES.map(str::to_owned).into(),
        class_prompts: if reads == Reads::Features { vec![] } else { CLASSES.map(str::to_owned).into() },
        origin: None,
        epoch: 0,
        averaged: None,
        validation_dice: None,
        kept_epoch: KeptEpoch::Last,
        selection: None,
    };
    let mut model = Segmenter::new(config, Some(&dictionary), weights, frozen, Some(0), Device::Cpu).unwrap();
    tch::no_grad(|| {
        for (name, mut variable) in model.store.variables() {
            if variable.requires_grad() {
                variable.copy_(&formula::weight(&format!("updates.{name}"), &variable.size()));
            }
        }
    });
    trainer::train(&mut model, &params, sites, &mut Checkpoints::new(None), &|_, _| {}).unwrap();
    model.variables()
}

/// Holds each variable to the reference's; every one of the reference's must be there, and every one that trains.
pub fn agree(method: &str, found: &Tensors) {
    let deep = method.starts_with("causalclipseg");
    // Convolutions round otherwise on another processor, and an activation within rounding of a rectifier's kink goes the other way:
    // the deeper the network, the further that is carried.
    let (lr, tolerance) = match method {
        _ if deep => (lr_of(MethodName::CausalClipSeg), 5e-2),
        "unet" => (LR, 5e-3),
        _ => (LR, 1e-3),
    };
    // One value in so many may differ.
    let rare = |name: &str| match (deep, name.contains(".masker_")) {
        (true, true) => 5,
        (true, false) => 10,
        _ => 100,
    };
    let prefix = format!("{method}.");
    let expected: BTreeMap<String, Tensor> = golden()
        .into_iter()
        .filter_map(|(name, value)| Some((name.strip_prefix(&prefix)?.to_owned(), value)))
        .collect();
    assert!(!expected.is_empty(), "{method}");
    let trained: Vec<&String> = found.iter().filter(|(_, value)| value.requires_grad()).map(|(name, _)| name).collect();
    assert_eq!(trained, expected.keys().collect::<Vec<_>>(), "{method}");
    let count = |of: Tensor| of.sum(Kind::Int64).int64_value(&[]);
    // What all keys have in common is nothing to a softmax over them, nor what a whole channel has to its norm: the gradient is
    // rounding alone.
    let idle = |name: &str| {
        let keys = ["key.bias", "k_proj.bias"].iter().any(|end| name.ends_with(end));
        keys || (name.contains(".masker_") && name.ends_with("last.bias"))
    };
    // Of the biases of queries, keys and values in one row, the keys' are idle.
    let but_keys = |name: &str, value: Tensor| match name.ends_with("in_proj_bias") {
        true => value.view([3, -1]).index_select(0, &Tensor::from_slice(&[0i64, 2])),
        false => value,
    };
    // Of a large variable the reference tells values at equal distances.
    let told = |value: &Tensor, like: &Tensor| match value.numel() == like.numel() {
        true => value.view_as(like),
        false => value.reshape([-1]).slice(0, 0, None, value.numel().div_ceil(MOST) as i64),
    };
    for (name, value) in expected.iter().filter(|(name, _)| !idle(name)) {
        let difference = but_keys(name, told(&found[name], value) - value);
        let (off, all) = (count(difference.abs().gt(tolerance * lr)), difference.numel() as i64);
        assert!(
            off * rare(name) <= if all >= 16 { all.max(2 * rare(name)) } else { all },
            "{method}: {off} of {all} values of `{name}` differ"
        );
    }
    let before = |(name, value): (&String, &Tensor)| {
        let before = told(&formula::weight(&format!("updates.{name}"), &found[name].size()), value);
        (count((value - before).abs().gt(0.1 * lr)), value.numel() as i64)
    };
    let (moved, all) = expected.iter().map(before).fold((0, 0), |sum, (moved, all)| (sum.0 + moved, sum.1 + all));
    assert!(moved * 2 > all, "{method}: the reference moved {moved} of {all} values");
}

/// A small CLIP with weights by the formula.
pub fn clip(config: ClipConfig, token_ids: Option<Vec<i64>>) -> ClipWeights {
    let store = nn::VarStore::new(Device::Cpu);
    let _clip = Clip::new(&store.root(), &config, siteline_stages::model::clip::Tokenizer::full(), Start::Drawn);
    let value = |(name, variable): (String, Tensor)| {
        let value = match name.as_str() {
            "logit_scale" => Tensor::from(2f32),
            _ => formula::weight(&format!("clip.{name}"), &variable.size()),
        };
        (name, value)
    };
    let tensors = store.variables().into_iter().map(value).collect();
    ClipWeights { config, tensors, token_ids, digest: None }
}

/// A ViT with a text tower of one block.
pub fn vit(vision_layers: i64) -> ClipConfig {
    ClipConfig {
        embed_dim: D,
        image_size: 32,
        patch_size: 16,
        vision_width: 64,
        vision_layers,
        resnet: None,
        vision_head_width: 64,
        context_length: 77,
        vocab_size: 49408,
        text_width: 64,
        text_layers: 1,
        activation: Activation::QuickGelu,
    }
}
