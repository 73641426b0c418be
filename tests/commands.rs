//! Stages that run commands: what they see, what is taken from them, and what becomes of those that misbehave.

use std::time::{Duration, Instant};

use crate::space::{Said, Space, skipped};

const GOOD: &str = r#"
axes: {site_name: [a, b], seed: [0, 1]}
stages:
  ingest: {run: "cat data/${site_name}.txt >out.txt", per: [site_name], files: ["data/${site_name}.txt"], outputs: [out.txt]}
  fit:
    run: |
      cat inputs/samples/*/out.txt >model/all.txt
      cat params.json >>model/all.txt
      echo "seed ${seed} rate ${rate}" >>model/all.txt
      echo "::metric loss 0.25"
      echo "::progress 1/2 epochs"
    per: [seed]
    needs: {samples: ingest}
    with: {rate: 0.5}
    outputs: [model/]
  report: {run: "cat inputs/models/*/model/all.txt | wc -l >lines", needs: {models: fit}, outputs: [lines]}
"#;

fn good() -> Space {
    let space = Space::of_commands(GOOD);
    space.write("data/a.txt", "a\n");
    space.write("data/b.txt", "b\n");
    space
}

fn names(set: &std::collections::BTreeSet<String>) -> Vec<&str> {
    set.iter().map(String::as_str).collect()
}

#[test]
fn commands_run_with_their_inputs_parameters_and_outputs() {
    let space = good();
    assert_eq!(space.executed(&[]).len(), 5);
    let text = String::from_utf8(space.output("fit[seed=1]", "model/all.txt")).unwrap();
    assert_eq!(text, "a\nb\n{\n  \"rate\": 0.5\n}\nseed 1 rate 0.5\n");
    assert!(space.executed(&[]).is_empty());
    let trace = space.run(&["trace", "fit[seed=0]"]);
    assert!(trace.stdout.contains("metric loss = 0.25"), "{}", trace.stdout);
    assert!(space.run(&["log", "fit[seed=0]"]).stdout.contains("::metric loss 0.25"));
    space.assert_no_process();
}

#[test]
fn what_a_command_depends_on_reruns_it_and_nothing_else_does() {
    let space = good();
    space.executed(&[]);
    // One site's data reaches everything behind it, and not the other site.
    space.write("data/a.txt", "changed\n");
    assert_eq!(names(&space.executed(&[])), ["fit[seed=0]", "fit[seed=1]", "ingest[site_name=a]", "report"]);
    // A parameter that is substituted; the report's lines are counted alike, so nothing else would follow it.
    let why = space.run(&["why", "fit[seed=0]", "--set", "stages.fit.with.rate=0.75"]);
    assert!(why.stdout.contains("parameter with.rate: 0.5 -> 0.75"), "{}", why.stdout);
    // What says where and when it runs changes nothing.
    let settings = ["--set", "stages.fit.timeout=1m", "--set", "stages.fit.resources.memory=1 GB", "-j", "1"];
    assert!(space.executed(&settings).is_empty());
    // A further seed runs alone.
    let more = space.executed(&["--set", "axes.seed=[0, 1, 2]"]);
    assert_eq!(names(&more), ["fit[seed=2]", "report"]);
}

#[test]
fn code_is_followed_through_python_imports() {
    let space =
        Space::of_commands("stages: {fit: {run: python3 scripts/fit.py, code: [scripts/fit.py], outputs: [out]}}\n");
    space.write("scripts/fit.py", "from lib.maths import half\nopen('out', 'w').write(str(half(3)))\n");
    space.write("lib/__init__.py", "");
    space.write("lib/maths.py", "def half(x):\n    return x / 2\n");
    space.write("lib/unused.py", "1\n");
    assert_eq!(space.executed(&[]).len(), 1);
    assert_eq!(space.output("fit", "out"), b"1.5");
    space.write("lib/unused.py", "2\n");
    assert!(space.executed(&[]).is_empty());
    space.write("lib/maths.py", "def half(x):\n    return x // 2\n");
    let why = space.run(&["why", "fit"]);
    assert!(why.stdout.contains("code lib/maths.py: "), "{}", why.stdout);
    assert_eq!(space.executed(&[]).len(), 1);
    assert_eq!(space.output("fit", "out"), b"1");
    // A module that is imported and not found by parsing is not there: what the key does not know cannot be read.
    space.write("scripts/fit.py", "import importlib\nimportlib.import_module('lib.unused')\n");
    let said = space.run(&["run", "--plain"]);
    assert_eq!(said.code, 1);
    assert!(space.run(&["log", "fit"]).stdout.contains("ModuleNotFoundError"));
}

