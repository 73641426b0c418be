//! The key of an instance: everything that decides whether it must run, and nothing else.
//!
//! A key is made of a [`Recipe`], which many instances share, and of the files that an instance reads, gathered by input: the
//! digest of a group of files is worked out once for all instances that read the same.
//!
//! | enters | as |
//! |---|---|
//! | the key format's version | the record type of the pre-image |
//! | the stage kind | its name; `run` for every command |
//! | its code | the fingerprint of its sources, and of the variant that its parameters choose |
//! | libraries that shape numbers | name and version |
//! | parameters that the kind declares | canonical JSON, defaults filled in; a group of another variant is left out |
//! | a command | its words after substitution, its declared environment and outputs |
//! | each file that it reads | input name, role, axis point of the instance that made it, label, digest of the content |
//!
//! | never enters | because |
//! |---|---|
//! | paths, times of files | content decides; a project may move, a file may be touched |
//! | host, user, thread count, GPU index | where something runs is recorded, not compared |
//! | resources, timeouts, retries | they decide when and where something runs, not what comes of it |
//! | keys of upstream instances | early cutoff: equal bytes from another execution are equal inputs |
//! | names of stages and of the manifest | renaming changes no result |
//!
//! [`KeyParts::walk`] is the only way through the parts: the hash and the explanation (`why`) are both made by it.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use siteline_cache::{Canonical, Digest};

use crate::manifest::command;
use crate::protocol::{Point, StageKind};

/// Version of the pre-images. History: 1, one pre-image; 2, the recipe's digest and the files; 3, files in groups.
const FORMAT: &str = "siteline key 3";
const RECIPE_FORMAT: &str = "siteline recipe 2";
const GROUP_FORMAT: &str = "siteline files 3";
/// The role of files that other instances made.
pub const MADE: &str = "output";

/// What instances do: everything of a key but the files.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// The stage kind.
    pub kind: String,
    /// Fingerprints of its sources: `base`, and `method=mcdrl` for a variant.
    pub code: BTreeMap<String, String>,
    /// Versions of the libraries that shape its numbers.
    pub libraries: BTreeMap<String, String>,
    /// Parameters, defaults filled in.
    pub params: Map<String, Value>,
}

/// Everything that decides whether an instance must run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeyParts<'a> {
    /// What it does.
    #[serde(flatten)]
    pub recipe: Cow<'a, Recipe>,
    /// Files that it reads, in order.
    pub files: Vec<KeyFile<'a>>,
}

/// A file that an instance reads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct KeyFile<'a> {
    /// The input's or source's name.
    pub input: Cow<'a, str>,
    /// What it is to the stage: `image`, `mask`, `output`.
    pub role: Cow<'a, str>,
    /// The point of the instance that made it; empty for a raw file.
    pub point: Cow<'a, Point>,
    /// What tells it from the others: a sample's stem, an output's path.
    pub label: Cow<'a, str>,
    /// Its content.
    pub digest: Digest,
}

