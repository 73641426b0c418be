//! `siteline init`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::{Outcome, phantoms};
use crate::args::Common;
use crate::diagnostic::CommandError;
use crate::project::open_pack;

/// Write a small project that runs as it stands: three phantom sites, a small CLIP, ERM against MCDRL.
///
/// Replace the phantom sites by your own in `siteline.yaml`, and the CLIP by published weights.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  siteline init my-study && cd my-study && siteline run")]
pub struct Init {
    /// The project's folder; it may exist, but no file of the project may
    #[arg(default_value = ".")]
    dir: PathBuf,
}

/// What a project consists of.
const FILES: [(&str, &[u8]); 5] = [
    ("siteline.yaml", include_bytes!("init/siteline.yaml")),
    ("sites.yaml", include_bytes!("init/sites.yaml")),
    (".gitignore", b".siteline/\nresults/\n"),
    ("prompts.yaml", include_bytes!("../../manifests/prompts/endoscopy.yaml")),
    ("weights/phantom-clip.safetensors", include_bytes!("../../weights/phantom-clip.safetensors")),
];

impl Init {
    /// What the experiment is called: as its folder, as far as that can be a name.
    fn name(&self) -> String {
        let folder = std::path::absolute(&self.dir).ok();
        let name =
            folder.as_ref().and_then(|folder| folder.file_name()).map(|name| name.to_string_lossy().into_owned());
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let kept: String = name.unwrap_or_default().chars().filter(|c| plain(*c)).collect();
        let kept = kept.trim_matches('.');
        if kept.is_empty() { "my-study".to_owned() } else { kept.to_owned() }
    }

    pub fn run(self, common: &Common) -> Outcome {
        if let Some((name, _)) = FILES.iter().find(|(name, _)| self.dir.join(name).exists()) {
            let path = self.dir.join(name);
            let hint = "name another folder: `siteline init DIR`".to_owned();
            return Err(CommandError::refused(format!("{} is there already", path.display()), hint));
        }
        let pack = open_pack(common)?;
        for (name, content) in FILES {
            let path = self.dir.join(name);
            let folder = path.parent().unwrap_or(Path::new("."));
            std::fs::create_dir_all(folder).map_err(CommandError::file("create", folder))?;
            let content = match std::str::from_utf8(content) {
                // A name of its own, so that two projects may share a store.
                Ok(text) if name == "siteline.yaml" => text.replacen("my-study", &self.name(), 1).into_bytes(),
                _ => content.to_vec(),
            };
            std::fs::write(&path, content).map_err(CommandError::file("write", &path))?;
        }
        phantoms::draw(&pack, &self.dir.join("sites.yaml"), &self.dir.join("data"), false)?;
        outln!("A project is in {}. What to try next:", self.dir.display());
        if self.dir != Path::new(".") {
            outln!("  cd '{}'", self.dir.display());
        }
        outln!("  siteline plan     what would run");
        outln!("  siteline run      run it; tables and a report appear in results/");
        outln!("Then put your own sites into siteline.yaml.");
        Ok(ExitCode::SUCCESS)
    }
}
