//! Model selection: how one of several candidates is chosen, and the stages that a protocol adds for it.
//!
//! A stage with `selection` trains candidates: one for each value of the axes in `among`. The protocols are those of
//! DomainBed (Gulrajani and Lopez-Paz, ICLR 2021, section 3). What they need is written out as ordinary stages before
//! anything is checked or counted, so that plan, keys, leakage and lineage treat them like any others:
//!
//! | stage | instances | what it is |
//! |---|---|---|
//! | `train` | one a candidate and held-out site | the candidates: n trainings for n held-out sites |
//! | `train.pairs` | one a candidate and pair of sites, of which one at least is tested on | leave-one-domain-out: n(n-1)/2 trainings without either of two |
//! | `train.validate` | two a pair | leave-one-domain-out: those models on each of the two sites |
//! | `train.oracle` | one a candidate and held-out site | oracle: the candidates on the held-out site |
//! | `train.select` | one a held-out site | the candidate that was chosen; this is what others read |

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::axes::Axis;
use super::{AxisValue, Join, Manifest, Need, Stage};
use crate::diagnostic::{Diagnostic, suggest};
use crate::graph::MOST_INSTANCES;
use crate::pattern::{Condition, JOINS};
use crate::tree::{Node, Span};

/// The axis of the protocols.
pub const SELECTION: &str = "selection";
/// The axis of the pairs of sites that leave-one-domain-out leaves out.
pub const LEFT_OUT: &str = "left_out";

/// How one of several trained candidates is chosen. Other stages read the chosen one as `STAGE.select`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Selection {
    /// One protocol, or a list of them: each is then a value of the axis `selection`.
    pub protocol: Protocols,
    /// The axes whose values are the candidates.
    pub among: Vec<String>,
    /// The axis of the sites that are tested on.
    #[serde(default = "held_out")]
    pub held_out: String,
}

fn held_out() -> String {
    "held_out".to_owned()
}

/// One protocol or several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Protocols {
    /// One.
    One(Protocol),
    /// Several.
    Several(Vec<Protocol>),
}

impl Protocols {
    /// As a list.
    pub fn list(&self) -> &[Protocol] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Several(list) => list,
        }
    }
}

/// Which scores may choose between candidates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// Those on the validation images of the training sites.
    TrainingDomainValidation,
    /// Those on each training site of a model that was trained without it and without the held-out site.
    LeaveOneDomainOut,
    /// Those on the held-out site itself: an upper bound, no result. Tables mark it.
    Oracle,
}

impl Protocol {
    /// As in the manifest.
    pub fn name(self) -> &'static str {
        match self {
            Self::TrainingDomainValidation => "training-domain-validation",
            Self::LeaveOneDomainOut => "leave-one-domain-out",
            Self::Oracle => "oracle",
        }
    }
}

/// The names of the stages that a stage's selection adds.
pub fn pairs_of(stage: &str) -> String {
    format!("{stage}.pairs")
}

fn validate_of(stage: &str) -> String {
    format!("{stage}.validate")
}

fn oracle_of(stage: &str) -> String {
    format!("{stage}.oracle")
}

/// Where others read the chosen candidate.
pub fn select_of(stage: &str) -> String {
    format!("{stage}.select")
}

/// Adds the stages and axes of every `selection`. Returns which stage each added one comes from.
///
/// # Errors
/// Selections that cannot be carried out, each with its place.
pub(super) fn spell_out(
    path: &Path,
    tree: &Node,
    manifest: &mut Manifest,
    axes: &mut BTreeMap<String, Axis>,
) -> Result<BTreeMap<String, String>, Vec<Diagnostic>> {
    let selecting: Vec<String> =
        manifest.stages.iter().filter(|(_, stage)| stage.selection.is_some()).map(|(name, _)| name.clone()).collect();
    let mut origins = BTreeMap::new();
    let mut found = Vec::new();
    for name in &selecting {
        let stage = manifest.stages[name].clone();
        let Some(selection) = stage.selection.clone() else { continue };
        let known = axes.keys().cloned().collect();
        let spelled = Spelling { path, tree, name, stage: &stage, selection: &selection, known }.spell(manifest, axes);
        match spelled {
            Err(diagnostic) => found.push(diagnostic),
            Ok(added) => {
                let place = manifest.stages.get_index_of(name).unwrap_or(0) + 1;
                for (offset, (added, stage)) in added.into_iter().enumerate() {
                    origins.insert(added.clone(), name.clone());
                    manifest.stages.shift_insert(place + offset, added, stage);
                }
            }
        }
    }
    if found.is_empty() { Ok(origins) } else { Err(found) }
}

