//! Gradients in double precision against finite differences, and what must hold by the equations alone.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use siteline_stages::dictionary::{Dictionary, Prompts};
use siteline_stages::loss::{self, Pool};
use siteline_stages::method::contract::{At, Encoded, Forward, Given, Represented, Seen, Sizes};
use siteline_stages::method::{self, MethodName, MethodParams, coral};
use siteline_stages::model::causalclipseg::{CausalClipSeg, Masks};
use siteline_stages::model::clip::{Activation, ClipConfig, Dense, TextTower, Tower};
use siteline_stages::model::clipseg::Decoder;
use siteline_stages::model::head::{Adapter, Head};
use siteline_stages::model::intervention::{Intervention, Shape, Variant};
use siteline_stages::model::start::Start;
use siteline_stages::model::style::Mix;
use siteline_stages::model::transformer::{Block, l2_normalise};
use siteline_stages::model::unet::Unet;
use tch::{Device, Kind, Tensor, nn};

/// Numbers between -1 and 1, the same in every run whatever other tests draw.
fn numbers(shape: &[i64], phase: f64) -> Tensor {
    let count = shape.iter().product::<i64>();
    (Tensor::arange(count, (Kind::Double, Device::Cpu)) * 12.9898 + phase).sin().view(shape) * 0.9
}

/// A store in double precision with variables that are all in play, the same in every run: a step of the differences across the kink
/// of a ReLU would be a matter of luck.
fn doubled(mut store: nn::VarStore) -> nn::VarStore {
    store.double();
    tch::no_grad(|| {
        for (place, (name, mut variable)) in
            std::collections::BTreeMap::from_iter(store.variables()).into_iter().enumerate()
        {
            let size = variable.size();
            let drawn = numbers(&size, place as f64);
            // Matrices and kernels keep the variance of what passes them, norms are near 1.
            let value = match size.len() {
                0 | 1 if name.ends_with("weight") => drawn * 0.2 + 1.0,
                0 | 1 => drawn * 0.2,
                _ => drawn * (3.0 / size[1..].iter().product::<i64>() as f64).sqrt(),
            };
            if variable.requires_grad() {
                variable.copy_(&value);
            }
        }
    });
    store
}

/// Compares the gradient of `value` in `x` with finite differences along a few directions.
fn check(what: &str, x: &Tensor, value: &dyn Fn(&Tensor) -> Tensor) {
    let x = x.to_kind(Kind::Double).detach().copy().set_requires_grad(true);
    let gradient = Tensor::run_backward(&[value(&x)], &[&x], false, false).remove(0);
    const STEP: f64 = 1e-6;
    for phase in [0.3, 1.7, 4.1] {
        let direction = numbers(&x.size(), phase);
        let along = (&gradient * &direction).sum(Kind::Double).double_value(&[]);
        let at = |side: f64| tch::no_grad(|| value(&(&x + &direction * (side * STEP)))).double_value(&[]);
        let difference = (at(1.0) - at(-1.0)) / (2.0 * STEP);
        let scale = along.abs().max(difference.abs()).max(1e-3);
        assert!((along - difference).abs() < 1e-5 * scale, "{what}: {along}, by differences {difference}");
    }
}

/// Compares the gradient of `value` in the trained variables of a store with finite differences: along a few directions in all of them
/// at once, and along one in each variable alone.
fn check_variables(what: &str, store: &nn::VarStore, value: &dyn Fn() -> Tensor) {
    check_some(what, store, &|_| true, value);
}

