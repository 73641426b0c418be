//! The manifest: sites, backbones, axes and stages, as written in YAML.
//!
//! [`Manifest`] is what a reader may write; its JSON Schema is generated from these types, and the same schema is what a
//! document is checked against. `load` reads a file into a [`Loaded`] manifest, whose [`Node`] tree keeps the place of
//! every key and value for later diagnostics.

mod axes;
mod check;
pub mod command;
pub mod editor;
mod load;
pub mod selection;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::pack::Home;
use crate::protocol::{Resources, Role, StageKind};
use crate::tree::{Node, Span};

pub use axes::Axis;
pub(crate) use load::interpolate;
pub use load::{Override, load, project_root};

/// A multi-site experiment: which sites, which sweep, which stages lead from raw images to a results table.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the manifest's format; 1 is the only one so far.
    #[schemars(range(min = 1, max = 1))]
    pub siteline: u32,
    /// Name of the experiment: results appear in `results/NAME`.
    pub name: String,
    /// The project's folder, relative to this file; all other paths are relative to it. Defaults to this file's folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// Values to be used as `${name}` in paths of sites and backbones; `--set params.name=...` overrides them.
    #[serde(default)]
    pub params: IndexMap<String, String>,
    /// The sites, by name.
    #[serde(default)]
    pub sites: IndexMap<String, Site>,
    /// Pre-trained encoders, by the names that the `backbone` axis uses.
    #[serde(default)]
    pub backbones: IndexMap<String, Backbone>,
    /// The sweep: each axis with its values; `sites` stands for the names of all sites. The axis `site` is always there.
    #[serde(default)]
    pub axes: IndexMap<String, AxisValues>,
    /// Conditions over axes; points for which one holds are left out of the sweep.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Points that are added to the sweep: values for some axes, which need not be listed there; the other axes take all of theirs.
    #[serde(default)]
    pub include: Vec<IndexMap<String, AxisValue>>,
    /// Things of which there are only so many, such as licences; stages ask for them in `resources: {tokens: {NAME: N}}`.
    #[serde(default)]
    pub tokens: BTreeMap<String, usize>,
    /// Further programs that hold stage kinds, by path or as a command line: see docs/stage-protocol.md.
    #[serde(default)]
    pub packs: Vec<String>,
    /// The stages, by name.
    pub stages: IndexMap<String, Stage>,
}

/// Where a site's images lie and how to read them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Site {
    /// Layout of the files; `pairs` is one mask file for each image file.
    #[serde(default)]
    pub adapter: Adapter,
    /// Pattern of the image files: `data/kvasir/images/*.jpg`.
    pub images: String,
    /// The mask file of an image; `{stem}` is the image's name without its ending, and `*` may stand for an ending.
    pub masks: String,
    /// Where a sample's lesion class comes from: one word for the whole site, `{name: REGEX}` or `{column: NAME}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<Attribute>,
    /// Where a sample's patient comes from. Without it every image counts as a patient of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patient: Option<Attribute>,
    /// Where a sentence about each image comes from, for methods that read one: most often `{column: NAME}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<Attribute>,
    /// A CSV file with a column of image stems, for `{column: ...}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// The column of stems in `table`; defaults to the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Sites that name the same group share patient numbers: one number is one person there. Defaults to the site itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patient_group: Option<String>,
    /// Images whose perceptual hashes differ in at most so many of 64 bits count as one patient's: neighbouring frames of a video, or
    /// one picture in two collections. Without it no image is compared with another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 32))]
    pub similar: Option<u32>,
    /// What becomes of a file that cannot be used: the stage fails, or the sample is left out and listed.
    #[serde(default)]
    pub on_bad_file: OnBadFile,
}

/// A folder layout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Adapter {
    /// One mask file for each image file.
    #[default]
    Pairs,
}

/// Where a sample's class, patient or sentence comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Attribute {
    /// The same for every sample of the site.
    Fixed(String),
    /// The first group of a regular expression over the image's stem.
    Name(FromName),
    /// A column of the site's table.
    Column(FromColumn),
}

/// `{name: REGEX}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FromName {
    /// A regular expression with one group.
    pub name: String,
}

/// `{column: NAME}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FromColumn {
    /// A column of the site's table.
    pub column: String,
}

/// What becomes of a file that cannot be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnBadFile {
    /// The stage fails and names the file.
    #[default]
    Fail,
    /// The sample is left out, and listed in `left_out.csv` with the reason.
    LeaveOut,
}

