//! What people look at: histories, differences, checks, events, manual pages.

use crate::space::Space;

pub const SWEEP: &str = r#"
axes: {seed: [0, 1]}
stages:
  fit: {run: "echo ${rate} ${seed} >out; echo ::metric loss ${rate}", per: [seed], with: {rate: 0.5}, outputs: [out]}
  all: {run: "cat inputs/fits/*/out >out", needs: {fits: fit}, outputs: [out]}
"#;

#[test]
fn history_and_differences_tell_what_changed() {
    let space = Space::of_commands(SWEEP);
    space.executed(&[]);
    space.edit("siteline.yaml", "rate: 0.5", "rate: 0.25");
    space.executed(&[]);
    let history = space.run(&["history", "fit[seed=1]"]);
    assert_eq!(history.stdout.matches("took").count(), 2, "{}", history.stdout);
    assert!(history.stdout.contains("parameter with.rate: 0.5 -> 0.25"), "{}", history.stdout);
    assert!(history.stdout.contains("loss = 0.25") && history.stdout.contains("loss = 0.5"), "{}", history.stdout);
    let diff = space.run(&["diff"]);
    assert!(diff.stdout.contains("~ fit[seed=0]  executed -> executed"), "{}", diff.stdout);
    assert!(diff.stdout.contains("metric loss: 0.5 -> 0.25 (-0.2500)"), "{}", diff.stdout);
    let said = space.run(&["run", "--plain", "--set", "axes.seed=[1, 2]"]);
    assert_eq!(said.code, 0, "{}", said.stderr);
    let diff = space.run(&["diff"]);
    assert!(
        diff.stdout.contains("- fit[seed=0]") && diff.stdout.contains("+ fit[seed=2]  executed"),
        "{}",
        diff.stdout
    );
    assert_eq!(space.run(&["diff", "no-such-run"]).code, 2);
    // What was changed on the command line is kept with the run.
    let runs = std::fs::read_dir(space.path(".siteline/runs")).unwrap();
    let requests: Vec<String> =
        runs.map(|run| std::fs::read_to_string(run.unwrap().path().join("request.json")).unwrap()).collect();
    assert!(requests.iter().any(|text| text.contains("axes.seed=[1, 2]")), "{requests:?}");
}

#[test]
fn what_printed_nothing_is_told_of_too() {
    let space = Space::of_commands(
        "stages:\n  quiet: {run: \"echo x >out\", outputs: [out]}\n  bad: {run: \"exit 3\", outputs: [out]}\n",
    );
    assert!(space.run(&["log", "quiet"]).stderr.contains("never ran"));
    assert_eq!(space.run(&["run", "--plain"]).code, 1);
    assert!(space.run(&["log", "quiet"]).stdout.contains("printed nothing (executed in"));
    let bad = space.run(&["log", "bad"]).stdout;
    assert!(bad.contains("exit code 3"), "{bad}");
}

