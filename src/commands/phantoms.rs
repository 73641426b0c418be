//! `siteline phantoms`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use indicatif::ProgressBar;
use siteline_pipeline::diagnostic::{Diagnostic, Diagnostics};
use siteline_pipeline::pack::Pack;
use siteline_pipeline::protocol::{Reply, RunRequest};
use siteline_pipeline::tree::Node;

use super::Outcome;
use crate::args::Common;
use crate::diagnostic::CommandError;
use crate::project::open_pack;

/// Draw made sites (phantoms) as image and mask files, to try things on.
///
/// Phantoms look roughly like endoscopy; they are no medical images. The file says how many images each site has and which
/// confounders (blur, lighting, mucus, ...) occur there. `truth.csv` beside the images says what each was drawn from.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  siteline phantoms manifests/demo-sites.yaml --out demo/sites")]
pub struct Phantoms {
    /// The file of made sites
    file: PathBuf,
    /// Where the sites appear, one folder each; folders of that name are left alone unless `--force`
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Draw sites anew that are there already
    #[arg(long)]
    force: bool,
}

impl Phantoms {
    pub fn run(self, common: &Common) -> Outcome {
        let drawn = draw(&open_pack(common)?, &self.file, &self.out, self.force)?;
        match drawn {
            0 => outln!("All phantom sites are there already: {}", self.out.display()),
            n => outln!("{} drawn in {}", super::count(n, "phantom site"), self.out.display()),
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Draws the sites of a file below `out`, those that are not there yet. Returns how many were drawn. A site's folder appears whole
/// or not at all.
pub fn draw(pack: &Pack, file: &Path, out: &Path, force: bool) -> Result<usize, CommandError> {
    let text = std::fs::read_to_string(file).map_err(CommandError::file("read", file))?;
    let at = |span, message: String, hint| Diagnostic { file: file.to_owned(), span, message, hint, detail: None };
    let mut tree = Node::parse(&text).map_err(|bad| Diagnostics { list: vec![at(bad.span, bad.message, None)] })?;
    let kind = pack.kinds.iter().find(|kind| kind.name == "phantoms");
    let kind = kind.ok_or_else(|| CommandError::request("this worker cannot draw phantoms", None))?;
    let misfits = siteline_pipeline::schema::check(&tree, &text, &kind.params, "the file of made sites");
    if !misfits.is_empty() {
        return Err(
            Diagnostics { list: misfits.into_iter().map(|m| at(Some(m.span), m.message, m.hint)).collect() }.into()
        );
    }
    if !force {
        keep_missing(&mut tree, out);
    }
    let params = tree.to_json();
    let names: Vec<String> =
        params["sites"].as_object().map(|sites| sites.keys().cloned().collect()).unwrap_or_default();
    if names.is_empty() {
        return Ok(0);
    }
    std::fs::create_dir_all(out).map_err(CommandError::file("create", out))?;
    let scratch = tempfile::tempdir_in(out).map_err(CommandError::file("write", out))?;
    let bar = ProgressBar::new(0);
    let request = RunRequest::alone(kind, params, Default::default(), scratch.path().to_owned());
    pack.carry_out(request, &mut |reply| {
        if let Reply::Progress { done, total, .. } = reply {
            bar.set_length(*total);
            bar.set_position(*done);
        }
    })?;
    bar.finish_and_clear();
    for name in &names {
        let target = out.join(name);
        if force && target.exists() {
            std::fs::remove_dir_all(&target).map_err(CommandError::file("remove", &target))?;
        }
        std::fs::rename(scratch.path().join(name), &target).map_err(CommandError::file("write", &target))?;
    }
    Ok(names.len())
}

/// Takes sites out of the tree that have a folder already.
fn keep_missing(tree: &mut Node, out: &Path) {
    let siteline_pipeline::tree::NodeValue::Map(entries) = &mut tree.value else { return };
    if let Some(entry) = entries.get_mut("sites")
        && let siteline_pipeline::tree::NodeValue::Map(sites) = &mut entry.value.value
    {
        sites.retain(|site, _| !out.join(site).exists());
    }
}
