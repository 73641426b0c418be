//! A stage kind of a lab's own, in Python: the example, used as its documentation says.

use crate::space::Space;

fn example() -> Space {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/pack");
    let space = Space::of_commands("");
    for name in ["siteline.yaml", "summarise.py"] {
        space.write(name, std::fs::read(folder.join(name)).unwrap());
    }
    space
}

#[test]
fn a_pack_in_python_runs_is_cached_and_follows_its_code() {
    let lines = example().read("summarise.py").lines().count();
    assert!(lines < 100, "the example has {lines} lines");
    let space = example();
    assert_eq!(space.executed(&[]).len(), 3);
    assert_eq!(space.output("summary", "summary.json"), br#"{"mean": 0.3, "rows": 10, "spread": 0.149}"#);
    assert!(space.run(&["trace", "summary"]).stdout.contains("metric mean = 0.3"));
    assert!(space.executed(&[]).is_empty());
    space.edit("summarise.py", "import csv\n", "import csv  # a remark\n");
    let why = space.run(&["why", "summary"]);
    assert!(why.stdout.contains("code base: "), "{}", why.stdout);
    assert_eq!(space.executed(&[]).into_iter().collect::<Vec<_>>(), ["summary"]);
    space.assert_no_process();
}

#[test]
fn a_packs_parameters_and_failures_are_told_like_any_others() {
    let space = example();
    space.edit("siteline.yaml", "column: score", "colum: score");
    let said = space.run(&["plan"]);
    assert_eq!(said.code, 2);
    assert!(
        said.stderr.contains("did you mean `column`?") && said.stderr.contains("siteline.yaml:"),
        "{}",
        said.stderr
    );
    let space = example();
    let said = space.run(&["run", "--plain", "--set", "stages.summary.with.column=grade"]);
    assert_eq!(said.code, 1);
    assert!(
        said.stderr.contains("FAILED  summary: the table of hospital=north has no column `grade`"),
        "{}",
        said.stderr
    );
    let space = example();
    space.edit("siteline.yaml", "python3 summarise.py", "python3 no-such-pack.py");
    let said = space.run(&["plan"]);
    assert!(said.code == 2 && said.stderr.contains("does not describe its stage kinds"), "{}", said.stderr);
}

#[test]
fn work_that_scales_gets_the_idle_slots_and_what_is_fixed_stays() {
    let threads = |resources: Option<&str>, kind: &str| {
        let space = example();
        space.edit("summarise.py", "\"resources\": {\"cpu\": 1},", kind);
        // What it was given stands where its result was.
        space.edit("summarise.py", "json.dump(summary,", "json.dump([request['threads'], request['gpus']],");
        let mut arguments = vec!["run", "--plain", "-j", "6", "--gpus", "7"];
        let set = resources.map(|resources| format!("stages.summary.resources={resources}"));
        arguments.extend(set.iter().flat_map(|set| ["--set", set.as_str()]));
        let said = space.run(&arguments);
        assert_eq!(said.code, 0, "{}", said.stderr);
        String::from_utf8(space.output("summary", "summary.json")).unwrap()
    };
    let scales = "\"resources\": {}, \"scales\": True,";
    assert_eq!(threads(None, scales), "[6, []]");
    assert_eq!(threads(None, "\"resources\": {},"), "[1, []]");
    assert_eq!(threads(Some("{cpu: 4}"), scales), "[4, []]");
    // What the manifest does not name stays as the kind says.
    assert_eq!(threads(Some("{memory: 1 MB}"), "\"resources\": {\"cpu\": 3, \"gpu\": 1},"), "[3, [\"7\"]]");
}
