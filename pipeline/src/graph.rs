//! The sweep, spelled out: one instance for each stage and point, and the joins between them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use petgraph::graph::{DiGraph, NodeIndex};
use serde_json::{Map, Value};

use crate::diagnostic::Diagnostic;
use crate::manifest::{AxisValue, Loaded, Stage};
use crate::pattern::Condition;
use crate::protocol::{Point, Resources, StageKind};

/// One stage at one point of its axes.
#[derive(Clone, Debug)]
pub struct Instance {
    /// The stage.
    pub stage: String,
    /// `train[method=mcdrl,held_out=C,seed=0]`, axes in the order of the stage's `per`.
    pub name: String,
    /// Axis to label.
    pub point: Point,
    /// Index of its kind.
    pub kind: usize,
    /// Parameters: the kind's defaults, the stage's, the point's.
    pub params: Map<String, Value>,
    /// What it occupies while it runs.
    pub resources: Resources,
    /// Whether it may score a model on a site that the model was trained on.
    pub in_domain: bool,
}

/// Why one instance waits for another: the input's name.
pub type Edge = String;

/// All instances and their joins.
#[derive(Debug)]
pub struct Graph {
    /// The instances; node indices are their places.
    pub dag: DiGraph<Instance, Edge>,
    /// An order in which every instance comes behind those that it reads.
    pub order: Vec<NodeIndex>,
}

impl Graph {
    /// Spells out a manifest that was loaded against `kinds`.
    ///
    /// # Errors
    /// Joins that find nothing or too much, parameters that are missing once all is known.
    pub fn expand(loaded: &Loaded, kinds: &[StageKind]) -> Result<Self, Vec<Diagnostic>> {
        let mut builder = Builder {
            loaded,
            kinds,
            axes: loaded.axes(),
            dag: DiGraph::new(),
            by_stage: HashMap::new(),
            found: Vec::new(),
        };
        for (name, stage) in &loaded.manifest.stages {
            builder.instances(name, stage);
        }
        for (name, stage) in &loaded.manifest.stages {
            builder.joins(name, stage);
        }
        if !builder.found.is_empty() {
            return Err(builder.found);
        }
        let order = in_order(&builder.dag);
        Ok(Self { dag: builder.dag, order })
    }

    /// The instance of this name, its axes in any order.
    pub fn find(&self, name: &str) -> Option<NodeIndex> {
        let pattern = crate::pattern::InstancePattern::parse(name).ok()?;
        let mut fitting = self.dag.node_indices().filter(|node| {
            let instance = &self.dag[*node];
            pattern.fits(&instance.stage, &instance.point) && pattern.axes.len() == instance.point.len()
        });
        fitting.next().filter(|_| fitting.next().is_none())
    }

    /// The instances that an instance reads, with the input's name, in the order of their names.
    pub fn reads(&self, node: NodeIndex) -> Vec<(&str, NodeIndex)> {
        use petgraph::visit::EdgeRef;
        let mut reads: Vec<_> = self
            .dag
            .edges_directed(node, petgraph::Direction::Incoming)
            .map(|edge| (edge.weight().as_str(), edge.source()))
            .collect();
        reads.sort_by(|a, b| {
            (a.0, &self.dag[a.1].point, &self.dag[a.1].name).cmp(&(b.0, &self.dag[b.1].point, &self.dag[b.1].name))
        });
        reads
    }

    /// An instance and everything that it is made from.
    pub fn upstream(&self, roots: &[NodeIndex]) -> std::collections::BTreeSet<NodeIndex> {
        let mut seen = std::collections::BTreeSet::new();
        let mut waiting = roots.to_vec();
        while let Some(node) = waiting.pop() {
            if seen.insert(node) {
                waiting.extend(self.dag.neighbors_directed(node, petgraph::Direction::Incoming));
            }
        }
        seen
    }
}

struct Builder<'a> {
    loaded: &'a Loaded,
    kinds: &'a [StageKind],
    axes: BTreeMap<String, Vec<AxisValue>>,
    dag: DiGraph<Instance, Edge>,
    by_stage: HashMap<String, Vec<NodeIndex>>,
    found: Vec<Diagnostic>,
}

