//! Real multi-site images, where a machine has them.

use crate::space::{Space, real_images, skipped};

#[test]
fn real_sites_run_from_raw_files_to_the_table() {
    let Some(data) = real_images(&["polyp/kvasir/images", "polyp/cvc_clinicdb/images", "polyp/etis_larib/images"])
    else {
        return skipped("SITELINE_TEST_DATA names no folder with polyp/{kvasir,cvc_clinicdb,etis_larib}");
    };
    let space = Space::fresh();
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/polyp-three-centres.yaml");
    let set = format!("params.data={}", data.display());
    let store = space.path("store");
    let arguments = [
        "run",
        "--plain",
        "-m",
        manifest,
        "--store",
        store.to_str().unwrap(),
        "--only",
        "evaluate[method=erm]",
        "--only",
        "evaluate[method=mcdrl]",
        "--only",
        "evaluate[method=coop]",
        "--set",
        &set,
        "--set",
        "axes.seed=[0]",
        "--set",
        "stages.train.with.epochs=2",
        "--set",
        "name=real-images-test",
    ];
    let said = space.run(&arguments);
    let _ = std::fs::remove_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/results/real-images-test"));
    assert_eq!(said.code, 0, "{}\n{}", said.stdout, said.stderr);
    assert!(said.stderr.contains("evaluate[method=coop"), "{}", said.stderr);
    // Neighbouring frames are one patient's.
    let log = space.run(&[
        "log",
        "ingest[site=etis_larib]",
        "-m",
        manifest,
        "--store",
        store.to_str().unwrap(),
        "--set",
        &set,
        "--set",
        "name=real-images-test",
    ]);
    let counts: Vec<usize> = log.stdout.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let joined = log.stdout.lines().any(|line| line.contains("images that look alike were joined"));
    assert!(joined && counts.contains(&20), "{}", log.stdout);
}
