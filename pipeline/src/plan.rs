//! The plan: every instance of the sweep, and whether it is cached, must run, or waits for one that runs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use petgraph::graph::NodeIndex;
use rayon::prelude::*;
use rustc_hash::{FxHashMap, FxHashSet};
use siteline_cache::{Digest, Hit, Output, Parts, RecordInput, Store};

use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::graph::{Gathered, Graph};
use crate::key::{self, Group, KeyFile, KeyParts, Recipe};
use crate::leakage;
use crate::manifest::Loaded;
use crate::protocol::{InputSpec, Point, RunSource, SourceFile, StageKind};
use crate::select::Selection;
use crate::source::Sources;
use crate::why::{self, Reason};

/// Where an instance stands before a run.
#[derive(Clone, Debug)]
pub enum State {
    /// Its result is in the store.
    Cached(Arc<Hit>),
    /// It must run.
    Stale {
        /// The key of the result that it will make.
        key: Digest,
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
    /// The parts of its key, as JSON.
    pub parts: Parts,
    /// The key.
    pub key: Digest,
    /// What it reads from other executions.
    pub inputs: Vec<Input>,
    /// What it reads from outside the store.
    pub sources: BTreeMap<String, Arc<RunSource>>,
}

/// What an instance reads from another execution.
#[derive(Clone, Debug)]
pub struct Input {
    /// The point of the instance that made it.
    pub point: Point,
    /// The input's name, and the execution.
    pub from: RecordInput,
    /// The files that are read.
    pub files: Vec<Output>,
    /// Whether many instances read it.
    pub shared: bool,
}

/// So many readers are not many: it is as quick for each to link to the files as to share a folder of links, which has to be made and
/// removed for them.
const FEW: usize = 3;

/// A recipe and its digest.
type Known = Arc<(Recipe, Digest)>;
/// What a recipe is made of: the kind, the shared parameters, and the sources whose settings join them.
type RecipeId = (usize, usize, Vec<usize>);
/// What a group of gathered files is made of: the list of those that are read, and the kind and the input that read them.
type GroupId = (usize, usize, usize);

/// A manifest, its instances, and the store that they are looked up in.
pub struct Planner<'a> {
    /// The manifest.
    pub loaded: &'a Loaded,
    /// The store.
    pub store: &'a Store,
    /// The instances.
    pub graph: Arc<Graph>,
    /// Those that were asked for, and whatever they are made from.
    pub selected: BTreeSet<NodeIndex>,
    /// Those that run again whatever the store has.
    pub forced: BTreeSet<NodeIndex>,
    sources: Sources<'a>,
    recipes: FxHashMap<RecipeId, Known>,
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
    /// Chooses from a sweep, and refuses one whose models are scored on what they were trained on.
    ///
    /// # Errors
    /// Patterns that choose nothing, leakage.
    pub fn new(
        loaded: &'a Loaded,
        store: &'a Store,
        graph: Arc<Graph>,
        selection: &Selection,
    ) -> Result<Self, Diagnostics> {
        leakage::refuse(loaded, &graph)?;
        let (selected, forced) = selection.choose(loaded, &graph)?;
        let sources = Sources::new(loaded, store);
        Ok(Self { loaded, store, graph, selected, forced, sources, recipes: FxHashMap::default() })
    }