#[test]
fn the_environment_is_what_is_declared() {
    let space = Space::of_commands(
        "stages: {show: {run: \"env | cut -d= -f1 | sort >names; echo $GREETING $PASSED >out\", env: {GREETING: hello, PASSED: }, outputs: [names, out]}}\n",
    );
    let run = |value: &str| {
        let mut command = space.command(&["run", "--plain"]);
        command.env("PASSED", value).env("SECRET", "x");
        crate::space::Said::from(command.output().unwrap())
    };
    assert_eq!(run("one").code, 0);
    let names = String::from_utf8(space.records().values().next().unwrap().to_string().into_bytes()).unwrap();
    assert!(names.contains("names"));
    let mut plan = space.command(&["plan", "--json"]);
    plan.env("PASSED", "one");
    let planned: serde_json::Value = serde_json::from_slice(&plan.output().unwrap().stdout).unwrap();
    assert_eq!(planned["instances"][0]["state"], "cached");
    let objects: Vec<String> = std::fs::read_dir(space.path(".siteline/objects"))
        .unwrap()
        .flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap())
        .map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap())
        .collect();
    assert!(objects.contains(&"hello one\n".to_owned()), "{objects:?}");
    assert!(objects.iter().all(|text| !text.contains("SECRET") && !text.contains("HOME\n")), "{objects:?}");
    // The value that is passed on is part of the key.
    assert_eq!(run("two").executed().len(), 1);
}

/// A stage of each misbehaviour, beside one that behaves.
fn misbehaving(stage: &str) -> (Space, crate::space::Said) {
    let manifest = format!(
        "stages:\n  bad: {{{stage}}}\n  good: {{run: echo fine >out, outputs: [out]}}\n  behind: {{run: cat inputs/bad/out >out, needs: {{bad: bad}}, outputs: [out]}}\n"
    );
    let space = Space::of_commands(&manifest);
    let said = space.run(&["run", "--plain"]);
    assert_eq!(said.code, 1, "{}", said.stderr);
    assert!(said.stderr.contains("done    good"), "the rest does not go on: {}", said.stderr);
    assert!(said.stderr.contains("blocked behind (by bad)"), "{}", said.stderr);
    assert_eq!(said.stderr.matches("FAILED  bad").count(), 1, "{}", said.stderr);
    assert_eq!(space.records().len(), 1, "a failure was kept");
    space.assert_no_process();
    (space, said)
}

#[test]
fn a_stage_that_hangs_is_ended_at_its_timeout() {
    let began = Instant::now();
    let (_, said) = misbehaving("run: \"touch out; sleep 600\", outputs: [out], timeout: 1s");
    assert!(said.stderr.contains("it took longer than 1 s and was ended"), "{}", said.stderr);
    assert!(began.elapsed() < Duration::from_secs(60));
}

