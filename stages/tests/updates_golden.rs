//! Two updates of each method, through the trainer itself, against autograd and AdamW in Python: numbers made by
//! tests/golden/baselines/make_updates.py on cached features and make_pixel_updates.py on pixels, weights and data by a formula. The
//! second update sees how long gradients are, of which AdamW's first shows only the sign. Tolerance: 1e-3 of the learning rate for all
//! but one value in a hundred of each variable, two of a small one (a gradient may be nothing but rounding, and its sign anything);
//! for CausalCLIPSeg, which is deep, 5e-2 and one in ten, in the maskers, where the branches nearly cancel, one in five. A wrong sign
//! would be off by 2 nearly everywhere.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

mod formula;

use std::collections::BTreeMap;
use std::path::Path;

use siteline_stages::checkpoint::{self, Tensors};
use siteline_stages::data::{Content, SiteData};
use siteline_stages::dictionary::{Dictionary, Prompts};
use siteline_stages::method::contract::{At, Forward, Given, Seen, Sizes};
use siteline_stages::method::{self, MethodName, MethodParams};
use siteline_stages::model::clip::weights::ClipWeights;
use siteline_stages::model::clip::{Activation, Clip, ClipConfig};
use siteline_stages::model::transformer::l2_normalise;
use siteline_stages::resume::Checkpoints;
use siteline_stages::sampler::Sampler;
use siteline_stages::segmenter::{Reads, Segmenter, SegmenterConfig};
use siteline_stages::shared::SharedConfig;
use siteline_stages::trainer;
use siteline_stages::trainer::params::{KeptEpoch, LrSchedule, Params};
use tch::{Device, Kind, Tensor, nn};

const SITES: i64 = 2;
const IMAGES: i64 = 4;
const POSITIONS: i64 = 16;
const D: i64 = 64;
const SIDE: i64 = 16;
const LR: f64 = 0.01;
/// Values of a variable that the reference tells, where it does not tell all.
const MOST: usize = 512;
const CLASSES: [&str; 3] = ["polyp", "tumor", "cyst"];

fn golden() -> Tensors {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/baselines");
    let read = |name: &str| checkpoint::read(&folder.join(name)).unwrap();
    read("updates.safetensors").into_iter().chain(read("pixel_updates.safetensors")).collect()
}

