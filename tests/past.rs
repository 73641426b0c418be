//! What is told of runs that are over: after renamings, damage, and whatever the manifest says now.

use crate::people::SWEEP;
use crate::space::Space;

#[test]
fn a_difference_says_what_it_cannot_know() {
    let space = Space::of_commands(SWEEP);
    space.executed(&[]);
    // What was not asked for is not gone.
    space.edit("siteline.yaml", "rate: 0.5", "rate: 0.25");
    space.executed(&["--only", "fit[seed=1]"]);
    let diff = space.run(&["diff"]).stdout;
    assert!(diff.contains("2 instances that the later run was not asked for") && !diff.contains("- fit"), "{diff}");
    let back = space.run(&["diff", "last", "previous"]).stdout;
    assert!(back.contains("+ fit") && back.contains("what is new to it may have been there before"), "{back}");
    assert!(!diff.contains("may have been there before"), "{diff}");
    // The record of the earlier result may be gone, and files may be damaged.
    space.executed(&[]);
    assert_eq!(space.run(&["gc", "--keep-days", "0", "--yes"]).code, 0);
    let runs: Vec<_> =
        std::fs::read_dir(space.path(".siteline/runs")).unwrap().map(|run| run.unwrap().path()).collect();
    let began = |run: &std::path::PathBuf| -> u64 {
        let row: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(run.join("run.json")).unwrap()).unwrap();
        row["started_ms"].as_u64().unwrap()
    };
    let (first, last) =
        (runs.iter().min_by_key(|run| began(run)).unwrap(), runs.iter().max_by_key(|run| began(run)).unwrap());
    let id = |run: &std::path::Path| run.file_name().unwrap().to_string_lossy().into_owned();
    let diff = space.run(&["diff", &id(first), &id(last)]);
    assert!(
        diff.stdout.contains("what changed is not known") && diff.stderr.is_empty(),
        "{}{}",
        diff.stdout,
        diff.stderr
    );
    std::fs::write(first.join("instances.jsonl"), "").unwrap();
    let diff = space.run(&["diff", &id(first), &id(last)]);
    assert!(diff.stderr.contains("is not all there"), "{}", diff.stderr);
    std::fs::write(last.join("run.json"), "{").unwrap();
    let doctor = space.run(&["doctor"]).stdout;
    assert!(doctor.contains(&format!("{} is not all there", id(first))), "{doctor}");
    assert!(doctor.contains(&format!("{} is damaged", last.display())), "{doctor}");
}

#[test]
fn what_is_past_can_be_looked_at_whatever_the_manifest_says_now() {
    let space = Space::of_commands(SWEEP);
    space.executed(&[]);
    space.edit("siteline.yaml", "name: study", "name: renamed");
    for (words, wanted) in [
        (&["status"][..], "the store has runs of `study`"),
        (&["history", "all"], "all has the result that was made in "),
        (&["log", "fit[seed=1]"], "::metric loss"),
    ] {
        let said = space.run(words);
        assert!(said.code == 0 && said.stdout.contains(wanted), "{words:?}: {}{}", said.stdout, said.stderr);
    }
    assert!(space.run(&["diff"]).stderr.contains("the store has runs of `study`"));
    space.edit("siteline.yaml", "per: [seed]", "per: [sed]");
    let verify = space.run(&["verify"]);
    assert!(verify.code == 0 && verify.stdout.contains("objects hold"), "{}{}", verify.stdout, verify.stderr);
    // Each is blamed for its own.
    let doctor = space.run(&["doctor"]).stdout;
    assert!(doctor.contains("BAD   manifest") && doctor.contains("ok    store"), "{doctor}");
    space.edit("siteline.yaml", "per: [sed]", "per: [seed]");
    std::fs::remove_dir_all(space.path(".siteline")).unwrap();
    space.write(".siteline", "a file");
    let doctor = space.run(&["doctor"]).stdout;
    assert!(doctor.contains("ok    manifest") && doctor.contains("BAD   store"), "{doctor}");
    assert_eq!(space.run(&["verify", "--store", "nowhere"]).code, 2);
}

#[test]
fn history_tells_of_failures_in_their_place() {
    let space = Space::of_commands("stages: {a: {run: echo one >out, outputs: [out]}}\n");
    space.executed(&[]);
    space.edit("siteline.yaml", "echo one", "false; echo one");
    assert_eq!(space.run(&["run"]).code, 1);
    space.edit("siteline.yaml", "false; echo one", "echo two");
    space.executed(&[]);
    let told = space.run(&["history", "a"]).stdout;
    let places: Vec<usize> = told
        .lines()
        .enumerate()
        .filter(|(_, line)| line.contains("in run"))
        .map(|(place, line)| if line.starts_with("failed") { 1000 + place } else { place })
        .collect();
    assert!(places.len() == 3 && places[1] > 1000, "the failure is not between the two executions:\n{told}");
}

/// A sweep that got smaller leaves files of what it has no more: they are told of, and what is somebody's own is not.
#[test]
fn results_of_what_the_sweep_has_no_more_are_named() {
    let space = Space::of_commands(
        "axes: {i: [0, 1, 2]}\nstages: {a: {run: \"echo ${i} >o.txt\", per: [i], outputs: [o.txt], results: [o.txt]}}\n",
    );
    assert!(!space.run(&["run"]).stdout.contains("Still of an earlier run"));
    space.write("results/study/notes.txt", "my own\n");
    let said = space.run(&["run", "--set", "axes.i=[0, 1]"]).stdout;
    assert!(said.contains("Still of an earlier run: ") && said.contains("a/i=2/o.txt\n"), "{said}");
    let said = space.run(&["run"]).stdout;
    assert!(!said.contains("Still of an earlier run"), "{said}");
}

/// What the sweep has no more is remembered all the same, by its name or a pattern.
#[test]
fn instances_that_the_sweep_has_no_more_have_their_history_and_their_log() {
    let space = Space::of_commands(
        "axes: {n: [1, 2, 3]}\nstages:\n  a: {run: \"echo printed ${n}; echo ${n} >o\", per: [n], outputs: [o]}\n",
    );
    space.executed(&[]);
    space.edit("siteline.yaml", "[1, 2, 3]", "[1, 2]");
    let history = space.run(&["history", "a[n=3]"]);
    assert_eq!(history.code, 0, "{}", history.stderr);
    assert!(history.stdout.contains("a[n=3] is no part of the sweep any more."), "{}", history.stdout);
    assert!(history.stdout.contains("key "), "{}", history.stdout);
    assert!(!space.run(&["history", "a[n=1]"]).stdout.contains("any more"));
    let both = space.run(&["history", "a[n=3]", "a[n=1]", "--json"]).stdout;
    let both: serde_json::Value = serde_json::from_str(&both).unwrap();
    let of = |place: usize| (both[place]["instance"].as_str().unwrap(), both[place]["in_sweep"].as_bool().unwrap());
    assert_eq!((of(0), of(1)), (("a[n=1]", true), ("a[n=3]", false)));
    assert!(space.run(&["log", "a[n=3]"]).stdout.contains("printed 3"));
    let never = space.run(&["history", "a[n=4]"]);
    assert!(never.code == 2 && never.stderr.contains("no instance fits `a[n=4]`"), "{}", never.stderr);
}