#[test]
fn children_that_a_stage_leaves_end_with_it() {
    // Each child says its number once it is at work; the stage ends when both have.
    let child = "sh -c 'echo $$ >>PIDS; exec sleep 600' &";
    let run = format!("{child} setsid {child} while [ $(wc -l <PIDS) -lt 2 ]; do sleep 0.05; done; echo x >out");
    let space = Space::of_commands(&format!("stages:\n  fork:\n    run: >-\n      {run}\n    outputs: [out]\n"));
    let pids = space.path("pids");
    std::fs::write(&pids, "").unwrap();
    space.edit("siteline.yaml", "PIDS", pids.to_str().unwrap());
    let began = Instant::now();
    assert_eq!(space.executed(&[]).len(), 1);
    assert!(began.elapsed() < Duration::from_secs(60), "it waited for the children");
    let children = std::fs::read_to_string(&pids).unwrap();
    assert_eq!(children.lines().count(), 2, "the children never were");
    for pid in children.lines() {
        space.assert_ended(pid);
    }
    space.assert_no_process();
}

#[test]
fn a_stage_that_prints_without_end_fills_no_disk() {
    let (space, said) = misbehaving("run: \"head -c 1000000000 /dev/zero | tr '\\\\0' x; exit 3\", outputs: [out]");
    assert!(said.stderr.contains("it ended with exit code 3"), "{}", said.stderr);
    let log = space.run(&["log", "--path", "bad"]).stdout;
    let size = std::fs::metadata(log.trim()).unwrap().len();
    assert!(size > 60_000_000 && size < 80_000_000, "the log has {size} bytes");
}

#[test]
fn a_hundred_thousand_files_are_an_artifact_like_any_other() {
    let space = Space::of_commands(
        "stages:\n  many: {run: \"cd out; seq 100000 | xargs touch\", outputs: [out/]}\n  count: {run: \"ls inputs/many/out | wc -l >n\", needs: {many: many}, outputs: [n]}\n",
    );
    assert_eq!(space.executed(&[]).len(), 2);
    assert_eq!(String::from_utf8(space.output("count", "n")).unwrap().trim(), "100000");
    assert!(space.executed(&[]).is_empty());
}

#[test]
fn missing_outputs_bad_bytes_and_signals_are_one_line_each() {
    let (_, said) = misbehaving("run: \"true\", outputs: [out]");
    assert!(said.stderr.contains("FAILED  bad: it ended without its output `out`"), "{}", said.stderr);
    let (space, _) = misbehaving("run: \"printf '\\\\377\\\\376 bad\\\\n'; exit 1\", outputs: [out]");
    assert!(space.run(&["log", "bad"]).stdout.contains("bad"), "a log that is no UTF-8 is not shown");
    let (_, said) = misbehaving("run: \"kill -SEGV $$\", outputs: [out]");
    assert!(said.stderr.contains("SIGSEGV"), "{}", said.stderr);
    let (_, said) = misbehaving("run: no-such-program, outputs: [out]");
    assert!(said.stderr.contains("did not find a program"), "{}", said.stderr);
    let (_, said) = misbehaving("run: \"ln -s /etc/passwd out\", outputs: [out]");
    assert!(said.stderr.contains("its output `out` is a link"), "{}", said.stderr);
    let (_, said) = misbehaving("run: \"mkdir -p out; ln -s /etc/passwd out/x\", outputs: [out/]");
    assert!(said.stderr.contains("only plain files and folders"), "{}", said.stderr);
    let (_, said) = misbehaving("run: \"touch 'out/a\\nb'\", outputs: [out/]");
    assert!(said.stderr.contains("control characters") && !said.stderr.contains("a\nb"), "{}", said.stderr);
}

#[test]
fn a_stage_that_writes_to_its_inputs_is_noticed() {
    let base = "stages:\n  one: {run: echo one >out, outputs: [out]}\n";
    for write in
        ["echo more >>inputs/one/out", "rm -f inputs/one/out; echo other >inputs/one/out", "touch inputs/one/new"]
    {
        // So many that they share a folder of links.
        let readers = ["two", "three", "four", "five"].map(|name| {
            let run = if name == "two" {
                format!("{write}; echo x >out")
            } else {
                format!("sleep 1; cat inputs/one/* >out; echo {name} >>out")
            };
            format!("  {name}: {{run: \"{run}\", needs: {{one: one}}, outputs: [out]}}\n")
        });
        let space = Space::of_commands(&format!("{base}{}", readers.concat()));
        let said = space.run(&["run", "--plain", "-j", "1"]);
        // Either the system refuses it, or it is noticed; in no case does the other reader get anything but `one`. (Its output is not
        // these very bytes: taking them in would mend the object before it is looked at.)
        assert!(said.code == 1 || write.starts_with("rm"), "{write}: {}", said.stderr);
        let again = space.run(&["run", "--plain", "--only", "three"]);
        assert_eq!(again.code, 0, "{write}: {}", again.stderr);
        assert_eq!(space.output("three", "out"), b"one\nthree\n", "{write}");
    }
}

