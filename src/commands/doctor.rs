//! `siteline doctor`

use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use siteline_cache::{Access, Store};
use siteline_pipeline::printable::{self, on_one_line};
use siteline_pipeline::sandbox::Sandbox;

use super::{Outcome, count};
use crate::args::Common;
use crate::project::{Sweep, open_pack, store_root};

/// Look at what a run depends on: the worker and libtorch, GPUs, the manifest, the store, the disk, leases, the sandbox.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  siteline doctor")]
pub struct Doctor {
    /// As JSON on standard output; `siteline schema --json-of doctor` describes it
    #[arg(long)]
    json: bool,
}

/// Below this a sweep is likely to fill the disk.
const LITTLE: u64 = 5_000_000_000;

/// One thing that was looked at.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Finding {
    /// How it is.
    level: Level,
    /// What: `worker`, `store`, `disk`.
    what: &'static str,
    /// In words.
    text: String,
}

/// How a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Level {
    /// As it should be.
    Ok,
    /// Worth knowing.
    Note,
    /// Runs will suffer from it.
    Bad,
}

/// What was found so far. What takes long is worth watching, so that each is shown at once.
struct Findings {
    list: Vec<Finding>,
    silent: bool,
}

impl Findings {
    fn add(&mut self, level: Level, what: &'static str, text: impl std::fmt::Display) {
        let finding = Finding { level, what, text: text.to_string() };
        if !self.silent {
            finding.show();
        }
        self.list.push(finding);
    }

    fn good(&mut self, what: &'static str, text: impl std::fmt::Display) {
        self.add(Level::Ok, what, text);
    }

    fn note(&mut self, what: &'static str, text: impl std::fmt::Display) {
        self.add(Level::Note, what, text);
    }

    fn bad(&mut self, what: &'static str, text: impl std::fmt::Display) {
        self.add(Level::Bad, what, text);
    }
}

impl Finding {
    fn show(&self) {
        let level = match self.level {
            Level::Ok => "ok",
            Level::Note => "note",
            Level::Bad => "BAD",
        };
        outln!("{level:5} {:10} {}", self.what, self.text);
    }
}

impl Doctor {
    pub fn run(self, common: &Common) -> Outcome {
        let mut findings = Findings { list: Vec::new(), silent: self.json };
        match open_pack(common) {
            Ok(pack) => {
                findings
                    .good("worker", format!("{} ({})", pack.command.join(" "), count(pack.kinds.len(), "stage kind")));
                match pack.is_alive() {
                    Ok(()) => findings.good("libtorch", "the worker starts and answers"),
                    Err(e) => findings.bad("libtorch", format!("{e}; `make setup` fetches libtorch")),
                }
            }
            Err(e) => findings.bad("worker", e),
        }
        let gpus = super::run::gpus(None);
        match gpus.is_empty() {
            true => findings.note("gpu", "none is visible: stages run on the CPU"),
            false => findings.good("gpu", format!("visible: {}", gpus.join(", "))),
        }
        let swept = Sweep::load(common);
        match &swept {
            Ok(Sweep { loaded, graph }) => {
                let path = loaded.path.display();
                findings.good("manifest", format!("{path} ({})", count(graph.dag.node_count(), "instance")));
            }
            Err(e) => findings.bad("manifest", format!("{e} (`siteline check-manifest` shows where)")),
        }
        if let Ok(root) = store_root(common) {
            match Store::open(&root, Access::Read) {
                Ok(found) => store(&mut findings, &found),
                Err(e) => findings.bad("store", e),
            }
            match swept.map(|Sweep { loaded, .. }| Sandbox::new(&loaded.root, root.join("objects"))) {
                Ok(Ok(_)) => findings.good("sandbox", "bubblewrap works: `siteline run --sandbox`"),
                Ok(Err(e)) => findings.note("sandbox", e),
                // What would be shut in is not known.
                Err(_) => {}
            }
        }
        if self.json {
            outln!("{}", printable::json(&findings.list, true));
        }
        let is_bad = findings.list.iter().any(|finding| finding.level == Level::Bad);
        Ok(if is_bad { ExitCode::from(1) } else { ExitCode::SUCCESS })
    }
}

fn store(findings: &mut Findings, store: &Store) {
    let root = store.root();
    if !root.exists() {
        return findings.note("store", format!("{} is made by the first run", root.display()));
    }
    match tempfile::tempfile_in(root.join("tmp")) {
        Ok(_) => findings.good("store", format!("{} can be written", root.display())),
        Err(e) => findings.bad("store", format!("{} cannot be written: {e}", root.display())),
    }
    findings.good("records", count(store.records().len(), "whole record"));
    for folder in store.damaged_runs() {
        findings.note("runs", format!("{} is damaged: what was run there cannot be told any more", folder.display()));
    }
    for run in store.runs().iter().filter(|run| run.finished_ms.is_some() && !store.is_whole(run)) {
        findings
            .note("runs", format!("what became of the instances of {} is not all there: its file is damaged", run.id));
    }
    disk(findings, root);
    let leases = store.leases();
    let held = leases.iter().filter(|(_, _, lives)| *lives).count();
    for (key, owner, _) in leases.iter().filter(|(_, _, lives)| *lives) {
        let owner = owner
            .as_ref()
            .map_or_else(String::new, |owner| format!("process {} on {}", owner.pid, on_one_line(&owner.host)));
        findings.note("lease", format!("{} is held by {owner}", &key[..key.len().min(12)]));
    }
    let left = leases.len() - held;
    if left > 0 {
        findings.note(
            "lease",
            format!("{} of processes that are gone: the next run takes them over", count(left, "lease")),
        );
    }
    if let Some(run) = store.runs().iter().find(|run| run.state() == "killed") {
        findings.note("runs", format!("{} was killed; the next run goes on from there", run.id));
    }
}

fn disk(findings: &mut Findings, root: &Path) {
    match rustix::fs::statvfs(root) {
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let text = format!("{:.1} GB free", free as f64 / 1e9);
            if free < LITTLE { findings.bad("disk", text) } else { findings.good("disk", text) }
        }
        Err(e) => findings.bad("disk", e),
    }
}