fn tensor(name: &str, shape: &[i64]) -> Tensor {
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
fn sites(params: &Params, reads: Reads) -> Vec<SiteData> {
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

/// The variables behind two steps.
fn updated(method: MethodName, methods: MethodParams, weights: Option<&ClipWeights>, reads: Reads) -> Tensors {
    let lr = lr_of(method);
    let params = Params {
        method,
        // IRM's halves depend on the order of images, which the second epoch draws anew.
        epochs: if method == MethodName::Irm { 1 } else { 2 },
        lr_schedule: LrSchedule::Constant,
        batch: (SITES * IMAGES) as usize,
        lr,
        head_width: 16,
        kept_epoch: KeptEpoch::Last,
        methods: methods.clone(),
        ..Params::default()
    };
    let dictionary = dictionary();
    let config = SegmenterConfig {
        method,
        params: methods,
        sizes: Sizes { d: D, side: side_of(reads), confounders: 12, classes: 3, sites: SITES },
        reads,
        shared: method.wants().shares().then_some(SharedConfig {
            d: D,
            side: SIDE,
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
    let mut model = Segmenter::new(config, Some(&dictionary), weights, None, Some(0), Device::Cpu).unwrap();
    tch::no_grad(|| {
        for (name, mut variable) in model.store.variables() {
            if variable.requires_grad() {
                variable.copy_(&formula::weight(&format!("updates.{name}"), &variable.size()));
            }
        }
    });
    trainer::train(&mut model, &params, &sites(&params, reads), &mut Checkpoints::new(None), &|_, _| {}).unwrap();
    model.variables()
}

/// Holds each variable to the reference's; every one of the reference's must be there, and every one that trains.
fn agree(method: &str, found: &Tensors) {
    let deep = method == "causalclipseg";
    let (lr, tolerance) = if deep { (lr_of(MethodName::CausalClipSeg), 5e-2) } else { (LR, 1e-3) };
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
        let keys = ["key.bias", "k_proj.bias", "in_proj_bias"].iter().any(|end| name.ends_with(end));
        keys || (name.contains(".masker_") && name.ends_with("last.bias"))
    };
    // Of a large variable the reference tells values at equal distances.
    let told = |value: &Tensor, like: &Tensor| match value.numel() == like.numel() {
        true => value.view_as(like),
        false => value.reshape([-1]).slice(0, 0, None, value.numel().div_ceil(MOST) as i64),
    };
    for (name, value) in expected.iter().filter(|(name, _)| !idle(name)) {
        let off = count((told(&found[name], value) - value).abs().gt(tolerance * lr));
        let all = value.numel() as i64;
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

#[test]
fn two_updates_of_each_method_that_shares_the_head_are_the_references() {
    let mut plain = MethodParams::default();
    plain.groupdro.eta = 5.0;
    for (method, word) in [
        (MethodName::Erm, "erm"),
        (MethodName::GroupDro, "groupdro"),
        (MethodName::Vrex, "vrex"),
        (MethodName::Irm, "irm"),
        (MethodName::Coral, "coral"),
        (MethodName::Sam, "sam"),
    ] {
        agree(word, &updated(method, plain.clone(), None, Reads::Features));
    }
    let mut narrow = plain;
    narrow.dann.width = 8;
    agree("dann", &updated(MethodName::Dann, narrow, None, Reads::Features));
}

#[test]
fn two_updates_of_mcdrl_in_its_variants_are_the_references() {
    for variant in ["residual", "attn_only", "subtract", "project_out"] {
        let mut params = MethodParams::default();
        params.mcdrl.after_epoch = 0;
        (params.mcdrl.depth, params.mcdrl.ratio) = (2, 1);
        params.mcdrl.variant = serde_json::from_value(variant.into()).unwrap();
        agree(&format!("mcdrl_{variant}"), &updated(MethodName::Mcdrl, params, None, Reads::Features));
    }
}

/// A small CLIP with weights by the formula.
fn clip(config: ClipConfig, token_ids: Option<Vec<i64>>) -> ClipWeights {
    let store = nn::VarStore::new(Device::Cpu);
    let _clip = Clip::new(&store.root(), &config, siteline_stages::model::clip::Tokenizer::full());
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
fn vit(vision_layers: i64) -> ClipConfig {
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

#[test]
fn two_updates_of_coop_through_its_text_tower_are_the_references() {
    let weights = clip(vit(1), None);
    let mut params = MethodParams::default();
    params.coop.context = 4;
    agree("coop", &updated(MethodName::CoOp, params, Some(&weights), Reads::Features));
}

#[test]
fn two_updates_of_the_methods_that_read_pixels_are_the_references() {
    let mut params = MethodParams::default();
    params.unet.width = 16;
    agree("unet", &updated(MethodName::Unet, params.clone(), None, Reads::Pixels(32)));
    (params.clipseg.layers, params.clipseg.width) = (vec![0, 1], 16);
    let weights = clip(vit(2), None);
    agree("clipseg", &updated(MethodName::ClipSeg, params, Some(&weights), Reads::Pixels(32)));
}

/// Both updates of a step: everything but the maskers on both branches, then the maskers for one and against the other; CLIP's own
/// weights at a tenth of the rate.
#[test]
fn two_alternations_of_causalclipseg_are_the_references() {
    let tokens = Vec::<i64>::try_from(&golden()["causalclipseg_tokens"]).unwrap();
    let resnet = [1, 1, 1, 1];
    let config = ClipConfig {
        image_size: 64,
        patch_size: 32,
        vision_width: 8,
        resnet: Some(resnet),
        vocab_size: tokens.len() as i64,
        text_layers: 2,
        ..vit(resnet.iter().sum())
    };
    let weights = clip(config, Some(tokens));
    let mut params = MethodParams::default();
    params.causalclipseg.warm_up = 0;
    agree("causalclipseg", &updated(MethodName::CausalClipSeg, params, Some(&weights), Reads::Pixels(64)));
}

#[test]
fn consistencies_are_the_references() {
    let golden = golden();
    let close = |what: &str, found: &Tensor| {
        let difference = (found - &golden[what]).abs().double_value(&[]);
        assert!(difference < 1e-5 * golden[what].double_value(&[]), "{what} differs by {difference}");
    };
    let store = nn::VarStore::new(Device::Cpu);
    let mut params = MethodParams::default();
    (params.fourier.teacher, params.randconv.consistency) = (0.9995, 10.0);
    let build = |name: MethodName| {
        let sizes = Sizes { d: 0, side: 5, confounders: 0, classes: 0, sites: 2 };
        let given = Given {
            sizes,
            trains: true,
            dictionary: None,
            clip: None,
            weights: None,
            tokenizer: None,
            class_prompts: &[],
        };
        method::build(name, &params, &store.root(), given).unwrap()
    };
    let of = |logits: Tensor| Forward { logits, other: None, inner: None };

    let fourier = build(MethodName::Fourier);
    assert_eq!(fourier.teacher(), Some(0.9995));
    let (forward, teacher) = (of(tensor("own", &[4, 2, 5, 5]) * 3.0), tensor("taught", &[4, 2, 5, 5]) * 3.0);
    let masks = Tensor::zeros([4, 5, 5], (Kind::Int64, Device::Cpu));
    for (epoch, weight) in [(1, 2.0 * (-5.0f64).exp()), (6, 2.0), (50, 2.0)] {
        let at = At { epoch, step: 0, update: 0 };
        let seen = Seen { forward: &forward, masks: &masks, labels: None, sites: 2, at, teacher: Some(&teacher) };
        let found = fourier.penalties(&seen).remove(0);
        assert!((found.weight - weight).abs() < 1e-12, "epoch {epoch}: {}", found.weight);
        close("fact_consistency", &found.value);
    }

    let randconv = build(MethodName::RandConv);
    let forward = of(tensor("draws", &[6, 2, 5, 5]) * 3.0);
    let masks = tensor("draw masks", &[2, 5, 5]).gt(0.0).to_kind(Kind::Int64).repeat([3, 1, 1]);
    let at = At { epoch: 1, step: 0, update: 0 };
    let seen = Seen { forward: &forward, masks: &masks, labels: None, sites: 2, at, teacher: None };
    close("randconv_objective", &randconv.objective(&seen));
    let found = randconv.penalties(&seen).remove(0);
    assert_eq!(found.weight, 10.0);
    close("randconv_consistency", &found.value);
}