impl Builder<'_> {
    fn add(&mut self, path: &[&str], message: String, hint: Option<String>) {
        let span = Some(self.loaded.tree.nearest(path).span.clone());
        self.found.push(Diagnostic { file: self.loaded.path.clone(), span, message, hint });
    }

    fn instances(&mut self, name: &str, stage: &Stage) {
        let kind_index = self.kinds.iter().position(|k| k.name == stage.uses).expect("the manifest was checked");
        let exclude: Vec<Condition> =
            self.loaded.manifest.exclude.iter().filter_map(|text| Condition::parse(text).ok()).collect();
        let mut points: Vec<Vec<AxisValue>> = vec![Vec::new()];
        for axis in &stage.per {
            points = points
                .into_iter()
                .flat_map(|point| {
                    self.axes[axis].iter().map(move |value| {
                        let mut longer = point.clone();
                        longer.push(value.clone());
                        longer
                    })
                })
                .collect();
        }
        let mut nodes = Vec::new();
        for values in points {
            let point: Point = stage.per.iter().cloned().zip(values.iter().map(AxisValue::label)).collect();
            // A condition over axes that this stage does not have says nothing about it.
            let left_out = exclude.iter().any(|condition| {
                let about = condition.comparisons().iter().all(|(l, r)| {
                    [l, r].iter().all(|t| !self.axes.contains_key(&t.word) || point.contains_key(&t.word))
                });
                about && condition.holds(&|axis| point.get(axis).cloned())
            });
            if left_out {
                continue;
            }
            let shown: Vec<_> = stage.per.iter().map(|axis| format!("{axis}={}", point[axis])).collect();
            let full_name = if shown.is_empty() { name.to_owned() } else { format!("{name}[{}]", shown.join(",")) };
            let params = self.params(name, stage, &self.kinds[kind_index], &point, &values);
            let kind = &self.kinds[kind_index];
            nodes.push(self.dag.add_node(Instance {
                stage: name.to_owned(),
                name: full_name,
                point,
                kind: kind_index,
                params,
                resources: stage.resources.unwrap_or(kind.resources),
                in_domain: stage.in_domain,
            }));
        }
        self.by_stage.insert(name.to_owned(), nodes);
    }

    /// The stage's parameters, then those of fitting overrides, then the axes', then the kind's defaults.
    fn params(
        &mut self,
        name: &str,
        stage: &Stage,
        kind: &StageKind,
        point: &Point,
        values: &[AxisValue],
    ) -> Map<String, Value> {
        let mut given = stage.with.clone();
        for change in &stage.overrides {
            let applies = Condition::parse(&change.when).is_ok_and(|c| c.holds(&|axis| point.get(axis).cloned()));
            if applies {
                change.with.iter().for_each(|(key, value)| merge(&mut given, key, value));
            }
        }
        let declared = |param: &str| kind.params.get("properties").is_some_and(|p| p.get(param).is_some());
        for (axis, value) in stage.per.iter().zip(values) {
            if declared(axis) {
                given.insert(axis.clone(), value.value());
            }
        }
        if declared("in_domain") {
            given.insert("in_domain".to_owned(), Value::Bool(stage.in_domain));
        }
        let whole = crate::schema::with_defaults(&kind.params, &given);
        let required = kind.params.get("required").and_then(Value::as_array);
        let missing: Vec<String> = required
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .filter(|param| !whole.contains_key(*param))
            .map(|param| format!("`{param}`"))
            .collect();
        if !missing.is_empty() && self.found.is_empty() {
            let message =
                format!("the stage `{name}` lacks the parameter {} of stage kind `{}`", missing.join(", "), kind.name);
            self.add(&["stages", name], message, Some("give it in `with`, or by an axis of that name".into()));
        }
        for (axis, value) in stage.per.iter().zip(values).filter(|(axis, _)| declared(axis)) {
            let one = crate::tree::Node::parse(&serde_json::json!({axis: value.value()}).to_string());
            let mut partial = kind.params.clone();
            partial.as_object_mut().map(|map| map.remove("required"));
            let misfit = one.ok().and_then(|node| crate::schema::check(&node, &partial, "the axis").into_iter().next());
            if let (Some(misfit), true) = (misfit, self.found.is_empty()) {
                let index = self.axes[axis].iter().position(|v| v == value).unwrap_or(0).to_string();
                self.add(&["axes", axis, &index], misfit.message, misfit.hint);
            }
        }
        whole
    }

    fn joins(&mut self, name: &str, stage: &Stage) {
        let kind = &self.kinds[self.kinds.iter().position(|k| k.name == stage.uses).expect("the manifest was checked")];
        for (input, need) in &stage.needs {
            let Some(spec) = kind.inputs.iter().find(|spec| spec.name == *input) else { continue };
            let join = need.join();
            let parse = |text: &Option<String>| text.as_ref().and_then(|t| Condition::parse(t).ok());
            let (filter, when) = (parse(&join.filter), parse(&join.when));
            let path = ["stages", name, "needs", input];
            for node in self.by_stage[name].clone() {
                let point = self.dag[node].point.clone();
                if when.as_ref().is_some_and(|c| !c.holds(&|axis| point.get(axis).cloned())) {
                    continue;
                }
                let fitting: Vec<NodeIndex> = self.by_stage[&join.stage]
                    .iter()
                    .copied()
                    .filter(|needed| {
                        let other = &self.dag[*needed].point;
                        let equal = other.iter().all(|(axis, value)| point.get(axis).is_none_or(|mine| mine == value));
                        let value = |axis: &str| point.get(axis).or_else(|| other.get(axis)).cloned();
                        equal && filter.as_ref().is_none_or(|c| c.holds(&value))
                    })
                    .collect();
                let instance = self.dag[node].name.clone();
                if fitting.is_empty() && !spec.optional {
                    let hint = "a need that exists at some points only says so with `when`";
                    self.add(
                        &path,
                        format!("`{instance}` finds nothing for `{input}` among the instances of `{}`", join.stage),
                        Some(hint.into()),
                    );
                    break;
                }
                if fitting.len() > 1 && !spec.many {
                    let shown: Vec<_> = fitting.iter().take(3).map(|n| self.dag[*n].name.clone()).collect();
                    let message = format!(
                        "`{instance}` finds {} instances of `{}` for `{input}`, which takes one: {}",
                        fitting.len(),
                        join.stage,
                        shown.join(", ")
                    );
                    let missing: Vec<_> =
                        self.dag[fitting[0]].point.keys().filter(|axis| !point.contains_key(*axis)).cloned().collect();
                    let hint = format!("choose one with `where`, or repeat the stage `per` {}", missing.join(", "));
                    self.add(&path, message, Some(hint));
                    break;
                }
                for needed in fitting {
                    self.dag.add_edge(needed, node, input.clone());
                }
            }
        }
    }
}

