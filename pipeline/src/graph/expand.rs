//! Instances: every stage at every point of its axes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use petgraph::graph::{DiGraph, NodeIndex};
use rayon::prelude::*;

use super::params::Params;
use super::{Gathered, Instance};
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::manifest::{Axis, Loaded, Stage};
use crate::pattern::Condition;
use crate::protocol::{Point, Resources};

/// More instances than anybody means, of a stage and of a sweep.
pub(crate) const MOST_INSTANCES: u128 = 2_000_000;
/// The axis that repeats a sweep: the first of its values is worked on first.
const REPEATS: &str = "seed";

/// An instance and the places of its values on its stage's axes.
type Placed = (Instance, Box<[u32]>);

/// The instances of one stage, with the places of their values on the axes.
pub(super) struct Members {
    /// The stage's axes.
    pub(super) per: Vec<String>,
    /// Node and places, axis by axis.
    pub(super) nodes: Vec<(NodeIndex, Box<[u32]>)>,
}

pub(super) struct Builder<'a> {
    pub(super) loaded: &'a Loaded,
    pub(super) dag: DiGraph<Instance, ()>,
    pub(super) reads: Vec<Box<[Gathered]>>,
    pub(super) by_stage: HashMap<&'a str, Members>,
    /// Labels of each axis's values, by place.
    pub(super) labels: BTreeMap<&'a str, Vec<String>>,
    pub(super) found: Vec<Diagnostic>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(loaded: &'a Loaded) -> Self {
        let labels = |axis: &Axis| axis.values.iter().map(crate::manifest::AxisValue::label).collect();
        Self {
            loaded,
            dag: DiGraph::new(),
            reads: Vec::new(),
            by_stage: HashMap::new(),
            labels: loaded.axes.iter().map(|(name, axis)| (name.as_str(), labels(axis))).collect(),
            found: Vec::new(),
        }
    }

    pub(super) fn diagnostic(&self, path: &[&str], message: String, hint: Option<String>) -> Diagnostic {
        let span = Some(self.loaded.place(path));
        Diagnostic { file: self.loaded.path.clone(), span, message, hint, detail: None }
    }

    pub(super) fn give_up(&mut self) -> Result<(), Diagnostics> {
        if self.found.is_empty() { Ok(()) } else { Err(Diagnostics { list: std::mem::take(&mut self.found) }) }
    }

    /// Refuses a sweep of more instances than anybody means, before memory is taken for it.
    pub(super) fn refuse_absurd(&mut self) {
        let mut sum = 0u128;
        for (name, stage) in &self.loaded.manifest.stages {
            let sizes: Vec<usize> = stage.per.iter().map(|axis| self.loaded.axes[axis].values.len()).collect();
            let all = sizes.iter().fold(1u128, |product, size| product.saturating_mul(*size as u128));
            sum = sum.saturating_add(all);
            if all > MOST_INSTANCES {
                let shown: Vec<_> =
                    stage.per.iter().zip(&sizes).map(|(axis, size)| format!("{size} of {axis}")).collect();
                let message = format!(
                    "the stage `{name}` would have {all} instances ({}); {MOST_INSTANCES} is the most",
                    shown.join(" × ")
                );
                let hint = Some("leave out an axis, or values of one".into());
                self.found.push(self.diagnostic(&["stages", name, "per"], message, hint));
            }
        }
        if sum > MOST_INSTANCES && self.found.is_empty() {
            let message = format!("the stages would have {sum} instances together; {MOST_INSTANCES} is the most");
            self.found.push(self.diagnostic(&["stages"], message, Some("leave out an axis, or values of one".into())));
        }
    }

    /// The points of a stage, as places on its axes: the product of what the axes list, and what `include` adds.
    fn points(&self, stage: &Stage) -> Vec<Box<[u32]>> {
        let listed = |axis: &String| (0..self.loaded.axes[axis].listed as u32).collect::<Vec<_>>();
        let mut all = product(&stage.per.iter().map(listed).collect::<Vec<_>>());
        let mut known: Option<std::collections::HashSet<Box<[u32]>>> = None;
        for entry in &self.loaded.manifest.include {
            if !stage.per.iter().any(|axis| entry.contains_key(axis)) {
                continue;
            }
            let choices: Vec<Vec<u32>> = stage
                .per
                .iter()
                .map(|axis| match entry.get(axis) {
                    Some(value) => {
                        let place = self.labels[axis.as_str()].iter().position(|label| *label == value.label());
                        place.map(|place| place as u32).into_iter().collect()
                    }
                    None => listed(axis),
                })
                .collect();
            let known = known.get_or_insert_with(|| all.iter().cloned().collect());
            for point in product(&choices) {
                if known.insert(point.clone()) {
                    all.push(point);
                }
            }
        }
        all
    }

    /// All instances; the stages are spelled out side by side.
    pub(super) fn instances(&mut self) {
        let stages: Vec<(&'a str, &'a Stage)> =
            self.loaded.manifest.stages.iter().map(|(name, stage)| (name.as_str(), stage)).collect();
        let made: Vec<_> = stages.par_iter().map(|(name, stage)| self.instances_of(name, stage)).collect();
        let count = made.iter().flatten().map(Vec::len).sum();
        self.dag.reserve_exact_nodes(count);
        self.reads.reserve_exact(count);
        for ((name, stage), made) in stages.into_iter().zip(made) {
            match made {
                Err(diagnostic) => self.found.push(diagnostic),
                Ok(made) => {
                    self.reads.resize_with(self.reads.len() + made.len(), Box::default);
                    let nodes =
                        made.into_iter().map(|(instance, places)| (self.dag.add_node(instance), places)).collect();
                    self.by_stage.insert(name, Members { per: stage.per.clone(), nodes });
                }
            }
        }
    }

    /// Refuses a sweep that leaves nothing to run: nobody means that, and "everything is up to date" would be its answer.
    pub(super) fn refuse_empty(&mut self) {
        let stages = &self.loaded.manifest.stages;
        if self.dag.node_count() > 0 || stages.is_empty() {
            return;
        }
        let excludes = !self.loaded.manifest.exclude.is_empty();
        let (place, what) = match (excludes, stages.values().any(|stage| stage.when.is_some())) {
            (true, true) => ("exclude", "`exclude` and the stages' `when` leave"),
            (true, false) => ("exclude", "`exclude` leaves"),
            _ => ("stages", "the stages' `when` leaves"),
        };
        let hint = format!("{what} no point of the sweep");
        self.found.push(self.diagnostic(&[place], "no stage has an instance".into(), Some(hint)));
    }

    fn instances_of(&self, name: &'a str, stage: &'a Stage) -> Result<Vec<Placed>, Diagnostic> {
        let loaded = self.loaded;
        let kind = loaded.kind_of(name);
        let conditions = |texts: &[String]| texts.iter().filter_map(|text| Condition::parse(text).ok()).collect();
        let exclude: Vec<Condition> = conditions(&loaded.manifest.exclude);
        // A condition over axes that this stage does not have says nothing about it.
        let about = |condition: &&Condition| {
            let own = |word: &String| !loaded.axes.contains_key(word) || stage.per.contains(word);
            condition.comparisons().iter().all(|(l, r)| own(&l.word) && own(&r.word))
        };
        let exclude: Vec<&Condition> = exclude.iter().filter(about).collect();
        let when = stage.when.as_ref().and_then(|text| Condition::parse(text).ok());
        let stage_name: Arc<str> = name.into();
        let defaults = &loaded.kinds[kind].resources;
        let resources: Arc<Resources> =
            stage.resources.as_ref().map_or_else(|| defaults.clone(), |own| own.over(defaults)).into();
        let repeats = stage.per.iter().position(|axis| axis == REPEATS);
        let mut params = Params::new(loaded, name, stage, &loaded.kinds[kind]);
        let points = self.points(stage);
        let mut made = Vec::with_capacity(points.len());
        for places in points {
            let labels: Vec<&str> = stage
                .per
                .iter()
                .zip(&places)
                .map(|(axis, p)| self.labels[axis.as_str()][*p as usize].as_str())
                .collect();
            let of = |axis: &str| stage.per.iter().position(|known| known == axis).map(|place| labels[place]);
            if exclude.iter().any(|condition| condition.holds(&of)) || when.as_ref().is_some_and(|c| !c.holds(&of)) {
                continue;
            }
            let params = match params.at(&places, &of) {
                Ok(params) => params,
                Err(problem) => {
                    let path: Vec<&str> = problem.path.iter().map(String::as_str).collect();
                    return Err(self.diagnostic(&path, problem.message, problem.hint));
                }
            };
            let instance = Instance {
                stage: stage_name.clone(),
                name: name_of(name, &stage.per, &labels),
                point: stage.per.iter().cloned().zip(labels.iter().map(|l| (*l).to_owned())).collect::<Point>(),
                kind,
                params,
                resources: resources.clone(),
                round: repeats.map_or(0, |axis| places[axis] as usize),
                in_domain: stage.in_domain,
            };
            made.push((instance, places));
        }
        Ok(made)
    }
}

fn name_of(stage: &str, per: &[String], labels: &[&str]) -> String {
    let mut name = String::with_capacity(64);
    name.push_str(stage);
    for (place, (axis, label)) in per.iter().zip(labels).enumerate() {
        name.push(if place == 0 { '[' } else { ',' });
        name.push_str(axis);
        name.push('=');
        name.push_str(label);
    }
    if !per.is_empty() {
        name.push(']');
    }
    name
}

/// Every choice of one from each.
fn product(choices: &[Vec<u32>]) -> Vec<Box<[u32]>> {
    let count = choices.iter().map(Vec::len).product();
    let mut all = Vec::with_capacity(count);
    let mut digits = vec![0usize; choices.len()];
    for _ in 0..count {
        all.push(digits.iter().zip(choices).map(|(digit, of)| of[*digit]).collect());
        for place in (0..digits.len()).rev() {
            digits[place] += 1;
            if digits[place] < choices[place].len() {
                break;
            }
            digits[place] = 0;
        }
    }
    all
}
