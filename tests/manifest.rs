//! Mistakes in a manifest, as the user sees them: file, line, column, the text underlined, a hint.

use crate::space::{Said, Space, real_images, skipped};

/// Shows what `plan` says of a manifest in which one text was replaced; `check-manifest` says the same.
fn mistake(name: &str, from: &str, to: &str) {
    let (space, said) = mistake_in_data(name, from, to);
    let checked = space.run(&["check-manifest"]);
    assert_eq!((checked.code, checked.stderr), (2, said.stderr), "{}", checked.stdout);
}

/// The same where it takes a look at the data.
fn mistake_in_data(name: &str, from: &str, to: &str) -> (Space, Said) {
    let space = Space::fresh();
    space.edit("siteline.yaml", from, to);
    let said = space.run(&["plan"]);
    assert_eq!(said.code, 2, "{}\n{}", said.stdout, said.stderr);
    insta::assert_snapshot!(name, said.snapshot(&space));
    (space, said)
}

#[test]
fn unknown_key() {
    mistake("unknown_key", "name: study\n", "name: study\nbackbone: {}\n");
}

#[test]
fn unknown_parameter() {
    mistake("unknown_parameter", "epochs: 2", "epocs: 2");
}

#[test]
fn parameter_of_a_wrong_type() {
    mistake("wrong_type", "epochs: 2", "epochs: many");
}

#[test]
fn parameter_beyond_all_bounds() {
    mistake("absurd_number", "epochs: 2", "epochs: 1e20");
}

#[test]
fn unknown_stage() {
    mistake("unknown_stage", "model: train", "model: trian");
}

#[test]
fn unknown_stage_kind() {
    mistake("unknown_kind", "uses: evaluate", "uses: evalute");
}

#[test]
fn unknown_input() {
    mistake("unknown_input", "{samples: ingest}", "{sample: ingest}");
}

#[test]
fn cycle() {
    let space = Space::of_commands(
        "stages:\n  hen: {run: cat inputs/from/out >out, needs: {from: egg}, outputs: [out]}\n  egg: {run: cat inputs/from/out >out, needs: {from: hen}, outputs: [out]}\n",
    );
    let said = space.run(&["plan"]);
    assert_eq!(said.code, 2, "{}", said.stderr);
    insta::assert_snapshot!("cycle", said.snapshot(&space));
}

#[test]
fn a_need_of_files_that_the_other_stage_does_not_write() {
    mistake(
        "wrong_files",
        "      samples: {stage: ingest, where: site == held_out}\n",
        "      samples: {stage: features, where: site == held_out}\n",
    );
}

#[test]
fn missing_axis() {
    mistake("missing_axis", "per: [site, backbone], needs", "per: [site, backbones], needs");
}

#[test]
fn axis_that_a_kind_needs() {
    mistake("needed_axis", "ingest: {uses: ingest, per: [site],", "ingest: {uses: ingest,");
}

#[test]
fn value_that_a_parameter_cannot_have() {
    mistake("axis_value", "method: [erm, mcdrl]", "method: [erm, mcrdl]");
}

#[test]
fn bad_where() {
    mistake("bad_where", "where: site != held_out}\n      dictionary", "where: site =! held_out}\n      dictionary");
}

#[test]
fn where_with_an_unknown_axis() {
    mistake(
        "where_unknown_axis",
        "where: site != held_out}\n      dictionary",
        "where: site != hold_out}\n      dictionary",
    );
}

#[test]
fn unreadable_file() {
    mistake_in_data("unreadable_file", "prompts: prompts.yaml", "prompts: promts.yaml");
}

#[test]
fn pattern_that_matches_nothing() {
    mistake_in_data("empty_pattern", "data/A/images/*.png", "data/A/images/*.jpg");
}

#[test]
fn images_without_masks() {
    mistake_in_data("unpaired", "data/A/masks/{stem}.png", "data/A/masks/{stem}_mask.png");
}

