//! What is no part of a result is no part of its key: who asks for it, on which machine, with how many threads, where the project lies,
//! what its files are called, and in which order a manifest is written.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::space::{Said, Space, siteline, skipped};

/// A sweep with most of what a manifest can say, as JSON: that is YAML, and its maps may be written in any order.
fn manifest(name: &str) -> Value {
    json!({
        "siteline": 1,
        "name": name,
        "axes": {"hospital": ["a", "b", "c"], "held_out": ["a", "b"], "method": ["x", {"name": "y", "rate": 2, "depth": 3}]},
        "stages": {
            "ingest": {
                "run": "cat data/${hospital}.txt >out; sh code/count.sh >>out; hostname; id -u", "per": ["hospital"], "files": ["data/${hospital}.txt"],
                "code": ["code/*.sh"], "env": {"LEVEL": "3", "DEPTH": "4"}, "outputs": ["out"],
            },
            "train": {
                "run": "cat inputs/features/*/out >model; echo ${rate} ${depth} $LEVEL >>model", "per": ["method", "held_out"],
                "needs": {"features": {"stage": "ingest", "where": "hospital != held_out"}},
                "with": {"rate": 1, "depth": 5}, "env": {"LEVEL": null}, "outputs": ["model"],
                "overrides": [{"when": "held_out == b", "with": {"depth": 9}}],
            },
            "table": {"run": "cat inputs/models/*/model >table", "needs": {"models": "train"}, "outputs": ["table"]},
        },
    })
}

