//! Whatever happens to a run, its store or its machine, the next run finishes with the artifacts of a clean one and repeats
//! nothing that was finished. Each test asserts that its fault really happened.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::space::{Said, Space, skipped};

/// Forty instances of commands that take a few milliseconds each.
const SWEEP: &str = r#"
axes: {hospital: [a, b, c], held_out: [a, b, c], method: [x, y], seed: [0, 1]}
stages:
  ingest: {run: "cat data/${hospital}.txt >out; sleep 0.01", per: [hospital], files: ["data/${hospital}.txt"], outputs: [out]}
  features: {run: "sed s/^/f/ inputs/samples/out >out", per: [hospital], needs: {samples: ingest}, outputs: [out]}
  train:
    run: "cat inputs/features/*/out >model; echo ${method} ${held_out} ${seed} >>model; sleep 0.01; mkdir -p extra; echo ${method} >extra/note"
    per: [method, held_out, seed]
    needs: {features: {stage: features, where: hospital != held_out}}
    outputs: [model, extra/]
  evaluate: {run: "cat inputs/model/model inputs/features/out >score", per: [method, held_out, seed], needs: {model: train, features: {stage: features, where: hospital == held_out}}, outputs: [score]}
  table: {run: "cat inputs/scores/*/score >table", needs: {scores: evaluate}, outputs: [table]}
"#;

pub fn sweep() -> Space {
    let space = Space::of_commands(SWEEP);
    for site in ["a", "b", "c"] {
        space.write(&format!("data/{site}.txt"), format!("images of {site}\n"));
    }
    space
}

pub fn clean() -> BTreeMap<String, serde_json::Value> {
    let space = sweep();
    assert_eq!(space.executed(&[]).len(), 31);
    space.artifacts()
}

