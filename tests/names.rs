//! Names of any kind: what is in them steers no terminal, breaks no message and hides no file.

use crate::space::Space;

/// File names are data like any other: what is in them is shown by its escapes, by every verb.
#[test]
fn names_of_files_steer_no_terminal() {
    let space = Space::fresh();
    let image = std::fs::read(space.path("data/A/images/phantom_0000.png")).unwrap();
    let odd = ["a\u{1b}[31mred", "b\nfake: line", "c\u{9b}2J", "d\r\t", "e\u{202e}gnp"];
    let mask = std::fs::read(space.path("data/A/masks/phantom_0000.png")).unwrap();
    for name in odd {
        space.write(&format!("odd/{name}.png"), &image);
        space.write(&format!("masks/{name}.png"), &mask);
    }
    space.write(
        "siteline.yaml",
        "siteline: 1\nname: study\nsites:\n  A: {images: odd/*.png, masks: \"masks/{stem}.png\"}\nstages:\n  ingest: {uses: ingest, per: [site], with: {size: 48}}\n  list: {run: \"ls odd >out; cat odd/* >/dev/null\", files: [odd/*.png], outputs: [out]}\n",
    );
    let steers = |text: &str| text.chars().find(|c| (c.is_control() && *c != '\n') || *c == '\u{202e}');
    let check = |words: &[&str]| {
        let said = space.run(words);
        assert!(said.code < 2, "{words:?}: {}", said.stderr);
        for text in [&said.stdout, &said.stderr] {
            assert_eq!(steers(text), None, "{words:?}: {text:?}");
            assert!(!text.lines().any(|line| line.starts_with("fake: line")), "{words:?}: {text:?}");
        }
        said
    };
    let verbs: &[&[&str]] = &[
        &["plan", "-v"],
        &["plan", "--json"],
        &["run", "--plain"],
        &["run", "--json"],
        &["status"],
        &["why", "ingest", "list"],
        &["history", "ingest", "list"],
        &["trace", "ingest", "-v"],
        &["trace", "list", "-v"],
        &["trace", "ingest", "--json"],
        &["audit"],
        &["diff"],
        &["graph", "--instances"],
        &["check-manifest"],
        &["verify"],
        &["doctor"],
        &["gc"],
    ];
    verbs.iter().for_each(|words| drop(check(words)));
    let list = space.run(&["trace", "list", "--json"]).stdout;
    let lineage: serde_json::Value = serde_json::from_str(&list).unwrap();
    let paths: Vec<&str> = lineage["sources"].as_array().unwrap().iter().filter_map(|s| s["path"].as_str()).collect();
    assert!(odd.iter().all(|name| paths.iter().any(|path| path.ends_with(&format!("odd/{name}.png")))), "{paths:?}");
    assert!(space.run(&["trace", "ingest", "-v"]).stdout.contains(r"\u{1b}[31mred"));
    // Changed, gone, broken: each is named.
    space.write(&format!("odd/{}.png", odd[0]), std::fs::read(space.path("data/A/images/phantom_0001.png")).unwrap());
    std::fs::remove_file(space.path(&format!("odd/{}.png", odd[1]))).unwrap();
    std::fs::remove_file(space.path(&format!("masks/{}.png", odd[1]))).unwrap();
    let why = check(&["why", "ingest", "list"]).stdout;
    assert!(why.contains(r"\u{1b}[31mred") && why.contains(r"b\nfake: line"), "{why}");
    space.write(&format!("odd/{}.png", odd[2]), "this is no image");
    let said = check(&["run", "--plain"]);
    assert!(said.code == 1 && said.stderr.contains(r"c\u{9b}2J"), "{}", said.stderr);
    for words in [&["status"][..], &["diff"], &["log", "list"], &["history", "ingest"], &["run", "--json"]] {
        check(words);
    }
}

/// A file that a pattern would match, if its name were text, is not silently left out.
#[test]
fn a_name_that_is_no_text_is_not_passed_over() {
    use std::os::unix::ffi::OsStrExt;
    for pattern in ["data/*.csv", "*/*.csv", "**/*.csv", "data/**/*.csv"] {
        let space = Space::of_commands(&format!(
            "stages: {{a: {{run: \"ls data | wc -l >o\", files: [\"{pattern}\"], outputs: [o]}}}}\n"
        ));
        space.write("data/x.csv", "1\n");
        let odd = std::ffi::OsStr::from_bytes(b"\xff.csv");
        std::fs::write(space.path("data").join(odd), "2\n").unwrap();
        let said = space.run(&["run"]);
        assert_eq!(said.code, 2, "{pattern}: {}", said.stderr);
        assert!(
            said.stderr.contains("is not UTF-8") && said.stderr.contains(r"\xFF.csv"),
            "{pattern}: {}",
            said.stderr
        );
        std::fs::remove_file(space.path("data").join(odd)).unwrap();
        assert_eq!(space.executed(&[]).len(), 1);
    }
}

