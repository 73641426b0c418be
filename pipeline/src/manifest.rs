//! The manifest: sites, backbones, axes and stages, as written in YAML.
//!
//! [`Manifest`] is what a reader may write; its JSON Schema is generated from these types, and the same schema is what a
//! document is checked against. `load` reads a file into a [`Loaded`] manifest, whose [`Node`] tree keeps the place of
//! every key and value for later diagnostics.

mod check;
mod load;

use std::collections::BTreeMap;
use std::path::PathBuf;

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::protocol::Resources;
use crate::tree::Node;

pub(crate) use load::interpolate;
pub use load::{Override, load};

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
    /// A CSV file with a column of image stems, for `{column: ...}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// The column of stems in `table`; defaults to the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Sites that name the same group share patient numbers: one number is one person there. Defaults to the site itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patient_group: Option<String>,
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

/// Where a sample's class or patient comes from.
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
    /// A safetensors file in OpenAI's, open_clip's or Hugging Face's naming.
    pub weights: String,
    /// The non-linearity that the weights were trained with: `quick-gelu` (OpenAI) or `gelu`.
    #[serde(default = "quick_gelu")]
    pub activation: String,
    /// Width of one attention head of the image tower: 64, but 80 in open_clip's ViT-H/14, 88 in g/14 and 104 in bigG/14.
    #[serde(default = "head_width")]
    #[schemars(range(min = 1))]
    pub vision_head_width: u32,
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
    /// A list of words or numbers.
    List(Vec<AxisValue>),
}

/// A set of values that the manifest has already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NamedAxis {
    /// The names of all sites.
    Sites,
}

/// One value of an axis.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum AxisValue {
    /// A whole number: a seed, say.
    Number(i64),
    /// A word.
    Word(String),
}

impl AxisValue {
    /// As shown in instance names.
    pub fn label(&self) -> String {
        match self {
            Self::Number(n) => n.to_string(),
            Self::Word(word) => word.clone(),
        }
    }

    /// As given to a parameter.
    pub fn value(&self) -> Value {
        match self {
            Self::Number(n) => Value::from(*n),
            Self::Word(word) => Value::from(word.as_str()),
        }
    }
}

/// A step of the experiment, run once at each point of its axes.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// The stage kind.
    pub uses: String,
    /// The axes over which it is repeated.
    #[serde(default)]
    pub per: Vec<String>,
    /// What it reads from other stages, by the kind's input names.
    #[serde(default)]
    pub needs: IndexMap<String, Need>,
    /// Parameters of the kind.
    #[serde(default)]
    pub with: Map<String, Value>,
    /// Parameters for some points only; later ones win.
    #[serde(default)]
    pub overrides: Vec<PointParams>,
    /// What an instance occupies while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Says that models may be scored on sites that they were trained on; the results table then says so too.
    #[serde(default)]
    pub in_domain: bool,
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
}

impl Need {
    /// As a join, conditions or not.
    pub fn join(&self) -> Join {
        match self {
            Self::Stage(stage) => Join { stage: stage.clone(), filter: None, when: None },
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
}

impl Loaded {
    /// Axis values by axis, the implicit `site` included, in the manifest's order.
    pub fn axes(&self) -> BTreeMap<String, Vec<AxisValue>> {
        let sites = || self.manifest.sites.keys().map(|name| AxisValue::Word(name.clone())).collect();
        let mut axes: BTreeMap<String, Vec<AxisValue>> = BTreeMap::from([("site".to_owned(), sites())]);
        for (name, values) in &self.manifest.axes {
            let values = match values {
                AxisValues::Named(NamedAxis::Sites) => sites(),
                AxisValues::List(list) => list.clone(),
            };
            axes.insert(name.clone(), values);
        }
        axes
    }
}

/// The manifest's JSON Schema.
pub fn json_schema() -> Value {
    schemars::schema_for!(Manifest).to_value()
}
