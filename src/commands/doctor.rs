//! `siteline doctor`

use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use siteline_cache::{Access, Store};
use siteline_pipeline::printable::on_one_line;
use siteline_pipeline::sandbox::Sandbox;

use super::{Outcome, count};
use crate::args::Common;
use crate::project::{Project, open_pack};

/// Look at what a run depends on: the worker and libtorch, GPUs, the manifest, the store, the disk, leases, the sandbox.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  siteline doctor")]
pub struct Doctor {}

/// Below this a sweep is likely to fill the disk.
const LITTLE: u64 = 5_000_000_000;

struct Findings {
    bad: usize,
}

impl Findings {
    fn good(&self, what: &str, text: impl std::fmt::Display) {
        println!("ok    {what:10} {text}");
    }

    fn note(&self, what: &str, text: impl std::fmt::Display) {
        println!("note  {what:10} {text}");
    }

    fn bad(&mut self, what: &str, text: impl std::fmt::Display) {
        self.bad += 1;
        println!("BAD   {what:10} {text}");
    }
}

impl Doctor {
    pub fn run(self, common: &Common) -> Outcome {
        let mut findings = Findings { bad: 0 };
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
        match Project::open(common, Access::Read) {
            Ok(project) => {
                let path = project.loaded.path.display();
                findings.good("manifest", format!("{path} ({})", count(project.graph.dag.node_count(), "instance")));
                store(&mut findings, &project.store);
                match Sandbox::new(&project.loaded.root, project.store.root().join("objects")) {
                    Ok(_) => findings.good("sandbox", "bubblewrap works: `siteline run --sandbox`"),
                    Err(e) => findings.note("sandbox", e),
                }
            }
            Err(e) => findings.bad("manifest", format!("{e} (`siteline check-manifest` shows where)")),
        }
        Ok(if findings.bad == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
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