/// One stage's selection, being spelled out.
struct Spelling<'a> {
    path: &'a Path,
    tree: &'a Node,
    name: &'a str,
    stage: &'a Stage,
    selection: &'a Selection,
    /// The names of the axes.
    known: BTreeSet<String>,
}

/// A need that leaves the held-out site out: `site != held_out`.
struct LeavesOut {
    input: String,
    stage: String,
    /// The axis that is compared with the held-out one: `site`.
    axis: String,
}

impl Spelling<'_> {
    fn problem(&self, path: &[&str], message: String, hint: Option<String>) -> Diagnostic {
        let full: Vec<&str> = ["stages", self.name].into_iter().chain(path.iter().copied()).collect();
        let span: Span = self.tree.nearest(&full).span.clone();
        let span = if span.is_empty() { self.tree.key_span(&full) } else { span };
        Diagnostic { file: self.path.to_owned(), span: Some(span), message, hint, detail: None }
    }

    fn spell(
        &self,
        manifest: &Manifest,
        axes: &mut BTreeMap<String, Axis>,
    ) -> Result<IndexMap<String, Stage>, Diagnostic> {
        let protocols = self.selection.protocol.list();
        self.check(manifest, protocols)?;
        let held_out = self.selection.held_out.as_str();
        let mut added = IndexMap::new();
        let left_out = self.leaves_out()?;
        if protocols.contains(&Protocol::LeaveOneDomainOut) {
            let labels = |axis: &str| -> Vec<String> {
                axes.get(axis).into_iter().flat_map(|axis| &axis.values).map(AxisValue::label).collect()
            };
            let sites = labels(&left_out[0].axis);
            if sites.len() < 3 {
                let message = format!(
                    "leave-one-domain-out trains without two sites at a time, and there are only {} on the axis `{}`",
                    sites.len(),
                    left_out[0].axis
                );
                let hint = "choose by `training-domain-validation`, or give it at least three sites".to_owned();
                return Err(self.problem(&["selection", "protocol"], message, Some(hint)));
            }
            let tested = labels(held_out);
            // Each pair is one training at least.
            let count = count_pairs(&tested, &sites);
            if count > MOST_INSTANCES {
                let message = format!(
                    "leave-one-domain-out would train once for each of {count} pairs of sites; {MOST_INSTANCES} is the most"
                );
                let hint = format!("leave out values of the axis `{held_out}`");
                return Err(self.problem(&["selection", "protocol"], message, Some(hint)));
            }
            let pairs = pairs(&tested, &sites);
            self.claim(axes, LEFT_OUT, pairs)?;
            added.insert(pairs_of(self.name), self.pairs()?);
            added.insert(validate_of(self.name), self.validate(&left_out)?);
        }
        if protocols.contains(&Protocol::Oracle) {
            added.insert(oracle_of(self.name), self.oracle(&left_out));
        }
        let names = protocols.iter().map(|protocol| AxisValue::Word(protocol.name().to_owned())).collect();
        self.claim(axes, SELECTION, names)?;
        added.insert(select_of(self.name), self.select(&left_out, protocols));
        if let Some(name) = added.keys().find(|name| manifest.stages.contains_key(*name)) {
            let message = format!("the stage `{name}` is made by `selection` of the stage `{}`", self.name);
            let span = Some(self.tree.key_span(&["stages", name]));
            let hint = Some("call your own stage otherwise".to_owned());
            return Err(Diagnostic { file: self.path.to_owned(), span, message, hint, detail: None });
        }
        Ok(added)
    }

    fn check(&self, manifest: &Manifest, protocols: &[Protocol]) -> Result<(), Diagnostic> {
        let selection = self.selection;
        let in_per = |axis: &String| self.stage.per.contains(axis);
        if self.stage.run.is_some() {
            let hint = "it compares the validation records that such a stage writes";
            return Err(self.problem(
                &["selection"],
                "`selection` is for stages that use a stage kind".into(),
                Some(hint.into()),
            ));
        }
        if let Some(axis) = std::iter::once(&selection.held_out).chain(&selection.among).find(|axis| !in_per(axis)) {
            let hint = suggest(axis, "its axes are", self.stage.per.iter().map(String::as_str));
            let message = format!("the stage `{}` is not repeated per `{axis}`", self.name);
            return Err(self.problem(&["selection"], message, Some(hint)));
        }
        if selection.among.is_empty() || protocols.is_empty() {
            let message = "there is nothing to choose: `protocol` and `among` name at least one each".to_owned();
            let hint = "`selection: {protocol: leave-one-domain-out, among: [lr]}` with an axis `lr` of candidates";
            return Err(self.problem(&["selection"], message, Some(hint.into())));
        }
        if let Some(twice) = protocols.iter().enumerate().find(|(place, one)| protocols[..*place].contains(one)) {
            let message = format!("the protocol `{}` is there twice", twice.1.name());
            return Err(self.problem(&["selection", "protocol"], message, None));
        }
        if selection.among.contains(&selection.held_out) {
            let message =
                format!("`{}` cannot be chosen among: each held-out site has its own model", selection.held_out);
            return Err(self.problem(&["selection", "among"], message, None));
        }
        if let Some(axis) = [SELECTION, LEFT_OUT].into_iter().find(|axis| manifest.axes.contains_key(*axis)) {
            let message = format!("the axis `{axis}` is made by `selection` of the stage `{}`", self.name);
            let span = Some(self.tree.key_span(&["axes", axis]));
            let hint = Some("call your own axis otherwise".to_owned());
            return Err(Diagnostic { file: self.path.to_owned(), span, message, hint, detail: None });
        }
        Ok(())
    }

    /// Adds an axis, or finds it as another stage's selection has made it.
    fn claim(&self, axes: &mut BTreeMap<String, Axis>, name: &str, values: Vec<AxisValue>) -> Result<(), Diagnostic> {
        let axis = Axis::new(values);
        match axes.get(name) {
            Some(known) if *known != axis => {
                let message = format!("another stage's `selection` makes the axis `{name}` with other values");
                let hint = "give both the same protocols and the same axis of held-out sites";
                Err(self.problem(&["selection"], message, Some(hint.into())))
            }
            _ => {
                axes.insert(name.to_owned(), axis);
                Ok(())
            }
        }
    }

    /// The needs that leave the held-out site out.
    fn leaves_out(&self) -> Result<Vec<LeavesOut>, Diagnostic> {
        let mut found = Vec::new();
        for (input, need) in &self.stage.needs {
            let join = need.join();
            let Some(condition) = join.filter.as_deref().and_then(|text| Condition::parse(text).ok()) else { continue };
            for (axis, _, _) in self.inequalities(join.filter.as_deref().unwrap_or_default(), &condition) {
                found.push(LeavesOut { input: input.clone(), stage: join.stage.clone(), axis });
            }
        }
        if found.is_empty() {
            let held_out = &self.selection.held_out;
            let message = format!("no need of the stage `{}` leaves out the site that `{held_out}` names", self.name);
            let hint = format!("`features: {{stage: features, where: site != {held_out}}}`");
            return Err(self.problem(&["needs"], message, Some(hint)));
        }
        Ok(found)
    }

    /// Every `AXIS != held_out` of a condition: the axis, and where the comparison stands in the text.
    fn inequalities(&self, text: &str, condition: &Condition) -> Vec<(String, usize, usize)> {
        match condition {
            Condition::Not(inner) => {
                let Condition::Equal(left, right) = inner.as_ref() else { return Vec::new() };
                let held_out = |word: &String| *word == self.selection.held_out;
                let other = match (held_out(&left.word), held_out(&right.word)) {
                    (true, false) => right,
                    (false, true) => left,
                    _ => return Vec::new(),
                };
                // As it is written: `not site == held_out` and quoted words are left to be refused.
                let end = right.at + right.word.len();
                let between = text.get(left.at + left.word.len()..right.at).map(str::trim);
                let plain = between == Some("!=") && text.get(right.at..end) == Some(right.word.as_str());
                let span = (other.word.clone(), left.at, end);
                (plain && self.known.contains(&other.word)).then_some(span).into_iter().collect()
            }
            Condition::And(parts) => parts.iter().flat_map(|part| self.inequalities(text, part)).collect(),
            _ => Vec::new(),
        }
    }

    /// A condition of the stage for the trainings without a pair: `site != held_out` becomes `site not in left_out`.
    fn for_pairs(&self, text: &str, path: &[&str]) -> Result<String, Diagnostic> {
        // What cannot be read is refused by the checks of the stage itself.
        let Ok(condition) = Condition::parse(text) else { return Ok(text.to_owned()) };
        let held_out = &self.selection.held_out;
        let found = self.inequalities(text, &condition);
        let mentions = condition.comparisons().iter().filter(|(l, r)| [&l.word, &r.word].contains(&held_out)).count();
        if mentions != found.len() {
            let message =
                format!("leave-one-domain-out trains without two sites at a time, for which `{text}` says nothing");
            let hint = format!("it follows conditions of the form `site != {held_out}`");
            return Err(self.problem(path, message, Some(hint)));
        }
        let mut rewritten = text.to_owned();
        for (axis, start, end) in found.iter().rev() {
            rewritten.replace_range(*start..*end, &format!("{axis} not in {LEFT_OUT}"));
        }
        Ok(rewritten)
    }

    /// The stage's axes with the pair in the held-out site's place.
    fn pair_axes(&self) -> Vec<String> {
        let swap = |axis: &String| if *axis == self.selection.held_out { LEFT_OUT.to_owned() } else { axis.clone() };
        self.stage.per.iter().map(swap).collect()
    }

    /// Trainings without either of two sites.
    fn pairs(&self) -> Result<Stage, Diagnostic> {
        let mut stage = Stage { per: self.pair_axes(), selection: None, ..self.stage.clone() };
        for (input, need) in &mut stage.needs {
            let mut join = need.join();
            for (text, entry) in [(&mut join.filter, "where"), (&mut join.when, "when")] {
                if let Some(text) = text {
                    *text = self.for_pairs(text, &["needs", input, entry])?;
                }
            }
            *need = Need::Join(join);
        }
        stage.when = stage.when.map(|text| self.for_pairs(&text, &["when"])).transpose()?;
        for (index, change) in stage.overrides.iter_mut().enumerate() {
            change.when = self.for_pairs(&change.when, &["overrides", &index.to_string(), "when"])?;
        }
        Ok(stage)
    }

    /// Those models on each of the two sites that they were trained without.
    fn validate(&self, left_out: &[LeavesOut]) -> Result<Stage, Diagnostic> {
        let axis = &left_out[0].axis;
        let mut when = format!("{axis} in {LEFT_OUT}");
        if let Some(text) = &self.stage.when {
            when = format!("{when} and ({})", self.for_pairs(text, &["when"])?);
        }
        let mut per = self.pair_axes();
        per.push(axis.clone());
        Ok(scoring(per, Some(when), pairs_of(self.name), left_out, |_| None))
    }

    /// The candidates on the held-out site.
    fn oracle(&self, left_out: &[LeavesOut]) -> Stage {
        let held_out = &self.selection.held_out;
        let on_it = |need: &LeavesOut| Some(format!("{} == {held_out}", need.axis));
        scoring(self.stage.per.clone(), self.stage.when.clone(), self.name.to_owned(), left_out, on_it)
    }

    /// The choice.
    fn select(&self, left_out: &[LeavesOut], protocols: &[Protocol]) -> Stage {
        let Selection { among, held_out, .. } = self.selection;
        let axis = &left_out[0].axis;
        let mut per: Vec<String> = self.stage.per.iter().filter(|axis| !among.contains(axis)).cloned().collect();
        per.push(SELECTION.to_owned());
        let only = |protocol: Protocol| Some(format!("{SELECTION} == {}", protocol.name()));
        let mut needs = IndexMap::from([("candidates".to_owned(), Need::Stage(self.name.to_owned()))]);
        let mut score = |input: &str, stage: String, filter: Option<String>, protocol: Protocol| {
            if protocols.contains(&protocol) {
                let join = Join { stage, filter, when: only(protocol), role: None };
                needs.insert(input.to_owned(), Need::Join(join));
            }
        };
        let of_others = format!("{held_out} in {LEFT_OUT} and {axis} != {held_out}");
        score("left_out_scores", validate_of(self.name), Some(of_others), Protocol::LeaveOneDomainOut);
        score("held_out_scores", oracle_of(self.name), None, Protocol::Oracle);
        // A condition over the axes that are chosen among says which candidates there are, not which choices.
        let about_choices = |text: &&String| {
            Condition::parse(text).is_ok_and(|condition| {
                condition.comparisons().iter().all(|(l, r)| !among.contains(&l.word) && !among.contains(&r.word))
            })
        };
        let when = self.stage.when.as_ref().filter(about_choices).cloned();
        let with = Map::from_iter([("among".to_owned(), json!(among)), ("sites".to_owned(), json!(axis))]);
        Stage { uses: Some("select".to_owned()), per, when, needs, with, ..Stage::default() }
    }
}

