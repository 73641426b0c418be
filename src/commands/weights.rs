//! `siteline weights`

mod hub;

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
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
    /// Whether a worker has a look at weights.
    pub fn starts_workers(&self) -> bool {
        !matches!(self.verb, Verb::List(_))
    }

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
        let name = checked_name(self.name_here.clone().unwrap_or_else(|| wanted.name.clone()))?;
        let shelf = Shelf::open(common, self.into.clone())?;
        let target = shelf.folder.join(format!("{name}.safetensors"));
        let pinned = pin_of(&target)?;
        if let Some(pinned) = &pinned {
            self.same_source(&wanted, pinned, &target)?;
        }
        if target.exists() {
            return match &pinned {
                Some(pinned) => is_there(&target, pinned),
                None => {
                    let message = format!("{} is there, and nothing says where it came from", target.display());
                    let hint =
                        "name the new one with `--as NAME`; `siteline weights add` keeps what is there".to_owned();
                    Err(CommandError::refused(message, hint))
                }
            };
        }
        let pin = pinned.as_ref().and_then(|pinned| match &pinned.from {
            From::Hub { revision, .. } => Some(revision.clone()),
            From::File { .. } => None,
        });
        let revision = pin.or(self.revision).unwrap_or_else(|| "main".to_owned());
        let fetched = hub::fetch(&wanted, &revision, &shelf.folder.join(".fetching"))?;
        let part = fetched.part;
        let from = From::Hub { repository: wanted.repository, revision: fetched.revision, file: wanted.file };
        let origin = origin_of(&part.path, from)?;
        let expected = [fetched.sha256.as_deref(), pinned.as_ref().map(|pinned| pinned.sha256.as_str())];
        let about = match expected.into_iter().flatten().find(|expected| *expected != origin.sha256) {
            Some(expected) => Err(CommandError::refused(
                format!("what came is not what it should be: its SHA-256 is {}, not {expected}", origin.sha256),
                "nothing was kept; fetch it again, or look at the server".to_owned(),
            )),
            None => shelf.check(common, &part.path, &origin),
        };
        match about {
            Err(error) => {
                part.discard();
                Err(error)
            }
            Ok(about) => {
                // The record first: if that is all that gets done, the next fetch brings the same bytes.
                shelf.record(&target, &origin)?;
                part.persist(&target)?;
                shelf.tell(&target, &origin, &about)
            }
        }
    }

    /// A name stands for one source.
    fn same_source(&self, wanted: &Wanted, pinned: &Origin, target: &Path) -> Result<(), CommandError> {
        let same = match &pinned.from {
            From::Hub { repository, revision, file } => {
                *repository == wanted.repository
                    && *file == wanted.file
                    && self.revision.as_ref().is_none_or(|asked| revision.starts_with(asked.as_str()))
            }
            From::File { .. } => false,
        };
        if same {
            return Ok(());
        }
        let record = Origin::path_of(target);
        Err(CommandError::refused(
            format!("{} is pinned to another source: {}", target.display(), pinned.words()),
            format!("name the new one with `--as NAME`; or remove {} and the file", record.display()),
        ))
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
        let holds = |target: &Path| Digest::of_file(target).is_ok_and(|(digest, _)| digest == origin.digest);
        let pinned = pin_of(&target)?;
        let other = pinned.as_ref().is_some_and(|pinned| pinned.digest != origin.digest);
        if other || target.exists() && !holds(&target) {
            let message = format!("{} is there, or pinned, as something else", target.display());
            return Err(CommandError::refused(message, "name the new one with `--as NAME`".to_owned()));
        }
        let about = shelf.check(common, &self.file, &origin)?;
        // What is known of where it came from stays known.
        let origin = pinned.unwrap_or(origin);
        shelf.record(&target, &origin)?;
        if !target.exists() {
            let scratch = shelf.scratch()?;
            std::fs::copy(&self.file, scratch.path()).map_err(CommandError::file("copy", &self.file))?;
            if !Digest::of_file(scratch.path()).is_ok_and(|(digest, _)| digest == origin.digest) {
                let message = format!("{} was changed while it was copied", self.file.display());
                return Err(CommandError::refused(message, "add it again".to_owned()));
            }
            readable(scratch.path())?;
            scratch.persist(&target).map_err(|e| CommandError::file("write", &target)(e.error))?;
        }
        shelf.tell(&target, &origin, &about)
    }
}

impl List {
    fn run(self, common: &Common) -> Outcome {
        let folder = self.into.map_or_else(|| project_folder(common).map(|root| root.join("weights")), Ok)?;
        for (name, repository, about) in hub::KNOWN {
            let target = folder.join(format!("{name}.safetensors"));
            let state = if target.exists() { "here" } else { "" };
            outln!("{name:<10} {state:<5} {about:<52} {repository}");
        }
        outln!(
            "\nThey are OpenAI's weights as timm publishes them. `siteline weights fetch NAME` brings one to {}.",
            folder.display()
        );
        Ok(ExitCode::SUCCESS)
    }
}

