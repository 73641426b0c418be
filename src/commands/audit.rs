//! `siteline audit`

use std::collections::{BTreeSet, HashMap};
use std::process::ExitCode;

use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use siteline_cache::Access;
use siteline_pipeline::leakage::{self, Sides};
use siteline_pipeline::plan::{Plan, Planner, State};
use siteline_pipeline::protocol::{Identities, Purpose, SourceFrom};
use siteline_pipeline::{NodeIndex, printable};

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
    /// As JSON on standard output; `siteline schema --json-of audit` describes it
    #[arg(long)]
    json: bool,
}

/// What was found of every score.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Audited {
    /// Scores whose model saw nothing of what it is scored on.
    clean: usize,
    /// Scores in-domain by the manifest's own word.
    in_domain: usize,
    /// Scores whose model saw what it is scored on.
    leaking: usize,
    /// Scores of which that is not known yet.
    open: usize,
    /// Scores of which it cannot be known, as nothing tells the images that they come from.
    unknown: usize,
    /// Each of them.
    scores: Vec<Score>,
}

/// What was found of one score.
#[derive(Debug, Serialize, JsonSchema)]
struct Score {
    /// The instance that scores.
    instance: String,
    /// In a word.
    verdict: Verdict,
    /// What its model was trained on.
    trained_on: Seen,
    /// What it is scored on.
    scored_on: Seen,
    /// What the two have in common.
    in_common: InCommon,
}

/// One side of a score.
#[derive(Debug, Serialize, JsonSchema)]
struct Seen {
    /// Names of sites.
    sites: BTreeSet<String>,
    /// Number of images.
    images: usize,
    /// Number of patients.
    patients: usize,
}

/// How much two sides have in common.
#[derive(Debug, Serialize, JsonSchema)]
struct InCommon {
    /// Sites.
    sites: usize,
    /// Patients.
    patients: usize,
    /// Images that are the same byte for byte.
    images: usize,
}

impl Audit {
    pub fn run(self, common: &Common) -> Outcome {
        let project = Project::open(common, Access::Read)?;
        let mut planner = project.planner()?;
        let plan = planner.plan()?;
        let asked: BTreeSet<NodeIndex> = find_instances(&planner, &self.instances)?.into_iter().collect();
        let known = Known::of(&planner, &plan);
        let chosen = leakage::chosen_by_oracle(planner.loaded, &planner.graph);
        let mut scores = Vec::new();
        for Sides { scorer, trained, scored } in leakage::sides(planner.loaded, &planner.graph) {
            if !self.instances.is_empty() && !asked.contains(&scorer) {
                continue;
            }
            let instance = &planner.graph.dag[scorer];
            let (model, test) = (known.side(&trained), known.side(&scored));
            scores.push(Score::of(&instance.name, model, test, instance.in_domain, chosen[scorer.index()]));
        }
        if scores.is_empty() && !self.instances.is_empty() {
            let patterns = self.instances.join("`, `");
            return Err(CommandError::request(
                format!("no instance that scores a model fits `{patterns}`"),
                "name instances of the stage that evaluates".to_owned(),
            ));
        }
        let of = |verdict: Verdict| scores.iter().filter(|score| score.verdict == verdict).count();
        let clean = of(Verdict::Clean) + of(Verdict::CleanButChosen);
        let (in_domain, leaking) = (of(Verdict::InDomain), of(Verdict::Leaks));
        let (open, unknown) = (of(Verdict::Open), of(Verdict::Unknown));
        let audited = Audited { clean, in_domain, leaking, open, unknown, scores };
        if self.json {
            outln!("{}", printable::json(&audited, true));
        } else if audited.scores.is_empty() {
            outln!("No stage scores a model: none reads one input of the role `model` and one of the role `scored`.");
        } else {
            audited.scores.iter().for_each(Score::show);
            outln!(
                "\n{clean} clean, {in_domain} in-domain and marked so, {leaking} leaking, {open} open, {unknown} unknown."
            );
        }
        Ok(if leaking + open + unknown == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }
}

/// What is known of the images that scores come from.
struct Known {
    sites: leakage::Reached,
    /// By the instance that ingested them.
    identities: HashMap<NodeIndex, Identities>,
    /// The instances that ingest images, whether they ran or not.
    sources: BTreeSet<NodeIndex>,
    /// The instances that read data without telling which images those are.
    blind: BTreeSet<NodeIndex>,
}

/// One side of a score, by its images.
#[derive(Default)]
struct Side {
    sites: BTreeSet<String>,
    patients: BTreeSet<String>,
    pixels: BTreeSet<siteline_cache::Digest>,
    images: usize,
    /// How many sources are not ingested yet.
    open: usize,
    /// Whether data came in that nothing is known of.
    blind: bool,
}

impl Known {
    fn of(planner: &Planner, plan: &Plan) -> Self {
        let mut known = Self {
            sites: leakage::sites(planner.loaded, &planner.graph),
            identities: HashMap::new(),
            sources: BTreeSet::new(),
            blind: BTreeSet::new(),
        };
        let identifies =
            |node: &NodeIndex| planner.kind(*node).outputs.iter().any(|o| o.purpose == Purpose::Identities);
        let reads_data = |node: &NodeIndex| {
            let stage = &planner.loaded.manifest.stages[planner.graph.dag[*node].stage.as_ref()];
            let is_site = planner.kind(*node).sources.iter().any(|source| source.from == SourceFrom::Site);
            is_site || !stage.files.is_empty()
        };
        known.blind = planner.graph.dag.node_indices().filter(|n| reads_data(n) && !identifies(n)).collect();
        for node in planner.graph.dag.node_indices().filter(identifies) {
            known.sources.insert(node);
            if let State::Cached(record) = plan.state(node) {
                known.identities.extend(planner.identities(node, record).ok().flatten().map(|found| (node, found)));
            }
        }
        known
    }

