//! Leakage: what flowed into each artifact, and the refusal to score a model on what it was trained on.
//!
//! Sites are known from the manifest alone, so a leaking manifest is refused before anything runs ([`refuse`]).
//! Patients and pixels are known once ingestion has read them: [`contaminated`] compares them as soon as they are.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use fixedbitset::FixedBitSet;
use petgraph::graph::NodeIndex;

use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::graph::{Graph, Instance};
use crate::manifest::{Kinds, Loaded};
use crate::protocol::{Identities, Role, SourceFrom, StageKind};

/// Whether what an instance reads by an input is made known as an oracle's: it chooses a model, and tables say so.
fn is_oracle(kinds: &Kinds, graph: &Graph, reader: NodeIndex, input: &str) -> bool {
    let kind = &kinds[graph.dag[reader].kind];
    kind.inputs.iter().any(|spec| spec.name == input && spec.role == Role::Oracle)
}

/// Which kinds have an input of a role.
fn kinds_with(kinds: &Kinds, role: Role) -> Vec<bool> {
    kinds.values().map(|kind| kind.inputs.iter().any(|input| input.role == role)).collect()
}

/// The sites whose raw files reached each instance, other than by an oracle.
pub struct Reached {
    names: Vec<String>,
    /// By node index, places among the names.
    sites: Vec<FixedBitSet>,
}

impl Reached {
    /// The sites that reached any of some instances.
    pub fn of<'n>(&self, nodes: impl IntoIterator<Item = &'n NodeIndex>) -> BTreeSet<String> {
        let mut all = FixedBitSet::new();
        nodes.into_iter().for_each(|node| all.union_with(&self.sites[node.index()]));
        all.ones().map(|place| self.names[place].clone()).collect()
    }

    fn has(&self, node: NodeIndex, site: &str) -> bool {
        self.sites[node.index()].ones().any(|place| self.names[place] == site)
    }
}

/// Follows the sites from their raw files through the graph.
pub fn sites(loaded: &Loaded, graph: &Graph) -> Reached {
    let names: Vec<String> = loaded.manifest.sites.keys().cloned().collect();
    let mut sites = vec![FixedBitSet::new(); graph.dag.node_count()];
    let reads_site = |kind: &StageKind| kind.sources.iter().any(|source| source.from == SourceFrom::Site);
    if !loaded.kinds.values().any(reads_site) {
        return Reached { names, sites };
    }
    for node in &graph.order {
        let instance = &graph.dag[*node];
        let mut reached = FixedBitSet::with_capacity(names.len());
        for (input, needed) in graph.reads(*node) {
            if !is_oracle(&loaded.kinds, graph, *node, input) {
                reached.union_with(&sites[needed.index()]);
            }
        }
        if reads_site(&loaded.kinds[instance.kind])
            && let Some(place) = instance.point.get("site").and_then(|site| names.iter().position(|name| name == site))
        {
            reached.insert(place);
        }
        sites[node.index()] = reached;
    }
    Reached { names, sites }
}

/// The instances that an oracle's choice reached: by node index.
pub fn chosen_by_oracle(loaded: &Loaded, graph: &Graph) -> Vec<bool> {
    let mut reached = vec![false; graph.dag.node_count()];
    let has_oracle = kinds_with(&loaded.kinds, Role::Oracle);
    if !graph.dag.node_weights().any(|instance| has_oracle[instance.kind]) {
        return reached;
    }
    for node in &graph.order {
        reached[node.index()] = graph
            .reads(*node)
            .any(|(input, needed)| reached[needed.index()] || is_oracle(&loaded.kinds, graph, *node, input));
    }
    reached
}

