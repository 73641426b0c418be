//! Bad input: each gets a clear error that names the file and a non-zero exit, and the store stays whole.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use crate::space::{Space, skipped};

const IMAGE: &str = "data/B/images/phantom_0004.png";
const MASK: &str = "data/B/masks/phantom_0004.png";

/// Runs a project that was finished before a file went bad: the failure names the file, everything else is kept, and the
/// file's return is all that it takes.
fn fails_by_name(file: &str, content: &[u8], reason: &str) {
    let space = Space::finished();
    let good = std::fs::read(space.path(file)).unwrap();
    space.write(file, content);
    let said = space.run(&["run", "--plain"]);
    assert_eq!(said.code, 1, "{}", said.stderr);
    let name = file.rsplit('/').next().unwrap();
    assert!(said.stderr.contains("FAILED  ingest[site=B]"), "{}", said.stderr);
    assert!(said.stderr.contains(name) && said.stderr.contains(reason), "{}", said.stderr);
    assert!(said.stderr.contains("log: "), "{}", said.stderr);
    assert!(said.stderr.contains("blocked table"), "{}", said.stderr);
    assert_eq!(space.run(&["verify"]).code, 0);
    space.write(file, good);
    assert!(space.executed(&[]).is_empty(), "a failure must not be remembered");
}

fn png(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::DynamicImage::new_rgb8(width, height).write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

#[test]
fn an_empty_image() {
    fails_by_name(IMAGE, b"", "the file is empty");
}

#[test]
fn a_truncated_png() {
    let space = Space::finished();
    let whole = std::fs::read(space.path(IMAGE)).unwrap();
    fails_by_name(IMAGE, &whole[..whole.len() / 2], "cut short");
}

#[test]
fn a_one_pixel_image() {
    fails_by_name(IMAGE, &png(1, 1), "1 x 1 pixels");
}

#[test]
fn a_mask_of_another_size() {
    fails_by_name(MASK, &png(32, 64), "the mask has 32 x 64 pixels, its image 64 x 64");
}

#[test]
fn a_header_that_promises_a_huge_image() {
    let mut bytes = png(64, 64);
    bytes[16..20].copy_from_slice(&60_000u32.to_be_bytes());
    bytes[20..24].copy_from_slice(&60_000u32.to_be_bytes());
    // The header's own check sum follows its 13 bytes.
    let crc = crc32(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&crc.to_be_bytes());
    fails_by_name(IMAGE, &bytes, "60000 x 60000");
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 })
    })
}

#[test]
fn a_bad_file_may_be_left_out_and_is_listed() {
    let space = Space::finished();
    space.write(IMAGE, b"no image at all");
    space.edit("siteline.yaml", "  B: {images:", "  B: {on_bad_file: leave-out, images:");
    let said = space.run(&["run", "--plain"]);
    assert_eq!(said.code, 0, "{}", said.stderr);
    assert!(said.stderr.contains("left out:") && said.stderr.contains("phantom_0004.png"), "{}", said.stderr);
    let trace = space.run(&["trace", "ingest[site=B]", "--json"]);
    let lineage: serde_json::Value = serde_json::from_str(&trace.stdout).unwrap();
    assert_eq!(lineage["metrics"]["left out"], 1.0);
    let listed = lineage["outputs"].as_array().unwrap().iter().find(|o| o["path"] == "left_out.csv").unwrap();
    let digest = listed["digest"].as_str().unwrap();
    let text = space.read(&format!(".siteline/objects/{}/{}", &digest[..2], &digest[2..]));
    assert!(text.contains("phantom_0004,\"it is no image of a known format"), "{text}");
}

#[test]
fn bad_weights_are_named() {
    let space = Space::finished();
    space.write("clip.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{\"lies\": true   ");
    let said = space.run(&["run", "--plain"]);
    assert_eq!(said.code, 1);
    assert!(said.stderr.contains("clip.safetensors: not a whole safetensors file"), "{}", said.stderr);
}

#[test]
fn a_link_to_nowhere_and_a_mask_without_an_image_are_named() {
    let space = Space::fresh();
    std::fs::remove_file(space.path(IMAGE)).unwrap();
    std::os::unix::fs::symlink("/nowhere", space.path(IMAGE)).unwrap();
    let said = space.run(&["plan"]);
    assert_eq!(said.code, 2);
    assert!(said.stderr.contains("phantom_0004.png"), "{}", said.stderr);
    std::fs::remove_file(space.path(IMAGE)).unwrap();
    let said = space.run(&["plan"]);
    assert_eq!(said.code, 2);
    assert!(said.stderr.contains("a mask of the site `B` has no image"), "{}", said.stderr);
}

