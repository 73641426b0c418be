//! What is removed, and what never is.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::time::Duration;

use crate::reliability::{start, sweep, wait};
use crate::space::Space;

#[test]
fn gc_during_a_run_is_refused_and_loses_nothing() {
    let space = sweep();
    space.edit("siteline.yaml", "sleep 0.01; mkdir", "sleep 0.3; mkdir");
    let child = start(&space, &[]);
    std::thread::sleep(Duration::from_millis(600));
    let gc = space.run(&["gc", "--keep-days", "0", "--yes"]);
    let (said, _) = wait(child);
    assert_eq!(gc.code, 1, "the run was over before gc came");
    assert!(gc.stderr.contains("is in use by another run"), "{}", gc.stderr);
    assert_eq!(said.code, 0, "{}", said.stderr);
    let gc = space.run(&["gc", "--keep-days", "0", "--yes"]);
    assert_eq!(gc.code, 0, "{}", gc.stderr);
    assert!(space.executed(&[]).is_empty());
}

/// Killed between any two steps, `gc` leaves a store in which all that is to stay is whole, and comes to its end the next time.
#[test]
fn a_kill_during_gc_loses_nothing() {
    for point in siteline_cache::sync_point::POINTS_OF_GC {
        let space = sweep();
        space.executed(&[]);
        let clean = space.artifacts();
        // What is not needed any more: the artifacts of another parameter.
        space.executed(&["--set", "axes.method=[z]"]);
        space.executed(&[]);
        let gc = ["gc", "--keep-days", "0", "--yes"];
        let killed = space.command(&gc).env("SITELINE_TEST_KILL_AT", format!("{point}:1")).output().unwrap();
        assert_eq!(killed.status.signal(), Some(9), "{point}: {}", String::from_utf8_lossy(&killed.stderr));
        assert_eq!((space.run(&["verify"]).code, space.artifacts()), (0, clean.clone()), "{point}");
        let again = space.run(&gc);
        assert_eq!(again.code, 0, "{point}: {}", again.stderr);
        assert!(space.executed(&[]).is_empty(), "{point}");
        assert_eq!(space.artifacts(), clean, "{point}");
        assert!(space.run(&gc).stdout.contains("Removed 0 executions and 0 files"), "{point}: something was left");
        assert!(!space.executed(&["--set", "axes.method=[z]"]).is_empty(), "{point}: nothing had been removed");
    }
}

/// The files that tell of a run, cut at each length and with one bit flipped in each byte: no result is lost by what they say, by
/// `gc` least of all, and whoever asks gets an answer.
#[test]
fn damaged_files_of_a_run_cost_no_result() {
    let space = Space::of_commands(
        "axes: {seed: [0, 1]}\nstages: {one: {run: \"echo ${word} ${seed} >out\", per: [seed], with: {word: x}, outputs: [out]}}\n",
    );
    // Two runs of other parameters than the manifest has: only the later one's files tell that its results are to stay.
    let of = |word: &str| space.executed(&["--set", &format!("stages.one.with.word={word}")]).len();
    let runs = || -> BTreeSet<PathBuf> {
        std::fs::read_dir(space.path(".siteline/runs")).unwrap().map(|entry| entry.unwrap().path()).collect()
    };
    assert_eq!(of("w"), 2);
    let earlier = runs();
    assert_eq!(of("y"), 2);
    let run = runs().difference(&earlier).next().unwrap().clone();
    let gc = ["gc", "--keep-days", "0"];
    assert!(space.run(&gc).stdout.contains("2 executions"), "the earlier run's results are not needed any more");
    let (mut tried, mut kept) = (0, 0);
    for name in ["run.json", "instances.jsonl", "request.json", "summary.json"] {
        let path = run.join(name);
        let bytes = std::fs::read(&path).unwrap();
        let cuts = (0..bytes.len()).map(|at| bytes[..at].to_vec());
        let flips = (0..bytes.len()).map(|at| {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            flipped
        });
        for (place, damaged) in cuts.chain(flips).enumerate() {
            std::fs::write(&path, &damaged).unwrap();
            // Shown, not done: what would be removed is what counts.
            let said = space.run(&gc);
            assert_eq!(said.code, 0, "{name}: {}", said.stderr);
            let shown = String::from_utf8_lossy(&damaged).into_owned();
            let goes = said.stdout.lines().filter(|line| line.contains("  one[")).count();
            tried += 1;
            kept += usize::from(goes == 0);
            assert!(
                goes == 0 || (goes == 2 && of_word(&space, &said.stdout, "w")),
                "{name} as {shown}: {}",
                said.stdout
            );
            if place % 60 == 0 {
                for verb in [&["status"][..], &["log", "one"], &["diff", "last", "last"], &["doctor"]] {
                    let said = space.run(verb);
                    assert!(
                        !said.stderr.contains("panicked") && (0..3).contains(&said.code),
                        "{verb:?}: {}",
                        said.stderr
                    );
                }
            }
        }
        std::fs::write(&path, &bytes).unwrap();
    }
    assert!(kept > 300 && kept < tried, "of {tried} damages {kept} were noticed");
    assert!(space.run(&[&gc[..], &["--yes"]].concat()).stdout.contains("Removed 2 executions"));
    assert_eq!((of("y"), of("w")), (0, 2));
}

