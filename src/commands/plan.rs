//! `siteline plan`

use std::process::ExitCode;

use clap::Args;
use serde_json::json;
use siteline_cache::Access;
use siteline_pipeline::manifest::selection::{self, Protocol};
use siteline_pipeline::plan::{Plan as Planned, Planner, State};

use super::{Outcome, count};
use crate::args::{Chosen, Common};
use crate::project::Project;

/// Show what would run and why, without running anything.
///
/// Counts by stage: how many instances are cached, must run, or wait for one that runs. An instance that waits may turn out
/// cached after all: if what it reads comes out with the same bytes, the wave stops there. Leakage is refused here.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  siteline plan\n  siteline plan -v --only 'train[method=mcdrl]'\n  siteline plan --set stages.train.with.epochs=2 --json"
)]
pub struct Plan {
    #[command(flatten)]
    chosen: Chosen,
    /// Show each instance, with the reason why it runs
    #[arg(short, long)]
    verbose: bool,
    /// As JSON on standard output
    #[arg(long)]
    json: bool,
}

impl Plan {
    pub fn run(self, common: &Common) -> Outcome {
        let project = Project::open(common, Access::Read)?;
        let mut planner = project.planner_of(&self.chosen)?;
        let plan = planner.plan()?;
        planner.refuse_contaminated(&plan)?;
        if self.json {
            println!("{}", as_json(&planner, &plan));
            return Ok(ExitCode::SUCCESS);
        }
        print!("{}", by_stage(&planner, &plan));
        for trainings in Trainings::of(&planner) {
            println!("{}", trainings.line());
        }
        if self.verbose {
            println!();
            for node in planner.graph.order.iter().filter(|n| planner.selected.contains(n)) {
                println!("{}", line(&planner, &plan, *node));
            }
        }
        let open = plan.open();
        std::mem::forget((planner, plan, project.graph.clone()));
        match open {
            0 => println!("\nEverything is up to date."),
            open => println!(
                "\n{} to run. `siteline run` runs them; `siteline plan -v` says why each.",
                count(open, "instance")
            ),
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// What a stage's selection costs, all of its sweep counted.
#[derive(serde::Serialize)]
struct Trainings {
    stage: String,
    protocols: Vec<Protocol>,
    among: Vec<String>,
    /// Trainings without the held-out site.
    without_one: usize,
    /// Trainings without each pair of sites, for leave-one-domain-out.
    without_two: usize,
    /// Held-out sites.
    sites: usize,
    /// Pairs of them, where any protocol needs them.
    pairs: usize,
}

impl Trainings {
    fn of(planner: &Planner) -> Vec<Self> {
        let counts = planner.graph.by_stage();
        let values = |axis: &str| planner.loaded.axes.get(axis).map_or(0, |axis| axis.listed);
        let selecting = planner.loaded.manifest.stages.iter();
        selecting
            .filter_map(|(name, stage)| {
                let selection = stage.selection.as_ref()?;
                let pairs = selection::pairs_of(name);
                let without_two = counts.get(pairs.as_str()).copied().unwrap_or(0);
                Some(Self {
                    stage: name.clone(),
                    protocols: selection.protocol.list().to_vec(),
                    among: selection.among.clone(),
                    without_one: counts.get(name.as_str()).copied().unwrap_or(0),
                    without_two,
                    sites: values(&selection.held_out),
                    pairs: if without_two > 0 { values(selection::LEFT_OUT) } else { 0 },
                })
            })
            .collect()
    }

    fn line(&self) -> String {
        let protocols: Vec<&str> = self.protocols.iter().map(|protocol| protocol.name()).collect();
        let each = match self.pairs {
            0 => format!("{} trainings for each candidate", self.sites),
            pairs => format!("{} + {pairs} trainings for each candidate", self.sites),
        };
        let all = self.without_one + self.without_two;
        format!(
            "\n{} chooses among {} by {}: {each} and repetition, {all} in all",
            self.stage,
            self.among.join(", "),
            protocols.join(", "),
        )
    }
}

fn line(planner: &Planner, plan: &Planned, node: siteline_pipeline::NodeIndex) -> String {
    let name = &planner.graph.dag[node].name;
    match plan.state(node) {
        State::Cached(record) => format!("  cached  {name}  ({})", record.key.short()),
        State::Stale { reason } => format!("  run     {name}  because {reason}"),
        State::Waiting { on } => {
            let first = &planner.graph.dag[on[0]].name;
            let more = if on.len() > 1 { format!(" and {} more", on.len() - 1) } else { String::new() };
            format!("  wait    {name}  for {first}{more}")
        }
        State::NotSelected => format!("  -       {name}"),
    }
}

/// A table of stages: cached, run, wait.
pub fn by_stage(planner: &Planner, plan: &Planned) -> String {
    let mut text = format!("{:24} {:>8} {:>8} {:>8} {:>8}\n", "stage", "all", "cached", "run", "wait");
    for stage in planner.loaded.manifest.stages.keys() {
        let (mut cached, mut stale, mut waiting) = (0, 0, 0);
        for node in planner.graph.dag.node_indices().filter(|n| *planner.graph.dag[*n].stage == **stage) {
            match plan.state(node) {
                State::Cached(_) => cached += 1,
                State::Stale { .. } => stale += 1,
                State::Waiting { .. } => waiting += 1,
                State::NotSelected => {}
            }
        }
        let all = cached + stale + waiting;
        text.push_str(&format!("{stage:24} {all:>8} {cached:>8} {stale:>8} {waiting:>8}\n"));
    }
    text
}

fn as_json(planner: &Planner, plan: &Planned) -> String {
    let instances: Vec<_> = planner
        .graph
        .order
        .iter()
        .filter(|node| planner.selected.contains(node))
        .map(|node| {
            let instance = &planner.graph.dag[*node];
            let (state, detail) = match plan.state(*node) {
                State::Cached(record) => ("cached", json!({"key": record.key})),
                State::Stale { reason } => ("run", json!({"why": reason, "because": reason.to_string()})),
                State::Waiting { on } => {
                    ("wait", json!({"on": on.iter().map(|n| &planner.graph.dag[*n].name).collect::<Vec<_>>()}))
                }
                State::NotSelected => ("not-selected", json!({})),
            };
            let mut entry =
                json!({"instance": instance.name, "stage": instance.stage.as_ref(), "point": instance.point, "state": state});
            if let (Some(entry), Some(detail)) = (entry.as_object_mut(), detail.as_object()) {
                entry.extend(detail.clone());
            }
            entry
        })
        .collect();
    let all = json!({
        "manifest": planner.loaded.manifest.name,
        "selections": Trainings::of(planner),
        "instances": instances,
    });
    serde_json::to_string_pretty(&all).expect("a plan is JSON")
}
