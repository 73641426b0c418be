//! The towers of the five published CLIP models at full size, against open_clip: numbers made by tests/golden/clip/make_towers.py,
//! weights by a formula. Tolerance 1e-4 of the largest value.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

mod formula;

use std::path::Path;

use siteline_stages::checkpoint;
use siteline_stages::model::clip::{Activation, Clip, ClipConfig, Dense, Tokenizer};
use siteline_stages::model::start::Start;
use tch::{Device, Kind, Tensor, nn};

/// Embedding, patch, width, layers, ResNet, text width, parameters in all (methods.md 5.5).
type Sizes = (i64, i64, i64, i64, Option<[i64; 4]>, i64, usize);

fn agree(what: &str, found: &Tensor, expected: &Tensor) {
    assert_eq!(found.size(), expected.size(), "{what}");
    let difference = (found - expected).abs().max().double_value(&[]);
    let scale = expected.abs().max().double_value(&[]);
    assert!(difference < 1e-4 * scale, "{what} differs by {difference} (largest value {scale})");
}

fn compare(name: &str, sizes: Sizes) {
    let (embed_dim, patch_size, vision_width, vision_layers, resnet, text_width, parameters) = sizes;
    let config = ClipConfig {
        embed_dim,
        image_size: 224,
        patch_size,
        vision_width,
        vision_layers,
        resnet,
        vision_head_width: 64,
        context_length: 77,
        vocab_size: 49_408,
        text_width,
        text_layers: 12,
        activation: Activation::QuickGelu,
    };
    let mut store = nn::VarStore::new(Device::Cpu);
    let clip = Clip::new(&store.root(), &config, Tokenizer::full(), Start::Filled);
    let counted: usize = store.trainable_variables().iter().map(Tensor::numel).sum();
    assert_eq!(counted, parameters, "{name}");
    formula::fill(&store, "clip.");
    store.freeze();
    let expected =
        checkpoint::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/clip/towers.safetensors"))
            .unwrap();
    let pixels: Vec<f32> = formula::uniform("images", 3 * 224 * 224).map(|value| value as f32).collect();
    let images = Tensor::from_slice(&pixels).view([1, 3, 224, 224]);
    let texts = ["A polyp in an endoscopic image", "An endoscopy image with narrow-band imaging"];
    let rows: Vec<_> = texts.iter().map(|text| clip.tokenizer.encode(text, 77).unwrap()).collect();
    tch::no_grad(|| {
        let (pooled, dense) = clip.vision.forward(&images, Dense::Values, None);
        agree(&format!("{name} pooled"), &pooled, &expected[&format!("{name}.pooled")]);
        agree(&format!("{name} dense"), &dense.slice(1, 0, None, 16), &expected[&format!("{name}.dense")]);
        if resnet.is_none() {
            let (_, tokens) = clip.vision.forward(&images, Dense::Tokens, None);
            agree(&format!("{name} tokens"), &tokens.slice(1, 0, None, 16), &expected[&format!("{name}.tokens")]);
        }
        let texts = clip.text.forward(&rows, Device::Cpu);
        agree(&format!("{name} texts"), &texts.to_kind(Kind::Float), &expected[&format!("{name}.texts")]);
    });
}

#[test]
fn vit_b_32_and_16() {
    compare("ViT-B-32", (512, 32, 768, 12, None, 512, 151_277_313));
    compare("ViT-B-16", (512, 16, 768, 12, None, 512, 149_620_737));
}

#[test]
fn vit_l_14() {
    compare("ViT-L-14", (768, 14, 1024, 24, None, 768, 427_616_513));
}

#[test]
fn rn50_and_rn101() {
    compare("RN50", (1024, 32, 64, 16, Some([3, 4, 6, 3]), 512, 102_007_137));
    compare("RN101", (512, 32, 64, 33, Some([3, 4, 23, 3]), 512, 119_688_033));
}
