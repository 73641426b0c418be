//! `siteline weights`

mod hub;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use siteline_cache::Digest;
use siteline_pipeline::origin::{From, Origin};
use siteline_pipeline::protocol::{RunRequest, RunSource, SourceFile};
use tempfile::{NamedTempFile, TempDir};

use self::hub::Wanted;
use super::Outcome;
use crate::args::Common;
use crate::diagnostic::CommandError;
use crate::project::{open_pack, project_folder};

/// Bring CLIP weights into the project, checked and pinned.
///
/// Beside each file a small record says where it came from and what it must hold: `siteline trace` shows it, and a file that is fetched
/// again must hold the same bytes.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  siteline weights list\n  siteline weights fetch ViT-B-16\n  siteline weights fetch laion/CLIP-ViT-B-32-laion2B-s34B-b79K --file open_clip_model.safetensors\n  siteline weights add ~/Downloads/RN101.pt"
)]
pub struct Weights {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Fetch weights from the Hugging Face Hub, or from the server that HF_ENDPOINT names
    Fetch(Fetch),
    /// Add a file: an OpenAI archive (.pt), open_clip's or Hugging Face's safetensors
    Add(Add),
    /// The names that `fetch` knows, and which of them are here
    List(List),
}

#[derive(Debug, Args)]
struct Fetch {
    /// A name of `siteline weights list`, or a repository OWNER/NAME
    name: String,
    /// The file in the repository [default: open_clip_model.safetensors for known names, else model.safetensors]
    #[arg(long)]
    file: Option<String>,
    /// A commit, branch or tag [default: the pinned commit, else main]
    #[arg(long)]
    revision: Option<String>,
    /// What the file is called here, without its ending [default: the name, the repository's without its owner]
    #[arg(long = "as", value_name = "NAME")]
    name_here: Option<String>,
    /// The folder [default: weights in the project's folder]
    #[arg(long, value_name = "DIR")]
    into: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Add {
    /// The file
    file: PathBuf,
    /// What it is called here, without its ending [default: its own name]
    #[arg(long = "as", value_name = "NAME")]
    name_here: Option<String>,
    /// The folder [default: weights in the project's folder]
    #[arg(long, value_name = "DIR")]
    into: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct List {
    /// The folder [default: weights in the project's folder]
    #[arg(long, value_name = "DIR")]
    into: Option<PathBuf>,
}

/// SHA-256 of OpenAI's archives, from the addresses in their own `clip/clip.py`.
const PUBLISHED: [(&str, &str); 5] = [
    ("afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762", "OpenAI's RN50.pt"),
    ("8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599", "OpenAI's RN101.pt"),
    ("40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af", "OpenAI's ViT-B-32.pt"),
    ("5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f", "OpenAI's ViT-B-16.pt"),
    ("b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836", "OpenAI's ViT-L-14.pt"),
];

impl Weights {
    pub fn run(self, common: &Common) -> Outcome {
        match self.verb {
            Verb::Fetch(fetch) => fetch.run(common),
            Verb::Add(add) => add.run(common),
            Verb::List(list) => list.run(common),
        }
    }
}

impl Fetch {
    fn run(self, common: &Common) -> Outcome {
        let wanted = Wanted::of(&self.name, self.file.as_deref())?;
        let name = checked_name(self.name_here.unwrap_or_else(|| wanted.name.clone()))?;
        let shelf = Shelf::open(common, self.into)?;
        let target = shelf.folder.join(format!("{name}.safetensors"));
        let pinned = Origin::beside(&target);
        if let (true, Some(pinned)) = (target.exists(), &pinned) {
            return shelf.is_there(&target, pinned);
        }
        let pinned = pinned.filter(|_| self.revision.is_none());
        let pin = pinned.as_ref().and_then(|pinned| match &pinned.from {
            From::Hub { revision, .. } => Some(revision.clone()),
            From::File { .. } => None,
        });
        let revision = self.revision.or(pin).unwrap_or_else(|| "main".to_owned());
        let cache = shelf.folder.join(".fetching");
        let fetched = hub::fetch(&wanted, &revision, &cache)?;
        let from = From::Hub { repository: wanted.repository, revision: fetched.revision, file: wanted.file };
        let origin = origin_of(&fetched.path, from)?;
        let expected = [fetched.sha256.as_deref(), pinned.as_ref().map(|pinned| pinned.sha256.as_str())];
        for expected in expected.into_iter().flatten().filter(|expected| **expected != origin.sha256) {
            let _ = std::fs::remove_dir_all(&cache);
            return Err(CommandError::refused(
                format!("what came is not what it should be: its SHA-256 is {}, not {expected}", origin.sha256),
                "nothing was kept; fetch it again, or look at the server".to_owned(),
            ));
        }
        let about = shelf.check(common, &fetched.path, &origin)?;
        std::fs::rename(&fetched.path, &target).map_err(CommandError::file("write", &target))?;
        let _ = std::fs::remove_dir_all(&cache);
        shelf.keep(&target, &origin, &about)
    }
}

impl Add {
    fn run(self, common: &Common) -> Outcome {
        let stem = self.file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let name = checked_name(self.name_here.unwrap_or(stem))?;
        let own = self.file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let origin = origin_of(&self.file, From::File { name: own })?;
        let shelf = Shelf::open(common, self.into)?;
        let ending = self.file.extension().map_or_else(|| "safetensors".into(), |ending| ending.to_string_lossy());
        let target = shelf.folder.join(format!("{name}.{ending}"));
        let same = |target: &Path| Digest::of_file(target).is_ok_and(|(digest, _)| digest == origin.digest);
        if target.exists() && !same(&target) {
            let message = format!("{} is there and holds something else", target.display());
            return Err(CommandError::refused(message, "name the new one with `--as NAME`".to_owned()));
        }
        let about = shelf.check(common, &self.file, &origin)?;
        if !target.exists() {
            let scratch = NamedTempFile::new_in(&shelf.folder).map_err(CommandError::file("write", &shelf.folder))?;
            std::fs::copy(&self.file, scratch.path()).map_err(CommandError::file("copy", &self.file))?;
            if !same(scratch.path()) {
                let message = format!("{} was changed while it was copied", self.file.display());
                return Err(CommandError::refused(message, "add it again".to_owned()));
            }
            scratch.persist(&target).map_err(|e| CommandError::file("write", &target)(e.error))?;
        }
        shelf.keep(&target, &origin, &about)
    }
}

impl List {
    fn run(self, common: &Common) -> Outcome {
        let folder = self.into.map_or_else(|| project_folder(common).map(|root| root.join("weights")), Ok)?;
        for (name, repository, about) in hub::KNOWN {
            let target = folder.join(format!("{name}.safetensors"));
            let state = if target.exists() { "here" } else { "" };
            println!("{name:<10} {state:<5} {about:<52} {repository}");
        }
        println!(
            "\nThey are OpenAI's weights as timm publishes them. `siteline weights fetch NAME` brings one to {}.",
            folder.display()
        );
        Ok(ExitCode::SUCCESS)
    }
}

/// A name that is one file in a folder.
fn checked_name(name: String) -> Result<String, CommandError> {
    let plain = |c: char| c.is_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
        let hint = "write letters, digits, `-`, `_` and `.`".to_owned();
        return Err(CommandError::request(format!("`{}` is no name for a file", name.escape_debug()), hint));
    }
    Ok(name)
}

fn origin_of(path: &Path, from: From) -> Result<Origin, CommandError> {
    let (digest, size) = Digest::of_file(path).map_err(CommandError::file("read", path))?;
    let sha256 = sha256_of(path).map_err(CommandError::file("read", path))?;
    let known = PUBLISHED.iter().find(|(published, _)| *published == sha256);
    Ok(Origin { from, digest, size, known_as: known.map(|(_, name)| (*name).to_owned()), sha256 })
}

fn sha256_of(path: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => hasher.update(&buffer[..read]),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The folder of weights.
struct Shelf {
    folder: PathBuf,
}

impl Shelf {
    fn open(common: &Common, into: Option<PathBuf>) -> Result<Self, CommandError> {
        let folder = into.map_or_else(|| project_folder(common).map(|root| root.join("weights")), Ok)?;
        std::fs::create_dir_all(&folder).map_err(CommandError::file("create", &folder))?;
        Ok(Self { folder })
    }

    /// A file that was fetched before: it must be what it was.
    fn is_there(&self, target: &Path, pinned: &Origin) -> Outcome {
        let (digest, _) = Digest::of_file(target).map_err(CommandError::file("read", target))?;
        if digest != pinned.digest {
            let record = Origin::path_of(target);
            return Err(CommandError::refused(
                format!("{} is not what was fetched: its content changed", target.display()),
                format!("remove it and fetch it again; with {} it is no longer pinned", record.display()),
            ));
        }
        println!("{} is there: {}", target.display(), pinned.words());
        Ok(ExitCode::SUCCESS)
    }

    /// Has the worker read the file as a CLIP. Returns its sizes.
    fn check(&self, common: &Common, path: &Path, origin: &Origin) -> Result<Value, CommandError> {
        let pack = open_pack(common)?;
        let kind = pack.kinds.iter().find(|kind| kind.name == "clip-weights");
        let kind = kind.ok_or_else(|| CommandError::request("this worker cannot read CLIP weights", None))?;
        let scratch = TempDir::new_in(&self.folder).map_err(CommandError::file("write", &self.folder))?;
        let path = std::path::absolute(path).map_err(CommandError::file("read", path))?;
        let (digest, size) = (origin.digest, origin.size);
        let file = SourceFile { role: "weights".into(), label: "weights".into(), path, digest, size };
        let source = RunSource { name: "weights".into(), settings: json!({}), files: vec![file] };
        let request = RunRequest {
            instance: "weights".into(),
            kind: kind.name.clone(),
            params: json!({}),
            inputs: Vec::new(),
            sources: [("weights".to_owned(), source)].into(),
            memo_dir: None,
            resume_dir: None,
            output_dir: scratch.path().to_owned(),
            threads: 1,
            gpus: Vec::new(),
            code: kind.code.clone(),
        };
        pack.carry_out(request, &mut |_| {})?;
        let about = scratch.path().join("clip.json");
        let text = std::fs::read(&about).map_err(CommandError::file("read", &about))?;
        let parsed: Value = serde_json::from_slice(&text).unwrap_or_default();
        Ok(parsed["config"].clone())
    }

    /// Writes the record, and says what to write into a manifest.
    fn keep(&self, target: &Path, origin: &Origin, about: &Value) -> Outcome {
        let path = Origin::path_of(target);
        let text = serde_json::to_string_pretty(origin).expect("a record is JSON");
        let scratch = NamedTempFile::new_in(&self.folder).map_err(CommandError::file("write", &self.folder))?;
        std::fs::write(scratch.path(), text + "\n").map_err(CommandError::file("write", &path))?;
        scratch.persist(&path).map_err(|e| CommandError::file("write", &path)(e.error))?;
        let tower = match about["resnet"].as_array() {
            Some(blocks) => {
                let blocks: Vec<String> = blocks.iter().map(Value::to_string).collect();
                format!("ResNet of {} blocks", blocks.join(", "))
            }
            None => format!("ViT of {} blocks, {} pixels a patch", about["vision_layers"], about["patch_size"]),
        };
        println!("{}: {tower}, {} pixels, {} dimensions", target.display(), about["image_size"], about["embed_dim"]);
        println!("  {}", origin.words());
        let name = target.file_stem().unwrap_or_default().to_string_lossy();
        println!("In a manifest: `backbones: {{{name}: {{weights: {}}}}}`", target.display());
        Ok(ExitCode::SUCCESS)
    }
}