#[test]
fn retries_follow_the_manifest() {
    let space = Space::of_commands(
        "stages: {flaky: {run: \"echo try >>${log}; test $(wc -l <${log}) -ge 3; echo x >out\", with: {log: LOG}, outputs: [out], retry: {attempts: 3, backoff: 100ms}}}\n",
    );
    space.edit("siteline.yaml", "LOG", space.path("tries").to_str().unwrap());
    let said = space.run(&["run", "--plain"]);
    assert_eq!(said.code, 0, "{}", said.stderr);
    assert_eq!(said.stderr.matches("again   flaky").count(), 2, "{}", said.stderr);
    assert_eq!(space.read("tries").lines().count(), 3);
    // Each wait is twice as long as the one before.
    let space =
        Space::of_commands("stages: {bad: {run: exit 1, outputs: [out], retry: {attempts: 4, backoff: 100ms}}}\n");
    let began = std::time::Instant::now();
    let said = space.run(&["run", "--json"]);
    assert!(said.code == 1 && began.elapsed() >= std::time::Duration::from_millis(700), "{}", said.stdout);
    let events = said.stdout.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let waits: Vec<f64> = events.filter_map(|event| event["in_seconds"].as_f64()).collect();
    assert_eq!(waits, [0.1, 0.2, 0.4]);
}

/// What is for people appears in the results folder, whoever made it.
#[test]
fn results_of_commands_appear_in_the_results_folder() {
    let space = Space::of_commands(
        "axes: {n: [1, 2]}\nstages:\n  fit: {run: \"echo ${n} >out; mkdir -p plots; echo ${n} >plots/p.txt; echo x >rest\", per: [n], outputs: [out, plots/, rest], results: [out, plots/]}\n  sum: {run: \"cat inputs/f/*/out >sum\", needs: {f: fit}, outputs: [sum], results: [sum]}\n",
    );
    let said = space.run(&["run", "--plain"]);
    assert!(said.code == 0 && said.stdout.contains("results/study"), "{}{}", said.stdout, said.stderr);
    assert_eq!(space.read("results/study/sum/sum"), "1\n2\n");
    assert_eq!(space.read("results/study/fit/n=2/plots/p.txt"), "2\n");
    assert!(!space.path("results/study/fit/n=2/rest").exists());
    // Whether people look at a file is no part of any key.
    space.edit("siteline.yaml", "results: [out, plots/]", "results: [rest]");
    assert!(space.executed(&[]).is_empty());
    assert!(space.path("results/study/fit/n=2/rest").exists());
}

/// A failure in the middle of a pipe is one; `echo` is that of a plain shell with a pipe and without.
#[test]
fn a_pipe_fails_where_any_part_of_it_does() {
    if !std::path::Path::new("/bin/bash").exists() {
        return crate::space::skipped("there is no bash to look at all of a pipe");
    }
    let space = Space::of_commands(
        "stages:\n  bad: {run: \"cat missing | tee out\", outputs: [out]}\n  good: {run: 'echo \"a\\tb\" | cat >out; false || echo \"a\\tb\" >>out', outputs: [out]}\n",
    );
    let said = space.run(&["run", "--plain"]);
    assert!(said.code == 1 && said.stderr.contains("FAILED  bad"), "{}", said.stderr);
    assert_eq!(space.output("good", "out"), b"a\tb\na\tb\n");
}