/// A name that is one file in a folder.
fn checked_name(name: String) -> Result<String, CommandError> {
    let name = ["safetensors", "pt"]
        .iter()
        .find_map(|ending| Some(name.strip_suffix(ending)?.strip_suffix('.')?.to_owned()))
        .unwrap_or(name);
    let plain = |c: char| c.is_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
        let hint = "write letters, digits, `-`, `_` and `.`, by `--as NAME`".to_owned();
        return Err(CommandError::request(format!("`{}` is no name for a file", name.escape_debug()), hint));
    }
    Ok(name)
}

fn origin_of(path: &Path, from: From) -> Result<Origin, CommandError> {
    if !std::fs::metadata(path).map_err(CommandError::file("read", path))?.is_file() {
        return Err(CommandError::request(format!("{} is no file", path.display()), None));
    }
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
    root: PathBuf,
    folder: PathBuf,
}

impl Shelf {
    fn open(common: &Common, into: Option<PathBuf>) -> Result<Self, CommandError> {
        let root = project_folder(common)?;
        let folder = into.unwrap_or_else(|| root.join("weights"));
        std::fs::create_dir_all(&folder).map_err(CommandError::file("create", &folder))?;
        Ok(Self { root, folder })
    }

    fn scratch(&self) -> Result<NamedTempFile, CommandError> {
        NamedTempFile::new_in(&self.folder).map_err(CommandError::file("write", &self.folder))
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
        let sources = [("weights".to_owned(), source)].into();
        let request = RunRequest::alone(kind, json!({}), sources, scratch.path().to_owned());
        pack.carry_out(request, &mut |_| {})?;
        let about = scratch.path().join("clip.json");
        let text = std::fs::read(&about).map_err(CommandError::file("read", &about))?;
        let parsed: Value = serde_json::from_slice(&text).unwrap_or_default();
        Ok(parsed["config"].clone())
    }

    /// Writes the record.
    fn record(&self, target: &Path, origin: &Origin) -> Result<(), CommandError> {
        let path = Origin::path_of(target);
        let text = serde_json::to_string_pretty(origin).expect("a record is JSON");
        let scratch = self.scratch()?;
        std::fs::write(scratch.path(), text + "\n").map_err(CommandError::file("write", &path))?;
        readable(scratch.path())?;
        scratch.persist(&path).map_err(|e| CommandError::file("write", &path)(e.error))?;
        Ok(())
    }

    /// Says what it is, and what to write into a manifest.
    fn tell(&self, target: &Path, origin: &Origin, about: &Value) -> Outcome {
        let tower = match about["resnet"].as_array() {
            Some(blocks) => {
                let blocks: Vec<String> = blocks.iter().map(Value::to_string).collect();
                format!("ResNet of {} blocks", blocks.join(", "))
            }
            None => format!("ViT of {} blocks, {} pixels a patch", about["vision_layers"], about["patch_size"]),
        };
        outln!("{}: {tower}, {} pixels, {} dimensions", target.display(), about["image_size"], about["embed_dim"]);
        outln!("  {}", origin.words());
        let name = target.file_stem().unwrap_or_default().to_string_lossy();
        let path = target.strip_prefix(&self.root).unwrap_or(target).to_string_lossy();
        let is_openais = match &origin.from {
            From::Hub { repository, .. } => hub::KNOWN.iter().any(|(_, known, _)| known == repository),
            From::File { .. } => origin.known_as.is_some(),
        };
        if is_openais {
            outln!("In a manifest: `backbones: {{{}: {{weights: {}}}}}`", as_yaml(&name), as_yaml(&path));
        } else {
            outln!(
                "In a manifest: `backbones: {{{}: {{weights: {}, activation: ...}}}}`",
                as_yaml(&name),
                as_yaml(&path)
            );
            outln!(
                "  `activation` is what no file of weights says: `quick-gelu` for OpenAI's own, `gelu` for most others' trainings."
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A text as it can stand in a YAML flow mapping.
fn as_yaml(text: &str) -> String {
    let word = ["null", "true", "false", "yes", "no", "on", "off"].contains(&text.to_ascii_lowercase().as_str());
    let plain = !word
        && text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c));
    if plain { text.to_owned() } else { json!(text).to_string() }
}

/// The record beside a file.
fn pin_of(target: &Path) -> Result<Option<Origin>, CommandError> {
    Origin::beside(target).map_err(|reason| {
        let message = format!("{} cannot be read: {reason}", Origin::path_of(target).display());
        CommandError::refused(message, "mend it, or remove it: then nothing is pinned".to_owned())
    })
}

/// A file that was fetched before: it must be what it was.
fn is_there(target: &Path, pinned: &Origin) -> Outcome {
    let (digest, _) = Digest::of_file(target).map_err(CommandError::file("read", target))?;
    if digest != pinned.digest {
        let record = Origin::path_of(target);
        return Err(CommandError::refused(
            format!("{} is not what was fetched: its content changed", target.display()),
            format!("remove it and fetch it again; remove {} as well to drop the pin", record.display()),
        ));
    }
    outln!("{} is there: {}", target.display(), pinned.words());
    Ok(ExitCode::SUCCESS)
}

/// A file that was made privately becomes everybody's to read, as others are.
fn readable(path: &Path) -> Result<(), CommandError> {
    let mode = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(path, mode).map_err(CommandError::file("write", path))
}
