//! What is minimised, and two updates of each method, through the trainer itself, against autograd and AdamW in Python: numbers made by
//! tests/golden/baselines/make_updates.py on cached features and make_pixel_updates.py on pixels, weights and data by a formula. The
//! second update sees how long gradients are, of which AdamW's first shows only the sign.
//!
//! Tolerances. In 64 bits (all but CoOp and CLIPSeg, whose frozen towers are kept in 32): losses 1e-7, what is added to every value of every variable 1e-4 of the learning rate. In 32 bits, as training
//! is: losses 1e-5 (CausalCLIPSeg 1e-4), changes 1e-3 of the learning rate for all but one value in a hundred of each variable, two of a
//! small one (a gradient may be nothing but rounding, and its sign anything); for U-Net, whose first steps are large, 0.2 and one in twenty; for CausalCLIPSeg, which is deep, 5e-2 and
//! one in ten, in the maskers, where the branches nearly cancel, one in five.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

mod formula;
mod updates;

use siteline_stages::checkpoint::Tensors;
use siteline_stages::data::Content;
use siteline_stages::method::contract::{At, Batch, Forward, Given, Seen, Sizes};
use siteline_stages::method::{self, MethodName, MethodParams};
use siteline_stages::model::clip::ClipConfig;
use siteline_stages::model::clip::weights::ClipWeights;
use siteline_stages::optimiser::AdamW;
use siteline_stages::segmenter::Reads;
use tch::{Device, Kind, Tensor, nn};

use updates::{agree, built, clip, golden, params, sites, tensor, updated_on, vit};

/// Two steps of a method against those of the reference that goes by `word`.
fn compare(word: &str, method: MethodName, methods: &MethodParams, weights: Option<&ClipWeights>, reads: Reads) {
    let sites = sites(&params(method, methods), reads);
    agree(word, &|kind| updated_on(method, methods.clone(), weights, reads, None, &sites, kind));
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
        compare(word, method, &plain, None, Reads::Features);
    }
    let mut narrow = plain;
    narrow.dann.width = 8;
    compare("dann", MethodName::Dann, &narrow, None, Reads::Features);
}

#[test]
fn two_updates_of_mcdrl_in_its_variants_are_the_references() {
    for variant in ["residual", "attn_only", "subtract", "project_out"] {
        let mut params = MethodParams::default();
        params.mcdrl.after_epoch = 0;
        (params.mcdrl.depth, params.mcdrl.ratio) = (2, 1);
        params.mcdrl.variant = serde_json::from_value(variant.into()).unwrap();
        compare(&format!("mcdrl_{variant}"), MethodName::Mcdrl, &params, None, Reads::Features);
    }
    let mut params = MethodParams::default();
    params.mcdrl.after_epoch = 0;
    (params.mcdrl.depth, params.mcdrl.ratio, params.mcdrl.width, params.mcdrl.heads) = (2, 1, 32, 4);
    params.mcdrl.dropped = serde_json::from_value("zeros".into()).unwrap();
    compare("mcdrl_residual_32_4", MethodName::Mcdrl, &params, None, Reads::Features);
    // The other choices of what the paper leaves open.
    let mut params = MethodParams::default();
    let mcdrl = &mut params.mcdrl;
    (mcdrl.after_epoch, mcdrl.depth, mcdrl.ratio, mcdrl.alpha, mcdrl.tau) = (0, 2, 1, 0.25, 0.2);
    (mcdrl.unit_length, mcdrl.pool) = (false, serde_json::from_value("max".into()).unwrap());
    mcdrl.visual = serde_json::from_value("dense".into()).unwrap();
    compare("mcdrl_other", MethodName::Mcdrl, &params, None, Reads::Features);
}

#[test]
fn two_updates_of_coop_through_its_text_tower_are_the_references() {
    let weights = clip(vit(1), None);
    let mut params = MethodParams::default();
    params.coop.context = 4;
    compare("coop", MethodName::CoOp, &params, Some(&weights), Reads::Features);
}

