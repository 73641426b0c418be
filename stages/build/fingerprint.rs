//! Code fingerprints: a digest of the sources that a stage kind reaches, for its key.
//!
//! Starting at a kind's file, every module of the workspace that its paths name is followed, and so on. What is hashed is the
//! token stream without comments, documentation and tests, so that only code that runs counts. Index files (they list
//! modules and choose between them) are looked through and not hashed: a further kind or method reruns nothing. Behind a
//! choice that a parameter makes (`train` with `method: mcdrl`) each possibility has a fingerprint of its own.
//!
//! `siteline-cache` and `siteline-pipeline` carry data and shape no number; they are not followed. Libraries enter with the
//! version that Cargo.lock pins.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use quote::ToTokens;
use syn::visit::Visit;
use syn::visit_mut::VisitMut;

/// Kind, and its file below `stages/src`.
const KINDS: [(&str, &str); 11] = [
    ("ingest", "kind/ingest.rs"),
    ("clip-features", "kind/clip_features.rs"),
    ("clip-weights", "kind/clip_weights.rs"),
    ("confounder-dictionary", "kind/confounder_dictionary.rs"),
    ("train", "kind/train.rs"),
    ("select", "kind/select.rs"),
    ("evaluate", "kind/evaluate.rs"),
    ("table", "kind/table.rs"),
    ("phantoms", "kind/phantoms.rs"),
    ("plant-confounder", "kind/plant_confounder.rs"),
    ("phantom-clip", "kind/phantom_clip.rs"),
];
/// Files that list modules and choose between them.
const INDEX: [&str; 6] = [
    "stages/src/lib.rs",
    "stages/src/kind.rs",
    "stages/src/method.rs",
    "stages/src/model.rs",
    "datasets/src/lib.rs",
    "stages/src/fingerprint.rs",
];
/// Files that shape no number: errors name every crate's own, and would tie all kinds to all crates.
const IGNORED: [&str; 2] = ["stages/src/error.rs", "datasets/src/error.rs"];
/// Kinds whose parameter `method` chooses among the files below `stages/src/method`.
const BY_METHOD: [&str; 2] = ["train", "evaluate"];
/// Crates of the workspace that are followed, by their names in code.
const FOLLOWED: [(&str, &str); 3] = [("crate", ""), ("siteline_datasets", "datasets"), ("siteline_tables", "tables")];
/// Libraries that shape numbers, by their names in code; each with the packages that do its work.
const LIBRARIES: [(&str, &[&str]); 15] = [
    ("tch", &["tch", "torch-sys"]),
    ("image", &["image", "png", "tiff", "zune-jpeg"]),
    ("image_hasher", &["image_hasher"]),
    ("fast_image_resize", &["fast_image_resize"]),
    ("html_escape", &["html-escape"]),
    ("instant_clip_tokenizer", &["instant-clip-tokenizer"]),
    ("parquet", &["parquet"]),
    ("polars", &["polars"]),
    ("rand", &["rand"]),
    ("rand_chacha", &["rand_chacha"]),
    ("rand_distr", &["rand_distr"]),
    ("libm", &["libm"]),
    ("csv", &["csv"]),
    ("regex", &["regex"]),
    ("unicode_normalization", &["unicode-normalization"]),
];
/// Dependencies that carry data and shape no number, by their names in Cargo.toml. Each dependency is here or above.
const CARRIERS: [&str; 19] = [
    "arrow",
    "indexmap",
    "libc",
    "libloading",
    "rayon",
    "safetensors",
    "schemars",
    "serde",
    "serde_json",
    "serde_yaml",
    "siteline-cache",
    "siteline-datasets",
    "siteline-pipeline",
    "siteline-tables",
    "tempfile",
    "thiserror",
    "tracing",
    "tracing-subscriber",
    "zip",
];

/// The fingerprints of every kind, as the JSON that the crate includes.
pub fn all(workspace: &Path) -> Result<String, String> {
    let lock = std::fs::read_to_string(workspace.join("Cargo.lock")).map_err(|e| format!("Cargo.lock: {e}"))?;
    for (name, krate) in FOLLOWED {
        all_known(workspace, if name == "crate" { "stages" } else { krate })?;
    }
    let mut kinds = Vec::new();
    for (kind, root) in KINDS {
        let root = PathBuf::from("stages/src").join(root);
        // A method's file is the method's alone, whoever names its types.
        let methods: BTreeSet<PathBuf> = method_files(workspace)?.into_iter().collect();
        let by_method = BY_METHOD.contains(&kind);
        let nothing = BTreeSet::new();
        let base = reach(workspace, &root, if by_method { &methods } else { &nothing })?;
        let mut libraries = base.libraries.clone();
        let mut variants = String::new();
        if by_method {
            let mut prints = Vec::new();
            for file in methods {
                let method = reach(workspace, &file, &base.files.keys().cloned().collect())?;
                if method.files.is_empty() {
                    return Err(format!("{} is no part of its own fingerprint", file.display()));
                }
                libraries.extend(method.libraries.iter().cloned());
                let name = file.file_stem().map(|s| s.to_string_lossy().replace('_', "-")).unwrap_or_default();
                prints.push(format!("\"{name}\":\"{}\"", method.digest()));
            }
            variants = format!("\"method\":{{{}}}", prints.join(","));
        }
        let versions: Vec<String> = libraries
            .iter()
            .map(|name| version(&lock, name).map(|version| format!("\"{name}\":\"{version}\"")))
            .collect::<Result<_, _>>()?;
        kinds.push(format!(
            "\"{kind}\":{{\"base\":\"{}\",\"variants\":{{{variants}}},\"libraries\":{{{}}}}}",
            base.digest(),
            versions.join(",")
        ));
    }
    Ok(format!("{{{}}}", kinds.join(",")))
}