/// Whether all that `gc` would remove is of the results that one word makes.
fn of_word(space: &Space, shown: &str, word: &str) -> bool {
    let plan = space.run(&["plan", "--json", "--set", &format!("stages.one.with.word={word}")]).stdout;
    let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
    let keys: Vec<&str> = plan["instances"].as_array().unwrap().iter().filter_map(|i| i["key"].as_str()).collect();
    let mut goes = shown.lines().filter(|line| line.contains("  one["));
    goes.all(|line| keys.iter().any(|key| line.trim_start().starts_with(&key[..12])))
}

/// A result that is gone and that nothing needs any more is forgotten, however young; one that something was made from is not.
#[test]
fn what_is_damaged_and_not_needed_is_forgotten() {
    let space = Space::of_commands("stages: {a: {run: echo ONE >out, outputs: [out]}}\n");
    space.executed(&[]);
    let object = space.artifacts()["a"][0]["digest"].as_str().unwrap().to_owned();
    space.edit("siteline.yaml", "ONE", "TWO");
    space.executed(&[]);
    std::fs::remove_file(space.path(&format!(".siteline/objects/{}/{}", &object[..2], &object[2..]))).unwrap();
    let verify = space.run(&["verify"]);
    assert!(verify.code == 1 && verify.stdout.contains("`siteline gc` forgets"), "{}", verify.stdout);
    assert_eq!(space.run(&["gc", "--yes"]).code, 0);
    assert_eq!(space.run(&["verify"]).code, 0, "{}", space.run(&["verify"]).stdout);
    assert!(space.executed(&[]).is_empty());
}

#[test]
fn what_something_was_made_from_stays_known_without_its_objects() {
    let space = Space::of_commands(
        "stages:\n  a: {run: echo one >out, outputs: [out]}\n  b: {run: cat inputs/a/out >out; echo b >>out, needs: {a: a}, outputs: [out]}\n",
    );
    space.executed(&[]);
    let object = space.artifacts()["a"][0]["digest"].as_str().unwrap().to_owned();
    std::fs::remove_file(space.path(&format!(".siteline/objects/{}/{}", &object[..2], &object[2..]))).unwrap();
    assert_eq!(space.run(&["gc", "--keep-days", "0", "--yes"]).code, 0);
    assert_eq!(space.records().len(), 2, "the lineage of `b` was torn");
    assert_eq!(space.executed(&[]).into_iter().collect::<Vec<_>>(), ["a"]);
}

/// A damaged result is noticed when it is to be shown, and the next run makes it anew.
#[test]
fn a_damaged_result_heals_by_running() {
    use std::os::unix::fs::PermissionsExt;
    let space = Space::of_commands("stages: {a: {run: echo one >out, outputs: [out], results: [out]}}\n");
    space.executed(&[]);
    let object = space.artifacts()["a"][0]["digest"].as_str().unwrap().to_owned();
    let path = space.path(&format!(".siteline/objects/{}/{}", &object[..2], &object[2..]));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(&path, "onX\n").unwrap();
    let said = space.run(&["run"]);
    assert!(
        said.code == 1 && said.stderr.contains("is damaged") && said.stderr.contains("run again"),
        "{}",
        said.stderr
    );
    assert_eq!(space.executed(&[]).into_iter().collect::<Vec<_>>(), ["a"]);
    assert_eq!(space.read("results/study/out"), "one\n");
}
