//! `siteline graph`

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use siteline_cache::Access;

use super::Outcome;
use crate::args::{Chosen, Common};
use crate::project::Project;

/// Print the stages, or all instances, as a graph for Graphviz or Mermaid.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  siteline graph | dot -Tsvg >graph.svg\n  siteline graph --format mermaid --instances --only 'table'"
)]
pub struct Graph {
    /// The language
    #[arg(long, value_enum, default_value_t = Format::Dot)]
    format: Format,
    /// Every instance instead of every stage
    #[arg(long)]
    instances: bool,
    #[command(flatten)]
    chosen: Chosen,
}

/// A graph language.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// Graphviz.
    Dot,
    /// Mermaid, as GitHub renders it.
    Mermaid,
}

impl Graph {
    pub fn run(self, common: &Common) -> Outcome {
        let project = Project::open(common, Access::Read)?;
        let planner = project.planner_of(&self.chosen)?;
        let name = |node: siteline_pipeline::NodeIndex| {
            let instance = &planner.graph.dag[node];
            if self.instances { instance.name.clone() } else { instance.stage.to_string() }
        };
        let mut nodes: Vec<String> = Vec::new();
        let mut edges: Vec<(String, String, String)> = Vec::new();
        for node in planner.graph.order.iter().copied().filter(|n| planner.selected.contains(n)) {
            if !nodes.contains(&name(node)) {
                nodes.push(name(node));
            }
            for (input, needed) in planner.graph.reads(node) {
                let edge = (name(needed), name(node), input.to_owned());
                if !edges.contains(&edge) {
                    edges.push(edge);
                }
            }
        }
        let id = |name: &str| nodes.iter().position(|n| n == name).unwrap_or(0);
        match self.format {
            Format::Dot => {
                outln!("digraph siteline {{\n  rankdir=LR;\n  node [shape=box, style=rounded];");
                nodes.iter().for_each(|node| outln!("  {node:?};"));
                edges.iter().for_each(|(from, to, input)| outln!("  {from:?} -> {to:?} [label={input:?}];"));
                outln!("}}");
            }
            Format::Mermaid => {
                outln!("flowchart LR");
                nodes.iter().for_each(|node| outln!("  n{}[\"{node}\"]", id(node)));
                edges.iter().for_each(|(from, to, input)| outln!("  n{} -->|{input}| n{}", id(from), id(to)));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