/// Names that the manifest may not have are told of like any other mistake: in one line, escaped.
#[test]
fn names_with_line_ends_break_no_message() {
    let odd = r"x\nfake: line\e[31m";
    let of = |text: &str| text.replace("ODD", odd);
    let cases = [
        (of("stages: {\"ODD\": {run: echo x >o, outputs: [o]}}\n"), "cannot be a name"),
        (of("axes: {\"ODD\": [1]}\nstages: {a: {run: echo x >o, outputs: [o]}}\n"), "cannot be a name"),
        (of("axes: {n: [\"ODD\"]}\nstages: {a: {run: echo x >o, per: [n], outputs: [o]}}\n"), "cannot be a value"),
        (of("stages: {a: {run: echo x >o, needs: {b: \"ODD\"}, outputs: [o]}}\n"), "ODD"),
        (of("stages: {a: {run: echo x >o, per: [\"ODD\"], outputs: [o]}}\n"), "ODD"),
        (of("stages: {a: {run: echo x >o, files: [\"ODD\"], outputs: [o]}}\n"), "ODD"),
        (of("stages: {a: {uses: \"ODD\"}}\n"), "ODD"),
        (of("stages: {a: {run: echo x >o, outputs: [o], \"ODD\": 1}}\n"), "ODD"),
        (of("packs: [\"'ODD'\"]\nstages: {a: {run: echo x >o, outputs: [o]}}\n"), "ODD"),
    ];
    let in_one_line = |what: &str, wanted: &str, said: &crate::space::Said| {
        assert_eq!(said.code, 2, "{what}: {}", said.stdout);
        let wanted = wanted.replace("ODD", r"x\nfake: line\u{1b}[31m");
        assert!(said.stderr.contains(&wanted), "{what}: {}", said.stderr);
        let breaks = |line: &str| line.starts_with("fake: line") || line.contains('\u{1b}');
        assert!(!said.stderr.lines().any(breaks), "{what}: {}", said.stderr);
    };
    for (manifest, wanted) in &cases {
        in_one_line(manifest, wanted, &Space::of_commands(manifest).run(&["plan"]));
    }
    let space = Space::of_commands("stages: {a: {run: echo x >o, outputs: [o]}}\n");
    let odd = "x\nfake: line\u{1b}[31m";
    for words in [&["plan", "--only", odd], &["log", odd], &["why", odd], &["plan", "--set", odd], &["plan", "-m", odd]]
        as [&[&str]; 5]
    {
        in_one_line(&format!("{words:?}"), "ODD", &space.run(words));
    }
}

#[test]
fn an_output_whose_name_is_no_text_is_told_so() {
    let space = Space::of_commands("stages: {a: {run: \"touch $(printf 'o/\\\\377')\", outputs: [o/]}}\n");
    let said = space.run(&["run", "--plain"]);
    assert_eq!(said.code, 1, "{}", said.stderr);
    assert!(said.stderr.contains("the name of o/") && said.stderr.contains("is not UTF-8"), "{}", said.stderr);
}

/// Links among folders: followed, but not in circles; and nothing is found twice.
#[test]
fn folders_that_link_to_one_another_are_looked_through_once() {
    let space = Space::of_commands(
        "stages: {a: {run: \"cat data/x.csv data/deep/y.csv data/aside/z.csv >o\", files: [\"data/**/*.csv\"], outputs: [o]}}\n",
    );
    for (name, text) in [("data/x.csv", "1\n"), ("data/deep/y.csv", "2\n"), ("elsewhere/z.csv", "3\n")] {
        space.write(name, text);
    }
    let link = |to: &str, at: &str| std::os::unix::fs::symlink(to, space.path(at)).unwrap();
    link("..", "data/deep/up");
    link(".", "data/here");
    link("itself", "data/itself");
    link("nowhere", "data/nowhere");
    link("../elsewhere", "data/aside");
    assert_eq!(space.executed(&[]).len(), 1);
    assert_eq!(space.output("a", "o"), b"1\n2\n3\n");
    let lineage: serde_json::Value = serde_json::from_str(&space.run(&["trace", "a", "--json"]).stdout).unwrap();
    let paths: Vec<&str> = lineage["sources"].as_array().unwrap().iter().filter_map(|s| s["path"].as_str()).collect();
    assert_eq!(paths.len(), 3, "{paths:?}");
    space.write("elsewhere/z.csv", "4\n");
    assert_eq!(space.executed(&[]).len(), 1);
}

/// A declared file that is a link is what it leads to.
#[test]
fn links_among_declared_files_are_what_they_lead_to() {
    let space =
        Space::of_commands("stages: {a: {run: \"cat data/*.csv >o\", files: [\"data/*.csv\"], outputs: [o]}}\n");
    space.write("data/plain.csv", "1\n");
    space.write("elsewhere/one.csv", "2\n");
    space.write("elsewhere/same.csv", "2\n");
    let link = |to: &str| {
        let _ = std::fs::remove_file(space.path("data/x.csv"));
        std::os::unix::fs::symlink(space.path(to), space.path("data/x.csv")).unwrap();
    };
    link("elsewhere/one.csv");
    assert_eq!(space.executed(&[]).len(), 1);
    assert_eq!(space.output("a", "o"), b"1\n2\n");
    link("elsewhere/same.csv");
    assert!(space.executed(&[]).is_empty(), "the same content is the same");
    space.write("elsewhere/same.csv", "3\n");
    assert_eq!(space.executed(&[]).len(), 1);
    assert_eq!(space.output("a", "o"), b"1\n3\n");
}
