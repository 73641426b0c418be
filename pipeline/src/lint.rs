//! Warnings: what a manifest declares and never uses, which is mostly a slip.

use std::collections::BTreeSet;
use std::path::Path;

use crate::diagnostic::Diagnostic;
use crate::graph::{Graph, Instance};
use crate::manifest::{AxisValue, CommandLine, Loaded, Stage};
use crate::pattern::Condition;
use crate::protocol::SourceFrom;
use crate::tree::{NodeValue, Span};

/// Everything that looks like a slip, in the order of the file.
pub fn lint(loaded: &Loaded, graph: &Graph) -> Vec<Diagnostic> {
    let mut linter = Linter { loaded, graph, found: Vec::new() };
    linter.unused_names();
    linter.unused_results();
    linter.dead_conditions();
    linter.undeclared_files();
    linter.renamed_values();
    linter.excluded_points();
    linter.found.sort_by_key(|d| d.span.as_ref().map_or(0, |span| span.start));
    linter.found
}

struct Linter<'a> {
    loaded: &'a Loaded,
    graph: &'a Graph,
    found: Vec<Diagnostic>,
}

impl Linter<'_> {
    fn warn(&mut self, span: Span, message: String, hint: &str) {
        let hint = (!hint.is_empty()).then(|| hint.to_owned());
        self.found.push(Diagnostic { file: self.loaded.path.clone(), span: Some(span), message, hint, detail: None });
    }

    fn unused_names(&mut self) {
        let manifest = &self.loaded.manifest;
        if manifest.stages.is_empty() {
            let span = self.loaded.tree.key_span(&["stages"]);
            let hint = "`hello: {run: echo hello > out, outputs: [out]}` is one";
            return self.warn(span, "there are no stages, so that nothing would run".into(), hint);
        }
        let stages = || manifest.stages.values();
        for axis in manifest.axes.keys().filter(|axis| !stages().any(|stage| stage.per.contains(axis))) {
            let span = self.loaded.tree.key_span(&["axes", axis]);
            self.warn(
                span,
                format!("no stage is repeated per `{axis}`"),
                "leave the axis out, or write it into a stage's `per`",
            );
        }
        let reads = |stage: &Stage, from: &SourceFrom| {
            let kind = stage.uses.as_ref().and_then(|uses| self.loaded.kinds.get(uses));
            kind.is_some_and(|kind| kind.sources.iter().any(|source| source.from == *from))
        };
        let sites_read = stages().any(|stage| reads(stage, &SourceFrom::Site));
        if !manifest.sites.is_empty() && !sites_read {
            let span = self.loaded.tree.key_span(&["sites"]);
            self.warn(span, "no stage ingests the sites".into(), "`ingest: {uses: ingest, per: [site]}`");
        }
        let used: BTreeSet<String> =
            self.loaded.axes.get("backbone").into_iter().flat_map(|a| &a.values).map(|v| v.label()).collect();
        for name in manifest.backbones.keys().filter(|name| !used.contains(*name)) {
            let span = self.loaded.tree.key_span(&["backbones", name]);
            self.warn(span, format!("the backbone `{name}` is not on the axis `backbone`"), "");
        }
        for name in manifest.params.keys().filter(|name| !self.loaded.text.contains(&format!("${{{name}}}"))) {
            let span = self.loaded.tree.key_span(&["params", name]);
            self.warn(span, format!("nothing mentions `${{{name}}}`"), "");
        }
        let asked =
            |token: &String| stages().filter_map(|s| s.resources.as_ref()).any(|r| r.tokens.contains_key(token));
        for token in manifest.tokens.keys().filter(|token| !asked(token)) {
            let span = self.loaded.tree.key_span(&["tokens", token]);
            self.warn(span, format!("no stage asks for the token `{token}`"), "");
        }
    }

    /// Stages that nobody reads and that are no end of the experiment: all but the last are suspicious where others are read.
    fn unused_results(&mut self) {
        let needed: BTreeSet<String> = self
            .loaded
            .manifest
            .stages
            .values()
            .flat_map(|stage| stage.needs.values().map(|need| need.join().stage))
            .collect();
        let has_result = |name: &String| {
            let kind = &self.loaded.kinds[self.loaded.kind_of(name)];
            kind.outputs.iter().any(|output| output.purpose != crate::protocol::Purpose::Data)
        };
        let counts = self.graph.by_stage();
        for (name, stage) in &self.loaded.manifest.stages {
            if !counts.contains_key(name.as_str()) {
                let span = self.loaded.key_place(&["stages", name]);
                self.warn(
                    span,
                    format!("the stage `{name}` has no instance"),
                    "its `when`, or `exclude`, leaves no point",
                );
            } else if stage.run.is_none() && !needed.contains(name) && !has_result(name) {
                let span = self.loaded.key_place(&["stages", name]);
                self.warn(span, format!("nothing reads what the stage `{name}` makes"), "");
            }
        }
    }

    /// Conditions that hold at no point.
    fn dead_conditions(&mut self) {
        let written = |(name, _): &(&String, &Stage)| !self.loaded.added.contains_key(*name);
        for (name, stage) in self.loaded.manifest.stages.iter().filter(written) {
            let points: Vec<_> =
                self.graph.dag.node_weights().filter(|i| *i.stage == **name).map(|i| &i.point).collect();
            let dead = |text: &str| {
                let condition = Condition::parse(text);
                !points.is_empty()
                    && condition.is_ok_and(|c| !points.iter().any(|p| c.holds(&|axis| p.get(axis).map(String::as_str))))
            };
            let mut places = Vec::new();
            for (index, change) in stage.overrides.iter().enumerate().filter(|(_, change)| dead(&change.when)) {
                places.push((vec!["overrides".to_owned(), index.to_string(), "when".to_owned()], &change.when));
            }
            let joins: Vec<_> = stage.needs.iter().map(|(input, need)| (input, need.join())).collect();
            let whens: Vec<_> = joins.iter().filter_map(|(input, join)| Some((*input, join.when.as_ref()?))).collect();
            for (input, when) in whens.into_iter().filter(|(_, when)| dead(when)) {
                places.push((vec!["needs".to_owned(), input.clone(), "when".to_owned()], when));
            }
            for (place, text) in places {
                let path: Vec<&str> = ["stages", name].into_iter().chain(place.iter().map(String::as_str)).collect();
                let span = self.loaded.tree.nearest(&path).span.clone();
                self.warn(span, format!("`{text}` holds at no point of the stage `{name}`"), "");
            }
        }
    }

    /// Points that `include` adds and `exclude` takes away again.
    fn excluded_points(&mut self) {
        for (index, point) in self.loaded.manifest.include.iter().enumerate() {
            let has_all = |stage: &Stage| point.keys().all(|axis| stage.per.contains(axis));
            let stages = self.loaded.manifest.stages.iter().filter(|(_, stage)| has_all(stage));
            let names: BTreeSet<&str> = stages.map(|(name, _)| name.as_str()).collect();
            let is_there = |instance: &Instance| {
                let same = |(axis, value): (&String, &AxisValue)| instance.point.get(axis) == Some(&value.label());
                names.contains(instance.stage.as_ref()) && point.iter().all(same)
            };
            if !names.is_empty() && !self.graph.dag.node_weights().any(is_there) {
                let span = self.loaded.place(&["include", &index.to_string()]);
                self.warn(span, "no stage has an instance at this point".into(), "does `exclude` take it away again?");
            }
        }
    }

    /// Numbers on axes that are called otherwise than they are written: `001` is 1.
    fn renamed_values(&mut self) {
        let Some(axes) = self.loaded.tree.get("axes") else { return };
        let NodeValue::Map(axes) = &axes.value.value else { return };
        for (name, axis) in axes {
            let NodeValue::List(items) = &axis.value.value else { continue };
            for item in items.iter().filter(|item| matches!(item.value, NodeValue::Number(_))) {
                let Some(text) = item.written(&self.loaded.text) else { continue };
                // `1e-3` is a number whichever way it is called; `1.10` and `007` may well be names.
                let may_be_name =
                    text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') || text.starts_with("0x");
                let Ok(value) = serde_json::from_value::<AxisValue>(item.to_json()) else { continue };
                if may_be_name && value.label() != text {
                    let message = format!("`{text}` on the axis `{name}` is called `{}`", value.label());
                    self.warn(item.span.clone(), message, &format!("write `\"{text}\"` if it is a name"));
                }
            }
        }
    }

    /// Words of commands that are files of the project and are not declared: in its own directory the command will not find them,
    /// and by an absolute path it would find them without anybody noticing a change.
    fn undeclared_files(&mut self) {
        for (name, stage) in &self.loaded.manifest.stages {
            let words = match &stage.run {
                Some(CommandLine::Shell(text)) => shlex::split(text).unwrap_or_default(),
                Some(CommandLine::Words(words)) => words.clone(),
                None => continue,
            };
            let declared: Vec<glob::Pattern> = stage.code.iter().chain(&stage.files).filter_map(pattern_of).collect();
            let mut seen = BTreeSet::new();
            // `--data=FILE` names one as well.
            for word in words.iter().flat_map(|word| [Some(word.as_str()), word.split_once('=').map(|(_, file)| file)])
            {
                let Some(word) = word.filter(|word| !word.contains("${") && !word.is_empty()) else { continue };
                let path = Path::new(word);
                let below = match path.is_absolute() {
                    true => path.strip_prefix(&self.loaded.root).ok(),
                    false => Some(path.strip_prefix(".").unwrap_or(path)),
                };
                let Some(below) = below else { continue };
                let whole = self.loaded.root.join(below);
                let fits = |pattern: &glob::Pattern| {
                    pattern.matches_path_with(below, AS_SOURCES) || pattern.matches_path_with(&whole, AS_SOURCES)
                };
                let made = |output: &String| Path::new(output) == below;
                let is_known = declared.iter().any(fits) || stage.outputs.iter().any(made);
                if is_known || !whole.is_file() || !seen.insert(below.to_owned()) {
                    continue;
                }
                let span = self.loaded.key_place(&["stages", name, "run"]);
                let what = match path.is_absolute() {
                    true => "a change of it is not noticed",
                    false => "the command will not find it in its own directory",
                };
                let message = format!("`{word}` is a file of the project that `{name}` does not declare: {what}");
                self.warn(span, message, "write it into `code` if it is a program, or into `files`");
            }
        }
    }
}

/// How sources match: `*` stands for no `/`.
const AS_SOURCES: glob::MatchOptions =
    glob::MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: false };

/// A declared path as a pattern: whatever axes and parameters put into it fits.
fn pattern_of(text: impl AsRef<str>) -> Option<glob::Pattern> {
    let mut open = text.as_ref();
    let mut pattern = String::new();
    while let Some((before, rest)) = open.split_once("${") {
        pattern.push_str(before);
        pattern.push('*');
        open = rest.split_once('}').map_or("", |(_, behind)| behind);
    }
    pattern.push_str(open);
    glob::Pattern::new(pattern.strip_prefix("./").unwrap_or(&pattern)).ok()
}
