//! Seconds that one training step of a method takes, gathering the batch included: what `benches/train_step/run.py` compares.
//!
//!     train_step METHOD EPOCHS

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a benchmark ends where something is wrong")]

use std::cell::RefCell;
use std::time::Instant;

use siteline_stages::data::{Content, SiteData};
use siteline_stages::dictionary::{Dictionary, Prompts};
use siteline_stages::kind::train::setup;
use siteline_stages::method::{MethodName, MethodParams};
use siteline_stages::model::clip::weights::ClipWeights;
use siteline_stages::model::clip::{Activation, Clip, ClipConfig, Tokenizer};
use siteline_stages::model::start::Start;
use siteline_stages::model::transformer::l2_normalise;
use siteline_stages::precision::TrainingPrecision;
use siteline_stages::resume::Checkpoints;
use siteline_stages::segmenter::Segmenter;
use siteline_stages::trainer;
use siteline_stages::trainer::params::{KeptEpoch, Params};
use tch::{Device, Kind, Tensor, nn};

const SITES: i64 = 4;
const D: i64 = 512;
const SIDE: i64 = 224;
const CLASSES: [&str; 3] = ["polyp", "tumor", "cyst"];

/// What is read: ViT-B/16's features at 224 pixels, or pixels.
struct Work {
    /// Images of each site.
    images: i64,
    /// Images of a batch.
    batch: i64,
    /// Side of masks, and of images where pixels are read.
    side: i64,
    pixels: bool,
}

impl Work {
    fn of(method: MethodName) -> Self {
        let pixels = |images, batch, side| Self { images, batch, side, pixels: true };
        match method {
            MethodName::CausalClipSeg => pixels(2, 4, 96),
            MethodName::Unet => pixels(8, 4, SIDE),
            MethodName::MixStyle | MethodName::Fourier | MethodName::RandConv | MethodName::ClipSeg => {
                pixels(8, 8, SIDE)
            }
            _ => Self { images: 24, batch: 16, side: SIDE, pixels: false },
        }
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let method: MethodName = serde_json::from_value(arguments[1].as_str().into()).expect("a method");
    let epochs: usize = arguments[2].parse().expect("a number of epochs");
    siteline_stages::runtime::keep_memory();
    siteline_stages::runtime::open_cuda();
    let device = Device::cuda_if_available();
    let work = Work::of(method);
    let mut methods = MethodParams::default();
    methods.mcdrl.after_epoch = 0;
    methods.unet.width = 16;
    methods.causalclipseg.warm_up = 0;
    let params = Params {
        method,
        epochs,
        batch: work.batch as usize,
        precision: if device.is_cuda() { TrainingPrecision::Bf16 } else { TrainingPrecision::Fp32 },
        kept_epoch: KeptEpoch::Last,
        methods,
        ..Params::default()
    };
    let weights = match method {
        MethodName::CoOp => Some(clip(text_tower())),
        MethodName::CausalClipSeg => Some(clip(resnet50(work.side))),
        MethodName::Unet => None,
        _ => work.pixels.then(|| clip(vit())),
    };
    let sites: Vec<SiteData> = (0..SITES).map(|s| site(s, &work, method)).collect();
    let dictionary = dictionary();
    let (config, frozen) = setup::configure(&params, &sites, weights.as_ref(), Some(&dictionary), device).unwrap();
    let mut model = Segmenter::new(config, Some(&dictionary), weights.as_ref(), frozen, Some(0), device).unwrap();
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

fn site(s: i64, work: &Work, method: MethodName) -> SiteData {
    // SWAD looks at the loss on validation images behind every epoch.
    let validation = i64::from(method == MethodName::Swad);
    let (n, side) = (work.images + validation, work.side);
    let content = if work.pixels {
        Content::Pixels(Tensor::randint(256, [n, 3, side, side], (Kind::Uint8, Device::Cpu)))
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
        validates: (0..n).map(|row| row >= work.images).collect(),
        content,
        masks: random(&[n, side, side]).gt(1.0).to_kind(Kind::Uint8),
        origin: None,
    }
}

fn dictionary() -> Dictionary {
    let unit = |shape: &[i64]| l2_normalise(&random(shape));
    let classes: Vec<String> = CLASSES.map(str::to_owned).into();
    let prompts = Prompts { class_prompts: classes.clone(), classes, ..Prompts::default() };
    Dictionary { z: unit(&[12, D]), classes: unit(&[3, D]), class_domain: unit(&[3, 12, D]), prompts }
}

/// ViT-B/16.
fn vit() -> ClipConfig {
    ClipConfig {
        embed_dim: D,
        image_size: SIDE,
        patch_size: 16,
        vision_width: 768,
        vision_layers: 12,
        resnet: None,
        vision_head_width: 64,
        context_length: 77,
        vocab_size: 49408,
        text_width: 512,
        text_layers: 12,
        activation: Activation::QuickGelu,
    }
}

/// The text tower of ViT-B/16; the image tower is a small one, as nothing runs it.
fn text_tower() -> ClipConfig {
    ClipConfig { image_size: 32, vision_width: 64, vision_layers: 1, ..vit() }
}

/// RN50 at another size of images.
fn resnet50(side: i64) -> ClipConfig {
    let blocks = [3, 4, 6, 3];
    let vision_layers = blocks.iter().sum();
    ClipConfig {
        embed_dim: 1024,
        image_size: side,
        patch_size: 32,
        vision_width: 64,
        vision_layers,
        resnet: Some(blocks),
        ..vit()
    }
}

/// Random weights.
fn clip(config: ClipConfig) -> ClipWeights {
    let store = nn::VarStore::new(Device::Cpu);
    let _clip = Clip::new(&store.root(), &config, Tokenizer::full(), Start::Drawn);
    ClipWeights { config, tensors: store.variables().into_iter().collect(), token_ids: None, digest: None }
}