/// A flipped bit in a model must never become a number: inputs are rehashed before a stage reads them.
#[test]
fn a_flipped_bit_in_a_model_never_reaches_the_table() {
    let space = Space::finished();
    let before = space.read("results/study/table.csv");
    let name = "train[method=erm,backbone=tiny,held_out=A,seed=0]";
    damage(&object(&space, name, "model.safetensors"), |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x40;
    });
    let arguments = ["run", "--plain", "--set", "stages.evaluate.with.overlays=2"];
    let said = space.run(&arguments);
    assert_eq!(said.code, 1, "{}", said.stderr);
    assert!(
        said.stderr.contains("model.safetensors") && said.stderr.contains("was damaged in the store"),
        "{}",
        said.stderr
    );
    assert_eq!(space.run(&arguments).code, 0);
    assert_eq!(space.read("results/study/table.csv"), before);
}

/// The object of an instance's output.
fn object(space: &Space, instance: &str, output: &str) -> PathBuf {
    let trace = space.run(&["trace", instance, "--json"]);
    let lineage: serde_json::Value = serde_json::from_str(&trace.stdout).unwrap();
    let found = lineage["outputs"].as_array().unwrap().iter().find(|o| o["path"] == output).unwrap();
    let digest = found["digest"].as_str().unwrap();
    space.path(&format!(".siteline/objects/{}/{}", &digest[..2], &digest[2..]))
}

fn damage(path: &PathBuf, change: impl FnOnce(&mut Vec<u8>)) {
    assert!(std::fs::metadata(path).unwrap().permissions().readonly(), "objects are read-only");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_parquet_file_cut_short_in_the_store_is_made_anew() {
    let space = Space::finished();
    damage(&object(&space, "features[site=A,backbone=tiny]", "features.parquet"), |bytes| {
        bytes.truncate(bytes.len() / 2);
    });
    let why = space.run(&["why", "features[site=A]"]);
    assert!(why.stdout.contains("its output features.parquet is missing or damaged"), "{}", why.stdout);
    assert_eq!(space.executed(&[]), ["features[site=A,backbone=tiny]".to_owned()].into());
}

#[test]
fn a_flipped_bit_is_found_by_verify_and_made_anew() {
    let space = Space::finished();
    let name = "train[method=erm,backbone=tiny,held_out=A,seed=0]";
    let path = object(&space, name, "model.safetensors");
    damage(&path, |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    });
    let said = space.run(&["verify"]);
    assert_eq!(said.code, 1);
    assert!(said.stdout.contains(name) && said.stdout.contains("set aside as"), "{}", said.stdout);
    assert_eq!(space.executed(&[]), [name.to_owned()].into());
    assert_eq!(space.run(&["verify"]).code, 0);
}

#[test]
fn a_stage_that_reads_a_damaged_object_fails_and_the_next_run_mends_it() {
    let space = Space::finished();
    damage(&object(&space, "features[site=A,backbone=tiny]", "features.parquet"), |bytes| {
        let end = bytes.len() - 40;
        bytes[end..].fill(0xff);
    });
    // Same size, so nothing shows until it is read.
    let said = space.run(&["run", "--plain", "--set", "stages.evaluate.with.overlays=2"]);
    assert_eq!(said.code, 1, "{}", said.stderr);
    assert!(said.stderr.contains("was damaged in the store"), "{}", said.stderr);
    let said = space.run(&["run", "--plain", "--set", "stages.evaluate.with.overlays=2"]);
    assert_eq!(said.code, 0, "{}", said.stderr);
    assert!(said.executed().contains("features[site=A,backbone=tiny]"), "{}", said.stderr);
}

#[test]
fn a_file_that_disappears_is_named() {
    let space = Space::fresh();
    std::fs::remove_file(space.path(MASK)).unwrap();
    let said = space.run(&["run", "--plain"]);
    assert_eq!(said.code, 2);
    assert!(
        said.stderr.contains("siteline.yaml:5:") && said.stderr.contains("1 of 10 images of the site `B` have no mask"),
        "{}",
        said.stderr
    );
    assert!(said.stderr.contains("masks/phantom_0004.png"), "{}", said.stderr);
}