/// The log is that of the last execution, and what failed is remembered.
#[test]
fn logs_and_histories_are_of_the_last_execution() {
    let space = Space::of_commands("stages: {b: {run: \"echo LOUD; exit 3\", outputs: [o]}}\n");
    assert_eq!(space.run(&["run", "--plain"]).code, 1);
    assert!(space.run(&["log", "b"]).stdout.contains("LOUD"));
    space.edit("siteline.yaml", "echo LOUD; exit 3", "exit 7");
    assert_eq!(space.run(&["run", "--plain"]).code, 1);
    let log = space.run(&["log", "b"]).stdout;
    assert!(log.contains("printed nothing (failed in") && log.contains("exit code 7"), "{log}");
    let history = space.run(&["history", "b"]).stdout;
    assert!(history.matches("failed in run").count() == 2 && history.contains("exit code 3"), "{history}");
    space.edit("siteline.yaml", "exit 7", "echo ::metric loss nan; echo x >o");
    let said = space.run(&["run", "--plain"]);
    assert!(said.code == 0 && said.stderr.contains("`::metric loss nan` says nothing"), "{}", said.stderr);
}

#[test]
fn tokens_memory_and_gpus_are_never_given_twice() {
    let stage = |name: &str, resources: &str| {
        let run = "echo + >>LOG; sleep 0.2; echo - >>LOG; echo ${n} $CUDA_VISIBLE_DEVICES >out";
        format!("  {name}: {{run: \"{run}\", per: [n], outputs: [out], resources: {resources}}}\n")
    };
    for resources in ["{tokens: {licence: 1}}", "{memory: 3 GB}", "{gpu: 1}"] {
        let manifest = format!("tokens: {{licence: 1}}\naxes: {{n: [1, 2, 3]}}\nstages:\n{}", stage("use", resources));
        let space = Space::of_commands(&manifest);
        let log = space.path("at-work");
        space.edit("siteline.yaml", "LOG", log.to_str().unwrap());
        let said = space.run(&["run", "--plain", "-j", "4", "--memory", "4 GB", "--gpus", "7"]);
        assert_eq!(said.code, 0, "{}", said.stderr);
        assert_eq!(space.read("at-work").replace('\n', ""), "+-+-+-", "{resources}: two at once");
        let gpu = String::from_utf8(space.output("use[n=1]", "out")).unwrap();
        assert_eq!(gpu.trim(), if resources.contains("gpu") { "1 7" } else { "1" });
    }
}

#[test]
fn a_sandbox_shows_what_is_declared_and_nothing_else() {
    let space = Space::of_commands(
        "stages:\n  good: {run: cat data/a.txt >out, files: [data/a.txt], outputs: [out]}\n  reads: {run: cat ROOT/data/b.txt >out, outputs: [out]}\n  writes: {run: \"echo x >ROOT/stray; echo x >out\", outputs: [out]}\n",
    );
    space.edit("siteline.yaml", "ROOT", space.root().to_str().unwrap());
    space.write("data/a.txt", "a\n");
    space.write("data/b.txt", "b\n");
    let said = space.run(&["run", "--plain", "--sandbox"]);
    if said.stderr.contains("bubblewrap") {
        assert_eq!(said.code, 1);
        assert!(said.stderr.contains("hint:"), "{}", said.stderr);
        return skipped("there is no bubblewrap here that may make a sandbox");
    }
    assert!(said.stderr.contains("done    good") && said.stderr.contains("FAILED  reads"), "{}", said.stderr);
    assert!(said.stderr.contains("FAILED  writes"), "a write that went nowhere was not noticed: {}", said.stderr);
    assert!(space.run(&["log", "writes"]).stdout.contains("Read-only file system"), "the log does not say why");
    assert!(!space.path("stray").exists(), "a command wrote outside its directory");
    // What it reads is the store's own.
    let space = Space::of_commands(
        "stages:\n  a: {run: echo good >out, outputs: [out]}\n  bad: {run: \"chmod u+w inputs/a/out; echo evil >inputs/a/out; echo x >out\", needs: {a: a}, outputs: [out]}\n",
    );
    let said = space.run(&["run", "--plain", "--sandbox"]);
    assert!(said.stderr.contains("done    a") && said.stderr.contains("FAILED  bad"), "{}", said.stderr);
    assert_eq!(space.output("a", "out"), b"good\n");
    assert_eq!(space.run(&["verify"]).code, 0, "a command in a sandbox wrote to an object");
}

