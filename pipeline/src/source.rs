//! What enters from outside the store: a site's raw files, a backbone's weights, files that parameters name.
//!
//! Files are found, paired and hashed when the plan is made; workers read what was hashed and look for nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use petgraph::graph::NodeIndex;
use rayon::prelude::*;
use rustc_hash::FxHashMap;
use serde_json::{Map, Value, json};
use siteline_cache::Store;

use crate::diagnostic::Diagnostic;
use crate::graph::Instance;
use crate::manifest::{Loaded, command, interpolate};
use crate::protocol::{RunSource, SourceFile, SourceFrom, StageKind};

mod imports;
mod matching;

use matching::{empty_hint, matches};

/// Which source: where it is from, and what the manifest calls it.
type SourceId = (&'static str, String, String);

/// What one instance reads: each source, with its place among its kind's.
type Read = Arc<[(usize, Arc<RunSource>)]>;

/// Resolves sources of a manifest and remembers them.
pub struct Sources<'a> {
    loaded: &'a Loaded,
    store: &'a Store,
    found: HashMap<SourceId, Result<Arc<RunSource>, Diagnostic>>,
    /// By node index, as far as it was asked for.
    read: Vec<Option<Read>>,
    by_stage: FxHashMap<Arc<str>, ReadByLabels>,
}

/// What the instances of a stage read: the same, where they have the same labels on the axes that decide it.
#[derive(Default)]
struct ReadByLabels {
    axes: Vec<String>,
    known: FxHashMap<Vec<String>, Read>,
}

impl<'a> Sources<'a> {
    /// For one manifest, hashing with the store's stat cache.
    pub fn new(loaded: &'a Loaded, store: &'a Store) -> Self {
        Self { loaded, store, found: HashMap::new(), read: Vec::new(), by_stage: FxHashMap::default() }
    }

    /// Finds and hashes everything that an instance reads from outside the store.
    ///
    /// # Errors
    /// A pattern that matches nothing, an image without a mask, a file that cannot be read.
    pub fn find(&mut self, node: NodeIndex, kind: &StageKind, instance: &Instance) -> Result<(), Diagnostic> {
        if self.read.get(node.index()).is_some_and(Option::is_some) {
            return Ok(());
        }
        if !self.by_stage.contains_key(&instance.stage) {
            let axes = self.deciding(kind, instance);
            self.by_stage.insert(instance.stage.clone(), ReadByLabels { axes, ..ReadByLabels::default() });
        }
        let by_labels = &self.by_stage[&instance.stage];
        let labels: Vec<String> = by_labels.axes.iter().filter_map(|axis| instance.point.get(axis).cloned()).collect();
        let read = match by_labels.known.get(&labels) {
            Some(read) => read.clone(),
            None => {
                let read = self.read_by(kind, instance)?;
                self.by_stage.get_mut(&instance.stage).map(|stage| stage.known.insert(labels, read.clone()));
                read
            }
        };
        if self.read.len() <= node.index() {
            self.read.resize_with(node.index() + 1, Option::default);
        }
        self.read[node.index()] = Some(read);
        Ok(())
    }

    fn read_by(&mut self, kind: &StageKind, instance: &Instance) -> Result<Read, Diagnostic> {
        let mut read = Vec::new();
        for (place, spec) in kind.sources.iter().enumerate() {
            let Some(id) = self.id_of(&spec.from, instance) else { continue };
            let found = match self.found.get(&id) {
                Some(found) => found,
                None => {
                    let found = match &spec.from {
                        SourceFrom::Site => self.find_site(&id.2),
                        SourceFrom::Backbone => self.find_backbone(&id.2),
                        SourceFrom::Param(param) => self.find_param(&instance.stage, param, &id.2),
                        SourceFrom::Stage(which) => self.find_listed(instance, which),
                    };
                    self.found.entry(id).or_insert(found.map(Arc::new))
                }
            };
            read.push((place, found.clone()?));
        }
        Ok(read.into())
    }

    /// The axes of an instance's stage that decide what is read.
    fn deciding(&self, kind: &StageKind, instance: &Instance) -> Vec<String> {
        let decides = |axis: &&String| {
            let mention = format!("${{{axis}}}");
            kind.sources.iter().any(|spec| match &spec.from {
                SourceFrom::Site => *axis == "site",
                SourceFrom::Backbone => *axis == "backbone",
                // Any axis may have a part in a parameter.
                SourceFrom::Param(_) => true,
                SourceFrom::Stage(which) => self.patterns(instance, which).iter().any(|text| text.contains(&mention)),
            })
        };
        instance.point.keys().filter(decides).cloned().collect()
    }

