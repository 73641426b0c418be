//! The stage protocol: what `siteline` and a pack of stage kinds say to each other, one JSON object a line.
//!
//! `siteline` starts a pack's program, writes [`Request`]s to its standard input and reads [`Reply`]s from its standard
//! output; standard error is kept in the instance's log. These are types and a version, no more: the driver's half
//! is `executor`, the built-in pack's half is `siteline-worker`.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use siteline_cache::Digest;

/// Version of the messages. History: 1, the first; 2, folders for memos and for resuming, resources that are not slots.
pub const VERSION: u32 = 2;

/// The point of an instance: axis name to the value's label.
pub type Point = BTreeMap<String, String>;

/// What the driver asks of a pack.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// Which kinds are there? Answered by [`Reply::Kinds`].
    Describe,
    /// Do one instance's work. Answered by any number of progress, metric and log lines, then done or failed.
    Run(Box<RunRequest>),
}

/// One instance's work.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunRequest {
    /// The instance's name, for messages.
    pub instance: String,
    /// The stage kind.
    pub kind: String,
    /// Values of the kind's parameters, defaults filled in.
    pub params: Value,
    /// What other stages made, in key order.
    pub inputs: Vec<RunInput>,
    /// Files from outside the store, by source name.
    pub sources: BTreeMap<String, RunSource>,
    /// An empty directory for the outputs; nothing else may be written.
    pub output_dir: PathBuf,
    /// Where results of parts may be kept across executions; see `memo`.
    #[serde(default)]
    pub memo_dir: Option<PathBuf>,
    /// Where long work may leave what it needs to go on after an interruption. What lies there is of this very key.
    #[serde(default)]
    pub resume_dir: Option<PathBuf>,
    /// CPU threads to use.
    pub threads: usize,
    /// The GPUs that are leased to this instance, as CUDA_VISIBLE_DEVICES names them.
    pub gpus: Vec<String>,
    /// What the kind's code was when the plan was made: a worker of other code refuses the work.
    pub code: CodeFingerprint,
}

impl RunRequest {
    /// Work outside a run, which reads nothing of a store and remembers nothing; by all cores.
    pub fn alone(kind: &StageKind, params: Value, sources: BTreeMap<String, RunSource>, output_dir: PathBuf) -> Self {
        Self {
            instance: kind.name.clone(),
            kind: kind.name.clone(),
            params,
            inputs: Vec::new(),
            sources,
            memo_dir: None,
            resume_dir: None,
            output_dir,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            gpus: Vec::new(),
            code: kind.code.clone(),
        }
    }
}

/// One artifact that a stage reads.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunInput {
    /// The input's name in the stage's `needs`.
    pub name: String,
    /// The point of the instance that made it.
    pub point: Point,
    /// Where each of its files lies, read-only.
    pub files: BTreeMap<String, PathBuf>,
}

/// Files from outside the store that belong together, with the settings that say how to read them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RunSource {
    /// The name that the manifest gives it: a site's, a backbone's.
    pub name: String,
    /// Settings from the manifest.
    pub settings: Value,
    /// The files, in key order.
    pub files: Vec<SourceFile>,
}

/// One file from outside the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    /// What it is: `image`, `mask`, `table`, `weights`, `file`.
    pub role: String,
    /// What tells it from others of its role: a sample's stem.
    pub label: String,
    /// Where it lies. Never part of a key.
    pub path: PathBuf,
    /// Its content.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
}