/// A command's time is its own: what it waited for its slot is not part of it.
#[test]
fn waiting_for_a_slot_is_not_running() {
    let space = Space::of_commands(
        "axes: {n: [1, 2, 3]}\nstages:\n  work: {run: \"sleep 0.4; echo ${n} >out\", per: [n], outputs: [out]}\n",
    );
    let said = space.run(&["run", "--plain", "-j", "1"]);
    let mut running = 0;
    for line in said.stderr.lines() {
        running += i32::from(line.contains("start   work")) - i32::from(line.contains("done    work"));
    }
    assert_eq!(running, 0, "{}", said.stderr);
    let starts: Vec<usize> =
        said.stderr.lines().enumerate().filter(|(_, l)| l.contains("start   work")).map(|(at, _)| at).collect();
    assert_eq!(starts.len(), 3, "{}", said.stderr);
    for line in space.run(&["history", "work[n=3]"]).stdout.lines().filter(|line| line.contains("took")) {
        let took: f64 = line.split("took ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        assert!(took < 0.8 * 3.0 * 0.4, "{line}");
    }
}

#[test]
fn only_except_and_from_choose_what_runs() {
    let space = Space::of_commands(SWEEP);
    let run = |arguments: &[&str]| space.executed(arguments).into_iter().collect::<Vec<_>>();
    assert_eq!(run(&["--only", "fit[seed=0]"]), ["fit[seed=0]"]);
    assert_eq!(run(&["--except", "all"]), ["fit[seed=1]"]);
    assert_eq!(run(&[]), ["all"]);
    // Everything behind it is looked at again; what came out as before stops there.
    assert_eq!(run(&["--from", "fit[seed=0]"]), ["all", "fit[seed=0]"]);
    assert_eq!(run(&["--force"]), ["all", "fit[seed=0]", "fit[seed=1]"]);
    let nothing = space.run(&["plan", "--only", "fit", "--except", "fit"]);
    assert!(nothing.code != 0 && nothing.stderr.contains("nothing is left to run"), "{}", nothing.stderr);
    let wrong = space.run(&["plan", "--only", "fit[sed=0]"]);
    assert!(wrong.code == 2 && wrong.stderr.contains("did you mean `seed`?"), "{}", wrong.stderr);
    let wrong = space.run(&["plan", "--only", "fit[seed=7]"]);
    assert!(wrong.stderr.contains("the values of `seed` are: `0`, `1`"), "{}", wrong.stderr);
}

/// Every cell that is not there says why, and so does one that is half there.
#[test]
fn every_blank_cell_has_a_cause() {
    let space = Space::of_commands(
        "axes: {method: [a, b, c, d], held_out: [x, y], seed: [0, 1]}\nexclude: [\"method == d and held_out == y\"]\nstages:\n  train: {run: \"case ${method}${held_out}${seed} in bx*|ay1) exit 1;; cy*) sleep 60;; esac; echo >out\", per: [method, held_out, seed], outputs: [out]}\n  evaluate: {run: \"case ${method}${held_out} in by) exit 1;; esac; echo ::metric dice 0.5; echo >out\", per: [method, held_out, seed], needs: {model: train}, outputs: [out]}\n  table: {run: echo >out, needs: {scores: evaluate}, outputs: [out]}\n",
    );
    // A table is what makes scores of metrics.
    let manifest = space.read("siteline.yaml");
    space.write(
        "siteline.yaml",
        manifest
            .replace(
                "  table: {run: echo >out, needs: {scores: evaluate}, outputs: [out]}",
                "  table: {uses: table, needs: {scores: evaluate}}",
            )
            .replace("::metric dice 0.5; echo >out\"", "::metric dice 0.5; echo >scores.parquet\"")
            .replace("needs: {model: train}, outputs: [out]", "needs: {model: train}, outputs: [scores.parquet]"),
    );
    let said = space.run(&["run", "--plain", "-j", "3", "--except", "train[method=c]"]);
    assert_eq!(said.code, 1, "{}", said.stderr);
    let status = space.run(&["status"]);
    let row = |method: &str| {
        let line = status
            .stdout
            .lines()
            .find(|line| line.trim_start().starts_with(&format!("{method} ")))
            .unwrap_or_else(|| panic!("no {method} in {}", status.stdout));
        line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(row("a"), "0.500 0.500 (1/2, blocked)");
    assert_eq!(row("b"), "blocked failed");
    assert_eq!(row("c"), "waiting waiting");
    assert_eq!(row("d"), "0.500 excluded");
    // The run's own table knows what it did not choose.
    assert!(said.stdout.contains("not selected"), "{}", said.stdout);
    assert!(said.stdout.contains("siteline log 'train[method=b,held_out=x,seed=0]'"), "{}", said.stdout);
}

#[test]
fn what_a_run_was_asked_for_is_kept_and_its_advice_names_the_project() {
    let space =
        Space::of_commands("stages: {fit: {run: exit 1, outputs: [out]}, other: {run: echo >out, outputs: [out]}}\n");
    std::fs::rename(space.path("siteline.yaml"), space.path("my study.yaml")).unwrap();
    let said = space.run(&["run", "--plain", "-m", "my study.yaml", "--only", "fit", "--except", "other"]);
    assert!(said.stdout.contains("siteline log -m 'my study.yaml' 'fit'"), "{}", said.stdout);
    let run = std::fs::read_dir(space.path(".siteline/runs")).unwrap().next().unwrap().unwrap().path();
    let request: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(run.join("request.json")).unwrap()).unwrap();
    assert_eq!(request["chosen"], serde_json::json!({"only": ["fit"], "except": ["other"]}));
    let earlier = run;
    space.run(&["run", "--plain", "-m", "my study.yaml", "--from", "fit", "--force"]);
    let later: Vec<_> = std::fs::read_dir(space.path(".siteline/runs"))
        .unwrap()
        .map(|run| run.unwrap().path())
        .filter(|run| *run != earlier)
        .collect();
    let [later] = later.as_slice() else { panic!("{later:?}") };
    let request: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(later.join("request.json")).unwrap()).unwrap();
    assert_eq!(request["chosen"], serde_json::json!({"from": ["fit"], "force": ["*"]}));
}