/// The same for variables with some names.
fn check_some(what: &str, store: &nn::VarStore, named: &dyn Fn(&str) -> bool, value: &dyn Fn() -> Tensor) {
    let all: Vec<(String, Tensor)> = std::collections::BTreeMap::from_iter(store.variables())
        .into_iter()
        .filter(|(name, variable)| variable.requires_grad() && named(name))
        .collect();
    assert!(!all.is_empty(), "{what}: there is nothing to check");
    let variables: Vec<&Tensor> = all.iter().map(|(_, variable)| variable).collect();
    let gradients = Tensor::run_backward(&[value()], &variables, false, false);
    // So small that hardly a value comes by the kink of its ReLU.
    const STEP: f64 = 1e-8;
    let alone = (0..all.len()).map(|place| (vec![place], 0.9));
    let together = [0.3, 1.7].into_iter().map(|phase| ((0..all.len()).collect(), phase));
    for (places, phase) in alone.chain(together) {
        let directions: Vec<Tensor> =
            places.iter().map(|place| numbers(&all[*place].1.size(), phase + *place as f64)).collect();
        let along: f64 = places
            .iter()
            .zip(&directions)
            // What the value does not depend on has no gradient.
            .filter(|(place, _)| gradients[**place].defined())
            .map(|(place, direction)| (&gradients[*place] * direction).sum(Kind::Double).double_value(&[]))
            .sum();
        let moved = |by: f64| {
            for (place, direction) in places.iter().zip(&directions) {
                let _ = all[*place].1.shallow_clone().g_add_(&(direction * by));
            }
        };
        let difference = tch::no_grad(|| {
            moved(STEP);
            let ahead = value().double_value(&[]);
            moved(-2.0 * STEP);
            let behind = value().double_value(&[]);
            moved(STEP);
            (ahead - behind) / (2.0 * STEP)
        });
        let name = if let [place] = places.as_slice() { &all[*place].0 } else { "all variables" };
        let scale = along.abs().max(difference.abs()).max(1e-2);
        assert!((along - difference).abs() < 5e-5 * scale, "{what}, {name}: {along}, by differences {difference}");
    }
}

fn squared(x: &Tensor) -> Tensor {
    x.square().mean(Kind::Double)
}

#[test]
fn losses() {
    let masks = numbers(&[3, 6, 6], 2.0).gt(0.0).to_kind(Kind::Int64);
    let logits = numbers(&[3, 2, 6, 6], 0.5);
    check("segmentation", &logits, &|x| loss::segmentation(x, &masks));
    check("dice", &logits, &|x| loss::dice(x, &masks));
    check("dice of one logit", &numbers(&[3, 1, 6, 6], 0.1), &|x| loss::dice(&loss::two_logits(x), &masks));
    let (targets, classes) = (numbers(&[3, 8], 1.0), numbers(&[4, 8], 3.0));
    for (pool, unit) in [(Pool::Mean, true), (Pool::Max, true), (Pool::Mean, false), (Pool::Max, false)] {
        check(&format!("causal, {pool:?}, {unit}"), &numbers(&[3, 5, 8], 0.2), &|x| {
            loss::causal(x, &targets, pool, unit)
        });
    }
    let labels = Tensor::from_slice(&[0i64, 3, 1]);
    check("contrastive", &numbers(&[3, 8], 0.7), &|x| loss::contrastive(x, &classes, &labels, 0.5));
    let (target, flat) = (numbers(&[3, 2, 6, 6], 1.4) * 3.0, numbers(&[6, 2, 4, 4], 0.8) * 3.0);
    check("divergence", &logits, &|x| loss::divergence(x, &target, 2.0));
    check("disagreement", &flat, &|x| loss::disagreement(&x.chunk(3, 0)));
    check("coral", &numbers(&[6, 5], 0.4), &|x| coral::alignment(&x.chunk(2, 0)).to_kind(Kind::Double));
}

#[test]
fn layers() {
    let store = nn::VarStore::new(Device::Cpu);
    let root = store.root();
    let (head, adapter) = (Head::new(&(&root / "head"), 8, 8, 12), Adapter::new(&(&root / "adapter"), 8));
    let block = Block::with_heads(&(&root / "block"), 8, 2, 2, Activation::QuickGelu, false, Start::Drawn);
    let unet = Unet::new(&(&root / "unet"), 2);
    let store = doubled(store);
    let x = numbers(&[2, 9, 8], 0.9);
    check("head", &x, &|x| squared(&head.forward(x)));
    check("adapter", &x, &|x| squared(&adapter.forward(x)));
    check("block", &x, &|x| squared(&block.forward(x)));
    check("value path", &x, &|x| squared(&block.forward_values(x)));
    let image = numbers(&[1, 3, 32, 32], 0.2);
    check("unet", &image, &|x| squared(&unet.forward(x)));
    check_variables("layers", &store, &|| {
        squared(&head.forward(&adapter.forward(&block.forward(&x)))) + squared(&unet.forward(&image))
    });
}