#[test]
fn path_out_of_the_project() {
    mistake("climbing_path", "weights: clip.safetensors", "weights: ../clip.safetensors");
}

#[test]
fn no_yaml() {
    mistake("no_yaml", "axes:\n", "axes: [\n");
}

#[test]
fn need_that_finds_too_much() {
    mistake("join_too_much", "      model: train\n", "      model: {stage: train, where: method == erm}\n");
}

#[test]
fn leakage_is_refused_with_its_path() {
    mistake("leakage", "features: {stage: features, where: site != held_out}\n", "features: features\n");
}

#[test]
fn several_mistakes_are_shown_at_once() {
    let space = Space::fresh();
    space.edit("siteline.yaml", "epochs: 2", "epocs: 2");
    space.edit("siteline.yaml", "model: train", "model: trian");
    let said = space.run(&["plan"]);
    assert!(
        said.stderr.contains("epocs") && said.stderr.contains("trian") && said.stderr.contains("2 errors"),
        "{}",
        said.stderr
    );
}

#[test]
fn in_domain_scores_are_allowed_when_said_and_marked_in_the_table() {
    let space = Space::finished();
    space.edit("siteline.yaml", "features: {stage: features, where: site != held_out}\n", "features: features\n");
    space.edit("siteline.yaml", "    with: {overlays: 1}\n", "    with: {overlays: 1}\n    in_domain: true\n");
    let said = space.run(&["run", "--plain"]);
    assert_eq!(said.code, 0, "{}", said.stderr);
    let table = space.read("results/study/table.md");
    assert!(table.contains('†') && table.contains("in-domain"), "{table}");
    assert!(space.run(&["audit"]).stdout.contains("in-domain, as the manifest says"));
}

#[test]
fn the_schema_accepts_what_the_program_accepts() {
    let space = Space::fresh();
    let schema: serde_json::Value = serde_json::from_str(&space.run(&["schema"]).stdout).unwrap();
    assert_eq!(schema["properties"]["stages"]["additionalProperties"]["$ref"], "#/$defs/Stage");
    for key in ["uses", "per", "needs", "with", "overrides", "resources", "in_domain"] {
        assert!(schema["$defs"]["Stage"]["properties"].get(key).is_some(), "the schema lacks `{key}`");
    }
}

#[test]
fn images_and_masks_may_lie_in_one_folder() {
    let space = Space::fresh();
    std::fs::create_dir(space.path("flat")).unwrap();
    for index in 0..10 {
        let name = format!("phantom_{index:04}");
        std::fs::copy(space.path(&format!("data/A/images/{name}.png")), space.path(&format!("flat/{name}.png")))
            .unwrap();
        std::fs::copy(space.path(&format!("data/A/masks/{name}.png")), space.path(&format!("flat/{name}_mask.png")))
            .unwrap();
    }
    space.edit("siteline.yaml", "data/A/images/*.png", "flat/*.png");
    space.edit("siteline.yaml", "data/A/masks/{stem}.png", "flat/{stem}_mask.png");
    let said = space.run(&["run", "--plain", "--only", "ingest[site=A]"]);
    assert_eq!(said.code, 0, "{}", said.stderr);
    let lineage = space.run(&["trace", "ingest[site=A]"]);
    assert!(lineage.stdout.contains("10 images, 10 masks"), "{}", lineage.stdout);
}

#[test]
fn a_project_folder_may_have_wildcards_and_spaces_in_its_name() {
    let space = Space::fresh();
    let odd = space.path("study [2024] *é");
    std::fs::create_dir(&odd).unwrap();
    for name in ["siteline.yaml", "prompts.yaml", "clip.safetensors", "data"] {
        std::fs::rename(space.path(name), odd.join(name)).unwrap();
    }
    let said = space.run(&["plan", "-m", odd.join("siteline.yaml").to_str().unwrap()]);
    assert_eq!(said.code, 0, "{}", said.stderr);
}