#[test]
fn colours_are_for_those_who_want_them() {
    let space = Space::of_commands("stages: {fit: {run: exit 1, output: [out]}}\n");
    let on_a_terminal = |variables: &str| {
        let words = format!("{variables} '{}' plan", crate::space::siteline().display());
        let mut script = std::process::Command::new("script");
        script
            .args(["-qec", &words, "/dev/null"])
            .current_dir(space.root())
            .env("TERM", "xterm")
            .env_remove("NO_COLOR");
        script.output().ok().map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (Some(plain), Some(coloured)) = (on_a_terminal("NO_COLOR=1"), on_a_terminal("")) else {
        return crate::space::skipped("there is no `script` to make a terminal with");
    };
    assert!(plain.contains("output") && !plain.contains('\u{1b}'), "{plain:?}");
    assert!(coloured.contains("\u{1b}["), "{coloured:?}");
}

/// What an editor completes and explains: the kinds, and every parameter of each.
#[test]
fn editors_know_every_key() {
    let space = Space::of_commands("");
    let schema: serde_json::Value = serde_json::from_str(&space.run(&["schema"]).stdout).unwrap();
    let described = |value: &serde_json::Value| {
        let target = value["$ref"].as_str().and_then(|at| schema.pointer(at.strip_prefix('#').unwrap()));
        value.get("description").is_some() || target.is_some_and(|target| target.get("description").is_some())
    };
    fn properties<'v>(value: &'v serde_json::Value, found: &mut Vec<(&'v String, &'v serde_json::Value)>) {
        if let Some(map) = value.as_object() {
            for (key, value) in map {
                if let (true, Some(map)) = (key == "properties", value.as_object()) {
                    found.extend(map.iter().filter(|(_, of)| of.get("const").is_none()));
                }
                properties(value, found);
            }
        }
        value.as_array().into_iter().flatten().for_each(|item| properties(item, found));
    }
    let mut found = Vec::new();
    properties(&schema, &mut found);
    assert!(found.len() > 150, "{} properties", found.len());
    let silent: Vec<_> =
        found.iter().filter(|(name, of)| *name != "with" && !described(of)).map(|(name, _)| name).collect();
    assert!(silent.is_empty(), "no description of {silent:?}");
    let manifest =
        |train: serde_json::Value| serde_json::json!({"siteline": 1, "name": "x", "stages": {"train": train}});
    crate::json::fit(
        &space,
        &schema,
        &[manifest(serde_json::json!({"uses": "train", "with": {"epochs": 3, "mcdrl": {"alpha": 0.5}}}))],
    );
    let rules = schema["$defs"]["Stage"]["allOf"].as_array().unwrap();
    let train = rules.iter().find(|rule| rule["if"]["properties"]["uses"]["const"] == "train").unwrap();
    assert_eq!(train["then"]["properties"]["with"]["additionalProperties"], false);
    assert!(
        schema["$defs"]["Stage"]["properties"]["uses"]["anyOf"][0]["enum"]
            .as_array()
            .unwrap()
            .contains(&"train".into())
    );
}

