//! Drives the built programs as a user would. One binary: a test file that is not listed here fails `no_file_is_forgotten`.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

mod space;

mod bad_input;
mod browser;
mod commands;
mod concurrency;
mod escapes;
mod gc;
mod incremental;
mod json;
mod keys;
mod kills;
mod manifest;
mod methods;
mod names;
mod oracle;
mod oracle_of_prompts;
mod pack;
mod packs;
mod past;
mod people;
mod planted;
mod python;
mod real_images;
mod reliability;
mod selection;
mod verbs;
mod watching;
mod weights;
mod work_dirs;

#[test]
fn no_file_is_forgotten() {
    let listed = include_str!("main.rs");
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if path.extension().is_some_and(|e| e == "rs") && name != "main" {
            assert!(listed.contains(&format!("mod {name};")), "tests/{name}.rs is not listed in tests/main.rs");
        }
    }
}