    /// What an instance reads from outside the store, by the names of its kind's sources; [`Self::find`] has found it.
    pub fn of<'s>(
        &'s self,
        node: NodeIndex,
        kind: &'s StageKind,
    ) -> impl Iterator<Item = (&'s str, &'s Arc<RunSource>)> {
        let read = self.read.get(node.index()).and_then(Option::as_deref).unwrap_or_default();
        read.iter().map(|(place, source)| (kind.sources[*place].name.as_str(), source))
    }

    /// The parameters of an instance as they enter its key: what names a file is left to the file's content, and how a source
    /// is read is a parameter like others.
    pub fn into_params(&self, node: NodeIndex, kind: &StageKind, instance: &Instance) -> Map<String, Value> {
        let mut params = instance.params.as_ref().clone();
        for spec in &kind.sources {
            if let SourceFrom::Param(param) = &spec.from {
                params.remove(param);
            }
        }
        for (name, source) in self.of(node, kind).filter(|(_, source)| !source.settings.is_null()) {
            params.insert(format!("{name} source"), json!({"name": source.name, "settings": source.settings}));
        }
        params
    }

    /// The patterns of `code` or `files` at an instance's point: `${AXIS}` stands for its value.
    fn listed(&self, instance: &Instance, which: &str) -> Vec<Result<String, String>> {
        let label = |axis: &str| instance.point.get(axis).cloned();
        self.patterns(instance, which).iter().map(|text| command::substitute(text, &label)).collect()
    }

    fn patterns(&self, instance: &Instance, which: &str) -> &'a [String] {
        let stage = &self.loaded.manifest.stages[instance.stage.as_ref()];
        if which == "code" { &stage.code } else { &stage.files }
    }

    /// Which source an instance means, if it means one.
    fn id_of(&self, from: &SourceFrom, instance: &Instance) -> Option<SourceId> {
        Some(match from {
            SourceFrom::Site => ("site", String::new(), instance.point.get("site")?.clone()),
            SourceFrom::Backbone => ("backbone", String::new(), instance.point.get("backbone")?.clone()),
            SourceFrom::Param(param) => {
                let value = instance.params.get(param)?.as_str()?.to_owned();
                ("param", format!("{} {param}", instance.stage), value)
            }
            SourceFrom::Stage(which) => {
                let patterns: Vec<String> =
                    self.listed(instance, which).into_iter().map(Result::unwrap_or_default).collect();
                if patterns.is_empty() {
                    return None;
                }
                ("stage", format!("{} {which}", instance.stage), patterns.join("\n"))
            }
        })
    }

    /// The files that a command's stage lists.
    fn find_listed(&self, instance: &Instance, which: &str) -> Result<RunSource, Diagnostic> {
        let stage: &str = &instance.stage;
        let patterns = self.listed(instance, which);
        let role = if which == "code" { "code" } else { "file" };
        let mut paths: BTreeMap<PathBuf, String> = BTreeMap::new();
        for (index, text) in patterns.into_iter().enumerate() {
            let index = index.to_string();
            let place = ["stages", stage, which, &index];
            let text = text.map_err(|message| self.error(&place, message, None))?;
            let pattern = self.pattern(&text, &place)?;
            let found = matches(&pattern).map_err(|message| self.error(&place, message, None))?;
            if found.is_empty() {
                let message = format!("no file matches `{text}`");
                return Err(self.error(&place, message, Some(empty_hint(&pattern))));
            }
            paths.extend(found.into_iter().map(|path| (path, index.clone())));
        }
        if which == "code" {
            let imported = imports::of(&self.loaded.root, paths.keys());
            paths.extend(imported.into_iter().map(|path| (path, "0".to_owned())));
        }
        let mut files = Vec::with_capacity(paths.len());
        for (path, index) in &paths {
            let place = ["stages", stage, which, index];
            let Ok(label) = path.strip_prefix(&self.loaded.root) else {
                let message = format!("{} lies outside the project", path.display());
                return Err(self.error(&place, message, Some("name a folder above it as the project's `root`".into())));
            };
            let label = label.to_string_lossy();
            let needs = &self.loaded.manifest.stages[stage].needs;
            if let Some((input, _)) = needs.iter().find(|(input, _)| is_in(&label, &format!("inputs/{input}"))) {
                let message = format!("`{label}` lies where the input `{input}` is put");
                return Err(self.error(&place, message, Some("call the input otherwise".into())));
            }
            if role == "file"
                && let Some(output) = self.loaded.manifest.stages[stage].outputs.iter().find(|o| is_in(&label, o))
            {
                let message = format!("`{label}` is read and, as the output `{output}`, written by the same stage");
                return Err(self.error(&place, message, Some("call the output otherwise".into())));
            }
            files.push(self.file(path, role, &label, &place)?);
        }
        self.store.keep_stamps().map_err(|e| self.error(&["stages", stage], e.to_string(), None))?;
        Ok(RunSource { name: which.to_owned(), settings: Value::Null, files })
    }

    fn find_backbone(&self, name: &str) -> Result<RunSource, Diagnostic> {
        let place = ["backbones", name, "weights"];
        let backbone = &self.loaded.manifest.backbones[name];
        let path = self.path(&backbone.weights, &place)?;
        let file = self.file(&path, "weights", name, &place)?;
        let mut settings = serde_json::to_value(backbone).expect("a backbone is JSON");
        // Where the file lies is no part of what it is.
        settings.as_object_mut().map(|fields| fields.remove("weights"));
        Ok(RunSource { name: name.to_owned(), settings, files: vec![file] })
    }

    /// The file that a parameter of a stage names.
    fn find_param(&self, stage: &str, param: &str, value: &str) -> Result<RunSource, Diagnostic> {
        let place = ["stages", stage, "with", param];
        let file = self.file(&self.path(value, &place)?, "file", param, &place)?;
        Ok(RunSource { name: param.to_owned(), settings: Value::Null, files: vec![file] })
    }

    fn error(&self, place: &[&str], message: String, hint: Option<String>) -> Diagnostic {
        let span = Some(self.loaded.place(place));
        Diagnostic { file: self.loaded.path.clone(), span, message, hint, detail: None }
    }

    /// A path as written to one that can be opened.
    fn path(&self, text: &str, place: &[&str]) -> Result<PathBuf, Diagnostic> {
        let text =
            interpolate(text, &self.loaded.manifest.params).map_err(|message| self.error(place, message, None))?;
        let path = Path::new(&text);
        if path.is_absolute() {
            return Ok(path.to_owned());
        }
        match climbs_out(path, &self.loaded.root) {
            Some((message, hint)) => Err(self.error(place, message, Some(hint))),
            None => Ok(self.loaded.root.join(path)),
        }
    }

    /// A pattern as written to one that can be searched for: the project's own folder may have wildcards in its name.
    fn pattern(&self, text: &str, place: &[&str]) -> Result<PathBuf, Diagnostic> {
        let path = self.path(text, place)?;
        let root = &self.loaded.root;
        Ok(match path.strip_prefix(root) {
            Ok(rest) => Path::new(&glob::Pattern::escape(&root.to_string_lossy())).join(rest),
            Err(_) => path,
        })
    }

    fn file(&self, path: &Path, role: &str, label: &str, place: &[&str]) -> Result<SourceFile, Diagnostic> {
        let (digest, size) = self.store.digest_of_raw(path).map_err(|e| {
            let hint = (!path.exists()).then(|| format!("paths are relative to {}", self.loaded.root.display()));
            self.error(place, e.to_string(), hint)
        })?;
        Ok(SourceFile { role: role.to_owned(), label: label.to_owned(), path: path.to_owned(), digest, size })
    }

    fn find_site(&self, name: &str) -> Result<RunSource, Diagnostic> {
        let site = &self.loaded.manifest.sites[name];
        let images_place = ["sites", name, "images"];
        let masks_place = ["sites", name, "masks"];
        let pattern = self.pattern(&site.images, &images_place)?;
        let images = matches(&pattern).map_err(|message| self.error(&images_place, message, None))?;
        if images.is_empty() {
            let hint = empty_hint(&pattern);
            return Err(self.error(
                &images_place,
                format!("no file matches the images of the site `{name}`: {}", pattern.display()),
                Some(hint),
            ));
        }
        let mut by_stem: BTreeMap<String, PathBuf> = BTreeMap::new();
        for image in images {
            let stem = stem_of(&image);
            if let Some(other) = by_stem.insert(stem.clone(), image.clone()) {
                let message = format!(
                    "two images of the site `{name}` share the stem `{stem}`: {} and {}",
                    other.display(),
                    image.display()
                );
                return Err(self.error(&images_place, message, Some("narrow the pattern, or rename one".into())));
            }
        }
        let mask_pattern = self.pattern(&site.masks, &masks_place)?;
        if !site.masks.contains("{stem}") {
            return Err(self.error(
                &masks_place,
                format!("the masks of the site `{name}` do not say which image they belong to"),
                Some("write `{stem}` where the image's name stands: `masks/{stem}.png`".into()),
            ));
        }
        let mut pairs = Vec::new();
        let mut lonely = Vec::new();
        for (stem, image) in by_stem {
            let wanted = mask_pattern.to_string_lossy().replace("{stem}", &glob::Pattern::escape(&stem));
            let masks = matches(Path::new(&wanted)).map_err(|message| self.error(&masks_place, message, None))?;
            match masks.as_slice() {
                [mask] => pairs.push((stem, image, mask.clone())),
                [] => lonely.push(image),
                [first, second, ..] => {
                    let message =
                        format!("{} has two masks: {} and {}", image.display(), first.display(), second.display());
                    return Err(self.error(&masks_place, message, None));
                }
            }
        }
        // Where images and masks lie in one folder, a pattern for images may match masks as well: those are no images.
        let masks: BTreeSet<PathBuf> = pairs.iter().map(|(_, _, mask)| mask.clone()).collect();
        lonely.retain(|image| !masks.contains(image));
        let mut paths = Vec::new();
        for (stem, image, mask) in pairs {
            if image == mask {
                let message = format!("{} would be its own mask", image.display());
                return Err(self.error(&masks_place, message, Some("the two patterns must differ".into())));
            }
            if !masks.contains(&image) {
                paths.extend([("image", stem.clone(), image), ("mask", stem, mask)]);
            }
        }
        if let Some(first) = lonely.first() {
            let stem = stem_of(first);
            let wanted = mask_pattern.to_string_lossy().replace("{stem}", &stem);
            let message = format!(
                "{} of {} images of the site `{name}` have no mask, the first is {}",
                lonely.len(),
                lonely.len() + paths.len() / 2,
                first.display()
            );
            return Err(self.error(&masks_place, message, Some(format!("its mask would be {wanted}"))));
        }
        let every_mask = mask_pattern.to_string_lossy().replace("{stem}", "*");
        let all = matches(Path::new(&every_mask)).map_err(|message| self.error(&masks_place, message, None))?;
        let images: BTreeSet<&PathBuf> =
            paths.iter().filter(|(role, ..)| *role == "image").map(|(_, _, p)| p).collect();
        if let Some(orphan) = all.iter().find(|mask| !masks.contains(*mask) && !images.contains(*mask)) {
            let message = format!("a mask of the site `{name}` has no image: {}", orphan.display());
            let hint = "narrow `masks` to the masks of these images, or add the image";
            return Err(self.error(&masks_place, message, Some(hint.into())));
        }
        if let Some(table) = &site.table {
            paths.push(("table", "table".to_owned(), self.path(table, &["sites", name, "table"])?));
        }
        let files = paths
            .par_iter()
            .map(|(role, label, path)| {
                let place = if *role == "table" { ["sites", name, "table"] } else { images_place };
                self.file(path, role, label, &place)
            })
            .collect::<Result<Vec<_>, _>>()?;
        self.store.keep_stamps().map_err(|e| self.error(&images_place, e.to_string(), None))?;
        let mut settings = serde_json::to_value(site).expect("a site is JSON");
        if let Some(map) = settings.as_object_mut() {
            // Where the files lie never enters a key; what they hold does.
            for path in ["images", "masks", "table"] {
                map.remove(path);
            }
        }
        Ok(RunSource { name: name.to_owned(), settings, files })
    }
}

/// What is wrong with a path that leads out of the project by way of `..`, and what may be meant.
pub(crate) fn climbs_out(path: &Path, root: &Path) -> Option<(String, String)> {
    let mut depth = 0i32;
    let leaves = |part| {
        depth += match part {
            Component::ParentDir => -1,
            Component::Normal(_) => 1,
            _ => 0,
        };
        depth < 0
    };
    let climbs = path.is_relative() && path.components().any(leaves);
    climbs.then(|| {
        let root = root.display();
        let hint = format!(
            "paths are relative to {root}; name a folder above it as the project's `root`, or give an absolute path"
        );
        (format!("`{}` climbs out of the project", path.display()), hint)
    })
}

/// Whether a file is at a place or below it.
fn is_in(file: &str, place: &str) -> bool {
    Path::new(file).starts_with(place)
}

fn stem_of(path: &Path) -> String {
    path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
}
