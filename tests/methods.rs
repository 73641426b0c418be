//! Every registered method trains, scores and stands in the table: on cached features, from pixels, with a ResNet.

use crate::incremental::goes_on_with_the_same_bytes;
use crate::space::Space;

/// On cached features.
const ON_FEATURES: [&str; 11] =
    ["coop", "coral", "dann", "erm", "groupdro", "irm", "mcdrl", "mixstyle-feature", "sam", "swad", "vrex"];
/// From pixels.
const ON_PIXELS: [&str; 5] = ["clipseg", "fourier", "mixstyle", "randconv", "unet"];
/// From pixels with a ResNet.
const WITH_RESNET: [&str; 1] = ["causalclipseg"];

const ENCODER: &str = "  encoder: {uses: clip-weights, per: [backbone]}\n  train:\n";

/// Of one held-out site, as every method is tried.
fn fresh() -> Space {
    let space = Space::fresh();
    space.edit("siteline.yaml", "  held_out: sites", "  held_out: [A]");
    space.edit("siteline.yaml", "  train:\n", ENCODER);
    space
}

/// Gives the training and the evaluation the site's pixels in place of features.
fn from_pixels(space: &Space, methods: &[&str]) {
    space.edit("siteline.yaml", "method: [erm, mcdrl]", &format!("method: [{}]", methods.join(", ")));
    space.edit(
        "siteline.yaml",
        "features: {stage: features, where: site != held_out}",
        "samples: {stage: ingest, where: site != held_out}",
    );
    space.edit(
        "siteline.yaml",
        "dictionary: {stage: confounders, when: method == mcdrl}",
        "dictionary: confounders\n      encoder: encoder",
    );
}

fn table_of(space: &Space, methods: &[&str]) -> String {
    let said = space.run(&["run", "--plain"]);
    assert_eq!(said.code, 0, "{}", said.stderr);
    let table = space.read("results/study/table.md");
    for method in methods {
        assert!(table.contains(&format!("| {method} ")), "{method} is not in\n{table}");
    }
    table
}

#[test]
fn all_methods_are_tried_here() {
    let schema: serde_json::Value =
        serde_json::from_str(&Space::of_commands("stages: {}").run(&["schema", "--kind", "train"]).stdout).unwrap();
    let known = schema["parameters"]["$defs"]["MethodName"]["oneOf"].as_array().unwrap();
    let mut known: Vec<&str> = known.iter().map(|method| method["const"].as_str().unwrap()).collect();
    known.sort_unstable();
    let mut tried = [ON_FEATURES.as_slice(), &ON_PIXELS, &WITH_RESNET].concat();
    tried.sort_unstable();
    assert_eq!(known, tried, "a method is not tried here");
}

#[test]
fn methods_on_cached_features_share_a_table() {
    let space = fresh();
    space.edit("siteline.yaml", "method: [erm, mcdrl]", &format!("method: [{}]", ON_FEATURES.join(", ")));
    space.edit(
        "siteline.yaml",
        "{stage: confounders, when: method == mcdrl}",
        "{stage: confounders, when: 'method in [mcdrl, coop]'}\n      encoder: {stage: encoder, when: method == coop}",
    );
    table_of(&space, &ON_FEATURES);
    // Each writes what it adds to the loss, and nothing else's parameters are part of its key.
    let logs =
        |method: &str| space.run(&["log", &format!("train[method={method},backbone=tiny,held_out=A,seed=0]")]).stdout;
    for (method, penalty) in [
        ("coral", "alignment"),
        ("irm", "invariance"),
        ("vrex", "variance"),
        ("mcdrl", "causal"),
        ("dann", "confusion"),
    ] {
        assert!(logs(method).contains(&format!("\"{penalty}\":")), "{}", logs(method));
    }
    let plan = space.run(&["plan", "--set", "stages.train.with.vrex={beta: 3}"]);
    assert!(plan.stdout.contains("train                          11       10        1        0"), "{}", plan.stdout);
}