/// Objective and penalties of the methods that weigh sites, as the trainer adds them, in logits and in what the head saw.
#[test]
fn what_methods_add() {
    let params = MethodParams::default();
    let (masks, logits) = (numbers(&[6, 4, 4], 2.0).gt(0.0).to_kind(Kind::Int64), numbers(&[6, 2, 4, 4], 0.5));
    let dense = numbers(&[6, 5, 8], 1.1);
    let sites = 3;
    for name in
        [MethodName::Erm, MethodName::Vrex, MethodName::GroupDro, MethodName::Irm, MethodName::Dann, MethodName::Coral]
    {
        let store = nn::VarStore::new(Device::Cpu);
        let given = Given {
            sizes: Sizes { d: 8, side: 4, confounders: 0, classes: 0, sites },
            trains: true,
            dictionary: None,
            clip: None,
            weights: None,
            tokenizer: None,
            class_prompts: &[],
        };
        let mut params = params.clone();
        // The sites' weights stay as they are while differences are taken, and are not equal.
        (params.groupdro.eta, params.dann.width) = (0.0, 6);
        let method = method::build(name, &params, &store.root(), given).unwrap();
        let store = doubled(store);
        if name == MethodName::GroupDro {
            let mut weights = store.variables().remove("site_weights").unwrap();
            tch::no_grad(|| weights.copy_(&Tensor::from_slice(&[0.2f64, 0.5, 0.3])));
        }
        let total = |logits: &Tensor, dense: &Tensor, update: usize| {
            let encoded = Encoded { pooled: dense.select(1, 0), dense: dense.shallow_clone() };
            let represented = Represented { map: dense.shallow_clone(), intervened: None };
            let forward = Forward { logits: logits.shallow_clone(), other: None, inner: Some((encoded, represented)) };
            let at = At { epoch: 1, step: 0, update };
            let seen = Seen { forward: &forward, masks: &masks, labels: None, sites, at, teacher: None };
            let penalties = method.penalties(&seen).into_iter().map(|p| p.value * p.weight);
            penalties.fold(method.objective(&seen), |sum, penalty| sum + penalty)
        };
        check(&format!("{name:?} in logits"), &logits, &|x| total(x, &dense, 0));
        if matches!(name, MethodName::Dann | MethodName::Coral) {
            check(&format!("{name:?} in features"), &dense, &|x| total(&logits, x, 0));
        }
        if name == MethodName::Dann {
            check_variables("Dann's discriminator", &store, &|| total(&logits, &dense, 1));
        }
    }
}

/// A ViT with a text tower, in double precision.
fn small_clip() -> ClipConfig {
    ClipConfig {
        embed_dim: 64,
        image_size: 32,
        patch_size: 16,
        vision_width: 64,
        vision_layers: 2,
        resnet: None,
        vision_head_width: 64,
        context_length: 8,
        vocab_size: 4,
        text_width: 64,
        text_layers: 1,
        activation: Activation::QuickGelu,
    }
}

/// The same with a ResNet of one block a stage.
fn small_resnet() -> ClipConfig {
    ClipConfig {
        image_size: 64,
        patch_size: 32,
        vision_width: 4,
        vision_layers: 4,
        resnet: Some([1, 1, 1, 1]),
        ..small_clip()
    }
}

/// CoOp's gradient comes through the text tower, CLIPSeg's through its decoder.
#[test]
fn text_tower_and_decoder() {
    let (store, other) = (nn::VarStore::new(Device::Cpu), nn::VarStore::new(Device::Cpu));
    let text = TextTower::new(&store.root(), &small_clip(), Start::Drawn);
    let decoder = Decoder::new(&other.root(), &small_clip(), 2, 8);
    let (_store, other) = (doubled(store), doubled(other));
    let ends = Tensor::from_slice(&[4i64, 6]);
    check("words of a text", &numbers(&[2, 7, 64], 0.4), &|x| squared(&text.encode(x, &ends)));
    let tokens = [numbers(&[2, 5, 64], 0.7), numbers(&[2, 5, 64], 1.9)];
    let sentence = numbers(&[2, 64], 0.2);
    check("sentence of the decoder", &sentence, &|x| squared(&decoder.forward(&tokens, x)));
    check_variables("decoder", &other, &|| squared(&decoder.forward(&tokens, &sentence)));
}