#[test]
fn two_updates_of_the_methods_that_read_pixels_are_the_references() {
    let mut params = MethodParams::default();
    params.unet.width = 16;
    compare("unet", MethodName::Unet, &params, None, Reads::Pixels(32));
    (params.clipseg.layers, params.clipseg.width) = (vec![0, 1], 16);
    let weights = clip(vit(2), None);
    compare("clipseg", MethodName::ClipSeg, &params, Some(&weights), Reads::Pixels(32));
}

/// A small CLIP with a ResNet, its table cut to the tokens of the prompts.
fn resnet() -> ClipWeights {
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
    clip(config, Some(tokens))
}

/// Both updates of a step: everything but the maskers on both branches, then the maskers for one and against the other; CLIP's own
/// weights at a tenth of the rate.
#[test]
fn two_alternations_of_causalclipseg_are_the_references() {
    let weights = resnet();
    for (word, game, loss) in [
        ("causalclipseg", "alternate", "bce"),
        ("causalclipseg_grl", "grl", "bce"),
        ("causalclipseg_no_game", "no-game", "bce+dice"),
    ] {
        let mut params = MethodParams::default();
        params.causalclipseg.warm_up = 0;
        params.causalclipseg.game = serde_json::from_value(game.into()).unwrap();
        params.causalclipseg.loss = serde_json::from_value(loss.into()).unwrap();
        compare(word, MethodName::CausalClipSeg, &params, Some(&weights), Reads::Pixels(64));
    }
}

/// The maskers' update leaves every other variable as it is to the last bit, and the other update theirs; so with DANN's discriminator.
#[test]
fn what_one_update_moves_the_other_leaves() {
    let weights = resnet();
    let mut methods = MethodParams::default();
    methods.causalclipseg.warm_up = 0;
    for (name, weights, reads) in
        [(MethodName::CausalClipSeg, Some(&weights), Reads::Pixels(64)), (MethodName::Dann, None, Reads::Features)]
    {
        let params = params(name, &methods);
        let sites = sites(&params, reads);
        let model = built(name, methods.clone(), weights, reads, None, Kind::Float);
        let rows = Tensor::from_slice(&[0i64, 1, 2, 3]);
        let contents: Vec<_> = sites.iter().map(|site| site.content.rows(&rows, Device::Cpu)).collect();
        let masks: Vec<Tensor> = sites.iter().map(|site| site.masks.to_kind(Kind::Int64)).collect();
        let batch = Batch {
            content: Content::join(&contents),
            masks: Tensor::cat(&masks, 0),
            labels: None,
            texts: sites.iter().flat_map(|site| site.classes.iter().flatten().cloned()).collect(),
            mix: None,
        };
        let mut optimiser = AdamW::new(&model.store, 0.01);
        for update in 0..model.method.updates(1) {
            let trained = || model.variables().into_iter().filter(|(_, value)| value.requires_grad());
            let before: Tensors = trained().map(|(name, value)| (name, value.copy())).collect();
            let factor = |name: &str| if model.method.moves(update, name) { 1.0 } else { 0.0 };
            let held = optimiser.hold(&factor);
            let at = At { epoch: 1, step: 0, update };
            let forward = model.forward(&batch, Some(at));
            let seen = Seen { forward: &forward, masks: &batch.masks, labels: None, sites: 2, at, teacher: None };
            let penalties = model.method.penalties(&seen).into_iter().map(|penalty| penalty.value * penalty.weight);
            let total = penalties.fold(model.method.objective(&seen), |sum, penalty| sum + penalty);
            optimiser.step(&total, params.lr, params.clip_norm, &factor);
            drop(held);
            let moved: Vec<&String> = before.keys().filter(|name| factor(name) != 0.0).collect();
            let changed: Vec<String> =
                trained().filter(|(name, value)| !value.equal(&before[name])).map(|(name, _)| name).collect();
            assert!(!moved.is_empty() && moved.len() < before.len(), "{name:?}, update {update}");
            assert_eq!(changed.iter().collect::<Vec<_>>(), moved, "{name:?}, update {update}");
        }
    }
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
