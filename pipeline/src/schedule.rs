//! Which instance may start next: states, one transition function, resource pools. No input or output.
//!
//! ```text
//! Waiting --all inputs done--> Ready --resources free--> Running --> Done
//!    |                          |  \--result in the store----------> Done
//!    |                          |                          \-------> Failed
//!    \--an input failed--> Blocked <-- (everything behind Failed)
//! ```

use std::collections::BTreeSet;

use petgraph::graph::NodeIndex;

use crate::graph::Graph;
use crate::protocol::Resources;

/// Where an instance stands in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It is not part of this run.
    Out,
    /// Some of its inputs are not done.
    Waiting,
    /// All inputs are done; it holds no resources.
    Ready,
    /// It holds resources and is at work.
    Running,
    /// Its result is in the store.
    Done,
    /// It failed.
    Failed,
    /// Something that it reads from failed.
    Blocked,
}

/// CPU slots and GPUs.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    cpu: usize,
    all_cpu: usize,
    gpus: BTreeSet<String>,
    all_gpus: usize,
}

/// What a running instance holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Held {
    /// CPU slots, and threads for the work.
    pub(crate) cpu: usize,
    /// GPUs.
    pub(crate) gpus: Vec<String>,
}

impl Pool {
    pub(crate) fn new(cpu: usize, gpus: &[String]) -> Self {
        Self { cpu, all_cpu: cpu, gpus: gpus.iter().cloned().collect(), all_gpus: gpus.len() }
    }

    /// Takes what `wanted` asks for. More than the machine has is brought down to what it has, so that the same manifest
    /// runs on a laptop and on a server; a GPU that no machine has is done without.
    pub(crate) fn take(&mut self, wanted: &Resources) -> Option<Held> {
        let (cpu, gpu) = (wanted.cpu.min(self.all_cpu).max(1), wanted.gpu.min(self.all_gpus));
        if self.cpu < cpu || self.gpus.len() < gpu {
            return None;
        }
        self.cpu -= cpu;
        let gpus: Vec<String> = self.gpus.iter().take(gpu).cloned().collect();
        gpus.iter().for_each(|index| {
            self.gpus.remove(index);
        });
        Some(Held { cpu, gpus })
    }

    pub(crate) fn give(&mut self, held: Held) {
        self.cpu += held.cpu;
        self.gpus.extend(held.gpus);
    }
}

/// The phases of all instances.
pub(crate) struct Schedule<'a> {
    graph: &'a Graph,
    phases: Vec<Phase>,
    /// Inputs that are not done yet, by node index.
    missing: Vec<usize>,
    /// Place in the topological order, by node index: who comes first among the ready.
    rank: Vec<usize>,
    ready: BTreeSet<(usize, NodeIndex)>,
}

impl<'a> Schedule<'a> {
    /// All selected instances wait; those without inputs are ready.
    pub(crate) fn new(graph: &'a Graph, selected: &BTreeSet<NodeIndex>) -> Self {
        let count = graph.dag.node_count();
        let mut rank = vec![0; count];
        graph.order.iter().enumerate().for_each(|(place, node)| rank[node.index()] = place);
        let mut schedule =
            Self { graph, phases: vec![Phase::Out; count], missing: vec![0; count], rank, ready: BTreeSet::new() };
        for node in selected {
            schedule.missing[node.index()] = graph.reads(*node).len();
            schedule.set(*node, Phase::Waiting);
        }
        for node in selected.iter().filter(|n| schedule.missing[n.index()] == 0).copied().collect::<Vec<_>>() {
            schedule.set(node, Phase::Ready);
        }
        schedule
    }

    pub(crate) fn phase(&self, node: NodeIndex) -> Phase {
        self.phases[node.index()]
    }

    /// The ready instances, the one to look at first in front.
    pub(crate) fn ready(&self) -> Vec<NodeIndex> {
        self.ready.iter().map(|(_, node)| *node).collect()
    }

    /// The only place where a phase changes; what follows from the change follows here. Returns the instances that a
    /// failure blocked.
    pub(crate) fn set(&mut self, node: NodeIndex, phase: Phase) -> Vec<NodeIndex> {
        self.ready.remove(&(self.rank[node.index()], node));
        self.phases[node.index()] = phase;
        match phase {
            Phase::Ready => {
                self.ready.insert((self.rank[node.index()], node));
            }
            Phase::Done => {
                for reader in self.readers(node) {
                    self.missing[reader.index()] -= 1;
                    if self.missing[reader.index()] == 0 && self.phase(reader) == Phase::Waiting {
                        self.set(reader, Phase::Ready);
                    }
                }
            }
            Phase::Failed => {
                let mut blocked = Vec::new();
                let mut waiting = self.readers(node);
                while let Some(reader) = waiting.pop() {
                    if self.phase(reader) == Phase::Waiting {
                        self.set(reader, Phase::Blocked);
                        blocked.push(reader);
                        waiting.extend(self.readers(reader));
                    }
                }
                blocked.sort();
                return blocked;
            }
            _ => {}
        }
        Vec::new()
    }

    /// Blocks what nobody will read any more: instances that wait or are ready while all their readers failed or are blocked.
    pub(crate) fn block_useless(&mut self) -> Vec<NodeIndex> {
        let mut blocked = Vec::new();
        let dead = |phase: Phase| matches!(phase, Phase::Failed | Phase::Blocked);
        for node in self.graph.order.iter().rev() {
            let readers = self.readers(*node);
            let open = matches!(self.phase(*node), Phase::Waiting | Phase::Ready);
            if open && !readers.is_empty() && readers.iter().all(|reader| dead(self.phase(*reader))) {
                self.set(*node, Phase::Blocked);
                blocked.push(*node);
            }
        }
        blocked
    }

    /// The selected instances that read from `node`, once for each input that they read it by.
    fn readers(&self, node: NodeIndex) -> Vec<NodeIndex> {
        let readers = self.graph.dag.edges_directed(node, petgraph::Direction::Outgoing);
        readers.map(|e| petgraph::visit::EdgeRef::target(&e)).filter(|n| self.phase(*n) != Phase::Out).collect()
    }

    /// Whether nothing can happen any more unless something running ends.
    pub(crate) fn is_over(&self) -> bool {
        self.phases.iter().all(|p| !matches!(p, Phase::Ready | Phase::Running | Phase::Waiting))
    }
}