/// A stage that scores models for a selection: no pictures, no table.
fn scoring(
    per: Vec<String>,
    when: Option<String>,
    model: String,
    on: &[LeavesOut],
    filter: impl Fn(&LeavesOut) -> Option<String>,
) -> Stage {
    let mut needs = IndexMap::from([("model".to_owned(), Need::Stage(model))]);
    for need in on {
        let join = Join { stage: need.stage.clone(), filter: filter(need), when: None, role: None };
        needs.insert(need.input.clone(), Need::Join(join));
    }
    let with = Map::from_iter([("overlays".to_owned(), Value::from(0))]);
    Stage { uses: Some("evaluate".to_owned()), per, when, needs, with, ..Stage::default() }
}

/// Every site, in order, and whether it is tested on.
fn tested_or_not<'s>(held_out: &'s [String], sites: &'s [String]) -> Vec<(&'s String, bool)> {
    let (tested, known): (HashSet<&String>, HashSet<&String>) = (held_out.iter().collect(), sites.iter().collect());
    let own = sites.iter().map(|site| (site, tested.contains(site)));
    own.chain(held_out.iter().filter(|site| !known.contains(site)).map(|site| (site, true))).collect()
}

/// How many [`pairs`] there are: all pairs of sites but those of two that are not tested on.
fn count_pairs(held_out: &[String], sites: &[String]) -> u128 {
    let all = tested_or_not(held_out, sites);
    let of = |count: usize| count as u128 * (count as u128).saturating_sub(1) / 2;
    of(all.len()) - of(all.iter().filter(|(_, tested)| !tested).count())
}

/// Every pair of a site that is tested on and any other site, each once.
fn pairs(held_out: &[String], sites: &[String]) -> Vec<AxisValue> {
    let all = tested_or_not(held_out, sites);
    let tested: Vec<usize> = (0..all.len()).filter(|place| all[*place].1).collect();
    let mut found = Vec::new();
    for (at, (first, is_tested)) in all.iter().enumerate() {
        let mut pair = |other: usize| found.push(AxisValue::Word(format!("{first}{JOINS}{}", all[other].0)));
        match is_tested {
            true => (at + 1..all.len()).for_each(&mut pair),
            false => tested[tested.partition_point(|place| *place <= at)..].iter().copied().for_each(&mut pair),
        }
    }
    found
}
