//! CausalCLIPSeg's whole forward pass against a description of it in Python, at RN101 and RN50 and at small sizes: numbers made by
//! tests/golden/causalclipseg/make.py, weights by a formula. Tolerance 1e-4 of the largest value.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

mod formula;

use std::path::Path;

use siteline_stages::checkpoint;
use siteline_stages::model::causalclipseg::{CausalClipSeg, Masks};
use siteline_stages::model::clip::{Activation, ClipConfig};
use siteline_stages::model::start::Start;
use tch::{Device, Kind, Tensor, nn};

fn config(resnet: [i64; 4], width: i64, embed_dim: i64, image_size: i64) -> ClipConfig {
    let large = width == 64;
    ClipConfig {
        embed_dim,
        image_size,
        patch_size: 32,
        vision_width: width,
        vision_layers: resnet.iter().sum(),
        resnet: Some(resnet),
        vision_head_width: 64,
        context_length: 77,
        vocab_size: 600,
        text_width: if large { 512 } else { 64 },
        text_layers: if large { 12 } else { 2 },
        activation: Activation::QuickGelu,
    }
}

fn agree(what: &str, found: &Tensor, expected: &Tensor) {
    let every_eighth = found.select(1, 0).slice(1, 0, None, 8).slice(2, 0, None, 8);
    assert_eq!(every_eighth.size(), expected.size(), "{what}");
    let difference = (every_eighth - expected).abs().max().double_value(&[]);
    let scale = expected.abs().max().double_value(&[]);
    assert!(difference < 1e-4 * scale, "{what} differs by {difference} (largest value {scale})");
}

fn compare(name: &str, config: &ClipConfig, sides: &[i64]) -> nn::VarStore {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/causalclipseg/expected.safetensors");
    let expected = checkpoint::read(&golden).unwrap();
    let store = nn::VarStore::new(Device::Cpu);
    let network = CausalClipSeg::new(&(store.root() / "method"), config, Start::Drawn).unwrap();
    formula::fill(&store, "");
    let row = |ids: &[i64]| ids.iter().map(|id| Some(*id)).collect::<Vec<_>>();
    let rows = [row(&[598, 17, 5, 140, 599]), row(&[598, 233, 9, 599])];
    for side in sides {
        let pixels: Vec<f32> =
            formula::uniform(&format!("images {side}"), (6 * side * side) as usize).map(|value| value as f32).collect();
        let images = Tensor::from_slice(&pixels).view([2, 3, *side, *side]);
        let branches = tch::no_grad(|| {
            let states = network.states(&rows, Device::Cpu);
            network.forward(&images, &states, Masks::Split, false)
        });
        assert_eq!(branches.sup.size(), [2, 1, *side, *side]);
        agree(&format!("{name} {side} sup"), &branches.sup, &expected[&format!("{name}.{side}.sup")]);
        agree(&format!("{name} {side} inf"), &branches.inf, &expected[&format!("{name}.{side}.inf")]);
    }
    store
}

/// Trainable numbers below a prefix.
fn count(store: &nn::VarStore, prefix: &str) -> usize {
    let trained =
        store.variables().into_iter().filter(|(name, tensor)| name.starts_with(prefix) && tensor.requires_grad());
    trained.map(|(_, tensor)| tensor.numel()).sum()
}

#[test]
fn the_small_network_agrees_at_two_sizes() {
    compare("tiny", &config([2, 1, 1, 2], 8, 64, 64), &[64, 96]);
}

#[test]
fn a_wider_joint_space_passes_the_adapter() {
    let store = compare("wide", &config([1, 1, 1, 1], 8, 128, 64), &[64]);
    assert!(count(&store, "method.neck.adapter") > 0);
}

/// The released network without its dead parts (methods.md 2.2): 182.16 million parameters less 15.2 million that get no
/// gradient. The token table is cut to 600 rows here.
#[test]
fn rn101_agrees_at_both_sizes_and_has_the_released_networks_parameters() {
    let store = compare("rn101", &config([3, 4, 23, 3], 64, 512, 224), &[224, 416]);
    let (cut, shortcut) = ((49_408 - 600) * 512, 2048 * 512 + 2 * 512);
    assert_eq!(count(&store, "method.backbone.") + shortcut + cut, 120_737_633 - 1, "all but the logit scale");
    assert_eq!(count(&store, "method.neck.") - shortcut, 51_844_260 - 15_226_368);
    assert_eq!(count(&store, "method.projector."), 4_788_737);
    assert_eq!(count(&store, "method.projector_ad."), 4_788_737);
}

#[test]
fn rn50_agrees_with_its_adapter() {
    compare("rn50", &config([3, 4, 6, 3], 64, 1024, 224), &[224]);
}

/// The maskers' step leaves everything else untouched, and the other way round: no gradient crosses.
#[test]
fn maskers_and_features_do_not_shape_each_other() {
    let store = nn::VarStore::new(Device::Cpu);
    let network =
        CausalClipSeg::new(&(store.root() / "method"), &config([1, 1, 1, 1], 8, 64, 64), Start::Drawn).unwrap();
    formula::fill(&store, "");
    let images = Tensor::randn([2, 3, 64, 64], (Kind::Float, Device::Cpu));
    let states = Tensor::randn([2, 64], (Kind::Float, Device::Cpu));
    // Gradients of one branch's logits: those of the maskers, and those of the image.
    let gradients = |masks: Masks, inf: bool| {
        store.variables().into_values().for_each(|mut variable| variable.zero_grad());
        let pixels = images.copy().set_requires_grad(true);
        let branches = network.forward(&pixels, &states, masks, false);
        let branch = if inf { branches.inf } else { branches.sup };
        branch.square().mean(Kind::Float).backward();
        let of: std::collections::BTreeMap<_, _> = store.variables().into_iter().collect();
        let maskers = of.iter().filter(|(name, variable)| name.contains(".masker_") && variable.grad().defined());
        let maskers: Vec<Tensor> = maskers.map(|(_, variable)| variable.grad().view(-1).copy()).collect();
        (maskers, pixels.grad())
    };
    let (maskers, _) = gradients(Masks::Ones, true);
    assert!(maskers.is_empty(), "with masks of ones the maskers are not asked");
    let (split, through) = gradients(Masks::Split, true);
    let (reversed, also_through) = gradients(Masks::Reversed, true);
    let (split, reversed) = (Tensor::cat(&split, 0), Tensor::cat(&reversed, 0));
    assert!(split.abs().sum(Kind::Float).double_value(&[]) > 0.0);
    assert!(reversed.allclose(&-&split, 1e-4, 1e-9, false), "the reversed gradient is the other way round");
    assert!(
        through.allclose(&also_through, 1e-4, 1e-9, false),
        "the maskers look at features and do not shape them: else this would differ by their share"
    );
}