pub fn start(space: &Space, variables: &[(&str, &str)]) -> Child {
    let mut command = space.command(&["run", "--plain"]);
    command.envs(variables.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

pub fn wait(child: Child) -> (Said, Option<i32>) {
    let output = child.wait_with_output().unwrap();
    let signal = output.status.signal();
    (Said::from(output), signal)
}

#[test]
fn two_then_eight_drivers_at_once_execute_each_instance_once() {
    let clean = clean();
    for drivers in [2, 8] {
        let space = sweep();
        // Long enough for the last driver to find something to do.
        space.edit("siteline.yaml", "sleep 0.01; mkdir", "sleep 0.15; mkdir");
        let all: Vec<Child> = (0..drivers).map(|_| start(&space, &[])).collect();
        let said: Vec<Said> = all.into_iter().map(|child| wait(child).0).collect();
        assert!(said.iter().all(|s| s.code == 0), "{}", said.iter().map(|s| s.stderr.as_str()).collect::<String>());
        let executed: Vec<String> = said.iter().flat_map(|s| s.executed()).collect();
        let once: std::collections::BTreeSet<_> = executed.iter().collect();
        assert_eq!((executed.len(), once.len()), (clean.len(), clean.len()), "{drivers} drivers");
        let shared = said.iter().filter(|s| !s.executed().is_empty()).count();
        assert!(shared > 1, "one of {drivers} drivers did everything: they were not at work at once");
        let outputs = |artifacts: BTreeMap<String, serde_json::Value>| artifacts.into_values().collect::<Vec<_>>();
        assert_eq!(outputs(space.artifacts()), outputs(clean.clone()));
    }
}

#[test]
fn a_damaged_journal_costs_what_it_says_and_nothing_else() {
    let space = sweep();
    space.executed(&[]);
    let clean = space.artifacts();
    let folder = space.path(".siteline/records");
    let journal = std::fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    let whole = std::fs::read(&journal).unwrap();
    // Every length would take hours through the program; the journal's own tests cut at each. Here: some, spread over all.
    for step in 0..12 {
        let length = whole.len() * step / 12 + step;
        std::fs::write(&journal, &whole[..length]).unwrap();
        let said = space.run(&["run", "--plain"]);
        assert_eq!(said.code, 0, "{}", said.stderr);
        assert!(!said.executed().is_empty(), "a cut at {length} cost nothing");
        assert_eq!(space.artifacts(), clean, "cut at {length}");
        for file in std::fs::read_dir(&folder).unwrap() {
            std::fs::remove_file(file.unwrap().path()).unwrap();
        }
        std::fs::write(&journal, &whole).unwrap();
    }
    for step in 0..12 {
        let mut damaged = whole.clone();
        let place = (whole.len() * step / 12 + 37 * step) % whole.len();
        damaged[place] ^= 1 << (step % 8);
        std::fs::write(&journal, &damaged).unwrap();
        let verified = space.run(&["verify"]);
        let said = space.run(&["run", "--plain"]);
        assert_eq!(said.code, 0, "{}", said.stderr);
        assert!(said.executed().len() == 1 || verified.code == 1, "a flip at {place} went unnoticed");
        assert_eq!(space.artifacts(), clean, "flip at {place}");
        for file in std::fs::read_dir(&folder).unwrap() {
            std::fs::remove_file(file.unwrap().path()).unwrap();
        }
        std::fs::write(&journal, &whole).unwrap();
    }
}

#[test]
fn every_damaged_or_missing_object_is_made_anew_before_anybody_reads_it() {
    let space = sweep();
    space.executed(&[]);
    let clean = space.artifacts();
    let objects: Vec<_> = std::fs::read_dir(space.path(".siteline/objects"))
        .unwrap()
        .flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap())
        .map(|file| file.unwrap().path())
        .collect();
    assert!(objects.len() > 20);
    for (index, object) in objects.iter().enumerate() {
        let bytes = std::fs::read(object).unwrap();
        for missing in [true, false] {
            std::fs::remove_file(object).unwrap();
            if !missing {
                let mut damaged = bytes.clone();
                damaged[index % bytes.len()] ^= 1;
                std::fs::write(object, damaged).unwrap();
                let verified = space.run(&["verify"]);
                assert!(verified.code == 1 && verified.stdout.contains("damaged"), "{}", verified.stdout);
            }
            let said = space.run(&["run", "--plain"]);
            assert_eq!(said.code, 0, "{}", said.stderr);
            assert!(!said.executed().is_empty(), "the fault at {} went unnoticed", object.display());
            assert_eq!(std::fs::read(object).unwrap(), bytes);
        }
    }
    assert_eq!(space.artifacts(), clean);
}

/// Nobody asked for `verify`: whoever is about to read a damaged object finds out.
#[test]
fn no_object_with_one_bit_flipped_is_read_by_anybody() {
    let space = sweep();
    space.executed(&[]);
    let outputs = |space: &Space| space.artifacts().into_values().collect::<Vec<_>>();
    let (clean, artifacts) = (outputs(&space), space.artifacts());
    let mut tried = 0;
    for (place, (instance, outputs_of)) in artifacts.iter().enumerate() {
        let (stage, point) = instance.split_once('[').unwrap_or((instance, ""));
        let (output, reader) = match stage {
            "ingest" => ("out", format!("features[{point}")),
            "features" => {
                ("out", format!("evaluate[held_out={},method=x,seed=0]", &point["hospital=".len()..point.len() - 1]))
            }
            "train" => ("model", format!("evaluate[{point}")),
            "evaluate" => ("score", "table".to_owned()),
            _ => continue,
        };
        let output = outputs_of.as_array().unwrap().iter().find(|o| o["path"] == output).unwrap();
        let digest = output["digest"].as_str().unwrap();
        let object = space.path(&format!(".siteline/objects/{}/{}", &digest[..2], &digest[2..]));
        let bytes = std::fs::read(&object).unwrap();
        let mut damaged = bytes.clone();
        let bit = place % (8 * bytes.len());
        damaged[bit / 8] ^= 1 << (bit % 8);
        std::fs::remove_file(&object).unwrap();
        std::fs::write(&object, damaged).unwrap();
        let first = space.run(&["run", "--plain", "--force", "--only", &reader]);
        let second = space.run(&["run", "--plain"]);
        assert_eq!(second.code, 0, "{instance}: {}{}", first.stderr, second.stderr);
        let anew = first.executed().contains(instance) || second.executed().contains(instance);
        assert!(anew, "{instance} was not made anew: {}{}", first.stderr, second.stderr);
        assert!(std::fs::read(&object).unwrap() == bytes, "{instance}");
        assert_eq!(outputs(&space), clean, "{instance}");
        tried += 1;
    }
    assert_eq!(tried, 30);
}

#[test]
fn a_store_that_cannot_be_written_is_said_to_be() {
    let space = sweep();
    space.executed(&[]);
    // As root nothing is read-only by its permissions: a read-only mount is.
    let mount = |arguments: &[&str]| {
        let store = space.path(".siteline");
        let status = std::process::Command::new("mount").args(arguments).arg(&store).status();
        status.is_ok_and(|status| status.success())
    };
    let store = space.path(".siteline");
    if !mount(&["--bind", store.to_str().unwrap()]) || !mount(&["-o", "remount,bind,ro"]) {
        return skipped("nothing can be mounted here (that takes root)");
    }
    let plan = space.run(&["plan"]);
    let run = space.run(&["run", "--plain"]);
    let _ = std::process::Command::new("umount").arg("-l").arg(&store).status();
    assert!(plan.code == 0 && plan.stdout.contains("Everything is up to date"), "{}{}", plan.stdout, plan.stderr);
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("hint: the folder cannot be written; name another store"), "{}", run.stderr);
}