#[test]
fn a_manifest_is_checked_for_what_it_never_uses() {
    let space = Space::of_commands(
        "axes: {seed: [0, 1], method: [x]}\ntokens: {licence: 1}\nstages:\n  fit: {run: echo >out, per: [seed], outputs: [out], when: seed == 1, overrides: [{when: seed == 0, with: {a: 1}}]}\n",
    );
    let said = space.run(&["check-manifest"]);
    assert_eq!(said.code, 0, "{}", said.stderr);
    for warning in [
        "no stage is repeated per `method`",
        "no stage asks for the token `licence`",
        "`seed == 0` holds at no point of the stage `fit`",
    ] {
        assert!(said.stderr.contains(warning), "{}", said.stderr);
    }
    assert!(said.stderr.contains("warning") && said.stderr.contains("siteline.yaml:3:"), "{}", said.stderr);
    assert_eq!(space.run(&["check-manifest", "--strict"]).code, 1);
    // Names that YAML takes for numbers.
    let space = Space::of_commands(
        "axes: {a: [001, 1.10, 2], lr: [1e-3, 0.5]}\nstages: {fit: {run: echo >out, per: [a, lr], outputs: [out]}}\n",
    );
    let said = space.run(&["check-manifest"]).stderr;
    assert!(said.contains("`001` on the axis `a` is called `1`") && said.contains("`\"1.10\"`"), "{said}");
    assert!(said.matches("is called").count() == 2, "{said}");
    // Points that are added and taken away again.
    let space = Space::of_commands(
        "axes: {a: [1, 2], b: [1, 2]}\ninclude: [{a: 3, b: 1}, {a: 4, b: 2}]\nexclude: [\"a == 4\"]\nstages: {fit: {run: echo >out, per: [a, b], outputs: [out]}}\n",
    );
    let said = space.run(&["check-manifest"]).stderr;
    assert_eq!(said.matches("no stage has an instance at this point").count(), 1, "{said}");
    // Programs and data that a command names and does not declare.
    let space = Space::of_commands("stages: {}\n");
    assert!(space.run(&["check-manifest"]).stderr.contains("there are no stages"));
    let (absolute, root) = (space.path("data/c.csv"), space.root().display());
    for name in ["scripts/fit.py", "scripts/deep/run.py", "data/a.csv", "data/b.csv", "data/c.csv", "data/d.csv"] {
        space.write(name, "x");
    }
    let run = format!(
        "python3 scripts/fit.py scripts/deep/run.py --first=data/a.csv ./data/b.csv data/d.csv {} out",
        absolute.display()
    );
    let manifest = format!(
        "siteline: 1\nname: study\nstages: {{fit: {{run: \"{run}\", code: [\"scripts/*.py\"], files: [\"data/a.csv\"], outputs: [out]}}}}\n"
    );
    space.write("siteline.yaml", manifest);
    let said = space.run(&["check-manifest"]).stderr;
    assert!(said.contains("`data/d.csv` is a file") && said.contains("`scripts/deep/run.py` is a file"), "{said}");
    assert!(said.contains("`./data/b.csv` is a file of the project that `fit` does not declare"), "{said}");
    assert!(said.contains(&format!("`{root}/data/c.csv` is a file")) && said.contains("not noticed"), "{said}");
    assert!(!said.contains("`scripts/fit.py` is") && !said.contains("data/a.csv` is"), "{said}");
}

#[test]
fn the_doctor_looks_at_everything() {
    let space = Space::of_commands(SWEEP);
    space.executed(&[]);
    let said = space.run(&["doctor"]);
    for what in ["worker", "libtorch", "gpu", "manifest", "store", "records", "disk", "sandbox"] {
        assert!(said.stdout.contains(what), "{}", said.stdout);
    }
    // Whose leases there are: of a process that lives, and of one that is gone.
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap();
    let lease = |key: &str, host: &str, boot: &str, pid: u32| {
        let owner = serde_json::json!({"host": host, "boot": boot, "pid": pid, "started": 1});
        space.write(&format!(".siteline/leases/{}", key.repeat(64)), owner.to_string());
    };
    lease("a", "elsewhere", "another", 77);
    lease("b", "here", &format!("{} {}", boot.trim(), namespace.display()), 4_000_000);
    let said = space.run(&["doctor"]).stdout;
    assert!(said.contains("aaaaaaaaaaaa is held by process 77 on elsewhere"), "{said}");
    assert!(said.contains("1 lease of processes that are gone"), "{said}");
    let said = space.run(&["doctor", "--worker", "/no/such/worker"]);
    assert!(said.code == 1 && said.stdout.contains("BAD   worker"), "{}", said.stdout);
}

#[test]
fn there_is_a_manual_page_for_every_verb() {
    let space = Space::of_commands(SWEEP);
    assert_eq!(space.run(&["man", "man1"]).code, 0);
    for page in ["siteline.1", "siteline-run.1", "siteline-diff.1", "siteline-doctor.1"] {
        assert!(space.read(&format!("man1/{page}")).contains(".TH"), "{page}");
    }
}

