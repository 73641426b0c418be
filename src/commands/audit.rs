//! `siteline audit`

use std::collections::{BTreeSet, HashMap};
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
        let (mut clean, mut marked, mut refused, mut open) = (0, 0, 0, 0);
        for Sides { scorer, trained, scored } in leakage::sides(planner.loaded, &planner.graph) {
            if !self.instances.is_empty() && !asked.contains(&scorer) {
                continue;
            }
            let instance = &planner.graph.dag[scorer];
            let (model, test) = (side(&trained), side(&scored));
            let common_sites: Vec<_> = model.sites.intersection(&test.sites).cloned().collect();
            let patients = model.patients.intersection(&test.patients).count();
            let pixels = model.pixels.intersection(&test.pixels).count();
            let verdict = if common_sites.is_empty() && patients == 0 && pixels == 0 {
                if model.unknown + test.unknown > 0 {
                    open += 1;
                    "OPEN: not all sites are ingested yet"
                } else {
                    clean += 1;
                    match chosen[scorer.index()] {
                        true => "clean, but for the choice of the model: an oracle made it, and tables say so",
                        false => "clean",
                    }
                }
            } else if instance.in_domain {
                marked += 1;
                "in-domain, as the manifest says"
            } else {
                refused += 1;
                "LEAKS"
            };
            println!("{}: {verdict}", instance.name);
            let list = |sites: &BTreeSet<String>| sites.iter().cloned().collect::<Vec<_>>().join(", ");
            println!(
                "  trained on {} ({}, {})",
                list(&model.sites),
                count(model.images, "image"),
                count(model.patients.len(), "patient")
            );
            println!(
                "  scored on  {} ({}, {})",
                list(&test.sites),
                count(test.images, "image"),
                count(test.patients.len(), "patient")
            );
            println!(
                "  in common  {}, {patients} patients, {pixels} byte-identical images",
                count(common_sites.len(), "site")
            );
        }
        if clean + marked + refused + open == 0 && !self.instances.is_empty() {
            let patterns = self.instances.join("`, `");
            return Err(CommandError::request(
                format!("no instance that scores a model fits `{patterns}`"),
                "name instances of the stage that evaluates".to_owned(),
            ));
        }
        println!("\n{clean} clean, {marked} in-domain and marked so, {refused} leaking, {open} open.");
        Ok(if refused + open == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }
}