fn method_files(workspace: &Path) -> Result<Vec<PathBuf>, String> {
    let folder = PathBuf::from("stages/src/method");
    let entries = std::fs::read_dir(workspace.join(&folder)).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|e| e.file_name()))
        .filter(|name| Path::new(name).extension().is_some_and(|e| e == "rs") && name != "contract.rs")
        .map(|name| folder.join(name))
        .collect();
    files.sort();
    Ok(files)
}

/// Refuses a crate with a dependency of which it is not said whether it shapes numbers.
fn all_known(workspace: &Path, krate: &str) -> Result<(), String> {
    let file = Path::new(krate).join("Cargo.toml");
    let text = std::fs::read_to_string(workspace.join(&file)).map_err(|e| format!("{}: {e}", file.display()))?;
    if text.contains("[dependencies.") || text.contains(".dependencies]") {
        return Err(format!("{}: dependencies are listed under [dependencies] alone", file.display()));
    }
    let section = text
        .split("\n[")
        .find_map(|section| section.strip_prefix("dependencies]\n"))
        .ok_or_else(|| format!("{}: no [dependencies]", file.display()))?;
    let names =
        section.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split([' ', '=', '.']).next());
    for name in names.filter(|name| !name.is_empty()) {
        let in_code = name.replace('-', "_");
        if !CARRIERS.contains(&name) && !LIBRARIES.iter().any(|(library, _)| *library == in_code) {
            return Err(format!(
                "{}: does `{name}` shape numbers? Add it to LIBRARIES or to CARRIERS in stages/build/fingerprint.rs",
                file.display()
            ));
        }
    }
    Ok(())
}

/// Version of a package in Cargo.lock; of several, all.
fn version(lock: &str, name: &str) -> Result<String, String> {
    let heading = format!("name = \"{name}\"\nversion = \"");
    let versions: Vec<&str> = lock.split(&heading).skip(1).filter_map(|rest| rest.split('"').next()).collect();
    if versions.is_empty() { Err(format!("Cargo.lock has no `{name}`")) } else { Ok(versions.join(" ")) }
}

/// Files that were reached, with the code of each.
struct Reached {
    files: BTreeMap<PathBuf, String>,
    libraries: BTreeSet<String>,
}

impl Reached {
    fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for (path, code) in &self.files {
            for part in [path.to_string_lossy().as_bytes(), code.as_bytes()] {
                hasher.update(&(part.len() as u64).to_le_bytes());
                hasher.update(part);
            }
        }
        hasher.finalize().to_hex().to_string()
    }
}

/// Everything that `root` reaches, without what is `known` already.
fn reach(workspace: &Path, root: &Path, known: &BTreeSet<PathBuf>) -> Result<Reached, String> {
    let mut reached = Reached { files: BTreeMap::new(), libraries: BTreeSet::new() };
    let mut waiting = vec![root.to_owned()];
    while let Some(file) = waiting.pop() {
        if known.contains(&file)
            || IGNORED.iter().any(|ignored| Path::new(ignored) == file)
            || reached.files.contains_key(&file)
        {
            continue;
        }
        let source = parse(workspace, &file)?;
        let mut paths = Paths::default();
        paths.visit_file(&source);
        for path in &paths.found {
            let library = LIBRARIES.iter().find(|(name, _)| path.first().is_some_and(|first| first == name));
            reached
                .libraries
                .extend(library.into_iter().flat_map(|(_, packages)| packages.iter().map(|p| (*p).to_owned())));
            waiting.extend(resolve(workspace, &file, path)?);
        }
        for child in &paths.modules {
            waiting.extend(module_file(workspace, &children_of(&file), std::slice::from_ref(child)));
        }
        reached.files.insert(file, source.to_token_stream().to_string());
    }
    Ok(reached)
}

/// A file without documentation and tests.
fn parse(workspace: &Path, file: &Path) -> Result<syn::File, String> {
    let text = std::fs::read_to_string(workspace.join(file)).map_err(|e| format!("{}: {e}", file.display()))?;
    let mut source = syn::parse_file(&text).map_err(|e| format!("{}: {e}", file.display()))?;
    Strip.visit_file_mut(&mut source);
    Ok(source)
}