/// A pre-trained encoder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Backbone {
    /// A safetensors file in OpenAI's, open_clip's or Hugging Face's naming, or one of OpenAI's TorchScript archives.
    pub weights: String,
    /// The non-linearity that the weights were trained with: `quick-gelu` (OpenAI) or `gelu`.
    #[serde(default = "quick_gelu")]
    pub activation: String,
    /// Width of one attention head of the image tower: 64, but 80 in open_clip's ViT-H/14, 88 in g/14 and 104 in bigG/14.
    #[serde(default = "head_width")]
    #[schemars(range(min = 1))]
    pub vision_head_width: u32,
    /// Side of the input images in pixels, where it is another than the weights were trained with: the image tower's positions are
    /// interpolated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4096))]
    pub image_size: Option<u32>,
    /// Whether that interpolation filters first, as open_clip's does; CRIS's and CLIPSeg's do not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub antialias: bool,
}

fn head_width() -> u32 {
    64
}

fn quick_gelu() -> String {
    "quick-gelu".to_owned()
}

/// The values of an axis.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum AxisValues {
    /// `sites`: the names of all sites.
    Named(NamedAxis),
    /// A list of words, numbers, or named groups of parameters.
    List(Vec<AxisValue>),
    /// A list in a file.
    File(AxisFile),
}

/// `{from: FILE}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AxisFile {
    /// A YAML or JSON file with a list, or a text file with a value in each line; `#` begins a comment.
    pub from: String,
}

/// A set of values that the manifest has already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NamedAxis {
    /// The names of all sites.
    Sites,
}

/// One value of an axis.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum AxisValue {
    /// A whole number: a seed, say.
    Number(i64),
    /// A fraction: a learning rate, say.
    Fraction(f64),
    /// A word.
    Word(String),
    /// Several parameters under one name: `{name: wide, head_width: 256, lr: 0.001}`.
    Group(AxisGroup),
}

/// Several parameters that change together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AxisGroup {
    /// What instance names and tables call it.
    pub name: String,
    /// The parameters, given to every stage on this axis that has them.
    #[serde(flatten)]
    pub with: Map<String, Value>,
}

impl AxisValue {
    /// As shown in instance names.
    pub fn label(&self) -> String {
        match self {
            Self::Number(n) => n.to_string(),
            Self::Fraction(x) => x.to_string(),
            Self::Word(word) => word.clone(),
            Self::Group(group) => group.name.clone(),
        }
    }

    /// The parameters that it gives to a stage: one of the axis's own name, or those of a group.
    pub fn params(&self, axis: &str) -> Map<String, Value> {
        match self {
            Self::Number(n) => Map::from_iter([(axis.to_owned(), Value::from(*n))]),
            Self::Fraction(x) => Map::from_iter([(axis.to_owned(), Value::from(*x))]),
            Self::Word(word) => Map::from_iter([(axis.to_owned(), Value::from(word.as_str()))]),
            Self::Group(group) => {
                let mut with = group.with.clone();
                with.entry(axis.to_owned()).or_insert_with(|| Value::from(group.name.as_str()));
                with
            }
        }
    }
}

/// A step of the experiment, run once at each point of its axes: a stage kind (`uses`) or a command (`run`).
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// The stage kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uses: Option<String>,
    /// A command instead of a stage kind. `${NAME}` stands for the value of an axis or of a parameter in `with`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<CommandLine>,
    /// The axes over which it is repeated.
    #[serde(default)]
    pub per: Vec<String>,
    /// At which points of its axes the stage exists: `method == mcdrl`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<String>,
    /// What it reads from other stages, by the kind's input names; a command finds each in `inputs/NAME`.
    #[serde(default)]
    pub needs: IndexMap<String, Need>,
    /// Parameters of the kind, or of the command, which finds them in `params.json`.
    #[serde(default)]
    pub with: Map<String, Value>,
    /// Parameters for some points only; later ones win.
    #[serde(default)]
    pub overrides: Vec<PointParams>,
    /// Files that a command writes, relative to its working directory; a name that ends in `/` is a folder.
    #[serde(default)]
    pub outputs: Vec<String>,
    /// Of `outputs`, those for people: they appear in `results/NAME`.
    #[serde(default)]
    pub results: Vec<String>,
    /// Patterns of the files that a command is made of. Files that a Python file imports from the project are added.
    #[serde(default)]
    pub code: Vec<String>,
    /// Patterns of data files of the project that a command reads; it finds them under their own paths.
    #[serde(default)]
    pub files: Vec<String>,
    /// Environment variables of a command: `NAME: value`, or `NAME:` alone to pass on the value that it has.
    #[serde(default)]
    pub env: IndexMap<String, Option<String>>,
    /// What an instance occupies while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// The longest that an instance may take: `30s`, `20m`, `2h`. What takes longer is ended and has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// What becomes of an instance that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// Trains candidates and chooses among them; others read the chosen one as `STAGE.select`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selection: Option<selection::Selection>,
    /// Says that models may be scored on sites that they were trained on; the results table then says so too.
    #[serde(default)]
    pub in_domain: bool,
}

