//! Which instance may start next: states, one transition function, resource pools. No input or output.
//!
//! ```text
//! Waiting --all inputs done--> Ready --resources free--> Running --> Done
//!    |                          |  ^---another attempt-----'  |
//!    |                          |  \--result in the store------> Done
//!    |                          |                          \-------> Failed
//!    \--an input failed--> Blocked <-- (everything behind Failed)
//! ```
//!
//! Among the ready the first repetition of the sweep comes first (the first value on the axis `seed`), with all that it needs, so
//! that a first full table is there early; within one repetition a score comes as soon as its model is trained, in the manifest's
//! order, so that the table fills.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use petgraph::graph::NodeIndex;
use rustc_hash::FxHashMap;

use crate::graph::Graph;
use crate::protocol::{self, Resources};

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
    /// Its result is there.
    Done,
    /// It failed.
    Failed,
    /// Something that it reads from failed.
    Blocked,
}

impl Phase {
    fn is_open(self) -> bool {
        matches!(self, Self::Waiting | Self::Ready | Self::Running)
    }
}

/// CPU slots, GPUs, memory, tokens.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    /// Below 0 while instances are let in ahead.
    cpu: isize,
    all_cpu: usize,
    gpus: BTreeSet<String>,
    all_gpus: usize,
    memory: u64,
    all_memory: u64,
    tokens: BTreeMap<String, usize>,
}

/// What a running instance holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Held {
    /// CPU slots, and threads for the work.
    pub(crate) cpu: usize,
    /// GPUs.
    pub(crate) gpus: Vec<String>,
    memory: u64,
    tokens: BTreeMap<String, usize>,
}

impl Pool {
    pub(crate) fn new(cpu: usize, gpus: &[String], memory: u64, tokens: &BTreeMap<String, usize>) -> Self {
        Self {
            cpu: cpu as isize,
            all_cpu: cpu,
            gpus: gpus.iter().cloned().collect(),
            all_gpus: gpus.len(),
            memory,
            all_memory: memory,
            tokens: tokens.clone(),
        }
    }

    /// What `wanted` takes here. More than the machine has is brought down to what it has, so that the same manifest runs on a
    /// laptop and on a server; a GPU that no machine has is done without.
    fn share(&self, wanted: &Resources) -> (usize, usize, u64) {
        let memory = wanted.memory.as_ref().and_then(|text| protocol::bytes(text).ok()).unwrap_or(0);
        let (cpu, gpu) = (wanted.cpu.unwrap_or(1), wanted.gpu.unwrap_or(0));
        (cpu.min(self.all_cpu).max(1), gpu.min(self.all_gpus), memory.min(self.all_memory))
    }

    /// `wanted` with its part of the free slots, of which `ready` instances may take some. For work whose slots nobody fixed and
    /// that any number of threads carries out to the same end; where GPUs do it, threads are not what it waits for.
    pub(crate) fn stretched(&self, wanted: &Resources, ready: usize) -> Resources {
        let part = usize::try_from(self.cpu).unwrap_or(0) / ready.max(1);
        let fixed = wanted.cpu.is_some() || self.gpus_for(wanted) > 0;
        Resources { cpu: if fixed { wanted.cpu } else { Some(part.max(1)) }, ..wanted.clone() }
    }

    pub(crate) fn has(&self, wanted: &Resources) -> bool {
        let (cpu, gpu, memory) = self.share(wanted);
        let tokens = wanted.tokens.iter().all(|(name, count)| self.tokens.get(name).is_some_and(|left| left >= count));
        self.cpu >= cpu as isize && self.gpus.len() >= gpu && self.memory >= memory && tokens
    }

    /// Whether an instance that asks for nothing but slots may be let in ahead of them: it is prepared meanwhile and waits at
    /// the gate.
    fn has_ahead(&self, wanted: &Resources) -> bool {
        let plain = wanted.gpu.unwrap_or(0) == 0 && wanted.memory.is_none() && wanted.tokens.is_empty();
        plain && self.cpu + self.all_cpu as isize >= self.share(wanted).0 as isize
    }

    /// How many GPUs `wanted` takes here.
    pub(crate) fn gpus_for(&self, wanted: &Resources) -> usize {
        self.share(wanted).1
    }

    /// The GPUs that nothing of this run holds.
    pub(crate) fn free_gpus(&self) -> impl Iterator<Item = &String> {
        self.gpus.iter()
    }

