//! What a schema cannot see: names that must exist, conditions, cycles, joins that cannot be made.

mod execution;
mod kinds;
mod paths;
mod sites;

use std::collections::{BTreeMap, BTreeSet};

use super::load::as_node;
use super::{AxisValue, AxisValues, Loaded, NamedAxis, Stage, command, selection};
use crate::diagnostic::{Diagnostic, suggest};
use crate::pattern::Condition;
use crate::protocol::{SourceFrom, StageKind, is_name};
use crate::tree::Span;

/// What results tables call the mean over their columns.
const RESERVED: &str = "average";

/// Everything that is wrong with a manifest that fits its schema.
pub(super) fn check(loaded: &Loaded) -> Vec<Diagnostic> {
    let axes = loaded.axes.iter().map(|(name, axis)| (name.clone(), axis.values.clone())).collect();
    let mut checker = Checker { loaded, axes, found: Vec::new() };
    checker.top();
    checker.sites();
    checker.paths();
    checker.include();
    checker.groups();
    for (name, stage) in &loaded.manifest.stages {
        match loaded.added.contains_key(name) {
            true => checker.added(name, stage),
            false => checker.stage(name, stage),
        }
    }
    if checker.found.is_empty() {
        checker.cycles();
    }
    checker.found
}

struct Checker<'a> {
    loaded: &'a Loaded,
    axes: BTreeMap<String, Vec<AxisValue>>,
    found: Vec<Diagnostic>,
}