/// The run is held up by a lease of this test on the site's key, as another run's would; meanwhile a file goes.
#[test]
fn a_file_that_disappears_while_it_runs_is_named() {
    use std::io::BufRead;
    let space = Space::fresh();
    let finished = Space::finished();
    let trace = finished.run(&["trace", "ingest[site=B]", "--json"]);
    let lineage: serde_json::Value = serde_json::from_str(&trace.stdout).unwrap();
    let key = lineage["key"].as_str().unwrap();
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let started: u64 = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().parse().unwrap();
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let owner = serde_json::json!({"host": "test", "boot": boot.trim(), "pid": std::process::id(), "started": started});
    space.write(&format!(".siteline/leases/{key}"), owner.to_string());
    let mut command = space.command(&["run", "--plain"]);
    let mut child = command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let waits = lines.find(|line| line.contains("waits   ingest[site=B]"));
    assert!(waits.is_some(), "the run did not wait for the lease");
    std::fs::remove_file(space.path(IMAGE)).unwrap();
    std::fs::remove_file(space.path(&format!(".siteline/leases/{key}"))).unwrap();
    let rest: Vec<String> = lines.collect();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let failed = rest.iter().find(|line| line.contains("FAILED  ingest[site=B]")).expect("the stage fails");
    assert!(failed.contains("phantom_0004.png") && failed.contains("No such file"), "{failed}");
    assert_eq!(space.run(&["verify"]).code, 0);
}

#[test]
fn a_store_that_cannot_be_written_is_named() {
    let space = Space::fresh();
    let said = space.run(&["run", "--plain", "--store", "/proc/siteline-store"]);
    assert_eq!(said.code, 1);
    assert!(said.stderr.contains("failed to create /proc/siteline-store"), "{}", said.stderr);
    // A plan changes nothing on disk, so it needs no store.
    assert_eq!(space.run(&["plan", "--store", "/proc/siteline-store"]).code, 0);
    assert!(!space.path(".siteline").exists());
    // One that is there and cannot be entered is no empty one.
    space.write("file", "no folder");
    let said = space.run(&["status", "--store", "file"]);
    assert!(said.code == 1 && said.stderr.contains("failed to read"), "{}{}", said.stdout, said.stderr);
}

#[test]
fn a_full_disk_fails_what_does_not_fit_and_nothing_else() {
    let space = Space::fresh();
    std::fs::create_dir(space.path("small")).unwrap();
    let small = space.path("small");
    let mounted =
        std::process::Command::new("mount").args(["-t", "tmpfs", "-o", "size=700k", "tmpfs"]).arg(&small).status();
    if !mounted.is_ok_and(|status| status.success()) {
        return skipped("no small file system can be mounted here (that takes root)");
    }
    let said = space.run(&["run", "--plain", "--store", "small/store"]);
    let whole = space.run(&["verify", "--store", "small/store"]);
    let unmounted = std::process::Command::new("umount").arg("-l").arg(&small).status();
    assert!(unmounted.is_ok_and(|status| status.success()));
    assert_eq!(said.code, 1, "{}", said.stderr);
    assert!(
        said.stderr.to_lowercase().contains("no space left") || said.stderr.contains("disk is full"),
        "{}",
        said.stderr
    );
    assert!(whole.stdout.contains("hold") && !whole.stdout.contains("damaged"), "{}\n{}", whole.stdout, whole.stderr);
}

#[test]
fn the_same_patient_or_the_same_pixels_on_both_sides_are_refused() {
    let space = Space::finished();
    // One image of A, in another file format, appears at B.
    let picture = image::open(space.path("data/A/images/phantom_0001.png")).unwrap();
    picture.save(space.path("data/B/images/phantom_0002.png")).unwrap();
    let said = space.run(&["run", "--plain"]);
    assert_eq!(said.code, 1);
    assert!(said.stderr.contains("leakage:") && said.stderr.contains("has the very pixels of"), "{}", said.stderr);
    assert_eq!(space.run(&["audit"]).code, 1);
    // What ingestion has made known is refused before anything runs from then on.
    let planned = space.run(&["plan"]);
    assert_eq!(planned.code, 2, "{}", planned.stdout);
    assert!(planned.stderr.contains("has the very pixels of"), "{}", planned.stderr);

    let space = Space::finished();
    space.edit("siteline.yaml", "  A: {images:", "  A: {patient_group: hospital, images:");
    space.edit("siteline.yaml", "  B: {images:", "  B: {patient_group: hospital, images:");
    let said = space.run(&["run", "--plain"]);
    assert_eq!(said.code, 1, "{}", said.stderr);
    assert!(said.stderr.contains("shows the patient `hospital/p"), "{}", said.stderr);
    let trained_anyway =
        said.executed().iter().any(|name| name.starts_with("evaluate") && !name.contains("held_out=C"));
    assert!(!trained_anyway, "a leaking score was computed: {}", said.stderr);
}