/// A topological order that keeps to the manifest's: among instances that could come next, the one written first does.
fn in_order(dag: &DiGraph<Instance, Edge>) -> Vec<NodeIndex> {
    let mut missing: Vec<usize> =
        dag.node_indices().map(|n| dag.edges_directed(n, petgraph::Direction::Incoming).count()).collect();
    let mut ready: BTreeSet<NodeIndex> = dag.node_indices().filter(|n| missing[n.index()] == 0).collect();
    let mut order = Vec::with_capacity(dag.node_count());
    while let Some(node) = ready.pop_first() {
        order.push(node);
        for edge in dag.edges_directed(node, petgraph::Direction::Outgoing) {
            let reader = petgraph::visit::EdgeRef::target(&edge);
            missing[reader.index()] -= 1;
            if missing[reader.index()] == 0 {
                ready.insert(reader);
            }
        }
    }
    order
}

/// Puts a parameter into a map; a group is merged, setting by setting.
fn merge(into: &mut Map<String, Value>, key: &str, value: &Value) {
    match (into.get_mut(key), value) {
        (Some(Value::Object(group)), Value::Object(changes)) => {
            changes.iter().for_each(|(key, value)| merge(group, key, value));
        }
        _ => {
            into.insert(key.to_owned(), value.clone());
        }
    }
}
