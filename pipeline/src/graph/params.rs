//! The parameters of instances: the stage's, then those of fitting overrides, then the axes', then the kind's defaults.
//!
//! Most points of a stage have the same parameters: they are worked out once for each combination of what they depend on.

use rustc_hash::FxHashMap;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::manifest::{AxisValue, Loaded, Stage, command};
use crate::pattern::Condition;
use crate::protocol::StageKind;
use crate::schema;
use crate::tree::Node;

/// What is wrong with the parameters at some point.
pub(super) struct Problem {
    /// Where in the manifest.
    pub(super) path: Vec<String>,
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

/// Which overrides apply, and the places on the axes that change parameters.
type Decided = (u64, Box<[u32]>);

pub(super) struct Params<'a> {
    loaded: &'a Loaded,
    name: &'a str,
    stage: &'a Stage,
    kind: &'a StageKind,
    overrides: Vec<Option<Condition>>,
    /// Axes whose values change the parameters, by place among the stage's.
    shaping: Vec<usize>,
    known: FxHashMap<Decided, Arc<Map<String, Value>>>,
}

impl<'a> Params<'a> {
    pub(super) fn new(loaded: &'a Loaded, name: &'a str, stage: &'a Stage, kind: &'a StageKind) -> Self {
        let overrides = stage.overrides.iter().map(|change| Condition::parse(&change.when).ok()).collect();
        let mut params =
            Self { loaded, name, stage, kind, overrides, shaping: Vec::new(), known: FxHashMap::default() };
        params.shaping = (0..stage.per.len()).filter(|place| params.shapes(&stage.per[*place])).collect();
        params
    }

    fn declared(&self, param: &str) -> bool {
        self.kind.params.get("properties").is_some_and(|p| p.get(param).is_some())
    }

    fn shapes(&self, axis: &str) -> bool {
        let group = self.loaded.axes[axis].values.iter().any(|value| matches!(value, AxisValue::Group(_)));
        group || self.declared(axis) || (command::is_command(self.kind) && self.is_mentioned(axis))
    }

    /// Whether a command's words, parameters or environment name an axis.
    fn is_mentioned(&self, axis: &str) -> bool {
        let wanted = format!("${{{axis}}}");
        let stage = self.stage;
        // A group on any of the stage's axes may mention another axis.
        let groups: Vec<_> = stage.per.iter().map(|axis| &self.loaded.axes[axis].values).collect();
        let texts = serde_json::json!([stage.run, stage.with, stage.env, stage.overrides, groups]);
        texts.to_string().contains(&wanted)
    }

    /// The parameters at a point, given by the places of its values and by their labels.
    pub(super) fn at<'v>(
        &mut self,
        places: &[u32],
        label: &impl Fn(&str) -> Option<&'v str>,
    ) -> Result<Arc<Map<String, Value>>, Problem> {
        let mut applies = 0u64;
        for (index, condition) in self.overrides.iter().enumerate() {
            let holds = condition.as_ref().is_some_and(|c| c.holds(&|axis: &str| label(axis)));
            // Beyond 63 overrides the last bit stands for all of them, and nothing is shared.
            applies |= u64::from(holds) << index.min(63);
        }
        let shaping: Box<[u32]> = match self.overrides.len() > 63 {
            true => places.into(),
            false => self.shaping.iter().map(|axis| places[*axis]).collect(),
        };
        if let Some(known) = self.known.get(&(applies, shaping.clone())) {
            return Ok(known.clone());
        }
        let params = Arc::new(self.work_out(places, label)?);
        self.known.insert((applies, shaping), params.clone());
        Ok(params)
    }

    fn work_out<'v>(
        &self,
        places: &[u32],
        label: &impl Fn(&str) -> Option<&'v str>,
    ) -> Result<Map<String, Value>, Problem> {
        let mut given = self.stage.with.clone();
        for (change, condition) in self.stage.overrides.iter().zip(&self.overrides) {
            if condition.as_ref().is_some_and(|c| c.holds(&|axis: &str| label(axis))) {
                change.with.iter().for_each(|(key, value)| merge(&mut given, key, value));
            }
        }
        let is_command = command::is_command(self.kind);
        for (axis, place) in self.stage.per.iter().zip(places) {
            let value = &self.loaded.axes[axis].values[*place as usize];
            for (param, given_value) in value.params(axis) {
                // A command declares nothing: it is given what a group holds, and asks for the rest by name.
                let wanted = if is_command { param != *axis } else { self.declared(&param) };
                if wanted {
                    given.insert(param, given_value);
                }
            }
            if !is_command {
                self.check_axis(axis, *place, value)?;
            }
        }
        if is_command {
            let path = vec!["stages".to_owned(), self.name.to_owned(), "run".to_owned()];
            let mut params =
                command::params(self.stage, &given, label).map_err(|message| Problem { path, message, hint: None })?;
            // Where gathered artifacts lie is part of what a command sees.
            let gathered: Map<String, Value> = self
                .stage
                .needs
                .iter()
                .map(|(input, need)| (input, command::gathered_axes(&self.loaded.manifest, self.stage, need)))
                .filter(|(_, axes)| !axes.is_empty())
                .map(|(input, axes)| (input.clone(), axes.into()))
                .collect();
            if !gathered.is_empty() {
                params.insert("gathered".to_owned(), Value::Object(gathered));
            }
            return Ok(params);
        }
        if self.declared("in_domain") {
            given.insert("in_domain".to_owned(), Value::Bool(self.stage.in_domain));
        }
        let whole = schema::with_defaults(&self.kind.params, &given);
        self.check_required(&whole)?;
        Ok(whole)
    }

    fn check_required(&self, whole: &Map<String, Value>) -> Result<(), Problem> {
        let required = self.kind.params.get("required").and_then(Value::as_array);
        let missing: Vec<String> = required
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .filter(|param| !whole.contains_key(*param))
            .map(|param| format!("`{param}`"))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(Problem {
            path: vec!["stages".to_owned(), self.name.to_owned()],
            message: format!(
                "the stage `{}` lacks the parameter {} of stage kind `{}`",
                self.name,
                missing.join(", "),
                self.kind.name
            ),
            hint: Some("give it in `with`, or by an axis of that name".into()),
        })
    }

    /// Whether an axis's value fits the parameters that it gives.
    fn check_axis(&self, axis: &str, place: u32, value: &AxisValue) -> Result<(), Problem> {
        let given: Map<String, Value> = value.params(axis).into_iter().filter(|(p, _)| self.declared(p)).collect();
        if given.is_empty() {
            return Ok(());
        }
        let mut partial = self.kind.params.clone();
        partial.as_object_mut().map(|map| map.remove("required"));
        let node = Node::parse(&Value::Object(given).to_string());
        let misfit = node.ok().and_then(|node| schema::check(&node, "", &partial, "the axis").into_iter().next());
        match misfit {
            None => Ok(()),
            Some(misfit) => Err(Problem {
                path: vec!["axes".to_owned(), axis.to_owned(), place.to_string()],
                message: misfit.message,
                hint: misfit.hint,
            }),
        }
    }
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