struct Strip;

impl VisitMut for Strip {
    fn visit_file_mut(&mut self, file: &mut syn::File) {
        file.items.retain(|item| !is_test(item));
        file.attrs.retain(|attr| !attr.path().is_ident("doc"));
        syn::visit_mut::visit_file_mut(self, file);
    }

    fn visit_attributes_mut(&mut self, attributes: &mut Vec<syn::Attribute>) {
        attributes.retain(|attr| !attr.path().is_ident("doc"));
    }
}

fn is_test(item: &syn::Item) -> bool {
    let syn::Item::Mod(module) = item else { return false };
    module.attrs.iter().any(|attr| attr.path().is_ident("cfg") && attr.to_token_stream().to_string().contains("test"))
}

/// Every path that a file names, spelled out, and the modules that it declares.
#[derive(Default)]
struct Paths {
    found: Vec<Vec<String>>,
    modules: Vec<String>,
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        spell(&item.tree, &mut Vec::new(), &mut self.found);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.found.push(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        syn::visit::visit_path(self, path);
    }

    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if module.content.is_none() {
            self.modules.push(module.ident.to_string());
        }
        syn::visit::visit_item_mod(self, module);
    }
}

fn spell(tree: &syn::UseTree, before: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    match tree {
        syn::UseTree::Path(path) => {
            before.push(path.ident.to_string());
            spell(&path.tree, before, found);
            before.pop();
        }
        syn::UseTree::Name(name) => found.push([before.as_slice(), &[name.ident.to_string()]].concat()),
        syn::UseTree::Rename(name) => found.push([before.as_slice(), &[name.ident.to_string()]].concat()),
        syn::UseTree::Glob(_) => found.push(before.clone()),
        syn::UseTree::Group(group) => group.items.iter().for_each(|item| spell(item, before, found)),
    }
}

/// `stages/src/model/clip.rs` to (`stages/src`, `[model, clip]`).
fn place(file: &Path) -> (PathBuf, Vec<String>) {
    let parts: Vec<String> = file.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    let mut module: Vec<String> = parts[2..].to_vec();
    if let Some(last) = module.last_mut() {
        *last = last.trim_end_matches(".rs").to_owned();
    }
    if module == ["lib"] {
        module.clear();
    }
    (PathBuf::from(&parts[0]).join(&parts[1]), module)
}

/// The folder in which a file's own modules lie.
fn children_of(file: &Path) -> PathBuf {
    let (source, module) = place(file);
    module.iter().fold(source, |folder, part| folder.join(part))
}

/// The file of the deepest module on `path` below `folder`.
fn module_file(workspace: &Path, folder: &Path, path: &[String]) -> Option<PathBuf> {
    (1..=path.len()).rev().find_map(|length| {
        let file = path[..length].iter().fold(folder.to_owned(), |at, part| at.join(part)).with_extension("rs");
        workspace.join(&file).exists().then_some(file)
    })
}

/// The file that a path leads to, or nothing if it leads out of what is followed.
fn resolve(workspace: &Path, file: &Path, path: &[String]) -> Result<Option<PathBuf>, String> {
    let (source, module) = place(file);
    let Some((first, rest)) = path.split_first() else { return Ok(None) };
    let (source, mut absolute) = match first.as_str() {
        "self" => (source, [module, rest.to_vec()].concat()),
        "super" => {
            let ups = path.iter().take_while(|part| *part == "super").count();
            let kept = module.len().saturating_sub(ups);
            (source, [module[..kept].to_vec(), path[ups..].to_vec()].concat())
        }
        other => match FOLLOWED.iter().find(|(name, _)| *name == other) {
            Some((_, "")) => (source, rest.to_vec()),
            Some((_, krate)) => (PathBuf::from(krate).join("src"), rest.to_vec()),
            None => return Ok(None),
        },
    };
    // A name that an index re-exports is looked up there, once.
    for _ in 0..2 {
        let found = module_file(workspace, &source, &absolute).unwrap_or_else(|| source.join("lib.rs"));
        if !INDEX.iter().any(|index| Path::new(index) == found) {
            return Ok(Some(found));
        }
        let (_, index) = place(&found);
        let Some(name) = absolute.get(index.len()).cloned() else { return Ok(None) };
        let mut exported = Paths::default();
        exported.visit_file(&parse(workspace, &found)?);
        let target =
            exported.found.into_iter().find(|path| path.len() > 1 && path.last() == Some(&name) && path[0] != "crate");
        match target {
            Some(path) => {
                let tail: Vec<String> = path.into_iter().filter(|part| part != "self").collect();
                absolute = [index, tail].concat();
            }
            None => return Ok(None),
        }
    }
    Ok(None)
}
