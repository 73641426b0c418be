//! `siteline audit`

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::process::ExitCode;

use clap::Args;
use siteline_cache::Access;
use siteline_pipeline::NodeIndex;
use siteline_pipeline::leakage::{self, Sides};
use siteline_pipeline::plan::State;
use siteline_pipeline::protocol::Identities;

use super::{Outcome, count};
use crate::args::Common;
use crate::diagnostic::CommandError;
use crate::project::{Project, find_instances};

/// Prove for each score that its model never saw what it is scored on: sites, patients, pixels.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  siteline audit\n  siteline audit 'evaluate[method=mcdrl]'")]
pub struct Audit {
    /// Only these scores; axes that are left out may be anything
    #[arg(value_name = "PATTERN")]
    instances: Vec<String>,
}

/// What is known of one side of a score.
#[derive(Default)]
struct Side {
    sites: BTreeSet<String>,
    patients: BTreeSet<String>,
    pixels: BTreeSet<siteline_cache::Digest>,
    images: usize,
    unknown: usize,
}

impl Audit {
    pub fn run(self, common: &Common) -> Outcome {
        let project = Project::open(common, Access::Read)?;
        let mut planner = project.planner()?;
        let plan = planner.plan()?;
        let asked: BTreeSet<NodeIndex> = find_instances(&planner, &self.instances)?.into_iter().collect();
        let sites = leakage::sites(planner.loaded, &planner.graph);
        let mut identities: HashMap<NodeIndex, Identities> = HashMap::new();
        let mut sources: BTreeSet<NodeIndex> = BTreeSet::new();
        for node in planner.graph.dag.node_indices() {
            let kind = planner.kind(node);
            if kind.outputs.iter().any(|o| o.purpose == siteline_pipeline::protocol::Purpose::Identities) {
                sources.insert(node);
                if let State::Cached(record) = plan.state(node) {
                    identities.extend(planner.identities(node, record).ok().flatten().map(|found| (node, found)));
                }
            }
        }
        let side = |nodes: &BTreeSet<NodeIndex>| {
            let mut side = Side { sites: sites.of(nodes), ..Side::default() };
            for node in nodes {
                match identities.get(node) {
                    Some(known) => {
                        side.images += known.samples.len();
                        side.patients.extend(known.samples.iter().map(|s| s.patient.clone()));
                        side.pixels.extend(known.samples.iter().map(|s| s.pixels));
                    }
                    None => side.unknown += usize::from(sources.contains(node)),
                }
            }
            side
        };
        let chosen = leakage::chosen_by_oracle(planner.loaded, &planner.graph);
        let mut counts: BTreeMap<Verdict, usize> = BTreeMap::new();
        for Sides { scorer, trained, scored } in leakage::sides(planner.loaded, &planner.graph) {
            if !self.instances.is_empty() && !asked.contains(&scorer) {
                continue;
            }
            let instance = &planner.graph.dag[scorer];
            let shared = Shared::of(side(&trained), side(&scored));
            let verdict = shared.verdict(instance.in_domain, chosen[scorer.index()]);
            println!("{}: {}", instance.name, verdict.words());
            shared.show();
            *counts.entry(verdict).or_default() += 1;
        }
        if counts.is_empty() && !self.instances.is_empty() {
            let patterns = self.instances.join("`, `");
            return Err(CommandError::request(
                format!("no instance that scores a model fits `{patterns}`"),
                "name instances of the stage that evaluates".to_owned(),
            ));
        }
        let of = |verdict: Verdict| counts.get(&verdict).copied().unwrap_or(0);
        let clean = of(Verdict::Clean) + of(Verdict::CleanButChosen);
        let (leaking, open) = (of(Verdict::Leaks), of(Verdict::Open));
        println!("\n{clean} clean, {} in-domain and marked so, {leaking} leaking, {open} open.", of(Verdict::InDomain));
        Ok(if leaking + open == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }
}

/// What is found of a score.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Clean,
    CleanButChosen,
    InDomain,
    Leaks,
    Open,
}

impl Verdict {
    fn words(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::CleanButChosen => "clean, but for the choice of the model: an oracle made it, and tables say so",
            Self::InDomain => "in-domain, as the manifest says",
            Self::Leaks => "LEAKS",
            Self::Open => "OPEN: not all sites are ingested yet",
        }
    }
}

/// Both sides of a score, and what they have in common.
struct Shared {
    model: Side,
    test: Side,
    sites: usize,
    patients: usize,
    pixels: usize,
}

impl Shared {
    fn of(model: Side, test: Side) -> Self {
        let sites = model.sites.intersection(&test.sites).count();
        let patients = model.patients.intersection(&test.patients).count();
        let pixels = model.pixels.intersection(&test.pixels).count();
        Self { model, test, sites, patients, pixels }
    }

    fn verdict(&self, in_domain: bool, chosen_by_oracle: bool) -> Verdict {
        match self.sites + self.patients + self.pixels {
            0 if self.model.unknown + self.test.unknown > 0 => Verdict::Open,
            0 if chosen_by_oracle => Verdict::CleanButChosen,
            0 => Verdict::Clean,
            _ if in_domain => Verdict::InDomain,
            _ => Verdict::Leaks,
        }
    }

    fn show(&self) {
        let of = |side: &Side| {
            let sites = side.sites.iter().cloned().collect::<Vec<_>>().join(", ");
            format!("{sites} ({}, {})", count(side.images, "image"), count(side.patients.len(), "patient"))
        };
        println!("  trained on {}", of(&self.model));
        println!("  scored on  {}", of(&self.test));
        println!(
            "  in common  {}, {}, {}",
            count(self.sites, "site"),
            count(self.patients, "patient"),
            count(self.pixels, "byte-identical image")
        );
    }
}
