//! The sweep, spelled out: one instance for each stage and point, and the joins between them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use petgraph::graph::{DiGraph, NodeIndex};
use serde_json::{Map, Value};

use crate::diagnostic::Diagnostics;
use crate::manifest::Loaded;
use crate::protocol::{Point, Resources};

mod expand;
mod join;
mod params;

pub(crate) use expand::MOST_INSTANCES;

/// One stage at one point of its axes.
#[derive(Clone, Debug)]
pub struct Instance {
    /// The stage.
    pub stage: Arc<str>,
    /// `train[method=mcdrl,held_out=C,seed=0]`, axes in the order of the stage's `per`.
    pub name: String,
    /// Axis to label.
    pub point: Point,
    /// Index of its kind.
    pub kind: usize,
    /// Parameters: the kind's defaults, the stage's, the point's. Instances with the same ones share them.
    pub params: Arc<Map<String, Value>>,
    /// What it occupies while it runs.
    pub resources: Arc<Resources>,
    /// Which repetition of the sweep it belongs to: the place of its `seed` on that axis.
    pub round: usize,
    /// Whether it may score a model on a site that the model was trained on.
    pub in_domain: bool,
}

/// What an instance reads by one input.
#[derive(Clone, Debug)]
pub struct Gathered {
    /// The input's name.
    pub input: Arc<str>,
    /// The instances that make it, in the order of points. Instances that read the same share one list.
    pub nodes: Arc<[NodeIndex]>,
}

impl Gathered {
    /// Whether other instances read the same list.
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.nodes) > 1
    }
}

/// All instances and their joins.
#[derive(Debug)]
pub struct Graph {
    /// The instances; node indices are their places. An edge leads from what is read to what reads it.
    pub dag: DiGraph<Instance, ()>,
    /// What each instance reads, in the order of input names and of points.
    reads: Vec<Box<[Gathered]>>,
    /// An order in which every instance comes behind those that it reads.
    pub order: Vec<NodeIndex>,
}

impl Graph {
    /// Spells out a manifest.
    ///
    /// # Errors
    /// A sweep without bounds, joins that find nothing or too much, parameters that are missing once all is known.
    pub fn expand(loaded: &Loaded) -> Result<Self, Diagnostics> {
        let mut builder = expand::Builder::new(loaded);
        builder.refuse_absurd();
        builder.give_up()?;
        builder.instances();
        builder.give_up()?;
        builder.refuse_empty();
        builder.give_up()?;
        builder.joins();
        builder.give_up()?;
        builder.check_required();
        builder.give_up()?;
        let order = in_order(&builder.dag);
        Ok(Self { dag: builder.dag, reads: builder.reads, order })
    }

    /// The instances that an instance reads, with the input's name, in the order of their names.
    pub fn reads(&self, node: NodeIndex) -> impl Iterator<Item = (&str, NodeIndex)> + Clone {
        self.gathered(node).iter().flat_map(|read| read.nodes.iter().map(|node| (read.input.as_ref(), *node)))
    }

    /// The same, input by input.
    pub fn gathered(&self, node: NodeIndex) -> &[Gathered] {
        &self.reads[node.index()]
    }

    /// The instances that read from an instance, once for each input that they read it by.
    pub fn readers(&self, node: NodeIndex) -> impl Iterator<Item = NodeIndex> {
        self.dag.neighbors_directed(node, petgraph::Direction::Outgoing)
    }

    /// Instances and everything that they are made from.
    pub fn upstream(&self, roots: &[NodeIndex]) -> BTreeSet<NodeIndex> {
        self.reach(roots, petgraph::Direction::Incoming)
    }

    /// Instances and everything that is made from them.
    pub fn downstream(&self, roots: &[NodeIndex]) -> BTreeSet<NodeIndex> {
        self.reach(roots, petgraph::Direction::Outgoing)
    }

    fn reach(&self, roots: &[NodeIndex], direction: petgraph::Direction) -> BTreeSet<NodeIndex> {
        let mut seen = BTreeSet::new();
        let mut waiting = roots.to_vec();
        while let Some(node) = waiting.pop() {
            if seen.insert(node) {
                waiting.extend(self.dag.neighbors_directed(node, direction));
            }
        }
        seen
    }

    /// How many instances each stage has, by stage.
    pub fn by_stage(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        self.dag.node_weights().for_each(|instance| *counts.entry(instance.stage.as_ref()).or_default() += 1);
        counts
    }
}

/// A topological order that keeps to the manifest's: among instances that could come next, the one written first does.
fn in_order<N>(dag: &DiGraph<N, ()>) -> Vec<NodeIndex> {
    // Most manifests write what is read in front of what reads it: then their own order is this one.
    if dag.raw_edges().iter().all(|edge| edge.source() < edge.target()) {
        return dag.node_indices().collect();
    }
    next_by_next(dag)
}

fn next_by_next<N>(dag: &DiGraph<N, ()>) -> Vec<NodeIndex> {
    let mut missing: Vec<usize> =
        dag.node_indices().map(|n| dag.edges_directed(n, petgraph::Direction::Incoming).count()).collect();
    let free = dag.node_indices().filter(|n| missing[n.index()] == 0);
    let mut ready: std::collections::BinaryHeap<_> = free.map(std::cmp::Reverse).collect();
    let mut order = Vec::with_capacity(dag.node_count());
    while let Some(std::cmp::Reverse(node)) = ready.pop() {
        order.push(node);
        for reader in dag.neighbors_directed(node, petgraph::Direction::Outgoing) {
            missing[reader.index()] -= 1;
            if missing[reader.index()] == 0 {
                ready.push(std::cmp::Reverse(reader));
            }
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// What is written in order stays so, by either way.
        #[test]
        fn an_order_that_holds_is_kept(pairs in prop::collection::vec((0_u32..40, 0_u32..40), 0..120)) {
            let forward = pairs.iter().filter(|(a, b)| a != b).map(|(a, b)| (*a.min(b), *a.max(b)));
            let mut dag: DiGraph<(), ()> = DiGraph::from_edges(forward);
            prop_assert_eq!(in_order(&dag), dag.node_indices().collect::<Vec<_>>());
            prop_assert_eq!(next_by_next(&dag), in_order(&dag));
            // And what is not comes behind what it reads.
            dag.reverse();
            let order = in_order(&dag);
            let place = |node: NodeIndex| order.iter().position(|other| *other == node);
            prop_assert_eq!(order.len(), dag.node_count());
            prop_assert!(dag.raw_edges().iter().all(|edge| place(edge.source()) < place(edge.target())));
        }
    }
}
