//! Networks, augmentations and scores that have a published implementation (MONAI, transformers, MedPy, NumPy): numbers made by
//! tests/golden/baselines/make_networks.py, weights by a formula. Tolerance 1e-4 of the largest value.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

mod formula;

use std::path::Path;

use siteline_stages::checkpoint::{self, Tensors};
use siteline_stages::loss;
use siteline_stages::method::fourier;
use siteline_stages::metric::Counts;
use siteline_stages::metric::surface;
use siteline_stages::model::clip::{Activation, ClipConfig};
use siteline_stages::model::clipseg::Decoder;
use siteline_stages::model::style::Mix;
use siteline_stages::model::unet::Unet;
use tch::{Device, Kind, Tensor, nn};

fn golden() -> Tensors {
    checkpoint::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/baselines/networks.safetensors"))
        .unwrap()
}

fn agree(what: &str, found: &Tensor, expected: &Tensor) {
    assert_eq!(found.size(), expected.size(), "{what}");
    let difference = (found - expected).abs().max().double_value(&[]);
    let scale = expected.abs().max().double_value(&[]);
    assert!(difference < 1e-4 * scale.max(1e-3), "{what} differs by {difference} (largest value {scale})");
}

fn tensor(name: &str, shape: &[i64]) -> Tensor {
    let count = shape.iter().product::<i64>() as usize;
    Tensor::from_slice(&formula::uniform(name, count).map(|value| value as f32).collect::<Vec<_>>()).view(shape)
}

#[test]
fn unet_is_monais_at_sides_that_halve_and_that_do_not() {
    let golden = golden();
    let store = nn::VarStore::new(Device::Cpu);
    let unet = Unet::new(&store.root(), 8);
    formula::fill(&store, "unet.");
    for side in [32, 40] {
        let images = tensor(&format!("images {side}"), &[2, 3, side, side]);
        agree("unet", &tch::no_grad(|| unet.forward(&images)), &golden[&format!("unet_{side}")]);
    }
}

#[test]
fn dice_and_its_gradient_are_monais() {
    let golden = golden();
    let logits = (tensor("dice logits", &[3, 1, 12, 12]) * 2.0).set_requires_grad(true);
    let masks = tensor("dice masks", &[3, 1, 12, 12]).gt(0.3).to_kind(Kind::Int64).squeeze_dim(1);
    let _ = masks.get(2).zero_();
    let value = loss::dice(&loss::two_logits(&logits), &masks);
    value.backward();
    agree("dice", &value, &golden["dice"]);
    agree("its gradient", &logits.grad(), &golden["dice_gradient"]);
}

#[test]
fn clipsegs_decoder_is_that_of_transformers() {
    let config = ClipConfig {
        embed_dim: 24,
        image_size: 48,
        patch_size: 16,
        vision_width: 32,
        vision_layers: 4,
        resnet: None,
        vision_head_width: 16,
        context_length: 77,
        vocab_size: 600,
        text_width: 64,
        text_layers: 1,
        activation: Activation::QuickGelu,
    };
    let store = nn::VarStore::new(Device::Cpu);
    let decoder = Decoder::new(&store.root(), &config, 3, 16);
    formula::fill(&store, "clipseg.");
    let tokens: Vec<Tensor> = (0..3).map(|i| tensor(&format!("tokens {i}"), &[2, 10, 32])).collect();
    let found = tch::no_grad(|| decoder.forward(&tokens, &tensor("text", &[2, 24])));
    agree("clipseg", &found, &golden()["clipseg"]);
}

#[test]
fn styles_and_spectra_are_mixed_as_by_numpy() {
    let golden = golden();
    let mix = Mix { keeps: Tensor::from_slice(&[0.2f32, 0.9, 0.5]), partner: Tensor::from_slice(&[2i64, 0, 1]) };
    agree("mixstyle", &mix.apply(&(tensor("style", &[3, 4, 5, 5]) * 2.0 + 0.5)), &golden["mixstyle"]);
    let images = (tensor("fourier", &[2, 3, 16, 16]) + 1.0) * 127.5;
    let others = images.flip([0]);
    let shares = Tensor::from_slice(&[0.25f32, 0.75]);
    agree("fact", &fourier::mix_amplitudes(&images, &others, &shares), &golden["fact"]);
    agree("fda", &fourier::replace_low(&images, &others, 0.09), &golden["fda"]);
}

#[test]
fn overlaps_and_surface_distances_are_medpys_and_the_share_is_monais() {
    let golden = golden();
    for case in 0..6i64 {
        let mask = |name: &str| -> Vec<bool> {
            let flat = golden[&format!("blob_{case}_{name}")].view(-1);
            Vec::<i64>::try_from(flat).unwrap().into_iter().map(|value| value > 0).collect()
        };
        let overlap = Counts::of(&mask("predicted"), &mask("truth"));
        for (place, value) in [overlap.dice(), overlap.iou()].into_iter().enumerate() {
            let expected = golden["overlap"].double_value(&[case, place as i64]);
            assert!((value - expected).abs() < 1e-6, "case {case}, {place}: {value}, not {expected}");
        }
        let found = surface::compare(&mask("predicted"), &mask("truth"), 48, 2.0);
        for (place, value) in [found.hd95, found.assd, found.nsd].into_iter().enumerate() {
            let expected = golden["surface"].double_value(&[case, place as i64]);
            assert!(
                (value - expected).abs() < 1e-4 * expected.max(1.0),
                "case {case}, {place}: {value}, not {expected}"
            );
        }
    }
}

/// As MONAI has it where it does not leave them out. Of distances no library has a number: two empty masks are 0 apart, one is infinitely
/// far from any.
#[test]
fn overlaps_of_empty_masks_are_monais() {
    let golden = golden();
    let (nothing, mut something) = (vec![false; 48 * 48], vec![false; 48 * 48]);
    something[20 * 48 + 20..20 * 48 + 30].fill(true);
    for (case, (predicted, truth)) in
        [(&nothing, &nothing), (&nothing, &something), (&something, &nothing)].into_iter().enumerate()
    {
        let overlap = Counts::of(predicted, truth);
        let expected = [0, 1].map(|place| golden["overlap_of_empties"].double_value(&[case as i64, place]));
        assert_eq!([overlap.dice(), overlap.iou()], expected, "case {case}");
        let found = surface::compare(predicted, truth, 48, 2.0);
        let far = if case == 0 { 0.0 } else { f64::INFINITY };
        assert_eq!((found.hd95, found.assd), (far, far), "case {case}");
    }
}