/// The README's manifest for one's own sites is at most 15 lines, and it plans.
#[test]
fn the_readmes_manifest_plans() {
    let readme = include_str!("../README.md");
    let block = readme.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    assert!(block.lines().count() <= 15, "{} lines", block.lines().count());
    let space = Space::fresh();
    space.write("mine.yaml", block);
    for (from, to) in [("A", "hospital-a"), ("B", "hospital-b")] {
        for part in ["images", "masks"] {
            std::fs::create_dir_all(space.path(to)).unwrap();
            std::fs::rename(space.path(&format!("data/{from}/{part}")), space.path(&format!("{to}/{part}"))).unwrap();
        }
    }
    let said = space.run(&["plan", "-m", "mine.yaml"]);
    assert_eq!(said.code, 0, "{}", said.stderr);
    assert!(said.stdout.contains("train                          12"), "{}", said.stdout);
}

/// What would silently mean something else than it says is refused, with its place.
#[test]
fn commands_and_groups_that_contradict_themselves_are_refused() {
    let refused = |manifest: &str, place: &str, message: &str| {
        let space = Space::of_commands(manifest);
        for verb in ["plan", "check-manifest"] {
            let said = space.run(&[verb]);
            assert!(said.code != 0 && said.stderr.contains(message), "{manifest}: {}{}", said.stdout, said.stderr);
            assert!(said.stderr.contains(&format!("siteline.yaml:{place}")), "{manifest}: {}", said.stderr);
        }
    };
    let stage = |axes: &str, rest: &str| format!("axes: {{{axes}}}\nstages: {{a: {{{rest}}}}}\n");
    let group = "seed: [1, 2], size: [{name: s, seed: 3}]";
    let message = "`seed` is given to the stage `a` by the axis `seed` as well";
    refused(&stage(group, "run: echo >o, per: [seed, size], outputs: [o]"), "3:", message);
    let groups = "x: [{name: s, k: 1}], y: [{name: u, k: 4}]";
    let message = "`k` is given to the stage `a` by a group of the axis `x` as well";
    refused(&stage(groups, "run: echo >o, per: [x, y], outputs: [o]"), "3:", message);
    let twice = "run: echo >o, per: [z, z], outputs: [o]";
    refused(&stage("z: [1, 2]", twice), "4:", "the axis `z` is there twice");
    let z = "z: [1]";
    refused(&stage(z, "run: echo >o, outputs: [o, o/]"), "4:", "the output `o/` is there twice");
    refused(&stage(z, "run: echo >o, outputs: ['*.csv']"), "4:", "the output `*.csv` is a pattern");
    refused(&stage(z, "run: echo >o, outputs: [o], files: [a/../../x]"), "4:", "`a/../../x` climbs out of the project");
    refused(&stage(z, "run: [], outputs: [o]"), "4:", "the command of the stage `a` is empty");
    refused(&stage(z, "run: '', outputs: [o]"), "4:", "the command of the stage `a` is empty");
    refused(&stage(z, "run: echo >o, outputs: [o], results: [p]"), "4:", "the stage `a` has no output `p`");
    refused(&stage(z, "run: echo >o, outputs: [o], timeout: 0s"), "4:", "`timeout` must be more than zero");
    refused(&stage(z, "run: echo >o, outputs: [o], timeout: 20"), "4:", "`timeout` must be a text, not 20");
    refused(&stage(z, "run: echo >o, outputs: [o], env: {N: 4}"), "4:", "write it in quotation marks: `\"4\"`");
    refused(&stage(z, "run: echo >o, outputs: [o], env: {N: 3.10}"), "4:", "quotation marks: `\"3.10\"`");
    refused(&stage(z, "run: echo >o, per: z, outputs: [o]"), "4:", "write it as a list: `[z]`");
    refused(&stage(z, "run: echo >o, outputs: [o], env: {A B: x}"), "4:", "\"A B\" cannot be the name of a variable");
    refused(&stage("z: []", "run: echo >o, per: [z], outputs: [o]"), "3:", "the axis `z` has no values");
    refused(&stage("z: 0", "run: echo >o, per: [z], outputs: [o]"), "3:", "write it as a list: `[0]`");
    refused(
        &stage("z: [true]", "run: echo >o, per: [z], outputs: [o]"),
        "3:",
        "`z` must be a whole number or a number or a text",
    );
    refused(&stage("z: [.nan]", "run: echo >o, per: [z], outputs: [o]"), "3:", "a number must be finite");
    for (site, message) in [
        ("class: {name: 'a['}", "`a[` is no regular expression: unclosed character class"),
        ("patient: {name: 'p[0-9]+'}", "write `(p[0-9]+)` to take all of it"),
        ("class: {column: kind}", "`class` is a column, but the site `A` names no table"),
    ] {
        let site = format!("sites: {{A: {{images: a/*.png, masks: 'm/{{stem}}.png', {site}}}}}");
        refused(&format!("{site}\nstages: {{a: {{run: echo >o, outputs: [o]}}}}\n"), "3:", message);
    }
    let needs = "axes: {x: [1, 2], y: [2, 3]}\nstages:\n  a: {run: echo >o, per: [x], outputs: [o]}\n  b: {run: echo >o, per: [y], needs: {i: {stage: a, where: x == y}}, outputs: [o]}\n";
    refused(needs, "6:", "`3` of the axis `y` is no value of `x`: `1`, `2`");
    let all = "siteline: 1\nname: study\naxes: {z: [1]}\nexclude: [z == 1]\nstages: {a: {run: echo >o, per: [z], outputs: [o]}}\n";
    let space = Space::of_commands("stages: {}");
    space.write("siteline.yaml", all);
    let said = space.run(&["run", "--plain"]);
    assert!(said.code != 0 && said.stderr.contains("no stage has an instance"), "{}{}", said.stdout, said.stderr);
    // What the command line changes is not to be seen in the file.
    let space = Space::of_commands(&stage(z, "run: echo >o, outputs: [o]"));
    for (pattern, message) in [
        ("a[z=1]x", "`x` does not belong behind the bracket"),
        ("a[z=1,z=2]", "give two patterns"),
        ("a[z=1,z=1]", "`z=1` is there twice"),
    ] {
        let said = space.run(&["plan", "--only", pattern]);
        assert!(said.code == 2 && said.stderr.contains(message), "{pattern}: {}", said.stderr);
    }
    let said = space.run(&["plan", "--set", "stages.b.with.x=1"]);
    assert!(said.code == 2 && said.stderr.contains("changed by `--set stages.b.with.x=1`"), "{}", said.stderr);
}

