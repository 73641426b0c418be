//! Joins: what each instance reads. Axes that both stages have must be equal, axes that only the needed one has are gathered.

use std::collections::HashMap;
use std::sync::Arc;

use petgraph::graph::NodeIndex;

use super::Read;
use super::expand::{Builder, Members};
use crate::manifest::{Join, Stage};
use crate::pattern::Condition;

/// More joins than fit into memory.
const MOST_JOINS: usize = 20_000_000;

/// A need of one stage, ready to be asked instance by instance.
struct Prepared<'b> {
    needed: &'b Members,
    filter: Option<Condition>,
    when: Option<Condition>,
    /// Axes of the asking stage whose labels find candidates.
    ask: Vec<usize>,
    /// Candidates by those labels.
    by_labels: HashMap<Vec<&'b str>, Vec<usize>>,
}

impl Prepared<'_> {
    /// The axes of the asking stage that decide what is found, by place.
    fn deciding(&self, own: &[String]) -> Vec<usize> {
        let conditions = [&self.filter, &self.when];
        let words: Vec<&str> = conditions
            .into_iter()
            .flatten()
            .flat_map(Condition::comparisons)
            .flat_map(|(left, right)| [left.word.as_str(), right.word.as_str()])
            .collect();
        let decides = |place: &usize| self.ask.contains(place) || words.contains(&own[*place].as_str());
        (0..own.len()).filter(decides).collect()
    }
}

impl<'a> Builder<'a> {
    /// Pairs of axes that must be equal: those of one name, and those that `where` says so of.
    fn equal_axes(own: &[String], needed: &[String], filter: Option<&Condition>) -> Vec<(usize, usize)> {
        let place = |per: &[String], axis: &str| per.iter().position(|known| known == axis);
        let mut pairs: Vec<(usize, usize)> =
            needed.iter().enumerate().filter_map(|(there, axis)| Some((place(own, axis)?, there))).collect();
        for (left, right) in filter.map(Condition::equalities).unwrap_or_default() {
            for (mine, theirs) in [(left, right), (right, left)] {
                // An axis that both have is the asking stage's own.
                let only_there = place(needed, theirs).filter(|_| place(own, theirs).is_none());
                if let (Some(here), Some(there)) = (place(own, mine), only_there) {
                    pairs.push((here, there));
                }
            }
        }
        pairs
    }

    fn label(&self, axis: &str, place: u32) -> &str {
        &self.labels[axis][place as usize]
    }

