//! The verbs, one by one, on a finished project.

use crate::space::{Space, siteline, worker};

#[test]
fn version_and_help_need_neither_manifest_nor_worker() {
    for arguments in [&["--version"][..], &["--help"], &["run", "--help"], &["completions", "bash"], &["schema"]] {
        let output = std::process::Command::new(siteline())
            .args(arguments)
            .env("SITELINE_WORKER", "/nowhere")
            .current_dir("/")
            .output()
            .unwrap();
        assert!(output.status.success() && !output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn plan_and_status_work_where_libtorch_is_absent() {
    let space = Space::finished();
    // A worker that cannot start, with the description that was made where it could.
    let broken = space.path("siteline-worker");
    std::fs::copy(worker(), &broken).unwrap();
    assert_eq!(space.run(&["--worker", broken.to_str().unwrap(), "plan"]).code, 0);
    let mut permissions = std::fs::metadata(&broken).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o644);
    std::fs::set_permissions(&broken, permissions).unwrap();
    for verb in ["plan", "status", "audit", "table"] {
        let said = space.run(&["--worker", broken.to_str().unwrap(), verb]);
        assert_eq!(said.code, 0, "{verb}: {}", said.stderr);
    }
}

#[test]
fn a_missing_worker_is_named_with_the_way_to_build_it() {
    let space = Space::fresh();
    let said = space.run(&["--worker", "/nowhere/worker", "plan"]);
    assert_eq!(said.code, 1);
    assert!(said.stderr.contains("/nowhere/worker") && said.stderr.contains("make build"), "{}", said.stderr);
}

#[test]
fn plan_shows_counts_reasons_and_json() {
    let space = Space::finished();
    let said = space.run(&["plan", "-v", "--set", "stages.train.with.epochs=3"]);
    assert!(
        said.stdout
            .contains("run     train[method=erm,backbone=tiny,held_out=A,seed=0]  because parameter epochs: 2 -> 3"),
        "{}",
        said.stdout
    );
    assert!(said.stdout.contains("wait    table  for"), "{}", said.stdout);
    let json = space.run(&["plan", "--json", "--only", "train[held_out=A]"]);
    let plan: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    let states: Vec<_> = plan["instances"].as_array().unwrap().iter().map(|i| i["state"].as_str().unwrap()).collect();
    // Two trainings, the dictionary, and features and ingestion of two sites.
    assert_eq!(states, ["cached"; 7], "{}", json.stdout);
}

#[test]
fn only_runs_a_part_and_what_it_needs() {
    let space = Space::fresh();
    let executed = space.executed(&["--only", "features[site=A]"]);
    let expected = ["ingest[site=A]".to_owned(), "features[site=A,backbone=tiny]".to_owned()];
    assert_eq!(executed, expected.into());
    let said = space.run(&["run", "--only", "feature"]);
    assert_eq!(said.code, 2);
    assert!(said.stderr.contains("did you mean `features`?"), "{}", said.stderr);
}

#[test]
fn trace_reaches_the_raw_images() {
    let space = Space::finished();
    let said = space.run(&["trace", "method=mcdrl,held_out=C", "--json"]);
    assert_eq!(said.code, 0, "{}", said.stderr);
    let trace: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
    let evaluate = &trace["scores"][0];
    assert!(evaluate["outputs"].as_array().unwrap().iter().any(|o| o["path"] == "scores.parquet"));
    let made_by = |lineage: &serde_json::Value, input: &str| {
        let inputs = lineage["inputs"].as_array().unwrap();
        inputs.iter().find(|i| i["input"] == input && i.get("made_by").is_some()).unwrap()["made_by"].clone()
    };
    let train = made_by(evaluate, "model");
    assert_eq!(train["params"]["seed"], 0);
    assert!(train["code"]["method=mcdrl"].is_string());
    assert!(train["environment"]["libtorch"].is_string());
    let dictionary = made_by(&train, "dictionary");
    assert_eq!(dictionary["sources"].as_array().unwrap().iter().filter(|s| s["source"] == "prompts").count(), 1);
    let features = made_by(&train, "features");
    assert_eq!(features["sources"][0]["role"], "weights");
    let ingest = made_by(&features, "samples");
    let images: Vec<_> = ingest["sources"].as_array().unwrap().iter().filter(|s| s["role"] == "image").collect();
    assert_eq!(images.len(), 10);
    let first = std::fs::read(images[0]["path"].as_str().unwrap()).unwrap();
    assert_eq!(images[0]["digest"], blake3_of(&first));

    let tree = space.run(&["trace", "method=erm,held_out=average", "--metric", "iou"]);
    assert!(tree.stdout.starts_with("iou ") && tree.stdout.contains("10 images, 10 masks, 1 table"), "{}", tree.stdout);
    let wrong = space.run(&["trace", "method=erm,held_out=X"]);
    assert_eq!(wrong.code, 2);
    assert!(wrong.stderr.contains("held_out is one of A, B, C, average"), "{}", wrong.stderr);
}

fn blake3_of(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

#[test]
fn audit_proves_each_score() {
    let space = Space::finished();
    let said = space.run(&["audit"]);
    assert_eq!(said.code, 0, "{}", said.stdout);
    assert!(said.stdout.contains("trained on A, B (20 images, 10 patients)"), "{}", said.stdout);
    assert!(
        said.stdout.contains("6 clean, 0 in-domain and marked so, 0 leaking, 0 open, 0 unknown."),
        "{}",
        said.stdout
    );
    // Before anything is ingested nothing is proven.
    assert_eq!(Space::fresh().run(&["audit"]).code, 1);
}

#[test]
fn tables_print_in_each_format() {
    let space = Space::finished();
    assert!(space.run(&["table"]).stdout.contains("| backbone | method |"));
    assert!(
        space
            .run(&["table", "--format", "csv"])
            .stdout
            .starts_with("metric,backbone,method,held_out,mean,std,runs,images,left_out,in_domain,oracle\n")
    );
    let tex = space.run(&["table", "--format", "tex"]).stdout;
    assert!(tex.contains("\\toprule") && tex.contains("% IoU (%)"), "{tex}");
    assert_eq!(Space::fresh().run(&["table"]).code, 1);
}

#[test]
fn graph_speaks_dot_and_mermaid() {
    let space = Space::fresh();
    let dot = space.run(&["graph"]).stdout;
    assert!(dot.contains("\"features\" -> \"train\" [label=\"features\"];"), "{dot}");
    let mermaid = space.run(&["graph", "--format", "mermaid", "--instances"]).stdout;
    assert!(
        mermaid.starts_with("flowchart LR") && mermaid.contains("train[method=mcdrl,backbone=tiny,held_out=A,seed=0]"),
        "{mermaid}"
    );
}

/// A pattern means every instance that fits it, whatever the verb.
#[test]
fn every_verb_takes_patterns() {
    let space = Space::finished();
    let names = |stdout: &str| stdout.lines().filter(|line| line.contains("train[")).count();
    let why = space.run(&["why", "train[method=mcdrl,held_out=*]", "--set", "stages.train.with.epochs=3"]).stdout;
    assert_eq!((names(&why), why.matches("parameter epochs: 2 -> 3").count()), (3, 3), "{why}");
    let history = space.run(&["history", "train[method=erm]", "train[method=mcdrl]"]).stdout;
    assert_eq!((names(&history), history.matches("took").count()), (6, 6), "{history}");
    let trace = space.run(&["trace", "train[held_out=C]", "--json"]).stdout;
    let lineages: serde_json::Value = serde_json::from_str(&trace).unwrap();
    let traced: Vec<&str> = lineages.as_array().unwrap().iter().map(|l| l["instance"].as_str().unwrap()).collect();
    let expected = ["erm", "mcdrl"].map(|method| format!("train[method={method},backbone=tiny,held_out=C,seed=0]"));
    assert_eq!(traced, expected);
    let status = space.run(&["status", "train[held_out=C]", "evaluate"]).stdout;
    let row = |stage: &str| status.lines().find(|line| line.starts_with(stage)).unwrap_or_default().to_owned();
    let numbers = |stage: &str| row(stage).split_whitespace().skip(1).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!((numbers("train"), numbers("evaluate")), (vec_of(["2", "2", "0", "0"]), vec_of(["6", "6", "0", "0"])));
    assert!(!status.contains("ingest"), "{status}");
    let audit = space.run(&["audit", "evaluate[held_out=A]"]).stdout;
    assert!(audit.matches(": clean").count() == 2 && audit.contains("2 clean, 0 in-domain"), "{audit}");
    let graph = space.run(&["graph", "--instances", "--only", "confounders"]).stdout;
    assert_eq!(graph.matches(";").count(), 3, "{graph}");
    assert_eq!(space.run(&["run", "--plain", "--set", "stages.train.with.epochs=3"]).code, 0);
    let diff = space.run(&["diff", "--only", "train[held_out=B]"]).stdout;
    assert!(names(&diff) == 2 && diff.contains("~ train[method=erm,backbone=tiny,held_out=B,seed=0]"), "{diff}");
    for verb in ["why", "log", "history", "status", "audit", "trace"] {
        let said = space.run(&[verb, "train[held_out=X]"]);
        assert!(said.code == 2 && said.stderr.contains("the values of `held_out` are"), "{verb}: {}", said.stderr);
    }
    assert_eq!(space.run(&["audit", "ingest"]).code, 2, "nothing that was asked for is a score");
    assert_eq!(space.run(&["diff", "--only", "nothing"]).code, 2);
    let slip = space.run(&["trace", "trian[seed=0]"]);
    assert!(slip.code == 2 && slip.stderr.contains("`train`"), "{}", slip.stderr);
}

fn vec_of(words: [&str; 4]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}

#[test]
fn logs_are_found_by_instance() {
    let space = Space::finished();
    let said = space.run(&["log", "train[method=mcdrl,held_out=A]"]);
    assert!(said.stdout.contains("\"validation_dice\""), "{}", said.stdout);
    let all = space.run(&["log", "train"]).stdout;
    assert_eq!(all.lines().filter(|line| line.starts_with("==> train[")).count(), 6, "{all}");
    let paths = space.run(&["log", "--path", "train[method=mc*]"]).stdout;
    assert!(paths.lines().count() == 3 && paths.lines().all(|path| std::path::Path::new(path).exists()), "{paths}");
}

#[test]
fn gc_keeps_what_the_latest_run_needs_and_what_is_up_to_date() {
    let space = Space::finished();
    assert!(!space.executed(&["--set", "stages.train.with.epochs=1"]).is_empty());
    // Results of the manifest as it stands are up to date, so nothing of them goes, whichever run came last.
    let all = space.run(&["gc", "--keep-days", "0", "--yes"]);
    assert_eq!(all.code, 0, "{}", all.stderr);
    assert!(space.executed(&[]).is_empty());
    assert!(space.executed(&["--set", "stages.train.with.epochs=1"]).is_empty());
    space.edit("siteline.yaml", "epochs: 2", "epochs: 1");
    let shown = space.run(&["gc", "--keep-days", "0"]);
    assert!(shown.stdout.contains("would go"), "{}", shown.stdout);
    assert!(space.executed(&["--set", "stages.train.with.epochs=2"]).is_empty(), "showing removes nothing");
    assert!(space.executed(&[]).is_empty());
    let gone = space.run(&["gc", "--keep-days", "0", "--yes"]);
    assert_eq!(gone.code, 0, "{}", gone.stderr);
    assert!(space.executed(&[]).is_empty(), "the latest run is kept");
    assert_eq!(space.run(&["verify", "--rebuild"]).code, 0);
    assert!(!space.executed(&["--set", "stages.train.with.epochs=2"]).is_empty(), "the earlier results are gone");
}

#[test]
fn status_names_the_last_run_and_its_failures() {
    let space = Space::finished();
    assert!(space.run(&["status"]).stdout.contains("(done)"));
    space.write("data/A/images/phantom_0000.png", b"");
    assert_eq!(space.run(&["run", "--plain", "--fail-fast"]).code, 1);
    let said = space.run(&["status"]);
    assert!(said.stdout.contains("(failed)") && said.stdout.contains("failed  ingest[site=A]"), "{}", said.stdout);
}

#[test]
fn init_writes_a_project_that_runs() {
    let space = Space::fresh();
    let said = space.run(&["init", "mine"]);
    assert_eq!(said.code, 0, "{}", said.stderr);
    let plan = space.run(&["plan", "-m", "mine/siteline.yaml"]);
    assert_eq!(plan.code, 0, "{}", plan.stderr);
    let run = space.run(&["run", "-m", "mine/siteline.yaml", "--plain", "--set", "stages.train.with.epochs=1"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(space.path("mine/results/mine/report.html").exists());
    assert_eq!(space.run(&["init", "mine"]).code, 1, "nothing is overwritten");
}