#[test]
fn the_sweep_has_groups_files_includes_and_whens() {
    let space = Space::of_commands(
        r#"
axes:
  size: [{name: small, width: 8, rate: 0.5}, {name: wide, width: 64, rate: 0.25}]
  method: {from: methods.txt}
  seed: [0, 1]
include: [{method: b, seed: 7}]
exclude: [method == c and seed == 1]
stages:
  fit:
    run: "echo ${size} ${width} ${rate} ${method} ${seed} >out"
    per: [size, method, seed]
    when: size == wide or seed == 0
    outputs: [out]
"#,
    );
    space.write("methods.txt", "a\nb   # the second\n\nc\n");
    let executed = space.executed(&[]);
    let points: Vec<&str> = executed.iter().map(|name| name.trim_start_matches("fit[")).collect();
    let expected = [
        "size=small,method=a,seed=0]",
        "size=small,method=b,seed=0]",
        "size=small,method=c,seed=0]",
        "size=wide,method=a,seed=0]",
        "size=wide,method=a,seed=1]",
        "size=wide,method=b,seed=0]",
        "size=wide,method=b,seed=1]",
        "size=wide,method=b,seed=7]",
        "size=wide,method=c,seed=0]",
    ];
    assert_eq!(points, expected);
    assert_eq!(space.output("fit[size=wide,method=b,seed=7]", "out"), b"wide 64 0.25 b 7\n");
    // The same list in the other forms of files is the same sweep; groups may be in a file as well.
    space.write("methods.yaml", "# three\n- a\n- b\n- c\n");
    space.write("methods.json", "[\"a\", \"b\", \"c\"]");
    space.write("sizes.yaml", "- {name: small, width: 8, rate: 0.5}\n- {name: wide, width: 64, rate: 0.25}\n");
    for (was, is) in [
        ("methods.txt", "methods.yaml"),
        ("methods.yaml", "methods.json"),
        ("[{name: small, width: 8, rate: 0.5}, {name: wide, width: 64, rate: 0.25}]", "{from: sizes.yaml}"),
    ] {
        space.edit("siteline.yaml", was, is);
        assert!(space.executed(&[]).is_empty(), "{is} is not the same list");
    }
    for (content, problem) in [("{a: 1}", "is no list of"), ("[a, [b]]", "is no list of"), ("[a", "methods.json: ")] {
        space.write("methods.json", content);
        let said = space.run(&["plan"]);
        assert_eq!(said.code, 2, "{content}");
        assert!(
            said.stderr.contains(problem) && said.stderr.contains("siteline.yaml:6:"),
            "{content}: {}",
            said.stderr
        );
    }
}

#[test]
fn an_absurd_sweep_is_refused_with_its_size() {
    let values: Vec<String> = (0..3000).map(|n| n.to_string()).collect();
    let list = values.join(", ");
    let space = Space::of_commands(&format!(
        "axes: {{a: [{list}], b: [{list}], c: [{list}]}}\nstages: {{fit: {{run: echo >out, per: [a, b, c], outputs: [out]}}}}\n"
    ));
    let said = space.run(&["plan"]);
    assert_eq!(said.code, 2);
    assert!(
        said.stderr.contains("would have 27000000000 instances (3000 of a × 3000 of b × 3000 of c)"),
        "{}",
        said.stderr
    );
    // No stage is, and all together are.
    let list = values[..1400].join(", ");
    let stages: String =
        ["x", "y", "z"].map(|name| format!("  {name}: {{run: echo >out, per: [a, b], outputs: [out]}}\n")).concat();
    let space = Space::of_commands(&format!("axes: {{a: [{list}], b: [{list}]}}\nstages:\n{stages}"));
    let said = space.run(&["plan"]);
    assert!(said.code == 2 && said.stderr.contains("would have 5880000 instances together"), "{:.600}", said.stderr);
    let bomb = "a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b, *b, *b, *b]\nd: &d [*c, *c, *c, *c, *c, *c, *c, *c]\ne: &e [*d, *d, *d, *d, *d, *d, *d]\nf: &f [*e, *e, *e, *e, *e, *e, *e]\ng: [*f, *f, *f, *f, *f, *f, *f, *f]\n";
    // Nothing else is wrong with it: a command's parameters may be anything.
    let manifest = |parameters: &str| {
        let inner: String = parameters.lines().map(|line| format!("      {line}\n")).collect();
        format!("stages:\n  fit:\n    run: echo >out\n    outputs: [out]\n    with:\n{inner}")
    };
    assert_eq!(Space::of_commands(&manifest("a: &a [x, x]\ng: [*a, *a]\n")).run(&["plan"]).code, 0);
    let space = Space::of_commands(&manifest(bomb));
    // In an address space of 1 GB: it would take tens.
    let words = format!("ulimit -v 1000000; exec '{}' plan", crate::space::siteline().display());
    let output = std::process::Command::new("sh").args(["-c", &words]).current_dir(space.root()).output().unwrap();
    let said = crate::space::Said::from(output);
    assert_eq!(said.code, 2, "{}{}", said.stdout, said.stderr);
    assert!(said.stderr.contains("alias") || said.stderr.contains("budget"), "{}", said.stderr);
}

