//! The plan: every instance of the sweep, and whether it is cached, must run, or waits for one that runs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use petgraph::graph::NodeIndex;
use siteline_cache::{Digest, Output, Record, RecordInput, Store};

use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::graph::Graph;
use crate::key::{KeyFile, KeyParts};
use crate::leakage;
use crate::manifest::Loaded;
use crate::pattern::InstancePattern;
use crate::protocol::{Point, RunSource, SourceFrom, StageKind};
use crate::source::Sources;
use crate::why::{self, Reason};

/// Where an instance stands before a run.
#[derive(Clone, Debug)]
pub enum State {
    /// Its result is in the store.
    Cached(Arc<Record>),
    /// It must run.
    Stale {
        /// Why.
        reason: Reason,
    },
    /// It reads from instances that run first; whether it must run too depends on what they make.
    Waiting {
        /// Those instances.
        on: Vec<NodeIndex>,
    },
    /// It was not asked for.
    NotSelected,
}

/// All that an instance needs in order to run, and the key of its result.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The parts of its key.
    pub parts: KeyParts,
    /// The key.
    pub key: Digest,
    /// What it reads from other executions, with the points of those.
    pub inputs: Vec<(Point, RecordInput)>,
    /// What it reads from outside the store.
    pub sources: BTreeMap<String, RunSource>,
}

/// A manifest, its instances, and the store that they are looked up in.
pub struct Planner<'a> {
    /// The manifest.
    pub loaded: &'a Loaded,
    /// The kinds of the pack.
    pub kinds: &'a [StageKind],
    /// The store.
    pub store: &'a Store,
    /// The instances.
    pub graph: Arc<Graph>,
    /// Those that were asked for, and whatever they are made from.
    pub selected: BTreeSet<NodeIndex>,
    sources: Sources<'a>,
}

/// What is planned for each instance.
pub struct Plan {
    /// By node index.
    pub states: Vec<State>,
}

impl Plan {
    /// The state of an instance.
    pub fn state(&self, node: NodeIndex) -> &State {
        &self.states[node.index()]
    }

    /// Instances that must run or may have to.
    pub fn open(&self) -> usize {
        self.states.iter().filter(|s| matches!(s, State::Stale { .. } | State::Waiting { .. })).count()
    }
}

impl<'a> Planner<'a> {
    /// Spells out the sweep and refuses one whose models are scored on what they were trained on.
    ///
    /// # Errors
    /// Joins that cannot be made, patterns that choose nothing, leakage.
    pub fn new(
        loaded: &'a Loaded,
        kinds: &'a [StageKind],
        store: &'a Store,
        only: &[InstancePattern],
    ) -> Result<Self, Diagnostics> {
        let graph = Graph::expand(loaded, kinds).map_err(|list| Diagnostics { list })?;
        let leaks = leakage::check_sites(loaded, kinds, &graph);
        if !leaks.is_empty() {
            return Err(Diagnostics { list: leaks });
        }
        let selected = select(loaded, &graph, only)?;
        Ok(Self { loaded, kinds, store, graph: Arc::new(graph), selected, sources: Sources::new(loaded, store) })
    }

