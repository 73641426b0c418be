//! What reruns after which change: exactly what depends on it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use crate::space::{Space, worker};

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Trainings and evaluations of methods with the given sites held out.
fn train_and_evaluate(methods: &[&str], trained: &[&str], evaluated: &[&str]) -> BTreeSet<String> {
    let name = |stage: &str, method: &str, site: &str| {
        format!("{stage}[method={method},backbone=tiny,held_out={site},seed=0]")
    };
    let mut names = BTreeSet::new();
    for method in methods {
        names.extend(trained.iter().map(|site| name("train", method, site)));
        names.extend(evaluated.iter().map(|site| name("evaluate", method, site)));
    }
    names
}

fn union(sets: &[BTreeSet<String>]) -> BTreeSet<String> {
    sets.iter().flatten().cloned().collect()
}

const ALL: [&str; 3] = ["A", "B", "C"];

#[test]
fn nothing_changed_runs_nothing_and_says_so() {
    let space = Space::finished();
    assert_eq!(space.executed(&[]), set(&[]));
    let said = space.run(&["plan"]);
    assert!(said.stdout.contains("Everything is up to date."), "{}", said.stdout);
}

#[test]
fn a_project_that_moved_runs_nothing_and_keeps_its_results() {
    let space = Space::finished();
    std::fs::create_dir(space.path("elsewhere")).unwrap();
    for name in ["siteline.yaml", "prompts.yaml", "clip.safetensors", "data", ".siteline"] {
        std::fs::rename(space.path(name), space.path("elsewhere").join(name)).unwrap();
    }
    assert_eq!(space.executed(&["-m", "elsewhere/siteline.yaml"]), set(&[]));
}

#[test]
fn one_changed_image_reruns_its_site_and_what_depends_on_it() {
    let space = Space::finished();
    space.repaint("data/B/images/phantom_0003.png");
    let expected = union(&[
        set(&["ingest[site=B]", "features[site=B,backbone=tiny]", "table"]),
        train_and_evaluate(&["erm", "mcdrl"], &["A", "C"], &ALL),
    ]);
    assert_eq!(space.executed(&[]), expected);
}

#[test]
fn a_touched_file_reruns_nothing() {
    let space = Space::finished();
    let image = space.path("data/A/images/phantom_0000.png");
    let content = std::fs::read(&image).unwrap();
    std::fs::write(&image, content).unwrap();
    assert_eq!(space.executed(&[]), set(&[]));
}

#[test]
fn an_edited_prompt_reruns_what_reads_the_dictionary() {
    let space = Space::finished();
    space.edit("prompts.yaml", "dark lighting", "little light");
    let expected = union(&[set(&["confounders[backbone=tiny]", "table"]), train_and_evaluate(&["mcdrl"], &ALL, &ALL)]);
    assert_eq!(space.executed(&[]), expected);
}

#[test]
fn a_comment_in_the_prompts_stops_where_the_content_is_equal_again() {
    let space = Space::finished();
    space.write("prompts.yaml", format!("# a comment\n{}", space.read("prompts.yaml")));
    let said = space.run(&["run", "--plain"]);
    assert_eq!(said.executed(), set(&["confounders[backbone=tiny]"]), "{}", said.stderr);
    assert!(said.stderr.contains("same    train[method=mcdrl"), "{}", said.stderr);
}

/// What the build makes of the sources.
#[path = "../stages/build/fingerprint.rs"]
mod fingerprint;

/// Fingerprints of this workspace's kinds, and those that a build would make with one number of MCDRL's source changed.
fn fingerprints() -> [serde_json::Value; 2] {
    let dir = tempfile::tempdir().unwrap();
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let parts = ["stages", "datasets", "tables", "Cargo.lock"].map(|part| root.join(part));
    assert!(std::process::Command::new("cp").arg("-r").args(parts).arg(dir.path()).status().unwrap().success());
    let all = || serde_json::from_str(&fingerprint::all(dir.path()).unwrap()).unwrap();
    let before = all();
    let source = dir.path().join("stages/src/method/mcdrl.rs");
    let text = std::fs::read_to_string(&source).unwrap();
    let edited = text.replace("alpha * positions as f64 + 0.5", "alpha * positions as f64 + 0.4");
    assert_ne!(text, edited);
    std::fs::write(&source, edited).unwrap();
    [before, all()]
}