/// To read a pipe would be to wait for ever.
#[test]
fn pipes_and_devices_in_place_of_files_are_refused() {
    let manifests = [
        "stages: {a: {run: echo >o, files: [pipe], outputs: [o]}}\n",
        "axes: {x: {from: pipe}}\nstages: {a: {run: echo >o, per: [x], outputs: [o]}}\n",
        "axes: {x: {from: /dev/zero}}\nstages: {a: {run: echo >o, per: [x], outputs: [o]}}\n",
    ];
    for manifest in manifests {
        let space = Space::of_commands(manifest);
        assert!(std::process::Command::new("mkfifo").arg(space.path("pipe")).status().unwrap().success());
        let said = space.run(&["plan"]);
        assert!(said.code != 0 && said.stderr.contains("is no plain file"), "{manifest}: {}", said.stderr);
    }
}

#[test]
fn names_of_inputs_lead_nowhere_else() {
    for name in ["../../../evil", "../x", ".", "", "a/b", "line\\nend"] {
        let space = Space::of_commands(&format!(
            "stages:\n  b: {{run: echo b >o, outputs: [o]}}\n  a: {{run: ls >o, needs: {{\"{name}\": b}}, outputs: [o]}}\n"
        ));
        let said = space.run(&["check-manifest"]);
        assert_eq!(said.code, 2, "{name}: {}", said.stdout);
        assert!(said.stderr.contains("cannot be the name of an input"), "{name}: {}", said.stderr);
        assert!(said.stderr.contains("siteline.yaml:5:"), "{name}: {}", said.stderr);
    }
}

#[test]
fn an_axis_that_is_not_there_cannot_be_set() {
    let space = Space::of_commands("axes: {seed: [0]}\nstages: {a: {run: echo x >o, per: [seed], outputs: [o]}}\n");
    let said = space.run(&["plan", "--set", "axes.sead=[1]"]);
    assert_eq!(said.code, 2, "{}", said.stdout);
    assert!(said.stderr.contains("over an axis `sead`") && said.stderr.contains("seed"), "{}", said.stderr);
    // One that something is repeated over is as good as one in the file.
    let said = space.run(&["plan", "--set", "axes.fold=[1, 2]", "--set", "stages.a.per=[seed, fold]"]);
    assert!(said.code == 0 && said.stdout.contains("2 instances to run"), "{}{}", said.stdout, said.stderr);
}

/// Nobody learns of what was not written by a panic, or not at all.
#[test]
fn an_output_that_takes_nothing_is_an_error() {
    if !std::path::Path::new("/dev/full").exists() {
        return skipped("there is no /dev/full here");
    }
    let space = Space::of_commands("stages: {a: {run: echo x >o, outputs: [o]}}\n");
    let full = |arguments: &[&str]| {
        let out = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = space.command(arguments).stdout(out).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = full(&["run", "--json"]);
    assert!(code == Some(1) && said.contains("could not be written"), "{code:?} {said}");
    for verb in ["run", "plan", "status", "verify", "gc", "doctor", "check-manifest", "graph", "schema"] {
        let (code, said) = full(&[verb]);
        assert!(code == Some(1) && said.contains("failed to write to standard output"), "{verb}: {code:?} {said}");
    }
    for arguments in [["log", "a"], ["why", "a"], ["history", "a"], ["trace", "a"], ["completions", "bash"]] {
        let (code, said) = full(&arguments);
        assert!(code == Some(1) && !said.contains("panicked"), "{arguments:?}: {code:?} {said}");
    }
}

/// Files that nothing tells the images of prove nothing.
#[test]
fn an_audit_of_what_it_cannot_know_says_so() {
    let space = Space::of_commands(
        r#"
axes: {hospital: [A, B], held_out: [A, B]}
stages:
  prep: {run: "cat ${hospital}/1.png >o", per: [hospital], files: ["${hospital}/1.png"], outputs: [o]}
  fit: {run: "cat inputs/f/*/o >m", per: [held_out], needs: {f: {stage: prep}}, outputs: [m]}
  score: {run: "cat inputs/*/* >s", per: [held_out], needs: {m: {stage: fit, role: model}, d: {stage: prep, where: hospital == held_out, role: scored}}, outputs: [s]}
"#,
    );
    space.write("A/1.png", "");
    space.write("B/1.png", "");
    space.run(&["run", "--quiet"]);
    let audit = space.run(&["audit"]);
    assert_eq!(audit.code, 1, "{}", audit.stdout);
    assert!(audit.stdout.contains("0 clean") && audit.stdout.contains("2 unknown"), "{}", audit.stdout);
    let space = Space::of_commands("stages: {a: {run: echo x >o, outputs: [o]}}\n");
    assert!(space.run(&["audit"]).stdout.contains("No stage scores a model"));
}
