//! What most commands begin with: the manifest, the kinds, the store.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use siteline_cache::{Access, Sharing, Store};
use siteline_pipeline::graph::Graph;
use siteline_pipeline::manifest::{self, Loaded, Override};
use siteline_pipeline::pack::Pack;
use siteline_pipeline::pattern::InstancePattern;
use siteline_pipeline::plan::Planner;
use siteline_pipeline::select::{self, Selection};

use crate::args::{Chosen, Common};
use crate::diagnostic::CommandError;

/// Name of a manifest that need not be named.
const DEFAULT_MANIFEST: &str = "siteline.yaml";

/// A manifest with everything that it is planned by.
pub struct Project {
    /// The manifest.
    pub loaded: Loaded,
    /// The store.
    pub store: Arc<Store>,
    /// The sweep, spelled out.
    pub graph: Arc<Graph>,
}

impl Project {
    /// Opens what the options name.
    pub fn open(common: &Common, access: Access) -> Result<Self, CommandError> {
        let pack = open_pack(common)?;
        let path = match &common.manifest {
            Some(path) => path.clone(),
            None => find_manifest()?,
        };
        let overrides = common
            .overrides
            .iter()
            .map(|text| {
                Override::parse(text).map_err(|message| CommandError::request(format!("--set: {message}"), None))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let loaded = manifest::load(&path, &overrides, &pack)?;
        let root = common.store.clone().unwrap_or_else(|| loaded.root.join(".siteline"));
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
    let Some(manifest) = common.manifest.clone().or_else(|| find_manifest().ok()) else {
        return std::env::current_dir().map_err(CommandError::file("read", Path::new(".")));
    };
    Ok(manifest::load(&manifest, &[], &open_pack(common)?)?.root)
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

/// The instance of a name, or the one that a pattern chooses.
pub fn find_instance(planner: &Planner, name: &str) -> Result<siteline_pipeline::NodeIndex, CommandError> {
    if let Some(node) = planner.graph.find(name) {
        return Ok(node);
    }
    let pattern = InstancePattern::parse(name).map_err(|message| CommandError::request(message, None))?;
    let graph = &planner.graph;
    let fitting: Vec<_> =
        graph.dag.node_indices().filter(|n| pattern.fits(&graph.dag[*n].stage, &graph.dag[*n].point)).collect();
    match fitting.as_slice() {
        [one] => Ok(*one),
        [] => {
            let hint = select::hint(planner.loaded, &pattern);
            Err(CommandError::request(format!("there is no instance `{name}`"), hint))
        }
        several => {
            let shown: Vec<_> = several.iter().take(5).map(|n| format!("  {}", graph.dag[*n].name)).collect();
            let more = if several.len() > 5 { format!("\n  and {} more", several.len() - 5) } else { String::new() };
            Err(CommandError::request(
                format!("`{name}` means {} instances:\n{}{more}", several.len(), shown.join("\n")),
                "name one of them, in quotation marks".to_owned(),
            ))
        }
    }
}