#[test]
fn every_variant_of_the_intervention() {
    let z = numbers(&[5, 64], 2.5);
    for variant in [Variant::Residual, Variant::AttnOnly, Variant::Subtract, Variant::ProjectOut] {
        let store = nn::VarStore::new(Device::Cpu);
        let network =
            Intervention::new(&store.root(), Shape { d: 64, width: 64, heads: 2, depth: 2, ratio: 1 }, variant);
        let store = doubled(store);
        let x = numbers(&[2, 4, 64], 0.6);
        check(&format!("{variant:?}"), &x, &|x| squared(&network.forward(x, &z)));
        check(&format!("{variant:?} in Z"), &z, &|z| squared(&network.forward(&x, z)));
        if variant != Variant::ProjectOut {
            check_variables(&format!("{variant:?}'s weights"), &store, &|| squared(&network.forward(&x, &z)));
        }
    }
}

/// All of MCDRL between encoder and head: MTRS, the intervention, the gate at dropped positions, both losses.
#[test]
fn mcdrl_as_a_whole() {
    let mut params = MethodParams::default();
    (params.mcdrl.after_epoch, params.mcdrl.depth, params.mcdrl.ratio) = (0, 1, 1);
    let unit = |shape: &[i64], phase: f64| l2_normalise(&numbers(shape, phase));
    let dictionary = Dictionary {
        z: unit(&[5, 64], 0.2),
        classes: unit(&[3, 64], 1.2),
        class_domain: unit(&[3, 5, 64], 2.2),
        prompts: Prompts::default(),
    };
    let store = nn::VarStore::new(Device::Cpu);
    let given = Given {
        sizes: Sizes { d: 64, side: 4, confounders: 5, classes: 3, sites: 1 },
        trains: true,
        dictionary: Some(&dictionary),
        clip: None,
        weights: None,
        tokenizer: None,
        class_prompts: &[],
    };
    let method = method::build(MethodName::Mcdrl, &params, &store.root(), given).unwrap();
    let store = doubled(store);
    let (labels, masks) = (Tensor::from_slice(&[0i64, 2]), Tensor::zeros([2, 4, 4], (Kind::Int64, Device::Cpu)));
    let pooled = numbers(&[2, 64], 0.7);
    let total = |dense: &Tensor| {
        let encoded = Encoded { pooled: pooled.shallow_clone(), dense: dense.shallow_clone() };
        let represented = method.represent(&encoded, Some(1));
        let map = squared(&represented.map);
        let logits = Tensor::zeros([2, 2, 4, 4], (Kind::Double, Device::Cpu));
        let forward = Forward { logits, other: None, inner: Some((encoded, represented)) };
        let at = At { epoch: 1, step: 0, update: 0 };
        let seen = Seen { forward: &forward, masks: &masks, labels: Some(&labels), sites: 1, at, teacher: None };
        let penalties = method.penalties(&seen);
        assert_eq!(penalties.len(), 2);
        penalties.into_iter().fold(map, |sum, penalty| sum + penalty.value * penalty.weight)
    };
    let dense = numbers(&[2, 6, 64], 1.4);
    check("MCDRL in features", &dense, &total);
    assert!(store.variables().contains_key("gate"));
    check_variables("MCDRL", &store, &|| total(&dense));
}

/// What fine-tuning goes back through: a ViT from pixels, its pooled feature and the value path; a ResNet and its attention pool.
#[test]
fn towers() {
    for (name, config) in [("ViT", small_clip()), ("ResNet", small_resnet())] {
        let store = nn::VarStore::new(Device::Cpu);
        let tower = Tower::new(&store.root(), &config, Start::Drawn);
        let store = doubled(store);
        let images = numbers(&[1, 3, config.image_size, config.image_size], 0.3);
        let value = |images: &Tensor| {
            let (pooled, dense) = tower.forward(images, Dense::Values, None);
            squared(&pooled) + squared(&dense)
        };
        check(&format!("{name} in pixels"), &images, &value);
        check_variables(name, &store, &|| value(&images));
    }
}