impl Checker<'_> {
    fn add(&mut self, span: Span, message: String, hint: Option<String>) {
        self.found.push(Diagnostic { file: self.loaded.path.clone(), span: Some(span), message, hint, detail: None });
    }

    fn span(&self, path: &[&str]) -> Span {
        self.loaded.place(path)
    }

    fn top(&mut self) {
        let manifest = &self.loaded.manifest;
        let wants_sites = |stage: &Stage| stage.per.iter().any(|axis| axis == "site");
        if let (true, Some(name)) =
            (manifest.sites.is_empty(), manifest.stages.iter().find(|(_, s)| wants_sites(s)).map(|(n, _)| n))
        {
            let message = format!("the stage `{name}` is repeated per site, but `sites` has none");
            self.add(self.span(&["stages", name, "per"]), message, Some("name at least one site".into()));
        }
        if !is_name(&manifest.name) {
            self.add(
                self.span(&["name"]),
                format!("`{}` cannot be a folder's name", manifest.name),
                Some("use letters, digits, `-`, `_` and `.`".into()),
            );
        }
        for section in ["sites", "backbones", "stages", "axes"] {
            let names: Vec<String> = match section {
                "sites" => manifest.sites.keys().cloned().collect(),
                "backbones" => manifest.backbones.keys().cloned().collect(),
                "stages" => manifest.stages.keys().cloned().collect(),
                _ => manifest.axes.keys().cloned().collect(),
            };
            for name in names.iter().filter(|name| !is_name(name)) {
                let span = self.loaded.tree.key_span(&[section, name]);
                self.add(
                    span,
                    format!("`{name}` cannot be a name"),
                    Some("use letters, digits, `-`, `_` and `.`".into()),
                );
            }
        }
        if let Some(entry) = self.loaded.tree.get("axes").and_then(|axes| axes.value.get("site")) {
            let hint = "the axis `site` is made from `sites`; call the site that is tested on `held_out: sites`";
            self.add(entry.key_span.clone(), "`site` cannot be given as an axis".into(), Some(hint.into()));
        }
        // Pairs of sites are joined by what no name may hold.
        for (name, values) in self.axes.clone().into_iter().filter(|(name, _)| name != selection::LEFT_OUT) {
            // Without sites the axis `site` is empty, which only a stage that is repeated over it minds.
            if values.is_empty() && name != "site" {
                let of_sites = matches!(manifest.axes.get(&name), Some(AxisValues::Named(NamedAxis::Sites)));
                let hint = if of_sites { "name at least one site" } else { "give it at least one" }.to_owned();
                self.add(self.span(&["axes", &name]), format!("the axis `{name}` has no values"), Some(hint));
            }
            let mut seen = BTreeSet::new();
            for (index, value) in values.iter().enumerate() {
                let place = index.to_string();
                if !seen.insert(value.label()) {
                    let hint = match manifest.axes.get(&name) {
                        Some(AxisValues::File(file)) => {
                            let line = super::axes::second_line(&self.loaded.root.join(&file.from), &value.label());
                            line.map(|line| format!("it stands in {}:{line} once more", file.from))
                        }
                        _ => None,
                    };
                    let message = format!("`{}` is twice on the axis `{name}`", value.label());
                    self.add(self.span(&["axes", &name, &place]), message, hint);
                } else if value.label() == RESERVED {
                    let (span, owner) = match name.as_str() {
                        "site" => (self.loaded.tree.key_span(&["sites", RESERVED]), "a site".to_owned()),
                        _ => (self.span(&["axes", &name, &place]), format!("a value of the axis `{name}`")),
                    };
                    let hint = "results tables call the mean over all columns so";
                    self.add(span, format!("{owner} cannot be called `{RESERVED}`"), Some(hint.into()));
                } else if !is_name(&value.label()) {
                    self.add(
                        self.span(&["axes", &name, &place]),
                        format!("`{}` cannot be a value of an axis", value.label()),
                        Some("use letters, digits, `-`, `_` and `.`".into()),
                    );
                }
            }
        }
        let encodes = |stage: &Stage| {
            let kind = stage.uses.as_ref().and_then(|uses| self.loaded.kinds.get(uses));
            kind.is_some_and(|kind| kind.sources.iter().any(|source| source.from == SourceFrom::Backbone))
        };
        // An axis that only commands look at may be called so and mean something else.
        let named = manifest.stages.values().any(encodes);
        for value in self.axes.get("backbone").filter(|_| named).cloned().unwrap_or_default() {
            if !manifest.backbones.contains_key(&value.label()) {
                let index = self.axes["backbone"].iter().position(|v| *v == value).unwrap_or(0).to_string();
                let hint = suggest(&value.label(), "`backbones` has", manifest.backbones.keys().map(String::as_str));
                self.add(
                    self.span(&["axes", "backbone", &index]),
                    format!("there is no backbone `{}`", value.label()),
                    Some(hint),
                );
            }
        }
        for (name, backbone) in &manifest.backbones {
            if !["quick-gelu", "gelu"].contains(&backbone.activation.as_str()) {
                let hint = suggest(&backbone.activation, "it can be", ["quick-gelu", "gelu"]);
                let span = self.span(&["backbones", name, "activation"]);
                self.add(span, format!("`activation` cannot be `{}`", backbone.activation), Some(hint));
            }
        }
        let all: Vec<String> = self.axes.keys().cloned().collect();
        for (index, text) in manifest.exclude.iter().enumerate() {
            self.condition(text, &["exclude", &index.to_string()], &all);
        }
    }

    /// Points that `include` adds.
    fn include(&mut self) {
        for (index, entry) in self.loaded.manifest.include.iter().enumerate() {
            for axis in entry.keys().filter(|axis| !self.axes.contains_key(*axis)).cloned().collect::<Vec<_>>() {
                let span = self.loaded.tree.key_span(&["include", &index.to_string(), &axis]);
                let hint = suggest(&axis, "the axes are", self.axes.keys().map(String::as_str));
                self.add(span, format!("there is no axis `{axis}`"), Some(hint));
            }
            if entry.contains_key("site") {
                let span = self.loaded.tree.key_span(&["include", &index.to_string(), "site"]);
                self.add(span, "a site is added in `sites`, not in `include`".into(), None);
            }
        }
    }

    /// A stage that a `selection` added: its origin is checked as written, here is only what the kinds decide.
    fn added(&mut self, name: &str, stage: &Stage) {
        let wanted = stage.uses.as_deref().unwrap_or_default();
        match self.loaded.kinds.get(wanted) {
            Some(kind) => {
                for (input, need) in &stage.needs {
                    self.files(name, input, &need.join().stage, kind);
                }
            }
            None => {
                let message = format!("`selection` needs the stage kind `{wanted}`, which no pack has");
                self.add(self.span(&["stages", name, "selection"]), message, None);
            }
        }
    }

    fn stage(&mut self, name: &str, stage: &Stage) {
        let kinds = &self.loaded.kinds;
        let wanted = match (&stage.uses, &stage.run) {
            (Some(uses), None) => uses.clone(),
            (None, Some(_)) => command::kind_name(name),
            (uses, _) => {
                let message = match uses {
                    Some(_) => format!("the stage `{name}` has both `uses` and `run`"),
                    None => format!("the stage `{name}` has neither `uses` nor `run`"),
                };
                let hint = "`uses` names a stage kind, `run` gives a command".to_owned();
                return self.add(self.loaded.tree.key_span(&["stages", name]), message, Some(hint));
            }
        };
        let Some(kind) = kinds.get(&wanted) else {
            let names = kinds.values().filter(|k| !command::is_command(k)).map(|k| k.name.as_str());
            let hint = suggest(&wanted, "the stage kinds are", names.collect::<Vec<_>>());
            return self.add(
                self.span(&["stages", name, "uses"]),
                format!("there is no stage kind `{wanted}`"),
                Some(hint),
            );
        };
        self.execution(name, stage);
        if let Some(when) = &stage.when {
            self.condition(when, &["stages", name, "when"], &stage.per);
        }
        let axes = self.axes.clone();
        for (index, axis) in stage.per.iter().enumerate() {
            if !axes.contains_key(axis) {
                let hint = suggest(axis, "the axes are", axes.keys().map(String::as_str));
                self.add(
                    self.span(&["stages", name, "per", &index.to_string()]),
                    format!("there is no axis `{axis}`"),
                    Some(hint),
                );
            }
        }
        self.given_once(name, stage);
        self.needs(name, stage, kind);
        self.params(name, stage, kind);
        for (axis, from) in [("site", SourceFrom::Site), ("backbone", SourceFrom::Backbone)] {
            let wants = kind.sources.iter().any(|source| source.from == from);
            if wants && !stage.per.iter().any(|a| a == axis) {
                self.add(
                    self.loaded.tree.key_span(&["stages", name]),
                    format!(
                        "the stage `{name}` uses `{}`, which works on one {axis}, but is not `per` the axis `{axis}`",
                        kind.name
                    ),
                    Some(format!("write `per: [{axis}]`")),
                );
            }
        }
    }

    fn needs(&mut self, name: &str, stage: &Stage, kind: &StageKind) {
        let manifest = &self.loaded.manifest;
        for (input, need) in &stage.needs {
            let path = ["stages", name, "needs", input];
            if !is_name(input) {
                let hint = "it is a folder in `inputs`: use letters, digits, `-`, `_` and `.`".to_owned();
                self.add(
                    self.loaded.tree.key_span(&path),
                    format!("{input:?} cannot be the name of an input"),
                    Some(hint),
                );
                continue;
            }
            if !kind.inputs.iter().any(|spec| spec.name == *input) {
                let hint =
                    suggest(input, &format!("`{}` reads", kind.name), kind.inputs.iter().map(|i| i.name.as_str()));
                self.add(
                    self.loaded.tree.key_span(&path),
                    format!("stage kind `{}` has no input `{input}`", kind.name),
                    Some(hint),
                );
                continue;
            }
            let join = need.join();
            let value = self.loaded.tree.nearest(&path);
            let stage_span = value.get("stage").map_or_else(|| value.span.clone(), |entry| entry.value.span.clone());
            let Some(needed) = manifest.stages.get(&join.stage) else {
                let hint = suggest(&join.stage, "the stages are", manifest.stages.keys().map(String::as_str));
                self.add(stage_span, format!("there is no stage `{}`", join.stage), Some(hint));
                continue;
            };
            if join.role.is_some() && stage.run.is_none() {
                let span = value.get("role").map_or_else(|| value.span.clone(), |entry| entry.key_span.clone());
                self.add(span, format!("stage kind `{}` says itself what `{input}` is", kind.name), None);
            }
            self.files(name, input, &join.stage, kind);
            self.choices(name, stage, input, &join.stage);
            let both: Vec<String> = stage.per.iter().chain(&needed.per).cloned().collect();
            if let Some(filter) = &join.filter {
                self.condition(filter, &["stages", name, "needs", input, "where"], &both);
            }
            if let Some(when) = &join.when {
                self.condition(when, &["stages", name, "needs", input, "when"], &stage.per);
            }
        }
        for spec in kind.inputs.iter().filter(|spec| !spec.optional && !stage.needs.contains_key(&spec.name)) {
            self.add(
                self.loaded.tree.key_span(&["stages", name]),
                format!("the stage `{name}` lacks `{}` in `needs`", spec.name),
                Some(format!("stage kind `{}`: {}", kind.name, kind.summary)),
            );
        }
    }

    /// Checks `with` and each of the `overrides` against the kind's schema.
    fn params(&mut self, name: &str, stage: &Stage, kind: &StageKind) {
        let what = format!("stage kind `{}`", kind.name);
        let mut partial = kind.params.clone();
        // What an axis or another point may give is not missing here; the plan checks the whole.
        if let Some(map) = partial.as_object_mut() {
            map.remove("required");
        }
        let mut places = vec![vec!["stages".to_owned(), name.to_owned(), "with".to_owned()]];
        for index in 0..stage.overrides.len() {
            let when = &stage.overrides[index].when;
            let index = index.to_string();
            self.condition(when, &["stages", name, "overrides", &index, "when"], &stage.per);
            places.push(vec!["stages".into(), name.into(), "overrides".into(), index, "with".into()]);
        }
        for place in places {
            let path: Vec<&str> = place.iter().map(String::as_str).collect();
            let Some(node) = as_node(&self.loaded.tree, &path) else { continue };
            for misfit in crate::schema::check(node, &self.loaded.text, &partial, &what) {
                self.add(misfit.span, misfit.message, misfit.hint);
            }
            for axis in stage.per.iter().filter(|axis| node.get(axis).is_some()) {
                let span = node.get(axis).map_or_else(|| node.span.clone(), |entry| entry.key_span.clone());
                self.add(span, format!("`{axis}` is given by the axis of that name"), Some("leave it out here".into()));
            }
        }
    }

    /// Checks that a condition can be read and compares axes with axes or with values that they have.
    fn condition(&mut self, text: &str, path: &[&str], axes: &[String]) {
        let whole = self.span(path);
        // A quoted text begins one byte behind its quotation mark.
        let quote = usize::from(self.loaded.text[whole.clone()].starts_with(['"', '\'']));
        let sub = |at: usize, length: usize| {
            let start = (whole.start + quote + at).min(whole.end);
            start..(start + length.max(1)).min(whole.end.max(start + 1))
        };
        let condition = match Condition::parse(text) {
            Ok(condition) => condition,
            Err(bad) => {
                let hint = "conditions look like `site != held_out` or `method in [erm, mcdrl] and seed == 0`";
                return self.add(sub(bad.at, bad.length), format!("bad condition: {}", bad.message), Some(hint.into()));
            }
        };
        for (left, right) in condition.comparisons() {
            let known = |word: &str| axes.iter().any(|axis| axis == word);
            let (axis, other) = match (known(&left.word), known(&right.word)) {
                (true, true) => continue,
                (true, false) => (&left.word, right),
                (false, true) => (&right.word, left),
                (false, false) => {
                    let hint = suggest(&left.word, "axes that can be used here", axes.iter().map(String::as_str));
                    self.add(
                        sub(left.at, left.word.len()),
                        format!("bad condition: there is no axis `{}` here", left.word),
                        Some(hint),
                    );
                    continue;
                }
            };
            let labels: Vec<String> = self.axes.get(axis).into_iter().flatten().map(AxisValue::label).collect();
            if !labels.contains(&other.word) {
                let names = labels.iter().chain(axes).map(String::as_str);
                let hint = suggest(&other.word, &format!("`{axis}` can be compared with"), names);
                self.add(
                    sub(other.at, other.word.len()),
                    format!("bad condition: `{}` is neither an axis nor a value of `{axis}`", other.word),
                    Some(hint),
                );
            }
        }
    }

    /// Stages that wait for each other.
    fn cycles(&mut self) {
        let stages = &self.loaded.manifest.stages;
        let mut graph = petgraph::graphmap::DiGraphMap::<&str, ()>::new();
        for (name, stage) in stages {
            graph.add_node(name.as_str());
            for need in stage.needs.values() {
                if let Some((needed, _)) = stages.get_key_value(&need.join().stage) {
                    graph.add_edge(needed.as_str(), name.as_str(), ());
                }
            }
        }
        let circles: Vec<Vec<String>> = petgraph::algo::tarjan_scc(&graph)
            .into_iter()
            .filter(|group| group.len() > 1 || graph.contains_edge(group[0], group[0]))
            .map(|group| stages.keys().filter(|name| group.contains(&name.as_str())).cloned().collect())
            .collect();
        for circle in circles {
            let mut shown = circle.clone();
            shown.push(circle[0].clone());
            let span = self.loaded.tree.key_span(&["stages", &circle[0], "needs"]);
            self.add(span, format!("these stages wait for each other: {}", shown.join(" -> ")), None);
        }
    }
}