/// One model's source is changed: that model's instances are stale, and no other's.
#[test]
fn changed_code_of_one_method_reruns_that_method() {
    let [before, after] = fingerprints();
    let space = Space::finished();
    let copy = space.path("siteline-worker");
    std::fs::copy(worker(), &copy).unwrap();
    let copy = copy.to_str().unwrap();
    assert_eq!(space.run(&["--worker", copy, "plan"]).code, 0);
    let kinds = space.path("siteline-worker.kinds.json");
    let mut description: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&kinds).unwrap()).unwrap();
    for kind in description["kinds"].as_array_mut().unwrap() {
        let name = kind["name"].as_str().unwrap().to_owned();
        assert_eq!(kind["code"]["base"], before[&name]["base"], "{name} was built from other sources");
        kind["code"] = after[&name].clone();
    }
    std::fs::write(&kinds, description.to_string()).unwrap();
    let planned = space.run(&["--worker", copy, "plan", "--json"]);
    let plan: serde_json::Value = serde_json::from_str(&planned.stdout).unwrap();
    let of_state = |wanted: &str| -> BTreeSet<String> {
        let all = plan["instances"].as_array().unwrap().iter();
        all.filter(|i| i["state"] == wanted).map(|i| i["instance"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(of_state("run"), train_and_evaluate(&["mcdrl"], &ALL, &[]));
    assert_eq!(of_state("wait"), union(&[set(&["table"]), train_and_evaluate(&["mcdrl"], &[], &ALL)]));
    // The worker itself is of other code than its description says: it refuses the work rather than publish under a wrong key.
    let said = space.run(&["--worker", copy, "run", "--plain"]);
    assert_eq!(said.code, 1);
    assert!(said.stderr.contains("the worker was built anew since the plan was made"), "{}", said.stderr);
    assert!(said.executed().is_empty());
}

#[test]
fn epochs_of_one_method_rerun_that_method() {
    let space = Space::finished();
    space.edit(
        "siteline.yaml",
        "    with: {epochs: 2, batch: 8, head_width: 8, mcdrl: {after_epoch: 1}}",
        "    with: {epochs: 2, batch: 8, head_width: 8, mcdrl: {after_epoch: 1}}\n    overrides: [{when: method == erm, with: {epochs: 3}}]",
    );
    let why = space.run(&["why", "train[method=erm,held_out=A]"]);
    assert!(why.stdout.contains("parameter epochs: 2 -> 3"), "{}", why.stdout);
    let expected = union(&[set(&["table"]), train_and_evaluate(&["erm"], &ALL, &ALL)]);
    assert_eq!(space.executed(&[]), expected);
}

#[test]
fn a_parameter_of_one_method_reruns_no_other() {
    let space = Space::finished();
    let expected = union(&[set(&["table"]), train_and_evaluate(&["mcdrl"], &ALL, &ALL)]);
    assert_eq!(space.executed(&["--set", "stages.train.with.mcdrl.alpha=0.25"]), expected);
}

#[test]
fn a_further_site_leaves_the_others_ingested_and_encoded() {
    let space = Space::finished();
    space.write("sites.yaml", "seed: 3\nsize: 64\nsites:\n  D: {count: 10, patients: 5}\n");
    assert_eq!(space.run(&["phantoms", "sites.yaml", "--out", "data"]).code, 0);
    let manifest = space.read("siteline.yaml");
    let line = manifest.lines().find(|line| line.starts_with("  C: ")).unwrap();
    space.edit(
        "siteline.yaml",
        line,
        &format!("{line}\n{}", line.replace("  C: ", "  D: ").replace("data/C", "data/D")),
    );
    let all = ["A", "B", "C", "D"];
    let expected = union(&[
        set(&["ingest[site=D]", "features[site=D,backbone=tiny]", "table"]),
        train_and_evaluate(&["erm", "mcdrl"], &all, &all),
    ]);
    assert_eq!(space.executed(&[]), expected);
}

#[test]
fn a_changed_table_format_reruns_the_table_alone() {
    let space = Space::finished();
    assert_eq!(space.executed(&["--set", "stages.table.with.decimals=3"]), set(&["table"]));
}

#[test]
fn the_same_inputs_give_the_same_bytes() {
    let (one, two) = (Space::finished(), Space::fresh());
    assert_eq!(two.run(&["run", "--plain", "-j", "1"]).code, 0);
    for file in ["table.md", "table.csv", "table.tex", "table.parquet", "figures/A.svg", "report.html"] {
        let read = |space: &Space| std::fs::read(space.path("results/study").join(file)).unwrap();
        assert!(read(&one) == read(&two), "{file} differs between two runs of the same project");
    }
}

#[test]
fn one_changed_image_is_the_only_one_that_is_encoded() {
    let encoded = |space: &Space| {
        let trace = space.run(&["trace", "features[site=B,backbone=tiny]"]).stdout;
        let line = trace.lines().find(|line| line.contains("metric images encoded")).unwrap().to_owned();
        line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()
    };
    let space = Space::finished();
    assert_eq!(encoded(&space), 10);
    space.repaint("data/B/images/phantom_0003.png");
    let ran = space.executed(&["--only", "features"]);
    assert_eq!(ran, set(&["ingest[site=B]", "features[site=B,backbone=tiny]"]));
    assert_eq!(encoded(&space), 1);
    // With what was remembered and without it the bytes are the same.
    let bytes = space.output("features[site=B,backbone=tiny]", "features.parquet");
    let fresh = Space::finished();
    std::fs::remove_dir_all(fresh.path(".siteline/memo")).unwrap();
    fresh.repaint("data/B/images/phantom_0003.png");
    fresh.executed(&["--only", "features"]);
    assert_eq!(encoded(&fresh), 10);
    assert!(fresh.output("features[site=B,backbone=tiny]", "features.parquet") == bytes);
}

#[test]
fn a_training_that_was_killed_goes_on_from_its_checkpoint_with_the_same_bytes() {
    let train = "train[method=mcdrl,backbone=tiny,held_out=A,seed=0]";
    goes_on_with_the_same_bytes(&Space::finished, train, &["--set", "stages.train.with.epochs=40"]);
}

/// Kills a training again and again, and compares what comes of it with what an uninterrupted one makes. `make` gives a project in
/// which all that the training reads is there.
pub fn goes_on_with_the_same_bytes(make: &dyn Fn() -> Space, train: &str, set: &[&str]) {
    let longer = [set, &["--only", train]].concat();
    let whole = make();
    assert_eq!(whole.executed(&longer).len(), 1);
    let expected = ["model.safetensors", "history.parquet"].map(|file| whole.output_of(train, file));

    let space = make();
    // Again and again, between steps as well as between epochs; each time it comes further. A preempted job is told to end first.
    let mut last = None;
    for signal in ["-KILL", "-TERM", "-KILL", "-TERM"] {
        let mut child = interrupted(&space, &longer, last.as_ref());
        crate::space::kill(signal, &child.id().to_string());
        let status = child.wait().unwrap();
        assert_eq!(status.code(), (signal == "-TERM").then_some(130));
        space.assert_no_process();
        last = checkpoint(&space);
        assert!(last.is_some(), "the checkpoint did not survive");
    }
    assert_eq!(space.executed(&longer).len(), 1);
    let log = space.run(&["log", train]).stdout;
    assert!(log.contains("goes on in epoch"), "{log}");
    assert!(expected == ["model.safetensors", "history.parquet"].map(|file| space.output_of(train, file)));
    assert!(checkpoint(&space).is_none(), "the checkpoint is left behind");
}

/// The last checkpoint of whatever is trained.
fn checkpoint(space: &Space) -> Option<PathBuf> {
    let folders = std::fs::read_dir(space.path(".siteline/resume")).unwrap();
    let files = folders.flatten().flat_map(|folder| std::fs::read_dir(folder.path()).into_iter().flatten().flatten());
    files.map(|file| file.path()).find(|path| path.extension().is_some_and(|e| e == "checkpoint"))
}

/// A run whose training has got past a checkpoint, and goes on.
fn interrupted(space: &Space, arguments: &[&str], last: Option<&PathBuf>) -> Child {
    let mut command = space.command(&[&["run", "--plain"][..], arguments].concat());
    // Into a file: nobody need be there to read it.
    let told = std::fs::File::create(space.path("told")).unwrap();
    command.env("SITELINE_TEST_CHECKPOINT_SECONDS", "0").stderr(told).stdout(Stdio::null());
    let mut child = command.spawn().unwrap();
    while checkpoint(space).is_none_or(|path| Some(&path) == last) {
        assert!(child.try_wait().unwrap().is_none(), "it was done before there was a checkpoint");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    child
}

/// Another attempt goes on where the worker of the one before it was killed.
#[test]
fn a_training_whose_worker_was_killed_goes_on_in_its_next_attempt() {
    let train = "train[method=mcdrl,backbone=tiny,held_out=A,seed=0]";
    let set = ["--set", "stages.train.with.epochs=40", "--set", "stages.train.retry={attempts: 2, backoff: 10ms}"];
    let longer = [&set[..], &["--only", train]].concat();
    let whole = Space::finished();
    assert_eq!(whole.executed(&longer).len(), 1);
    let space = Space::finished();
    let child = interrupted(&space, &longer, None);
    let workers = space.pids("siteline-worker");
    assert!(!workers.is_empty(), "nothing is at work");
    workers.iter().for_each(|pid| crate::space::kill("-KILL", pid));
    let ended = child.wait_with_output().unwrap().status;
    let told = space.read("told");
    assert!(ended.success() && told.contains("done    train["), "{told}");
    assert!(told.contains("SIGKILL") && told.contains("again   train["), "{told}");
    let log = space.run(&["log", train]).stdout;
    assert!(log.contains("goes on in epoch"), "{log}");
    for file in ["model.safetensors", "history.parquet"] {
        assert!(whole.output_of(train, file) == space.output_of(train, file), "{file} differs");
    }
}