/// A command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum CommandLine {
    /// For the shell, which stops at the first line that fails.
    Shell(String),
    /// A program and its arguments.
    Words(Vec<String>),
}

/// How often and when an instance that failed is tried again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Retry {
    /// How often it is tried in all.
    #[schemars(range(min = 1, max = 100))]
    pub attempts: usize,
    /// How long to wait in front of the second attempt, doubled for each further one: `10s`.
    #[serde(default = "ten_seconds")]
    pub backoff: String,
}

fn ten_seconds() -> String {
    "10s".to_owned()
}

impl Retry {
    /// The wait in front of attempt `number`, counted from 2.
    pub fn wait(&self, number: usize) -> Duration {
        let first = duration(&self.backoff).unwrap_or_default();
        first.saturating_mul(1 << (number.saturating_sub(2)).min(16))
    }
}

/// Reads `30s`, `20m`, `2h`, `1h 30m`.
///
/// # Errors
/// A text that is no length of time, in words.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no length of time; write `30s`, `20m` or `2h`");
    let signed: jiff::SignedDuration = text.parse().map_err(|_| wrong())?;
    Duration::try_from(signed).map_err(|_| wrong())
}

impl Stage {
    /// What messages call its kind.
    pub fn kind_name(&self) -> &str {
        self.uses.as_deref().unwrap_or("run")
    }
}

/// What a stage reads from another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Need {
    /// The stage's name.
    Stage(String),
    /// The stage with conditions.
    Join(Join),
}

/// A needed stage with conditions. Axes that both stages have must be equal; axes that only the needed stage has
/// are gathered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Join {
    /// The needed stage.
    pub stage: String,
    /// Which of its instances, by axes of both: `site != held_out`.
    #[serde(default, rename = "where", skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// At which points of this stage the need exists: `method == mcdrl`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<String>,
    /// What leakage analysis makes of it, in a stage that runs a command: a `model`, the data it is `scored` on, or `plain` data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
}

impl Need {
    /// As a join, conditions or not.
    pub fn join(&self) -> Join {
        match self {
            Self::Stage(stage) => Join { stage: stage.clone(), filter: None, when: None, role: None },
            Self::Join(join) => join.clone(),
        }
    }
}

/// Parameters for some points only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PointParams {
    /// At which points: `method == mcdrl`.
    pub when: String,
    /// The parameters there.
    pub with: Map<String, Value>,
}

/// Stage kinds by name, those of packs in their order.
pub type Kinds = indexmap::IndexMap<String, StageKind>;

/// A manifest that was read and fits its schema.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The file.
    pub path: PathBuf,
    /// Its text, as it was when it was read.
    pub text: String,
    /// The tree with places.
    pub tree: Node,
    /// The content.
    pub manifest: Manifest,
    /// The folder that paths are relative to.
    pub root: PathBuf,
    /// What the command line changed.
    pub overrides: Vec<Override>,
    /// The stage kinds: those of the packs, and one for each stage that runs a command.
    pub kinds: Kinds,
    /// Where each kind's work is done, in the order of `kinds`.
    pub homes: Vec<Home>,
    /// The axes by name, the implicit `site` included.
    pub axes: BTreeMap<String, Axis>,
    /// The stages that a `selection` added, each with the stage that has it.
    pub added: BTreeMap<String, String>,
}

impl Loaded {
    /// The place of a key's value in the file, or of the nearest above it. An added stage is at its origin's.
    pub fn place(&self, path: &[&str]) -> Span {
        self.tree.nearest(&self.in_file(path)).span.clone()
    }

    /// The place of a key in the file.
    pub fn key_place(&self, path: &[&str]) -> Span {
        self.tree.key_span(&self.in_file(path))
    }

    fn in_file<'p>(&'p self, path: &[&'p str]) -> Vec<&'p str> {
        let mut path = path.to_vec();
        if let ["stages", name, ..] = path[..]
            && let Some(origin) = self.added.get(name)
        {
            path[1] = origin;
        }
        path
    }

    /// The kind of a stage, by its place among `kinds`.
    pub fn kind_of(&self, stage: &str) -> usize {
        self.kinds.get_index_of(&self.kind_name_of(stage)).expect("the manifest was checked")
    }

    /// The name of a stage's kind.
    fn kind_name_of(&self, stage: &str) -> String {
        self.manifest.stages[stage].uses.clone().unwrap_or_else(|| command::kind_name(stage))
    }
}

/// The manifest's JSON Schema.
pub fn json_schema() -> Value {
    schemars::schema_for!(Manifest).to_value()
}