    /// The kind of an instance.
    pub fn kind(&self, node: NodeIndex) -> &'a StageKind {
        &self.kinds[self.graph.dag[node].kind]
    }

    /// Looks every instance up.
    ///
    /// # Errors
    /// Sources that cannot be found, read or paired; all of them at once.
    pub fn plan(&mut self) -> Result<Plan, Diagnostics> {
        let mut states: Vec<State> = vec![State::NotSelected; self.graph.dag.node_count()];
        let mut found: Vec<Diagnostic> = Vec::new();
        for node in self.graph.order.clone() {
            if !self.selected.contains(&node) {
                continue;
            }
            let on: Vec<NodeIndex> = self
                .graph
                .reads(node)
                .into_iter()
                .map(|(_, needed)| needed)
                .filter(|needed| !matches!(states[needed.index()], State::Cached(_)))
                .collect();
            if !on.is_empty() {
                states[node.index()] = State::Waiting { on };
                continue;
            }
            let artifact = |needed: NodeIndex| match &states[needed.index()] {
                State::Cached(record) => record.clone(),
                _ => unreachable!("every input of this instance is cached"),
            };
            match self.resolve(node, &artifact) {
                Ok(resolved) => states[node.index()] = self.look_up(node, &resolved),
                Err(diagnostic) if found.contains(&diagnostic) => {}
                Err(diagnostic) => found.push(diagnostic),
            }
        }
        if found.is_empty() { Ok(Plan { states }) } else { Err(Diagnostics { list: found }) }
    }

    fn look_up(&self, node: NodeIndex, resolved: &Resolved) -> State {
        match self.store.lookup(&resolved.key) {
            Some(record) => State::Cached(Arc::new(record)),
            None => {
                let instance = &self.graph.dag[node].name;
                let manifest = &self.loaded.manifest.name;
                State::Stale { reason: why::reason(self.store, manifest, instance, &resolved.parts, &resolved.key) }
            }
        }
    }

    /// Works out the key of an instance whose inputs are all there.
    ///
    /// # Errors
    /// Sources that cannot be found, read or paired.
    pub fn resolve(
        &mut self,
        node: NodeIndex,
        artifact: &dyn Fn(NodeIndex) -> Arc<Record>,
    ) -> Result<Resolved, Diagnostic> {
        let kind = self.kind(node);
        let instance = self.graph.dag[node].clone();
        let mut files = Vec::new();
        let mut inputs = Vec::new();
        for (input, needed) in self.graph.reads(node) {
            let record = artifact(needed);
            let point = self.graph.dag[needed].point.clone();
            let spec = kind.inputs.iter().find(|spec| spec.name == input).expect("the manifest was checked");
            let read: Vec<Output> = record.outputs.iter().filter(|o| is_named(&spec.files, &o.path)).cloned().collect();
            files.extend(read.iter().map(|output| KeyFile {
                input: input.to_owned(),
                role: "output".to_owned(),
                point: point.clone(),
                label: output.path.clone(),
                digest: output.digest,
            }));
            let name = input.to_owned();
            inputs.push((point, RecordInput { name, instance: record.instance.clone(), key: record.key, files: read }));
        }
        let mut params = instance.params.clone();
        let mut sources = BTreeMap::new();
        for spec in &kind.sources {
            let source = match &spec.from {
                SourceFrom::Site => self.sources.site(&instance.point["site"])?,
                SourceFrom::Backbone => self.sources.backbone(&instance.point["backbone"])?,
                SourceFrom::Param(param) => {
                    let Some(value) = params.get(param).and_then(|v| v.as_str()).map(str::to_owned) else { continue };
                    // The path says where the content lies, and only the content counts.
                    params.remove(param);
                    self.sources.param(&instance.stage, param, &value)?
                }
            };
            files.extend(source.files.iter().map(|file| KeyFile {
                input: spec.name.clone(),
                role: file.role.clone(),
                point: Point::new(),
                label: file.label.clone(),
                digest: file.digest,
            }));
            if !source.settings.is_null() {
                let about = serde_json::json!({"name": source.name, "settings": source.settings});
                params.insert(format!("{} source", spec.name), about);
            }
            sources.insert(spec.name.clone(), source);
        }
        let parts = KeyParts::new(kind, &params, files);
        let key = parts.key();
        Ok(Resolved { parts, key, inputs, sources })
    }
}

/// Whether an output is among those that an input names; a name ending in `/` is a folder.
fn is_named(files: &[String], path: &str) -> bool {
    files.iter().any(|name| name == path || (name.ends_with('/') && path.starts_with(name.as_str())))
}

fn select(loaded: &Loaded, graph: &Graph, only: &[InstancePattern]) -> Result<BTreeSet<NodeIndex>, Diagnostics> {
    if only.is_empty() {
        return Ok(graph.dag.node_indices().collect());
    }
    let mut roots = Vec::new();
    for pattern in only {
        let before = roots.len();
        roots.extend(graph.dag.node_indices().filter(|n| pattern.fits(&graph.dag[*n].stage, &graph.dag[*n].point)));
        if roots.len() == before {
            let stages = loaded.manifest.stages.keys().map(String::as_str);
            let hint = crate::diagnostic::suggest(&pattern.stage, "the stages are", stages);
            let message = format!("no instance fits `{pattern}`");
            let file = loaded.path.clone();
            return Err(Diagnostics { list: vec![Diagnostic { file, span: None, message, hint: Some(hint) }] });
        }
    }
    Ok(graph.upstream(&roots))
}
