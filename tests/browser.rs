//! The report in a browser: it opens, and a click on a number shows where it comes from.

use std::process::Command;

use crate::space::{Space, skipped};

#[test]
fn a_click_on_a_number_shows_its_lineage() {
    let (python, chromium) = (std::env::var_os("SITELINE_TEST_PYTHON"), std::env::var_os("SITELINE_TEST_CHROMIUM"));
    let (Some(python), Some(chromium)) = (python, chromium) else {
        return skipped("no Chromium with its driver, or no Python with selenium; `make test` says why");
    };
    let space = Space::finished();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/click_number.py");
    let report = std::fs::canonicalize(space.path("results/study/report.html")).unwrap();
    let output = Command::new(python).arg(script).arg(chromium).arg(report).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
}
