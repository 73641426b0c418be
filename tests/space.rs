//! A project in a folder of its own, and the ways to change it, run it and look at it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use tempfile::TempDir;

/// The command line.
pub fn siteline() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_siteline"))
}

/// The worker, built beside the command line.
pub fn worker() -> PathBuf {
    let path = siteline().with_file_name("siteline-worker");
    assert!(path.exists(), "{} is not there: build the workspace first", path.display());
    path
}

/// A folder with a project in it.
pub struct Space {
    dir: TempDir,
}

/// What a command came to.
pub struct Said {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

const MANIFEST: &str = r#"siteline: 1
name: study
sites:
  A: {images: data/A/images/*.png, masks: "data/A/masks/{stem}.png", table: data/A/truth.csv, class: {column: class}, patient: {column: patient}}
  B: {images: data/B/images/*.png, masks: "data/B/masks/{stem}.png", table: data/B/truth.csv, class: {column: class}, patient: {column: patient}}
  C: {images: data/C/images/*.png, masks: "data/C/masks/{stem}.png", table: data/C/truth.csv, class: {column: class}, patient: {column: patient}}
backbones:
  tiny: {weights: clip.safetensors}
axes:
  backbone: [tiny]
  method: [erm, mcdrl]
  held_out: sites
  seed: [0]
stages:
  ingest: {uses: ingest, per: [site], with: {size: 48}}
  features: {uses: clip-features, per: [site, backbone], needs: {samples: ingest}}
  confounders: {uses: confounder-dictionary, per: [backbone], with: {prompts: prompts.yaml}}
  train:
    uses: train
    per: [method, backbone, held_out, seed]
    needs:
      features: {stage: features, where: site != held_out}
      dictionary: {stage: confounders, when: method == mcdrl}
    with: {epochs: 2, batch: 8, head_width: 8, mcdrl: {after_epoch: 1}}
  evaluate:
    uses: evaluate
    per: [method, backbone, held_out, seed]
    needs:
      model: train
      features: {stage: features, where: site == held_out}
      samples: {stage: ingest, where: site == held_out}
    with: {overlays: 1}
  table: {uses: table, needs: {scores: evaluate}}
"#;

const SITES: &str = "seed: 3\nsize: 64\nsites:\n  A: {count: 10, patients: 5}\n  B: {count: 10, patients: 5}\n  C: {count: 10, patients: 5}\n";

/// A project that was run once, made once for all tests.
fn finished() -> &'static Path {
    static FINISHED: OnceLock<TempDir> = OnceLock::new();
    FINISHED
        .get_or_init(|| {
            let space = Space::fresh();
            let said = space.run(&["run", "--plain"]);
            assert_eq!(said.code, 0, "the first run fails:\n{}", said.stderr);
            space.dir
        })
        .path()
}

impl Space {
    /// A project that was never run.
    pub fn fresh() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let space = Self { dir };
        space.write("siteline.yaml", MANIFEST);
        space.write("sites.yaml", SITES);
        let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
        fs::copy(repository.join("manifests/prompts/endoscopy.yaml"), space.path("prompts.yaml")).unwrap();
        fs::copy(repository.join("weights/phantom-clip.safetensors"), space.path("clip.safetensors")).unwrap();
        let said = space.run(&["phantoms", "sites.yaml", "--out", "data"]);
        assert_eq!(said.code, 0, "{}", said.stderr);
        space
    }

    /// A project of commands alone, which was never run.
    pub fn of_commands(manifest: &str) -> Self {
        let space = Self { dir: tempfile::tempdir().unwrap() };
        space.write("siteline.yaml", format!("siteline: 1\nname: study\n{manifest}"));
        space
    }

    /// Copies folders of the repository into the project.
    pub fn bring(&self, folders: &[&str]) {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folders = folders.iter().map(|folder| repository.join(folder));
        let copied = Command::new("cp").arg("-r").args(folders).arg(self.root()).status().unwrap();
        assert!(copied.success());
    }

    /// A project whose run is finished, in a place of its own.
    pub fn finished() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let copied = Command::new("cp").arg("-a").arg(finished().join(".")).arg(dir.path()).status().unwrap();
        assert!(copied.success());
        Self { dir }
    }

    /// A file of the project.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// Replaces a text that must be there.
    pub fn edit(&self, name: &str, from: &str, to: &str) {
        let text = self.read(name);
        assert!(text.contains(from), "{name} has no `{from}`");
        self.write(name, text.replace(from, to));
    }

    /// A command in the project's folder, not started yet.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(siteline());
        command.current_dir(self.root()).args(arguments);
        for name in ["SITELINE_MANIFEST", "SITELINE_STORE", "SITELINE_WORKER", "RUST_LOG"] {
            command.env_remove(name);
        }
        command
    }

    /// Runs `siteline` with arguments.
    pub fn run(&self, arguments: &[&str]) -> Said {
        Said::from(self.command(arguments).output().unwrap())
    }

    /// Runs `siteline run` and returns the instances that were executed.
    pub fn executed(&self, arguments: &[&str]) -> BTreeSet<String> {
        let said = self.run(&[&["run", "--plain"], arguments].concat());
        assert_eq!(said.code, 0, "{}\n{}", said.stdout, said.stderr);
        said.executed()
    }

    /// Key to outputs of every record in the project's store; of several under one key, that of the latest run.
    pub fn records(&self) -> BTreeMap<String, serde_json::Value> {
        let mut found = BTreeMap::new();
        let files = fs::read_dir(self.path(".siteline/records")).into_iter().flatten();
        let mut paths: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
        paths.sort();
        for path in paths {
            let text = String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
            let mut lines = text.lines();
            while let Some(line) = lines.next() {
                let Some(heading) = line.strip_prefix("siteline-record 2 ") else { continue };
                let key = heading.split(' ').next().unwrap();
                if let Some(hit) = lines.next().and_then(|hit| serde_json::from_str::<serde_json::Value>(hit).ok()) {
                    found.insert(key.to_owned(), hit["outputs"].clone());
                }
            }
        }
        found
    }

    /// Processes that carry the id of a run of this project's store, or run in its folder: id and name.
    fn processes(&self) -> Vec<(String, String)> {
        let runs: Vec<String> = fs::read_dir(self.path(".siteline/runs"))
            .into_iter()
            .flatten()
            .map(|entry| format!("SITELINE_RUN={}", entry.unwrap().file_name().to_string_lossy()))
            .collect();
        let root = fs::canonicalize(self.root()).unwrap();
        let of_project = |entry: &fs::DirEntry| {
            let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
            let carries = environment.split(|b| *b == 0).any(|e| runs.iter().any(|run| run.as_bytes() == e));
            carries || fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(&root))
        };
        let name = |entry: fs::DirEntry| {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            (entry.file_name().to_string_lossy().into_owned(), name.trim().to_owned())
        };
        fs::read_dir("/proc").unwrap().flatten().filter(of_project).map(name).collect()
    }

    /// The ids of this project's processes of a name.
    pub fn pids(&self, name: &str) -> Vec<String> {
        self.processes().into_iter().filter(|(_, known)| known == name).map(|(pid, _)| pid).collect()
    }

    /// Asserts that nothing of this project's runs is left running, waiting a little for the last to end.
    pub fn assert_no_process(&self) {
        for _ in 0..100 {
            if self.processes().is_empty() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        panic!("processes outlive their run: {:?}", self.processes());
    }

    /// Asserts that a process has ended, waited for by its parent or not.
    pub fn assert_ended(&self, pid: &str) {
        for _ in 0..100 {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            if stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z')) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        panic!("the process {pid} outlives its run");
    }

    /// Every artifact that is up to date: instance to the outputs of its record.
    pub fn artifacts(&self) -> BTreeMap<String, serde_json::Value> {
        let said = self.run(&["plan", "--json"]);
        assert_eq!(said.code, 0, "{}", said.stderr);
        let plan: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
        let records = self.records();
        let instances = plan["instances"].as_array().unwrap().iter();
        instances
            .filter(|instance| instance["state"] == "cached")
            .map(|i| (i["instance"].as_str().unwrap().to_owned(), records[i["key"].as_str().unwrap()].clone()))
            .collect()
    }

    /// The bytes of an output of an instance.
    pub fn output(&self, instance: &str, path: &str) -> Vec<u8> {
        let outputs = self.artifacts()[instance].clone();
        let output = outputs.as_array().unwrap().iter().find(|o| o["path"] == path).unwrap().clone();
        let digest = output["digest"].as_str().unwrap();
        fs::read(self.path(".siteline/objects").join(&digest[..2]).join(&digest[2..])).unwrap()
    }

    /// The bytes of an output in the latest record of an instance, up to date or not.
    pub fn output_of(&self, instance: &str, path: &str) -> Vec<u8> {
        let history = self.run(&["history", instance]).stdout;
        let short = history.split_once("key ").unwrap().1[..12].to_owned();
        let records = self.records();
        let outputs = records.iter().find(|(key, _)| key.starts_with(&short)).unwrap().1.clone();
        let output = outputs.as_array().unwrap().iter().find(|o| o["path"] == path).unwrap().clone();
        let digest = output["digest"].as_str().unwrap();
        fs::read(self.path(".siteline/objects").join(&digest[..2]).join(&digest[2..])).unwrap()
    }

    /// Changes one image so that it differs at any working size.
    pub fn repaint(&self, name: &str) {
        let mut picture = image::open(self.path(name)).unwrap().into_rgb8();
        picture.pixels_mut().for_each(|p| p.0 = p.0.map(|c| c / 2 + 40));
        picture.save(self.path(name)).unwrap();
    }
}

impl Said {
    /// The instances that ended with a result of their own.
    pub fn executed(&self) -> BTreeSet<String> {
        let lines = self.stderr.lines().filter_map(|line| line.split_once("] done    "));
        lines.filter_map(|(_, rest)| rest.rsplit_once(" (").map(|(name, _)| name.to_owned())).collect()
    }

    /// Exit code and both streams, paths of this test filtered, for a snapshot.
    pub fn snapshot(&self, space: &Space) -> String {
        let root = fs::canonicalize(space.root()).unwrap();
        let clean = |text: &str| {
            text.replace(&root.display().to_string(), "[PROJECT]")
                .replace(&space.root().display().to_string(), "[PROJECT]")
        };
        let trimmed = |text: &str| text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
        format!(
            "exit code {}\n--- stdout\n{}\n--- stderr\n{}",
            self.code,
            trimmed(&clean(&self.stdout)),
            trimmed(&clean(&self.stderr))
        )
    }
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Sends a signal, `-KILL`, to a process that must be there.
pub fn kill(signal: &str, pid: &str) {
    assert!(Command::new("kill").args([signal, pid]).status().unwrap().success(), "there is no process {pid}");
}

/// Where real images lie, if the folders that are wanted do.
pub fn real_images(wanted: &[&str]) -> Option<PathBuf> {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data");
    let data = PathBuf::from(std::env::var("SITELINE_TEST_DATA").unwrap_or_else(|_| default.to_owned()));
    wanted.iter().all(|folder| data.join(folder).is_dir()).then_some(data)
}

/// Says loudly that a test did not run.
pub fn skipped(why: &str) {
    eprintln!("SKIPPED: {why}");
}
