//! Images a second of a CLIP's image tower alone, on tensors that are in memory: what `benches/encode/run.py` holds encoding to.
//!
//!     encode WEIGHTS IMAGES

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a benchmark ends where something is wrong")]

use std::path::Path;
use std::time::Instant;

use siteline_stages::model::clip::weights::{self, Settings};
use siteline_stages::model::clip::{Dense, normalise};
use tch::{Device, Kind, Tensor};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let images: i64 = arguments[2].parse().expect("a number of images");
    siteline_stages::runtime::open_cuda();
    let device = Device::cuda_if_available();
    let (mut store, clip) = weights::load(Path::new(&arguments[1]), Settings::default(), device).unwrap();
    // As `clip-features` does: a CPU takes images one by one, a GPU many at once and in bf16.
    let (at_once, kind) = if device.is_cuda() { (32, Kind::BFloat16) } else { (1, Kind::Float) };
    store.set_kind(kind);
    let side = clip.config.image_size;
    let pixels = Tensor::randint(256, [images, 3, side, side], (Kind::Float, device));
    let encode = |from: i64| {
        let count = at_once.min(images - from);
        let batch = normalise(&pixels.narrow(0, from, count)).to_kind(kind);
        let (pooled, dense) = tch::no_grad(|| clip.vision.forward(&batch, Dense::Values, None));
        (pooled.to_device(Device::Cpu), dense.to_device(Device::Cpu))
    };
    let _warm = encode(0);
    let began = Instant::now();
    let mut from = 0;
    while from < images {
        let _features = std::hint::black_box(encode(from));
        from += at_once;
    }
    println!("{}", images as f64 / began.elapsed().as_secs_f64());
}