/// One component of a key, as [`KeyParts::walk`] meets it.
pub enum Part<'a> {
    /// A text under a name.
    Text(&'a str),
    /// A parameter's value.
    Value(&'a Value),
    /// A file's content.
    Content(&'a Digest),
}

impl Recipe {
    /// The recipe of instances of `kind` with whole `params`.
    pub fn new(kind: &StageKind, params: &Map<String, Value>) -> Self {
        let mut params = params.clone();
        let mut code = BTreeMap::new();
        if !kind.code.base.is_empty() {
            code.insert("base".to_owned(), kind.code.base.clone());
        }
        for (param, variants) in &kind.code.variants {
            let chosen = params.get(param).and_then(Value::as_str).unwrap_or_default().to_owned();
            // A group of parameters that is called like a variant belongs to that variant alone.
            params.retain(|name, _| *name == chosen || !variants.contains_key(&chosen) || !variants.contains_key(name));
            // Where the parameters choose no variant, any of them may be at work.
            let chosen_or_all = variants.iter().filter(|(name, _)| **name == chosen || !variants.contains_key(&chosen));
            code.extend(chosen_or_all.map(|(name, fingerprint)| (format!("{param}={name}"), fingerprint.clone())));
        }
        let name = if command::is_command(kind) { command::KIND } else { &kind.name };
        Self { kind: name.to_owned(), code, libraries: kind.code.libraries.clone(), params }
    }

    fn walk<'a>(&'a self, meet: &mut impl FnMut(&[&str], Part<'a>)) {
        meet(&["kind"], Part::Text(&self.kind));
        for (name, fingerprint) in &self.code {
            meet(&["code", name], Part::Text(fingerprint));
        }
        for (name, version) in &self.libraries {
            meet(&["library", name], Part::Text(version));
        }
        let mut params: Vec<_> = self.params.iter().collect();
        params.sort_by(|a, b| a.0.as_bytes().cmp(b.0.as_bytes()));
        for (name, value) in params {
            meet(&["param", name], Part::Value(value));
        }
    }

    /// Its digest.
    pub fn digest(&self) -> Digest {
        let mut canonical = Canonical::new(RECIPE_FORMAT);
        self.walk(&mut |path, part| put(&mut canonical, path, &part));
        canonical.finish()
    }
}

fn put(canonical: &mut Canonical, path: &[&str], part: &Part) {
    canonical.list(path.len());
    for step in path {
        canonical.text(step);
    }
    match part {
        Part::Text(text) => canonical.text(text),
        Part::Value(value) => canonical.value(value),
        Part::Content(digest) => canonical.digest(digest),
    };
}

fn walk_files<'b>(files: impl Iterator<Item = &'b KeyFile<'b>>, meet: &mut impl FnMut(&[&str], Part<'b>)) {
    let mut path: Vec<&str> = Vec::with_capacity(16);
    for file in files {
        path.clear();
        path.extend(["file", &file.input, &file.role, &file.label]);
        for (axis, value) in file.point.iter() {
            path.extend([axis.as_str(), value.as_str()]);
        }
        meet(&path, Part::Content(&file.digest));
    }
}

/// The files of one input or source.
pub struct Group<'a> {
    /// The input's or source's name.
    pub input: &'a str,
    /// Whether other instances made them.
    pub made: bool,
    /// Of all of them, in order.
    pub digest: Digest,
}

impl<'a> Group<'a> {
    /// Files of one input, in any order; `None` without any.
    pub fn new(input: &'a str, made: bool, mut files: Vec<KeyFile>) -> Option<Self> {
        files.sort();
        (!files.is_empty()).then(|| Self { input, made, digest: in_order(files.iter().collect()) })
    }
}

fn in_order(files: Vec<&KeyFile>) -> Digest {
    let mut canonical = Canonical::new(GROUP_FORMAT);
    canonical.list(files.len());
    walk_files(files.into_iter(), &mut |path, part| put(&mut canonical, path, &part));
    canonical.finish()
}

/// The key of an instance that does what has the digest `recipe` with these groups of files, in any order.
pub fn key_of(recipe: &Digest, mut groups: Vec<Group>) -> Digest {
    groups.sort_by(|a, b| (a.input, a.made).cmp(&(b.input, b.made)));
    let mut canonical = Canonical::new(FORMAT);
    canonical.digest(recipe);
    canonical.list(groups.len());
    groups.iter().for_each(|group| {
        canonical.digest(&group.digest);
    });
    canonical.finish()
}

impl<'a> KeyParts<'a> {
    /// The parts of an instance that does `recipe` with `files`.
    pub fn new(recipe: &'a Recipe, mut files: Vec<KeyFile<'a>>) -> Self {
        files.sort();
        Self { recipe: Cow::Borrowed(recipe), files }
    }

    /// Meets every part in a fixed order, each with a path that names it.
    pub fn walk<'b>(&'b self, mut meet: impl FnMut(&[&str], Part<'b>)) {
        self.recipe.walk(&mut meet);
        walk_files(self.files.iter(), &mut meet);
    }

    /// The key. `recipe` is the digest of the recipe, which whoever asks for many keys works out once.
    pub fn key_with(&self, recipe: &Digest) -> Digest {
        let mut by_group: BTreeMap<(&str, bool), Vec<&KeyFile>> = BTreeMap::new();
        for file in &self.files {
            by_group.entry((&file.input, file.role == MADE)).or_default().push(file);
        }
        let group = |((input, made), files): ((_, _), Vec<&KeyFile>)| Group { input, made, digest: in_order(files) };
        key_of(recipe, by_group.into_iter().map(group).collect())
    }

    /// The key.
    pub fn key(&self) -> Digest {
        self.key_with(&self.recipe.digest())
    }
}