/// What a pack says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// The kinds of the pack.
    Kinds {
        /// [`VERSION`] of the pack.
        protocol: u32,
        /// The kinds, by name.
        kinds: Vec<StageKind>,
    },
    /// How far the work is.
    Progress {
        /// Units done.
        done: u64,
        /// Units in all.
        total: u64,
        /// What is counted: `images`, `epochs`.
        unit: String,
    },
    /// A number worth keeping with the execution.
    Metric {
        /// Its name.
        name: String,
        /// Its value.
        value: f64,
    },
    /// A line for the instance's log; warnings are shown to the user as well.
    Log {
        /// Whether the user should see it.
        warning: bool,
        /// The text.
        text: String,
    },
    /// The outputs are in place.
    Done {
        /// Where and with what it ran: library versions, device, threads. Recorded, never part of a key.
        environment: BTreeMap<String, String>,
        /// The instance. A pack that says it is never believed of another one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        instance: Option<String>,
    },
    /// The work could not be done.
    Failed {
        /// What went wrong, naming the file at fault.
        message: String,
        /// The instance, as in [`Reply::Done`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        instance: Option<String>,
    },
}

impl Reply {
    /// Whether it ends the work on an instance.
    pub fn is_last(&self) -> bool {
        matches!(self, Self::Done { .. } | Self::Failed { .. })
    }
}

/// Names end up in instance names, folders and paths.
pub(crate) fn is_name(text: &str) -> bool {
    let good = |c: char| c.is_alphanumeric() || "-_.".contains(c);
    !text.is_empty() && !text.starts_with('.') && text.chars().all(good)
}

/// Whether a path stays in the folder that it is relative to; one that ends in `/` is a folder.
pub(crate) fn stays_inside(path: &str) -> bool {
    let plain = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    plain && !path.is_empty() && !path.chars().any(char::is_control)
}

impl StageKind {
    /// What is wrong with its names, which come from a pack, if anything is.
    pub(crate) fn misnamed(&self) -> Option<String> {
        let inputs = self.inputs.iter().map(|input| ("an input", &input.name));
        let sources = self.sources.iter().map(|source| ("a source", &source.name));
        let all = [("a stage kind", &self.name)].into_iter().chain(inputs).chain(sources);
        let bad = all.into_iter().find(|(_, name)| !is_name(name)).map(|(what, name)| {
            format!("{name:?} cannot be the name of {what}: letters, digits, `-`, `_` and `.` can")
        });
        let outside = || self.outputs.iter().find(|output| !stays_inside(&output.path));
        bad.or_else(|| outside().map(|output| format!("the output {:?} does not stay in its folder", output.path)))
    }
}

/// A recipe: what a stage that `uses` it takes and makes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StageKind {
    /// The name in `uses`.
    pub name: String,
    /// One sentence for `siteline schema` and error messages.
    pub summary: String,
    /// JSON Schema of the parameters, defaults included.
    pub params: Value,
    /// What it reads from other stages.
    pub inputs: Vec<InputSpec>,
    /// What it reads from outside the store.
    pub sources: Vec<SourceSpec>,
    /// What else instances with certain parameters need, checked when the plan is made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<Requirement>,
    /// Files that it writes; one ending in `/` is a folder.
    pub outputs: Vec<OutputSpec>,
    /// Defaults for the stage's `resources`.
    pub resources: Resources,
    /// Whether the number of threads changes no bit of what it makes: it then gets the CPU slots that nobody waits for.
    #[serde(default)]
    pub scales: bool,
    /// What its code is.
    pub code: CodeFingerprint,
}

/// Inputs that are optional for a kind and that instances with certain parameters cannot do without.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Requirement {
    /// Parameters and the values that they must all have for this to count.
    pub when: Map<String, Value>,
    /// Sets of inputs, each with the least number of artifacts: one set is enough.
    pub any: Vec<Vec<InputCount>>,
    /// What is needed, in words: `unet is trained on `samples``.
    pub message: String,
}

/// So many artifacts of an input.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InputCount {
    /// The name in `needs`.
    pub input: String,
    /// The least number.
    pub least: usize,
}

/// An input of a kind.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InputSpec {
    /// The name in `needs`.
    pub name: String,
    /// What leakage analysis makes of it.
    pub role: Role,
    /// The files of the needed artifact that are read: no other file can change the key.
    pub files: Vec<String>,
    /// Whether several artifacts may be gathered.
    pub many: bool,
    /// Whether it may be absent.
    pub optional: bool,
}