    fn side(&self, nodes: &BTreeSet<NodeIndex>) -> Side {
        let mut side = Side { sites: self.sites.of(nodes), ..Side::default() };
        for node in nodes {
            match self.identities.get(node) {
                Some(known) => {
                    side.images += known.samples.len();
                    side.patients.extend(known.samples.iter().map(|s| s.patient.clone()));
                    side.pixels.extend(known.samples.iter().map(|s| s.pixels));
                }
                None => side.open += usize::from(self.sources.contains(node)),
            }
            side.blind |= self.blind.contains(node);
        }
        side
    }
}

/// What is found of a score.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    /// Its model saw nothing of what it is scored on.
    Clean,
    /// Likewise, but an oracle chose the model by these very scores.
    CleanButChosen,
    /// The manifest says that it is scored on what it was trained on.
    InDomain,
    /// Its model saw what it is scored on.
    Leaks,
    /// Not all sites are ingested.
    Open,
    /// Nothing tells which images it comes from.
    Unknown,
}

impl Verdict {
    fn words(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::CleanButChosen => "clean, but for the choice of the model: an oracle made it, and tables say so",
            Self::InDomain => "in-domain, as the manifest says",
            Self::Leaks => "LEAKS",
            Self::Open => "OPEN: not all sites are ingested yet",
            Self::Unknown => "UNKNOWN: it comes from files that no `ingest` has told the images and patients of",
        }
    }
}

impl Score {
    fn of(instance: &str, model: Side, test: Side, in_domain: bool, chosen_by_oracle: bool) -> Self {
        let in_common = InCommon {
            sites: model.sites.intersection(&test.sites).count(),
            patients: model.patients.intersection(&test.patients).count(),
            images: model.pixels.intersection(&test.pixels).count(),
        };
        let verdict = match in_common.sites + in_common.patients + in_common.images {
            0 if model.open + test.open > 0 => Verdict::Open,
            0 if model.blind || test.blind || test.images == 0 => Verdict::Unknown,
            0 if chosen_by_oracle => Verdict::CleanButChosen,
            0 => Verdict::Clean,
            _ if in_domain => Verdict::InDomain,
            _ => Verdict::Leaks,
        };
        let seen = |side: Side| Seen { sites: side.sites, images: side.images, patients: side.patients.len() };
        Self { instance: instance.to_owned(), verdict, trained_on: seen(model), scored_on: seen(test), in_common }
    }

    fn show(&self) {
        let of = |side: &Seen| {
            let sites = side.sites.iter().cloned().collect::<Vec<_>>().join(", ");
            format!("{sites} ({}, {})", count(side.images, "image"), count(side.patients, "patient"))
        };
        outln!("{}: {}", self.instance, self.verdict.words());
        outln!("  trained on {}", of(&self.trained_on));
        outln!("  scored on  {}", of(&self.scored_on));
        outln!(
            "  in common  {}, {}, {}",
            count(self.in_common.sites, "site"),
            count(self.in_common.patients, "patient"),
            count(self.in_common.images, "byte-identical image")
        );
    }
}
