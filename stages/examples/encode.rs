//! Images a second of a CLIP's image tower alone, on tensors that are in memory: what `benches/encode/run.py` holds encoding to.
//!
//!     encode WEIGHTS IMAGES

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a benchmark ends where something is wrong")]

use std::path::Path;
use std::thread;
use std::time::Instant;

use siteline_stages::model::clip::weights::{self, Settings};
use siteline_stages::model::clip::{Dense, normalise};
use siteline_stages::runtime;
use tch::{Device, Kind, Tensor};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let (file, images) = (Path::new(&arguments[1]), arguments[2].parse().expect("a number of images"));
    runtime::keep_memory();
    runtime::open_cuda();
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let best = if Device::cuda_if_available().is_cuda() {
        encode(file, images, 32, Kind::BFloat16)
    } else {
        // The two ways to keep all cores busy: each operation divided among them, or images each, as `clip-features` does.
        let divided = encode(file, images, 8, Kind::Float);
        runtime::set_threads(1);
        let each = images / cores as i64;
        let rates = thread::scope(|scope| {
            let threads: Vec<_> = (0..cores).map(|_| scope.spawn(|| encode(file, each, 4, Kind::Float))).collect();
            threads.into_iter().map(|thread| thread.join().expect("it encodes")).collect::<Vec<_>>()
        });
        divided.max(rates.iter().sum())
    };
    println!("{best}");
}

/// Images a second, so many at once.
fn encode(file: &Path, images: i64, at_once: i64, kind: Kind) -> f64 {
    let device = Device::cuda_if_available();
    let (mut store, clip) = weights::load(file, Settings::default(), device).expect("weights");
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
    images as f64 / began.elapsed().as_secs_f64()
}
