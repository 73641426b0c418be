//! What verbs say in JSON, held to the schemas that `siteline schema` prints.

use crate::space::{Said, Space};

/// Holds each value to a schema. A validator in Rust would have the whole workspace built once more with other features.
pub fn fit(space: &Space, schema: &serde_json::Value, values: &[serde_json::Value]) {
    let Some(python) = std::env::var_os("SITELINE_TEST_PYTHON") else {
        return crate::space::skipped("no Python with jsonschema: JSON is not held to its schemas");
    };
    space.write("schema.json", schema.to_string());
    space.write("values.json", serde_json::Value::from(values).to_string());
    let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/fit_schema.py");
    let files = [space.path("schema.json"), space.path("values.json")];
    let output = std::process::Command::new(python).arg(script).args(files).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn schema(space: &Space, which: &str) -> serde_json::Value {
    serde_json::from_str(&space.run(&["schema", "--json-of", which]).stdout).unwrap()
}

/// What a verb answers, which fits the schema of its answers.
fn answer(space: &Space, words: &[&str]) -> serde_json::Value {
    let said = space.run(words);
    let value = serde_json::from_str(&said.stdout).unwrap_or_else(|e| panic!("{words:?}: {e}: {}", said.stderr));
    fit(space, &schema(space, words[0]), std::slice::from_ref(&value));
    value
}

/// A run in which nearly everything happens that can, and one of two runs at once that waits for the other.
#[test]
fn events_summaries_and_plans_are_json_that_fits_its_schema() {
    let space = crate::packs::space(
        "  fine: {uses: odd}\n  tells: {run: \"echo ::progress 1/2 parts; echo ::metric m 1; echo ::warning w; echo x >out\", outputs: [out]}\n  slow: {run: \"sleep 2; echo x >out\", outputs: [out]}\n  bad: {uses: odd, with: {how: segv}, retry: {attempts: 2, backoff: 1s}}\n  behind: {run: echo >out, needs: {x: bad}, outputs: [out]}\n",
    );
    let plan: serde_json::Value = serde_json::from_str(&space.run(&["plan", "--json"]).stdout).unwrap();
    fit(&space, &schema(&space, "plan"), &[plan]);
    let start = || {
        let mut command = space.command(&["run", "--json", "-j", "2"]);
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap()
    };
    let both = [start(), start()].map(|child| Said::from(child.wait_with_output().unwrap()));
    let events: Vec<serde_json::Value> =
        both.iter().flat_map(|said| said.stdout.lines()).map(|line| serde_json::from_str(line).unwrap()).collect();
    fit(&space, &schema(&space, "run"), &events);
    let seen: std::collections::BTreeSet<&str> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    for kind in [
        "began",
        "started",
        "finished",
        "failed",
        "retries",
        "blocked",
        "warning",
        "progress",
        "waits-for-run",
        "ended",
    ] {
        assert!(seen.contains(kind), "no `{kind}` among {seen:?}");
    }
    let summaries: Vec<serde_json::Value> = std::fs::read_dir(space.path(".siteline/runs"))
        .unwrap()
        .map(|run| std::fs::read_to_string(run.unwrap().path().join("summary.json")).unwrap())
        .map(|text| serde_json::from_str(&text).unwrap())
        .collect();
    assert_eq!(summaries.len(), 2);
    fit(&space, &schema(&space, "summary"), &summaries);
    let plan: serde_json::Value = serde_json::from_str(&space.run(&["plan", "--json"]).stdout).unwrap();
    fit(&space, &schema(&space, "plan"), std::slice::from_ref(&plan));
    let states: std::collections::BTreeSet<&str> =
        plan["instances"].as_array().unwrap().iter().map(|i| i["state"].as_str().unwrap()).collect();
    assert_eq!(states, std::collections::BTreeSet::from(["cached", "run", "wait"]));
}

/// Each verb that answers in JSON, of a project in which something failed, something waits and something is out of date.
#[test]
fn answers_in_json_fit_their_schemas_and_say_what_the_text_says() {
    let space = Space::of_commands(
        "axes: {seed: [0, 1]}\nstages:\n  fit: {run: \"echo ${rate} ${seed} >out; echo ::metric loss ${rate}\", per: [seed], with: {rate: 0.5}, outputs: [out]}\n  bad: {run: \"exit 3\", outputs: [out]}\n  all: {run: \"cat inputs/fits/*/out >out\", needs: {fits: fit}, outputs: [out]}\n",
    );
    assert_eq!(space.run(&["run", "--plain"]).code, 1);
    space.edit("siteline.yaml", "rate: 0.5", "rate: 0.25");
    let answer = |words: &[&str]| answer(&space, words);
    let status = answer(&["status", "--json"]);
    assert_eq!(status["stages"][0], serde_json::json!({"stage": "fit", "all": 2, "cached": 0, "run": 2, "wait": 0}));
    assert_eq!(status["failed"][0]["instance"], "bad");
    assert_eq!(status["last"]["state"], "failed");
    let why = answer(&["why", "fit[seed=1]", "all", "bad", "--json"]);
    let changes = why[0]["why"]["changes"].as_array().unwrap();
    let rate = changes.iter().find(|change| change["what"] == "parameter with.rate").unwrap();
    assert_eq!((rate["before"].as_str(), rate["after"].as_str()), (Some("0.5"), Some("0.25")));
    let waiting = why.as_array().unwrap().iter().find(|one| one["instance"] == "all").unwrap();
    assert_eq!(waiting["waits_for"].as_array().unwrap().len(), 2);
    assert_eq!(space.run(&["run", "--plain"]).code, 1);
    let history = answer(&["history", "fit[seed=1]", "bad", "--json"]);
    let past = |name: &str| history.as_array().unwrap().iter().find(|past| past["instance"] == name).unwrap().clone();
    assert_eq!(past("fit[seed=1]")["executions"][0]["metrics"]["loss"], 0.25);
    assert_eq!(past("fit[seed=1]")["executions"][0]["changes"].as_array().unwrap().len(), changes.len());
    assert_eq!(past("bad")["failures"].as_array().unwrap().len(), 2);
    let diff = answer(&["diff", "--json"]);
    assert_eq!(diff["changed"][1]["metrics"][0], serde_json::json!({"name": "loss", "before": 0.5, "after": 0.25}));
    assert_eq!(diff["same"], 1, "{diff}");
    let trace = answer(&["trace", "all", "--json"]);
    assert_eq!(trace["inputs"].as_array().unwrap().len(), 2);
    assert_eq!(
        space.run(&["trace", "all", "fit[seed=0]", "--json"]).stdout.matches("\"instance\": \"all\"").count(),
        1
    );
    answer(&["audit", "--json"]);
    let doctor = answer(&["doctor", "--json"]);
    assert!(doctor.as_array().unwrap().iter().any(|finding| finding["what"] == "store"), "{doctor}");
}

/// A store in which something is superfluous, and something damaged.
#[test]
fn what_can_go_and_what_is_damaged_is_told_in_json() {
    let space = Space::of_commands(
        "stages:\n  fit: {run: \"echo ${rate} >out\", with: {rate: 0.5}, outputs: [out]}\n  other: {run: echo 1 >out, outputs: [out]}\n",
    );
    assert_eq!(space.run(&["run", "--plain"]).code, 0);
    space.edit("siteline.yaml", "rate: 0.5", "rate: 0.25");
    assert_eq!(space.run(&["run", "--plain"]).code, 0);
    space.write(".siteline/tmp/left/half", "written");
    let would = answer(&space, &["gc", "--json", "--keep-days", "0"]);
    assert_eq!(would["executions"][0]["instance"], "fit");
    let counts = |found: &serde_json::Value| {
        ["files", "folders", "bytes", "kept"].map(|what| found[what].as_u64().unwrap_or(u64::MAX))
    };
    assert_eq!((counts(&would), &would["removed"]), ([1, 1, 4, 2], &false.into()), "{would}");
    let went = answer(&space, &["gc", "--json", "--keep-days", "0", "--yes"]);
    assert_eq!((counts(&went), &went["removed"]), ([1, 1, 4, 2], &true.into()), "{went}");
    assert!(!space.path(".siteline/tmp/left").exists());
    let whole = answer(&space, &["verify", "--json"]);
    assert_eq!((&whole["whole"], &whole["rebuilt_from"]), (&2.into(), &serde_json::Value::Null), "{whole}");
    let digest = space.artifacts()["other"][0]["digest"].as_str().unwrap().to_owned();
    let object = space.path(&format!(".siteline/objects/{}/{}", &digest[..2], &digest[2..]));
    std::fs::remove_file(&object).unwrap();
    std::fs::write(&object, "2\n").unwrap();
    let damaged = answer(&space, &["verify", "--json", "--rebuild"]);
    assert_eq!((&damaged["damaged"][0]["digest"], &damaged["rebuilt_from"]), (&digest.into(), &2.into()), "{damaged}");
    assert_eq!(damaged["damaged"][0]["made_by"], serde_json::json!(["other"]));
    let missing = space.run(&["verify", "--json"]);
    assert!(
        missing.code == 1 && missing.stdout.contains("missing"),
        "what was set aside is missing: {}",
        missing.stdout
    );
}

/// A manifest that holds, with something to warn of, and one that does not.
#[test]
fn remarks_on_a_manifest_are_told_in_json_with_their_place() {
    let space = Space::of_commands(
        "axes: {seed: [0, 1]}\nstages:\n  fit: {run: echo 1 >out, outputs: [out]}\n  # weiß\n  other: {run: echo 1 >out, outputs: [out]}\n",
    );
    let checked = answer(&space, &["check-manifest", "--json"]);
    assert_eq!((&checked["stages"], &checked["instances"]), (&2.into(), &2.into()), "{checked}");
    let of = |checked: &serde_json::Value, what: &str| checked["remarks"][0][what].clone();
    assert_eq!((of(&checked, "severity"), of(&checked, "file")), ("warning".into(), "siteline.yaml".into()));
    assert!(of(&checked, "message").as_str().unwrap().contains("`seed`"), "{checked}");
    assert_eq!(space.run(&["check-manifest", "--json", "--strict"]).code, 1);
    space.edit("siteline.yaml", "other: {run", "other: {ru");
    let broken = answer(&space, &["check-manifest", "--json"]);
    let line = std::fs::read_to_string(space.path("siteline.yaml")).unwrap();
    let line = line.lines().position(|line| line.contains("other")).unwrap() + 1;
    assert_eq!((of(&broken, "severity"), of(&broken, "line")), ("error".into(), line.into()), "{broken}");
    assert_eq!((of(&broken, "column"), &broken["manifest"]), (11.into(), &serde_json::Value::Null), "{broken}");
    assert_eq!(space.run(&["check-manifest", "--json"]).code, 2);
}

/// The same of a study with scores.
#[test]
fn scores_tables_and_numbers_fit_their_schemas() {
    let space = Space::finished();
    let answer = |words: &[&str]| answer(&space, words);
    let audit = answer(&["audit", "--json"]);
    let scores = audit["scores"].as_array().unwrap();
    assert!(audit["clean"] == scores.len() && !scores.is_empty(), "{audit}");
    assert!(scores.iter().all(|score| score["verdict"] == "clean" && score["in_common"]["images"] == 0), "{audit}");
    let status = answer(&["status", "--json"]);
    let rows = status["table"]["rows"].as_object().unwrap();
    let cells = rows.values().flat_map(|row| row.as_object().unwrap().values());
    assert!(cells.clone().count() > 0 && cells.clone().all(|cell| cell["missing"].as_object().unwrap().is_empty()));
    let number = answer(&["trace", "method=mcdrl,held_out=A", "--json"]);
    assert_eq!(number["table"]["address"]["held_out"], "A");
    assert!(number["scores"][0]["inputs"].as_array().is_some_and(|inputs| !inputs.is_empty()), "{number}");
    let both = space.run(&["trace", "method=mcdrl,held_out=A", "method=erm,held_out=A", "--json"]).stdout;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&both).unwrap().as_array().unwrap().len(), 2);
}
