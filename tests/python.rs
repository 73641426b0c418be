//! Artifacts are readable by Python's pyarrow and polars.

use std::process::Command;

use crate::space::{Space, skipped};

#[test]
fn features_are_readable_by_pyarrow_and_polars() {
    let Some(python) = std::env::var_os("SITELINE_TEST_PYTHON") else {
        return skipped("SITELINE_TEST_PYTHON names no Python with pyarrow and polars; `make test` installs one");
    };
    let space = Space::finished();
    let trace = space.run(&["trace", "features[site=A]", "--json"]);
    let lineage: serde_json::Value = serde_json::from_str(&trace.stdout).unwrap();
    let digest = lineage["outputs"][0]["digest"].as_str().unwrap().to_owned();
    let file = space.path(&format!(".siteline/objects/{}/{}", &digest[..2], &digest[2..]));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/read_features.py");
    let output = Command::new(python).arg(script).arg(file).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    assert!(out.contains("rows 10, pooled 128, dense 8192, row groups 1"), "{out}");
}
