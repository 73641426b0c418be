//! What gets out of its process group, and what somebody else still holds: no process outlives the stage that started it, and no result
//! changes behind its back.

use std::time::{Duration, Instant};

use crate::space::{Space, skipped};

/// A command that leaves its group, its session and its environment, in the background; it says its number in `pids`.
const FAR: &str = "env -i setsid /bin/sh -c 'echo $$ >>PIDS; exec /bin/sleep 600' &";

fn space(manifest: &str) -> Space {
    let space = Space::of_commands("");
    space.write("pids", "");
    let pids = space.path("pids").display().to_string();
    space.write("siteline.yaml", format!("siteline: 1\nname: study\n{}", manifest.replace("PIDS", &pids)));
    space
}

/// The processes that were left, once they all have said so.
fn left(space: &Space, count: usize) -> Vec<String> {
    let began = Instant::now();
    loop {
        let pids: Vec<String> = space.read("pids").lines().map(str::to_owned).collect();
        if pids.len() >= count {
            return pids;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "only {pids:?} ever were");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// While the run goes on: not at its end alone.
#[test]
fn what_a_stage_leaves_ends_with_the_stage() {
    let waits = "while [ $(wc -l <PIDS) -lt 3 ]; do sleep 0.05; done";
    let near = "setsid sh -c 'echo $$ >>PIDS; exec sleep 600' & (setsid sh -c 'echo $$ >>PIDS; sleep 600 & wait' &);";
    let space = space(&format!(
        "stages:\n  leaves:\n    run: >-\n      {FAR} {near} {waits}; echo x >out\n    outputs: [out]\n  late: {{run: \"while [ ! -e {{}} ]; do sleep 0.05; done; echo x >out\", outputs: [out], timeout: 90s}}\n",
    ));
    let go = space.path("go").display().to_string();
    space.edit("siteline.yaml", "{}", &go);
    let run = space.command(&["run", "--plain", "-j", "2"]).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let pids = left(&space, 3);
    // The stage is over when its result is there, and the run is not.
    let began = Instant::now();
    while space.records().is_empty() {
        assert!(began.elapsed() < Duration::from_secs(60), "the stage does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
    pids.iter().for_each(|pid| space.assert_ended(pid));
    space.write("go", "");
    let said = crate::space::Said::from(run.wait_with_output().unwrap());
    assert_eq!((said.code, said.executed().len()), (0, 2), "{}", said.stderr);
    space.assert_no_process();
}

#[test]
fn what_a_stage_leaves_at_its_timeout_ends_with_it() {
    let space = space(&format!(
        "stages:\n  hangs:\n    run: >-\n      {FAR} setsid sh -c 'echo $$ >>PIDS; exec sleep 600' & sleep 600\n    outputs: [out]\n    timeout: 1s\n"
    ));
    let said = space.run(&["run", "--plain"]);
    assert!(said.code == 1 && said.stderr.contains("took longer than 1 s"), "{}", said.stderr);
    left(&space, 2).iter().for_each(|pid| space.assert_ended(pid));
}

/// A process that goes on writing to an output gets nothing into the store, whoever started it.
#[test]
fn an_output_that_is_still_written_to_becomes_a_result_of_its_own() {
    let space = space(
        "stages:\n  a:\n    run: >-\n      setsid sh -c 'exec 3>>out; echo $$ >>PIDS; sleep 1; echo evil >&3; sleep 600' & while [ ! -s PIDS ]; do sleep 0.05; done; echo x >>out\n    outputs: [out]\n  c: {run: \"sleep 2; cat inputs/a/out >out\", needs: {a: a}, outputs: [out]}\n",
    );
    assert_eq!(space.executed(&[]).len(), 2);
    assert_eq!(space.output("c", "out"), b"x\n");
    assert_eq!(space.run(&["verify"]).code, 0);
    // Nobody is left to end here: the test itself holds the file.
    let space = Space::of_commands("stages: {a: {run: \"echo x >out; echo $PWD >DIR; sleep 1\", outputs: [out]}}\n");
    let told = space.path("dir");
    space.edit("siteline.yaml", "DIR", told.to_str().unwrap());
    let run = space.command(&["run", "--plain"]).stderr(std::process::Stdio::null()).spawn().unwrap();
    let began = Instant::now();
    let mut held = loop {
        let dir = std::fs::read_to_string(&told).unwrap_or_default();
        let file = std::fs::OpenOptions::new().append(true).open(std::path::Path::new(dir.trim()).join("out"));
        if let (Ok(file), true) = (file, dir.ends_with('\n')) {
            break file;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "the command never began");
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(run.wait_with_output().unwrap().status.success());
    std::io::Write::write_all(&mut held, b"evil\n").unwrap();
    assert_eq!(space.run(&["verify"]).code, 0);
    assert_eq!(space.output("a", "out"), b"x\n");
}

/// A file of the project that is an output by a second name stays the project's.
#[test]
fn an_output_that_has_another_name_is_copied() {
    let space = Space::of_commands(
        "stages: {a: {run: \"ln \\\"$(readlink -f data/a.txt)\\\" out\", files: [data/a.txt], outputs: [out]}}\n",
    );
    space.write("data/a.txt", "mine\n");
    assert_eq!(space.executed(&[]).len(), 1);
    let file = std::fs::OpenOptions::new().append(true).open(space.path("data/a.txt"));
    std::io::Write::write_all(&mut file.unwrap(), b"more\n").unwrap();
    assert_eq!(space.run(&["verify"]).code, 0);
}

#[test]
fn a_run_knows_its_processes_by_variables_of_its_own() {
    for name in ["SITELINE_RUN", "SITELINE_JOB"] {
        let space =
            Space::of_commands(&format!("stages: {{a: {{run: echo x >o, outputs: [o], env: {{{name}: b}}}}}}\n"));
        let said = space.run(&["plan"]);
        assert!(said.code == 2 && said.stderr.contains("is Siteline's own"), "{}", said.stderr);
    }
}

/// Not even a root gets out, or leaves anybody behind.
#[test]
fn nothing_gets_out_of_a_sandbox() {
    let space = space(&format!(
        "stages:\n  leaves:\n    run: >-\n      {} (mount -o remount,rw / && touch /opt/escaped) || true; echo x >out\n    outputs: [out]\n",
        "env -i setsid /bin/sleep 731 &"
    ));
    let said = space.run(&["run", "--plain", "--sandbox"]);
    if said.stderr.contains("bubblewrap") {
        return skipped("there is no bubblewrap here that may make a sandbox");
    }
    assert_eq!(said.code, 0, "{}", said.stderr);
    assert!(!std::path::Path::new("/opt/escaped").exists(), "it wrote to the system");
    let sleeps = std::process::Command::new("pgrep").args(["-f", "sleep 731"]).output();
    if let Ok(sleeps) = sleeps {
        assert!(sleeps.stdout.is_empty(), "a process got out of its sandbox");
    }
}

/// A program that a shell started and that died by a signal.
#[test]
fn the_signal_that_ended_a_shells_program_is_named() {
    for (signal, name) in [("SEGV", "SIGSEGV"), ("KILL", "perhaps for want of memory")] {
        let space = Space::of_commands(&format!(
            "stages: {{a: {{run: \"sh -c 'kill -{signal} $$'; true\", outputs: [out]}}}}\n"
        ));
        let said = space.run(&["run", "--plain"]);
        let line = said.stderr.lines().find(|line| line.contains("FAILED")).unwrap_or_default();
        assert!(line.contains("it ended with exit code 1") && line.contains(name), "{}", said.stderr);
    }
}

/// What a YAML number cannot hold is refused, not rounded.
#[test]
fn whole_numbers_that_are_too_large_are_refused() {
    let space = Space::of_commands(
        "stages:\n  a: {run: \"echo ${v} >o\", with: {v: 123456789012345678901234567890}, outputs: [o]}\n",
    );
    let said = space.run(&["plan"]);
    assert!(said.code == 2 && said.stderr.contains("a whole number of more than 64 bits"), "{}", said.stderr);
    assert!(said.stderr.contains("siteline.yaml:4:"), "{}", said.stderr);
    space.edit("siteline.yaml", "123456789012345678901234567890", "\"123456789012345678901234567890\"");
    space.executed(&[]);
    assert_eq!(space.output("a", "o"), b"123456789012345678901234567890\n");
    let nul = Space::of_commands("stages: {a: {run: \"echo \\0 >o\", outputs: [o]}}\n").run(&["plan"]);
    assert!(nul.code == 2 && nul.stderr.contains("a text with a NUL"), "{}", nul.stderr);
}

/// Where nothing can be told, nothing breaks.
#[test]
fn a_full_standard_error_is_no_panic() {
    if !std::path::Path::new("/dev/full").exists() {
        return skipped("there is no /dev/full here");
    }
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let space = Space::of_commands("stages: {a: {run: echo x >o, outputs: [o]}}\n");
    let code = |words: &[&str]| {
        let mut command = space.command(words);
        command.stdout(full()).stderr(full()).status().unwrap().code()
    };
    assert!(matches!(code(&["run", "--plain"]), Some(0 | 1)));
    assert_eq!(space.records().len(), 1);
    assert_eq!(code(&["plan"]), Some(1));
    space.write("siteline.yaml", "nonsense: [");
    assert_eq!(code(&["plan"]), Some(2));
}

/// Hints name some of what there is, however much that is.
#[test]
fn hints_are_short_whatever_there_is() {
    let space = Space::of_commands(
        "axes: {a: {from: big.txt}}\nstages: {s: {run: \"echo ${a} >o\", per: [a], outputs: [o]}}\n",
    );
    space.write("big.txt", (0..20_000).map(|n| format!("v{n}\n")).collect::<String>());
    let said = space.run(&["plan", "--only", "s[a=zz]"]);
    assert!(said.code == 2 && said.stderr.contains("and 19950 more"), "{}", said.stderr.len());
    assert!(said.stderr.len() < 2000, "{} bytes", said.stderr.len());
}

/// A parameter may be made of what a group on an axis gives.
#[test]
fn parameters_see_what_a_group_gives() {
    let space = Space::of_commands(
        "axes: {arm: [{name: s, width: 8}]}\nstages: {a: {run: \"echo ${x} >o\", per: [arm], with: {x: \"${width}-${arm}\"}, outputs: [o]}}\n",
    );
    space.executed(&[]);
    assert_eq!(space.output("a[arm=s]", "o"), b"8-s\n");
}