/// One that writes to what it reads takes nobody else's result with it.
#[test]
fn a_command_that_writes_to_its_inputs_harms_its_neighbours_results_alone() {
    let space = Space::of_commands(
        "axes: {i: [0, 1, 2, 3]}\nstages:\n  a: {run: echo good >out, outputs: [out]}\n  bad: {run: \"chmod u+w inputs/a/out; echo evil >inputs/a/out; echo x >out\", needs: {a: a}, outputs: [out]}\n  innocent: {run: \"echo ${i} >out; sleep 0.2\", per: [i], outputs: [out]}\n",
    );
    let said = space.run(&["run", "--plain", "-j", "4"]);
    assert_eq!(said.code, 1, "{}", said.stderr);
    assert!(said.stderr.contains("FAILED  bad: its input `out` was written to while it ran"), "{}", said.stderr);
    for i in 0..4 {
        assert!(said.stderr.contains(&format!("done    innocent[i={i}]")), "{}", said.stderr);
    }
    assert!(space.executed(&["--except", "bad"]).iter().all(|name| name == "a"), "a neighbour's result was not kept");
}

#[test]
fn what_is_read_and_what_is_written_must_not_be_one_file() {
    for (files, outputs) in [("[o]", "[o]"), ("[d/o]", "[d/]"), ("[\"d/*\"]", "[d/o]")] {
        let space = Space::of_commands(&format!(
            "stages: {{a: {{run: \"cat o d/o >t; cat t >o\", files: {files}, outputs: {outputs}}}}}\n"
        ));
        space.write("o", "1\n");
        space.write("d/o", "1\n");
        let said = space.run(&["run"]);
        assert_eq!(said.code, 2, "{files} {outputs}: {}", said.stderr);
        assert!(said.stderr.contains("written by the same stage"), "{}", said.stderr);
    }
}

/// The settings went back: what is shown belongs to the result, not to what ran last.
#[test]
fn the_log_is_that_of_the_result() {
    let space = Space::of_commands("stages: {a: {run: echo version ONE; echo 1 >out, outputs: [out]}}\n");
    space.executed(&[]);
    space.edit("siteline.yaml", "ONE", "TWO");
    space.executed(&[]);
    assert!(space.run(&["log", "a"]).stdout.contains("version TWO"));
    space.edit("siteline.yaml", "TWO", "ONE");
    assert!(space.executed(&[]).is_empty());
    assert!(space.run(&["log", "a"]).stdout.contains("version ONE"));
    space.edit("siteline.yaml", "ONE;", "THREE; false;");
    space.run(&["run"]);
    assert!(space.run(&["log", "a"]).stdout.contains("version THREE"));
}

#[test]
fn the_projects_own_files_are_never_written_to() {
    let space = Space::of_commands(
        "stages: {fit: {run: \"cat src/fit.sh params.json >out\", code: [src/fit.sh], files: [\"src/*\", params.json], with: {a: 1}, outputs: [out]}}\n",
    );
    space.write("src/fit.sh", "echo fit\n");
    space.write("params.json", "the project's own\n");
    assert_eq!(space.executed(&[]).len(), 1);
    assert_eq!(space.read("src/fit.sh"), "echo fit\n");
    assert_eq!(space.read("params.json"), "the project's own\n");
    assert_eq!(space.output("fit", "out"), b"echo fit\n{\n  \"a\": 1\n}\n");
}