#[test]
fn a_first_full_table_comes_before_the_second_seed() {
    let space = Space::of_commands(
        "axes: {method: [x, y, z], seed: [0, 1, 2]}\nstages:\n  train: {run: \"echo ${method} ${seed} >out\", per: [method, seed], outputs: [out]}\n  evaluate: {run: cat inputs/model/out >out, per: [method, seed], needs: {model: train}, outputs: [out]}\n  table: {run: \"cat inputs/models/*/out inputs/scores/*/out >out\", needs: {models: train, scores: evaluate}, outputs: [out]}\n",
    );
    let said = space.run(&["run", "--plain", "-j", "1"]);
    assert_eq!(said.code, 0, "{}", said.stderr);
    let started: Vec<&str> =
        said.stderr.lines().filter_map(|line| line.split_once("start   ")).map(|(_, name)| name).collect();
    let place = |name: &str| started.iter().position(|started| *started == name).unwrap();
    let last_of_first =
        ["x", "y", "z"].map(|m| place(&format!("evaluate[method={m},seed=0]"))).into_iter().max().unwrap();
    let first_of_second =
        ["x", "y", "z"].map(|m| place(&format!("train[method={m},seed=1]"))).into_iter().min().unwrap();
    // While the last scores of a seed are computed, free slots go on with the next.
    assert!(last_of_first <= first_of_second + 2, "{started:?}");
    // A score comes as soon as its model is there.
    assert!(place("evaluate[method=x,seed=0]") < place("train[method=z,seed=0]"), "{started:?}");
}

#[test]
fn a_store_is_private_unless_its_user_shares_it() {
    use std::os::unix::fs::PermissionsExt;
    let mode = |space: &Space, name: &str| std::fs::metadata(space.path(name)).unwrap().permissions().mode() & 0o7777;
    let space = Space::of_commands(SWEEP);
    space.executed(&[]);
    assert_eq!(mode(&space, ".siteline"), 0o700);
    let space = Space::of_commands(SWEEP);
    space.executed(&["--shared-store"]);
    assert_eq!((mode(&space, ".siteline"), mode(&space, ".siteline/objects")), (0o2770, 0o2770));
}

/// On a terminal: stages as rows, and the table so far, which fills as scores come in.
#[test]
fn the_table_so_far_is_on_the_screen() {
    let space = Space::fresh();
    let screen = |arguments: &[&str]| {
        let run = space.command(arguments);
        let words: Vec<String> = std::iter::once(run.get_program())
            .chain(run.get_args())
            .map(|word| format!("'{}'", word.to_string_lossy()))
            .collect();
        let screen = std::process::Command::new("script")
            .args(["-qec", &words.join(" "), "/dev/null"])
            .current_dir(space.root())
            .env("TERM", "xterm")
            .output()
            .ok()?;
        let text = String::from_utf8_lossy(&screen.stdout).into_owned();
        assert!(screen.status.success(), "{text}");
        Some(text)
    };
    let Some(text) = screen(&["run"]) else {
        return crate::space::skipped("there is no `script` to make a terminal with");
    };
    let words =
        ["score, 0 of 6 scores are in", "mean dice, 6 of 6 scores are in", "instances", "train ", "running", "CPU "];
    for words in words {
        assert!(text.contains(words), "no `{words}` in\n{text}");
    }
    // Now it is known how long each stage takes.
    let text = screen(&["run", "--set", "stages.train.with.epochs=8"]).unwrap();
    let told = text.split("about ").skip(1).any(|rest| rest.split(' ').nth(2).is_some_and(|word| word == "left"));
    assert!(told && text.contains("cached"), "{text}");
}