#[test]
fn a_full_disk_keeps_what_was_finished() {
    let space = sweep();
    space.edit(
        "siteline.yaml",
        "sed s/^/f/ inputs/samples/out >out",
        "sed s/^/f/ inputs/samples/out >out; head -c 150000 /dev/zero >>out",
    );
    let small = space.path("small");
    std::fs::create_dir(&small).unwrap();
    let mounted =
        std::process::Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(&small).status();
    if !mounted.is_ok_and(|status| status.success()) {
        return skipped("no small file system can be mounted here (that takes root)");
    }
    let said = space.run(&["run", "--plain", "--store", "small/store"]);
    let bigger = std::process::Command::new("mount").args(["-o", "remount,size=60m"]).arg(&small).status();
    let again = space.run(&["run", "--plain", "--store", "small/store"]);
    let verified = space.run(&["verify", "--store", "small/store"]);
    let _ = std::process::Command::new("umount").arg("-l").arg(&small).status();
    assert!(bigger.is_ok_and(|status| status.success()));
    assert_eq!(said.code, 1, "the disk was not full: {}", said.stderr);
    let full = said.stderr.to_lowercase();
    assert!(full.contains("no space left") || full.contains("disk is full"), "{}", said.stderr);
    assert_eq!(again.code, 0, "{}", again.stderr);
    assert!(said.executed().intersection(&again.executed()).next().is_none(), "a finished instance was repeated");
    assert_eq!(verified.code, 0, "{}", verified.stdout);
}

#[test]
fn a_clock_that_is_a_day_wrong_changes_nothing() {
    let Ok(faketime) = std::process::Command::new("faketime").arg("--version").output() else {
        return skipped("faketime is not there (on Debian: apt-get install faketime)");
    };
    assert!(faketime.status.success());
    let clean = clean();
    let space = sweep();
    let run = |shift: &str| {
        let mut command = std::process::Command::new("faketime");
        command.args(["-f", shift]).arg(crate::space::siteline()).args(["run", "--plain"]).current_dir(space.root());
        // A wrong clock is the wall clock; waiting goes by another.
        command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        Said::from(command.output().unwrap())
    };
    let ahead = run("+1d");
    assert_eq!(ahead.code, 0, "{}", ahead.stderr);
    let runs: Vec<_> =
        std::fs::read_dir(space.path(".siteline/runs")).unwrap().map(|e| e.unwrap().file_name()).collect();
    let today = std::process::Command::new("date").args(["-u", "+%Y%m%d"]).output().unwrap().stdout;
    let today = String::from_utf8_lossy(&today).trim().to_owned();
    assert!(runs.iter().all(|run| !run.to_string_lossy().starts_with(&today)), "the clock was right");
    for shift in ["-1d", "+0d"] {
        let said = run(shift);
        assert_eq!(said.code, 0, "{}", said.stderr);
        assert!(said.executed().is_empty(), "{}", said.stderr);
    }
    space.write("data/a.txt", "changed\n");
    assert!(!run("-1d").executed().is_empty());
    space.write("data/a.txt", "images of a\n");
    assert!(run("+0d").executed().is_empty(), "what is in the store was not found");
    assert_eq!(space.artifacts(), clean);
}