    /// Takes what `wanted` asks for, these GPUs among it; whoever asks has looked whether it is there.
    pub(crate) fn take(&mut self, wanted: &Resources, gpus: Vec<String>) -> Held {
        let (cpu, _, memory) = self.share(wanted);
        self.cpu -= cpu as isize;
        self.memory -= memory;
        gpus.iter().for_each(|index| {
            self.gpus.remove(index);
        });
        for (name, count) in &wanted.tokens {
            self.tokens.entry(name.clone()).and_modify(|left| *left -= count);
        }
        Held { cpu, gpus, memory, tokens: wanted.tokens.clone() }
    }

    pub(crate) fn give(&mut self, held: Held) {
        self.cpu += held.cpu as isize;
        self.memory += held.memory;
        self.gpus.extend(held.gpus);
        for (name, count) in held.tokens {
            *self.tokens.entry(name).or_default() += count;
        }
    }
}

/// Instances that are ready and ask for the same resources, by rank.
struct Class {
    resources: Arc<Resources>,
    /// Whether they may be let in ahead of their slots.
    ahead: bool,
    /// Whether the last of them was done in no time. What takes long is not let in ahead: it would hold its lease while other runs,
    /// which have slots for it, wait.
    quick: bool,
    ready: BTreeSet<(usize, NodeIndex)>,
}

/// The phases of all instances.
pub(crate) struct Schedule<'a> {
    graph: &'a Graph,
    phases: Vec<Phase>,
    /// Inputs that are not done yet, by node index.
    missing: Vec<usize>,
    /// Who comes first among the ready, by node index.
    rank: Vec<usize>,
    classes: Vec<Class>,
    class_of: Vec<usize>,
    open: usize,
}

impl<'a> Schedule<'a> {
    /// All of `open` wait; those that read from none of them are ready. `ahead` says which may be let in ahead of their slots.
    pub(crate) fn new(graph: &'a Graph, open: &[NodeIndex], ahead: impl Fn(NodeIndex) -> bool) -> Self {
        let count = graph.dag.node_count();
        let mut classes: Vec<Class> = Vec::new();
        let mut class_of = vec![0; count];
        let mut known: FxHashMap<*const Resources, usize> = FxHashMap::default();
        for node in open.iter().copied() {
            let resources = &graph.dag[node].resources;
            class_of[node.index()] = *known.entry(Arc::as_ptr(resources)).or_insert_with(|| {
                classes.push(Class {
                    resources: resources.clone(),
                    ahead: ahead(node),
                    quick: false,
                    ready: BTreeSet::new(),
                });
                classes.len() - 1
            });
        }
        let rank = if open.is_empty() { Vec::new() } else { ranks(graph) };
        let phases = vec![Phase::Out; count];
        let mut schedule = Self { graph, phases, missing: vec![0; count], rank, classes, class_of, open: 0 };
        for node in open {
            schedule.set(*node, Phase::Waiting);
        }
        for node in open {
            let waits_for = graph.reads(*node).filter(|(_, needed)| schedule.phase(*needed) != Phase::Out);
            schedule.missing[node.index()] = waits_for.count();
        }
        for node in open.iter().filter(|n| schedule.missing[n.index()] == 0).copied().collect::<Vec<_>>() {
            schedule.set(node, Phase::Ready);
        }
        schedule
    }

    pub(crate) fn phase(&self, node: NodeIndex) -> Phase {
        self.phases[node.index()]
    }

    /// The ready instance to look at first, among those whose resources are free and that `may` be looked at.
    pub(crate) fn next(&self, pool: &Pool, may: &impl Fn(NodeIndex) -> bool) -> Option<NodeIndex> {
        let first = |class: &Class| class.ready.iter().find(|(_, node)| may(*node)).copied();
        let ready: Vec<_> = self.classes.iter().filter_map(|class| Some((first(class)?, class))).collect();
        let free = ready.iter().filter(|(_, class)| pool.has(&class.resources)).map(|(entry, _)| *entry).min();
        // Nobody is let in ahead of one that comes first and waits for its slots.
        let next = || ready.iter().min_by_key(|(entry, _)| *entry);
        let may_wait = |class: &Class| class.ahead && class.quick && pool.has_ahead(&class.resources);
        let ahead = || next().filter(|(_, class)| may_wait(class)).map(|(entry, _)| *entry);
        free.or_else(ahead).map(|(_, node)| node)
    }

    /// An instance took so long, and others of its stage will.
    pub(crate) fn took(&mut self, node: NodeIndex, time: Duration) {
        const QUICK: Duration = Duration::from_millis(500);
        self.classes[self.class_of[node.index()]].quick = time < QUICK;
    }

    /// How many instances are ready.
    pub(crate) fn ready(&self) -> usize {
        self.classes.iter().map(|class| class.ready.len()).sum()
    }