/// With statistics frozen: those of a batch are PyTorch's own affair.
#[test]
fn causalclipseg() {
    let config = small_resnet();
    let store = nn::VarStore::new(Device::Cpu);
    let network = CausalClipSeg::new(&store.root(), &config, Start::Drawn).unwrap();
    let store = doubled(store);
    let (images, states) = (numbers(&[1, 3, 64, 64], 0.3), numbers(&[1, 64], 1.3));
    let both = |images: &Tensor, states: &Tensor, masks: Masks| {
        let branches = network.forward(images, states, masks, false);
        squared(&branches.sup) + squared(&branches.inf)
    };
    for masks in [Masks::Ones, Masks::Split] {
        check("texts", &states, &|states| both(&images, states, masks));
    }
    // Maskers look at features and do not shape them: gradients in features are those of masks that are given.
    check("images", &images, &|images| both(images, &states, Masks::Ones));
    let of_masker = |name: &str| name.contains("masker_");
    check_some("maskers", &store, &of_masker, &|| both(&images, &states, Masks::Split));
    check_some("all else", &store, &|name| !of_masker(name), &|| both(&images, &states, Masks::Ones));
    // Reversed, the gradient into the confounding side's masks is that of the other sign, and no value is another.
    let maskers: Vec<(String, Tensor)> =
        store.variables().into_iter().filter(|(name, v)| name.contains("masker_") && v.requires_grad()).collect();
    let gradients = |masks: Masks, of: &dyn Fn(&Masks) -> Tensor| {
        let variables: Vec<&Tensor> = maskers.iter().map(|(_, variable)| variable).collect();
        Tensor::run_backward(&[of(&masks)], &variables, false, false)
    };
    let inf = |masks: &Masks| squared(&network.forward(&images, &states, *masks, false).inf);
    let (plain, reversed) = (gradients(Masks::Split, &inf), gradients(Masks::Reversed, &inf));
    for ((name, _), (plain, reversed)) in maskers.iter().zip(plain.iter().zip(&reversed)) {
        assert!((plain + reversed).abs().max().double_value(&[]) < 1e-12, "{name} is not reversed");
    }
    assert!(plain.iter().any(|gradient| gradient.abs().max().double_value(&[]) > 1e-9), "there is no gradient");
    assert_eq!(inf(&Masks::Split).double_value(&[]), inf(&Masks::Reversed).double_value(&[]));
}

/// Statistics pass no gradient: all that is left is the mixed deviation over the own one.
#[test]
fn mixstyle_passes_gradients_through_the_normalised_image_alone() {
    let mix = Mix { keeps: Tensor::from_slice(&[0.25f64, 0.6]), partner: Tensor::from_slice(&[1i64, 0]) };
    let x =
        (numbers(&[2, 2, 3, 3], 0.8) * Tensor::from_slice(&[1.0f64, 3.0]).view([2, 1, 1, 1])).set_requires_grad(true);
    let gradient = Tensor::run_backward(&[mix.apply(&x).sum(Kind::Double)], &[&x], false, false).remove(0);
    let std = (x.detach().var_dim(Some([2i64, 3].as_slice()), true, true) + 1e-6).sqrt();
    let other = std.flip([0]);
    let keeps = Tensor::from_slice(&[0.25f64, 0.6]).view([2, 1, 1, 1]);
    let mixed: Tensor = &std * &keeps + other * (1.0 - &keeps);
    let expected = mixed / &std;
    assert!(gradient.allclose(&expected.expand_as(&gradient), 1e-6, 1e-6, false));
}

/// What is projected out is gone, and twice is once.
#[test]
fn projecting_out_leaves_nothing_along_the_dictionary() {
    let store = nn::VarStore::new(Device::Cpu);
    let network =
        Intervention::new(&store.root(), Shape { d: 64, width: 64, heads: 1, depth: 1, ratio: 1 }, Variant::ProjectOut);
    let z = l2_normalise(&numbers(&[3, 64], 1.9));
    let out = tch::no_grad(|| network.forward(&numbers(&[1, 7, 64], 0.2), &z));
    assert!(out.matmul(&z.tr()).abs().max().double_value(&[]) < 1e-5);
    let again = tch::no_grad(|| network.forward(&out, &z));
    assert!(again.allclose(&out, 1e-5, 1e-6, false));
}