#[test]
fn methods_from_pixels_share_a_table() {
    let space = fresh();
    from_pixels(&space, &ON_PIXELS);
    // The encoder is frozen: what it makes of the held-out site was cached. CLIPSeg runs a part of its own.
    space.edit(
        "siteline.yaml",
        "      model: train\n",
        "      model: train\n      encoder: {stage: encoder, when: method == clipseg}\n",
    );
    space.edit(
        "siteline.yaml",
        "mcdrl: {after_epoch: 1}}",
        "mcdrl: {after_epoch: 1}, clipseg: {layers: [0, 1], width: 16}, unet: {width: 4}, mixstyle: {probability: 1}}",
    );
    table_of(&space, &ON_PIXELS);
    // What their papers add to the augmentation: another training, and a term in the history.
    for (method, set) in [("fourier", "fourier={teacher: 0.9995}"), ("randconv", "randconv={consistency: 10}")] {
        let name = format!("train[method={method},backbone=tiny,held_out=A,seed=0]");
        let ran = space.run(&["run", "--plain", "--only", &name, "--set", &format!("stages.train.with.{set}")]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let log = space.run(&["log", &name]).stdout;
        assert!(log.contains("\"consistency\":"), "{log}");
    }
}

/// Encoders in 16 bits make other features, near those of 32; training in mixed precision goes near where full precision goes.
#[test]
fn precision_is_a_parameter_of_encoding_and_of_training() {
    let space = fresh();
    let mut with = String::from("needs: {samples: ingest}}");
    let mut features = |precision: &str| {
        let changed = format!("needs: {{samples: ingest}}, with: {{precision: {precision}}}}}");
        space.edit("siteline.yaml", &with, &changed);
        with = changed;
        let ran = space.run(&["run", "--plain", "--only", "features[site=A]"]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        space.output("features[site=A,backbone=tiny]", "features.parquet")
    };
    let [full, bf16, fp16] = ["fp32", "bf16", "fp16"].map(&mut features);
    assert!(full != bf16 && full != fp16 && bf16 != fp16, "they are the same bytes");
    features("fp32");
    let train = "train[method=mcdrl,backbone=tiny,held_out=A,seed=0]";
    let last = |set: &[&str]| -> f64 {
        let ran = space.run(&[&["run", "--plain", "--only", train], set].concat());
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let log = space.run(&["log", train]).stdout;
        let row = log.lines().rfind(|line| line.starts_with('{')).unwrap();
        serde_json::from_str::<serde_json::Value>(row).unwrap()["segmentation"].as_f64().unwrap()
    };
    let (full, mixed) = (last(&[]), last(&["--set", "stages.train.with.precision=bf16"]));
    assert!(full != mixed && (full - mixed).abs() < 0.05 * full, "{full}, {mixed}");
    let refused = space.run(&["run", "--plain", "--only", train, "--set", "stages.train.with.precision=fp16"]);
    assert!(refused.stderr.contains("`bf16`"), "{}", refused.stderr);
}

/// The same training from pixels and from activations in front of the blocks that are trained: nothing else differs.
fn last_blocks_from_activations_and_from_pixels(space: &Space, blocks: usize) {
    space.edit("siteline.yaml", "method: [erm, mcdrl]", "method: [erm, mcdrl]\n  from: [pixels, activations]");
    space.edit("siteline.yaml", "  encoder: {uses", &format!("  activations: {{uses: clip-features, per: [site, backbone], needs: {{samples: ingest}}, with: {{blocks_left: {blocks}}}}}\n  encoder: {{uses"));
    space.edit("siteline.yaml", "per: [method, backbone, held_out, seed]\n    needs:\n      features: {stage: features, where: site != held_out}", "per: [method, backbone, held_out, seed, from]\n    needs:\n      encoder: encoder\n      samples: {stage: ingest, where: site != held_out, when: from == pixels}\n      features: {stage: activations, where: site != held_out, when: from == activations}");
    space.edit("siteline.yaml", "per: [method, backbone, held_out, seed]\n    needs:\n      model: train\n      features: {stage: features, where: site == held_out}", "per: [method, backbone, held_out, seed, from]\n    needs:\n      model: train\n      features: {stage: activations, where: site == held_out, when: from == activations}");
    space.edit(
        "siteline.yaml",
        "{epochs: 2,",
        &format!("{{encoder: finetune, encoder_blocks: {blocks}, encoder_lr: 0.1, epochs: 2,"),
    );
    let table = table_of(space, &["erm", "mcdrl"]);
    for method in ["erm", "mcdrl"] {
        let losses = |from: &str| {
            losses_of(space, &format!("train[method={method},backbone=tiny,held_out=A,seed=0,from={from}]"))
        };
        let (pixels, activations) = (losses("pixels"), losses("activations"));
        assert_eq!(pixels.len(), 2, "{table}");
        assert!(
            pixels.iter().zip(&activations).all(|(a, b)| (a - b).abs() < 1e-4),
            "{method}: {pixels:?}, {activations:?}"
        );
        // The tower moved: it is not the frozen one.
        assert!(pixels[1] < pixels[0], "{pixels:?}");
    }
}

/// The segmentation loss of each epoch.
fn losses_of(space: &Space, train: &str) -> Vec<f64> {
    let log = space.run(&["log", train]).stdout;
    let rows = log.lines().filter(|line| line.starts_with('{'));
    rows.map(|row| serde_json::from_str::<serde_json::Value>(row).unwrap()["segmentation"].as_f64().unwrap()).collect()
}

#[test]
fn fine_tuning_the_last_blocks_from_activations_is_fine_tuning_them_from_pixels() {
    last_blocks_from_activations_and_from_pixels(&fresh(), 1);
}

/// The last three blocks of a small ResNet, of two of its stages.
#[test]
fn fine_tuning_a_resnets_last_blocks_from_activations_is_fine_tuning_them_from_pixels() {
    last_blocks_from_activations_and_from_pixels(&with_resnet(), 3);
}

/// Weights of an epoch in which the intervention did not work yet are a model without it, and tables say of how many that is so.
#[test]
fn tables_say_which_models_lack_a_part_of_their_method() {
    let space = fresh();
    space.edit("siteline.yaml", "mcdrl: {after_epoch: 1}", "kept_epoch: last, mcdrl: {after_epoch: 5}");
    let table = table_of(&space, &["erm", "mcdrl"]);
    assert!(table.contains("did not work yet: 1 of 1 models without the intervention."), "{table}");
    space.edit("siteline.yaml", "after_epoch: 5", "after_epoch: 0");
    assert!(!table_of(&space, &["erm", "mcdrl"]).contains("without the intervention"));
}

/// The whole tower, from pixels: the paper's own way for MCDRL.
#[test]
fn whole_towers_are_fine_tuned() {
    for space in [fresh(), with_resnet()] {
        from_pixels(&space, &["erm", "mcdrl"]);
        space.edit("siteline.yaml", "      features: {stage: features, where: site == held_out}\n", "");
        space.edit("siteline.yaml", "{epochs: 2,", "{encoder: finetune, encoder_lr: 0.1, epochs: 2,");
        table_of(&space, &["erm", "mcdrl"]);
        for method in ["erm", "mcdrl"] {
            let losses = losses_of(&space, &format!("train[method={method},backbone=tiny,held_out=A,seed=0]"));
            assert!(losses.len() == 2 && losses[1] < losses[0], "{method}: {losses:?}");
        }
    }
}

/// A project whose backbone is a small CLIP with a ResNet.
fn with_resnet() -> Space {
    let space = fresh();
    let weights = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/clip/resnet.safetensors");
    std::fs::copy(weights, space.path("clip.safetensors")).unwrap();
    space
}

/// CausalCLIPSeg, its arm without a game, and its controls, on a small CLIP with a ResNet.
#[test]
fn causalclipseg_trains_plays_and_reads_sentences() {
    let space = with_resnet();
    from_pixels(&space, &WITH_RESNET);
    for site in ["A", "B", "C"] {
        let truth = space.read(&format!("data/{site}/truth.csv"));
        let mut lines = truth.lines().enumerate();
        let (_, heading) = lines.next().unwrap();
        let rows: Vec<String> = lines.map(|(place, line)| format!("{line},one polyp number {place}")).collect();
        space.write(&format!("data/{site}/truth.csv"), format!("{heading},sentence\n{}\n", rows.join("\n")));
        space.edit(
            "siteline.yaml",
            &format!("table: data/{site}/truth.csv,"),
            &format!("table: data/{site}/truth.csv, prompt: {{column: sentence}},"),
        );
    }
    space.edit("siteline.yaml", "seed: [0]", "seed: [0]\n  arm:\n    - {name: game, causalclipseg: {warm_up: 1}}\n    - {name: no-game, causalclipseg: {game: no-game, loss: bce+dice}}\n    - {name: grl, causalclipseg: {game: grl, warm_up: 1}}\n    - {name: shuffled, causalclipseg: {text: shuffled}}\n    - {name: empty, causalclipseg: {text: empty}}\n    - {name: classes, causalclipseg: {text: classes}}");
    space.edit(
        "siteline.yaml",
        "per: [method, backbone, held_out, seed]\n    needs:\n      samples",
        "per: [method, backbone, held_out, seed, arm]\n    needs:\n      samples",
    );
    space.edit(
        "siteline.yaml",
        "per: [method, backbone, held_out, seed]\n    needs:\n      model",
        "per: [method, backbone, held_out, seed, arm]\n    needs:\n      model",
    );
    space.edit("siteline.yaml", "epochs: 2,", "epochs: 2, lr: 0.001,");
    table_of(&space, &["causalclipseg"]);
    // What an arm reads is what it trains on: no two come to the same.
    let arms = ["game", "no-game", "grl", "shuffled", "empty", "classes"];
    let of = |arm: &str| {
        losses_of(&space, &format!("train[method=causalclipseg,backbone=tiny,held_out=A,seed=0,arm={arm}]"))
    };
    let losses: Vec<Vec<f64>> = arms.iter().map(|arm| of(arm)).collect();
    for (place, own) in losses.iter().enumerate() {
        assert!(!own.is_empty() && !losses[..place].contains(own), "{}: {losses:?}", arms[place]);
    }
}

/// A size of a backbone reaches its towers, and one that does not fit is refused.
#[test]
fn a_backbones_image_size_counts() {
    let space = Space::fresh();
    space.edit("siteline.yaml", "{weights: clip.safetensors}", "{weights: clip.safetensors, image_size: 48}");
    let ran = space.run(&["run", "--plain", "--only", "features[site=A]"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let small = space.output("features[site=A,backbone=tiny]", "features.parquet").len();
    space.edit("siteline.yaml", "image_size: 48", "image_size: 96");
    assert_eq!(space.run(&["run", "--plain", "--only", "features[site=A]"]).code, 0);
    assert!(space.output("features[site=A,backbone=tiny]", "features.parquet").len() > 3 * small);
    space.edit("siteline.yaml", "image_size: 96", "image_size: 50");
    let refused = space.run(&["run", "--plain", "--only", "features[site=A]"]);
    assert!(refused.stderr.contains("it must be a multiple of 12"), "{}", refused.stderr);
}

/// What a method lacks is said, with what to write; what would be ignored is refused.
#[test]
fn what_a_method_lacks_or_cannot_use_is_said() {
    let failing = |edits: &[(&str, &str)], said: &str| {
        let space = fresh();
        for (from, to) in edits {
            space.edit("siteline.yaml", from, to);
        }
        let ran = space.run(&["run", "--plain", "--only", "train"]);
        assert_eq!(ran.code, 1, "{}", ran.stderr);
        assert!(ran.stderr.contains(said), "{}", ran.stderr);
    };
    let only = |method: &str| format!("method: [{method}, mcdrl]");
    let both = "method: [erm, mcdrl]";
    let for_both = ("when: method == mcdrl}", "when: 'method in [mcdrl, coop]'}");
    failing(
        &[(both, &only("coop")), for_both],
        "coop needs CLIP's weights: give the stage `needs: {encoder: ...}`, a stage of the kind `clip-weights`",
    );
    failing(&[("{epochs: 2,", "{encoder: finetune, epochs: 2,")], "`encoder: finetune` reads pixels");
    failing(
        &[("{epochs: 2,", "{encoder_blocks: 2, epochs: 2,")],
        "`encoder_blocks` counts for `encoder: finetune` alone",
    );
}

/// What a method cannot do without is asked for when the plan is made, before anything runs.
#[test]
fn what_a_method_needs_is_known_to_the_plan() {
    let refused = |edits: &[(&str, &str)], said: &str| {
        let space = fresh();
        for (from, to) in edits {
            space.edit("siteline.yaml", from, to);
        }
        let plan = space.run(&["plan"]);
        assert_eq!(plan.code, 2, "{}", plan.stdout);
        assert!(plan.stderr.contains(said) && plan.stderr.contains("siteline.yaml:"), "{}", plan.stderr);
    };
    let only = |method: &str| format!("method: [{method}, mcdrl]");
    let both = "method: [erm, mcdrl]";
    refused(
        &[(both, &only("unet"))],
        "`train[method=unet,backbone=tiny,held_out=A,seed=0]`: unet is trained on `samples`",
    );
    refused(&[(both, &only("fourier"))], "fourier is trained on `samples` and `encoder`");
    refused(&[(both, &only("coop"))], "coop needs a `dictionary`, a stage of the kind `confounder-dictionary`");
    let one = ("where: site != held_out}", "where: site == B}");
    refused(
        &[(both, &only("dann")), one],
        "dann is trained on 2 sites or more, by `features`, or by `samples` and `encoder`",
    );
    let pixels = ("      features: {stage: features, where: site == held_out}\n", "");
    refused(&[(both, &only("mixstyle-feature")), pixels], "models of mixstyle-feature are scored on `features`");
}

/// Features that were taken in another way than those of the training are no features for its model.
#[test]
fn a_model_refuses_features_of_another_origin() {
    let space = fresh();
    space.edit("siteline.yaml", "  encoder: {uses", "  others: {uses: clip-features, per: [site, backbone], needs: {samples: ingest}, with: {dense: tokens}}\n  encoder: {uses");
    space.edit(
        "siteline.yaml",
        "features: {stage: features, where: site == held_out}",
        "features: {stage: others, where: site == held_out}",
    );
    let ran = space.run(&["run", "--plain", "--only", "evaluate[method=erm]"]);
    assert!(ran.stderr.contains("are of another encoder, or taken from it in another way"), "{}", ran.stderr);
}

/// All that trainings read is there.
fn prepared(space: Space) -> Space {
    let ran = space.run(&["run", "--plain", "--except", "train"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    space
}

/// Two updates a step and statistics of batches; draws of every step; an optimiser that starts anew on the way.
#[test]
fn killed_trainings_of_other_methods_go_on_with_the_same_bytes_too() {
    let games = || {
        let space = fresh();
        let weights = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/clip/resnet.safetensors");
        std::fs::copy(weights, space.path("clip.safetensors")).unwrap();
        from_pixels(&space, &WITH_RESNET);
        prepared(space)
    };
    let causal = "train[method=causalclipseg,backbone=tiny,held_out=A,seed=0]";
    let set =
        ["stages.train.with.epochs=12", "stages.train.with.lr=0.001", "stages.train.with.causalclipseg={warm_up: 2}"];
    let set = set.map(|set| ["--set", set]).concat();
    goes_on_with_the_same_bytes(&games, causal, &set);

    // A teacher, and augmentations that are drawn ahead.
    let taught = || {
        let space = fresh();
        from_pixels(&space, &["fourier"]);
        prepared(space)
    };
    let set = ["stages.train.with.epochs=10", "stages.train.with.fourier={teacher: 0.9, ramp_up: 0}"];
    let set = set.map(|set| ["--set", set]).concat();
    goes_on_with_the_same_bytes(&taught, "train[method=fourier,backbone=tiny,held_out=A,seed=0]", &set);

    let on_features = || {
        let space = fresh();
        space.edit("siteline.yaml", "method: [erm, mcdrl]", "method: [vrex, mixstyle-feature, swad, mcdrl]");
        prepared(space)
    };
    for (method, with) in [
        ("vrex", "vrex={anneal_steps: 30}"),
        ("mixstyle-feature", "mixstyle-feature={}"),
        ("swad", "swad={converge: 2, tolerance: 2, ratio: 1.05}"),
    ] {
        let train = format!("train[method={method},backbone=tiny,held_out=A,seed=0]");
        let with = format!("stages.train.with.{with}");
        let set = ["--set", "stages.train.with.epochs=40", "--set", &with];
        goes_on_with_the_same_bytes(&on_features, &train, &set);
    }
}