    /// The kind of an instance.
    pub fn kind(&self, node: NodeIndex) -> &'a StageKind {
        &self.loaded.kinds[self.graph.dag[node].kind]
    }

    /// Looks every instance up, a generation at a time: first what reads from no other, then what reads from those.
    ///
    /// # Errors
    /// Sources that cannot be found, read or paired; all of them at once.
    pub fn plan(&mut self) -> Result<Plan, Diagnostics> {
        let graph = self.graph.clone();
        let mut states: Vec<State> = vec![State::NotSelected; graph.dag.node_count()];
        let mut found: Vec<Diagnostic> = Vec::new();
        for generation in generations(&graph, &self.selected) {
            let mut ready = Vec::with_capacity(generation.len());
            for node in generation {
                let waits = |needed: &NodeIndex| !matches!(states[needed.index()], State::Cached(_));
                let on: Vec<NodeIndex> = graph.reads(node).map(|(_, needed)| needed).filter(waits).collect();
                if on.is_empty() {
                    match self.find_sources(node) {
                        Ok(()) => ready.push(node),
                        Err(diagnostic) if found.contains(&diagnostic) => {}
                        Err(diagnostic) => found.push(diagnostic),
                    }
                } else {
                    states[node.index()] = State::Waiting { on };
                }
            }
            self.work_out_recipes(&ready);
            for (node, state) in self.look_up(&ready, &states) {
                states[node.index()] = state;
            }
        }
        if found.is_empty() { Ok(Plan { states }) } else { Err(Diagnostics { list: found }) }
    }

    /// The digests of the groups of files that several instances read, each worked out once.
    fn groups<'h>(
        &self,
        nodes: &[NodeIndex],
        hit: &(impl Fn(NodeIndex) -> &'h Hit + Sync),
    ) -> FxHashMap<GroupId, Option<Digest>> {
        let mut wanted: FxHashMap<GroupId, (&InputSpec, &Gathered)> = FxHashMap::default();
        for node in nodes {
            for gathered in self.graph.gathered(*node).iter().filter(|gathered| gathered.is_shared()) {
                let (id, spec) = self.group_id(*node, gathered);
                wanted.entry(id).or_insert((spec, gathered));
            }
        }
        let digest = |(id, (spec, gathered)): (GroupId, (&InputSpec, &Gathered))| {
            (id, self.group(spec, gathered, hit).map(|group| group.digest))
        };
        let wanted: Vec<_> = wanted.into_iter().collect();
        wanted.into_par_iter().with_min_len(32).map(digest).collect()
    }

    fn group<'s, 'h: 's>(
        &'s self,
        spec: &'s InputSpec,
        gathered: &Gathered,
        hit: &impl Fn(NodeIndex) -> &'h Hit,
    ) -> Option<Group<'s>> {
        let files = gathered.nodes.iter().flat_map(|needed| self.made(spec, *needed, hit));
        Group::new(&spec.name, true, files.collect())
    }

    fn group_id(&self, node: NodeIndex, gathered: &Gathered) -> (GroupId, &InputSpec) {
        let kind = self.graph.dag[node].kind;
        let mut inputs = self.loaded.kinds[kind].inputs.iter().enumerate();
        let (place, spec) = inputs.find(|(_, spec)| *spec.name == *gathered.input).expect("the manifest was checked");
        ((Arc::as_ptr(&gathered.nodes).cast::<u8>() as usize, kind, place), spec)
    }

    /// What an instance made, as far as an input reads it.
    fn made<'s, 'h: 's>(
        &'s self,
        spec: &'s InputSpec,
        needed: NodeIndex,
        hit: &impl Fn(NodeIndex) -> &'h Hit,
    ) -> impl Iterator<Item = KeyFile<'s>> {
        let point = &self.graph.dag[needed].point;
        hit(needed).outputs.iter().filter(|output| is_named(&spec.files, &output.path)).map(|output| KeyFile {
            input: spec.name.as_str().into(),
            role: key::MADE.into(),
            point: std::borrow::Cow::Borrowed(point),
            label: output.path.as_str().into(),
            digest: output.digest,
        })
    }

    /// The files of an instance's sources, source by source.
    fn raw(&self, node: NodeIndex) -> impl Iterator<Item = (&str, Vec<KeyFile<'_>>)> {
        self.sources.of(node, self.kind(node)).map(|(name, source)| {
            let file = |file: &'_ SourceFile| KeyFile {
                input: name.to_owned().into(),
                role: file.role.clone().into(),
                point: std::borrow::Cow::Owned(Point::new()),
                label: file.label.clone().into(),
                digest: file.digest,
            };
            (name, source.files.iter().map(file).collect())
        })
    }

    fn look_up(&self, nodes: &[NodeIndex], states: &[State]) -> Vec<(NodeIndex, State)> {
        let hit = |needed: NodeIndex| match &states[needed.index()] {
            State::Cached(hit) => hit.as_ref(),
            _ => unreachable!("every input of this instance is cached"),
        };
        let known = self.groups(nodes, &hit);
        let key = |node: &NodeIndex| {
            let gathered = self.graph.gathered(*node).iter().filter_map(|gathered| {
                let (id, spec) = self.group_id(*node, gathered);
                match known.get(&id) {
                    Some(digest) => digest.map(|digest| Group { input: &gathered.input, made: true, digest }),
                    None => self.group(spec, gathered, &hit),
                }
            });
            let raw = self.raw(*node).filter_map(|(name, files)| Group::new(name, false, files));
            key::key_of(&self.recipes[&self.recipe_id(*node)].1, gathered.chain(raw).collect())
        };
        let keys: Vec<Digest> = nodes.par_iter().with_min_len(64).map(key).collect();
        let hits = self.store.lookup_all(&keys);
        let mut all = Vec::with_capacity(nodes.len());
        for ((node, key), hit_of_key) in nodes.iter().zip(keys).zip(hits) {
            let state = match hit_of_key {
                Some(_) if self.forced.contains(node) => State::Stale { key, reason: Reason::Forced },
                Some(hit) => State::Cached(Arc::new(hit)),
                None => {
                    let instance = &self.graph.dag[*node].name;
                    let manifest = &self.loaded.manifest.name;
                    let reason = self
                        .with_parts(*node, &hit, |parts, _| why::reason(self.store, manifest, instance, &parts, &key));
                    State::Stale { key, reason }
                }
            };
            all.push((*node, state));
        }
        all
    }

    /// Finds and hashes what an instance reads from outside the store, and works out its recipe, where that was not done yet.
    fn prepare(&mut self, node: NodeIndex) -> Result<(), Diagnostic> {
        self.find_sources(node)?;
        self.work_out_recipes(&[node]);
        Ok(())
    }

    fn find_sources(&mut self, node: NodeIndex) -> Result<(), Diagnostic> {
        let kind = self.kind(node);
        if kind.sources.is_empty() {
            return Ok(());
        }
        self.sources.find(node, kind, &self.graph.dag[node])
    }

    /// Works out the recipes of instances whose sources were found, those that are not known yet.
    fn work_out_recipes(&mut self, nodes: &[NodeIndex]) {
        let with_id = |node: &NodeIndex| (self.recipe_id(*node), *node);
        let mut lacking: Vec<(RecipeId, NodeIndex)> = nodes.par_iter().with_min_len(64).map(with_id).collect();
        let mut seen = FxHashSet::default();
        lacking.retain(|(id, _)| !self.recipes.contains_key(id) && seen.insert(id.clone()));
        let recipe = |(id, node): (RecipeId, NodeIndex)| {
            let kind = self.kind(node);
            let recipe = Recipe::new(kind, &self.sources.into_params(node, kind, &self.graph.dag[node]));
            let digest = recipe.digest();
            (id, Arc::new((recipe, digest)))
        };
        let made: Vec<(RecipeId, Known)> = lacking.into_par_iter().with_min_len(64).map(recipe).collect();
        self.recipes.extend(made);
    }

    fn recipe_id(&self, node: NodeIndex) -> RecipeId {
        let instance = &self.graph.dag[node];
        let sources = self.sources.of(node, self.kind(node));
        let places = sources.map(|(_, source)| Arc::as_ptr(source) as usize).collect();
        (instance.kind, Arc::as_ptr(&instance.params) as usize, places)
    }

    /// Hands the parts of an instance's key, and its recipe's digest, to `take`. The instance was prepared.
    fn with_parts<'h, T>(
        &self,
        node: NodeIndex,
        hit: &impl Fn(NodeIndex) -> &'h Hit,
        take: impl FnOnce(KeyParts, &Digest) -> T,
    ) -> T {
        let mut files: Vec<KeyFile> = Vec::new();
        for gathered in self.graph.gathered(node) {
            let (_, spec) = self.group_id(node, gathered);
            files.extend(gathered.nodes.iter().flat_map(|needed| self.made(spec, *needed, hit)));
        }
        files.extend(self.raw(node).flat_map(|(_, files)| files));
        let known = &self.recipes[&self.recipe_id(node)];
        take(KeyParts::new(&known.0, files), &known.1)
    }

    /// The key of an instance whose inputs are all there.
    ///
    /// # Errors
    /// Sources that cannot be found, read or paired.
    pub fn key<'h>(&mut self, node: NodeIndex, hit: &impl Fn(NodeIndex) -> &'h Hit) -> Result<Digest, Diagnostic> {
        self.prepare(node)?;
        Ok(self.with_parts(node, hit, |parts, recipe| parts.key_with(recipe)))
    }

    /// What the key of an instance whose inputs are all there is made of.
    ///
    /// # Errors
    /// Sources that cannot be found, read or paired.
    pub fn parts<'h>(&mut self, node: NodeIndex, hit: &impl Fn(NodeIndex) -> &'h Hit) -> Result<Parts, Diagnostic> {
        self.prepare(node)?;
        Ok(self.with_parts(node, hit, |parts, _| Parts::of(&parts).expect("key parts are JSON")))
    }

    /// All that an instance whose inputs are there, and whose key is `key`, needs in order to run.
    ///
    /// # Errors
    /// Sources that cannot be found, read or paired.
    pub fn resolve<'h>(
        &mut self,
        node: NodeIndex,
        key: Digest,
        hit: &impl Fn(NodeIndex) -> &'h Hit,
    ) -> Result<Resolved, Diagnostic> {
        let parts = self.parts(node, hit)?;
        let kind = self.kind(node);
        let gathered = self.graph.gathered(node).iter();
        let reads = gathered.flat_map(|gathered| gathered.nodes.iter().map(move |needed| (gathered, *needed)));
        let inputs = reads.map(|(gathered, needed)| {
            let input: &str = &gathered.input;
            let spec = kind.inputs.iter().find(|spec| spec.name == input).expect("the manifest was checked");
            let from = hit(needed);
            let files: Vec<Output> = from.outputs.iter().filter(|o| is_named(&spec.files, &o.path)).cloned().collect();
            let read = RecordInput { name: input.to_owned(), instance: from.instance.clone(), key: from.key };
            // Where several are gathered, what counts is who gathers the very same.
            let shared = match gathered.nodes.len() {
                1 => self.graph.readers(needed).nth(FEW).is_some(),
                _ => Arc::strong_count(&gathered.nodes) > FEW,
            };
            Input { point: self.graph.dag[needed].point.clone(), from: read, files, shared }
        });
        let sources = self.sources.of(node, kind);
        let sources = sources.map(|(name, source)| (name.to_owned(), source.clone())).collect();
        Ok(Resolved { parts, key, inputs: inputs.collect(), sources })
    }
}

/// The selected instances by their distance from those that read from no other.
fn generations(graph: &Graph, selected: &BTreeSet<NodeIndex>) -> Vec<Vec<NodeIndex>> {
    let mut depth = vec![0usize; graph.dag.node_count()];
    let mut all: Vec<Vec<NodeIndex>> = Vec::new();
    for node in graph.order.iter().filter(|node| selected.contains(node)) {
        let own = graph.reads(*node).map(|(_, needed)| depth[needed.index()] + 1).max().unwrap_or(0);
        depth[node.index()] = own;
        if all.len() <= own {
            all.resize_with(own + 1, Vec::new);
        }
        all[own].push(*node);
    }
    all
}

/// Whether an output is among those that an input names; a name ending in `/` is a folder, `*` is everything.
fn is_named(files: &[String], path: &str) -> bool {
    files.iter().any(|name| name == "*" || name == path || (name.ends_with('/') && path.starts_with(name.as_str())))
}
