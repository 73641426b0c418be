//! Build script: code fingerprints of the stage kinds, and the run path of libtorch.

mod fingerprint;

use std::path::{Path, PathBuf};

fn main() {
    let here = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let workspace = here.parent().expect("the crate lies in the workspace");
    for watched in ["stages/src", "stages/build", "datasets/src", "tables/src", "Cargo.lock"] {
        println!("cargo:rerun-if-changed={}", workspace.join(watched).display());
    }
    let fingerprints = fingerprint::all(workspace).unwrap_or_else(|reason| panic!("code fingerprints: {reason}"));
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it")).join("fingerprints.json");
    std::fs::write(&out, fingerprints).unwrap_or_else(|e| panic!("{}: {e}", out.display()));
    libtorch();
}

/// The worker finds libtorch where it was built against, without any variable set.
fn libtorch() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let version = std::env::var("LIBTORCH").ok().map(|home| {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{home}/lib");
        std::fs::read_to_string(Path::new(&home).join("build-version")).unwrap_or_default().trim().to_owned()
    });
    println!(
        "cargo:rustc-env=SITELINE_LIBTORCH={}",
        version.filter(|v| !v.is_empty()).unwrap_or_else(|| "unknown".into())
    );
}
