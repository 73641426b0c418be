//! Code fingerprints: a change of one source changes the kinds that reach it, and nothing else.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

#[path = "../build/fingerprint.rs"]
mod fingerprint;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// A copy of the sources that fingerprints are made of.
fn workspace() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for part in ["stages", "datasets", "tables", "Cargo.lock"] {
        assert!(Command::new("cp").arg("-r").arg(root.join(part)).arg(dir.path()).status().unwrap().success());
    }
    dir
}

/// `kind`, and `kind/method=name`, whose fingerprint changes with an edit.
fn changed(file: &str, edit: impl FnOnce(String) -> String) -> BTreeSet<String> {
    let dir = workspace();
    let before = read(dir.path());
    let path = dir.path().join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    let edited = edit(text.clone());
    assert_ne!(text, edited, "the edit changes nothing");
    std::fs::write(&path, edited).unwrap();
    let after = read(dir.path());
    after.into_iter().filter(|entry| !before.contains(entry)).map(|(name, _)| name).collect()
}

fn read(workspace: &Path) -> BTreeSet<(String, String)> {
    let all: serde_json::Value = serde_json::from_str(&fingerprint::all(workspace).unwrap()).unwrap();
    let mut found = BTreeSet::new();
    for (kind, code) in all.as_object().unwrap() {
        found.insert((kind.clone(), code["base"].as_str().unwrap().to_owned()));
        for (method, print) in code["variants"]["method"].as_object().into_iter().flatten() {
            found.insert((format!("{kind}/method={method}"), print.as_str().unwrap().to_owned()));
        }
    }
    found
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn a_methods_source_is_that_methods_alone() {
    let found = changed("stages/src/method/mcdrl.rs", |text| {
        text.replace("alpha * positions as f64 + 0.5", "alpha * positions as f64 + 0.4")
    });
    assert_eq!(found, set(&["train/method=mcdrl", "evaluate/method=mcdrl"]));
}

#[test]
fn what_only_one_method_reaches_is_that_methods_alone() {
    let found = changed("stages/src/model/intervention.rs", |text| text.replace("pinverse(1e-6)", "pinverse(1e-5)"));
    assert_eq!(found, set(&["train/method=mcdrl", "evaluate/method=mcdrl"]));
}

#[test]
fn comments_documentation_tests_and_line_breaks_change_nothing() {
    let found = changed("stages/src/method/mcdrl.rs", |text| {
        format!(
            "// A comment.\n{}\n",
            text.replace("/// MTRS:", "/// MTRS, said otherwise:")
                .replace("tch::manual_seed(0);", "tch::manual_seed(9);")
        )
    });
    assert_eq!(found, set(&[]));
}

#[test]
fn the_tables_code_is_the_tables_alone() {
    assert_eq!(changed("tables/src/render.rs", |text| text.replace("###", "##")), set(&["table"]));
}

#[test]
fn the_training_loop_is_every_methods_and_nothing_to_evaluation() {
    let found =
        changed("stages/src/trainer.rs", |text| text.replace("params.epochs * steps", "params.epochs * steps + 1"));
    assert_eq!(found, set(&["train"]));
}

#[test]
fn clips_code_is_nothing_to_kinds_that_have_no_clip() {
    let found = changed("stages/src/model/clip/vision.rs", |text| {
        text.replace("self.blocks.len() / 3", "self.blocks.len() / 4")
    });
    assert!(found.contains("clip-features") && found.contains("train"), "{found:?}");
    for kind in ["ingest", "table", "phantoms", "select"] {
        assert!(!found.contains(kind), "{kind}: {found:?}");
    }
}

#[test]
fn what_training_is_set_up_by_is_nothing_to_evaluation() {
    let found = changed("stages/src/kind/train.rs", |text| text.replace("\"trainable parameters\"", "\"parameters\""));
    assert_eq!(found, set(&["train"]));
}

#[test]
fn decoding_reaches_what_decodes() {
    let found = changed("datasets/src/decode.rs", |text| text.replace("largest / 2 + 1", "largest / 2"));
    assert!(found.contains("ingest") && !found.contains("train") && !found.contains("table"), "{found:?}");
}

#[test]
fn a_library_that_nobody_judged_is_refused() {
    let dir = workspace();
    let file = dir.path().join("datasets/Cargo.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("[dependencies]\n", "[dependencies]\nnew-resampler = \"1\"\n")).unwrap();
    let error = fingerprint::all(dir.path()).unwrap_err();
    assert!(error.contains("does `new-resampler` shape numbers?"), "{error}");
}

#[test]
fn the_versions_of_what_draws_and_decodes_are_part_of_it() {
    let dir = workspace();
    let libraries = |kind: &str| {
        let all: serde_json::Value = serde_json::from_str(&fingerprint::all(dir.path()).unwrap()).unwrap();
        all[kind]["libraries"].as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>()
    };
    for library in ["rand", "tch", "torch-sys"] {
        assert!(libraries("train").contains(library), "{library}");
    }
    for library in ["image", "zune-jpeg", "regex", "csv"] {
        assert!(libraries("ingest").contains(library), "{library}");
    }
}