/// Models that an oracle chose, in the hands of stages that would not pass on that it did: one diagnostic a stage.
fn check_oracles(loaded: &Loaded, graph: &Graph) -> Vec<Diagnostic> {
    const KEEPERS: [&str; 3] = ["select", "evaluate", "table"];
    let reached = chosen_by_oracle(loaded, graph);
    if !reached.contains(&true) {
        return Vec::new();
    }
    let mut stages = BTreeMap::new();
    for node in &graph.order {
        let instance = &graph.dag[*node];
        let reads_chosen = graph.reads(*node).find(|(_, needed)| reached[needed.index()]);
        let keeps = KEEPERS.contains(&loaded.kinds[instance.kind].name.as_str());
        if let (Some((input, needed)), false) = (reads_chosen, keeps) {
            stages.entry(instance.stage.as_ref()).or_insert((input, instance, &graph.dag[needed]));
        }
    }
    let diagnostic = |(stage, (input, instance, needed)): (&str, (&str, &Instance, &Instance))| Diagnostic {
        file: loaded.path.clone(),
        span: Some(loaded.place(&["stages", stage, "needs", input])),
        message: format!(
            "`{}` reads `{}`, which an oracle had a part in, and would not say so in what it makes",
            instance.name, needed.name
        ),
        hint: Some(
            "only `evaluate`, `select` and `table` keep the mark of an oracle; choose by another protocol".into(),
        ),
        detail: None,
    };
    stages.into_iter().map(diagnostic).collect()
}

/// The two sides of a score: instances that flowed into the model, and instances that it is scored on.
#[derive(Clone, Debug)]
pub struct Sides {
    /// The instance that scores.
    pub scorer: NodeIndex,
    /// What reached the model.
    pub trained: BTreeSet<NodeIndex>,
    /// What is scored.
    pub scored: BTreeSet<NodeIndex>,
}

/// The sides of every instance that scores a model, in the order of the graph.
pub fn sides(loaded: &Loaded, graph: &Graph) -> Vec<Sides> {
    let kinds = &loaded.kinds;
    let of_role = |node: NodeIndex, role: Role| {
        let kind = &kinds[graph.dag[node].kind];
        let inputs: BTreeSet<&str> =
            kind.inputs.iter().filter(|input| input.role == role).map(|input| input.name.as_str()).collect();
        let mut waiting: Vec<_> = graph.reads(node).filter(|(i, _)| inputs.contains(i)).map(|(_, n)| n).collect();
        let mut seen = BTreeSet::new();
        while let Some(node) = waiting.pop() {
            if seen.insert(node) {
                waiting.extend(graph.reads(node).filter(|(i, _)| !is_oracle(kinds, graph, node, i)).map(|(_, n)| n));
            }
        }
        seen
    };
    let scores = kinds_with(kinds, Role::Scored);
    graph
        .order
        .iter()
        .filter(|node| scores[graph.dag[**node].kind])
        .map(|node| Sides { scorer: *node, trained: of_role(*node, Role::Model), scored: of_role(*node, Role::Scored) })
        .collect()
}

/// Refuses a sweep that leaks.
///
/// # Errors
/// Scores of models on sites that reached their training, and models that an oracle chose in the hands of stages that would not say so.
pub fn refuse(loaded: &Loaded, graph: &Graph) -> Result<(), Diagnostics> {
    let mut list = check_sites(loaded, graph);
    list.extend(check_oracles(loaded, graph));
    if list.is_empty() { Ok(()) } else { Err(Diagnostics { list }) }
}