/// Every manifest of the repository can be planned; those of real images where these are.
#[test]
fn the_shipped_manifests_can_be_planned() {
    let space = Space::of_commands("");
    space.bring(&["manifests", "weights"]);
    for (sites, out) in [("demo-sites", "demo/sites"), ("planted-sites", "demo/planted")] {
        let said = space.run(&["phantoms", &format!("manifests/{sites}.yaml"), "--out", out]);
        assert_eq!(said.code, 0, "{}", said.stderr);
    }
    let data = real_images(&["polyp/etis_larib/images", "breast_ultrasound"]);
    let mut planned = 0;
    for entry in std::fs::read_dir(space.path("manifests")).unwrap() {
        let path = entry.unwrap().path();
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        let manifest = path.to_str().unwrap();
        let set;
        let mut words = vec!["plan", "-m", manifest];
        if !text.lines().any(|line| line.starts_with("stages:")) {
            continue;
        }
        if text.contains("${data}") {
            let Some(data) = &data else {
                skipped(&format!("{manifest} reads real images, and there are none"));
                continue;
            };
            set = format!("params.data={}", data.display());
            words.extend(["--set", &set]);
        }
        let said = space.run(&words);
        assert!(said.code == 0 && said.stdout.contains("to run"), "{manifest}: {}{}", said.stdout, said.stderr);
        planned += 1;
    }
    assert!(planned >= 5, "only {planned} manifests were planned");
}