impl InputSpec {
    /// The same input, taking any number of artifacts.
    pub fn gathered(self) -> Self {
        Self { many: true, ..self }
    }

    /// The same input, which may be absent.
    pub fn optional(self) -> Self {
        Self { optional: true, ..self }
    }
}

/// What flows through an input, as far as leakage is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Data that the stage learns from or passes on.
    Plain,
    /// A trained model: whatever flowed into it counts as training data.
    Model,
    /// Data that a model is scored on.
    Scored,
    /// Scores on the held-out site that choose a model. That is no leak but a protocol of its own, and tables mark it.
    #[schemars(skip)]
    Oracle,
}

/// Something that a kind reads from outside the store.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SourceSpec {
    /// Its name in the run request.
    pub name: String,
    /// Where the manifest says which.
    pub from: SourceFrom,
}

/// Where the manifest names a source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceFrom {
    /// The raw files of the site at the instance's `site` axis.
    Site,
    /// The weights of the backbone at the instance's `backbone` axis.
    Backbone,
    /// The file that a parameter names, relative to the manifest.
    Param(String),
    /// The files that a command's stage lists: `code` or `files`.
    Stage(String),
}

/// An output of a kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputSpec {
    /// File name, or a folder's with a `/` at its end.
    pub path: String,
    /// What reads it besides stages.
    #[serde(default)]
    pub purpose: Purpose,
}

/// What the driver itself does with an output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// Nothing: other stages read it.
    #[default]
    Data,
    /// JSON [`Identities`]: who and what is in it, for leakage checks.
    Identities,
    /// Put into the results folder at the end of a run.
    Result,
    /// JSON cells of a results table, for `table`, `trace` and the report.
    Cells,
}

/// Who and what an artifact of raw data contains.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Identities {
    /// One entry a sample.
    pub samples: Vec<Identity>,
}

/// One sample's identity.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Identity {
    /// The sample's id.
    pub id: String,
    /// The patient, qualified by the site or by the group of sites that share patient numbers.
    pub patient: String,
    /// Digest of the decoded pixels, whatever the file format.
    pub pixels: Digest,
}

/// What an instance occupies while it runs. Never part of a key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// CPU slots, and threads for the work. Without it one; work of a kind whose bytes no number of threads changes also gets the
    /// slots that nobody waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub cpu: Option<usize>,
    /// GPUs, each leased to one instance at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 64))]
    pub gpu: Option<usize>,
    /// Memory that is set aside: `4 GB`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<String>,
    /// Tokens, by the names in the manifest's `tokens`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tokens: BTreeMap<String, usize>,
}

impl Resources {
    /// These, and of the defaults what these do not name.
    #[must_use]
    pub fn over(&self, defaults: &Self) -> Self {
        let mut tokens = defaults.tokens.clone();
        tokens.extend(self.tokens.clone());
        Self {
            cpu: self.cpu.or(defaults.cpu),
            gpu: self.gpu.or(defaults.gpu),
            memory: self.memory.clone().or_else(|| defaults.memory.clone()),
            tokens,
        }
    }
}

/// Reads an amount of memory: `4 GB`, `512 MiB`.
///
/// # Errors
/// A text that is none, in words.
pub fn bytes(text: &str) -> Result<u64, String> {
    let size: Result<bytesize::ByteSize, _> = text.parse();
    size.map(|size| size.as_u64()).map_err(|_| format!("`{text}` is no amount of memory; write `4 GB` or `512 MiB`"))
}

/// What a kind's code is: worked out when the pack is built, from the sources that the kind reaches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CodeFingerprint {
    /// Digest of the sources that every instance of the kind is made of.
    pub base: String,
    /// Digests of further sources by parameter name and value: `method` -> `mcdrl`.
    #[serde(default)]
    pub variants: BTreeMap<String, BTreeMap<String, String>>,
    /// Versions of the libraries that shape its numbers.
    #[serde(default)]
    pub libraries: BTreeMap<String, String>,
}