/// Two users of one group: what one made the other finds, and adds to.
#[test]
fn a_group_shares_a_store() {
    use std::os::unix::fs::PermissionsExt;
    let space = sweep();
    std::fs::copy(crate::space::siteline(), space.path("siteline")).unwrap();
    // The built-in pack's libraries lie where other users may not go.
    space.write(
        "siteline-worker",
        "#!/bin/sh\nread line\necho '{\"reply\": \"kinds\", \"protocol\": 2, \"kinds\": []}'\n",
    );
    let group = "64999";
    let opened = |path: &std::path::Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode));
    let owned = std::process::Command::new("chgrp").args(["-R", group]).arg(space.root()).status();
    if !owned.is_ok_and(|status| status.success()) {
        return skipped("files cannot be given to another group here (that takes root)");
    }
    opened(space.root(), 0o2775).unwrap();
    opened(&space.path("siteline-worker"), 0o750).unwrap();
    let run = |user: &str, arguments: &[&str]| {
        let mut command = std::process::Command::new("setpriv");
        command.args(["--reuid", user, "--regid", group, "--clear-groups"]).arg(space.path("siteline"));
        Said::from(command.args(arguments).current_dir(space.root()).env("HOME", "/").output().unwrap())
    };
    let first = run("64001", &["run", "--plain", "--shared-store"]);
    assert_eq!((first.code, first.executed().len()), (0, 31), "{}", first.stderr);
    let found = run("64002", &["run", "--plain"]);
    assert_eq!((found.code, found.executed().len()), (0, 0), "{}", found.stderr);
    space.write("data/a.txt", "changed\n");
    let added = run("64002", &["run", "--plain"]);
    assert!(added.code == 0 && added.executed().contains("ingest[hospital=a]"), "{}", added.stderr);
    let again = run("64001", &["run", "--plain"]);
    assert_eq!((again.code, again.executed().len()), (0, 0), "{}", again.stderr);
    assert_eq!(run("64001", &["verify"]).code, 0);
    assert!(run("64002", &["history", "ingest[hospital=a]"]).stdout.contains("key "));
    // What one left for a later run the other neither uses nor removes.
    let numbers: Vec<String> = (0..70).map(|n| n.to_string()).collect();
    space.write(
        "many.yaml",
        format!(
            "siteline: 1\nname: many\naxes: {{n: [{}]}}\nstages:\n  part: {{run: \"echo ${{n}} >out\", per: [n], outputs: [out]}}\n  table: {{run: \"cat inputs/parts/*/out >out; echo ${{more}} >>out\", with: {{more: 1}}, needs: {{parts: part}}, outputs: [out]}}\n",
            numbers.join(", ")
        ),
    );
    for (user, more, executed) in [("64001", 1, 71), ("64002", 2, 1), ("64001", 3, 1)] {
        let set = format!("stages.table.with.more={more}");
        let said = run(user, &["run", "--plain", "-m", "many.yaml", "--set", &set]);
        assert_eq!((said.code, said.executed().len()), (0, executed), "{user}: {}", said.stderr);
    }
    let idle = || std::fs::read_dir(space.path(".siteline/tmp/idle")).into_iter().flatten().count();
    assert_eq!(idle(), 1);
    assert_eq!(run("64002", &["gc", "-m", "many.yaml", "--yes"]).code, 0);
    assert_eq!(idle(), 1);
    let gc = run("64001", &["gc", "-m", "many.yaml", "--yes"]);
    assert_eq!((gc.code, idle()), (0, 0), "{}", gc.stderr);
    // Nobody else gets in.
    let mut stranger = std::process::Command::new("setpriv");
    stranger.args(["--reuid", "64003", "--regid", "64003", "--clear-groups", "ls"]).arg(space.path(".siteline"));
    assert!(!stranger.output().unwrap().status.success());
}

#[test]
fn a_source_that_is_edited_while_a_stage_reads_it_makes_no_result() {
    let space = sweep();
    space.edit(
        "siteline.yaml",
        "cat data/${hospital}.txt >out; sleep 0.01",
        "cat data/${hospital}.txt >out; sleep 1.5",
    );
    let child = start(&space, &[]);
    std::thread::sleep(Duration::from_millis(700));
    space.write("data/a.txt", "edited\n");
    let (said, _) = wait(child);
    assert_eq!(said.code, 1);
    assert!(said.stderr.contains("data/a.txt changed while it was read"), "{}", said.stderr);
    assert!(!said.executed().contains("ingest[hospital=a]"));
    let again = space.run(&["run", "--plain"]);
    assert_eq!(again.code, 0, "{}", again.stderr);
    assert_eq!(space.output("ingest[hospital=a]", "out"), b"edited\n");
}
