//! What most commands begin with: the manifest, the kinds, the store.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use siteline_cache::{Access, Sharing, Store};
use siteline_pipeline::NodeIndex;
use siteline_pipeline::diagnostic::Diagnostics;
use siteline_pipeline::graph::Graph;
use siteline_pipeline::leakage;
use siteline_pipeline::manifest::{self, Loaded, Override};
use siteline_pipeline::pack::Pack;
use siteline_pipeline::pattern::InstancePattern;
use siteline_pipeline::plan::Planner;
use siteline_pipeline::select::{self, Selection};

use crate::args::{Chosen, Common};
use crate::diagnostic::CommandError;

/// Name of a manifest that need not be named.
const DEFAULT_MANIFEST: &str = "siteline.yaml";

/// The store of a project that names none.
const STORE: &str = ".siteline";

/// A manifest with everything that it is planned by.
pub struct Project {
    /// The manifest.
    pub loaded: Loaded,
    /// The store.
    pub store: Arc<Store>,
    /// The sweep, spelled out.
    pub graph: Arc<Graph>,
}

/// A manifest and its sweep, spelled out.
pub struct Sweep {
    /// The manifest.
    pub loaded: Loaded,
    /// The sweep.
    pub graph: Arc<Graph>,
}

impl Sweep {
    /// Reads the manifest that the options name. One that leaks is refused.
    pub fn load(common: &Common) -> Result<Self, CommandError> {
        let loaded = load(common)?;
        let graph = Arc::new(Graph::expand(&loaded)?);
        leakage::refuse(&loaded, &graph)?;
        Ok(Self { graph, loaded })
    }
}

fn load(common: &Common) -> Result<Loaded, CommandError> {
    let (pack, path) = (open_pack(common)?, named_or_found(common)?);
    let overrides = overrides(common)?;
    Ok(manifest::load(&path, &overrides, &pack).map_err(|found| with_overrides(found, &overrides))?)
}

/// Where the store is, whether or not the manifest holds.
pub fn store_root(common: &Common) -> Result<PathBuf, CommandError> {
    if let Some(root) = &common.store {
        return Ok(root.clone());
    }
    let path = named_or_found(common)?;
    std::fs::metadata(&path).map_err(CommandError::file("read", &path))?;
    Ok(manifest::project_root(&path, &overrides(common)?).join(STORE))
}

impl Project {
    /// Opens what the options name.
    pub fn open(common: &Common, access: Access) -> Result<Self, CommandError> {
        let loaded = load(common)?;
        let root = common.store.clone().unwrap_or_else(|| loaded.root.join(STORE));
        let sharing = if common.shared_store { Sharing::Group } else { Sharing::Private };
        // Neither waits for the other.
        let (store, graph) = rayon::join(|| Store::open_shared(&root, access, sharing), || Graph::expand(&loaded));
        Ok(Self { graph: Arc::new(graph?), store: Arc::new(store?), loaded })
    }

    /// Spells out the whole sweep.
    pub fn planner(&self) -> Result<Planner<'_>, CommandError> {
        Ok(Planner::new(&self.loaded, &self.store, self.graph.clone(), &Selection::default())?)
    }

    /// Spells out the part of the sweep that was asked for.
    pub fn planner_of(&self, chosen: &Chosen) -> Result<Planner<'_>, CommandError> {
        Ok(Planner::new(&self.loaded, &self.store, self.graph.clone(), &chosen.selection()?)?)
    }

    /// Where tables and the report of this experiment appear.
    pub fn results(&self) -> PathBuf {
        self.loaded.root.join("results").join(&self.loaded.manifest.name)
    }
}

/// What the command line changes in the manifest.
pub fn overrides(common: &Common) -> Result<Vec<Override>, CommandError> {
    let read = |text: &String| {
        Override::parse(text).map_err(|message| CommandError::request(format!("--set: {message}"), None))
    };
    common.overrides.iter().map(read).collect()
}

