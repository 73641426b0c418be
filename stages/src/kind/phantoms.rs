//! `phantoms`: draws made sites as ordinary image and mask files, with the truth of each image beside them.
//!
//! Writes `SITE/images/phantom_0000.png`, `SITE/masks/phantom_0000.png` and `SITE/truth.csv` for every site.

use std::collections::BTreeMap;
use std::path::Path;

use indexmap::IndexMap;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use siteline_datasets::decode;
use siteline_datasets::phantom::{Confounder, PhantomSite, Truth};
use siteline_pipeline::protocol::StageKind;

use super::context::Ctx;
use super::spec::Spec;
use crate::error::{Result, StageError};

/// Parameters of `phantoms`: a file of made sites.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Seed of everything.
    #[serde(default)]
    pub seed: u64,
    /// Pixels along a side.
    #[serde(default = "default_size")]
    #[schemars(range(min = 16, max = 4096))]
    pub size: usize,
    /// The sites, by name.
    pub sites: IndexMap<String, PhantomSite>,
}

fn default_size() -> usize {
    192
}

/// The kind's specification.
pub fn kind() -> StageKind {
    Spec {
        name: "phantoms",
        summary: "draws made sites (phantoms) as image and mask files",
        params: schemars::schema_for!(Params),
        inputs: vec![],
        sources: vec![],
        requires: vec![],
        outputs: vec![],
    }
    .into()
}

/// Draws every site.
///
/// # Errors
/// Files that cannot be written.
pub fn run(ctx: &Ctx) -> Result<()> {
    let params: Params = ctx.params()?;
    let total: usize = params.sites.values().map(|site| site.count).sum();
    let mut done = 0;
    for (name, site) in &params.sites {
        if site.classes.is_empty() {
            return Err(StageError::Request(format!("the made site `{name}` has no classes")));
        }
        let folder = ctx.output(name);
        for part in ["images", "masks"] {
            let path = folder.join(part);
            std::fs::create_dir_all(&path).map_err(StageError::io(&path))?;
        }
        let truths = (0..site.count)
            .into_par_iter()
            .map(|index| {
                let phantom = site.draw(name, params.seed, index, params.size);
                let size = (params.size as u32, params.size as u32);
                let file = format!("{}.png", phantom.truth.id);
                decode::write_png(&folder.join("images").join(&file), size, &phantom.image, false)?;
                decode::write_png(&folder.join("masks").join(&file), size, &phantom.mask, true)?;
                Ok(phantom.truth)
            })
            .collect::<Result<Vec<_>>>()?;
        write_truth(&folder.join("truth.csv"), &truths)?;
        done += site.count;
        ctx.progress(done, total, "phantoms");
    }
    Ok(())
}

fn write_truth(path: &Path, truths: &[Truth]) -> Result<()> {
    let mut text = String::from("id,patient,class,centre_x,centre_y,radius_x,radius_y,angle");
    for confounder in Confounder::ALL {
        text.push_str(&format!(",{}", confounder.name()));
    }
    text.push_str(",on_lesion\n");
    for truth in truths {
        let shows: BTreeMap<Confounder, bool> = Confounder::ALL.into_iter().map(|c| (c, truth.shows(c))).collect();
        text.push_str(&format!(
            "{},{},{},{:.5},{:.5},{:.5},{:.5},{:.5}",
            truth.id,
            truth.patient,
            truth.class.name(),
            truth.centre[0],
            truth.centre[1],
            truth.radii[0],
            truth.radii[1],
            truth.angle
        ));
        for confounder in Confounder::ALL {
            text.push_str(if shows[&confounder] { ",1" } else { ",0" });
        }
        let on: Vec<_> = truth.on_lesion.iter().map(|c| c.name()).collect();
        text.push_str(&format!(",{}\n", on.join(" ")));
    }
    std::fs::write(path, text).map_err(StageError::io(path))
}
