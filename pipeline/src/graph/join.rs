//! Joins: what each instance reads. Axes that both stages have must be equal, axes that only the needed one has are gathered.

use rustc_hash::FxHashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use petgraph::graph::NodeIndex;
use rayon::prelude::*;
use serde_json::{Map, Value};

use super::Gathered;
use super::expand::{Builder, Members};
use crate::diagnostic::Diagnostic;
use crate::manifest::{Join, Stage};
use crate::pattern::Condition;
use crate::protocol::InputCount;

/// More joins than fit into memory.
const MOST_JOINS: usize = 20_000_000;

/// A need of one stage, ready to be asked instance by instance.
struct Prepared<'b> {
    needed: &'b Members,
    filter: Option<Condition>,
    when: Option<Condition>,
    /// Axes of the asking stage whose labels find candidates, each with the labels' places on the needed stage's axis.
    ask: Vec<(usize, Vec<Option<u32>>)>,
    /// Candidates by those places.
    by_places: FxHashMap<Vec<u32>, Vec<usize>>,
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
        let asks = |place: &usize| self.ask.iter().any(|(asked, _)| asked == place);
        let decides = |place: &usize| asks(place) || words.contains(&own[*place].as_str());
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
        let mut by_places: FxHashMap<Vec<u32>, Vec<usize>> = FxHashMap::default();
        for (index, (_, places)) in needed.nodes.iter().enumerate() {
            by_places.entry(pairs.iter().map(|(_, there)| places[*there]).collect()).or_default().push(index);
        }
        let ask = pairs.iter().map(|(here, there)| (*here, self.places_on(&needed.per[*there], &own[*here])));
        Prepared { needed, filter, when, ask: ask.collect(), by_places }
    }

    /// Where the labels of the axis `of` stand on the axis `on`.
    fn places_on(&self, on: &str, of: &str) -> Vec<Option<u32>> {
        let place: FxHashMap<&str, u32> = self.labels[on].iter().map(String::as_str).zip(0..).collect();
        self.labels[of].iter().map(|label| place.get(label.as_str()).copied()).collect()
    }

    /// All joins; the stages are looked at side by side.
    pub(super) fn joins(&mut self) {
        let joined = AtomicUsize::new(0);
        let stages: Vec<(&'a str, &'a Stage)> =
            self.loaded.manifest.stages.iter().map(|(name, stage)| (name.as_str(), stage)).collect();
        let made: Vec<_> = stages.par_iter().map(|(name, stage)| self.joins_of(name, stage, &joined)).collect();
        self.dag.reserve_exact_edges(joined.into_inner().min(MOST_JOINS));
        for ((name, _), made) in stages.into_iter().zip(made) {
            let members = &self.by_stage[name].nodes;
            match made {
                Err(mut found) => self.found.append(&mut found),
                Ok(reads) => {
                    for ((node, _), reads) in members.iter().zip(reads) {
                        for needed in reads.iter().flat_map(|read| read.nodes.iter()) {
                            self.dag.add_edge(*needed, *node, ());
                        }
                        self.reads[node.index()] = reads.into();
                    }
                }
            }
        }
    }

    /// What each instance of a stage reads.
    fn joins_of(&self, name: &str, stage: &Stage, joined: &AtomicUsize) -> Result<Vec<Vec<Gathered>>, Vec<Diagnostic>> {
        let kind = &self.loaded.kinds[self.loaded.kind_of(name)];
        let mut needs: Vec<_> = stage.needs.iter().collect();
        needs.sort_by(|a, b| a.0.cmp(b.0));
        let members = &self.by_stage[name].nodes;
        let mut reads: Vec<Vec<Gathered>> = members.iter().map(|_| Vec::with_capacity(needs.len())).collect();
        let mut problems = Vec::new();
        for (input, need) in needs {
            let Some(spec) = kind.inputs.iter().find(|spec| spec.name == *input) else { continue };
            let join = need.join();
            let path = ["stages", name, "needs", input];
            let shared: Arc<str> = input.as_str().into();
            let found = self.join(&stage.per, members, &join, &shared, &mut reads, joined);
            if joined.load(Ordering::Relaxed) > MOST_JOINS {
                let (own, needed) = (members.len(), self.by_stage[join.stage.as_str()].nodes.len());
                let message = format!(
                    "`{input}` joins more than {MOST_JOINS} pairs of instances: {own} of `{name}` with {needed} of `{}`",
                    join.stage
                );
                problems.push(self.diagnostic(&path, message, Some("narrow it with `where`".into())));
                break;
            }
            for (place, count) in found {
                let instance = self.dag[members[place].0].name.clone();
                if count == 0 && !spec.optional {
                    let message =
                        format!("`{instance}` finds nothing for `{input}` among the instances of `{}`", join.stage);
                    let hint = self
                        .unknown_to_the_other(&join, members[place].0)
                        .unwrap_or_else(|| "a need that exists at some points only says so with `when`".to_owned());
                    problems.push(self.diagnostic(&path, message, Some(hint)));
                    break;
                }
                if count > 1 && !spec.many {
                    problems.push(self.too_many(&path, &instance, &stage.per, &join, count, &reads[place]));
                    break;
                }
            }
        }
        if problems.is_empty() { Ok(reads) } else { Err(problems) }
    }

    /// What instances lack that their parameters make them need; the first of each stage and requirement is named.
    pub(super) fn check_required(&mut self) {
        let mut problems = Vec::new();
        for (name, _) in &self.loaded.manifest.stages {
            let kind = &self.loaded.kinds[self.loaded.kind_of(name)];
            for required in &kind.requires {
                // Thousands of instances share a few sets of parameters.
                let mut applies: FxHashMap<*const Map<String, Value>, bool> = FxHashMap::default();
                let lacking = self.by_stage[name.as_str()].nodes.iter().find(|(node, _)| {
                    let params = &self.dag[*node].params;
                    let counts = applies
                        .entry(Arc::as_ptr(params))
                        .or_insert_with(|| required.when.iter().all(|(param, value)| params.get(param) == Some(value)));
                    let reads = &self.reads[node.index()];
                    let found = |count: &InputCount| {
                        let of_input = reads.iter().filter(|read| *read.input == *count.input);
                        of_input.map(|read| read.nodes.len()).sum::<usize>() >= count.least
                    };
                    *counts && !required.any.iter().any(|set| set.iter().all(found))
                });
                if let Some((node, _)) = lacking {
                    let message = format!("`{}`: {}", self.dag[*node].name, required.message);
                    let hint =
                        "add them to the stage's `needs`; one that exists at some points only says so with `when`";
                    let path: &[&str] = if self.loaded.manifest.stages[name].needs.is_empty() {
                        &["stages", name]
                    } else {
                        &["stages", name, "needs"]
                    };
                    problems.push(self.diagnostic(path, message, Some(hint.into())));
                }
            }
        }
        self.found.append(&mut problems);
    }

    /// Adds what every member reads by one input. Returns how many artifacts each found, members without the need left out.
    fn join(
        &self,
        own: &[String],
        members: &[(NodeIndex, Box<[u32]>)],
        join: &Join,
        input: &Arc<str>,
        reads: &mut [Vec<Gathered>],
        joined: &AtomicUsize,
    ) -> Vec<(usize, usize)> {
        let prepared = self.prepare(own, join);
        // What is gathered is listed in the order of points: axis by axis as they are called, by their labels.
        let per = &prepared.needed.per;
        let mut axes: Vec<usize> = (0..per.len()).collect();
        axes.sort_by_key(|axis| &per[*axis]);
        let ranks: Vec<Vec<u32>> = per.iter().map(|axis| ranks(&self.labels[axis.as_str()])).collect();
        let rank = |index: &usize| {
            let places = &prepared.needed.nodes[*index].1;
            axes.iter().map(|axis| ranks[*axis][places[*axis] as usize])
        };
        let mut counts = Vec::with_capacity(members.len());
        // What a member finds depends on few of its axes: thousands of members find the same.
        let deciding = prepared.deciding(own);
        let mut known: FxHashMap<Vec<u32>, Option<Arc<[NodeIndex]>>> = FxHashMap::default();
        let mut decided_by = Vec::with_capacity(deciding.len());
        for (member, (_, places)) in members.iter().enumerate() {
            decided_by.clear();
            decided_by.extend(deciding.iter().map(|axis| places[*axis]));
            if !known.contains_key(&decided_by) {
                let fitting = self.fitting(&prepared, own, places).map(|mut fitting| {
                    fitting.sort_unstable_by(|a, b| rank(a).cmp(rank(b)));
                    fitting.into_iter().map(|index| prepared.needed.nodes[index].0).collect()
                });
                known.insert(decided_by.clone(), fitting);
            }
            let Some(fitting) = &known[&decided_by] else { continue };
            if joined.fetch_add(fitting.len(), Ordering::Relaxed) + fitting.len() > MOST_JOINS {
                break;
            }
            counts.push((member, fitting.len()));
            if !fitting.is_empty() {
                reads[member].push(Gathered { input: input.clone(), nodes: fitting.clone() });
            }
        }
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
        let there = |(axis, places_there): &(usize, Vec<Option<u32>>)| places_there[places[*axis] as usize];
        // A label that the other axis does not have finds nothing.
        let Some(asked) = prepared.ask.iter().map(there).collect::<Option<Vec<u32>>>() else { return Some(Vec::new()) };
        let fits = |index: &&usize| {
            let (_, there) = &prepared.needed.nodes[**index];
            let per = &prepared.needed.per;
            let theirs = |axis: &str| {
                per.iter().position(|known| known == axis).map(|place| self.label(&per[place], there[place]))
            };
            let either = |axis: &str| mine(axis).or_else(|| theirs(axis));
            prepared.filter.as_ref().is_none_or(|condition| condition.holds(&either))
        };
        Some(prepared.by_places.get(&asked).into_iter().flatten().filter(fits).copied().collect())
    }

    /// A value of an instance that `where` asks another axis for, which does not have it.
    fn unknown_to_the_other(&self, join: &Join, node: NodeIndex) -> Option<String> {
        let condition = Condition::parse(join.filter.as_ref()?).ok()?;
        let point = &self.dag[node].point;
        let pairs = condition.equalities();
        pairs.iter().flat_map(|(left, right)| [(*left, *right), (*right, *left)]).find_map(|(own, other)| {
            let (value, labels) = (point.get(own)?, self.labels.get(other)?);
            let lacks = !point.contains_key(other) && !labels.contains(value);
            lacks.then(|| {
                const MOST: usize = 20;
                let list: Vec<_> = labels.iter().take(MOST).map(|label| format!("`{label}`")).collect();
                let more = if labels.len() > MOST { " and others" } else { "" };
                format!("`{value}` of the axis `{own}` is no value of `{other}`: {}{more}", list.join(", "))
            })
        })
    }

    fn too_many(
        &self,
        path: &[&str],
        instance: &str,
        per: &[String],
        join: &Join,
        count: usize,
        reads: &[Gathered],
    ) -> Diagnostic {
        let input = path[3];
        let of_input = reads.iter().filter(|read| read.input.as_ref() == input);
        let of_input: Vec<NodeIndex> = of_input.flat_map(|read| read.nodes.iter().copied()).collect();
        let shown: Vec<_> = of_input.iter().take(3).map(|node| self.dag[*node].name.clone()).collect();
        let stage = &join.stage;
        let message = format!(
            "`{instance}` finds {count} instances of `{stage}` for `{input}`, which takes one: {}",
            shown.join(", ")
        );
        let axes = self.dag[of_input[0]].point.keys();
        let missing: Vec<_> = axes.filter(|axis| !per.contains(axis)).cloned().collect();
        let hint = format!("choose one with `where`, or repeat the stage `per` {}", missing.join(", "));
        self.diagnostic(path, message, Some(hint))
    }
}

/// The place that each label has among all of them in order.
fn ranks(labels: &[String]) -> Vec<u32> {
    let mut order: Vec<usize> = (0..labels.len()).collect();
    order.sort_by_key(|place| &labels[*place]);
    let mut ranks = vec![0; labels.len()];
    order.into_iter().enumerate().for_each(|(rank, place)| ranks[place] = rank as u32);
    ranks
}
