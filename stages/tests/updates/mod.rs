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
use siteline_stages::trainer::params::{KeptEpoch, LrSchedule, Params};
use siteline_stages::trainer::{self, EpochRow};
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

fn dictionary(kind: Kind) -> Dictionary {
    let unit = |name: &str, shape: &[i64]| l2_normalise(&tensor(name, shape).to_kind(kind));
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

/// After larger steps CausalCLIPSeg, deep and with a norm behind every convolution, is another network.
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

/// What a training came to.
pub struct Updated {
    variables: Tensors,
    rows: Vec<EpochRow>,
    lr: f64,
}

/// A model by the formula, in floats of a kind; `frozen` is an encoder that is run and not trained.
pub fn built(
    method: MethodName,
    methods: MethodParams,
    weights: Option<&ClipWeights>,
    reads: Reads,
    frozen: Option<Frozen>,
    kind: Kind,
) -> Segmenter {
    let dictionary = dictionary(kind);
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
    let frozen = frozen.map(|mut frozen| {
        frozen.store.set_kind(kind);
        frozen
    });
    let mut model = Segmenter::new(config, Some(&dictionary), weights, frozen, Some(0), Device::Cpu).unwrap();
    tch::no_grad(|| {
        for (name, mut variable) in model.store.variables() {
            if variable.requires_grad() {
                variable.copy_(&formula::weight(&format!("updates.{name}"), &variable.size()));
            }
        }
    });
    model.store.set_kind(kind);
    model
}

/// Trains in floats of a kind, the data those of `sites`.
pub fn updated_on(
    method: MethodName,
    methods: MethodParams,
    weights: Option<&ClipWeights>,
    reads: Reads,
    frozen: Option<Frozen>,
    sites: &[SiteData],
    kind: Kind,
) -> Updated {
    let params = params(method, &methods);
    let mut model = built(method, methods, weights, reads, frozen, kind);
    let sites: Vec<SiteData> = sites.iter().map(|site| in_kind(site, kind)).collect();
    let trained = trainer::train(&mut model, &params, &sites, &mut Checkpoints::new(None), &|_, _| {}).unwrap();
    Updated { variables: model.variables(), rows: trained.rows, lr: params.lr }
}

/// The same site, its numbers of a kind; bytes of images stay such where that is the trainer's own.
fn in_kind(site: &SiteData, kind: Kind) -> SiteData {
    let cast = |x: &Tensor| x.to_kind(kind);
    SiteData {
        site: site.site.clone(),
        ids: site.ids.clone(),
        patients: site.patients.clone(),
        classes: site.classes.clone(),
        prompts: site.prompts.clone(),
        validates: site.validates.clone(),
        content: match &site.content {
            Content::Features { pooled, dense } => Content::Features { pooled: cast(pooled), dense: cast(dense) },
            Content::Pixels(bytes) if kind == Kind::Double => Content::Pixels(cast(bytes)),
            other => other.handles(),
        },
        masks: site.masks.shallow_clone(),
        origin: None,
    }
}

/// What counts as the same number.
struct Tolerance {
    /// Of losses, relative.
    loss: f64,
    /// Of what updates add, as a share of the learning rate.
    change: f64,
    /// One value in so many of a variable may differ by more.
    rare: i64,
}

impl Tolerance {
    /// In 64 bits every value is the reference's. In 32 a gradient may be nothing but rounding, and its sign anything, which is all that
    /// AdamW's first step sees of it; an activation within rounding of a rectifier's kink goes the other way, and the deeper the
    /// network, the further that is carried.
    fn of(method: &str, variable: &str, kind: Kind) -> Self {
        match method {
            _ if kind == Kind::Double => Self { loss: 1e-7, change: 1e-4, rare: i64::MAX },
            "unet" => Self { loss: 1e-5, change: 0.2, rare: 20 },
            // In the maskers the branches nearly cancel.
            _ if method.starts_with("causalclipseg") => {
                Self { loss: 1e-4, change: 5e-2, rare: if variable.contains(".masker_") { 5 } else { 10 } }
            }
            _ => Self { loss: 1e-5, change: 1e-3, rare: 100 },
        }
    }
}

/// Trains in 64 and in 32 bits, and holds what is minimised and what is added to each variable to the reference's.
pub fn agree(method: &str, train: &dyn Fn(Kind) -> Updated) {
    let golden = golden();
    // The frozen towers that CoOp and CLIPSeg keep are of 32 bits.
    let kinds: &[Kind] = match method {
        "coop" | "clipseg" => &[Kind::Float],
        _ => &[Kind::Double, Kind::Float],
    };
    for kind in kinds.iter().copied() {
        let found = train(kind);
        let expected: Vec<f64> = Vec::try_from(golden[&format!("losses.{method}")].to_kind(Kind::Double)).unwrap();
        let losses: Vec<f64> = found.rows.iter().map(|row| minimised(method, row)).collect();
        assert_eq!(losses.len(), expected.len(), "{method}");
        let tolerance = Tolerance::of(method, "", kind).loss;
        let same = losses.iter().zip(&expected).all(|(own, other)| (own - other).abs() <= tolerance * other.abs());
        assert!(same, "{method} in {kind:?}: {losses:?} is minimised, not {expected:?}");
        agree_on_changes(method, &golden, &found, kind);
    }
}

/// What a step minimised: the objective and the weighted penalties; every epoch here is one step.
fn minimised(method: &str, row: &EpochRow) -> f64 {
    let weight = |name: &str| match name {
        "variance" | "invariance" | "alignment" => 1.0,
        "confusion" => -1.0,
        "contrast" => 0.1,
        "causal" => 0.5,
        "consistency" if method == "randconv" => 10.0,
        // FACT's rises over five epochs.
        "consistency" => 2.0 * (-5.0 * (1.0 - (row.epoch as f64 - 1.0) / 5.0).powi(2)).exp(),
        other => panic!("no weight is known of `{other}`"),
    };
    row.segmentation + row.penalties.iter().map(|(name, value)| weight(name) * value).sum::<f64>()
}

/// Every variable of the reference's must be there, and every one that trains.
fn agree_on_changes(method: &str, golden: &Tensors, found: &Updated, kind: Kind) {
    let Updated { variables, lr, .. } = found;
    let prefix = format!("{method}.");
    let expected: BTreeMap<String, Tensor> = golden
        .iter()
        .filter_map(|(name, value)| Some((name.strip_prefix(&prefix)?.to_owned(), value.to_kind(Kind::Double))))
        .collect();
    assert!(!expected.is_empty(), "{method}");
    let trained: Vec<&String> =
        variables.iter().filter(|(_, value)| value.requires_grad()).map(|(name, _)| name).collect();
    assert_eq!(trained, expected.keys().collect::<Vec<_>>(), "{method}");
    let count = |of: Tensor| of.sum(Kind::Int64).int64_value(&[]);
    let (mut moved, mut told_of) = (0, 0);
    for (name, value) in &expected {
        let start = formula::weight(&format!("updates.{name}"), &variables[name].size()).to_kind(Kind::Double);
        let difference =
            told(name, &(variables[name].to_kind(Kind::Double) - start), value, kind) - told(name, value, value, kind);
        let tolerance = Tolerance::of(method, name, kind);
        let (off, all) = (count(difference.abs().gt(tolerance.change * lr)), difference.numel() as i64);
        // Of a small variable two values.
        let most = if all >= 16 { (all / tolerance.rare).max(2) } else { all / tolerance.rare };
        let most = if kind == Kind::Double { 0 } else { most };
        assert!(
            off <= most || is_idle(name, kind),
            "{method} in {kind:?}: {off} of {all} values of `{name}` differ, by up to {} of the rate",
            difference.abs().max().double_value(&[]) / lr
        );
        (moved, told_of) = (moved + count(value.abs().gt(0.1 * lr)), told_of + value.numel() as i64);
    }
    assert!(moved * 2 > told_of, "{method}: the reference moved {moved} of {told_of} values");
}

/// What all keys have in common is nothing to a softmax over them, nor what a whole channel has to its norm: in 32 bits the gradient is
/// rounding alone.
fn is_idle(name: &str, kind: Kind) -> bool {
    let keys = ["key.bias", "k_proj.bias"].iter().any(|end| name.ends_with(end));
    kind == Kind::Float && (keys || (name.contains(".masker_") && name.ends_with("last.bias")))
}

/// Of a large variable the reference tells values at equal distances. Of the biases of queries, keys and values in one row, the keys' are
/// idle.
fn told(name: &str, value: &Tensor, like: &Tensor, kind: Kind) -> Tensor {
    let value = match value.numel() == like.numel() {
        true => value.view_as(like),
        false => value.reshape([-1]).slice(0, 0, None, value.numel().div_ceil(MOST) as i64),
    };
    match name.ends_with("in_proj_bias") && kind == Kind::Float {
        true => value.view([3, -1]).index_select(0, &Tensor::from_slice(&[0i64, 2])),
        false => value,
    }
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