    /// The only place where a phase changes; what follows from the change follows here. Returns the instances that a
    /// failure blocked.
    pub(crate) fn set(&mut self, node: NodeIndex, phase: Phase) -> Vec<NodeIndex> {
        let entry = (self.rank[node.index()], node);
        let class = self.class_of[node.index()];
        let before = std::mem::replace(&mut self.phases[node.index()], phase);
        if before == Phase::Ready {
            self.classes[class].ready.remove(&entry);
        }
        self.open = self.open + usize::from(phase.is_open()) - usize::from(before.is_open());
        match phase {
            Phase::Ready => {
                self.classes[class].ready.insert(entry);
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
                    if matches!(self.phase(reader), Phase::Waiting | Phase::Ready) {
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
        self.graph.readers(node).filter(|n| self.phase(*n) != Phase::Out).collect()
    }

    /// Whether nothing can happen any more.
    pub(crate) fn is_over(&self) -> bool {
        self.open == 0
    }
}

/// Places by repetition; in a repetition, what ends it in the manifest's order, each behind all that it needs: so a score comes as
/// soon as its model is trained, and the table fills while later models are. What is needed by an early repetition belongs to it.
fn ranks(graph: &Graph) -> Vec<usize> {
    let mut round: Vec<usize> = graph.dag.node_weights().map(|instance| instance.round).collect();
    // What gathers several repetitions belongs to the last of them, what they share to the first.
    for node in graph.order.iter().filter(|node| graph.dag[**node].round == 0) {
        round[node.index()] = graph.reads(*node).map(|(_, needed)| round[needed.index()]).max().unwrap_or(0);
    }
    for node in graph.order.iter().rev() {
        let first = graph.readers(*node).map(|reader| round[reader.index()]).min();
        round[node.index()] = first.map_or(round[node.index()], |first| first.min(round[node.index()]));
    }
    let of = |node: NodeIndex| round[node.index()];
    let ends = |node: &NodeIndex| graph.readers(*node).all(|reader| of(reader) > of(*node));
    let mut ends: Vec<NodeIndex> = graph.order.iter().copied().filter(ends).collect();
    ends.sort_by_key(|node| of(*node));
    let mut depth = vec![0; round.len()];
    for node in &graph.order {
        depth[node.index()] = graph.reads(*node).map(|(_, needed)| depth[needed.index()] + 1).max().unwrap_or(0);
    }
    // What takes most steps comes first: with its scores a model is done with.
    let needs = |node: NodeIndex| {
        let mut needs: Vec<NodeIndex> = graph.reads(node).map(|(_, needed)| needed).collect();
        needs.sort_by_key(|needed| std::cmp::Reverse(depth[needed.index()]));
        needs.into_iter()
    };
    // Whatever does not end its repetition is needed by something that does.
    let unseen = usize::MAX;
    let (mut ranks, mut next) = (vec![unseen; round.len()], 0);
    for end in ends {
        let mut path = vec![(end, needs(end))];
        while let Some((node, left)) = path.last_mut() {
            match left.find(|needed| ranks[needed.index()] == unseen) {
                Some(needed) => path.push((needed, needs(needed))),
                None => {
                    ranks[node.index()] = next;
                    next += 1;
                    path.pop();
                }
            }
        }
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_slots_are_divided_among_the_ready_and_what_is_fixed_stays() {
        let mut pool = Pool::new(8, &["0".into()], 0, &BTreeMap::new());
        let plain = Resources::default();
        let cpu = |pool: &Pool, wanted: &Resources, ready| pool.stretched(wanted, ready).cpu;
        assert_eq!((cpu(&pool, &plain, 1), cpu(&pool, &plain, 3)), (Some(8), Some(2)));
        assert_eq!(cpu(&pool, &plain, 100), Some(1), "never none");
        let fixed = Resources { cpu: Some(3), ..Resources::default() };
        assert_eq!(cpu(&pool, &fixed, 1), Some(3));
        let on_gpu = Resources { gpu: Some(1), ..Resources::default() };
        assert_eq!(cpu(&pool, &on_gpu, 1), None, "a GPU does the work");
        let first = pool.take(&pool.stretched(&plain, 2), Vec::new());
        let second = pool.take(&pool.stretched(&plain, 1), Vec::new());
        assert_eq!((first.cpu, second.cpu, pool.cpu), (4, 4, 0));
        let ahead = pool.take(&plain, Vec::new());
        assert_eq!((ahead.cpu, cpu(&pool, &plain, 1)), (1, Some(1)), "slots that are owed are not free");
    }
}