#[test]
fn a_group_may_mention_another_axis() {
    let space = Space::of_commands(
        "axes: {arm: [{name: wide, tag: \"w-${seed}\"}], seed: [0, 1]}\nstages: {fit: {run: \"echo ${tag} >out\", per: [arm, seed], outputs: [out]}}\n",
    );
    assert_eq!(space.executed(&[]).len(), 2);
    assert_eq!(space.output("fit[arm=wide,seed=1]", "out"), b"w-1\n");
}

#[test]
fn a_command_sees_nothing_of_the_one_before_it() {
    let space = Space::of_commands(
        "stages:\n  a: {run: \"echo a >out\", outputs: [out]}\n  b: {run: \"mkdir inputs/own; chmod 000 inputs/own; echo b >out\", needs: {first: a}, outputs: [out]}\n  c: {run: \"ls inputs >out\", needs: {second: b}, outputs: [out]}\n  d: {run: \"ls >out; cat inputs/third/out >>out\", needs: {third: c}, outputs: [out]}\n",
    );
    let said = space.run(&["run", "--plain", "-j", "1"]);
    assert_eq!(said.code, 0, "{}", said.stderr);
    assert_eq!(space.output("c", "out"), b"second\n");
    assert_eq!(space.output("d", "out"), b"inputs\nout\nsecond\n");
}

#[test]
fn where_inputs_lie_is_part_of_the_key() {
    let manifest = |per: &str, filter: &str| {
        format!(
            "axes: {{seed: [0]}}\nstages:\n  a: {{run: echo a >out, per: [seed], outputs: [out]}}\n  b: {{run: \"cd inputs; find -L . -type f >../out\", per: [{per}], needs: {{x: {filter}}}, outputs: [out]}}\n"
        )
    };
    let space = Space::of_commands(&manifest("", "a"));
    space.executed(&[]);
    assert_eq!(space.output("b", "out"), b"./x/seed=0/out\n");
    space.write("siteline.yaml", format!("siteline: 1\nname: study\n{}", manifest("seed", "a")));
    space.executed(&[]);
    assert_eq!(space.output("b[seed=0]", "out"), b"./x/out\n");
}

#[test]
fn a_child_that_prints_without_pause_keeps_nobody() {
    let space = Space::of_commands("stages: {left: {run: \"yes & echo x >out\", outputs: [out]}}\n");
    let began = Instant::now();
    assert_eq!(space.executed(&[]).len(), 1);
    assert!(began.elapsed() < Duration::from_secs(30), "it waited for the child");
    space.assert_no_process();
}

/// Two runs on one machine, each with a store of its own, share a GPU one at a time.
#[test]
fn a_gpu_is_leased_between_runs() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let project = || {
        let space = Space::of_commands(
            "axes: {n: [1, 2]}\nstages:\n  use: {run: \"echo + >>LOG; sleep 0.5; echo - >>LOG; echo ${n} $CUDA_VISIBLE_DEVICES >out\", per: [n], outputs: [out], resources: {gpu: 1}}\n",
        );
        let text = space.read("siteline.yaml").replace("LOG", log.path().to_str().unwrap());
        space.write("siteline.yaml", text);
        space
    };
    let spaces = [project(), project()];
    let start = |space: &Space| {
        let mut command = space.command(&["run", "--plain", "-j", "4", "--gpus", "61"]);
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap()
    };
    let said: Vec<Said> =
        spaces.each_ref().map(start).into_iter().map(|child| Said::from(child.wait_with_output().unwrap())).collect();
    assert!(said.iter().all(|said| said.code == 0), "{}\n{}", said[0].stderr, said[1].stderr);
    assert_eq!(std::fs::read_to_string(log.path()).unwrap().replace('\n', ""), "+-".repeat(4));
    assert!(said.iter().any(|said| said.stderr.contains("another run has the GPU")), "{}", said[0].stderr);
    assert_eq!(spaces[0].output("use[n=1]", "out"), b"1 61\n");
}
