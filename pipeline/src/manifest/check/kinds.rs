//! What stages ask of each other, as far as their kinds decide it.

use std::collections::{BTreeMap, BTreeSet};

use super::Checker;
use crate::diagnostic::suggest;
use crate::manifest::{AxisValue, Stage, selection};
use crate::protocol::StageKind;

impl Checker<'_> {
    /// A chosen candidate is the same whatever the value on an axis that was chosen among: nothing is repeated over it.
    pub(super) fn choices(&mut self, name: &str, stage: &Stage, input: &str, needed: &str) {
        let Some(origin) = self.loaded.added.get(needed) else { return };
        let Some(selection) = &self.loaded.manifest.stages[origin].selection else { return };
        let is_choice = selection::select_of(origin) == needed;
        if let (true, Some(axis)) = (is_choice, selection.among.iter().find(|axis| stage.per.contains(axis))) {
            let message =
                format!("`{name}` is repeated per `{axis}`, which `{needed}` chooses among: all would be the same");
            self.add(
                self.span(&["stages", name, "needs", input]),
                message,
                Some(format!("leave `{axis}` out of `per`")),
            );
        }
    }

    /// Parameters in groups on axes that no stage takes are slips.
    pub(super) fn groups(&mut self) {
        for (axis, values) in self.axes.clone() {
            let stages: Vec<&Stage> =
                self.loaded.manifest.stages.values().filter(|stage| stage.per.contains(&axis)).collect();
            // A command is given whatever a group holds.
            if stages.is_empty() || stages.iter().any(|stage| stage.run.is_some()) {
                continue;
            }
            let kinds = stages.iter().filter_map(|stage| stage.uses.as_ref());
            let params: BTreeSet<String> = kinds
                .filter_map(|uses| self.loaded.kinds.get(uses))
                .filter_map(|kind| kind.params.get("properties")?.as_object())
                .flat_map(|properties| properties.keys().cloned())
                .collect();
            for (place, value) in values.iter().enumerate() {
                let AxisValue::Group(group) = value else { continue };
                for param in group.with.keys().filter(|param| !params.contains(*param)) {
                    let span = self.loaded.tree.key_span(&["axes", &axis, &place.to_string(), param]);
                    let hint = suggest(param, "they take", params.iter().map(String::as_str));
                    self.add(span, format!("no stage that is repeated per `{axis}` takes `{param}`"), Some(hint));
                }
            }
        }
    }

    /// What sets a parameter of a stage must be one thing: an axis of that name, or one group.
    pub(super) fn given_once(&mut self, name: &str, stage: &Stage) {
        let axes = self.axes.clone();
        let mut given: BTreeMap<String, &String> = BTreeMap::new();
        for (index, axis) in stage.per.iter().enumerate() {
            if stage.per[..index].contains(axis) {
                let span = self.span(&["stages", name, "per", &index.to_string()]);
                self.add(span, format!("the axis `{axis}` is there twice"), Some("leave out one of them".into()));
                continue;
            }
            let mut own: BTreeSet<String> = BTreeSet::new();
            for (place, value) in axes.get(axis).into_iter().flatten().enumerate() {
                let AxisValue::Group(group) = value else { continue };
                for param in group.with.keys() {
                    let by_axis = stage.per.contains(param).then(|| format!("the axis `{param}`"));
                    let by_group = given.get(param).map(|other| format!("a group of the axis `{other}`"));
                    if let Some(other) = by_axis.or(by_group) {
                        let span = self.loaded.tree.key_span(&["axes", axis, &place.to_string(), param]);
                        let message = format!("`{param}` is given to the stage `{name}` by {other} as well");
                        self.add(
                            span,
                            message,
                            Some("each parameter has one place in a sweep: leave it out of one".into()),
                        );
                    }
                    own.insert(param.clone());
                }
            }
            given.extend(own.into_iter().map(|param| (param, axis)));
        }
    }

    /// Whether the needed stage writes the files that an input reads.
    pub(super) fn files(&mut self, name: &str, input: &str, needed: &str, kind: &StageKind) {
        let Some(stage) = self.loaded.manifest.stages.get(needed) else { return };
        let Some(maker) = self.loaded.kinds.get(&self.loaded.kind_name_of(needed)) else { return };
        let Some(spec) = kind.inputs.iter().find(|spec| spec.name == input) else { return };
        let writes = |file: &&String| {
            let made_by = |path: &str| path == file.as_str() || (path.ends_with('/') && file.starts_with(path));
            file.contains('*') || maker.outputs.iter().any(|output| made_by(&output.path))
        };
        if let Some(missing) = spec.files.iter().find(|file| !writes(file)) {
            let written: Vec<&str> = maker.outputs.iter().map(|output| output.path.as_str()).collect();
            let message = format!("`{input}` of the stage `{name}` reads `{missing}`, which `{needed}` does not write");
            let hint = format!("`{needed}` ({}) writes {}", stage.kind_name(), written.join(", "));
            self.add(self.span(&["stages", name, "needs", input]), message, Some(hint));
        }
    }
}