/// The same value with its maps in another order.
fn shuffled(value: &Value, rng: &mut ChaCha8Rng) -> String {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.shuffle(rng);
            let written = entries.into_iter().map(|(key, value)| format!("{}: {}", json!(key), shuffled(value, rng)));
            format!("{{{}}}", written.collect::<Vec<_>>().join([", ", ",\n    "].choose(rng).unwrap()))
        }
        Value::Array(items) => {
            format!("[{}]", items.iter().map(|item| shuffled(item, rng)).collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

/// Where and how a project is run.
#[derive(Debug)]
struct Setting {
    folder: &'static str,
    file: &'static str,
    name: &'static str,
    host: Option<&'static str>,
    user: Option<&'static str>,
    threads: &'static str,
    variables: Vec<(&'static str, &'static str)>,
}

impl Setting {
    fn random(rng: &mut ChaCha8Rng, is_root: bool) -> Self {
        let variables =
            [("USER", "somebody"), ("LOGNAME", "else"), ("HOME", "/"), ("TZ", "Asia/Tokyo"), ("LANG", "de_DE.UTF-8")];
        Self {
            folder: ["project", "another place/deep", "été"].choose(rng).unwrap(),
            file: ["siteline.yaml", "paper.yaml"].choose(rng).unwrap(),
            name: ["study", "renamed"].choose(rng).unwrap(),
            host: ["hospital-1", "gpu-node"].choose(rng).copied().filter(|_| is_root && rng.random_bool(0.7)),
            user: ["64001", "64002"].choose(rng).copied().filter(|_| is_root && rng.random_bool(0.7)),
            threads: ["1", "2", "7"].choose(rng).unwrap(),
            variables: variables.into_iter().filter(|_| rng.random_bool(0.5)).collect(),
        }
    }

    /// The keys of a run in a store of its own, each with what it made; and what its commands printed, their host and user.
    fn keys(&self, rng: &mut ChaCha8Rng) -> (BTreeMap<String, Value>, String) {
        let space = Space::of_commands("");
        let of = |file: &str| format!("{}/{file}", self.folder);
        space.write(&of(self.file), shuffled(&manifest(self.name), rng));
        for hospital in ["a", "b", "c"] {
            space.write(&of(&format!("data/{hospital}.txt")), format!("images of {hospital}\n"));
        }
        space.write(&of("code/count.sh"), "echo one two | wc -w\n");
        // The built-in pack's libraries may lie where other users may not go.
        std::fs::copy(siteline(), space.path("siteline")).unwrap();
        space.write(
            "siteline-worker",
            "#!/bin/sh\nread line\necho '{\"reply\": \"kinds\", \"protocol\": 2, \"kinds\": []}'\n",
        );
        for open in [space.root(), &space.path("siteline-worker")] {
            std::fs::set_permissions(open, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let said = self.run(&space);
        assert_eq!((said.code, said.executed().len()), (0, 8), "{self:?}: {}", said.stderr);
        let logs = Command::new("grep").args(["-rh", "", ".siteline/runs"]).current_dir(space.root()).output().unwrap();
        (space.records(), String::from_utf8_lossy(&logs.stdout).into_owned())
    }

    fn run(&self, space: &Space) -> Said {
        let mut words: Vec<String> = Vec::new();
        if let Some(host) = self.host {
            words.extend(
                ["unshare", "--uts", "sh", "-c", &format!("hostname {host}; exec \"$@\""), "sh"].map(str::to_owned),
            );
        }
        if let Some(user) = self.user {
            let owned = Command::new("chown").args(["-R", &format!("{user}:{user}")]).arg(space.root()).status();
            assert!(owned.unwrap().success());
            words.extend(["setpriv", "--reuid", user, "--regid", user, "--clear-groups"].map(str::to_owned));
        }
        words.push(space.path("siteline").display().to_string());
        words.extend(["run", "--plain", "--store", ".siteline", "-j", self.threads].map(str::to_owned));
        words.extend(["-m".to_owned(), format!("{}/{}", self.folder, self.file)]);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).current_dir(space.root()).env("RAYON_NUM_THREADS", self.threads);
        Said::from(command.envs(self.variables.iter().copied()).output().unwrap())
    }
}

/// Whether this user may be another one on another host.
fn may_be_anybody() -> bool {
    let words = ["--uts", "sh", "-c", "hostname elsewhere && setpriv --reuid 64001 --regid 64001 --clear-groups true"];
    let tried = Command::new("unshare").args(words).stderr(std::process::Stdio::null()).status();
    tried.is_ok_and(|status| status.success()) && Path::new("/bin/sh").exists()
}

#[test]
fn hosts_users_places_threads_and_names_change_no_key() {
    let is_root = may_be_anybody();
    if !is_root {
        skipped(
            "no other user and no other host here (that takes root); places, threads and names are tried all the same",
        );
    }
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let plain = Setting {
        folder: "project",
        file: "siteline.yaml",
        name: "study",
        host: None,
        user: None,
        threads: "2",
        variables: Vec::new(),
    };
    let (expected, _) = plain.keys(&mut rng);
    assert_eq!(expected.len(), 8);
    let mut elsewhere = 0;
    for _ in 0..16 {
        let setting = Setting::random(&mut rng, is_root);
        let (keys, printed) = setting.keys(&mut rng);
        assert_eq!(keys, expected, "{setting:?}");
        for name in setting.host.iter().chain(&setting.user) {
            assert!(printed.lines().any(|line| line == *name), "{setting:?}: {printed}");
            elsewhere += 1;
        }
    }
    assert!(!is_root || elsewhere > 10, "only {elsewhere} ran on another host or as another user");
}

/// A project that is moved or renamed with its store, or whose manifest is: everything is there still.
#[test]
fn a_project_that_is_moved_or_renamed_finds_its_results() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let space = Space::of_commands("");
    space.write("first/siteline.yaml", shuffled(&manifest("study"), &mut rng));
    for hospital in ["a", "b", "c"] {
        space.write(&format!("first/data/{hospital}.txt"), format!("images of {hospital}\n"));
    }
    space.write("first/code/count.sh", "echo one two | wc -w\n");
    assert_eq!(space.executed(&["-m", "first/siteline.yaml"]).len(), 8);
    std::fs::rename(space.path("first"), space.path("second")).unwrap();
    assert!(space.executed(&["-m", "second/siteline.yaml"]).is_empty());
    space.write("second/paper.yaml", shuffled(&manifest("renamed"), &mut rng));
    std::fs::remove_file(space.path("second/siteline.yaml")).unwrap();
    assert!(space.executed(&["-m", "second/paper.yaml"]).is_empty());
    // And a stage by another name, under which others read it.
    let text = space.read("second/paper.yaml").replace("\"train\"", "\"fit\"");
    space.write("second/paper.yaml", text);
    assert!(space.executed(&["-m", "second/paper.yaml"]).is_empty());
}