/// Scores of models on sites that reached their training, one diagnostic a stage, with the path of the leak.
fn check_sites(loaded: &Loaded, graph: &Graph) -> Vec<Diagnostic> {
    let reached = sites(loaded, graph);
    let mut by_stage: BTreeMap<String, (Vec<String>, usize, NodeIndex, String)> = BTreeMap::new();
    for sides in sides(loaded, graph) {
        let instance = &graph.dag[sides.scorer];
        if instance.in_domain {
            continue;
        }
        let (trained, scored) = (reached.of(&sides.trained), reached.of(&sides.scored));
        let Some(site) = trained.intersection(&scored).next() else { continue };
        let path = leak_path(&loaded.kinds, graph, sides.scorer, site, &reached);
        by_stage
            .entry(instance.stage.to_string())
            .and_modify(|entry| entry.1 += 1)
            .or_insert_with(|| (path.iter().map(|n| graph.dag[*n].name.clone()).collect(), 1, path[1], site.clone()));
    }
    by_stage
        .into_iter()
        .map(|(stage, (path, count, culprit, site))| {
            let culprit = &graph.dag[culprit];
            let needs = ["stages", culprit.stage.as_ref(), "needs"];
            let span = loaded.place(&needs);
            let key_span = loaded.key_place(&needs);
            let others = if count > 1 { format!(" ({} more such scores)", count - 1) } else { String::new() };
            Diagnostic {
                file: loaded.path.clone(),
                span: Some(if span.is_empty() { key_span } else { span }),
                message: format!(
                    "leakage: `{}` scores a model on the site `{site}`, which reached its training{others}",
                    path[0]
                ),
                detail: Some(format!("  by way of {}", path[1..].join("\n         from "))),
                hint: Some(format!(
                    "keep it out with `where: site != held_out` in the training's `needs`, or write `in_domain: true` in the stage `{stage}` to report it as in-domain"
                )),
            }
        })
        .collect()
}

/// From the scorer through the model back to the raw files of `site`.
fn leak_path(kinds: &Kinds, graph: &Graph, scorer: NodeIndex, site: &str, reached: &Reached) -> Vec<NodeIndex> {
    let kind = &kinds[graph.dag[scorer].kind];
    let is_model = |input: &str| kind.inputs.iter().any(|spec| spec.name == input && spec.role == Role::Model);
    let carries = |node: &NodeIndex| reached.has(*node, site);
    let mut path = vec![scorer];
    let mut next = graph.reads(scorer).filter(|(i, _)| is_model(i)).map(|(_, n)| n).find(carries);
    while let Some(node) = next {
        path.push(node);
        next = graph.reads(node).map(|(_, n)| n).find(carries);
    }
    path
}

/// One sample on both sides of a score.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contamination {
    /// The instance that would score.
    pub scorer: String,
    /// In words.
    pub message: String,
}

/// Patients and pixels that are on both sides of a score. `identities` holds what each ingested instance contains;
/// instances that are not in it are not known yet and count as empty.
pub fn contaminated(
    graph: &Graph,
    sides: &Sides,
    identities: &HashMap<NodeIndex, Identities>,
) -> Option<Contamination> {
    let scorer = &graph.dag[sides.scorer];
    if scorer.in_domain {
        return None;
    }
    let samples = |nodes: &BTreeSet<NodeIndex>| {
        let known: Vec<_> = nodes.iter().filter_map(|n| identities.get(n).map(|i| (*n, i))).collect();
        known
    };
    let trained = samples(&sides.trained);
    let mut patients = HashMap::new();
    let mut pixels = HashMap::new();
    for (node, known) in &trained {
        for sample in &known.samples {
            patients.entry(sample.patient.as_str()).or_insert((*node, sample.id.as_str()));
            pixels.entry(sample.pixels).or_insert((*node, sample.id.as_str()));
        }
    }
    for (node, known) in samples(&sides.scored) {
        for sample in &known.samples {
            let here = format!("`{}` of `{}`", sample.id, graph.dag[node].name);
            let there = |(node, id): (NodeIndex, &str)| format!("`{id}` of `{}`", graph.dag[node].name);
            let message = if let Some(twin) = pixels.get(&sample.pixels) {
                format!("{here} has the very pixels of {}, which reached the model's training", there(*twin))
            } else if let Some(twin) = patients.get(sample.patient.as_str()) {
                format!(
                    "{here} shows the patient `{}`, as does {}, which reached the model's training",
                    sample.patient,
                    there(*twin)
                )
            } else {
                continue;
            };
            return Some(Contamination { scorer: scorer.name.clone(), message });
        }
    }
    None
}
