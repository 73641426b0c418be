//! Files of the Hugging Face Hub: addresses and facts by its own client, the bytes by ourselves, so that nothing that a server says
//! ever becomes a path.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};
use indicatif::{ProgressBar, ProgressStyle};
use siteline_cache::Digest;

use crate::diagnostic::CommandError;

/// Names, repositories and what they hold: the names are OpenAI's, the repositories those that open_clip 3.3 fetches them from.
pub const KNOWN: [(&str, &str, &str); 5] = [
    ("RN50", "timm/resnet50_clip.openai", "ResNet-50, 224 pixels, 1024 dimensions"),
    ("RN101", "timm/resnet101_clip.openai", "ResNet-101, 224 pixels, 512 dimensions"),
    ("ViT-B-32", "timm/vit_base_patch32_clip_224.openai", "ViT-B, patches of 32, 224 pixels, 512 dimensions"),
    ("ViT-B-16", "timm/vit_base_patch16_clip_224.openai", "ViT-B, patches of 16, 224 pixels, 512 dimensions"),
    ("ViT-L-14", "timm/vit_large_patch14_clip_224.openai", "ViT-L, patches of 14, 224 pixels, 768 dimensions"),
];
/// Tries of one file before a fetch gives up.
const TRIES: usize = 4;

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
                let message = format!("there are no weights of the name `{}`", name.escape_debug());
                return Err(CommandError::request(message, hint));
            }
        };
        let (name, repository) = (name.to_owned(), repository.to_owned());
        Ok(Self { name, repository, file: file.unwrap_or(usual).to_owned() })
    }
}

/// What came.
pub struct Fetched {
    /// Where it lies for now; nobody else writes there while this is held.
    pub part: Part,
    /// The commit.
    pub revision: String,
    /// The SHA-256 that the server says, where it says one.
    pub sha256: Option<String>,
}

/// A file that is being fetched, under a lock.
pub struct Part {
    pub path: PathBuf,
    file: File,
}

/// Fetches a file into a folder, going on with what an earlier try left there.
pub fn fetch(wanted: &Wanted, revision: &str, folder: &Path) -> Result<Fetched, CommandError> {
    let Wanted { repository, file, .. } = wanted;
    let failed = |reason: String| {
        let message = format!("failed to fetch {file} of {repository} at {revision}: {reason}");
        let hint = "is the name right, and is there a network? HF_ENDPOINT names another server, HF_TOKEN is for what is not public; a file that was brought along is added by `siteline weights add FILE`";
        CommandError::refused(message, hint.to_owned())
    };
    let api = ApiBuilder::from_env().with_token(token()).build().map_err(|e| failed(e.to_string()))?;
    let at = |revision: String| api.repo(Repo::with_revision(repository.clone(), RepoType::Model, revision)).url(file);
    let reason = |e: ApiError| failed(e.to_string());
    let metadata = api.metadata(&at(revision.to_owned())).map_err(reason)?;
    let commit = metadata.commit_hash().to_ascii_lowercase();
    let is_hex = |text: &str, length: usize| text.len() == length && text.bytes().all(|b| b.is_ascii_hexdigit());
    if !is_hex(&commit, 40) {
        return Err(failed(format!("the server names no commit: `{}`", commit.escape_debug())));
    }
    let etag = metadata.etag().to_ascii_lowercase();
    let sha256 = is_hex(&etag, 64).then_some(etag);
    let size = metadata.size() as u64;
    let mut part = Part::open(folder, &[repository, &commit, file])?;
    let bar = ProgressBar::new(size).with_message(file.clone());
    if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:30}] {bytes} of {total_bytes}, {eta} left") {
        bar.set_style(style);
    }
    let url = at(commit.clone());
    let mut result = Err(String::new());
    for attempt in 0..TRIES {
        std::thread::sleep(std::time::Duration::from_millis(500 * attempt as u64));
        result = part.go_on(&url, size, &bar);
        if result.is_ok() {
            break;
        }
    }
    bar.finish_and_clear();
    result.map_err(failed)?;
    Ok(Fetched { part, revision: commit, sha256 })
}

/// HF_TOKEN, or what `huggingface-cli login` left in HF_HOME.
fn token() -> Option<String> {
    std::env::var("HF_TOKEN").ok().filter(|token| !token.is_empty()).or_else(|| Cache::from_env().token())
}

impl Part {
    fn open(folder: &Path, of: &[&str]) -> Result<Self, CommandError> {
        std::fs::create_dir_all(folder).map_err(CommandError::file("create", folder))?;
        let path = folder.join(Digest::of_bytes(of.join("\0").as_bytes()).to_string());
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path);
        let file = file.map_err(CommandError::file("write", &path))?;
        if file.try_lock().is_err() {
            return Err(CommandError::refused("another fetch of this file is under way", "wait for it".to_owned()));
        }
        Ok(Self { path, file })
    }

    /// Fetches what is missing of `size` bytes.
    fn go_on(&mut self, url: &str, size: u64, bar: &ProgressBar) -> Result<(), String> {
        let text = |e: std::io::Error| e.to_string();
        let mut have = self.file.metadata().map_err(text)?.len();
        if have > size {
            (have, _) = (0, self.file.set_len(0).map_err(text)?);
        }
        if have == size {
            return Ok(());
        }
        let mut request = ureq::get(url).header("Range", format!("bytes={have}-"));
        if let Some(token) = token() {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let response = request.call().map_err(|e| e.to_string())?;
        if have > 0 && response.status().as_u16() != 206 {
            // The server sends all of it, from the start.
            (have, _) = (0, self.file.set_len(0).map_err(text)?);
        }
        self.file.seek(SeekFrom::Start(have)).map_err(text)?;
        bar.set_position(have);
        let mut body = response.into_body().into_reader().take(size - have + 1);
        let mut buffer = vec![0; 1 << 18];
        loop {
            let read = body.read(&mut buffer).map_err(text)?;
            if read == 0 {
                break;
            }
            self.file.write_all(&buffer[..read]).map_err(text)?;
            bar.inc(read as u64);
        }
        self.file.sync_all().map_err(text)?;
        let have = self.file.metadata().map_err(text)?.len();
        if have == size { Ok(()) } else { Err(format!("{have} of {size} bytes came")) }
    }

    /// Gives it its name.
    pub fn persist(self, target: &Path) -> Result<(), CommandError> {
        std::fs::rename(&self.path, target).map_err(CommandError::file("write", target))?;
        self.tidy();
        Ok(())
    }

    /// Removes it: it is not what was wanted.
    pub fn discard(self) {
        let _ = std::fs::remove_file(&self.path);
        self.tidy();
    }

    /// The folder goes with its last part.
    fn tidy(self) {
        let _ = self.path.parent().map(std::fs::remove_dir);
    }
}
