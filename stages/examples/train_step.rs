//! Seconds that one training step of a method takes, gathering the batch included: what `benches/train_step/run.py` compares.
//!
//!     train_step METHOD EPOCHS

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a benchmark ends where something is wrong")]

use std::cell::RefCell;
use std::time::Instant;

use siteline_stages::data::{Content, SiteData};
use siteline_stages::dictionary::{Dictionary, Prompts};
use siteline_stages::method::contract::Sizes;
use siteline_stages::method::{MethodName, MethodParams};
use siteline_stages::model::clip::weights::ClipWeights;
use siteline_stages::model::clip::{Activation, Clip, ClipConfig, Tokenizer};
use siteline_stages::model::transformer::l2_normalise;
use siteline_stages::precision::TrainingPrecision;
use siteline_stages::resume::Checkpoints;
use siteline_stages::segmenter::{Reads, Segmenter, SegmenterConfig};
use siteline_stages::shared::SharedConfig;
use siteline_stages::trainer;
use siteline_stages::trainer::params::{KeptEpoch, Params};
use tch::{Device, Kind, Tensor, nn};

const SITES: i64 = 4;
const D: i64 = 512;
const SIDE: i64 = 224;
const CLASSES: [&str; 3] = ["polyp", "tumor", "cyst"];

/// Sizes of what is read: ViT-B/16's features at 224 pixels, or pixels.
struct Work {
    images: i64,
    batch: i64,
    pixels: bool,
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let method: MethodName = serde_json::from_value(arguments[1].as_str().into()).expect("a method");
    let epochs: usize = arguments[2].parse().expect("a number of epochs");
    siteline_stages::runtime::open_cuda();
    let device = Device::cuda_if_available();
    let work = match method {
        MethodName::Unet => Work { images: 8, batch: 4, pixels: true },
        _ => Work { images: 24, batch: 16, pixels: false },
    };
    let mut methods = MethodParams::default();
    methods.mcdrl.after_epoch = 0;
    methods.unet.width = 16;
    let params = Params {
        method,
        epochs,
        batch: work.batch as usize,
        precision: if device.is_cuda() { TrainingPrecision::Bf16 } else { TrainingPrecision::Fp32 },
        kept_epoch: KeptEpoch::Last,
        methods: methods.clone(),
        ..Params::default()
    };
    let weights = (method == MethodName::CoOp).then(clip);
    let config = SegmenterConfig {
        method,
        params: methods,
        sizes: Sizes { d: D, side: SIDE, confounders: 12, classes: 3, sites: SITES },
        reads: if work.pixels { Reads::Pixels(SIDE) } else { Reads::Features },
        shared: method.wants().shares().then_some(SharedConfig {
            d: D,
            side: SIDE,
            head_width: 256,
            adapter: true,
            normalise: true,
            encoder: None,
        }),
        clip: weights.as_ref().map(|weights| weights.config.clone()),
        token_ids: None,
        classes: CLASSES.map(str::to_owned).into(),
        class_prompts: vec![],
        origin: None,
        epoch: 0,
        averaged: None,
        validation_dice: None,
        kept_epoch: KeptEpoch::Last,
        selection: None,
    };
    let mut model = Segmenter::new(config, Some(&dictionary()), weights.as_ref(), None, Some(0), device).unwrap();
    let sites: Vec<SiteData> = (0..SITES).map(|s| site(s, &work)).collect();
    let steps = (SITES * work.images / work.batch) as f64;
    // From the end of each epoch to the end of the next.
    let ends = RefCell::new(Vec::new());
    let tell = |_: usize, _: Option<&trainer::EpochRow>| ends.borrow_mut().push(Instant::now());
    trainer::train(&mut model, &params, &sites, &mut Checkpoints::new(None), &tell).unwrap();
    let ends = ends.into_inner();
    let best = ends.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64() / steps).fold(f64::INFINITY, f64::min);
    println!("{best}");
}

fn random(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu))
}

fn site(s: i64, work: &Work) -> SiteData {
    let n = work.images;
    let content = if work.pixels {
        Content::Pixels(Tensor::randint(256, [n, 3, SIDE, SIDE], (Kind::Uint8, Device::Cpu)))
    } else {
        Content::Features { pooled: random(&[n, D]), dense: random(&[n, 196, D]) }
    };
    let row = |row: i64| format!("{s}-{row}");
    SiteData {
        site: s.to_string(),
        ids: (0..n).map(row).collect(),
        patients: (0..n).map(row).collect(),
        classes: (0..n).map(|row| Some(CLASSES[row as usize % 3].to_owned())).collect(),
        prompts: vec![None; n as usize],
        validates: vec![false; n as usize],
        content,
        masks: random(&[n, SIDE, SIDE]).gt(1.0).to_kind(Kind::Uint8),
        origin: None,
    }
}

fn dictionary() -> Dictionary {
    let unit = |shape: &[i64]| l2_normalise(&random(shape));
    let classes: Vec<String> = CLASSES.map(str::to_owned).into();
    let prompts = Prompts { class_prompts: classes.clone(), classes, ..Prompts::default() };
    Dictionary { z: unit(&[12, D]), classes: unit(&[3, D]), class_domain: unit(&[3, 12, D]), prompts }
}

/// The text tower of ViT-B/16 at random weights; the image tower is a small one, as nothing runs it.
fn clip() -> ClipWeights {
    let config = ClipConfig {
        embed_dim: D,
        image_size: 32,
        patch_size: 16,
        vision_width: 64,
        vision_layers: 1,
        resnet: None,
        vision_head_width: 64,
        context_length: 77,
        vocab_size: 49408,
        text_width: 512,
        text_layers: 12,
        activation: Activation::QuickGelu,
    };
    let store = nn::VarStore::new(Device::Cpu);
    let _clip = Clip::new(&store.root(), &config, Tokenizer::full());
    ClipWeights { config, tensors: store.variables().into_iter().collect(), token_ids: None, digest: None }
}