/// Errors are shown in the file; what the command line changes in it is not to be seen there.
fn with_overrides(mut found: Diagnostics, overrides: &[Override]) -> Diagnostics {
    let set: Vec<String> = overrides.iter().map(|change| format!("`--set {change}`")).collect();
    if let (Some(last), false) = (found.list.last_mut(), set.is_empty()) {
        let mut hint = last.hint.take().map(|hint| hint + "\n").unwrap_or_default();
        hint.push_str(&format!("what is shown is changed by {}", set.join(" and ")));
        last.hint = Some(hint);
    }
    found
}

/// The pack that the options name, or the one beside this program.
pub fn open_pack(common: &Common) -> Result<Pack, CommandError> {
    let beside = || {
        let here = std::env::current_exe().unwrap_or_default();
        here.with_file_name("siteline-worker")
    };
    Ok(Pack::open(&common.worker.clone().unwrap_or_else(beside))?)
}

/// The folder of the project here, or this folder where there is none.
pub fn project_folder(common: &Common) -> Result<PathBuf, CommandError> {
    let Some(manifest) = manifest_path(common) else {
        return std::env::current_dir().map_err(CommandError::file("read", Path::new(".")));
    };
    Ok(manifest::load(&manifest, &overrides(common)?, &open_pack(common)?)?.root)
}

/// The manifest that the options name, or the one here or above, if there is one.
pub fn manifest_path(common: &Common) -> Option<PathBuf> {
    named_or_found(common).ok()
}

fn named_or_found(common: &Common) -> Result<PathBuf, CommandError> {
    common.manifest.clone().map_or_else(find_manifest, Ok)
}

fn find_manifest() -> Result<PathBuf, CommandError> {
    let here = std::env::current_dir().map_err(CommandError::file("read", Path::new(".")))?;
    here.ancestors().map(|folder| folder.join(DEFAULT_MANIFEST)).find(|path| path.exists()).ok_or_else(|| {
        CommandError::request(
            format!("there is no {DEFAULT_MANIFEST} here or in a folder above"),
            "name a manifest with `-m FILE`, or write a small working project with `siteline init DIR`".to_owned(),
        )
    })
}

/// The instances of names and patterns, in the manifest's order, each behind what it reads.
///
/// # Errors
/// A text that is no pattern, and one that nothing fits.
pub fn find_instances(planner: &Planner, texts: &[String]) -> Result<Vec<NodeIndex>, CommandError> {
    let patterns = texts.iter().map(|text| pattern(text)).collect::<Result<Vec<_>, _>>()?;
    let chosen: BTreeSet<_> = select::fitting(planner.loaded, &planner.graph, &patterns)?.into_iter().collect();
    Ok(planner.graph.order.iter().copied().filter(|node| chosen.contains(node)).collect())
}

/// The same by name; where a text fits nothing of the sweep, the instances of earlier sweeps that fit it and were executed, without a
/// place in the graph.
///
/// # Errors
/// A text that is no pattern, and one that nothing fits or ever fitted.
pub fn find_past_instances(
    project: &Project,
    planner: &Planner,
    texts: &[String],
) -> Result<Vec<(String, Option<NodeIndex>)>, CommandError> {
    let (mut present, mut past) = (Vec::new(), BTreeSet::new());
    for text in texts {
        let Err(missing) = find_instances(planner, std::slice::from_ref(text)) else {
            present.push(text.clone());
            continue;
        };
        let wanted = pattern(text)?;
        let mut known = project.store.instances_of(&project.loaded.manifest.name)?;
        known.retain(|name| wanted.fits_name(name));
        if known.is_empty() {
            return Err(missing);
        }
        past.extend(known);
    }
    let nodes = if present.is_empty() { Vec::new() } else { find_instances(planner, &present)? };
    let present = nodes.into_iter().map(|node| (planner.graph.dag[node].name.clone(), Some(node)));
    Ok(present.chain(past.into_iter().map(|name| (name, None))).collect())
}

/// A pattern as it was typed, read.
pub fn pattern(text: &str) -> Result<InstancePattern, CommandError> {
    let hint = "patterns look like `train` or `train[method=mcdrl,held_out=*]`".to_owned();
    InstancePattern::parse(text).map_err(|message| CommandError::request(message, hint))
}