    fn prepare(&self, own: &[String], join: &Join) -> Prepared<'_> {
        let parse = |text: &Option<String>| text.as_ref().and_then(|t| Condition::parse(t).ok());
        let (filter, when) = (parse(&join.filter), parse(&join.when));
        let needed = &self.by_stage[join.stage.as_str()];
        let pairs = Self::equal_axes(own, &needed.per, filter.as_ref());
        let mut by_labels: HashMap<Vec<&str>, Vec<usize>> = HashMap::new();
        for (index, (_, places)) in needed.nodes.iter().enumerate() {
            let labels = pairs.iter().map(|(_, there)| self.label(&needed.per[*there], places[*there])).collect();
            by_labels.entry(labels).or_default().push(index);
        }
        Prepared { needed, filter, when, ask: pairs.iter().map(|(here, _)| *here).collect(), by_labels }
    }

    pub(super) fn joins(&mut self, name: &'a str, stage: &'a Stage) {
        let kind = &self.loaded.kinds[self.loaded.kind_of(name)];
        let mut needs: Vec<_> = stage.needs.iter().collect();
        needs.sort_by(|a, b| a.0.cmp(b.0));
        let members = std::mem::take(&mut self.by_stage.get_mut(name).expect("the stage was spelled out").nodes);
        let mut reads: Vec<Vec<Read>> = vec![Vec::new(); members.len()];
        for (input, need) in needs {
            let Some(spec) = kind.inputs.iter().find(|spec| spec.name == *input) else { continue };
            let join = need.join();
            let path = ["stages", name, "needs", input];
            let shared: Arc<str> = input.as_str().into();
            let found = self.join(&stage.per, &members, &join, &shared, &mut reads);
            if self.joined > MOST_JOINS {
                let message = format!("`{input}` joins more than {MOST_JOINS} pairs of instances");
                self.add(&path, message, Some("narrow it with `where`".into()));
                break;
            }
            for (place, count) in found {
                let instance = self.dag[members[place].0].name.clone();
                if count == 0 && !spec.optional {
                    let message =
                        format!("`{instance}` finds nothing for `{input}` among the instances of `{}`", join.stage);
                    self.add(&path, message, Some("a need that exists at some points only says so with `when`".into()));
                    break;
                }
                if count > 1 && !spec.many {
                    self.too_many(&path, &instance, &stage.per, &join, count, &reads[place]);
                    break;
                }
            }
        }
        for ((node, _), reads) in members.iter().zip(reads) {
            for read in &reads {
                self.dag.add_edge(read.node, *node, ());
            }
            self.reads[node.index()] = reads.into();
        }
        self.by_stage.get_mut(name).expect("the stage was spelled out").nodes = members;
    }

    /// Adds what every member reads by one input. Returns how many artifacts each found, members without the need left out.
    fn join(
        &mut self,
        own: &[String],
        members: &[(NodeIndex, Box<[u32]>)],
        join: &Join,
        input: &Arc<str>,
        reads: &mut [Vec<Read>],
    ) -> Vec<(usize, usize)> {
        let mut joined = self.joined;
        let prepared = self.prepare(own, join);
        // What is gathered is listed in the order of points.
        let rank = |index: &usize| {
            let instance = &self.dag[prepared.needed.nodes[*index].0];
            (&instance.point, &instance.name)
        };
        let mut counts = Vec::with_capacity(members.len());
        // What a member finds depends on few of its axes: thousands of members find the same.
        let deciding = prepared.deciding(own);
        let mut known: HashMap<Box<[u32]>, Option<Vec<usize>>> = HashMap::new();
        for (member, (_, places)) in members.iter().enumerate() {
            let decided_by: Box<[u32]> = deciding.iter().map(|axis| places[*axis]).collect();
            let fitting = known.entry(decided_by).or_insert_with(|| {
                let mut fitting = self.fitting(&prepared, own, places)?;
                fitting.sort_unstable_by(|a, b| rank(a).cmp(&rank(b)));
                Some(fitting)
            });
            let Some(fitting) = fitting else { continue };
            joined += fitting.len();
            if joined > MOST_JOINS {
                break;
            }
            counts.push((member, fitting.len()));
            let read = |index: &usize| Read { input: input.clone(), node: prepared.needed.nodes[*index].0 };
            reads[member].reserve_exact(fitting.len());
            reads[member].extend(fitting.iter().map(read));
        }
        drop(prepared);
        self.joined = joined;
        counts
    }

    /// The artifacts that a member reads by one input, as places among the needed stage's instances; `None` where the member
    /// does not have the need.
    fn fitting(&self, prepared: &Prepared, own: &[String], places: &[u32]) -> Option<Vec<usize>> {
        let mine =
            |axis: &str| own.iter().position(|known| known == axis).map(|place| self.label(&own[place], places[place]));
        if prepared.when.as_ref().is_some_and(|condition| !condition.holds(&mine)) {
            return None;
        }
        let labels: Vec<&str> = prepared.ask.iter().map(|axis| self.label(&own[*axis], places[*axis])).collect();
        let fits = |index: &&usize| {
            let (_, there) = &prepared.needed.nodes[**index];
            let per = &prepared.needed.per;
            let theirs = |axis: &str| {
                per.iter().position(|known| known == axis).map(|place| self.label(&per[place], there[place]))
            };
            let either = |axis: &str| mine(axis).or_else(|| theirs(axis));
            prepared.filter.as_ref().is_none_or(|condition| condition.holds(&either))
        };
        Some(prepared.by_labels.get(&labels).into_iter().flatten().filter(fits).copied().collect())
    }

    fn too_many(&mut self, path: &[&str], instance: &str, per: &[String], join: &Join, count: usize, reads: &[Read]) {
        let input = path[3];
        let of_input: Vec<&Read> = reads.iter().filter(|read| read.input.as_ref() == input).collect();
        let shown: Vec<_> = of_input.iter().take(3).map(|read| self.dag[read.node].name.clone()).collect();
        let stage = &join.stage;
        let message = format!(
            "`{instance}` finds {count} instances of `{stage}` for `{input}`, which takes one: {}",
            shown.join(", ")
        );
        let axes = self.dag[of_input[0].node].point.keys();
        let missing: Vec<_> = axes.filter(|axis| !per.contains(axis)).cloned().collect();
        let hint = format!("choose one with `where`, or repeat the stage `per` {}", missing.join(", "));
        self.add(path, message, Some(hint));
    }
}
