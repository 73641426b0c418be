//! Files of the Hugging Face Hub, by its own client.

use std::path::{Path, PathBuf};

use hf_hub::api::Progress;
use hf_hub::api::sync::{ApiBuilder, ApiError};
use hf_hub::{Repo, RepoType};
use indicatif::{ProgressBar, ProgressStyle};

use crate::diagnostic::CommandError;

/// Names, repositories and what they hold: the names are OpenAI's, the repositories those that open_clip 3.3 fetches them from.
pub const KNOWN: [(&str, &str, &str); 5] = [
    ("RN50", "timm/resnet50_clip.openai", "ResNet-50, 224 pixels, 1024 dimensions"),
    ("RN101", "timm/resnet101_clip.openai", "ResNet-101, 224 pixels, 512 dimensions"),
    ("ViT-B-32", "timm/vit_base_patch32_clip_224.openai", "ViT-B, patches of 32, 224 pixels, 512 dimensions"),
    ("ViT-B-16", "timm/vit_base_patch16_clip_224.openai", "ViT-B, patches of 16, 224 pixels, 512 dimensions"),
    ("ViT-L-14", "timm/vit_large_patch14_clip_224.openai", "ViT-L, patches of 14, 224 pixels, 768 dimensions"),
];

/// A file of a repository.
pub struct Wanted {
    /// What it is called here.
    pub name: String,
    pub repository: String,
    pub file: String,
}

impl Wanted {
    /// By a known name, or by its repository.
    pub fn of(name: &str, file: Option<&str>) -> Result<Self, CommandError> {
        let known = KNOWN.iter().find(|(known, ..)| known.eq_ignore_ascii_case(name));
        let (name, repository, usual) = match (known, name.split_once('/')) {
            (Some((name, repository, _)), _) => (*name, *repository, "open_clip_model.safetensors"),
            (None, Some((owner, own))) if !owner.is_empty() && !own.is_empty() && !own.contains('/') => {
                (own, name, "model.safetensors")
            }
            _ => {
                let names = KNOWN.map(|(name, ..)| name);
                let hint = siteline_pipeline::diagnostic::suggest(name, "known are", names);
                let hint = format!("{hint}; a repository is written OWNER/NAME");
                return Err(CommandError::request(
                    format!("there are no weights of the name `{}`", name.escape_debug()),
                    hint,
                ));
            }
        };
        Ok(Self { name: name.to_owned(), repository: repository.to_owned(), file: file.unwrap_or(usual).to_owned() })
    }
}

/// What came.
pub struct Fetched {
    pub path: PathBuf,
    /// The commit.
    pub revision: String,
    /// The SHA-256 that the server says, where it says one.
    pub sha256: Option<String>,
}

/// Fetches a file into `cache`, going on with what an earlier try left there.
pub fn fetch(wanted: &Wanted, revision: &str, cache: &Path) -> Result<Fetched, CommandError> {
    let failed = |e: ApiError| {
        let Wanted { repository, file, .. } = wanted;
        let message = format!("failed to fetch {file} of {repository} at {revision}: {e}");
        let hint = "is the name right, and is there a network? HF_ENDPOINT names another server; a file that was brought along is added by `siteline weights add FILE`";
        CommandError::refused(message, hint.to_owned())
    };
    let cache = std::path::absolute(cache).map_err(CommandError::file("create", cache))?;
    let api = ApiBuilder::from_env().with_cache_dir(cache).with_retries(3).build().map_err(failed)?;
    let repo = Repo::with_revision(wanted.repository.clone(), RepoType::Model, revision.to_owned());
    let repo = api.repo(repo);
    let metadata = api.metadata(&repo.url(&wanted.file)).map_err(failed)?;
    let found = repo.download_with_progress(&wanted.file, Bar(ProgressBar::hidden())).map_err(failed)?;
    // The client's own layout is of links; what counts is the file behind.
    let path = std::fs::canonicalize(&found).map_err(CommandError::file("read", &found))?;
    let etag = metadata.etag().to_ascii_lowercase();
    let is_sha256 = etag.len() == 64 && etag.bytes().all(|b| b.is_ascii_hexdigit());
    Ok(Fetched { path, revision: metadata.commit_hash().to_owned(), sha256: is_sha256.then_some(etag) })
}

struct Bar(ProgressBar);

impl Progress for Bar {
    fn init(&mut self, size: usize, filename: &str) {
        self.0 = ProgressBar::new(size as u64).with_message(filename.to_owned());
        if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:30}] {bytes} of {total_bytes}, {eta} left") {
            self.0.set_style(style);
        }
    }

    fn update(&mut self, size: usize) {
        self.0.inc(size as u64);
    }

    fn finish(&mut self) {
        self.0.finish_and_clear();
    }
}
